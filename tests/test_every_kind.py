"""Every tool, page and split over every kind of SAE, against a dense computation from `SAE.encode` and `SAE.decode` on all
rows.

The kinds are the folders that sae-lens wrote (`tests/data/saelens`): standard, layer norm without b_dec in the input,
JumpReLU, JumpReLU at constant norm, TopK, TopK by the decoder norm.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import saelib.report.tools as tools
from saelib.acts.activations import Activations
from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.errors import UserError
from saelib.interpret.feature_f1 import feature_f1
from saelib.lm.mini_lm import MiniLMConfig
from saelib.lm.model import HOOK_NAME, OneLayerModel, load_embedded
from saelib.report.children_page import children_page
from saelib.report.feature_page import summarise
from saelib.sae.evaluate import sae_quality
from saelib.sae.initial import init_random
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE
from saelib.sae.scaled import scaled_acts
from saelib.sae.stream import Counts, Encoder, feature_activations, stream
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.parent import TAU_SHARE
from saelib.text.tokens import CONTEXT_LENGTH

FOLDER = Path(__file__).parent / "data" / "saelens"
KINDS = sorted(path.name for path in FOLDER.iterdir())
D_IN, N_CONTEXTS = 16, 12
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def model() -> OneLayerModel:
    """A model of made-up weights, as wide as the SAEs."""
    embedded = load_embedded()
    generator = torch.Generator().manual_seed(0)
    cfg = embedded.cfg
    assert isinstance(cfg, MiniLMConfig)
    sizes = {cfg.d_model: D_IN, cfg.d_mlp: 4 * D_IN, cfg.n_heads: 2, cfg.d_model // cfg.n_heads: D_IN // 2}
    kept = {"pos_embed.W_pos": (cfg.n_ctx, D_IN), "embed.W_E": (cfg.d_vocab, D_IN), "unembed.W_U": (D_IN, cfg.d_vocab)}
    weights = {
        name: torch.randn(kept.get(name, tuple(sizes.get(n, n) for n in w.shape)), generator=generator)
        for name, w in embedded.weights.items()
    }
    return dataclasses.replace(
        embedded, name="made", key="made", weights=weights, center_writing_weights=True
    )  # as the SAEs' folders say


@pytest.fixture(scope="module")
def store(model: OneLayerModel, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """The made model's own activations on made-up tokens, stretched so that every kind has features that fire."""
    rng = np.random.default_rng(0)
    contexts = rng.integers(3, model.d_vocab, (N_CONTEXTS, CONTEXT_LENGTH)).astype(np.uint16)
    return made_store(model, contexts, tmp_path_factory.mktemp("store"))


def made_store(model: OneLayerModel, contexts: np.ndarray, folder: Path) -> ActivationStore:
    contexts[:, 0] = model.bos
    with torch.no_grad():
        x = model.activations(torch.from_numpy(contexts.astype(np.int64)))[:, 1:].reshape(-1, D_IN).bfloat16()
    (folder / "acts.bin").write_bytes(x.view(torch.int16).numpy().tobytes())
    facts = {
        "key": "made", "d_in": D_IN, "n_contexts": len(contexts), "hook_name": HOOK_NAME, "center_writing_weights": True,
    }  # fmt: skip
    return ActivationStore(folder, facts, contexts)


@pytest.fixture(scope="module", params=KINDS)
def sae(request: pytest.FixtureRequest) -> SAE:
    return load_sae(FOLDER / str(request.param)).requires_grad_(False)


@pytest.fixture(scope="module")
def dense(sae: SAE, store: ActivationStore) -> np.ndarray:
    acts = sae.encode(store.rows(slice(None))).numpy()
    fires = (acts > 0).mean(0)
    assert (fires > 0).sum() >= 8 and (fires < 1).sum() >= 8  # there is something to tell apart
    return acts


@pytest.fixture(scope="module")
def wanted(dense: np.ndarray) -> list[int]:
    """Four features from rare to frequent, and one that never fires where there is one."""
    order = np.argsort((dense > 0).sum(0), kind="stable")
    alive = order[(dense > 0).sum(0)[order] > 0]
    return list(dict.fromkeys([int(order[0]), *alive[[0, len(alive) // 3, 2 * len(alive) // 3, -1]].tolist()]))


def strengths(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """How long what each feature adds to the reconstruction is, one feature at a time through `decode`."""
    acts, nothing = sae.encode(x), sae.decode(torch.zeros(len(x), sae.cfg.d_sae), x)
    alone = torch.eye(sae.cfg.d_sae)
    return torch.stack([(sae.decode(acts * alone[j], x) - nothing).norm(dim=1) for j in range(sae.cfg.d_sae)], dim=1)


def test_there_are_six_kinds() -> None:
    assert len(KINDS) == 6


def test_some_features_are_encoded_as_all_are(sae: SAE, store: ActivationStore, dense: np.ndarray) -> None:
    x = store.rows(slice(None))
    chosen = np.array([7, 0, 31, 7])
    np.testing.assert_allclose(sae.encode_features(x, chosen).numpy(), dense[:, chosen], **CLOSE)
    np.testing.assert_allclose(sae.encode_features(x[None, :5], chosen).numpy()[0], dense[:5, chosen], **CLOSE)
    np.testing.assert_allclose(sae.encode_feature(x, 7).numpy(), dense[:, 7], **CLOSE)
    np.testing.assert_allclose(feature_activations(store, sae, 7), dense[:, 7], **CLOSE)


@pytest.mark.parametrize("block", [None, 17])
def test_the_stream_lists_what_encode_gives(
    sae: SAE, store: ActivationStore, dense: np.ndarray, block: int | None
) -> None:
    for features in (None, np.array([3, 30, 0])):
        counts, columns = (
            Counts(len(dense[0]) if features is None else 3),
            dense if features is None else dense[:, features],
        )
        stream(sae, store, features, [counts], block=block)
        assert counts.active.tolist() == (columns > 0).sum(0).tolist()
        np.testing.assert_allclose(counts.largest, columns.max(0), **CLOSE)


def test_densities_histograms_and_marking(
    sae: SAE, store: ActivationStore, dense: np.ndarray, wanted: list[int]
) -> None:
    frame = tools.activation_density(sae, store)
    assert frame["active"].tolist() == (dense > 0).sum(0).tolist()
    np.testing.assert_allclose(frame["max"], dense.max(0), **CLOSE)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(frame["mean"], dense.sum(0) / (dense > 0).sum(0), **CLOSE)
    bins = tools.activation_histogram(sae, store, wanted, bins=8)
    for feature in wanted:
        part, column = bins[bins["feature"] == feature], dense[:, feature]
        assert part["tokens"].sum() == (column > 0).sum()
        for low, high, tokens in zip(part["low"], part["high"], part["tokens"], strict=True):
            inside = ((column > 0) & (column >= low + 1e-5) & (column < high - 1e-5)).sum()
            assert inside <= tokens <= ((column > 0) & (column >= low - 1e-5) & (column < high + 1e-5)).sum()
    token = int(store.token_ids[0])
    marked, ranks = store.token_ids == token, feature_f1(store, sae, [token])
    hits = (dense > 0)[marked].sum(0)
    np.testing.assert_allclose(ranks["f1"], 2 * hits / ((dense > 0).sum(0) + marked.sum()), **CLOSE)
    np.testing.assert_allclose(ranks["max_activation"], dense.max(0), **CLOSE)


def test_strongest_tokens_and_examples(
    sae: SAE, model: OneLayerModel, store: ActivationStore, dense: np.ndarray, wanted: list[int]
) -> None:
    frame = tools.highest_activating_tokens(sae, model, store, wanted, k=5, quantiles=[0.5, 0.0])
    for feature in wanted:
        column, part = dense[:, feature], frame[frame["feature"] == feature]
        active = np.argsort(-column, kind="stable")[: (column > 0).sum()]
        top = part[part["band"] == "top"]
        np.testing.assert_allclose(top["activation"], column[active[:5]], **CLOSE)
        np.testing.assert_allclose(part["activation"], column[part["row"]], **CLOSE)
        if len(active) <= 1000:
            lowest = part[part["band"] == "q=0"]
            np.testing.assert_allclose(lowest["activation"], column[active[-5:]], **CLOSE)
        for row, nearby, at in zip(part["row"], part["activations"], part["at"], strict=True):
            np.testing.assert_allclose(nearby, column[row - at : row - at + len(nearby)], **CLOSE)
        if len(top):
            assert f"{column.max():.2f}" in tools.examples(top)._repr_html_()


def test_the_published_score_stays_by_its_name(sae: SAE, store: ActivationStore) -> None:
    """`raw=True` is `W_enc . (x - b_dec)` whatever the kind."""
    scores = ((store.rows(slice(None)) - sae.b_dec) @ sae.W_enc[:, 4]).numpy()
    frame = tools.highest_activating_tokens(sae, None, store, 4, k=6, raw=True)
    np.testing.assert_allclose(frame["activation"], np.sort(scores)[::-1][:6], **CLOSE)


def test_firing_together(sae: SAE, store: ActivationStore, dense: np.ndarray, wanted: list[int]) -> None:
    fires = (dense > 0).astype(int)
    together = tools.co_firing(sae, store)
    assert (together.both == fires.T @ fires).all()
    for block in (None, 19):
        some = tools.co_firing(sae, store, wanted, block=block)
        assert (some.both == fires[:, wanted].T @ fires).all()
    either = fires.sum(0)[wanted[-1]] + fires.sum(0) - fires[:, wanted[-1]] @ fires
    jaccard = fires[:, wanted[-1]] @ fires / np.maximum(either, 1)
    pairs = tools.compare_features(sae, wanted[-1], store=store)
    np.testing.assert_allclose(pairs["jaccard"], jaccard, **CLOSE)
    rows = F.normalize(sae.W_dec, dim=1)
    cosine = (rows[wanted[-1]] @ rows.T).numpy()
    np.testing.assert_allclose(pairs["decoder_cosine"], cosine, **CLOSE)
    near = tools.nearest_features(sae, wanted[-1], k=3, store=store)
    others = [j for j in np.argsort(-cosine, kind="stable").tolist() if j != wanted[-1]][:3]
    assert set(others) <= set(near["other"])
    most = near.loc[near["near"].str.contains("firing"), "jaccard"].max()
    np.testing.assert_allclose(most, np.delete(jaccard, wanted[-1]).max(), **CLOSE)


def test_two_saes_beside_each_other(sae: SAE, store: ActivationStore, dense: np.ndarray, wanted: list[int]) -> None:
    other = load_sae(FOLDER / "jumprelu").requires_grad_(False)
    theirs = (other.encode(store.rows(slice(None))).numpy() > 0).astype(int)
    together = tools.co_firing(sae, store, wanted, other=other)
    assert (together.both == (dense > 0).astype(int)[:, wanted].T @ theirs).all()
    pairs = tools.match_saes(sae, other)
    cosine = F.normalize(sae.W_dec, dim=1) @ F.normalize(other.W_dec, dim=1).T
    np.testing.assert_allclose(pairs["decoder_cosine"], cosine.numpy()[pairs["feature"], pairs["match"]], **CLOSE)
    lines = tools.lineage(sae, wanted[-1], other, [2, 9])
    np.testing.assert_allclose(lines["decoder_cosine"], cosine.numpy()[wanted[-1], [2, 9]], **CLOSE)


def test_prompts_and_the_strongest_features(sae: SAE, model: OneLayerModel) -> None:
    prompt = "a long-standing rule of two-thirds"
    tokens, acts = tools.prompt_activations(sae, model, prompt)
    x = model.activations(model.to_tokens(prompt))[0]
    expected = strengths(sae, x)
    torch.testing.assert_close(acts, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled_acts(sae, x), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(acts > 0, sae.encode(x) > 0)
    frame = tools.top_features(acts, k=2, tokens=tokens)
    strongest = frame[frame["rank"] == 1].set_index("position")["feature"]
    assert all(feature == int(acts[position].argmax()) for position, feature in strongest.items())


def test_logit_effects(sae: SAE, model: OneLayerModel) -> None:
    effect = sae.W_dec[5] @ model.W_U
    frame = tools.logit_effects(sae.W_dec[5], model, k=4)
    np.testing.assert_allclose(frame["top_logit"], effect.sort(descending=True).values[:4], **CLOSE)
    np.testing.assert_allclose(frame["bottom_logit"], effect.sort().values[:4], **CLOSE)


def test_a_map_of_decoder_rows(sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    class Umap:
        def UMAP(self, **settings: object) -> Umap:
            return self

        def fit_transform(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, :2]

    monkeypatch.setattr("saelib.report.decoder_map._umap", Umap)
    points = tools.decoder_map({"it": sae})
    np.testing.assert_array_equal(points[["x", "y"]].to_numpy(), sae.W_dec[:, :2].numpy().astype(float))
    assert points["feature"].tolist() == list(range(sae.cfg.d_sae)) and tools.map_view(points).record


def test_every_tool_is_put_to_every_kind() -> None:
    """Those that take an SAE; the others load a model, a text or an SAE."""
    source = Path(__file__).read_text()
    missing = [name for name in tools.__all__ if f"tools.{name}(" not in source]
    assert set(missing) <= {"Member", "load_embedded", "load_sae", "text_store"}, missing


@pytest.mark.slow
def test_a_feature_page(
    sae: SAE, model: OneLayerModel, store: ActivationStore, dense: np.ndarray, wanted: list[int], tmp_path: Path
) -> None:
    for feature in wanted:
        column = dense[:, feature]
        view = tools.feature_page(sae, model, store, feature, k=4)
        record = view.record
        assert record["active"] == (column > 0).sum() and record["tokens"] == N_CONTEXTS * POSITIONS
        top = [e["activation"] for e in record["examples"] if e["band"] == "top"]
        np.testing.assert_allclose(top, np.sort(column[column > 0])[::-1][:4], **CLOSE)
        assert sum(b["tokens"] for b in record["histogram"]) == (column > 0).sum()
        for near in record["nearest"]:
            assert near["both"] == ((column > 0) & (dense[:, near["other"]] > 0)).sum()
        assert view.save(tmp_path / f"{feature}.html").exists()
    (one,) = summarise(sae, model, store, wanted[-1])
    assert one.density["max"] == pytest.approx(dense[:, wanted[-1]].max(), rel=1e-4)


class MadeActivations(Activations):
    """A context a document."""

    def documents(self, split: str, rows: np.ndarray) -> np.ndarray:
        return rows // POSITIONS


@pytest.fixture(scope="module")
def acts(model: OneLayerModel, tmp_path_factory: pytest.TempPathFactory) -> Activations:
    """Three splits of a text of four words, so that each often follows each."""
    rng = np.random.default_rng(1)
    texts = {
        split: rng.integers(100, 104, (n, CONTEXT_LENGTH)).astype(np.uint16)
        for split, n in (("train", 5), ("select", 3), ("test", 3))
    }
    stores = {split: made_store(model, text, tmp_path_factory.mktemp(split)) for split, text in texts.items()}
    return MadeActivations(model, stores, {})


@pytest.mark.slow
@torch.no_grad()
def test_a_split_and_its_page(sae: SAE, acts: Activations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent fires on about half of the tokens; the features beside it do what they did, and the page has every child."""
    monkeypatch.setattr("saelib.split.effects.MOST_CHILDREN", 2)
    x, width = acts.stores["test"].rows(slice(None)), sae.cfg.d_sae
    before = sae.encode(x)
    parent = int(((before > TAU_SHARE * before.amax(0)).float().mean(0) - 0.5).abs().argmin())
    children = ChildrenConfig(n_steps=20, batch_on=64, batch_weak=16, batch_off=64)
    cfg = SplitConfig("automatic", least=20, most=2, K=8, seeds=1, controls=False, children=children)
    split = split_feature(sae, parent, acts, cfg)
    after, rest = split.sae.encode(x), np.delete(np.arange(width), parent)
    old, new = before[:, rest], after[:, rest]
    both = (old > 0) & (new > 0)
    if sae.cfg.architecture == "topk":  # a threshold each takes the competition's place
        assert both.sum() > 0.75 * max((old > 0).sum(), (new > 0).sum())
    else:
        assert torch.equal(old > 0, new > 0)
    torch.testing.assert_close(new[both], old[both], **CLOSE)
    on = before[:, parent] > split.parent.tau
    share = (after[on][:, split.numbers] > 0).float().mean(0)
    np.testing.assert_allclose(split.children["share"], share, **CLOSE)
    assert sorted(split.numbers) == list(range(width, after.shape[1])) and share.max() > 0
    html = children_page(split).save(tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.count('<section class="card"') == len(split.numbers)
    assert all(f'id="child-{number}"' in html for number in split.numbers)


def test_quality_is_that_of_the_saes_own_reconstruction(sae: SAE, model: OneLayerModel, store: ActivationStore) -> None:
    quality = sae_quality(sae, model, store, 4)
    with torch.no_grad():
        x = model.activations(torch.from_numpy(store.contexts[:4].astype(np.int64)))[:, 1:].reshape(-1, D_IN)
        acts = sae.encode(x)
        x_hat = sae.decode(acts, x)
    fvu = (x_hat - x).square().sum() / (x - x.mean(0)).square().sum()
    assert quality.fvu == pytest.approx(float(fvu), rel=1e-4)
    assert quality.l0 == pytest.approx(float((acts > 0).float().sum(1).mean()), rel=1e-6)


def test_an_sae_saves_itself(sae: SAE, tmp_path: Path) -> None:
    again = load_sae(sae.save(tmp_path / "again"))
    assert again.cfg == sae.cfg
    x = torch.randn(8, D_IN, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x).x_hat, sae(x).x_hat)


def test_a_threshold_that_is_not_finite_is_refused() -> None:
    sae = load_sae(FOLDER / "jumprelu").requires_grad_(False)
    sae.threshold[3] = float("nan")
    with pytest.raises(UserError, match="threshold of an SAE must be finite"):
        Encoder(sae)


def test_topk_takes_blocks_of_all_features(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """TopK computes every feature even for one: its blocks must be as short as for all of them."""
    sizes: list[int] = []
    for method in ("encode_feature", "encode_features"):
        encode = getattr(SAE, method)
        monkeypatch.setattr(SAE, method, lambda self, x, f, encode=encode: sizes.append(len(x)) or encode(self, x, f))
    longest = []
    for name in ("standard", "topk"):
        sae = load_sae(FOLDER / name).requires_grad_(False)
        wide = init_random(dataclasses.replace(sae.cfg, d_sae=4096), torch.Generator().manual_seed(0))
        for look in (
            lambda w=wide: tools.activation_density(w, store, [0]),
            lambda w=wide: feature_activations(store, w, 0),
        ):
            sizes.clear()
            look()
            longest.append(max(sizes))
    whole, part = min(8192, store.n_tokens), min(4096, store.n_tokens)
    assert part > 1024 and longest == [whole, part, 1024, 1024]
