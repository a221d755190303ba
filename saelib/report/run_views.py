"""What the notebooks on training runs show: tables and figures of runs, the post's prompts and features (Figures 2 to 5)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.base.table import as_row, frame_of
from saelib.interpret import examples, features
from saelib.lm.model import LanguageModel
from saelib.report import views
from saelib.report.children_words import named_sentence, verdict_sentence
from saelib.report.html_view import TokenView
from saelib.sae.sae import SAE
from saelib.sae.stream import feature_activations
from saelib.split.classes import PROMPTS
from saelib.split.result import Split
from saelib.split.verdict import Verdict
from saelib.study import rows_to_beat, selection, study
from saelib.study.children_rows import CHILDREN, ChildrenResult
from saelib.study.graded import GRADED_CLASSES, Graded
from saelib.study.outcome import outcome, with_interval
from saelib.study.profiles import Profile
from saelib.study.results import RunResult

PUBLISHED = (
    ("count", 826, 6.82), ("count", 3334, 1.24), ("count", 2548, 1.05),
    ("number", 2821, 1.75), ("number", 3334, 1.29), ("number", 1781, 1.18),
    ("compound", 3833, 2.01), ("compound", 36, 1.33), ("compound", 2548, 0.99),
)  # fmt: skip
"""What the study read off its wide SAE, run-25: the top features at each prompt's hyphen, and their activations."""


def history_figure(history: pd.DataFrame) -> Figure:
    """Loss, L0, dead share and, after a warm start, how long the parent stays on top, against tokens."""
    columns = [c for c in ("loss", "l0", "dead_share", "parent_still_top") if c in history]
    figure, axes = plt.subplots(1, len(columns), figsize=(3.3 * len(columns), 3))
    for axis, column in zip(axes, columns, strict=True):
        axis.plot(history["tokens"], history[column])
        axis.set(xlabel="tokens", title=column)
    plt.close(figure)
    return figure


def separation_table(found: Graded) -> pd.DataFrame:
    """A row a class: MCC of the floor, of one, two and four features, of the ceiling; below it S with its intervals."""
    names = ("floor", "mcc_1", "mcc_2", "mcc_4", "ceiling")
    rows = {name: {what: getattr(found, f"{what}_{name}") for what in names} for name in GRADED_CLASSES}
    S = {f"mcc_{k}": getattr(found, f"S_{k}") for k in (1, 2, 4)}
    ends = {end: {f"mcc_{k}": getattr(found, f"S_{k}_{end}") for k in (1, 2, 4)} for end in ("low", "high")}
    return pd.DataFrame(
        rows | {"S": {"floor": 0.0, **S, "ceiling": 1.0}, "S, 95% from": ends["low"], "to": ends["high"]}
    ).T


def run_answer(result: RunResult) -> str:
    """What came of a run, in sentences."""
    found, strict = result.outcome.graded, result.outcome.strict
    apart = "Too few hyphens for a separation."
    if found.S_2 == found.S_2:
        apart = (
            f"Two features a class tell hyphens apart {found.S_2:.0%} of the way from the parent's own size to a linear probe "
            f"({found.S_2_low:.0%} to {found.S_2_high:.0%})."
        )
    required = f" ({strict.passed} of {strict.required} classes)" if strict.required else ""
    published = f"published: {result.published}" if result.published else "not among the post's runs"
    return (
        f"{apart} Strict verdict: {strict.verdict}{required}. On the post's prompts {result.prompts} of 3; {published}."
    )


def run_headline(result: RunResult) -> dict[str, Any]:
    """The numbers at the head of a run's page; the whole row stands in its JSON."""
    names = ("d_sae", "seed", "S_2", "S_2_low", "S_2_high", "mcc_2_number", "mcc_2_count", "verdict", "passed", "required",
             "prompts", "tokens", "l0", "fvu", "loss_recovered", "dead_share", "seconds", "weights")  # fmt: skip
    row = as_row(result)
    return {"answer": run_answer(result), **{name: row[name] for name in names}}


def best_run(rows: Sequence[RunResult]) -> RunResult:
    """The run with the highest S_2; the first, where hyphens are too few to say."""
    return max(rows, key=lambda row: row.outcome.graded.S_2 if row.outcome.graded.S_2 == row.outcome.graded.S_2 else -9)


def results_table(table: pd.DataFrame) -> pd.DataFrame:
    """The run table with what was published and what came out here (`results_frame`)."""
    columns = ["size", "seed", "init_from_narrow", "normalised", "filtered", "loss", "published_classes", "prompts", "S_2",
               "S_2_low", "S_2_high", "verdict", "passed", "tokens", "l0", "l0_hyphens", "fvu", "loss_recovered", "dead_share",
               "seconds"]  # fmt: skip
    return table[columns]


def separation_figure(table: pd.DataFrame) -> Figure:
    """S_2 of every run with its interval, blue where the data was filtered; beside it the two classes' MCC."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 4), sharey=True)
    colours = ["C0" if filtered else "#999999" for filtered in table["filtered"]]
    names, numbers = table.index.astype(str), table[["S_2", "S_2_low", "S_2_high"]].astype(float)
    axes[0].barh(names, numbers["S_2"], color=colours)
    axes[0].errorbar(
        numbers["S_2"], names, xerr=[numbers["S_2"] - numbers["S_2_low"], numbers["S_2_high"] - numbers["S_2"]],
        fmt="none", color="black", linewidth=0.8,
    )  # fmt: skip
    axes[0].set(title="S_2 (number and count)", ylabel="run (blue: filtered)")
    for axis, name in zip(axes[1:], GRADED_CLASSES, strict=True):
        axis.barh(names, table[f"mcc_2_{name}"].astype(float), color=colours)
        axis.axvline(float(table[f"ceiling_{name}"].astype(float).mean()), color="black", linestyle="--")
        axis.set(title=f"MCC, {name} (dashed: probe)", xlim=(0, 1))
    axes[0].invert_yaxis()
    plt.close(figure)
    return figure


def children_table(rows: Sequence[ChildrenResult]) -> pd.DataFrame:
    """A row a dictionary in the parent's place, or the reason why there is none."""
    if rows[0].reason:
        return pd.DataFrame({"not measured": [rows[0].reason]})
    table = frame_of(ChildrenResult, map(as_row, rows)).set_index(["dictionary", "seed"])
    columns = ["K", "children", "S_1", "S_4", "S_2_permuted", "verdict", "passed", "fvu", "fvu_on_P", "fvu_on_P_before", "l0",
               "l0_hyphens", "tokens", "seconds", "seconds_in_all"]  # fmt: skip
    table.insert(0, "S_2 (95%)", [with_interval(row.outcome.graded) for row in rows])
    return table[["S_2 (95%)", *columns]]


def compared(
    profile: Profile, parent: selection.Parent, table: pd.DataFrame, children: Sequence[ChildrenResult]
) -> pd.DataFrame:
    """Means: wide runs by data, the narrow SAE with children, and the narrow SAE as it is."""
    columns = ["S_1", "S_2", "S_4", "mcc_2_number", "mcc_2_count", "fvu", "l0", "tokens", "seconds"]
    narrow = study.narrow_sae(profile).sae
    quality = study.quality_of(profile, narrow)
    before = as_row(outcome(profile, parent, narrow)) | {"fvu": quality.fvu, "l0": quality.l0}
    own = frame_of(ChildrenResult, map(as_row, children)).set_index("dictionary")
    means = {name: part[columns] for name, part in arms_of(table).items()} | {
        "narrow + children": own.loc[[CHILDREN], columns]
    }
    means |= {"narrow + random decoder": own.drop(index=CHILDREN)[columns]}
    rows = {name: part.apply(pd.to_numeric).mean() for name, part in means.items()}
    return pd.DataFrame(rows | {"narrow": pd.Series(before).reindex(columns)}).T


def arms_of(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs by how they were trained."""
    wide, control = table["size"] == "wide", table["published_classes"].isna()
    filtered, warm = table["filtered"].astype(bool), table["init_from_narrow"].astype(bool)
    arms = {
        "wide, filtered": wide & filtered,
        "wide, all data, parent zeroed": wide & ~filtered & ~control,
        "wide, plain control": wide & ~filtered & control,
        "wide, warm start": wide & warm,
        "wide, random start": wide & ~warm,
        "narrow size": ~wide,
    }
    return {name: table[rows] for name, rows in arms.items()}


def arms_table(table: pd.DataFrame) -> pd.DataFrame:
    """S_2 by how runs were trained: runs, mean, smallest and largest, classes on the prompts, classes of the strict verdict."""
    rows = {}
    for name, part in arms_of(table).items():
        S_2 = part["S_2"].astype(float)
        rows[name] = {
            "runs": len(part), "S_2": S_2.mean(), "smallest": S_2.min(), "largest": S_2.max(),
            "prompts of 3": part["prompts"].mean(), "classes passed of 2": part["passed"].mean(), "L0": part["l0"].mean(),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def results_headline(rows: Sequence[RunResult], children: Sequence[ChildrenResult]) -> dict[str, Any]:
    """The numbers that answer which runs split the hyphen."""
    table = frame_of(RunResult, map(as_row, rows))
    wide = table[table["size"] == "wide"]
    S_2 = wide["S_2"].astype(float)
    own = [row for row in children if row.dictionary == CHILDREN]
    children_S_2 = float(pd.Series([row.outcome.graded.S_2 for row in own]).mean())
    seconds = float(pd.Series([row.seconds for row in own]).mean()), float(wide["seconds"].median())
    told = "Too few hyphens for a separation. "
    if S_2.notna().any():
        told = (
            f"Two features a class tell hyphens apart {S_2.min():.0%} to {S_2.max():.0%} of the way to a linear probe in "
            f"the {len(wide)} wide runs (mean {S_2.mean():.0%}). "
        )
    if children_S_2 == children_S_2:
        told += (
            f"With children in the narrow SAE it is {children_S_2:.0%}, after a training of {seconds[0]:.0f} s where a wide run "
            f"takes {seconds[1]:.0f} s. "
        )
    made = [row for row in rows if row.published_classes is not None]
    same = sum(row.prompts == row.published_classes for row in made)
    split = sum(row.outcome.strict.verdict is Verdict.SPLIT for row in rows)
    answer = (
        f"{told}On the post's prompts as many classes have a feature of their own as published in {same} of {len(made)} runs; "
        f"the strict verdict is split in {split} of {len(rows)}."
    )
    return {
        "answer": answer, "runs": len(rows), "wide_runs": len(wide), "split": split, "prompts_as_published": same,
        "best_run": best_run(rows).run,
        "S_2_lowest": S_2.min(), "S_2_highest": S_2.max(), "S_2_mean": S_2.mean(), "S_2_children": children_S_2,
        "seconds_children": seconds[0], "seconds_run": seconds[1],
    }  # fmt: skip


def split_headline(
    split: Split | None, reason: str, best: RunResult, beside: Sequence[rows_to_beat.RowToBeat]
) -> dict[str, Any]:
    """The numbers that answer what the hyphen is made of; `S_2_on_P` alone is of the parent's tokens, not of all hyphens."""
    wide = rows_to_beat.best_wide(beside)
    numbers = {
        "S_2_children": beside[0].S_2, "S_2_best_wide": None if wide is None else wide.S_2,
        "best_wide": "" if wide is None else wide.dictionary,
        "best_run": best.run, "S_2_best_run": best.outcome.graded.S_2,
    }  # fmt: skip
    if split is None:
        return {"answer": f"The parent is not split: {reason}.", **numbers}
    made = f"Feature {split.parent.feature} of the narrow SAE. {named_sentence(split.children)}."
    return {
        "answer": f"{made} {verdict_sentence(split)}",
        "verdict": str(split.verdict.value), "children": len(split.children), **numbers,
        "S_2_on_P": split.separation["rest + children"].S[2].value, "tokens_of_P": split.parent.n_on["test"],
        "seconds_training": split.cost["seconds_training"],
    }  # fmt: skip


def prompt_views(sae: SAE, model: LanguageModel, named: Mapping[str, int]) -> Iterator[TokenView]:
    """Each prompt, coloured by the three strongest features at its hyphen; `named` gives features by class."""
    labels = {j: name for name, j in named.items()}
    for name, prompt in PROMPTS.items():
        words, acts = features.prompt_activations(sae, model, prompt)
        yield views.top_features(words, acts, position=words.index("-"), labels=labels, caption=f"{name}: {prompt}")


def prompts_on(split: Split) -> list[str]:
    """The post's prompts in which the parent exceeds its threshold."""
    found = []
    for prompt in PROMPTS.values():
        with contextlib.suppress(UserError):
            split.on(prompt)
            found.append(prompt)
    return found


def feature_views(
    sae: SAE, model: LanguageModel, store: ActivationStore, named: Mapping[str, int]
) -> Iterator[TokenView | pd.DataFrame]:
    """For each class's feature, where it fires most in a store, then the logits it moves."""
    for name, j in named.items():
        acts = feature_activations(store, sae, j)
        top = examples.top_rows(acts, 8)
        texts = [examples.context_of(store, model, row, acts) for row in top]
        yield views.top_contexts(
            [tokens for tokens, _ in texts],
            [values for _, values in texts],
            columns={"activation": acts[top]},
            caption=f"{name}: feature {j}",
        )
        yield features.logit_effects(sae.W_dec[j], model, k=8)


def beside_published(sae: SAE, model: LanguageModel) -> pd.DataFrame:
    """The published features at the prompts' hyphens with their activations here, and their rank among all features.

    Columns: prompt, feature, published, here, rank (1 is the strongest; 0 where the feature does not fire).
    """
    rows: list[dict[str, Any]] = []
    acts = {}
    for name, prompt in PROMPTS.items():
        words, found = features.prompt_activations(sae, model, prompt)
        acts[name] = found[words.index("-")]
    for name, feature, published in PUBLISHED:
        here = float(acts[name][feature])
        rank = int((acts[name] > here).sum()) + 1 if here > 0 else 0
        rows.append({"prompt": name, "feature": feature, "published": published, "here": here, "rank": rank})
    return pd.DataFrame(rows)
