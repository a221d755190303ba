"""Harvesting and serving: equal to transformer_lens, resumable, shuffled without copies; filters are views."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from saelib.acts.batches import GROUP_BATCHES, ShuffledBatches, View
from saelib.acts.filter import filter_view
from saelib.acts.store import POSITIONS, ActivationStore, harvest
from saelib.base.errors import UserError
from saelib.lm.mini_lm import PlainBlock
from saelib.lm.model import HOOK_NAME, OneLayerModel, load_embedded
from saelib.sae.initial import init_random
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.stream import feature_activations
from saelib.text.tokens import CONTEXT_LENGTH, TokenStore


@pytest.fixture(scope="module")
def model() -> OneLayerModel:
    return load_embedded()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """600 contexts of random tokens, a hyphen in every third."""
    folder = tmp_path_factory.mktemp("tokens")
    contexts = np.random.default_rng(0).integers(3, 8192, (600, CONTEXT_LENGTH)).astype(np.uint16)
    contexts[:, 0] = 0
    contexts.tofile(folder / "train.bin")
    splits = {"train": {"contexts": 600}}
    return TokenStore(folder, {"key": "made", "splits": splits})


@pytest.fixture(scope="module")
def harvested(model: OneLayerModel, tokens: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds their activations."""
    cache = tmp_path_factory.mktemp("harvested")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELIB_CACHE", str(cache))
        harvest(model, tokens, "train", 600)
    return cache


@pytest.fixture
def store(model: OneLayerModel, tokens: TokenStore, harvested: Path, empty_cache: Path) -> ActivationStore:
    """A copy of them for one test alone."""
    shutil.copytree(harvested, empty_cache, dirs_exist_ok=True)
    return harvest(model, tokens, "train", 600)


@pytest.fixture
def sae(store: ActivationStore) -> SAE:
    cfg = SAEConfig(d_in=store.d_in, d_sae=32, hook_name=HOOK_NAME, model_name="made", center_writing_weights=False)
    return init_random(cfg, torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_rows_are_transformer_lens_mlp_out_in_bf16(store: ActivationStore, model: OneLayerModel) -> None:
    tokens = torch.from_numpy(store.contexts[40:44].astype(np.int64))
    _, cache = model.hooked.run_with_cache(tokens, names_filter=HOOK_NAME)
    expected = cache[HOOK_NAME][:, 1:].flatten(0, 1)
    got = store.rows(slice(40 * POSITIONS, 44 * POSITIONS))
    torch.testing.assert_close(got, expected, rtol=2**-8, atol=1e-4)
    assert store.manifest["error_against_transformer_lens"] <= 1e-5
    assert store.manifest["center_writing_weights"] is False
    assert store.token_ids[40 * POSITIONS] == store.contexts[40, 1]


@pytest.mark.slow
def test_interrupted_harvest_resumes_to_the_same_bytes(
    store: ActivationStore, model: OneLayerModel, tokens: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path / "b"))
    calls: list[int] = []

    def stop(label: str, done: int, total: int) -> None:
        calls.append(done)
        if done == 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(model, tokens, "train", 600, progress=stop)
    calls.clear()
    resumed = harvest(model, tokens, "train", 600, progress=lambda label, done, total: calls.append(done))
    assert calls == [600], "chunks that were on disk are not computed again"
    assert (resumed.folder / "acts.bin").read_bytes() == (store.folder / "acts.bin").read_bytes()
    calls.clear()
    harvest(model, tokens, "train", 600, progress=lambda label, done, total: calls.append(done))
    assert calls == []


def test_plain_arithmetic_that_disagrees_is_refused(
    model: OneLayerModel, tokens: TokenStore, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainBlock, "mlp_out", lambda self, tokens: self.W_E[tokens])
    with pytest.raises(UserError, match="plain arithmetic must agree with transformer_lens"):
        harvest(model, tokens, "train", 8)
    assert not list(empty_cache.glob("activations/*/acts*"))


@pytest.mark.slow
def test_bf16_harvest_is_another_store_with_its_error_stated(
    store: ActivationStore, model: OneLayerModel, tokens: TokenStore
) -> None:
    quick = harvest(model, tokens, "train", 600, dtype="bfloat16")
    assert quick.key != store.key and quick.manifest["computed_in"] == "bfloat16"
    error = quick.manifest["error_against_transformer_lens"]
    assert 1e-4 < error <= 2e-2
    exact, rough = store.rows(slice(None)), quick.rows(slice(None))
    assert 1e-4 < float((exact - rough).abs().max() / exact.abs().max()) < 3e-2


@pytest.mark.slow
def test_serving_costs_little_and_memory_is_bounded_whatever_the_store(tmp_path: Path) -> None:
    """A store ten times the memory allowed: the process that serves from it grows by less than that."""
    allowed, d_in, batch = 64 * 2**20, 64, 1024
    n_contexts = 10 * allowed // (POSITIONS * d_in * 2) + 1
    path = tmp_path / "acts.bin"
    with path.open("wb") as file:  # ones and zeros, written in pieces
        piece = np.random.default_rng(0).integers(0, 2, (POSITIONS * 64, d_in)).astype(np.int16) * 0x3F80
        for _ in range(-(-n_contexts // 64)):
            file.write(piece.tobytes())
        file.truncate(n_contexts * POSITIONS * d_in * 2)
    assert path.stat().st_size >= 10 * allowed
    script = f"""
import sys, time
from pathlib import Path
import numpy as np, torch
from saelib.acts.batches import ShuffledBatches, View
from saelib.acts.store import ActivationStore
torch.set_num_threads(1)  # on a busy machine a second thread mostly waits, and waiting counts
manifest = {{"key": "made", "d_in": {d_in}, "n_contexts": {n_contexts}}}
store = ActivationStore(Path({str(tmp_path)!r}), manifest, np.zeros((1, 128), np.uint16))
batches = ShuffledBatches(View(store), {batch}, seed=0)
steps = store.n_tokens // {batch}
def peak():  # not ru_maxrss, which begins at what the process that started this one had reached
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM:")).split()[1])
try:  # the compiler that loads the loops takes memory once, whatever the store
    from saelib.base import kernels
    kernels.take_bfloat16(0, 1, np.zeros(1, np.int64), np.zeros((1, 1), np.uint16), np.zeros((1, 1), np.uint32))
except ImportError:
    pass
before = peak()
total, started = 0.0, time.process_time()
for step in range(steps):
    total += float(batches.batch(step)[0, 0])
seconds = time.process_time() - started
print(peak() - before, seconds / (steps * {batch}), total)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown_kib, seconds_a_token, total = map(float, done.stdout.split())
    assert total > 0
    assert grown_kib * 1024 < allowed, f"grew by {grown_kib / 1024:.0f} MiB"
    assert (
        seconds_a_token < 2e-6
    )  # under 1 microsecond on the quiet machine of docs/performance.md, with room for a busy one


@pytest.mark.parametrize("n_tokens", [5 * POSITIONS, 5 * POSITIONS - 1, 4 * POSITIONS + 1, 700])
def test_groups_are_slices_of_one_shuffled_order(store: ActivationStore, n_tokens: int) -> None:
    """Also where the last context of the view is short."""
    batches = ShuffledBatches(View(store, np.arange(n_tokens), "some"), 3, seed=5)
    for epoch in (0, 1):
        blocks = np.random.default_rng([5, epoch]).permutation(-(-n_tokens // POSITIONS))
        order = (blocks[:, None] * POSITIONS + np.arange(POSITIONS)).reshape(-1)
        order = order[order < n_tokens]
        size = 3 * GROUP_BATCHES
        for group in range(-(-n_tokens // size)):
            expected = np.sort(order[group * size : (group + 1) * size])
            assert batches.group_positions(epoch, group).tolist() == expected.tolist()


def test_shortened_store_is_named(store: ActivationStore, model: OneLayerModel, tokens: TokenStore) -> None:
    path = store.folder / "acts.bin"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"activation file must hold .*; got .*: delete "):
        harvest(model, tokens, "train", 600)


@pytest.mark.parametrize("position", [0, 300 * POSITIONS * 512 + 7, -1])
def test_a_flipped_bit_is_found_when_it_is_read(store: ActivationStore, position: int) -> None:
    """Each chunk when a process first reads from it: here of 256 contexts, so the fault is in chunk 0, 1 or 2."""
    path = store.folder / "acts.bin"
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    again = ActivationStore(store.folder, store.manifest, store.contexts)
    chunk = position % len(data) // (256 * POSITIONS * 512)
    for other in {0, 1, 2} - {chunk}:
        again.rows(np.array([other * 256 * POSITIONS]))
    message = (
        rf"activations must be as they were harvested; got .*acts.bin, contexts {256 * chunk} to \d+: delete \S+train-"
    )
    with pytest.raises(UserError, match=message):
        again.read(np.array([chunk * 256 * POSITIONS + 5]))
    with pytest.raises(UserError, match=message):
        list(again.blocks())
    with pytest.raises(UserError, match=message):
        list(ActivationStore(store.folder, store.manifest, store.contexts).chunks())


def test_chunks_are_the_rows_and_threads_share_them(store: ActivationStore) -> None:
    whole, found = store.rows(slice(None)), torch.full((store.n_tokens, store.d_in), torch.nan)
    for first in (0, 1):
        for rows, x in store.chunks(first, 2):
            assert found[rows].isnan().all() and rows.start // (256 * POSITIONS) % 2 == first
            found[rows] = x.float()
    assert torch.equal(found, whole)
    again = ActivationStore(store.folder, store.manifest, store.contexts)
    list(again.chunks())
    assert len(again._checked) == len(store.manifest["chunks"]) == 3
    (store.folder / "acts.bin").write_bytes((store.folder / "acts.bin").read_bytes()[:-512])
    with pytest.raises(UserError, match="activation file must be whole"):
        list(again.chunks())


def test_a_store_of_an_older_version_is_read_by_its_sha256(store: ActivationStore) -> None:
    size, data = 256 * POSITIONS * 512, (store.folder / "acts.bin").read_bytes()
    digests = [hashlib.sha256(data[i : i + size]).hexdigest() for i in range(0, len(data), size)]
    older = {**{k: v for k, v in store.manifest.items() if k != "checksum"}, "chunks": digests}
    assert torch.equal(ActivationStore(store.folder, older, store.contexts).rows(slice(None)), store.rows(slice(None)))
    assert [len(x) for _, x in ActivationStore(store.folder, older, store.contexts).chunks()] == [
        256 * POSITIONS
    ] * 2 + [88 * POSITIONS]
    with pytest.raises(UserError, match="as they were harvested"):
        ActivationStore(store.folder, {**older, "chunks": [digests[0][::-1], *digests[1:]]}, store.contexts).rows(
            slice(1)
        )


def test_a_damaged_manifest_is_named(store: ActivationStore, model: OneLayerModel, tokens: TokenStore) -> None:
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace('"d_in": 256', '"d_in": 255'))
    with pytest.raises(UserError, match=r"file must be as it was written; got .*manifest.json: delete \S+train-"):
        harvest(model, tokens, "train", 600)


@pytest.mark.slow
def test_a_harvest_killed_anywhere_goes_on(
    store: ActivationStore, model: OneLayerModel, tokens: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between data and checksum, between the two renames, with a part that a failing disk changed: equal bytes."""
    folder, whole = store.folder, (store.folder / "acts.bin").read_bytes()
    digests = [f"{digest}\n" for digest in store.manifest["chunks"]]
    chunk = 256 * POSITIONS * 512
    flipped = bytearray(whole)
    flipped[chunk + 99] ^= 1
    computed: list[int] = []
    for part, lines, expected in (
        (whole[: chunk + 5], digests[:1], [512, 600]),  # in the middle of the second chunk
        (whole[: 2 * chunk], digests[:1], [512, 600]),  # before its checksum
        (whole[: 2 * chunk], [digests[0], digests[1][:9]], [512, 600]),
        (flipped[: 2 * chunk], digests[:2], [512, 600]),
        (whole[: 2 * chunk], digests, [600]),
        (whole, digests, []),  # before the rename
        (whole + b"more", digests, []),
        (b"", [], [256, 512, 600]),
    ):
        for name in ("manifest.json", "acts.bin"):
            (folder / name).unlink(missing_ok=True)
        (folder / "acts.part").write_bytes(part)
        (folder / "acts.xxh3_128").write_text("".join(lines))
        computed.clear()
        again = harvest(model, tokens, "train", 600, progress=lambda label, done, total: computed.append(done))
        assert computed == expected
        assert (folder / "acts.bin").read_bytes() == whole and again.manifest == store.manifest
        assert sorted(path.name for path in folder.iterdir()) == ["acts.bin", "manifest.json"]
    (folder / "manifest.json").unlink()  # after the rename, before the manifest
    (folder / "acts.xxh3_128").write_text("".join(digests))
    computed.clear()
    harvest(model, tokens, "train", 600, progress=lambda label, done, total: computed.append(done))
    assert computed == [] and (folder / "acts.bin").read_bytes() == whole


def test_activations_that_are_not_finite_are_refused(
    model: OneLayerModel, tokens: TokenStore, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = PlainBlock.mlp_out, []

    def overflow(self: PlainBlock, tokens: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return plain(self, tokens) * (float("inf") if len(calls) == 4 else 1)  # the first is the check's

    monkeypatch.setattr(PlainBlock, "mlp_out", overflow)
    message = (
        r"harvest train: activations must be finite; got NaN or infinity in contexts 64 to 95 at blocks.0.hook_mlp_out"
    )
    with pytest.raises(UserError, match=message):
        harvest(model, tokens, "train", 600)
    assert not list(empty_cache.glob("activations/*/manifest.json"))


@pytest.mark.slow
def test_batches_visit_every_token_once_an_epoch_and_depend_on_seed_and_step_alone(store: ActivationStore) -> None:
    batches = ShuffledBatches(View(store), 512, seed=3)
    per_epoch = store.n_tokens // 512
    assert per_epoch > 2 * GROUP_BATCHES
    served = torch.cat([batches.batch(step) for step in range(per_epoch)])
    groups = [batches.group_positions(0, g) for g in range(-(-per_epoch // GROUP_BATCHES))]
    assert sorted(np.concatenate(groups).tolist()) == list(range(store.n_tokens)), "groups share the tokens out"
    whole = store.rows(slice(None))
    counts = Counter(row.numpy().tobytes() for row in whole)
    counts.subtract(row.numpy().tobytes() for row in served)
    assert min(counts.values()) >= 0 and sum(counts.values()) == store.n_tokens - len(served) < 512
    contexts = groups[0] // POSITIONS
    first = batches._order[:512]  # of the last group loaded
    assert len(np.unique(batches.group_positions(0, len(groups) - 1)[first] // POSITIONS)) > 40, (
        "a batch mixes contexts"
    )
    assert len(np.unique(contexts)) == -(-len(contexts) // POSITIONS), "whole contexts are read"
    again = ShuffledBatches(View(store), 512, seed=3)
    assert torch.equal(again.batch(per_epoch + 1), batches.batch(per_epoch + 1))
    into = torch.full((batches.batch_size, batches.d_in), torch.nan)
    assert batches.batch(per_epoch + 1, into) is into and torch.equal(into, again.batch(per_epoch + 1))
    with pytest.MonkeyPatch.context() as patch:  # without compiled loops
        patch.setattr("saelib.base.kernels.serve", lambda out: False)
        assert torch.equal(batches.batch(per_epoch + 1), into)
    other = ShuffledBatches(View(store), 512, seed=4)
    assert other.key != again.key and not torch.equal(other.batch(0), again.batch(0))
    assert not torch.equal(again.batch(0), again.batch(per_epoch)), "another order in the next epoch"


def test_read_is_rows(store: ActivationStore) -> None:
    rows = np.array([0, 1, 2, 7, 500, 501, store.n_tokens - 1])
    assert torch.equal(store.read(rows).float(), store.rows(rows))


def test_filters_keep_what_they_say(store: ActivationStore, sae: SAE) -> None:
    acts = feature_activations(store, sae, 5)
    x = store.rows(slice(None))
    torch.testing.assert_close(torch.from_numpy(acts), sae.encode(x)[:, 5].detach(), rtol=1e-4, atol=1e-4)
    tau = float(np.quantile(acts, 0.999))
    by_token, by_context = filter_view(store, acts, tau, "token"), filter_view(store, acts, tau, "context")
    assert by_token.index is not None and by_context.index is not None
    assert (acts[by_token.index] > tau).all() and by_token.n_tokens == (acts > tau).sum()
    kept = set((by_context.index // POSITIONS).tolist())
    assert kept == set((by_token.index // POSITIONS).tolist())
    assert by_context.n_tokens == len(kept) * POSITIONS
    assert filter_view(store, acts, tau, "none").n_tokens == store.n_tokens


def test_filtered_batches_serve_rows_of_the_view_only(store: ActivationStore, sae: SAE) -> None:
    acts = feature_activations(store, sae, 5)
    view = filter_view(store, acts, float(np.quantile(acts, 0.99)), "token")
    served = ShuffledBatches(view, 64, seed=0).batch(0)
    assert view.index is not None
    kept = {row.numpy().tobytes() for row in store.rows(view.index)}
    assert all(row.numpy().tobytes() in kept for row in served)


@pytest.mark.parametrize(
    ("tau", "by", "message"),
    [
        (1e9, "token", r"the filter must keep at least one token; .*tau=1e\+09: lower tau"),
        (float("nan"), "token", "tau must be a finite number of at least 0"),
        (-1.0, "context", "tau must be a finite number of at least 0"),
        (1.0, "document", "filter must be one of none, context, token"),
    ],
)
def test_bad_filters_are_one_clear_line(store: ActivationStore, sae: SAE, tau: float, by: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        filter_view(store, feature_activations(store, sae, 5), tau, by)


def test_feature_out_of_range_and_too_little_data(store: ActivationStore, sae: SAE) -> None:
    with pytest.raises(UserError, match=r"feature must be in \[0, d_sae=32\); got 4096: pass a feature of the narrow"):
        feature_activations(store, sae, 4096)
    with pytest.raises(UserError, match="training data must hold at least one batch of 4096 tokens"):
        ShuffledBatches(View(store, np.arange(10, dtype=np.int32), "token"), 4096, seed=0)
