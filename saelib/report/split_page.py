"""A page on one split that a person can read without the code: the parent, then a card for each child."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import markupsafe
import pandas as pd

from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.interpret.compare import lineage
from saelib.interpret.features import check_features, check_match, prompt_activations
from saelib.lm.model import LanguageModel
from saelib.report.charts import histogram_svg, interval_svg
from saelib.report.feature_page import FeatureSummary, Member, figures, nearest_headings, sources, summarise
from saelib.report.html_view import HtmlView, examples, table
from saelib.report.views import View, top_features
from saelib.sae.sae import SAE
from saelib.split.score import BOUNDS, Bounds, ClassScore, Score

VERDICTS = {
    "split": "The parent has split: every class has a feature of its own.",
    "not split": "The parent has not split: no class has a feature of its own.",
    "undecided": "Undecided: at least one class has too few test tokens to say.",
}


def split_page(
    parent: Member,
    sae: SAE,
    model: LanguageModel,
    store: ActivationStore,
    score: Score,
    *,
    bounds: Bounds = BOUNDS,
    prompts: Mapping[str, str] | None = None,
    prompt_token: str | None = None,
    causal: pd.DataFrame | None = None,
    controls: pd.DataFrame | None = None,
    cost: pd.DataFrame | None = None,
    automatic_classes: bool = False,
    title: str = "",
    k: int = 6,
    firing: bool = True,
) -> HtmlView:
    """The page of one split, from what was measured elsewhere; `.save("split.html")` writes it and its `.json` sibling.

    Args:
        parent: the SAE and feature that was to be split.
        sae: the dictionary that holds the children.
        store: activations of held-out text, for the examples.
        score: the verdict, from `saelib.split.choose.score_split`.
        bounds: the bounds the score was judged by.
        prompts: class -> a prompt, shown at its first `prompt_token`, or else where the parent is strongest in it.
        causal: causal effects; rows with a `context_class` column (or index) of a class go to its card, others to a table.
        controls, cost: tables shown as they are (tokens, seconds).
        automatic_classes: say that the classes were made by a program, not named by a person.
        k: examples a feature.
        firing: count which features fire together (a pass that encodes all features).

    Raises:
        UserError: a feature out of range, SAEs, model and store that do not belong together, or a prompt
            without the token.
    """
    check_features(parent.sae, parent.feature)
    check_match(parent.sae, model, store)
    found = [row.child for row in score.classes if row.child is not None]
    (parent_summary,) = summarise(parent.sae, model, store, parent.feature, k=k, each=2, firing=False)
    summaries = {s.feature: s for s in summarise(sae, model, store, found, k=k, each=2, firing=firing)} if found else {}
    lines = lineage(parent.sae, parent.feature, sae, found).set_index("child") if found else pd.DataFrame()
    effects, other_effects = _by_class(causal, [row.context_class for row in score.classes])
    cards = [
        _card(
            row,
            summaries.get(row.child if row.child is not None else -1),
            lines.loc[row.child].to_dict() if row.child is not None else None,
            effects.get(row.context_class),
            _prompt(parent, sae, model, (prompts or {}).get(row.context_class), prompt_token, score),
            score,
            bounds,
        )
        for row in score.classes
    ]
    name = parent.name or f"feature {parent.feature}"
    return HtmlView(
        template="split.html.j2",
        title=title or f"Has “{name}” split?",
        context={
            "verdict": score.verdict,
            "verdict_class": {"split": "yes", "not split": "no"}.get(score.verdict, "partial"),
            "automatic": automatic_classes,
            "summary": _summary(score, bounds),
            "parent": {"feature": parent.feature, "name": parent.name, **_brief(parent_summary)},
            "cards": cards,
            "overview": table(_overview(score), percent=["precision", "recall", "win_rate", "fires_elsewhere"]),
            "causal": _table(other_effects),
            "controls": _table(controls),
            "cost": _table(cost),
        },
        record={
            "verdict": score.verdict,
            "scores": score.frame().reset_index().to_dict("records"),
            "parent_tokens": score.parent_tokens,
            "candidates": score.candidates,
            "coverage": score.coverage,
            "coverage_weighted": score.coverage_weighted,
            "parent_still_top": score.parent_still_top,
            "max_cosine": score.max_cosine,
            "max_jaccard": score.max_jaccard,
            "max_logit_cosine": score.max_logit_cosine,
            "lineage": lines.reset_index().to_dict("records"),
            "parent": parent_summary.record(),
            "children": [summary.record() for summary in summaries.values()],
            "prompts": dict(prompts or {}),
            **{key: _records(frame) for key, frame in (("causal", causal), ("controls", controls), ("cost", cost))},
            "sources": sources(sae, model, store),
        },
        kicker=f"splitting {name} of an SAE with {parent.sae.cfg.d_sae:,} features, in one with {sae.cfg.d_sae:,}",
        answer=verdict_words(score),
        text=f"{verdict_words(score)}\n{_overview(score).to_string(index=False)}",
    )


# --- words ---------------------------------------------------------------------------------------------------------------


def verdict_words(score: Score) -> str:
    """The verdict as a sentence."""
    if score.verdict in VERDICTS:
        return VERDICTS[score.verdict]
    own = [row.context_class for row in score.classes if row.passed]
    return (
        f"The parent has split in part: {' and '.join(own)} {'has' if len(own) == 1 else 'have'} a feature of its own."
    )


def failed_words(row: ClassScore, bounds: Bounds = BOUNDS) -> list[str]:
    """What a child does not pass, a sentence each."""
    words = {
        "no candidate": "No feature that fires where the parent does, and helps there, fires on this class.",
        "precision": f"It fires on other classes too often: precision may be as low as {row.precision.low:.2f}, and "
        f"{bounds.precision:g} is asked.",
        "recall": f"It misses too much of the class: recall may be as low as {row.recall.low:.2f}, and "
        f"{bounds.recall:g} is asked.",
        "win rate": f"It is not reliably the strongest feature on its class: the share may be as low as "
        f"{row.win_rate.low:.2f}, and more than {bounds.win_rate:g} is asked.",
        "fires elsewhere": f"It is not silent on the other classes: it may fire on as much as "
        f"{100 * row.fires_elsewhere.high:.1f}% of their tokens, and {100 * bounds.fires_elsewhere:g}% is allowed.",
        "not distinct": f"Its decoder row is nearly that of another child (cosine {bounds.cosine:g} or more).",
    }
    few = [f"There are only {row.test_tokens} test tokens of this class; {bounds.tokens} are needed to judge."]
    return (few if row.passed is None else []) + [words.get(check, check) for check in row.failed]


def _summary(score: Score, bounds: Bounds) -> list[tuple[str, str]]:
    def share(value: float) -> str:
        return "" if value != value else f"{100 * value:.1f}%"

    shown = [
        ("classes with a feature of their own", f"{score.classes_passed} of {len(score.classes)}"),
        ("test tokens of the parent", f"{score.parent_tokens:,}"),
        ("candidate children", f"{score.candidates:,}"),
        ("of the parent's tokens, candidates fire on", share(score.coverage)),
        ("weighted by the parent's strength", share(score.coverage_weighted)),
        ("old parent still the strongest on", share(score.parent_still_top)),
        (f"largest cosine between children (below {bounds.cosine:g})", _number(score.max_cosine)),
        ("largest overlap of children (Jaccard)", _number(score.max_jaccard)),
        ("largest cosine between children's logit effects", _number(score.max_logit_cosine)),
    ]
    return [(name, text) for name, text in shown if text]


def _number(value: float) -> str:
    return "" if value != value else f"{value:.2f}"


# --- parts -----------------------------------------------------------------------------------------------------------------


def _overview(score: Score) -> pd.DataFrame:
    rows = [
        {
            "context class": row.context_class,
            "child": "none" if row.child is None else str(row.child),
            "passes": "undecided" if row.passed is None else row.passed,
            "test tokens": row.test_tokens,
            "precision": row.precision.value,
            "recall": row.recall.value,
            "F1": row.f1.value,
            "parent's F1": row.parent_f1,
            "win_rate": row.win_rate.value,
            "fires_elsewhere": row.fires_elsewhere.value,
        }
        for row in score.classes
    ]
    return pd.DataFrame(rows)


def _brief(summary: FeatureSummary) -> dict[str, Any]:
    """A feature page in brief."""
    highest = float(summary.density["max"])
    return {
        "figures": figures(summary),
        "silent": not summary.density["active"],
        "histogram": markupsafe.Markup(histogram_svg(summary.histogram, width=420, height=110)),
        "logits": summary.logits.to_dict("records"),
        "top": examples(summary.top, max_value=highest),
        "lower": examples(summary.lower, max_value=highest, bands=True) if len(summary.lower) else None,
    }


def _card(
    row: ClassScore,
    summary: FeatureSummary | None,
    line: Mapping[Any, Any] | None,
    effects: pd.DataFrame | None,
    prompt: View | None,
    score: Score,
    bounds: Bounds,
) -> dict[str, Any]:
    b = bounds
    own, others = "of the class's tokens, those", "of the other classes' tokens, those"
    checks = [
        (
            "precision",
            "of the tokens it fires on, those of this class",
            row.precision,
            f"lower end at least {b.precision:g}",
        ),
        ("recall", f"{own} it fires on", row.recall, f"lower end at least {b.recall:g}"),
        ("win rate", f"{own} where it is the strongest", row.win_rate, f"lower end above {b.win_rate:g}"),
        ("fires elsewhere", f"{others} it fires on", row.fires_elsewhere, f"upper end at most {b.fires_elsewhere:g}"),
    ]
    limits = {
        "precision": b.precision,
        "recall": b.recall,
        "win rate": b.win_rate,
        "fires elsewhere": b.fires_elsewhere,
    }
    return {
        "context_class": row.context_class,
        "child": row.child,
        "test_tokens": row.test_tokens,
        "passed": row.passed,
        "failed": failed_words(row, bounds),
        "checks": [
            {
                "name": name,
                "meaning": meaning,
                "interval": interval,
                "rule": rule,
                "passed": name not in row.failed,
                "strip": markupsafe.Markup(interval_svg(*interval, bound=limits[name], passed=name not in row.failed)),
            }
            for name, meaning, interval, rule in checks
        ],
        "more": [
            (
                "F1",
                f"{row.f1.value:.2f} ({row.f1.low:.2f} to {row.f1.high:.2f}); the parent's own best: {row.parent_f1:.2f}",
            ),
            ("AUROC", _number(row.auroc)),
            ("median margin over the next feature", _number(row.margin)),
        ],
        "feature": _brief(summary) if summary else None,
        "nearest": table(summary.nearest, nearest_headings(summary.nearest)) if summary else None,
        "lineage": line,
        "effects": None if effects is None else table(effects),
        "prompt": prompt,
    }


def _prompt(
    parent: Member, sae: SAE, model: LanguageModel, prompt: str | None, token: str | None, score: Score
) -> View | None:
    """The strongest features of the dictionary at a token of a prompt."""
    if not prompt:
        return None
    tokens, parent_acts = prompt_activations(parent.sae, model, prompt)
    if token is not None and token not in tokens:
        raise UserError(
            f"every prompt must hold the token {token!r}", repr(prompt), "pass another prompt_token, or none"
        )
    position = tokens.index(token) if token is not None else 1 + int(parent_acts[1:, parent.feature].argmax())
    _, acts = prompt_activations(sae, model, prompt)
    labels = {row.child: row.context_class for row in score.classes if row.child is not None}
    value = float(parent_acts[position, parent.feature])
    caption = f"The strongest features where the parent {f'is at {value:.2f}' if value > 0 else 'does not fire'}."
    return top_features(tokens[1:], acts[1:], position=position - 1, labels=labels, caption=caption)


def _by_class(causal: pd.DataFrame | None, classes: list[str]) -> tuple[dict[str, pd.DataFrame], pd.DataFrame | None]:
    """The rows of each class, and what belongs to none."""
    if causal is None:
        return {}, None
    frame = causal.reset_index() if causal.index.name == "context_class" else causal
    if "context_class" not in frame:
        return {}, frame
    own = {name: frame[frame["context_class"] == name].drop(columns="context_class") for name in classes}
    rest = frame[~frame["context_class"].isin(classes)]
    return {name: part.reset_index(drop=True) for name, part in own.items() if len(part)}, rest if len(rest) else None


def _table(frame: pd.DataFrame | None) -> dict[str, Any] | None:
    return None if frame is None or frame.empty else table(frame)


def _records(frame: pd.DataFrame | None) -> list[Any]:
    if frame is None:
        return []
    return (frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()).to_dict("records")
