"""Notebooks 13 and 14's work on a tiny study of made-up text: trained, watched, measured, kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import tiny_study
import torch

from saelib.sae.initial import init_from_narrow
from saelib.split.classes import CLASSES
from saelib.study import data_needed, data_tables, graded, hyphen_scale, replacing, selection, study, trainings
from saelib.study.hyphen_scale import separation_of
from saelib.study.profiles import Profile
from saelib.study.replacing import ARMS, Watch, end_measures, watch_arm, watched_tokens
from saelib.study.replacing_tables import run_row

pytestmark = pytest.mark.slow

PROFILE = dataclasses.replace(
    tiny_study.PROFILE, name="left-open", train_contexts=200, select_contexts=60, test_contexts=60, narrow_steps=60,
    data_steps=4, data_first_tokens=256, data_points=3, replacing_steps=4, replacing_seeds=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profile]:
    """The profile, with the made-up text in the place of the study's."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("study")
    patch.setenv("SAELIB_CACHE", str(folder))
    patch.setattr(study, "STUDY_SOURCES", (tiny_study.make_archive(folder, documents=1500),))
    yield PROFILE
    patch.undo()
    for module in (study, graded, hyphen_scale, data_needed, replacing):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def test_the_scale_gives_what_the_study_s_own_measure_gives(made_up: Profile) -> None:
    chosen, narrow = selection.parent(made_up), study.narrow_sae(made_up).sae
    expected = graded.measured(made_up, chosen, narrow)
    assert expected is not None
    found = separation_of(made_up, chosen, narrow)  # fewer hyphens than it takes at most
    assert math.isfinite(found["S_2"])
    for k in (1, 2):
        assert found[f"S_{k}"] == pytest.approx(expected.S[k].value, abs=1e-6)


def test_snapshots_of_one_training_are_the_points_of_a_curve(made_up: Profile) -> None:
    rows = data_needed.arm_points(made_up, data_needed.ARMS[1], seed=0)
    assert [row["tokens"] for row in rows] == [256, 512, 1024]
    assert all(math.isfinite(row["S_2"]) for row in rows)
    assert rows[-1]["seconds"] == pytest.approx(4 * rows[0]["seconds"])
    chosen = selection.parent(made_up)
    spec = data_needed.ARMS[1].spec(0)
    early = trainings.kept_after(made_up, spec, chosen, "context", 4, 1)
    assert separation_of(made_up, chosen, early)["S_2"] == rows[0]["S_2"]


def test_the_study_s_own_runs_are_measured_as_the_curves_are(made_up: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_tables, "STUDY_RUNS", {"random, all": (14,)})
    row = data_tables.study_points(made_up).iloc[0]
    trained = trainings.trained_run(made_up, 14)
    assert (row["arm"], row["run"], row["seed"], row["tokens"]) == ("random, all", 14, 42, trained.n_tokens)
    assert row["S_2"] == separation_of(made_up, selection.parent(made_up), trained.sae)["S_2"]


def test_the_first_steps_of_a_warm_start_are_all_recorded(made_up: Profile) -> None:
    history = watch_arm(made_up, ARMS[0], seed=0).history
    assert history["step"].tolist() == [0, 1, 2, 3]
    for name in CLASSES:
        shares = history[[f"{kind}_{name}" for kind in ("parent", "copy", "fresh", "none")]].sum(axis=1)
        assert np.allclose(shares, 1)
    assert history["loss_P"].iloc[-1] < history["loss_P"].iloc[0]
    # step 0 is the warm start itself
    chosen, narrow, config = selection.parent(made_up), study.narrow_sae(made_up).sae, study.sae_config(made_up, 128)
    warm = init_from_narrow(narrow, config, False, torch.Generator().manual_seed(0))
    price = study.coefficient(made_up).l1_coeff * made_up.batch_size
    row = Watch(narrow, chosen.feature, *watched_tokens(made_up), price=price)(warm)
    for name in ("loss_P", "fvu_P", *(f"fresh_{name}" for name in CLASSES)):
        assert history[name].iloc[0] == pytest.approx(row[name], rel=1e-5)
    ends = end_measures(made_up, ARMS[0], 0)
    assert set(ends) == {"S_1", "S_2", "fvu_on", "fvu_off"} and all(map(math.isfinite, ends.values()))
    assert run_row("warm", 0, history)["by_count"] in ("copy", "fresh")


def test_a_zeroed_parent_starts_alike_and_trains_otherwise(made_up: Profile) -> None:
    warm, zeroed = (watch_arm(made_up, arm, 0) for arm in ARMS[:2])
    assert [arm.zero_parent for arm in ARMS[:2]] == [False, True]
    for name in CLASSES:
        assert warm.history[f"parent_{name}"].iloc[0] == zeroed.history[f"parent_{name}"].iloc[0]
    assert zeroed.history["loss_P"].iloc[0] != warm.history["loss_P"].iloc[0]  # without the parent it is another loss
    feature = selection.parent(made_up).feature
    narrow = study.narrow_sae(made_up).sae
    drift = [float((r.sae.W_enc[:, feature] - narrow.W_enc[:, feature]).norm().detach()) for r in (warm, zeroed)]
    assert drift[0] > 0 and drift[1] == 0
