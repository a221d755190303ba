"""Device: chosen once, carried by the objects. The paths run on a pretended device (`elsewhere.py`) where any tensor that is put
somewhere by habit meets one of another device and fails; what comes out is what the processor gives."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere, Misplaced, OnElsewhere
from made_up_split import documents, harvested, hyphen_sae, judge_on

from saelib.acts.activations import SPLITS, Activations, harvest_documents
from saelib.acts.batches import ShuffledBatches, View
from saelib.acts.store import harvest_key
from saelib.base.device import choose_device
from saelib.base.errors import UserError
from saelib.bench.known import World
from saelib.bench.parents import choose_parents
from saelib.bench.run import run_bench
from saelib.bench.suite import BenchConfig, Origin
from saelib.bench.table import ROW, TIMES
from saelib.interpret.features import prompt_activations, top_features
from saelib.lm.model import load_embedded
from saelib.report.split_report import split_text, write_split
from saelib.report.study_plan import plan_page
from saelib.sae.evaluate import sae_quality
from saelib.sae.initial import init_random
from saelib.sae.kept import train_once
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.train_config import TrainConfig
from saelib.split.children import ChildrenConfig, Pools, train_children
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.exported import as_jumprelu
from saelib.split.methods import Task, get_method, method_names
from saelib.split.parent import gather
from saelib.split.wide import WideConfig
from saelib.study.profiles import DEVICE_VARIABLE, get_profile
from saelib.text.tokens import TokenStore

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "data" / "saelens"
FEATURE = 3


class Workers(ThreadPoolExecutor):
    """Threads that know the device, too: what is switched on in one is not in the others."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers, initializer=lambda: OnElsewhere().__enter__())


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    for module in ("split.engine", "split.children", "sae.stream"):
        monkeypatch.setattr(f"saelib.{module}.ThreadPoolExecutor", Workers)
    with OnElsewhere():
        yield ELSEWHERE


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    return harvested(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def sae(acts: Activations) -> SAE:
    return hyphen_sae(acts).requires_grad_(False)


def test_a_store_names_the_device_it_was_harvested_on_and_the_processor_is_not_named(tmp_path: Path) -> None:
    model, tokens = replace(load_embedded(), key="m"), TokenStore(tmp_path, {"key": "t"})
    before = "77ffd924fb33e17d"  # before devices were in keys
    assert harvest_key(model, tokens, "train", 600, "float32") == before
    assert harvest_key(model.on(torch.device("meta")), tokens, "train", 600, "float32") != before


def test_the_pretended_device_refuses_what_a_gpu_refuses(elsewhere: torch.device) -> None:
    x = torch.arange(6.0).reshape(2, 3).to(elsewhere)
    assert isinstance(x, Elsewhere) and x.device == elsewhere and float(x.sum()) == 15
    assert torch.equal((x * torch.tensor([1.0, 2.0, 3.0], device=elsewhere)).cpu()[0], torch.tensor([0.0, 2.0, 6.0]))
    assert torch.equal(x[torch.tensor([1])].cpu(), torch.tensor([[3.0, 4.0, 5.0]])), (
        "indices may come from the processor"
    )
    for wrong in (
        lambda: x + torch.ones(3),
        lambda: torch.cat([x, torch.ones(1, 3)]),
        lambda: torch.eye(3) @ x.T,
        lambda: torch.ones(4)[torch.tensor([1]).to(elsewhere)],
        lambda: torch.rand(3, generator=torch.Generator(), device=elsewhere),
    ):
        with pytest.raises(Misplaced):
            wrong()
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()


def test_the_model_and_its_harvest(
    acts: Activations, elsewhere: torch.device, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    there = harvest_documents(load_embedded().on(elsewhere), documents())
    assert there.device == elsewhere and acts.device == torch.device("cpu")
    for split in SPLITS:
        mine, theirs = (each.stores[split].rows(slice(500)) for each in (there, acts))
        assert there.stores[split].folder.is_relative_to(empty_cache)
        torch.testing.assert_close(mine, theirs, rtol=2**-7, atol=1e-3)


def test_a_split_is_the_same_elsewhere(
    acts: Activations, sae: SAE, elsewhere: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saelib.split.how_many.K_GRID", (4, 8))
    monkeypatch.setattr("saelib.split.how_many.K_STEPS", 10)
    children = ChildrenConfig(n_steps=40, batch_on=64, batch_weak=16, batch_off=64)
    cfg = SplitConfig(contexts="hyphen", seeds=2, children=children)
    here = split_feature(sae, FEATURE, acts, cfg)
    model = acts.model.on(elsewhere)
    found = split_feature(sae, FEATURE, replace(acts, model=model), cfg)
    assert sae.device == torch.device("cpu"), "the user's SAE stays where it is"
    assert found.sae.device == found.original.device == found.tokens.on["test"].x.device == elsewhere
    for name, tensor in here.sae.state_dict().items():
        torch.testing.assert_close(getattr(found.sae, name).cpu().detach(), tensor, rtol=1e-4, atol=1e-5)
    assert found.verdict == here.verdict and found.numbers == here.numbers
    np.testing.assert_allclose(found.controls["S_2"], here.controls["S_2"], atol=1e-3)
    np.testing.assert_allclose(found.swap.to_numpy(), here.swap.to_numpy(), rtol=1e-3)
    prompt = "A well-known, self-made, non-smoking co-founder read the twenty-two long-term plans."
    assert list(found.on(prompt)["token"]) == list(here.on(prompt)["token"])
    page = write_split(found, tmp_path / "out", [prompt])
    assert page.stat().st_size > 10_000 and split_text(found) == split_text(here)
    saved = load_sae(tmp_path / "out" / "sae")
    torch.testing.assert_close(saved.W_dec, here.sae.W_dec, rtol=1e-4, atol=1e-5)


def test_a_training_elsewhere(acts: Activations, elsewhere: torch.device, empty_cache: Path) -> None:
    """Placement alone: the pretended device does not follow `.data =`, so numbers agree at the first step only; a real GPU's are
    compared in test_gpu.py."""
    cfg = TrainConfig(l1_coeff=1e-3, n_steps=12, seed=0, batch_size=64, checkpoint_every=5, reinit_every=6, log_every=4)
    sae_cfg = SAEConfig(acts.stores["train"].d_in, 48, acts.model.hook_name, acts.model.name, False)

    def begin(device: torch.device) -> tuple[SAE, ShuffledBatches]:
        start = init_random(sae_cfg, torch.Generator().manual_seed(0))
        return start.on(device), ShuffledBatches(View(acts.stores["train"]), 64, 0)

    cpu = torch.device("cpu")
    here, there = (train_once(str(d), "t", lambda d=d: begin(d), cfg) for d in (cpu, elsewhere))  # type: ignore[misc]
    assert there.sae.device == cpu and there.n_tokens == here.n_tokens
    assert there.history["loss"][0] == pytest.approx(here.history["loss"][0], rel=1e-5)
    assert there.history["loss"].iloc[-1] > there.history["l1"].iloc[-1] > 0


def test_batches_elsewhere_are_the_same(
    acts: Activations, elsewhere: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saelib.acts.batches.GROUP_BATCHES", 3)  # several groups an epoch, each read ahead
    view = View(acts.stores["train"])
    size = view.n_tokens // 8
    here, there = (ShuffledBatches(view, size, 3) for _ in range(2))
    out = torch.empty(size, here.d_in).to(elsewhere)
    for step in [0, 1, 2, 3, 4, 7, 8, 9, 1, 20]:
        assert torch.equal(there.batch(step, out).cpu(), here.batch(step)), step


def test_the_device_of_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_profile("mini").device == "cpu" and get_profile("gelu-1l").device == "auto"
    on_cpu = plan_page("smoke", "01_narrow_sae").key
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
    assert get_profile("mini").device == "cuda"
    assert plan_page("smoke", "01_narrow_sae").key != on_cpu
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    assert plan_page("smoke", "01_narrow_sae").key == on_cpu and get_profile("gelu-1l").device == "cpu"


def test_tools_beside_a_split(acts: Activations, sae: SAE, elsewhere: torch.device) -> None:
    model = acts.model.on(elsewhere)
    words, found = prompt_activations(sae, model, "A long-term plan")
    assert len(top_features(found, 2, words))
    quality = sae_quality(sae, model, acts.stores["test"], 2)
    assert quality == pytest.approx(sae_quality(sae, acts.model, acts.stores["test"], 2), rel=1e-4)


def test_every_method_works_elsewhere(acts: Activations, sae: SAE, elsewhere: torch.device, empty_cache: Path) -> None:
    there, judge = judge_on(elsewhere, acts, sae, FEATURE)
    children = ChildrenConfig(n_steps=20, batch_on=64, batch_weak=16, batch_off=64)
    budget = WideConfig(d_sae=32, n_tokens=2048, batch_size=256, reinit_every=5)
    refused = {}
    same = (
        "children-",
        "all-data-3",
        "all-data-10",
        "all-data-wider",
        "named-128",
        "named-clean",
    )  # as others, in other sizes
    for name in (name for name in method_names() if not name.startswith(same)):
        try:
            found = judge.run(get_method(name), Task(there, judge.work, 4, 0, children, budget), swap=name == "k-means")
            assert -5 < float(found.row["S_2"]) <= 1, name
        except (Misplaced, RuntimeError) as error:
            refused[name] = str(error)
    assert not refused


def test_a_piece_of_the_benchmark_is_the_same_elsewhere(
    elsewhere: torch.device, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens are those the processor found; methods and the loss with the new SAE in place are there."""
    world = World("made-3", d_in=24, n_background=40, contexts=(200, 120, 120))
    origin = Origin(world.name, "known", world=world)
    children = ChildrenConfig(n_steps=40, batch_on=64, batch_weak=16, batch_off=64)
    cfg = BenchConfig(K=6, seeds=2, least=20, children=children, wide=WideConfig(n_tokens=4096))
    there = replace(cfg, device=elsewhere)
    parents, methods = choose_parents(origin, cfg, 1, 1), ("children-8", "rest", "k-means", "permuted")
    found_by: list[torch.device] = []
    monkeypatch.setattr(
        "saelib.bench.run.gather", lambda acts, sae, *a: found_by.append(sae.device) or gather(acts, sae, *a)
    )
    made, on_cpu = (run_bench([origin], parents, methods, each, jobs=1) for each in (there, cfg))
    assert set(made["device"]) == {elsewhere.type} and set(on_cpu["device"]) == {"cpu"}
    assert made["reason"].isna().all() and made["loss_recovered"].notna().any() and made["matched_f1"].notna().any()
    same = [name for name in ROW if name not in (*TIMES, "device")]
    pd.testing.assert_frame_equal(made[same], on_cpu[same], rtol=1e-3, atol=1e-4)
    assert {device.type for device in found_by} == {"cpu"}, "a GPU's rounding would give other tokens"
    wide = run_bench([origin], parents, ("all-data",), there, jobs=1)  # placement alone, as of a training
    assert wide["S_2"].notna().all() and set(wide["device"]) == {elsewhere.type}
    (sae, acts), (moved, on_there) = origin.open(), origin.open(elsewhere)
    assert sae.device == acts.device == torch.device("cpu") and moved.device == on_there.device == elsewhere
    assert on_there.stores is acts.stores, "what the processor harvested"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_every_kind_of_sae(name: str, elsewhere: torch.device) -> None:
    sae = load_sae(FOLDER / name).requires_grad_(False)
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    there = sae.on(elsewhere)
    assert there is not sae and there.on(elsewhere) is there
    torch.testing.assert_close(there(x.to(elsewhere)).x_hat.cpu(), sae(x).x_hat)
    torch.testing.assert_close(
        as_jumprelu(there, x.to(elsewhere)).encode(x.to(elsewhere)).cpu(), as_jumprelu(sae, x).encode(x)
    )


@pytest.mark.parametrize("start", ["rows", "kmeans++", "clusters", "random"])
def test_children_start_and_revive_elsewhere(start: str, elsewhere: torch.device) -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(300, 8, generator=g), torch.randn(300, 8, generator=g)
    pools = Pools(x, y, torch.ones(300), x[:50] + 1, y[:50], torch.ones(50), x[50:120] - 1)
    cfg = ChildrenConfig(
        K=6, n_steps=24, batch_on=64, batch_weak=16, batch_off=32, start=start, whiten=0.5, revive_every=6
    )
    here = train_children(pools, cfg)
    there = train_children(Pools(*(part.to(elsewhere) for part in pools)), cfg)
    for mine, theirs in zip(there, here, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-4)


def test_a_device_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(
        UserError, match=r"device cuda needs a GPU that torch can use; got none \(torch .*\): pass cpu or auto"
    ):
        choose_device("cuda")
    with pytest.raises(UserError, match="device must be one of auto, cpu, cuda; got 'tpu'"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 1)
