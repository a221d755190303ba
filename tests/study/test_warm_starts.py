"""Convergence of warm and random starts, and the control's matched feature, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.sae.sae import SAE, SAEConfig
from saelib.study import selection, study
from saelib.study.arms import matched_feature
from saelib.study.profiles import get_profile
from saelib.study.warm_starts import COMPARED, WIDE, loss_level, parent_on_top, tokens_to_level


def log(*loss: float, on_top: tuple[float, ...] = ()) -> pd.DataFrame:
    """Twelve logged losses, the last one lasting, 100 tokens apart."""
    found = pd.DataFrame({"tokens": range(100, 1300, 100), "loss": [*loss, *[loss[-1]] * (12 - len(loss))]})
    return found.assign(parent_still_top=[*on_top, *on_top[-1:] * (12 - len(on_top))]) if on_top else found


@pytest.fixture
def logs() -> dict[int, pd.DataFrame]:
    """Random starts are runs 4 to 6. Their last ten losses are 14 times 2, 3 times 4 and 13 times 10; before them come 50s."""
    others = {run: log(9, on_top=(0.2, 0.1)) for run in WIDE}
    random = {4: log(50, 50, 2), 5: log(50, 50, 2, 2, 2, 2, 4, 4, 4, 10), 6: log(50, 50, 10)}
    return others | random | {7: log(9, 6, 4, 2, on_top=(0.5, 0.9, 0.3))}


def test_tokens_to_the_level_of_random_starts(logs: dict[int, pd.DataFrame]) -> None:
    assert loss_level(logs) == pytest.approx(1.05 * 4)
    table = tokens_to_level(logs)
    assert table.index.tolist() == [4, 5, 6, 7, 8, 9, 10] and set(table.index) == set(COMPARED)
    assert table["start"].tolist() == ["random"] * 3 + ["warm"] * 4
    # The mean of the last three: run 7 has 9, 7.5, 6.33, then (6 + 4 + 2) / 3 = 4.
    assert table.loc[[4, 5, 7], "tokens to level"].tolist() == [500, 500, 400]
    assert table.loc[[6, 8], "tokens to level"].isna().all()  # never
    assert table.loc[7, ["seed", "first loss", "last loss", "tokens given"]].tolist() == [42, 9, 2, 1200]


def test_how_long_the_parent_stays_on_top(logs: dict[int, pd.DataFrame]) -> None:
    found = parent_on_top(logs)
    assert found.index.tolist() == [1, 2, 3, 7, 8, 9, 10, 11]  # warm starts, on whatever data
    assert found.loc[7].tolist() == [False, 0.9, 0.3] and found.loc[11].tolist() == [True, 0.2, 0.1]


N_CONTEXTS, D = 8, 12
PARENT, TAU = 0, 4.0
STRENGTHS = {
    PARENT: [9, 5, 4.5, 3, 3, 3, 3, 3],  # above its own tau in 3 of 8
    **{j: [5, 5, 5, 0, 0, 0, 0, 0] for j in range(1, 8)},  # as dense, but among the first eight
    8: [6, 0, 0, 0, 0, 0, 0, 0],
    9: [0, 10, 3, 2.5, 2, 1, 0, 0],  # above 10 x 2 / 9.23 = 2.17 in 3
    10: [8, 1, 1, 0, 0, 0, 0, 0],  # on in 3, above its 1.73 in 1
    11: [0] * 8,
}
"""The largest activation of each feature in each context."""


def test_the_matched_feature_keeps_as_many_contexts_as_the_parent(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(N_CONTEXTS, POSITIONS, D)
    for feature, largest in STRENGTHS.items():
        x[:, 7 * feature, feature] = torch.tensor(largest, dtype=torch.float32)
    (tmp_path / "acts.bin").write_bytes(x.bfloat16().view(torch.int16).numpy().tobytes())
    contexts = np.zeros((N_CONTEXTS, POSITIONS + 1), dtype=np.uint16)
    store = ActivationStore(tmp_path, {"key": "made", "d_in": D, "n_contexts": N_CONTEXTS}, contexts)
    sae = SAE(SAEConfig(D, D, "made.hook", "made", False)).requires_grad_(False)
    sae.W_enc.copy_(torch.eye(D))
    sae.W_dec.copy_(torch.eye(D))
    ranking = pd.DataFrame({"feature": [1, 2, 3, 4, 5, 6, 7, 8, PARENT, 11, 10, 9]})
    monkeypatch.setattr(study, "narrow_sae", lambda profile: SimpleNamespace(sae=sae))
    monkeypatch.setattr(study, "activations", lambda profile, split: {"select": store}[split])
    monkeypatch.setattr(selection, "parent", lambda profile: selection.Parent(PARENT, TAU, 9.0))
    monkeypatch.setattr(selection, "rank_parents", lambda profile, sae: ranking)
    found = matched_feature(replace(get_profile("smoke"), tau_fraction=2 / 9.23))
    assert found.feature == 9 and found.max_activation == 10
    assert found.tau == pytest.approx(20 / 9.23, abs=1e-6)
    assert math.isclose(float((x[:, :, 9].amax(1) > found.tau).float().mean()), 3 / 8)
