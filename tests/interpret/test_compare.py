"""Comparisons agree with a dense computation and with hand-made cases; SAEs of different spaces are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_features import BLOCKS, D_SAE, made_sae, made_store

from saelib.base.errors import UserError
from saelib.interpret.compare import (
    co_firing,
    compare_features,
    decoder_cosine,
    lineage,
    match_saes,
    nearest_features,
)
from saelib.sae.sae import SAE


def firing(sae: SAE, store) -> np.ndarray:
    with torch.no_grad():
        return (sae.encode(store.rows(slice(None))) > 0).numpy()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return made_store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("block", BLOCKS[:1] + BLOCKS[2:])
@pytest.mark.parametrize("two", [False, True])
def test_co_firing_is_the_dense_one(store, block: int | None, two: bool) -> None:
    a, b = made_sae(), made_sae(d_sae=25, seed=1)
    fa, fb = firing(a, store)[:, [5, 0, 3]], firing(b if two else a, store)
    got = co_firing(a, store, [5, 0, 3], other=b if two else None, block=block)
    both = fa.T.astype(int) @ fb.astype(int)
    assert np.array_equal(got.both, both)
    assert np.array_equal(got.fires, fa.sum(0)) and np.array_equal(got.other_fires, fb.sum(0))
    either = (fa[:, :, None] | fb[:, None, :]).sum(0)
    np.testing.assert_allclose(got.jaccard, np.where(either, both / np.maximum(either, 1), 0), atol=1e-12)
    np.testing.assert_allclose(got.given_other, both / np.maximum(fb.sum(0), 1), atol=1e-12)
    assert got.tokens == store.n_tokens


def dense_cosine(rows: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.cosine_similarity(rows[:, None], others[None], dim=-1).detach().numpy()


def test_cosines_are_the_dense_ones() -> None:
    a, b = made_sae(), made_sae(d_sae=25, seed=1)
    np.testing.assert_allclose(decoder_cosine(a, b), dense_cosine(a.W_dec, b.W_dec), atol=1e-5)


def test_a_comparison_has_a_row_a_pair(store) -> None:
    a, b = made_sae(), made_sae(d_sae=25, seed=1)
    frame = compare_features(a, [4, 5], b, [1, 0, 2], store=store)
    assert frame["feature"].tolist() == [4, 4, 4, 5, 5, 5] and frame["other"].tolist() == [1, 0, 2] * 2
    np.testing.assert_allclose(
        frame["decoder_cosine"], decoder_cosine(a, b)[[4, 5]][:, [1, 0, 2]].reshape(-1), atol=1e-6
    )
    np.testing.assert_allclose(
        frame["encoder_cosine"], dense_cosine(a.W_enc.T[[4, 5]], b.W_enc.T[[1, 0, 2]]).reshape(-1), atol=1e-5
    )
    both = co_firing(a, store, [4, 5], other=b, other_features=[1, 0, 2]).both
    assert frame["both"].tolist() == both.reshape(-1).tolist()
    assert list(compare_features(a, 4)) == ["feature", "other", "decoder_cosine", "encoder_cosine"]
    assert len(compare_features(a, 4)) == D_SAE


def test_nearest_features_leave_out_the_feature_itself(store) -> None:
    sae = made_sae()
    frame = nearest_features(sae, 0, k=3, store=store)
    cosine = decoder_cosine(sae, sae)[0]
    cosine[0] = -2
    by_decoder = frame[frame["near"].str.contains("decoder")]
    assert set(by_decoder["other"]) == set(np.argsort(-cosine)[:3].tolist())
    jaccard = co_firing(sae, store, 0).jaccard[0]
    jaccard[0] = -1
    assert set(frame[frame["near"].str.contains("firing")]["other"]) == set(np.argsort(-jaccard)[:3].tolist())
    assert frame["decoder_cosine"].is_monotonic_decreasing
    other = made_sae(seed=2)
    assert 0 in set(nearest_features(other, 0, k=D_SAE, other=sae)["other"])  # another SAE's feature 0 is another


def test_matching_finds_a_permutation() -> None:
    a = made_sae()
    order = np.random.default_rng(1).permutation(D_SAE)
    b = made_sae(seed=5)
    with torch.no_grad():
        b.W_dec.copy_(a.W_dec[order] + 0.01 * b.W_dec)
        b.W_enc.copy_(a.W_enc[:, order])
    frame = match_saes(a, b)
    assert frame["feature"].tolist() == list(range(D_SAE))
    assert order[frame["match"]].tolist() == list(range(D_SAE))
    assert frame["decoder_cosine"].min() > 0.99
    np.testing.assert_allclose(frame["encoder_cosine"], 1, atol=1e-5)


def test_matching_is_one_to_one_where_the_nearest_would_be_shared() -> None:
    """Both of a's features are nearest to b's first: the best sum gives it to the one that gains more."""
    a, b = _two([[1, 0], [0.9, 0.1]]), _two([[1, 0], [0, 1]])
    frame = match_saes(a, b)
    assert frame["match"].tolist() == [0, 1]
    smaller = match_saes(_two([[0, 1], [1, 0], [1, 1]]), _two([[1, 0]]))
    assert smaller[["feature", "match"]].to_numpy().tolist() == [[1, 0]]


def _two(rows: list[list[float]]) -> SAE:
    cfg = replace(made_sae(d_in=2, d_sae=6).cfg, d_sae=len(rows))
    sae = SAE(cfg)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor(rows, dtype=torch.float32))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def test_lineage_by_hand() -> None:
    parent = _two([[1, 0]])
    wide = _two([[1, 0.1], [0, 1], [0, -1], [1, 1], [-1, 0]])
    row = lineage(parent, 0, wide, [0]).iloc[0]
    assert row["decoder_cosine"] == pytest.approx(1 / np.hypot(1, 0.1))
    assert row["rest_median"] == pytest.approx(0.0, abs=1e-6)
    assert row["share_below"] == 1.0
    assert lineage(parent, 0, wide, [4])["share_below"].tolist() == [0.0]


def test_saes_of_different_spaces_are_refused(store, tmp_path: Path) -> None:
    a = made_sae()
    with pytest.raises(UserError, match="both SAEs must have one d_in, 16; got 8"):
        match_saes(a, made_sae(d_in=8))
    for change, match in (
        (
            {"hook_name": "blocks.0.hook_resid_mid"},
            "one hook_name, 'blocks.0.hook_mlp_out'; got 'blocks.0.hook_resid_mid'",
        ),
        ({"center_writing_weights": True}, "one center_writing_weights, False; got True"),
    ):
        b = SAE(replace(a.cfg, **change))
        c = SAE(replace(a.cfg, center_writing_weights=False))
        with pytest.raises(UserError, match=match):
            compare_features(c, 0, b)
    with pytest.raises(UserError, match=r"feature must be a whole number in \[0, d_sae=40\); got 40"):
        co_firing(a, store, 40)
    with torch.no_grad():
        a.W_dec[0, 0] = float("nan")
    with pytest.raises(UserError, match="W_dec of an SAE must be finite"):
        match_saes(a, made_sae(seed=1))
