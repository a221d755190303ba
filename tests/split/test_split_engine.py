"""The split engine on a planted split: text, model and SAE are made by hand, so that what must be found is known.

A token `term` has the parent's direction; after `red`, `green` or `blue` one more direction of its own. The same three
directions also stand on other tokens, where the parent is silent: a child that reads its direction alone leaks.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
from scipy.sparse import csc_array
from torch import Tensor

import saelib
import saelib.split.engine as engine
import saelib.split.parent as parent_module
from saelib.acts.activations import Activations
from saelib.acts.filter import filter_view
from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.errors import UserError
from saelib.lm.model import LanguageModel
from saelib.report.split_report import write_split
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.stream import Firings, feature_activations, stream
from saelib.split import controls, how_many
from saelib.split.children import ChildrenConfig, Dictionary, Pools, train_children
from saelib.split.detectors import mcc
from saelib.split.effects import child_effects
from saelib.split.engine import SplitConfig, Work, make_product, split_feature
from saelib.split.exported import as_jumprelu, child_numbers, replace_parent, thresholds_at
from saelib.split.how_many import choose_K, fvu_on
from saelib.split.methods import Task, method
from saelib.split.names import best_other, name_child
from saelib.split.parent import Samples, gather, parent_target, sample_rows
from saelib.split.result import Split
from saelib.split.silent import silent_firings
from saelib.split.stability import iou, matched_iou, overall, stability
from saelib.split.swap import swap_table
from saelib.split.tokens import SPLITS, TokenSet
from saelib.split.verdict import Verdict
from saelib.study.texts import activations

FOLDER = Path(__file__).parents[1] / "data" / "saelens"
KINDS = sorted(path.name for path in FOLDER.iterdir())
D = 24
HOOK = "made.hook"
COLOURS = ("red", "green", "blue")
FILLERS = tuple(f"word{i}" for i in range(36))
WORDS = ("<bos>", "<eos>", "term", "faint", *COLOURS, *FILLERS)
TERM, FAINT, RED, FILLER = 2, 3, 4, 7
N_REST = 8
PARENT = 5
"""The parent's number in the made SAE; the others are directions of the rest."""
Q = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1)))[0].T
"""Rows: the parent's direction, three of the children, eight of the rest."""
_NOISE = torch.randn(4096, D, generator=torch.Generator().manual_seed(2))
_SIZE = torch.rand(4096, generator=torch.Generator().manual_seed(3))
_REST = torch.rand(4096, N_REST, generator=torch.Generator().manual_seed(4))


class PlantedModel(LanguageModel):
    """Activations as planted, from a token, the one before it and its place; logits linear in them."""

    name = key = "planted"
    hook_name = HOOK
    center_writing_weights = False
    bos_token, eos_token = WORDS[:2]

    def __init__(self) -> None:
        model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>")
        self.tokenizer = tokenizers.Tokenizer(model)
        self.tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        self.unembed = torch.randn(D, len(WORDS), generator=torch.Generator().manual_seed(5))

    n_ctx = property(lambda self: POSITIONS + 1)
    d_vocab = property(lambda self: len(WORDS))
    d_in = property(lambda self: D)
    W_U = property(lambda self: self.unembed)

    def activations(self, tokens: Tensor) -> Tensor:
        before = torch.nn.functional.pad(tokens, (1, 0))[:, :-1]
        place = torch.arange(tokens.shape[1])
        mix = (before * 1009 + tokens * 31 + place * 577) % 4096
        x = 0.05 * _NOISE[mix] + 0.2
        x += (tokens == TERM)[..., None] * (2.5 + _SIZE[mix])[..., None] * Q[0]
        x += (tokens == FAINT)[..., None] * 0.8 * Q[0]
        for c in range(3):
            own = (tokens == TERM) & (before == RED + c)
            elsewhere = (tokens >= FILLER) & (tokens < FILLER + 12) & (tokens % 3 == c)
            x += (own | elsewhere)[..., None] * 1.5 * Q[1 + c]
        x += ((_REST[mix] > 0.8) * (1.0 + _REST[mix])) @ Q[4 : 4 + N_REST]
        return x.bfloat16().float()

    def splice(self, tokens: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        return self.activations(tokens), lambda x, at=None: (x if at is None else x[at]) @ self.unembed


class PlantedActivations(Activations):
    """Two contexts a document."""

    def documents(self, split: str, rows: np.ndarray) -> np.ndarray:
        return rows // POSITIONS // 2


def planted_text(n_contexts: int, seed: int) -> np.ndarray:
    """Fillers, in which pairs (colour or filler, term) and faint words are sown."""
    rng = np.random.default_rng(seed)
    contexts = rng.integers(FILLER, len(WORDS), (n_contexts, POSITIONS + 1)).astype(np.uint16)
    contexts[:, 0] = 0
    for row in contexts:
        for at in range(2, POSITIONS, 5):
            row[at] = TERM
            if rng.random() < 0.6:
                row[at - 1] = RED + rng.integers(3)
        row[rng.integers(1, POSITIONS // 5 - 1, 3) * 5 + 5] = FAINT
    return contexts


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    model, stores = PlantedModel(), {}
    for seed, (split, n) in enumerate({"train": 70, "select": 40, "test": 40}.items()):
        folder, contexts = tmp_path_factory.mktemp(split), planted_text(n, seed)
        x = model.activations(torch.from_numpy(contexts.astype(np.int64)))[:, 1:].reshape(-1, D)
        (folder / "acts.bin").write_bytes(x.bfloat16().view(torch.int16).numpy().tobytes())
        facts = {"key": split, "d_in": D, "n_contexts": n, "hook_name": HOOK, "center_writing_weights": False}
        stores[split] = ActivationStore(folder, facts, contexts)
    return PlantedActivations(model, stores, {})


@torch.no_grad()
def made_sae() -> SAE:
    """The parent and the rest as they are planted; nothing reads the children's directions."""
    sae = SAE(SAEConfig(D, N_REST + 1, HOOK, "planted", False))
    rows = torch.cat([Q[4 : 4 + PARENT], Q[:1], Q[4 + PARENT : 4 + N_REST]])
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows.T)
    sae.b_dec.fill_(0.2)
    sae.b_enc.fill_(-0.4)
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def sae() -> SAE:
    return made_sae()


@pytest.fixture(scope="module")
def split(acts: Activations, sae: SAE) -> Split:
    cfg = SplitConfig(contexts="automatic", K=6, seeds=2, children=ChildrenConfig(n_steps=1500))
    return split_feature(sae, PARENT, acts, cfg)


# --- a planted split, end to end ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_planted_child_is_found(split: Split) -> None:
    assert {c.name for c in split.contexts if c.primary} == {f'after "{colour}"' for colour in COLOURS}
    for c, colour in enumerate(COLOURS):
        own = split.children[split.children["context"] == f'after "{colour}"']
        best = own.loc[own["mcc"].idxmax()]
        assert best["mcc"] >= 0.8 and best["mcc_low"] <= best["mcc"] <= best["mcc_high"]
        assert best["added_low"] > 0 and best["added"] > 0.5
        assert best["leak"] < 0.1 and best["precision"] > 0.8
        assert best["name"] == f"after “{colour}”" and best["name_mcc"] > 0.8 and best["rest_mcc"] < 0.3
        assert best["rest_feature"] != PARENT
        row = split.sae.W_dec[int(best["feature"])].detach()
        assert (
            int((Q @ row).argmax()) == 1 + c and float(Q[1 + c] @ row) > 0.8
        )  # beside what the core holds of all three
        assert abs(best["cosine_parent"]) < 0.4 and best["copy_of"] == -1
    assert split.verdict is Verdict.SPLIT and "3 of 3" in split.verdict_text
    assert split.stability is not None and split.stability > 0.5


@pytest.mark.slow
def test_from_the_filter_to_what_is_written_the_planted_tree_stands(
    split: Split, acts: Activations, sae: SAE, tmp_path: Path
) -> None:
    """The parent's tokens are those planted, its children are in the written tables, and each is on in one branch alone."""
    for s in SPLITS:
        store = acts.stores[s]
        kept = filter_view(store, feature_activations(store, sae, PARENT), split.parent.tau, "token")
        np.testing.assert_array_equal(kept.index, np.flatnonzero(store.token_ids == TERM))
        np.testing.assert_array_equal(kept.index, split.tokens.on[s].rows)
    page = write_split(split, tmp_path / "out")
    html, folder = page.read_text(encoding="utf-8"), page.parent
    record = json.loads((folder / "split.json").read_text())
    assert (record["verdict"], record["parent"]["feature"]) == ("split", PARENT)
    children, verdict = (pd.read_csv(folder / f"{name}.csv") for name in ("children", "verdict"))
    assert verdict.set_index("context")["passed"].loc[[f'after "{colour}"' for colour in COLOURS]].all()
    on, written = acts.stores["test"], load_sae(folder / "sae").requires_grad_(False)
    rows = np.flatnonzero(on.token_ids == TERM)
    before = acts.beside("test", rows, -1)
    for c, colour in enumerate(COLOURS):
        best = max((r for r in record["children"] if r["context"] == f'after "{colour}"'), key=lambda r: r["mcc"])
        assert best["mcc"] > 0.8 and best["name"] == f"after “{colour}”"
        row = children.set_index("feature").loc[best["feature"]]
        assert row["mcc"] == pytest.approx(best["mcc"]) and f'id="child-{best["feature"]}"' in html
        fires = written.encode_feature(on.rows(rows), best["feature"]).numpy() > 0
        shares = [fires[before == RED + other].mean() for other in range(3)]
        assert shares.pop(c) > 0.8 and max(shares) < 0.2


def test_children_are_sorted_and_numbered_after_the_old_features(split: Split) -> None:
    assert split.children["name_mcc"].is_monotonic_decreasing
    assert split.children["feature"].tolist() == split.numbers
    assert sorted(split.numbers) == list(range(N_REST + 1, N_REST + 1 + len(split.children)))
    assert split.sae.cfg.d_sae == N_REST + 1 + len(split.children)
    fires = split.sae.encode(split.tokens.on["test"].x)[:, split.numbers].detach().numpy() > 0
    np.testing.assert_allclose(split.children["share"], fires.mean(0), atol=1e-3)
    np.testing.assert_allclose(split.relations["iou"], iou(fires, fires), atol=0.02)


def test_controls_do_worse_and_permuted_labels_give_nothing(split: Split) -> None:
    rows = split.controls.set_index("name")
    product = rows.loc["rest + children"]
    assert product["S_2"] > 0.8
    assert abs(rows.loc["permuted labels", "S_2"]) < 0.1
    for name in ("rest alone", "quantiles of the parent"):
        assert rows.loc[name, "S_2"] < 0.3, name
    assert rows.loc["random decoder", "S_2"] < product["S_2_low"] and rows.loc["k-means", "S_2"] < product["S_2_low"]
    assert product["leak"] < 0.1 < rows.loc["k-means", "leak"]
    assert product["fvu_on_p"] == rows["fvu_on_p"].min()
    assert rows.loc["children of another parent", "S_2"] < 0.3
    assert split.added[2].low > 0.5


@torch.no_grad()
def test_a_childs_effect_is_the_next_tokens_loss_of_log_probability(split: Split, acts: Activations) -> None:
    """By hand on a model whose logits are linear: log p(next | x) - log p(next | x - c e), on the same tokens."""
    on, number = split.tokens.on["test"], split.numbers[0]
    fires = split.sae.encode_features(on.x, torch.tensor(split.numbers)).numpy() > 0
    found = np.flatnonzero(fires[:, 0] & (on.rows % POSITIONS < POSITIONS - 1))[:20]
    only = np.zeros_like(fires)
    only[found] = fires[found]
    row = child_effects(acts, split.sae, [number], on, only).iloc[0]
    x = on.x[found]
    added = split.sae.encode(x)[:, [number]] * split.sae.W_dec[number]
    unembed = acts.model.W_U
    log_p = [
        (y @ unembed).log_softmax(-1)[torch.arange(len(x)), torch.from_numpy(on.next[found])] for y in (x, x - added)
    ]
    assert row["tokens"] == 20
    assert row["effect"] == pytest.approx(float((log_p[0] - log_p[1]).mean()), abs=1e-5)
    assert row["low"] < row["effect"] < row["high"] and row["random"] != row["effect"]
    none = child_effects(acts, split.sae, [number], on, np.zeros_like(fires)).iloc[0]
    assert none["tokens"] == 0 and np.isnan(none["effect"])
    assert list(split.effects["feature"]) == split.numbers[: len(split.effects)]


@torch.no_grad()
def test_leak_on_test_counts_every_silent_token(split: Split, acts: Activations, sae: SAE) -> None:
    """Against every token of test encoded at once; the tokens that are held are a sample, here of few."""
    tokens = split.tokens
    few = {**tokens.off, "test": tokens.off["test"].where(np.arange(50))}
    work = Work.of(acts, dataclasses.replace(tokens, off=few), sae, "automatic")
    product = make_product(work, SplitConfig(K=6, children=ChildrenConfig(n_steps=300)))
    new, numbers = product.made.sae, np.arange(N_REST + 1, N_REST + 1 + len(product.made.theta))
    found = silent_firings(acts, tokens, work.labels, new, numbers)
    assert found is not None
    x, parent = acts.read("test", np.arange(acts.stores["test"].n_tokens)), slice(PARENT, PARENT + 1)
    silent = (sae.encode(x)[:, parent] == 0).numpy()
    fires = (new.encode(x)[:, numbers] > 0).numpy()
    assert ((found.acts > 0).sum(0) == (fires & silent).sum(0)).all() and (fires & silent).any()
    counted = work.leak(product.made._replace(silent=found))
    np.testing.assert_array_equal(counted.firings, fires.sum(0))
    both = [i.value + j.value for i, j in zip(counted.foreign, counted.missed, strict=True)]
    np.testing.assert_allclose(both, (fires & silent).sum(0) / np.maximum(fires.sum(0), 1), atol=1e-6)
    assert silent_firings(acts, dataclasses.replace(tokens, silent=None), work.labels, new, numbers) is None


def test_random_directions_find_no_children(split: Split, acts: Activations, sae: SAE) -> None:
    work = Work.of(acts, split.tokens, sae, "automatic")
    g = torch.Generator().manual_seed(0)
    W, E = torch.randn(D, 6, generator=g), torch.nn.functional.normalize(torch.randn(6, D, generator=g), dim=1)
    made = work.install(Dictionary(W, -(work.pools.x_on.mean(0) @ W), E))
    assert work.alone(made.acts["on"]).S[1].value < split.separation["children"].S[1].value - 0.3


def test_the_swap_lowers_the_error_on_the_parent_and_leaves_the_rest(split: Split) -> None:
    on, overall = split.swap.loc["on P"], split.swap.loc["overall"]
    assert on["fvu_after"] < 0.6 * on["fvu_before"]
    assert overall["fvu_after"] < overall["fvu_before"] + 1e-3
    assert on["l0_before"] < on["l0_after"] < on["l0_before"] + 2


@pytest.mark.slow
def test_the_split_is_given_before_its_controls_are_trained(split: Split, acts: Activations, sae: SAE) -> None:
    early: list[Split] = []
    cfg = SplitConfig(contexts="automatic", K=4, seeds=2, children=ChildrenConfig(n_steps=60))
    last = split_feature(sae, PARENT, acts, cfg, early.append)
    assert [s.stability is None for s in (*early, last)] == [True, False]
    assert len(early[0].controls) == 3 and set(early[0].controls["name"]) < set(last.controls["name"])
    pd.testing.assert_frame_equal(early[0].children.drop(columns="stability"), last.children.drop(columns="stability"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_split(acts: Activations, sae: SAE) -> None:
    cfg = SplitConfig(contexts="automatic", K=4, seeds=1, controls=False, children=ChildrenConfig(n_steps=60))
    one, two = (split_feature(sae, PARENT, acts, cfg) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.sae.parameters(), two.sae.parameters(), strict=True))
    assert one.stability is None
    pd.testing.assert_frame_equal(one.children, two.children)


def test_contexts_of_each_kind_can_be_limited(split: Split, acts: Activations, sae: SAE) -> None:
    children = ChildrenConfig(n_steps=60)
    cfg = SplitConfig(contexts="automatic", most=1, K=4, seeds=1, controls=False, children=children)
    kinds = [context.kind for context in split_feature(sae, PARENT, acts, cfg).contexts]
    assert len(kinds) == len(set(kinds)) < len(split.contexts)


def test_the_feature_of_the_rest_that_says_a_name_best() -> None:
    """By hand: of two features the second marks the name on select; on test it marks half of it."""
    says = {
        "select": np.array([[True], [True], [False], [False]]),
        "test": np.array([[True], [True], [False], [False]]),
    }
    select = csc_array([[1.0, 2.0], [0, 2.0], [1.0, 1.0], [0, 0]])
    test = csc_array([[0, 2.0], [0, 0.5], [3.0, 0], [0, 0]])
    feature, found = best_other({"select": select, "test": test}, says)
    assert feature.tolist() == [1] and found[0] == pytest.approx(mcc(*map(np.array, (1, 0, 1, 2))))


# --- training children -------------------------------------------------------------------------------------------------


def made_pools() -> Pools:
    g = torch.Generator().manual_seed(0)

    def draw(n: int, d: int = 8) -> Tensor:
        return torch.randn(n, d, generator=g)

    return Pools(draw(400), draw(400), draw(400, 1)[:, 0].abs(), draw(60), draw(60), draw(60, 1)[:, 0].abs(), draw(300))


def test_training_is_deterministic_and_respects_K() -> None:
    pools = made_pools()
    cfg = ChildrenConfig(K=5, n_steps=80, revive_every=30)
    one, two, other = (train_children(pools, dataclasses.replace(cfg, seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.E, other.E)
    assert one.W.shape == (8, 5) and one.b.shape == (5,) and one.E.shape == (5, 8)
    torch.testing.assert_close(one.E.norm(dim=1), torch.ones(5))
    x = pools.x_on[:3]
    torch.testing.assert_close(one.encode(x), (x @ one.W + one.b).clamp_min(0))


@pytest.mark.parametrize("start", ["rows", "kmeans++", "random"])
def test_every_start_and_the_metric_lower_the_error(start: str) -> None:
    pools = made_pools()
    pools = pools._replace(
        y_on=torch.relu(pools.x_on[:, :1]) * torch.ones(8), y_weak=torch.relu(pools.x_weak[:, :1]) * torch.ones(8)
    )
    for whiten in (0.0, 0.5):
        cfg = ChildrenConfig(
            K=4, l1=0.01, l1_off=0.0, off_weight=0.0, n_steps=500, revive_every=100, start=start, whiten=whiten
        )
        found = train_children(pools, cfg)
        error = (found.encode(pools.x_on) @ found.E - pools.y_on).square().sum() / pools.y_on.square().sum()
        assert float(error) < 0.2


def test_more_children_than_tokens_and_a_frozen_decoder() -> None:
    pools = made_pools()._replace()
    few = pools._replace(x_on=pools.x_on[:3], y_on=pools.y_on[:3], a_on=pools.a_on[:3])
    assert train_children(few, ChildrenConfig(K=7, n_steps=5)).E.shape == (7, 8)
    cfg = ChildrenConfig(K=5, frozen_decoder=True, start="random", n_steps=5, revive_every=2)
    long = dataclasses.replace(cfg, n_steps=50)
    torch.testing.assert_close(train_children(pools, cfg).E, train_children(pools, long).E)


def test_a_price_on_off_parent_tokens_lowers_firing_there() -> None:
    pools = made_pools()
    free, priced = (
        train_children(pools, ChildrenConfig(K=6, l1=0.02, l1_off=p, off_weight=w, n_steps=300))
        for p, w in ((0.0, 0.0), (1.1, 3.0))
    )
    rates = [float((d.encode(pools.x_off) > 0).float().mean()) for d in (free, priced)]
    assert rates[1] < 0.6 * rates[0], rates


def test_the_error_on_off_parent_tokens_alone_lowers_what_is_written_there() -> None:
    pools = made_pools()
    cfg = ChildrenConfig(K=6, l1=0.02, l1_off=0.0, n_steps=300)
    free, weighed = (train_children(pools, dataclasses.replace(cfg, off_weight=w)) for w in (0.0, 3.0))
    written = [float((d.encode(pools.x_off) @ d.E).square().sum()) for d in (free, weighed)]
    assert written[1] < 0.6 * written[0], written


def test_beyond_the_core_nothing_of_the_parent_is_left() -> None:
    hand = Pools(
        torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [2.0, 5.0]]), torch.tensor([1.0, 2.0]),
        torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]), torch.tensor([0.5]), torch.zeros(0, 2),
    )  # fmt: skip
    torch.testing.assert_close(hand.core(), torch.tensor([1.2, 2.0]))  # (2 + 4, 0 + 10) / 5
    left = hand.beyond_core()
    torch.testing.assert_close(left.y_on, torch.tensor([[0.8, -2.0], [-0.4, 1.0]]))
    torch.testing.assert_close(left.y_weak, torch.tensor([[0.4, 0.0]]))
    left = made_pools().beyond_core()
    assert float((left.a_on[:, None] * left.y_on).sum(0).abs().max()) < 1e-3
    assert float(left.core().abs().max()) < 1e-5


def test_fvu_of_no_children_and_of_perfect_ones() -> None:
    pools = made_pools()
    silent = Dictionary(torch.zeros(8, 1), torch.tensor([-1.0]), torch.ones(1, 8))
    left = pools.beyond_core().y_on.square().sum() / (pools.y_on - pools.y_on.mean(0)).square().sum()
    assert fvu_on(silent, pools) == pytest.approx(float(left), rel=1e-5)
    exact = pools._replace(y_on=pools.x_on.clone(), a_on=torch.zeros(400))
    both = Dictionary(
        torch.cat([torch.eye(8), -torch.eye(8)], 1), torch.zeros(16), torch.cat([torch.eye(8), -torch.eye(8)])
    )
    assert fvu_on(both, exact) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"K": 0}, "K of children"), ({"n_steps": 0}, "n_steps"), ({"l1": -1.0}, "l1 of children"),
     ({"lr": math.nan}, "lr of children"), ({"start": "here"}, "start must be")],
)  # fmt: skip
def test_bad_settings_of_children_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        ChildrenConfig(**changes)


@pytest.mark.parametrize(
    ("fvu", "K"),
    [((0.5, 0.4, 0.39, 0.385, 0.384), 16), ((0.5, 0.49, 0.4, 0.39, 0.389), 32), ((0.9, 0.7, 0.5, 0.3, 0.1), 128),
     ((0.5, 0.49, 0.48, 0.47, 0.46), 8)],
)  # fmt: skip
def test_the_rule_for_K(fvu: tuple[float, ...], K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest K after which no doubling gains 0.02."""
    values, asked = iter(fvu), []

    def trained(pools: Pools, cfgs: list[ChildrenConfig], progress: object) -> list[None]:
        asked.extend((cfg.K, cfg.n_steps) for cfg in cfgs)
        return [None for _ in cfgs]

    monkeypatch.setattr(how_many, "train_several", trained)
    monkeypatch.setattr(how_many, "fvu_on", lambda found, pools: next(values))
    chosen, curve = choose_K(made_pools(), made_pools(), ChildrenConfig())
    assert chosen == K and sorted(asked) == [(k, how_many.K_STEPS) for k in (8, 16, 32, 64, 128)]
    assert curve.loc[curve["chosen"], "K"].tolist() == [K] and curve["fvu"].tolist() == list(fvu)
    assert choose_K(made_pools(), made_pools(), ChildrenConfig(), 9)[0] == 9


def test_bad_settings_of_a_split_are_refused() -> None:
    with pytest.raises(UserError, match="seeds must be at least 1"):
        SplitConfig(seeds=0)
    with pytest.raises(UserError, match="K must be at least 1"):
        SplitConfig(K=0)


@pytest.mark.slow
def test_children_of_another_method(acts: Activations, sae: SAE) -> None:
    """The product is what the method gives, in the parent's place; children as they are trained are a row to beat."""
    seen: list[int] = []

    @method("coloured", "local", "", K=5, most_leak=0.5)
    def coloured(task: Task) -> Dictionary:
        seen.append(task.seed)
        return train_children(task.targets, task.config)

    cfg = SplitConfig(contexts="automatic", seeds=2, children=ChildrenConfig(n_steps=300), method="coloured")
    found = split_feature(sae, PARENT, acts, cfg)
    assert seen == [0, 1] and found.k_curve["K"].tolist() == [5] and found.stability is not None
    assert found.method.name == found.to_json()["method"] == "coloured"
    assert "children as they are trained" in set(found.controls["name"])
    plain = split_feature(sae, PARENT, acts, dataclasses.replace(cfg, method="children", K=5, seeds=1, controls=False))
    assert torch.equal(found.sae.W_enc, plain.sae.W_enc)
    assert "children as they are trained" not in set(plain.controls["name"])
    method("an-sae", "local", "")(lambda task: sae)
    with pytest.raises(UserError, match="a method that makes children must give a Dictionary; got SAE: register it"):
        split_feature(sae, PARENT, acts, dataclasses.replace(cfg, method="an-sae"))
    held = dataclasses.replace(cfg, method="held", seeds=1, controls=False)
    method("held", "local", "", K=5, most_leak=-1.0)(coloured)
    with pytest.raises(UserError, match="keep to the leak it may have"):
        split_feature(sae, PARENT, acts, held)


def test_methods_that_are_no_way_to_make_children(acts: Activations, sae: SAE) -> None:
    for name, K, message in (
        ("rest", None, "a split's method must give children; got rest"),
        ("all-data", None, "a split's method must give children; got all-data"),
        ("permuted", None, "a split's method must give children; got permuted"),
        ("children-16", 4, "children-16 makes 16 children; got K=4: leave K out"),
        ("nameed", None, "did you mean 'named'"),
    ):
        with pytest.raises(UserError, match=message):
            split_feature(sae, PARENT, acts, SplitConfig(method=name, K=K))


# --- the exported SAE --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> SAE:
    return load_sae(FOLDER / str(request.param)).requires_grad_(False)


def inputs(n: int = 300) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(7)) * 2


def made_children(K: int = 3) -> Dictionary:
    g = torch.Generator().manual_seed(8)
    return Dictionary(torch.randn(16, K, generator=g), torch.zeros(K), torch.randn(K, 16, generator=g))


def frequent(sae: SAE) -> int:
    return int((sae.encode(inputs()) > 0).sum(0).argmax())


def test_as_jumprelu(kind: SAE) -> None:
    x = inputs()
    out = as_jumprelu(kind, x)
    old, new = kind.encode(x), out.encode(x)
    assert out.cfg.architecture == "jumprelu" and out.cfg.normalize_activations == kind.cfg.normalize_activations
    if kind.cfg.architecture != "topk":
        assert torch.equal(new, old) and torch.equal(out(x).x_hat, kind(x).x_hat)
        return
    assert torch.equal((new > 0).sum(0), (old > 0).sum(0)), "as often as under TopK"
    pre = (out.encoder_input(x) @ out.W_enc + out.b_enc).detach()
    fired = (old > 0).any(0)
    assert float((pre - out.threshold).abs()[:, fired].min()) > 1e-4, "no token lies on a threshold"
    both = (new > 0) & (old > 0)
    assert int(both.sum()) > 500
    torch.testing.assert_close(new[both], old[both], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.decode(old, x), kind.decode(old, x), rtol=1e-4, atol=1e-4)


def test_thresholds_by_hand() -> None:
    pre = torch.tensor([[5.0, -1.0, 2.0, -3.0], [3.0, 4.0, 1.0, -2.0], [1.0, -2.0, 6.0, -1.0]])
    got = thresholds_at(pre, torch.tensor([2, 1, 0, 0]))
    # between 3 and 1; between 4 and 0, since nothing below 0 fires; above 6; never positive
    torch.testing.assert_close(got, torch.tensor([2.0, 2.0, 9.0, 0.0]))
    torch.testing.assert_close(thresholds_at(pre, torch.tensor([3, 1, 3, 0]))[:3], torch.tensor([0.5, 2.0, 0.5]))


def test_silent_children_leave_the_rest_and_the_core(kind: SAE) -> None:
    x, p = inputs(), frequent(kind)
    base = as_jumprelu(kind, x)
    core = torch.randn(16, generator=torch.Generator().manual_seed(9))
    out = replace_parent(base, p, made_children(), torch.full((3,), math.inf), core)
    old, new = base.encode(x), out.encode(x)
    assert child_numbers(base, 3) == [base.cfg.d_sae + j for j in range(3)] and not bool(new[:, -3:].any())
    rest = [j for j in range(base.cfg.d_sae) if j != p]
    for name, dim in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0), ("threshold", 0)):
        chosen = torch.tensor(rest)
        assert torch.equal(getattr(out, name).index_select(dim, chosen), getattr(base, name).index_select(dim, chosen))
    chosen = torch.tensor(rest)
    assert torch.equal(out.encode_features(x, chosen), base.encode_features(x, chosen))
    torch.testing.assert_close(out.W_dec[p].norm(), torch.tensor(1.0))
    without = old.clone()
    without[:, p] = 0
    expected = base.decode(without, x) + base.contributions(old, x)[:, [p]] * core
    torch.testing.assert_close(out(x).x_hat, expected, rtol=1e-4, atol=1e-4)


def test_children_write_their_rows_above_theta(kind: SAE) -> None:
    x, p = inputs(), frequent(kind)
    base, children, theta = as_jumprelu(kind, x), made_children(), torch.tensor([0.0, 0.5, 1.0])
    out = replace_parent(base, p, children, theta, torch.ones(16))
    c = children.encode(base.encoder_input(x))
    c = c * (c > theta)
    numbers = torch.tensor(child_numbers(base, 3))
    found = out.encode_features(x, numbers)
    torch.testing.assert_close(found, c, rtol=1e-4, atol=1e-4)
    silent = replace_parent(base, p, children, torch.full((3,), math.inf), torch.ones(16))
    scale = base.contributions(torch.ones(len(x), base.cfg.d_sae), x)[:, :1]
    torch.testing.assert_close(out(x).x_hat - silent(x).x_hat, scale * (found @ children.E), rtol=1e-3, atol=1e-3)


def test_the_exported_sae_loads_back(kind: SAE, tmp_path: Path) -> None:
    x = inputs()
    out = replace_parent(as_jumprelu(kind, x), frequent(kind), made_children(), torch.ones(3), torch.ones(16))
    again = load_sae(out.save(tmp_path / "sae"))
    assert again.cfg == out.cfg
    assert torch.equal(again.encode(x), out.encode(x)) and torch.equal(again(x).x_hat, out(x).x_hat)


def test_the_parents_target_is_what_the_decoder_must_write(kind: SAE) -> None:
    """Written in the parent's place, it makes the reconstruction exact, whatever the kind."""
    x, p = inputs(), frequent(kind)
    acts = kind.encode(x)
    scale = kind.contributions(torch.ones_like(acts), x)[:, :1] if kind.cfg.normalize_activations != "none" else 1.0
    acts[:, p] = 0
    y = parent_target(kind, p, x)
    torch.testing.assert_close(kind.decode(acts, x) + scale * y, x, rtol=1e-4, atol=1e-4)


def test_replacing_wants_a_jumprelu_sae_and_a_child() -> None:
    sae = load_sae(FOLDER / "standard").requires_grad_(False)
    with pytest.raises(UserError, match="a JumpReLU SAE and at least one child are needed; got standard, 3"):
        replace_parent(sae, 0, made_children(), torch.zeros(3), torch.ones(16))
    with pytest.raises(UserError, match="got jumprelu, 0"):
        replace_parent(as_jumprelu(sae, inputs()), 0, made_children(0), torch.zeros(0), torch.ones(16))


# --- the parent --------------------------------------------------------------------------------------------------------


def test_the_parents_target_by_hand() -> None:
    sae = SAE(SAEConfig(2, 2, HOOK, "planted", False)).requires_grad_(False)
    sae.W_enc.copy_(torch.eye(2))
    sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    sae.b_dec.copy_(torch.tensor([1.0, 1.0]))
    x = torch.tensor([[3.0, 6.0], [4.0, 0.0]])  # activations (2, 5) and (3, 0)
    torch.testing.assert_close(parent_target(sae, 1, x), torch.tensor([[0.0, 5.0], [0.0, -1.0]]))
    torch.testing.assert_close(parent_target(sae, 0, x), torch.tensor([[-1.0, 1.0], [3.0, -1.0]]))
    out = sae(x)
    torch.testing.assert_close(parent_target(sae, 1, x), x - out.x_hat + out.feature_acts[:, 1:] * sae.W_dec[1])


def test_gather_keeps_natural_counts(acts: Activations, sae: SAE) -> None:
    whole = gather(acts, sae, PARENT)
    few = gather(acts, sae, PARENT, samples=Samples(on=40, off_train=50, off=50))
    found = {split: Firings() for split in SPLITS}  # as a pass for many parents finds them
    for split, firings in found.items():
        stream(sae, acts.stores[split], np.array([PARENT + 1, PARENT]), [firings])
    tables = {s: f.table(acts.stores[s].n_tokens, 2)[:, [1]].toarray()[:, 0] for s, f in found.items()}
    passed = gather(acts, sae, PARENT, values=tables)
    assert whole.silent is not None and np.array_equal(few.silent, whole.silent)
    assert passed.tau == pytest.approx(whole.tau) and passed.n_on == whole.n_on
    np.testing.assert_allclose(passed.on["test"].parent, whole.on["test"].parent, rtol=1e-5)
    for s in SPLITS:
        store = acts.stores[s]
        assert whole.n_tokens[s] == store.n_tokens == whole.n_on[s] + whole.n_weak[s] + whole.n_off[s]
        assert whole.n_on[s] == (store.token_ids == TERM).sum() == len(whole.on[s])
        assert whole.n_weak[s] == (store.token_ids == FAINT).sum() == len(whole.weak[s])
        assert (few.n_on, few.n_weak, few.n_off) == (whole.n_on, whole.n_weak, whole.n_off)
        assert (len(few.on[s]), len(few.off[s])) == (40, 50)
        assert set(few.on[s].rows) <= set(whole.on[s].rows) and (np.diff(few.off[s].rows) > 0).all()
        on = whole.on[s]
        assert (on.parent > whole.tau).all() and (whole.off[s].parent == 0).all()
        assert torch.equal(on.x, store.rows(on.rows)) and (on.current == TERM).all()
        context, place = np.divmod(on.rows, POSITIONS)
        text = store.contexts.astype(np.int64)
        assert (on.previous == np.where(place > 0, text[context, place], -1)).all()
        assert (on.next == text[context, np.minimum(place + 2, POSITIONS)]).all()
    assert whole.tau == pytest.approx(2 / 9.23 * whole.on["select"].parent.max())


def test_gather_refuses_what_cannot_be_split(acts: Activations, sae: SAE) -> None:
    for feature in (-1, N_REST + 1):
        with pytest.raises(UserError, match=rf"feature must be in \[0, d_sae=9\); got {feature}"):
            gather(acts, sae, feature)
    dead = made_sae()
    dead.b_enc[PARENT] = -100
    with pytest.raises(UserError, match=f"the parent must fire on the text; got feature {PARENT} never fires on 5,080"):
        gather(acts, dead, PARENT)
    for tau in (1e9, -0.1, math.nan):
        with pytest.raises(UserError, match="tau must be a number from 0 to below the parent's largest activation"):
            gather(acts, sae, PARENT, tau)
    largest = float(gather(acts, sae, PARENT).on["select"].parent.max())
    with pytest.raises(UserError, match="on at least 200 train tokens"):
        gather(acts, sae, PARENT, 0.999 * largest)
    other = SAE(dataclasses.replace(sae.cfg, hook_name="elsewhere"))
    with pytest.raises(UserError, match="the SAE's hook must be that of the activations"):
        gather(acts, other, PARENT)
    with pytest.raises(UserError, match="d_in"):
        gather(acts, load_sae(FOLDER / "standard"), 0)


# --- names, stability, controls, swap ----------------------------------------------------------------------------------


def tokens_after(previous: list[int]) -> TokenSet:
    n = len(previous)
    same = np.full(n, TERM)
    return TokenSet(
        np.arange(n), torch.zeros(n, D), np.ones(n, np.float32), np.arange(n), np.array(previous), same, same
    )


def test_a_childs_name_by_hand() -> None:
    model = PlantedModel()
    red, green, blue = RED, RED + 1, RED + 2
    tokens = {
        "select": tokens_after([red] * 5 + [green] * 4 + [blue] * 6),
        "test": tokens_after([red, red, blue, blue]),
    }
    on_test = np.array([True, False, False, False])
    name = name_child(model, tokens, {"select": np.arange(15) < 5, "test": on_test})
    assert name.name == "after “red”" and name.mcc == pytest.approx(2 / math.sqrt(12))  # tp 1, fp 1, fn 0, tn 2
    both = name_child(model, tokens, {"select": np.arange(15) < 9, "test": np.array([True, True, False, False])})
    assert both.name == "after “red”, “green”" and both.mcc == pytest.approx(1.0)
    twice = name_child(model, tokens, {"select": np.arange(15) < 2, "test": on_test})  # fewer than 3 firings a token
    assert twice[:2] == ("no pattern in the neighbouring tokens", 0.0) and not twice.says["test"].any()
    assert name.says["test"].tolist() == [True, True, False, False] and name.says["select"].sum() == 5


def test_overlap_of_firings_by_hand() -> None:
    a = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 0]], dtype=bool)
    b = np.array([[0, 1], [0, 1], [1, 1], [1, 0], [0, 0], [0, 0]], dtype=bool)
    np.testing.assert_allclose(iou(a, b), [[0, 2 / 3], [2 / 3, 1 / 5]])
    np.testing.assert_allclose(matched_iou(a, b), [2 / 3, 2 / 3])
    assert matched_iou(a, a[:, ::-1]).tolist() == [1, 1]
    first = np.stack([a[:, 0], np.zeros(6, bool)], axis=1)
    assert matched_iou(a, first).tolist() == [1, 0]
    assert matched_iou(a, a[:, :1]).tolist() == [1, 0]  # the second has no partner
    each = stability(a, [a, first])
    assert each is not None and each.tolist() == [1, 0.5] and stability(a, []) is None
    # The first fires on 2 tokens, the second on 3.
    assert overall(each, a) == pytest.approx((2 * 1 + 3 * 0.5) / 5)
    assert overall(None, a) is None and overall(np.zeros(2), np.zeros((6, 2), bool)) == 0.0


def test_quantiles_by_hand() -> None:
    bands = controls.quantiles(np.array([0.5, 1.0, 1.5, 3.0, 9.0, -1.0]), np.array([0.0, 1.0, 2.0, 3.0]))
    assert bands.argmax(1).tolist() == [0, 1, 1, 2, 2, 0] and bands.sum(1).tolist() == [1.0] * 6


def test_controls_have_the_childrens_shape() -> None:
    pools, cfg = made_pools(), ChildrenConfig(K=4, n_steps=40)
    random = controls.random_decoder(pools, cfg, 1.0)
    for found in (random, controls.small_sae(pools, cfg), controls.k_means(pools, cfg)):
        assert found.E.shape == (4, 8)
        torch.testing.assert_close(found.E.norm(dim=1), torch.ones(4))
    g = torch.Generator().manual_seed(0)
    torch.testing.assert_close(random.E, torch.nn.functional.normalize(torch.randn(4, 8, generator=g), dim=1))


def test_swapping_for_itself_changes_nothing(acts: Activations, sae: SAE) -> None:
    rows = np.flatnonzero(acts.stores["test"].token_ids == TERM)
    table = swap_table(acts, sae, sae, rows)
    for name in ("fvu", "l0", "loss_recovered"):
        assert (table[f"{name}_before"] == table[f"{name}_after"]).all()
    x = acts.stores["test"].rows(rows)
    out = sae(x)
    fvu = (out.x_hat - x).square().sum() / (x - x.mean(0)).square().sum()
    assert table.loc["on P", "fvu_before"] == pytest.approx(float(fvu), rel=1e-4)
    assert table.loc["on P", "l0_before"] == pytest.approx(float((out.feature_acts > 0).sum(1).float().mean()))
    assert table["tokens"].tolist() == [len(rows), acts.stores["test"].n_tokens]


def test_a_deep_model_is_swapped_on_fewer_contexts(
    acts: Activations, sae: SAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts.model, "n_layers", 30, raising=False)
    rows = np.flatnonzero(acts.stores["test"].token_ids == TERM)
    tokens = swap_table(acts, sae, sae, rows)["tokens"]
    assert tokens["overall"] == 16 * POSITIONS < acts.stores["test"].n_tokens


def test_a_perfect_and_an_empty_sae_in_the_swap(acts: Activations) -> None:
    exact = SAE(SAEConfig(D, 2 * D, HOOK, "planted", False)).requires_grad_(False)
    signs = torch.cat([torch.eye(D), -torch.eye(D)])
    exact.W_dec.copy_(signs)
    exact.W_enc.copy_(signs.T)
    empty = SAE(exact.cfg).requires_grad_(False)  # gives 0, as zeroing does
    table = swap_table(acts, exact, empty, np.arange(0, 5000, 7))
    np.testing.assert_allclose(table["fvu_before"], 0.0, atol=1e-9)
    np.testing.assert_allclose(table["loss_recovered_before"], 1.0, atol=1e-6)
    np.testing.assert_allclose(table["loss_recovered_after"], 0.0, atol=1e-6)
    assert (table["l0_after"] == 0).all() and (table["fvu_after"] >= 1).all()


# --- what is returned --------------------------------------------------------------------------------------------------


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [n for v in (value.values() if isinstance(value, dict) else value) for n in numbers_in(v)]
    return [value] if isinstance(value, int | float) else []


def test_a_split_as_json(split: Split) -> None:
    record = json.loads(json.dumps(split.to_json(), allow_nan=False))
    wanted = {
        "verdict",
        "children",
        "separation",
        "added",
        "ceiling",
        "floor",
        "controls",
        "seconds",
        "seconds_training",
    }
    assert wanted <= set(record)
    assert all(math.isfinite(n) for n in numbers_in(record))
    assert record["verdict"] == "split" and record["K"] == len(record["children"]) == len(split.children)
    assert {"name", "share", "theta", "mcc", "added", "leak"} <= set(record["children"][0])
    for k in (1, 2, 4):
        assert record["separation"][f"S_{k}"] == pytest.approx(split.separation["rest + children"].S[k].value)
        assert record["added"][str(k)][0] == pytest.approx(split.added[k].value)
    assert record["floor"] < 0.3 < record["ceiling"] <= 1
    assert 0 < record["seconds_training"] < record["seconds"]
    permuted = next(row for row in record["controls"] if row["name"] == "permuted labels")
    assert permuted["fvu_on_p"] is None  # not a number there


def test_a_split_is_saved(split: Split, tmp_path: Path) -> None:
    folder = split.save(tmp_path / "out")
    assert json.loads((folder / "split.json").read_text()) == json.loads(json.dumps(split.to_json()))
    assert len(pd.read_csv(folder / "children.csv")) == len(split.children)
    assert set(pd.read_csv(folder / "separation.csv")["dictionary"]) == {"rest + children", "children", "rest"}
    assert len(pd.read_csv(folder / "controls.csv")) == len(split.controls)
    x = split.tokens.on["test"].x
    assert torch.equal(load_sae(folder / "sae").encode(x), split.sae.encode(x))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a split is saved into a folder"):
        split.save(tmp_path / "file")


def test_which_child_fires_on_a_text(split: Split) -> None:
    frame = split.on("word30 red term word31 green term")
    assert frame["token"].tolist() == ["word30", "red", "term", "word31", "green", "term"]
    assert frame["position"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (frame["parent"] > split.parent.tau).tolist() == [False, False, True, False, False, True]
    best = split.children[split.children["mcc"] > 0.8].set_index("context")
    for at, colour in ((2, "red"), (5, "green")):
        number = best.loc[f'after "{colour}"', "feature"]
        column = next(c for c in frame if c.startswith(f"{number} "))
        assert (frame[column] > 0).tolist() == [row == at for row in range(6)]
    silent = best.loc['after "blue"', "feature"]
    assert not any(column.startswith(f"{silent} ") for column in frame)
    with pytest.raises(UserError, match="the text must hold a token on which the parent exceeds tau"):
        split.on("word30 red word31")


def test_the_parent_is_described(split: Split, acts: Activations) -> None:
    ids = acts.stores["test"].token_ids
    assert split.parent.rate == pytest.approx((ids == TERM).mean())
    assert split.parent.n_on["test"] == (ids == TERM).sum()
    assert split.parent.largest == split.tokens.on["test"].parent.max()
    assert split.parent.purity is None and split.parent.recall is None
    rows = split.parent.over_represented.set_index(["position", "token"])
    assert rows.loc[("current", "term"), "share_in_P"] == 1.0 and rows.loc[("current", "term"), "share_elsewhere"] == 0
    before = split.tokens.on["test"].previous
    assert rows.loc[("previous", "red"), "share_in_P"] == pytest.approx((before == RED).mean())


# --- the public functions ----------------------------------------------------------------------------------------------


def test_the_room_is_callable(acts: Activations, sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(engine, "split_feature", lambda *given: seen.append(given) or "made")
    assert saelib.split(sae, 3, acts, K=7, controls=False) == "made"
    assert seen == [(sae, 3, acts, SplitConfig(K=7, controls=False))]
    with pytest.raises(UserError, match=r"options of split are contexts, .*tau, K, .*; got colour, k"):
        saelib.split(sae, 3, acts, k=7, colour=1)
    assert saelib.load_sae is load_sae and saelib.activations is activations
    with pytest.raises(AttributeError, match="no attribute 'splice'"):
        _ = saelib.splice


def test_activations_of_a_text_of_ones_own() -> None:
    found = activations("mini", [f"Paper {i}: a long-standing rule of two-thirds. " * 90 for i in range(12)])
    assert set(found.stores) == set(SPLITS) and all(store.n_tokens > 0 for store in found.stores.values())
    context, place = np.divmod(np.arange(found.stores["train"].n_tokens), POSITIONS)
    assert (found.beside("train", context * POSITIONS + place, 0) == found.stores["train"].token_ids).all()
    assert len(np.unique(found.documents("train", np.arange(found.stores["train"].n_tokens)))) > 1
    with pytest.raises(UserError):
        activations("no-such-model", ["text"])
    with pytest.raises(UserError):
        activations("mini", "no-such-file.txt")


def test_an_overview_passes_the_contexts_that_a_split_passes(split: Split, acts: Activations, sae: SAE) -> None:
    """Few tokens of P are sampled and few silent ones, but leak is counted on all of these: of a sample no context passes."""
    n_on = split.parent.n_on["test"]
    few = Samples(on=n_on // 2, off_train=2000, off=100, swapped_on=4, swapped=4, unjudged=False)
    cfg = SplitConfig(
        "automatic", least=30, K=6, seeds=1, controls=False, samples=few, children=ChildrenConfig(n_steps=1500)
    )
    found = split_feature(sae, PARENT, acts, cfg)
    assert found.judgement.passed == split.judgement.passed > 0
    unasked = [c for c in found.separation["rest"].contexts if not c.judged]
    assert all(np.isnan(c.mcc[2].value) for c in unasked)


def test_a_large_store_or_sae_is_looked_at_in_parts(sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = np.random.default_rng(0).random(5000) < 0.4
    x = torch.randn(300, D, generator=torch.Generator().manual_seed(1))
    whole, target = sample_rows(chosen, 70), parent_target(sae, PARENT, x)
    assert len(whole) == 70 and chosen[whole].all() and whole.max() > 4000
    seen: list[int] = []
    monkeypatch.setattr(parent_module, "_ROWS", 512)

    def at_once(d_sae: int) -> int:
        seen.append(d_sae)
        return 64

    monkeypatch.setattr(parent_module, "rows_at_once", at_once)
    np.testing.assert_array_equal(sample_rows(chosen, 70), whole)
    np.testing.assert_array_equal(sample_rows(chosen, 5000), np.flatnonzero(chosen))
    torch.testing.assert_close(parent_target(sae, PARENT, x), target)
    assert seen == [sae.cfg.d_sae]
