"""The tools agree with a straightforward dense computation, whatever the block size, and bad input is one clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.errors import UserError
from saelib.interpret import examples
from saelib.interpret.examples import highest_activating_tokens
from saelib.interpret.features import (
    activation_density,
    activation_histogram,
    logit_effects,
    prompt_activations,
    top_features,
)
from saelib.lm.model import HOOK_NAME, LanguageModel, load_embedded
from saelib.sae import stream
from saelib.sae.sae import SAE, SAEConfig
from saelib.text.tokens import CONTEXT_LENGTH

D_IN, D_SAE, N_CONTEXTS = 16, 40, 30


def made_store(folder: Path, d_in: int = D_IN, n_contexts: int = N_CONTEXTS, **manifest: object) -> ActivationStore:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(n_contexts * POSITIONS, d_in))).bfloat16()
    (folder / "acts.bin").write_bytes(x.view(torch.int16).numpy().tobytes())
    contexts = rng.integers(3, 8192, (n_contexts, CONTEXT_LENGTH)).astype(np.uint16)
    facts = {"key": "made", "d_in": d_in, "n_contexts": n_contexts, "hook_name": HOOK_NAME, **manifest}
    return ActivationStore(folder, facts, contexts)


def made_sae(d_in: int = D_IN, d_sae: int = D_SAE, seed: int = 0, bias: float = -2.0) -> SAE:
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, hook_name=HOOK_NAME, model_name="made"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_dec"):
            getattr(sae, name).normal_(generator=generator)
        sae.W_enc /= d_in**0.5
        sae.b_enc.fill_(bias)
        sae.b_enc[3] = -1e3  # never fires
        sae.b_enc[5] = 3.0  # fires on most tokens
    return sae


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return made_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def sae() -> SAE:
    return made_sae()


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_embedded()


@pytest.fixture(scope="module")
def dense(store: ActivationStore, sae: SAE) -> np.ndarray:
    """Every activation at once: what must not be needed."""
    with torch.no_grad():
        return sae.encode(store.rows(slice(None))).numpy()


BLOCKS = [None, 1, 17, 500, 10**6]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_top_examples_are_the_dense_ones(
    store: ActivationStore, sae: SAE, dense: np.ndarray, block: int | None
) -> None:
    wanted = [7, 3, 5, 0]
    frame = highest_activating_tokens(sae, None, store, wanted, k=6, block=block)
    assert frame["feature"].drop_duplicates().tolist() == [7, 5, 0]  # 3 never fires
    for feature, part in frame.groupby("feature"):
        column = dense[:, int(feature)]
        order = np.argsort(-column, kind="stable")[:6]
        assert part["row"].tolist() == order.tolist()
        np.testing.assert_allclose(part["activation"], column[order], atol=1e-5)
        assert part["rank"].tolist() == [1, 2, 3, 4, 5, 6]


def test_one_feature_or_several_share_a_pass(store: ActivationStore, sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [highest_activating_tokens(sae, None, store, f, k=4, quantiles=[0.5]) for f in (1, 2)]
    passes = []
    blocks = ActivationStore.blocks
    monkeypatch.setattr(ActivationStore, "blocks", lambda self, size: passes.append(size) or blocks(self, size))
    together = highest_activating_tokens(sae, None, store, [1, 2], k=4, quantiles=[0.5])
    assert len(passes) == 1
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True), check_exact=False, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_quantile_examples_lie_at_their_ranks(
    store: ActivationStore, sae: SAE, dense: np.ndarray, block: int | None
) -> None:
    """Feature 0 fires on fewer tokens than the sample holds: exact. Feature 5 on more: exactly those of the sample."""
    quantiles = [1.0, 0.9, 0.5, 0.0]
    frame = highest_activating_tokens(sae, None, store, [0, 5], k=5, quantiles=quantiles, sample=400, block=block)
    for feature in (0, 5):
        column = dense[:, feature]
        active = np.flatnonzero(column > 0)
        if len(active) > 400:
            active = np.sort(active[np.argsort(stream.sample_key(active), kind="stable")[:400]])
        order = active[np.argsort(-column[active], kind="stable")]
        part = frame[frame["feature"] == feature].set_index("band")
        for q in quantiles:
            first = min(max(round((1 - q) * len(order) - 2.5), 0), len(order) - 5)
            assert part.loc[f"q={q:g}", "row"].tolist() == order[first : first + 5].tolist()
            np.testing.assert_allclose(part.loc[f"q={q:g}", "activation"], column[order[first : first + 5]], atol=1e-5)
    assert (dense[:, 0] > 0).sum() < 400 < (dense[:, 5] > 0).sum()


def test_a_sampled_quantile_is_near_the_true_one(store: ActivationStore, sae: SAE, dense: np.ndarray) -> None:
    part = highest_activating_tokens(sae, None, store, 5, k=1, quantiles=[0.25, 0.75], sample=400).set_index("band")
    active = dense[dense[:, 5] > 0, 5]
    for q in (0.25, 0.75):
        assert abs((active < part.loc[f"q={q:g}", "activation"]).mean() - q) < 0.06


def test_merging_often_changes_nothing(store: ActivationStore, sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = highest_activating_tokens(sae, None, store, range(D_SAE), k=3, quantiles=[0.5], sample=50)
    monkeypatch.setattr(stream, "_PENDING_ENTRIES", 10)
    often = highest_activating_tokens(sae, None, store, range(D_SAE), k=3, quantiles=[0.5], sample=50, block=97)
    pd.testing.assert_frame_equal(whole, often, check_exact=False, atol=1e-5)


def test_equal_activations_go_to_the_earlier_row(tmp_path: Path) -> None:
    store = made_store(tmp_path, n_contexts=2)
    x = torch.ones(store.n_tokens, D_IN).bfloat16()
    (tmp_path / "acts.bin").write_bytes(x.view(torch.int16).numpy().tobytes())
    sae = made_sae(bias=5.0)
    for block in (7, 64, 1000):
        assert highest_activating_tokens(sae, None, store, 1, k=4, block=block)["row"].tolist() == [0, 1, 2, 3]


def test_an_example_carries_its_context(
    store: ActivationStore, sae: SAE, dense: np.ndarray, model: LanguageModel
) -> None:
    wide = made_sae(d_in=model.cfg.d_model)
    with pytest.raises(UserError, match="d_in must be the activations' 16"):
        highest_activating_tokens(wide, model, store, 0)
    frame = highest_activating_tokens(sae, None, store, 5, k=40, before=4, after=2)
    for row in frame.itertuples():
        assert row.context == row.row // POSITIONS and row.position == row.row % POSITIONS + 1
        assert row.token == f"{store.contexts[row.context, row.position]} " == row.tokens[row.at]
        assert row.at == min(4, row.position - 1)  # a context's edge is not crossed
        assert len(row.tokens) == len(row.activations) == row.at + 1 + min(2, POSITIONS - row.position)
        start = row.row - row.at
        np.testing.assert_allclose(row.activations, dense[start : start + len(row.tokens), 5], atol=1e-5)


def test_the_raw_score_only_by_name(store: ActivationStore, sae: SAE) -> None:
    """Without b_enc and the ReLU, a feature that never fires still has a ranking, and so do negative scores."""
    with torch.no_grad():
        scores = ((store.rows(slice(None)) - sae.b_dec) @ sae.W_enc[:, 3]).numpy()
    frame = highest_activating_tokens(sae, None, store, 3, k=5, quantiles=[0.0], sample=10**6, raw=True, block=100)
    order = np.argsort(-scores, kind="stable")
    assert frame.loc[frame["band"] == "top", "row"].tolist() == order[:5].tolist()
    assert frame.loc[frame["band"] == "q=0", "row"].tolist() == order[-5:].tolist()
    np.testing.assert_allclose(frame["activation"], scores[frame["row"]], atol=1e-5)
    assert frame["activation"].min() < 0
    assert highest_activating_tokens(sae, None, store, 3).empty


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_density_is_the_dense_one(store: ActivationStore, sae: SAE, dense: np.ndarray, block: int | None) -> None:
    frame = activation_density(sae, store, block=block)
    active = (dense > 0).sum(0)
    assert frame["active"].tolist() == active.tolist()
    np.testing.assert_allclose(frame["density"], (dense > 0).mean(0), atol=1e-12)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(frame["mean"], dense.astype(np.float64).sum(0) / active, rtol=1e-5)
    np.testing.assert_allclose(frame["max"], dense.max(0), atol=1e-5)
    assert np.isnan(frame["mean"][3]) and frame["tokens"].eq(store.n_tokens).all()


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_histogram_is_that_of_a_second_pass(
    store: ActivationStore, sae: SAE, dense: np.ndarray, block: int | None
) -> None:
    frame = activation_histogram(sae, store, [5, 3, 0], bins=16, block=block)
    assert frame["feature"].drop_duplicates().tolist() == [5, 0]
    for feature, part in frame.groupby("feature"):
        column = dense[:, int(feature)]
        width = part["high"].iloc[0]
        assert width == 2.0 ** np.round(np.log2(width)) and 8 * width <= column.max() < 16 * width
        edges = [*part["low"], part["high"].iloc[-1]]
        assert part["tokens"].tolist() == np.histogram(column[column > 0], bins=edges)[0].tolist()
        assert part["tokens"].sum() == (column > 0).sum()


def test_a_histogram_whose_maximum_is_a_power_of_two() -> None:
    histogram = stream.Histogram(1, bins=4)
    for value in (0.25, 4.0):  # 4 must not fall beyond the fourth bin of width 1
        histogram.add(stream.Entries(np.array([0]), np.array([0]), np.array([value], dtype=np.float32), 1))
    assert histogram.width[0] == 2.0
    assert histogram.count[0].tolist() == [1, 0, 1, 0]


# --- prompts -----------------------------------------------------------------------------------------------------------


def test_top_features_of_a_row_and_of_a_prompt(model: LanguageModel) -> None:
    one = top_features(torch.tensor([0.0, 4.0, 1.0, 0.0]), k=3)
    assert one["feature"].tolist() == [1, 2] and one["margin"].tolist() == [0.75, 1.0]
    sae = made_sae(d_in=model.cfg.d_model)
    tokens, acts = prompt_activations(sae, model, "a long-standing rule")
    frame = top_features(acts, k=2, tokens=tokens)
    for position, part in frame.groupby("position"):
        row = acts[int(position)].sort(descending=True)
        n = min(2, int((row.values > 0).sum()))
        assert part["feature"].tolist() == row.indices[:n].tolist()
        margins = (row.values[:n] - row.values[1 : n + 1].clamp_min(0)) / row.values[:n]
        np.testing.assert_allclose(part["margin"], margins, atol=1e-5)
        assert part["token"].eq(tokens[int(position)]).all() and part["rank"].tolist() == [1, 2][:n]


def test_top_features_of_silence_and_of_one_feature() -> None:
    assert top_features(torch.zeros(3, 4)).empty
    assert top_features(torch.ones(2, 1), k=3)["margin"].tolist() == [1.0, 1.0]
    assert top_features(torch.ones(4), k=2)["feature"].tolist() == [0, 1]


# --- bad input: one clear line each -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, D_SAE, [0, 99], 1.5, []])
def test_a_feature_out_of_range(store: ActivationStore, sae: SAE, bad: object) -> None:
    for tool in (
        lambda: highest_activating_tokens(sae, None, store, np.asarray(bad)),
        lambda: activation_density(sae, store, np.asarray(bad)),
        lambda: activation_histogram(sae, store, np.asarray(bad)),
    ):
        with pytest.raises(UserError, match=rf"feature must be a whole number in \[0, d_sae={D_SAE}\)") as error:
            tool()
        assert "\n" not in str(error.value)


def test_what_does_not_belong_together(tmp_path: Path, model: LanguageModel) -> None:
    store = made_store(tmp_path, d_in=model.cfg.d_model, n_contexts=1, center_writing_weights=False, model_key="other")
    with pytest.raises(UserError, match="the activations must be those of the model saelib-mini"):
        highest_activating_tokens(made_sae(d_in=model.cfg.d_model), model, store, 0)
    for change, match in (
        ({"d_in": 8}, "d_in must be the activations' 256; got 8"),
        (
            {"hook_name": "blocks.1.hook_mlp_out"},
            "hook must be that of the activations, blocks.0.hook_mlp_out; got blocks.1",
        ),
        (
            {"center_writing_weights": True},
            "center_writing_weights must be that of the activations \\(False\\); got True",
        ),
    ):
        cfg = {"d_in": model.cfg.d_model, "d_sae": 4, "hook_name": HOOK_NAME, "model_name": "made", **change}
        with pytest.raises(UserError, match=match):
            activation_density(SAE(SAEConfig(**cfg)), store)
    centred = SAE(
        SAEConfig(d_in=model.cfg.d_model, d_sae=4, hook_name=HOOK_NAME, model_name="made", center_writing_weights=True)
    )
    with pytest.raises(UserError, match="center_writing_weights must be that of the activations"):
        prompt_activations(centred, model, "a")
    with pytest.raises(UserError, match="d_in must be the activations' 256; got 16"):
        prompt_activations(made_sae(), model, "a")
    with pytest.raises(UserError, match="the direction must have the model's width, 256; got 16"):
        logit_effects(torch.zeros(16), model)


def test_activations_and_weights_that_are_not_finite(tmp_path: Path) -> None:
    """NaN > 0 is false: without a check a broken store would look silent."""
    store = made_store(tmp_path, n_contexts=3)
    raw = np.memmap(tmp_path / "acts.bin", dtype=np.int16, mode="r+", shape=(store.n_tokens, D_IN))
    raw[200, 4] = torch.tensor(float("nan")).bfloat16().view(torch.int16).item()
    raw.flush()
    for tool in (
        lambda: highest_activating_tokens(made_sae(), None, store, 0),
        lambda: activation_density(made_sae(), store),
    ):
        with pytest.raises(UserError, match="activations must be finite; got NaN or infinity in row 200"):
            tool()
    broken = made_sae()
    with torch.no_grad():
        broken.W_enc[0, 0] = float("nan")
    with pytest.raises(UserError, match="W_enc of an SAE must be finite"):
        activation_density(broken, store)
    with pytest.raises(UserError, match="must be finite"):
        top_features(torch.tensor([1.0, float("nan")]))


def test_bad_numbers_of_examples(store: ActivationStore, sae: SAE) -> None:
    with pytest.raises(UserError, match=r"a quantile must lie in \[0, 1\]; got 5.0"):
        highest_activating_tokens(sae, None, store, 0, quantiles=[5.0])
    with pytest.raises(UserError, match="k and sample must be at least 1"):
        highest_activating_tokens(sae, None, store, 0, k=0)
    with pytest.raises(UserError, match="power of two"):
        activation_histogram(sae, store, 0, bins=10)


# --- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(root: Path, tmp_path: Path) -> None:
    """A smaller form of benchmarks/tools_memory.py, in a process of its own: its dense matrix would take 1.6 GB."""
    command = [sys.executable, str(root / "benchmarks" / "tools_memory.py"), "--features", "1024", "--tokens", "400000"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path), "--limit-mb", "900"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert examples.SAMPLE == 1000
