"""The benchmark on made-up parents: rule, sides, rows, resumption, means by hand, page."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import saelib.bench.run as run_module
from saelib import cli
from saelib.base.errors import UserError
from saelib.base.stats import wilson_interval
from saelib.bench.aggregate import (
    best_wide,
    break_even,
    by_model,
    by_parent,
    drawn,
    false_splits,
    leaderboard,
    means,
    values_of,
)
from saelib.bench.backend import side_by_side
from saelib.bench.known import KnownModel, World, saelens_world
from saelib.bench.parents import Parent, choose_parents, eligible, examine, p_rows, read_parents, survey, write_parents
from saelib.bench.run import methods_of, run_bench, subset
from saelib.bench.sides import OVERLAP, assign_sides, overlapping
from saelib.bench.suite import WORLD_SEED, BenchConfig, Origin, read_suite, world_origins
from saelib.bench.table import ROW, TIMES, as_table, read_table, write_table
from saelib.report import bench_report
from saelib.report.bench_charts import cost_svg, l0_figure
from saelib.report.bench_page import write_bench
from saelib.report.bench_report import BenchRequest, bench, only
from saelib.split.children import ChildrenConfig
from saelib.split.wide import WideConfig

SMALL: dict[str, Any] = {"d_in": 24, "n_background": 40, "contexts": (200, 120, 120)}
CONFIG = BenchConfig(
    K=6, seeds=2, least=20, swap=False, children=ChildrenConfig(n_steps=60), wide=WideConfig(n_tokens=20_000)
)
METHODS = ("children-8", "rest", "k-means")


def origins() -> tuple[Origin, ...]:
    made = (World("made-3", **SMALL), World("made-none", alpha=0.0, **SMALL))
    return tuple(Origin(world.name, "known", world=world) for world in made)


@pytest.fixture(scope="module")
def parents(session_cache: Path) -> list[Parent]:
    return [p for origin in origins() for p in choose_parents(origin, CONFIG, 1, 1)]


# --- the rule ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parents_follow_the_rule(parents: list[Parent]) -> None:
    children, none = parents
    assert (children.stratum, children.separable, none.stratum, none.separable) == ("separable", 3, "none", 0)
    assert children.parent == "made-3:5" and 0.001 < children.rate < 0.05 and children.n_on > 300
    origin = origins()[0]
    sae, acts = origin.open()
    table = survey(sae, acts)
    np.testing.assert_allclose(table.loc[5, "rate"], children.rate, rtol=1e-6)
    assert 5 in eligible(table) and 5 not in eligible(table, (0.2, 0.5))
    rows = p_rows(origin, children)
    assert len(rows) == round(children.rate * acts.stores["select"].n_tokens)


def test_a_feature_with_too_few_tokens_is_no_parent() -> None:
    origin = Origin("few", "known", world=World("few", rate=0.002, **SMALL))
    looked = examine(origin, 5, CONFIG)
    assert looked["stratum"] == "" and "the parent must exceed tau" in str(looked["reason"])


def test_dead_and_dense_features_are_not_eligible() -> None:
    table = pd.DataFrame({"feature": [0, 1, 2, 3], "largest": [0.0, 1, 1, 1], "rate": [0.0, 0.0009, 0.01, 0.06]})
    assert eligible(table) == [2]


def test_parents_csv_is_read_as_written_and_damage_is_seen(parents: list[Parent], tmp_path: Path) -> None:
    path = write_parents(parents, tmp_path / "parents.csv")
    assert read_parents(path) == parents
    path.write_text(path.read_text().replace("made-3:5", "made-3:6"))
    with pytest.raises(UserError, match=r"parents.csv must be as it was written"):
        read_parents(path)
    with pytest.raises(UserError, match="parents must be in a CSV"):
        read_parents(tmp_path / "no.csv")


# --- sides ------------------------------------------------------------------------------------------------------------------


def a_parent(name: str, side: str) -> Parent:
    return Parent(
        name, name.split(":")[0], side, "separable", 1, 1.0, 0.01, 100, 4, 4, "rule", "automatic", -1, "a", "b", "1"
    )


def test_no_test_parent_overlaps_a_development_parent() -> None:
    """dev:1 overlaps test:1, which overlaps test:2; test:3 overlaps nobody; other:1 has the same rows in another text."""
    names = [("dev:1", "dev"), ("test:1", "test"), ("test:2", "test"), ("test:3", "test"), ("other:1", "test")]
    rows = [np.arange(0, 100), np.arange(60, 160), np.arange(120, 220), np.arange(300, 400), np.arange(0, 100)]
    families = ["one"] * 4 + ["two"]
    assert set(overlapping(rows, families)) == {(0, 1), (1, 2)}  # IoU 40 / 160 each
    found = assign_sides([a_parent(*n) for n in names], rows, families)
    assert [p.side for p in found] == ["dev", "dev", "dev", "test", "test"]
    assert [p.group for p in found] == [0, 0, 0, 3, 4]
    for i, p in enumerate(found):
        for j, q in enumerate(found):
            if families[i] == families[j] and p.side != q.side:
                both = len(np.intersect1d(rows[i], rows[j]))
                assert both <= OVERLAP * len(np.union1d(rows[i], rows[j]))


# --- the suite ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "a suite must be a JSON object with a list of saes"),
        ({"saes": [{"name": "a"}]}, "an SAE of a suite has a name, a side, a folder"),
        ({"saes": [{"name": "a", "side": "dev", "folder": "x", "colour": 1}]}, "got colour"),
        ({"saes": [{"name": "a", "side": "left", "folder": "x"}]}, "side of an SAE must be one of dev, test, known"),
        ({"saes": [{"name": "a", "side": "dev", "folder": "x"}] * 2}, "names of their own; got a"),
    ],
)
def test_a_bad_suite_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_suite(tmp_path / "suite.json")


def test_the_committed_suite_reads(root: Path) -> None:
    suite = read_suite(root / "reports" / "splitbench" / "suite.json")
    real = [origin for origin in suite if not origin.world]
    assert sum(origin.side == "dev" for origin in real) == 2 and all(o.model == "mini" for o in real if o.side == "dev")
    assert any(origin.model == "smollm2" for origin in real if origin.side == "test")
    assert sum(origin.world is not None for origin in suite) == len(world_origins()) + 3
    assert {origin.name: origin.sized(BenchConfig()).swap for origin in real}["smollm2-narrow"] is False
    assert all(origin.sized(BenchConfig()).swap for origin in suite if origin.model == "mini")
    priced = dataclasses.replace(real[0], l1_per_token=4.0)
    assert (
        priced.sized(BenchConfig()).wide.l1_per_token == 4.0 and real[0].sized(BenchConfig()).wide.l1_per_token is None
    )


# --- rows -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(parents: list[Parent]) -> pd.DataFrame:
    return run_bench(origins(), parents, METHODS, CONFIG, jobs=1)


@pytest.mark.slow
def test_one_row_a_parent_method_and_seed(table: pd.DataFrame, parents: list[Parent]) -> None:
    assert list(table.columns) == [*ROW]
    seeds = {"children-8": 2, "rest": 1, "k-means": 2}
    counts = table.groupby(["parent", "method"]).size()
    assert counts.to_dict() == {(p.parent, m): n for p in parents for m, n in seeds.items()}
    ours = table[(table["method"] == "children-8") & (table["origin"] == "made-3")]
    assert (ours["true_children"] == 3).all() and ours["matched_f1"].between(0, 1).all()
    assert ours["S_2"].notna().all() and ours["stability"].between(0, 1).all() and (ours["peak_memory"] > 1e7).all()
    none = table[table["origin"] == "made-none"]
    assert none["S_2"].isna().all() and (none.loc[none["kind"] == "local", "true_children"] == 0).all()


def test_what_is_kept_is_not_done_again(
    table: pd.DataFrame, parents: list[Parent], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = run_module._Bench.make
    monkeypatch.setattr(run_module._Bench, "make", lambda self, m, name: made.append(name) or real(self, m, name))
    again = run_bench(origins(), parents, METHODS, CONFIG, jobs=1)
    pd.testing.assert_frame_equal(again, table)
    assert made == []
    more = run_bench(origins(), parents, (*METHODS, "quantiles"), CONFIG, jobs=1)
    assert set(more["method"]) == {*METHODS, "quantiles"}


def test_a_run_that_was_killed_goes_on_from_the_last_piece(
    table: pd.DataFrame, parents: list[Parent], empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = run_module._Bench.make, []

    def until_killed(self: Any, method: Any, name: str) -> list[dict[str, Any]]:
        if name == "k-means" and self.parent.origin == "made-none":
            raise KeyboardInterrupt
        made.append((self.parent.origin, name))
        return real(self, method, name)

    monkeypatch.setattr(run_module, "side_by_side", lambda f, work, *a: ((i, f(w)) for i, w in enumerate(work)))
    monkeypatch.setattr(run_module._Bench, "make", until_killed)
    with pytest.raises(KeyboardInterrupt):
        run_bench(origins(), parents, METHODS, CONFIG)
    before = list(made)
    monkeypatch.setattr(run_module._Bench, "make", lambda s, m, n: made.append((s.parent.origin, n)) or real(s, m, n))
    again = run_bench(origins(), parents, METHODS, CONFIG)
    assert made[len(before) :] == [("made-none", "k-means")]
    same = [c for c in ROW if c not in TIMES]
    pd.testing.assert_frame_equal(again[same], table[same])


def test_a_parent_that_is_not_as_chosen_is_refused(parents: list[Parent]) -> None:
    for name, message in (
        ("p_sha256", "the tokens of made-3:5 must be those"),
        ("sae_sha256", "the SAE made-3 must be the one"),
    ):
        other = dataclasses.replace(parents[0], **{name: "0" * 16})
        with pytest.raises(UserError, match=message):
            run_bench(origins(), [other], ("rest",), CONFIG, jobs=1)
    with pytest.raises(UserError, match="every parent's SAE must be in the suite; got made-3"):
        run_bench(origins()[1:], parents, ("rest",), CONFIG, jobs=1)


def test_what_a_method_refuses_is_a_row_with_a_reason(parents: list[Parent], tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from saelib.base.errors import UserError\n\n"
        "def refuses(task):\n    raise UserError('this must not be', task.seed, 'stop')\n"
    )
    table = run_bench(origins(), parents[:1], (f"{path}:refuses", "rest"), CONFIG, jobs=1)
    refused = table[table["reason"].notna()]
    assert refused["reason"].tolist() == ["this must not be; got 0: stop", "this must not be; got 1: stop"]
    assert refused["S_2"].isna().all() and table.loc[table["method"] == "rest", "S_2"].notna().all()


def test_costly_methods_run_on_a_fixed_subset(parents: list[Parent]) -> None:
    many = [a_parent(f"sae:{i}", "test") for i in range(30)] + parents
    few = subset(many, 20)
    assert len(few) == 22 and {p.parent for p in parents} <= few and subset(many[::-1], 20) == few
    out = next(p for p in many if p.parent not in few)
    assert methods_of(out, ("rest", "all-data", "token-filter", "warm"), few) == ("rest", "all-data", "warm")
    assert methods_of(parents[0], ("token-filter",), few) == ("token-filter",)


def test_a_piece_keeps_its_progress_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAELIB_PROGRESS", str(tmp_path / "progress"))
    seen = list(side_by_side(lambda i: os.environ.get("SAELIB_PROGRESS"), [1, 2], jobs=1))
    assert seen == [(0, None), (1, None)] and os.environ["SAELIB_PROGRESS"] == str(tmp_path / "progress")


def test_several_seeds_on_the_same_subset(parents: list[Parent], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}
    monkeypatch.setattr(
        run_module._Bench, "is_kept", lambda self, name: bool(asked.update({self.parent.parent: self.cfg.seeds}))
    )
    monkeypatch.setattr(run_module, "side_by_side", lambda *a: iter(()))
    other = dataclasses.replace(parents[0], side="test", parent="made-3:6")
    run_bench(origins(), [parents[0], other], ("rest",), dataclasses.replace(CONFIG, few_parents=0), jobs=1)
    assert asked == {"made-3:5": 2, "made-3:6": 1}


def test_only_named_parents(parents: list[Parent]) -> None:
    assert only(parents, ("made-3",)) == parents[:1] == only(parents, ("made-3:5",))
    assert only(parents, ()) == parents
    with pytest.raises(UserError, match=r"a parent must be in parents.csv; got made-9"):
        only(parents, ("made-9",))


def test_a_run_joins_the_table_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another method, another parent: what was not asked for stays; what was made again is as it is now."""
    facts = {"contexts": 3, "separable": 3, "chosen": "rule", "how": "automatic", "group": 0, "scorer": "1"}
    named = [
        Parent(f"a:{i}", "a", "dev", "separable", i, 1.0, 0.01, 99, sae_sha256="s", p_sha256=f"p{i}", **facts)
        for i in (1, 2, 3)
    ]
    write_parents(named, tmp_path / "parents.csv")
    old = [row(p, m, 0.1, seed) for p in ("a:1", "a:2", "a:3") for m in ("rest", "k-means") for seed in (0, 1)]
    write_table(as_table(old), tmp_path / "splitbench.csv")
    (tmp_path / "suite.json").write_text(
        json.dumps({"saes": [{"name": "a", "side": "test", "folder": "x"}], "worlds": False})
    )
    made = as_table([row("a:1", "rest", 0.7), row("a:1", "ica", 0.8)])
    monkeypatch.setattr("saelib.report.bench_report.run_bench", lambda *a: made)

    def there() -> dict[tuple[str, str, int], float]:
        found = read_table(tmp_path / "splitbench.csv")
        return dict(zip(zip(found["parent"], found["method"], found["seed"], strict=True), found["S_2"], strict=True))

    bench(BenchRequest(tmp_path, methods=("rest", "ica"), parents=("a:1",)))
    assert len(there()) == len(old) + 1
    assert [there()["a:1", "rest", seed] for seed in (0, 1)] == [0.7, 0.1] and there()["a:1", "ica", 0] == 0.8
    assert set(read_table(tmp_path / "splitbench.csv").loc[lambda t: t["parent"] == "a:2", "side"]) == {"dev"}
    # A parent that is another one now (a:2), or none (a:3), takes its rows with it.
    changed = [dataclasses.replace(named[0], side="test"), dataclasses.replace(named[1], p_sha256="other")]
    monkeypatch.setattr("saelib.report.bench_report.chosen", lambda *a: changed)
    bench(BenchRequest(tmp_path, methods=("rest",), parents=("a:1",), choose=1))
    assert {parent for parent, _, _ in there()} == {"a:1"} and len(there()) == 5


# --- means --------------------------------------------------------------------------------------------------------------------


def row(parent: str, method: str, S_2: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    kind = "wide" if method in ("all-data", "warm", "warm-zeroed", "token-filter") else "local"
    feature = int(parent[1:].removeprefix(":"))
    given = {"parent": parent, "origin": parent[0], "side": "test", "stratum": "separable", "feature": feature}
    return dict.fromkeys(ROW) | given | {"method": method, "kind": kind, "seed": seed, "S_2": S_2} | more


def test_means_and_paired_differences_by_hand() -> None:
    rows = as_table(
        [
            row("a1", "children-64", 0.8), row("a1", "children-64", 0.6, seed=1), row("a2", "children-64", 0.5),
            row("b1", "children-64", 0.9), row("a1", "all-data", 0.5), row("a2", "all-data", 0.4), row("b1", "all-data", 0.9),
            row("a2", "warm", 0.6),
        ]
    )  # fmt: skip
    table = values_of(rows, "S_2")
    assert table.parents == ("a1", "a2", "b1") and table.origins == ("a", "a", "b")
    board = leaderboard(rows).set_index("method")
    assert board.loc["children-64", "S_2"] == pytest.approx((0.7 + 0.5 + 0.9) / 3)
    assert board.loc["all-data", "over_ours"] == pytest.approx((-0.2 - 0.1 + 0.0) / 3)
    assert board.loc["children-64", "over_plain"] == pytest.approx(0.1)
    # On the one parent that it has, warm is 0.1 above ours: first, although its mean is not the highest.
    assert board.loc["warm", "S_2"] == pytest.approx(0.6) and board.loc["warm", "over_ours"] == pytest.approx(0.1)
    assert board["rank"].to_dict() == {"warm": 1.0, "children-64": 2.0, "all-data": 3.0}
    assert board.loc["children-64", "parents"] == 3 and board.loc["warm", "parents"] == 1
    assert (board["S_2_low"] <= board["S_2"]).all() and (board["S_2"] <= board["S_2_high"]).all()


def test_draws_take_saes_then_parents() -> None:
    weights = drawn(["a", "a", "a", "b"], draws=400, seed=1)
    assert (weights[0] == 1).all()
    on_a, on_b = weights[1:, :3].sum(1), weights[1:, 3]
    assert (
        set(on_a) == {0, 3, 6} and ((on_a / 3 + on_b) == 2).all()
    )  # two SAEs a draw, each with as many parents as it has
    assert 0.4 < (on_b == 1).mean() < 0.6
    found = means(np.array([[1.0, 2.0, np.nan, 5.0]]), np.array([[1.0, 1, 1, 1], [2, 0, 7, 0], [0, 0, 3, 0]]))
    np.testing.assert_allclose(found[:, 0], [8 / 3, 1.0, np.nan])


def test_the_best_wide_sae_is_chosen_on_development_parents_alone() -> None:
    rows = as_table(
        [
            row("a1", "all-data", 0.2), row("a1", "warm", 0.9), row("d1", "all-data", 0.6, side="dev"),
            row("d1", "warm", 0.5, side="dev"), row("d1", "children-64", 0.9, side="dev"),
            row("d1", "token-filter", 0.8, side="dev"), row("d1", "warm-zeroed", 0.7, side="dev"),
        ]
    )  # fmt: skip
    assert best_wide(rows) == "token-filter"
    assert best_wide(rows, per_parent=False) == "all-data"
    assert best_wide(rows, per_parent=True) == "token-filter"
    assert best_wide(rows[rows["method"] == "warm"], per_parent=True) is None
    assert best_wide(rows[rows["side"] == "test"]) is None


def test_the_first_sentence_names_the_wide_sae_for_all_and_that_for_one(tmp_path: Path) -> None:
    def parent(name: str, side: str, token_filter: float) -> list[dict[str, Any]]:
        more = {"side": side, "judged": 3, "leak": 0.9, "stratum": "separable", "device": "cpu"}
        values = {"children-64": 0.5, "all-data": 0.4, "token-filter": token_filter, "named": 0.45, "rest": 0.1}
        values |= {f"other-{i}": 0.3 - i / 100 for i in range(9)}
        return [row(name, method, value, **more) for method, value in values.items()]

    rows = as_table([*parent("a1", "test", 0.8), *parent("d1", "dev", 0.7)])
    page = write_bench(rows, tmp_path).read_text()
    assert "Over the best wide SAE that serves all parents it gains 0.10" in page
    assert "A whole wide SAE for each parent (token-filter) comes first, 0.30 (0.30 to 0.30) above ours" in page
    assert "90% of what its features fire" in page and "comes next" not in page  # that is ours
    rows.loc[rows["method"] == "named", "S_2"] = 0.6
    page = write_bench(rows, tmp_path).read_text()
    assert "named, which sees the words, comes next, 0.10 (0.10 to 0.10) above ours" in page
    brief = page.split("a1: 3 contexts", 1)[1].split("</details>", 1)[0]
    looked_for = ("token-filter", "named", "children-64", "all-data", "other-0", "rest")
    # four, and the rest
    assert [name for name in looked_for if name in brief] == [
        "token-filter",
        "named",
        "children-64",
        "all-data",
        "rest",
    ]


def test_measures_are_written_to_three_places_and_counts_whole(tmp_path: Path) -> None:
    given = row(
        "a1", "children-64", 0.123456, tokens_sae=1_234_567, arithmetic=3.14354e9, seconds=0.000654321, leak=1 / 3
    )
    text = write_table(as_table([given]), tmp_path / "splitbench.csv").read_text()
    found = dict(zip(*(line.split(",") for line in text.splitlines()), strict=True))
    wanted = {
        "S_2": "0.123",
        "leak": "0.333",
        "tokens_sae": "1234567",
        "arithmetic": "3.14354e+09",
        "seconds": "0.000654321",
    }
    assert {name: found[name] for name in wanted} == wanted


def test_break_even_and_false_splits_by_hand() -> None:
    rows = as_table(
        [
            row("a1", "all-data", 0.5, seconds=0.0, seconds_shared=84.0, tokens_sae=4e6, arithmetic=4e9),
            row("a1", "children-64", 0.5, seconds=4.0, tokens_sae=1e6, arithmetic=1e8),
            row("a2", "children-64", 0.5, seconds=9.0, tokens_sae=9e6, arithmetic=9e8),  # where the wide SAE is not
            row("b1", "all-data", 0.5, side="known", seconds=0.0, seconds_shared=2.0, tokens_sae=4e5, arithmetic=4e7),
            row("b1", "children-64", 0.5, side="known", seconds=0.5, tokens_sae=1e6, arithmetic=1e6),
        ]
    )
    assert break_even(rows) == pytest.approx({"seconds": 21.0, "tokens": 4.0, "arithmetic": 40.0})
    judged = as_table(
        [
            row("a1", "children-64", 0.5, verdict="split", passed=3, judged=3, true_children=3),
            row("a1", "children-64", 0.5, seed=1, verdict="split", passed=3, judged=3, true_children=3),
            row("a2", "children-64", 0.5, verdict="not split", passed=0, judged=3, true_children=3),
            row("b1", "children-64", math.nan, verdict="not split", passed=0, judged=0, features=0, true_children=0),
            row("b2", "children-64", math.nan, verdict="partial", passed=1, judged=0, features=5, true_children=0),
            row("b3", "children-64", math.nan, verdict="not split", passed=0, judged=0, features=9, stratum="none"),
            row("b4", "children-64", math.nan, verdict="partial", passed=1, judged=2, features=9, stratum="none"),
        ]
    )
    wrong = false_splits(judged).iloc[0]
    assert (wrong["missed"], wrong["missed_n"]) == (0.5, 2)  # worlds, not seeds
    assert (wrong["missed_low"], wrong["missed_high"]) == pytest.approx(wilson_interval(0.5, 2))
    assert (wrong["given"], wrong["given_n"]) == (0.5, 2)
    # b4 has two contexts to tell apart: what passes there is no false split.
    assert wrong["false"] == pytest.approx(1 / 3) and wrong["false_n"] == 3


def test_each_model_has_a_column_of_its_own(tmp_path: Path) -> None:
    values = {"a1": 0.2, "a2": 0.4, "b1": 0.6, "c1": 0.9}
    rows = [row(p, "children-64", S_2) for p, S_2 in values.items()] + [
        row("a1", "all-data", 0.1),
        row("b1", "all-data", 0.3),
    ]
    found = by_model(as_table(rows), {"a": "mini", "b": "mini", "c": "other"}).set_index("method")
    ours, wide = found.loc["children-64"], found.loc["all-data"]
    assert ours["S_2_mini"] == pytest.approx(0.4) and ours["parents_mini"] == 3 and ours["S_2_mini_low"] < 0.4
    assert (ours["S_2_other"], ours["S_2_other_low"], ours["S_2_other_high"]) == (0.9, 0.9, 0.9)  # one SAE, one parent
    assert wide["S_2_mini"] == pytest.approx(0.2) and math.isnan(wide["S_2_other"])
    page = write_bench(as_table(rows), tmp_path, {"a": "mini", "b": "mini", "c": "other"}).read_text()
    assert "No wide SAE exists for other yet." in page and "other, 1 parents" in page
    record = json.loads((tmp_path / "index.json").read_text())["leaderboard"]["test"]
    assert {r["method"]: r["S_2_other"] for r in record} == {"children-64": 0.9, "all-data": None}


def test_by_parent_orders_by_gain() -> None:
    rows = as_table(
        [row("a1", "children-64", 0.5), row("a1", "rest", 0.4), row("a2", "children-64", 0.9), row("a2", "rest", 0.1)]
    )
    found = by_parent(rows)
    assert found["parent"].tolist() == ["a2", "a1"] and found["best"].tolist() == ["children-64"] * 2
    np.testing.assert_allclose(found["gain"], [0.8, 0.1])


def test_a_ceiling_is_no_competitor(tmp_path: Path) -> None:
    """What is given the contexts is told apart from what comes first."""
    rows = [row(p, m, s) for p in ("a1", "b1") for m, s in (("supervised", 0.9), ("named", 0.4), ("children-64", 0.3))]
    table_ = as_table([*rows, row("b2", "children-64", 0.9)])
    assert by_parent(table_)["best"].tolist() == ["named", "named", "children-64"]
    page = write_bench(table_, tmp_path).read_text()
    board = leaderboard(table_)
    assert board["method"].iloc[-1] == "supervised" and math.isnan(board["rank"].iloc[-1])
    assert board.set_index("method").loc["named", "rank"] == 1
    assert (
        page.count('<span class="ends">sees the words</span>')
        == page.count('<span class="ends">sees the contexts</span>')
        == 1
    )
    assert "named, which sees the words, comes first, 0.10 (0.10 to 0.10) above ours on the 2 that both have." in page
    assert "Encoders that are given the contexts (supervised) reach 0.90" in page


def test_a_parent_without_contexts_is_a_row_with_a_reason(parents: list[Parent]) -> None:
    """Its tokens are those that were chosen, so it does not end the run."""
    table = run_bench(origins(), [dataclasses.replace(parents[0], how="hyphen")], ("rest",), CONFIG, jobs=1)
    assert table["reason"].notna().all() and table["S_2"].isna().all()


# --- the page -------------------------------------------------------------------------------------------------------------------


def test_the_table_and_its_page(table: pd.DataFrame, tmp_path: Path) -> None:
    path = write_table(table, tmp_path / "splitbench.csv")
    back = read_table(path)
    assert len(back) == len(table) and back["method"].tolist() == table["method"].tolist()
    page = write_bench(back, tmp_path)
    text = page.read_text()
    record = json.loads((tmp_path / "index.json").read_text())
    assert record["parents"]["known"] == 2 and record["ours"] == "children-8"
    board = pd.read_csv(tmp_path / "leaderboard.csv").set_index("method")
    assert f"{board.loc['children-8', 'S_2']:.2f}" in text
    assert "a stratum of its own" in text and "seconds for the first parent" in text
    assert "<summary>made-3:5: 3 contexts</summary>" in text
    back.drop(columns="S_2").to_csv(path, index=False)
    with pytest.raises(UserError, match=r"splitbench.csv must have its columns"):
        read_table(path)


def test_the_picture_has_a_point_a_method() -> None:
    board = leaderboard(as_table([row("a1", "children-64", 0.8, seconds=5.0, seconds_shared=0.0),
                                  row("a1", "all-data", 0.4, seconds=0.0, seconds_shared=80.0)]))  # fmt: skip
    picture = str(cost_svg(board))
    assert picture.count("<title>") == 2 and "10 s" in picture and "children-64: S_2 0.80" in picture
    assert str(cost_svg(board.iloc[:0])) == ""


def test_names_in_the_picture_do_not_lie_on_each_other() -> None:
    rows = [
        row("a1", name, 0.5, seconds=5.0, seconds_shared=0.0) for name in ("k-means", "small-sae", "ica", "subspace")
    ]
    picture = str(cost_svg(leaderboard(as_table(rows), ours="ica")))
    places = {re.search(rf"<text x=\"([\d.]+)\" y=\"([\d.]+)\"[^>]*>{r['method']}<", picture).groups() for r in rows}  # type: ignore[union-attr]
    assert len(places) == 4


def test_reconstruction_is_drawn_where_all_methods_have_it() -> None:
    there = {"l0_on_P": 20.0, "fvu_on_P": 0.2, "loss_recovered_on_P": 0.9}
    rows = [row(p, m, 0.5, **there) for p in ("a1", "a2") for m in ("children-64", "all-data")]
    rows += [row("a3", "children-64", 0.5, **there), row("a1", "rest", 0.1), row("a2", "rest", 0.1)]
    image, n = l0_figure(as_table(rows))
    kind, _, data = image.partition(",")
    assert n == 2 and kind == "data:image/webp;base64" and b64decode(data).startswith(b"RIFF")
    assert l0_figure(as_table(rows[-2:])) == ("", 0)


def test_best_and_worst_are_not_the_same_parents_and_what_has_no_seconds_is_named(tmp_path: Path) -> None:
    rows = [row(f"a{i}", m, 0.1 * i) for i in range(1, 6) for m in ("children-64", "no-target")]
    rows += [row(f"a{i}", "rest", 0.0, seconds=0.0, seconds_shared=0.0) for i in range(1, 6)]
    page = write_bench(as_table(rows), tmp_path).read_text()
    best, worst = page.split("gains most over the rest")[1].split("gains least")
    shown = [re.findall(r"<td>(a\d)</td>", part.split("<details>")[0]) for part in (best, worst)]
    assert shown == [["a5", "a4"], ["a1", "a2"]]
    assert "as their rows have no seconds: children-64, no-target." in page


@pytest.mark.slow
def test_bad_input_of_the_command_is_one_line(
    tmp_path: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_report, "chosen", lambda *_: pytest.fail("parents are chosen before names are looked at"))
    for arguments, message in (
        (["--methods", "magic"], "method must be one of children, children-8"),
        ([], "a suite must be a JSON file"),
        (["--quick", "--parents", "known-9"], "a parent must be in parents.csv; got known-9"),
    ):
        assert cli.main(["bench", "--out", str(tmp_path / "out"), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_world_of_sae_lens_lays_its_samples_under_our_text(tmp_path: Path) -> None:
    """Two children in four dimensions: a token's activation is a sample of its kind, and the text says which child is on."""
    generator = torch.Generator().manual_seed(0)
    pools = {f"pool_{kind}": 10.0 * kind + torch.rand(5, 4, generator=generator) for kind in range(4)}
    path = tmp_path / "w.safetensors"
    others = {f"others_{kind}": torch.full((5, 3), kind == 2) for kind in range(4)}
    save_file({"vectors": torch.eye(4), **pools, **others}, path)
    world = dataclasses.replace(saelens_world(path, 2), d_in=4)
    model = KnownModel(world)
    tokens = torch.tensor([[0, 3, 2, 4, 2, 9, 2, 7]])  # own0 term, own1 term, filler term
    x = model.activations(tokens)[0]
    for place, kind in ((0, 0), (1, 0), (2, 1), (4, 2), (6, 3), (7, 0)):
        assert (pools[f"pool_{kind}"] == x[place]).all(1).any(), place
    assert model.children_on(tokens)[0, [2, 4, 6]].tolist() == [[True, False], [False, True], [False, False]]
    assert model.background_on(tokens)[0, [2, 4, 6], 0].tolist() == [False, True, False]
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps({"saes": [], "worlds": False, "saelens_worlds": {"w.safetensors": 2}}))
    (origin,) = read_suite(suite)
    assert origin.world == saelens_world(path, 2) and origin.side == "known"
    before = world.key
    save_file({"vectors": 2 * torch.eye(4), **pools, **others}, path)
    assert world.key != before
    with pytest.raises(UserError, match="w must have 3 children; got 2"):
        KnownModel(saelens_world(path, 3))
    path.unlink()
    with pytest.raises(UserError, match="a world of sae-lens must have its file"):
        KnownModel(world)


# --- what is committed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_committed_leaderboard_is_that_of_the_committed_rows(root: Path, tmp_path: Path) -> None:
    folder = root / "reports" / "splitbench"
    rows, parents = read_table(folder / "splitbench.csv"), read_parents(folder / "parents.csv")
    sides = {p.parent: p.side for p in parents}
    assert rows["side"].tolist() == [sides[name] for name in rows["parent"]]
    write_bench(rows, tmp_path, {origin.name: origin.model for origin in read_suite(folder / "suite.json")})
    index = ["side", "method"]
    made, there = (pd.read_csv(at / "leaderboard.csv").set_index(index).sort_index() for at in (tmp_path, folder))
    assert list(made.index) == list(there.index)
    numbers = ["parents", "S_2", "S_2_low", "S_2_high", "over_ours", "over_plain", "leak", "fvu_on_P", "seconds",
               "S_2_mini", "S_2_smollm2", "S_2_smollm2_low", "S_2_smollm2_high"]  # fmt: skip
    np.testing.assert_allclose(made[numbers], there[numbers], rtol=1e-4, atol=1e-4)
    record = json.loads((folder / "index.json").read_text())
    assert record["parents"] == rows.groupby("side")["parent"].nunique().to_dict()


@pytest.mark.slow
def test_a_sample_of_the_committed_rows_is_what_comes_out(root: Path, session_cache: Path) -> None:
    """A made-up parent needs neither text nor model; seconds and memory are the machine's."""
    folder = root / "reports" / "splitbench"
    parent = next(p for p in read_parents(folder / "parents.csv") if p.parent == "known-2:5")
    origin = next(o for o in world_origins(WORLD_SEED) if o.name == parent.origin)
    methods = ("rest", "children-64", "k-means")
    made = run_bench((origin,), [parent], methods, BenchConfig(seeds=1), jobs=1).set_index("method")
    rows = read_table(folder / "splitbench.csv")
    there = rows[(rows["parent"] == parent.parent) & (rows["seed"] == 0)].set_index("method").loc[made.index]
    columns = [
        "S_1",
        "S_2",
        "S_4",
        "added_2",
        "ceiling",
        "floor",
        "fvu_on_P",
        "leak",
        "features",
        "matched_f1",
        "found",
    ]
    np.testing.assert_allclose(made[columns], there[columns], rtol=1e-3, atol=1e-3)
