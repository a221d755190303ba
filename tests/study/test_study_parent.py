"""The rule for the study's parent by hand and against all thresholds tried; what is measured on the hyphens of a text."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_study
import torch

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.table import as_row, meanings, write_csv
from saelib.interpret.feature_f1 import best_cut, best_feature_f1, cut_at
from saelib.sae.initial import init_random
from saelib.sae.kept import weights_hash
from saelib.sae.sae import SAEConfig
from saelib.split.classes import CLASSES, hyphen_mask
from saelib.split.contexts import Labels
from saelib.split.detectors import best_threshold
from saelib.split.verdict import BOUNDS, Verdict
from saelib.study import arms, children_rows, claims, graded, outcome, selection, study, trainings
from saelib.study.graded import Graded
from saelib.study.profiles import Profile

pytestmark = pytest.mark.slow


def test_the_threshold_of_best_f1_by_hand() -> None:
    values = np.array([0.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], dtype=np.float32)
    marked = np.array([0, 1, 1, 0, 1, 0, 1], dtype=bool)
    # above each value from the largest down: hits 1 2 2 3 3 of 1 2 3 4 5; F1 = 2/5 4/6 4/7 6/8 6/9
    cut = best_cut(values, marked)
    assert (cut.tau, cut.f1) == (1.5, 0.75)
    assert (cut.purity, cut.recall) == (3 / 4, 3 / 4)
    # "does it fire", the rule before, marks them worse
    assert cut_at(values, marked, 0.0).f1 == pytest.approx(6 / 9)


def test_purity_and_recall_by_hand() -> None:
    values = np.array([0.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], dtype=np.float32)
    marked = np.array([0, 1, 1, 0, 1, 0, 1], dtype=bool)
    cut = cut_at(values, marked, 2.5)  # above: 5, 4, 3
    assert (cut.purity, cut.recall, cut.f1) == (2 / 3, 2 / 4, 4 / 7)
    assert cut_at(values, marked, 3.0)[2:] == (1.0, 0.5), "tau itself is not above tau"
    assert cut_at(values, marked, 9.0)[1:] == (0.0, 0.0, 0.0)
    assert cut_at(values, ~marked & marked, 0.0)[1:] == (0.0, 0.0, 0.0), "nothing is marked"


def test_equal_values_are_not_parted_and_the_least_cut_is_above_silence() -> None:
    values = np.array([2.0, 2.0, 2.0, 1.0, 0.0], dtype=np.float32)
    marked = np.array([1, 0, 0, 1, 0], dtype=bool)
    cut = best_cut(values, marked)
    assert (cut.tau, cut.f1) == (0.5, pytest.approx(4 / 6))
    marked = np.array([1, 1, 1, 0, 0], dtype=bool)
    assert best_cut(values, marked)[:2] == (1.5, 1.0)
    silent = best_cut(np.zeros(4, dtype=np.float32), np.ones(4, dtype=bool))
    assert (silent.tau, silent.f1) == (0.0, 0.0)
    never = best_cut(values, np.zeros(5, dtype=bool))
    assert (never.tau, never.f1, never.purity, never.recall) == (2.0, 0.0, 0.0, 0.0)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    """Seven contexts of made activations."""
    x = torch.randn(7 * POSITIONS, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    (tmp_path / "acts.bin").write_bytes(x.view(torch.int16).numpy().tobytes())
    facts = {"key": "made", "d_in": 8, "n_contexts": 7, "hook_name": "h", "center_writing_weights": False}
    contexts = np.random.default_rng(0).integers(0, 50, (7, POSITIONS + 1)).astype(np.uint16)
    return ActivationStore(tmp_path, facts, contexts)


@pytest.mark.parametrize("n_marked", [0, 1, 40])
def test_every_feature_at_its_best_threshold(
    store: ActivationStore, n_marked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = init_random(SAEConfig(8, 24, "h", "m", False), torch.Generator().manual_seed(0)).requires_grad_(False)
    sae.b_enc[3] = -1e3  # never fires
    marked = np.zeros(store.n_tokens, dtype=bool)
    dense = sae.encode(store.rows(slice(None))).numpy()
    marked[np.argsort(-dense[:, 5])[: 2 * n_marked : 2]] = True  # half of the tokens on which feature 5 is strongest
    monkeypatch.setattr("saelib.sae.stream._BLOCK_ENTRIES", 64 * 24)  # several blocks
    found = best_feature_f1(store, sae, marked)
    assert found["feature"].tolist() == list(range(24))
    for j in range(24):
        best = best_cut(dense[:, j], marked)
        row = found.loc[j]
        assert row["f1"] == pytest.approx(best.f1, abs=1e-9)
        assert row["max_activation"] == pytest.approx(dense[:, j].max(), rel=1e-5)
        if best.f1:
            assert (row["precision"], row["recall"]) == pytest.approx((best.purity, best.recall))
            assert row["fires_on"] * store.n_tokens == pytest.approx((dense[:, j] > best.tau).sum())
            assert best.tau < row["at_least"]
    assert found["f1"][3] == 0
    if n_marked == 40:
        assert found["f1"].idxmax() == 5


# --- on a tiny study of made-up text, with the embedded model --------------------------------------------------------------

PROFILE = dataclasses.replace(
    tiny_study.PROFILE, name="graded", train_contexts=200, select_contexts=60, test_contexts=60, narrow_steps=60
)


@pytest.fixture
def made_up(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Profile]:
    """The profile, with the made-up text in the place of the study's."""
    monkeypatch.setattr(study, "STUDY_SOURCES", (tiny_study.make_archive(empty_cache, documents=1500),))
    functions = [study.tokens, study.activations, study.joining_hyphens, study.coefficient, selection.parent]
    yield PROFILE
    kept = [graded.yardstick, graded._hyphen_tokens, outcome._rest, outcome._leak_rows]
    for function in [*functions, *kept]:
        function.cache_clear()


def classes_by_hand(profile: Profile, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of the hyphens of a split, read off the made-up text's own lists."""
    store, model = study.activations(profile, split), study.language_model(profile)
    known = {compound: name for name, compounds in tiny_study._COMPOUNDS.items() for compound in compounds}
    rows, labels = [], []
    for row in np.flatnonzero(hyphen_mask(store, model)):
        context, place = divmod(int(row), POSITIONS)
        ids = store.contexts[context]
        before = model.tokenizer.decode(ids[max(1, place - 7) : place + 1].tolist())
        after = model.tokenizer.decode(ids[place + 2 : place + 8].tolist())
        if place == POSITIONS - 1 or not before.strip():
            continue  # at an edge nothing is joined
        found = [
            name
            for compound, name in known.items()
            if re.search(rf"(^|[^A-Za-z0-9]){compound.split('-')[0]}$", before)
            and (after.startswith(compound.split("-")[1]) or compound.split("-")[1].startswith(after))
        ]
        if found:
            rows.append(row)
            labels.append(CLASSES.index(found[0]))
    return np.array(rows), np.array(labels)


def test_the_parent_of_a_study_by_the_rule(made_up: Profile) -> None:
    narrow, chosen = study.narrow_sae(made_up).sae, selection.parent(made_up)
    for split in ("select", "test"):
        rows, labels = classes_by_hand(made_up, split)
        mine = study.joining_hyphens(made_up, split)
        assert len(rows) > 100 and set(rows) <= set(mine[0]), (
            "words that the text breaks over contexts may be missed here"
        )
        assert len(rows) > 0.9 * len(mine[0])
        assert dict(zip(*mine, strict=True)).items() >= dict(zip(rows, labels, strict=True)).items()
    marked = study.joins(made_up, "select")
    dense = narrow.encode(study.activations(made_up, "select").rows(slice(None))).detach().numpy()
    cuts = [best_cut(dense[:, j], marked) for j in range(dense.shape[1])]
    best = int(np.argmax([cut.f1 for cut in cuts]))
    assert chosen.feature == best and chosen.tau == pytest.approx(cuts[best].tau, rel=1e-4)
    assert chosen.max_activation == pytest.approx(dense[:, best].max(), rel=1e-5)
    ranking = selection.rank_parents(made_up, narrow)
    assert ranking["f1"].is_monotonic_decreasing and ranking["f1"][0] == pytest.approx(cuts[best].f1)

    fit, marked = selection.parent_fit(made_up, chosen), study.joins(made_up, "test")
    above = selection.parent_on(made_up, "test", best) > chosen.tau
    assert fit.purity == (above & marked).sum() / above.sum() and fit.recall == (above & marked).sum() / marked.sum()
    assert selection.is_hyphens(fit) == (min(fit.purity, fit.recall) >= 0.8)

    named = selection.parent(made_up, 3)
    assert named.feature == 3 and named.tau == pytest.approx(made_up.tau_fraction * named.max_activation)
    assert selection.parent(made_up, 3, 0.5).tau == selection.parent(made_up, None, 0.5).tau == 0.5


def test_separation_is_measured_on_the_hyphens_that_the_text_fixes(
    made_up: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow, chosen = study.narrow_sae(made_up).sae, selection.parent(made_up)
    found = outcome.outcome(made_up, chosen, narrow).graded
    tokens = graded.hyphen_tokens(made_up, chosen)
    for split, part in tokens.items():
        assert part.rows.tolist() == study.joining_hyphens(made_up, split)[0].tolist()
        np.testing.assert_allclose(
            part.parent, selection.parent_on(made_up, split, chosen.feature)[part.rows], rtol=1e-5
        )
    # S_k from its parts, and the best single feature from all of them
    whole = graded.measured(made_up, chosen, narrow)
    assert whole is not None and found == Graded.of(whole)
    judged = [c for c in whole.contexts if c.judged and c.primary]
    assert judged, "the made-up text has classes that a probe tells apart"
    room = sum(c.ceiling.value - c.floor.value for c in judged)
    for k in (1, 2, 4):
        value, low, high = (getattr(found, f"S_{k}{end}") for end in ("", "_low", "_high"))
        assert (
            value == pytest.approx(sum(c.mcc[k].value - c.floor.value for c in judged) / room) and low <= value <= high
        )
    member = {
        split: study.joining_hyphens(made_up, split)[1] == CLASSES.index("number") for split in ("select", "test")
    }
    acts = {split: narrow.encode(tokens[split].x).detach().numpy() for split in member}
    cuts = [best_threshold(acts["select"][:, j], member["select"]) for j in range(narrow.cfg.d_sae)]
    # a feature marks a class by being above a threshold of at least 0
    j = max(range(len(cuts)), key=lambda j: cuts[j].mcc)
    assert found.mcc_1_number == pytest.approx(np.corrcoef(acts["test"][:, j] > cuts[j].t, member["test"])[0, 1])

    # without a feature: it is in no detector
    without = graded.measured(made_up, chosen, narrow, without=j)
    assert without is not None and all(j not in c.features for c in without.contexts)
    assert abs(graded.permuted_S_2(made_up, chosen, narrow)) < 0.3
    monkeypatch.setattr(Labels, "permuted", lambda self, seed: self)
    assert graded.permuted_S_2(made_up, chosen, narrow) == pytest.approx(found.S_2), "in the true labels' units"
    l0 = float((narrow.encode(tokens["select"].x) > 0).float().sum(1).mean())
    assert graded.l0_on_hyphens(made_up, narrow) == pytest.approx(l0)


def test_the_strict_verdict_asks_for_features_that_the_narrow_sae_lacks(made_up: Profile) -> None:
    narrow, chosen = study.narrow_sae(made_up).sae, selection.parent(made_up)
    own = outcome.outcome(made_up, chosen, narrow).strict
    assert own.verdict is not Verdict.SPLIT and own.passed == 0, "the narrow SAE adds nothing to itself but its parent"

    # three features that fire exactly on the classes: directions of a probe, made by hand from the class means
    tokens = graded.hyphen_tokens(made_up, chosen)
    wide = init_random(dataclasses.replace(narrow.cfg, d_sae=4), torch.Generator().manual_seed(0))
    x, label = tokens["train"].x, study.joining_hyphens(made_up, "train")[1]
    store = study.activations(made_up, "select")
    others = store.rows(np.flatnonzero(~hyphen_mask(store, study.language_model(made_up)))[:4000])
    with torch.no_grad():
        wide.b_enc.fill_(-1e9)
        for c in range(len(CLASSES)):
            inside = torch.from_numpy(label == c)
            data, y = torch.cat([x, others]), torch.cat([inside.float() * 2 - 1, -torch.ones(len(others))])
            centred = torch.cat([data, torch.ones(len(data), 1)], 1)
            weight = (centred.T @ centred + 0.1 * torch.eye(centred.shape[1])).inverse() @ centred.T @ y
            wide.W_enc[:, c], wide.b_enc[c] = weight[:-1], weight[-1]
        wide.b_dec.zero_()
    found = outcome.outcome(made_up, chosen, wide).strict
    assert (found.feature_count, found.feature_number) == (CLASSES.index("count"), CLASSES.index("number"))
    assert found.passed >= own.passed and found.required == own.required
    whole = graded.measured(made_up, chosen, wide)
    assert whole is not None
    judged = outcome.judgement(made_up, chosen, wide, whole)
    assert judged.verdict is found.verdict
    for row in judged.contexts:
        if row.passed:
            assert row.added.low >= BOUNDS.added and row.foreign.high <= BOUNDS.foreign


def test_an_outcome_is_kept_by_sae_parent_text_and_code(made_up: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, chosen = study.narrow_sae(made_up).sae, selection.parent(made_up)
    first = outcome.outcome(made_up, chosen, narrow)
    monkeypatch.setattr(graded, "measured", lambda *_, **__: pytest.fail("it was kept"))
    assert outcome.outcome(made_up, chosen, narrow) == first
    asked: list[object] = []
    monkeypatch.setattr(graded, "measured", lambda *given, **__: asked.append(given))
    another = outcome.outcome(made_up, chosen._replace(feature=chosen.feature - 1), narrow)
    assert np.isnan(another.graded.S_2) and another.strict.verdict is Verdict.UNDECIDED
    monkeypatch.setattr(outcome, "code_version", lambda *_: "another")
    outcome.outcome(made_up, chosen, narrow)
    assert len(asked) == 2


def test_too_little_text_gives_no_separation_and_no_children(made_up: Profile) -> None:
    profile = dataclasses.replace(made_up, select_contexts=1, test_contexts=1)
    chosen = selection.Parent(0, 0.1, 1.0)
    found = outcome.outcome(profile, chosen, study.narrow_sae(made_up).sae)
    assert np.isnan(found.graded.S_2) and found.strict.verdict is Verdict.UNDECIDED
    rows = children_rows.children_results(profile, chosen)
    assert [row.seed for row in rows] == [0, 0, 1, 1, 2, 2] and all("; got " in row.reason for row in rows)
    assert children_rows.made_of(profile, chosen) == []


def test_children_results_and_their_csv(made_up: Profile, tmp_path: Path) -> None:
    chosen = selection.parent(made_up)
    rows = children_rows.children_results(made_up, chosen, seeds=(0, 1))
    assert [row.dictionary for row in rows] == ["children", "random decoder"] * 2
    for row in rows:
        assert row.reason == "" and row.K == 8 and 1 <= row.children <= 8 and row.seconds_in_all >= row.seconds > 0
        assert np.isfinite([row.outcome.graded.S_2, row.S_2_permuted, row.fvu, row.fvu_on_P, row.l0]).all()
    assert rows[0].fvu != rows[2].fvu, "seeds differ"
    kept = json.loads(json.dumps([as_row(row) for row in rows], allow_nan=False))
    write_csv(children_rows.ChildrenResult, kept, tmp_path / "children.csv")
    read = pd.read_csv(tmp_path / "children.csv")
    assert list(read.columns) == list(meanings(children_rows.ChildrenResult))
    assert read["S_2"].tolist() == pytest.approx([row.outcome.graded.S_2 for row in rows], rel=1e-5)


def test_arms_on_narrow_saes_of_their_own(made_up: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"claim_blocks": 2, "claim_wide_seeds": 1, "claim_trials": 2, "claim_steps": 12, "claim_early": 4}
    profile = dataclasses.replace(made_up, **small)
    monkeypatch.setattr(arms, "ARMS", tuple(arms.get_arm(name) for name in ("all data", "filtered", "narrow size")))
    runs = arms.arm_runs(profile)
    names = ["all data"] * 2 + ["filtered"] * 3 + ["narrow size", "children", "random decoder"]
    assert [(run.arm, run.block, run.seed) for run in runs] == [(name, b, b) for b in (0, 1) for name in names]
    assert [run.at for run in runs[2:5]] == ["end", "early", "same parent tokens"]
    first, second = (study.narrow_sae(arms.block_profile(profile, b)).sae for b in (0, 1))
    assert weights_hash(first) == weights_hash(study.narrow_sae(made_up).sae) != weights_hash(second)
    for block in (0, 1):
        own = arms.block_profile(profile, block)
        assert {run.parent for run in runs if run.block == block} == {selection.parent(own).feature}
    assert np.isfinite([run.outcome.graded.S_2 for run in runs]).all()
    # the filtered arm has seen the same parent-active tokens when it has seen its share of the control's tokens
    share = (
        trainings.view(profile, "context", selection.parent(profile)).n_tokens
        / study.activations(profile, "train").n_tokens
    )
    assert runs[4].tokens == max(round(12 * share), 1) * profile.batch_size
    # the coefficient that came nearest to the control's L0
    target = runs[0].outcome.l0_hyphens
    plain = arms.train_arm(profile, arms.ARMS[1], 0, 1.0)["end"][0]
    assert abs(np.log(runs[2].outcome.l0_hyphens / target)) <= abs(
        np.log(graded.l0_on_hyphens(profile, plain) / target)
    )

    judged = claims.judge_claims(runs)
    assert len(judged) == len(claims.CLAIMS) and judged[0].blocks == 2
    monkeypatch.setattr("saelib.sae.kept.train", lambda *_, **__: pytest.fail("every training was kept"))
    assert arms.arm_runs(profile) == runs
