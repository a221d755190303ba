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
from saelib.interpret.feature_f1 import best_cut, best_feature_f1, cut_at
from saelib.report.children_csv import CHILDREN_COLUMNS, write_children_csv
from saelib.report.index_page import GRADED_COLUMNS
from saelib.sae.sae import SAEConfig, init_random
from saelib.split.classes import CLASSES
from saelib.split.detectors import best_threshold
from saelib.study import children_rows, graded, study
from saelib.study.profiles import Profile


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
    functions = [study.tokens, study.activations, study.joining_hyphens, study.hyphens, study.coefficient, study.parent]
    yield PROFILE
    for function in [*functions, graded.yardstick, graded._hyphen_tokens]:
        function.cache_clear()


def classes_by_hand(profile: Profile, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of the hyphens of a split, read off the made-up text's own lists."""
    store, model = study.activations(profile, split), study.language_model(profile)
    known = {compound: name for name, compounds in tiny_study._COMPOUNDS.items() for compound in compounds}
    rows, labels = [], []
    for row in np.flatnonzero(store.token_ids == model.hyphen):
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
    narrow, chosen = study.narrow_sae(made_up).sae, study.parent(made_up)
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
    ranking = study.rank_parents(made_up, narrow)
    assert ranking["f1"].is_monotonic_decreasing and ranking["f1"][0] == pytest.approx(cuts[best].f1)

    fit, marked = study.parent_fit(made_up, chosen), study.joins(made_up, "test")
    above = study.parent_on(made_up, "test", best) > chosen.tau
    assert fit.purity == (above & marked).sum() / above.sum() and fit.recall == (above & marked).sum() / marked.sum()
    assert study.is_hyphens(fit) == (min(fit.purity, fit.recall) >= 0.8)

    named = study.parent(made_up, 3)
    assert named.feature == 3 and named.tau == pytest.approx(made_up.tau_fraction * named.max_activation)
    assert study.parent(made_up, 3, 0.5).tau == study.parent(made_up, None, 0.5).tau == 0.5


def test_separation_is_measured_on_the_hyphens_that_the_text_fixes(made_up: Profile) -> None:
    narrow, chosen = study.narrow_sae(made_up).sae, study.parent(made_up)
    found = graded.separation(made_up, chosen, narrow)
    assert tuple(found) == graded.GRADED == tuple(GRADED_COLUMNS)
    tokens = graded.hyphen_tokens(made_up, chosen)
    for split, part in tokens.items():
        assert part.rows.tolist() == study.joining_hyphens(made_up, split)[0].tolist()
        np.testing.assert_allclose(part.parent, study.parent_on(made_up, split, chosen.feature)[part.rows], rtol=1e-5)
    # S_k from its parts, and the best single feature from all of them
    judged = [c for c in graded.measured(made_up, chosen, narrow).contexts if c.judged and c.primary]
    assert judged, "the made-up text has classes that a probe tells apart"
    room = sum(c.ceiling.value - c.floor.value for c in judged)
    for k in (1, 2, 4):
        assert found[f"S_{k}"] == pytest.approx(sum(c.mcc[k].value - c.floor.value for c in judged) / room)
        assert found[f"S_{k}_low"] <= found[f"S_{k}"] <= found[f"S_{k}_high"]
    member = {
        split: study.joining_hyphens(made_up, split)[1] == CLASSES.index("number") for split in ("select", "test")
    }
    acts = {split: narrow.encode(tokens[split].x).detach().numpy() for split in member}
    cuts = [best_threshold(acts["select"][:, j], member["select"]) for j in range(narrow.cfg.d_sae)]
    # a feature marks a class by being above a threshold of at least 0
    j = max(range(len(cuts)), key=lambda j: cuts[j].mcc)
    expected = np.corrcoef(acts["test"][:, j] > cuts[j].t, member["test"])[0, 1]
    assert found["mcc_1_number"] == pytest.approx(expected)


def test_a_separation_is_kept_by_sae_parent_text_and_code(made_up: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, chosen = study.narrow_sae(made_up).sae, study.parent(made_up)
    first = graded.separation(made_up, chosen, narrow)
    monkeypatch.setattr(graded, "measured", lambda *_: pytest.fail("it was kept"))
    assert graded.separation(made_up, chosen, narrow) == first
    asked: list[object] = []
    monkeypatch.setattr(graded, "measured", lambda *given: asked.append(given))
    assert np.isnan(graded.separation(made_up, chosen._replace(feature=chosen.feature - 1), narrow)["S_2"])
    monkeypatch.setattr(graded, "code_version", lambda *_: "another")
    graded.separation(made_up, chosen, narrow)
    assert len(asked) == 2


def test_too_little_text_gives_no_separation_and_no_children(made_up: Profile) -> None:
    profile = dataclasses.replace(made_up, select_contexts=1, test_contexts=1)
    chosen = study.Parent(0, 0.1, 1.0)
    assert all(np.isnan(value) for value in graded.separation(profile, chosen, study.narrow_sae(made_up).sae).values())
    rows = children_rows.children_rows(profile, chosen)
    assert (
        rows["seed"].tolist() == [0, 1, 2] and rows["S_2"].isna().all() and rows["reason"].str.contains("; got ").all()
    )


def test_children_rows_and_their_csv(made_up: Profile, tmp_path: Path) -> None:
    assert tuple(CHILDREN_COLUMNS) == children_rows.COLUMNS
    chosen = study.parent(made_up)
    rows = children_rows.children_rows(made_up, chosen)
    assert rows["reason"].tolist() == [""] * 3 and rows["K"].tolist() == [8] * 3
    numbers = rows[["S_1", "S_2", "S_4", "fvu", "fvu_on_P", "seconds", "tokens"]]
    assert numbers.notna().all().all() and (rows["seconds_in_all"] > rows["seconds"]).all()
    assert rows["children"].between(1, 8).all() and rows["fvu"].nunique() == 3, "seeds differ"
    records = json.loads(json.dumps(rows.astype(object).where(rows.notna(), None).to_dict("records")))
    write_children_csv(records, tmp_path / "children.csv")
    read = pd.read_csv(tmp_path / "children.csv")
    assert list(read.columns) == list(CHILDREN_COLUMNS) and read["S_2"].tolist() == pytest.approx(rows["S_2"].tolist())
