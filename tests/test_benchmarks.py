"""The benchmarks run and print what they promise; what they measure is for a quiet machine to say."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from saelib.sae.gradients import Params
from saelib.sae.initial import init_random
from saelib.sae.sae import SAEConfig
from saelib.sae.step import loss_and_grads

pytest.importorskip("numba", reason="the roofline is that of the compiled step")


pytestmark = pytest.mark.slow


def run(root, *arguments):
    done = subprocess.run(
        [sys.executable, root / "benchmarks" / arguments[0], *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_train_step_prints_one_json_object(root):
    shape = ("--batch", "96", "--d-in", "16", "--d-sae", "200", "--active", "8")
    done = run(root, "train_step.py", "--json", "--rounds", "3", "--threads", "1", *shape)
    found = json.loads(done.stdout)
    peers = {
        "speedup_vs_saelens_fp32": "sae_lens",
        "speedup_vs_saelens_autocast": "sae_lens",
        "speedup_vs_saelens_batchtopk": "sae_lens",
        "speedup_vs_saelens_matryoshka": "sae_lens",
        "speedup_vs_dictionary_learning": "dictionary_learning",
        "speedup_vs_dictionary_learning_batchtopk": "dictionary_learning",
    }
    assert found.keys() == {"speedup_vs_reference", "speedup_vs_reference_init", "roofline_share"} | peers.keys()
    missing = {package for package in set(peers.values()) if importlib.util.find_spec(package) is None}
    assert {p for p in set(peers.values()) if f"{p} is not installed: its rows are left out" in done.stderr} == missing
    assert ("pip install 'saelib[peers]'" in done.stderr) is ("sae_lens" in missing)
    for name, value in found.items():
        if peers.get(name) in missing:
            assert value is None
        else:
            assert 0 < value["p25"] <= value["median"] <= value["p75"]
            every_second = name.endswith(("batchtopk", "matryoshka", "dictionary_learning"))
            assert value["rounds"] == (2 if every_second else 3)


@pytest.fixture
def peers(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("peers")


@pytest.fixture
def sae_and_batch():
    sae = init_random(
        SAEConfig(d_in=16, d_sae=200, hook_name="none", model_name="none"), torch.Generator().manual_seed(0)
    )
    return sae, torch.randn(96, 16, generator=torch.Generator().manual_seed(1))


def test_saelens_takes_our_weights_and_as_many_features_as_are_asked_for(peers, sae_and_batch):
    pytest.importorskip("sae_lens")
    sae, x = sae_and_batch
    ours = loss_and_grads(Params.of(sae), x, 0.4, objective="decoder_norm")
    assert peers.saelens(sae, x, "standard", 0.4)().loss.item() == pytest.approx(ours.loss, rel=1e-5)
    for architecture in ("batchtopk", "matryoshka"):
        step = peers.saelens(sae, x, architecture, 8)()
        assert (step.feature_acts > 0).sum() == 8 * len(x)
        nested = [name for name in step.losses if name.startswith("inner_mse_loss")]
        assert nested == (
            [f"inner_mse_loss_{width}" for width in (25, 50, 100)] if architecture == "matryoshka" else []
        )


def test_dictionary_learning_takes_our_weights_and_as_many_features_as_are_asked_for(peers, sae_and_batch):
    if not peers.installed("dictionary_learning"):
        pytest.skip("dictionary_learning is not installed")
    sae, x = sae_and_batch
    ours = loss_and_grads(Params.of(sae), x, 0.4 / len(x))
    trainer = peers.dictionary_learning(sae, x, "standard", 0.4).func.__self__
    assert trainer.loss(x, step=10_000).item() == pytest.approx(ours.loss, rel=1e-5)
    step = peers.dictionary_learning(sae, x, "batchtopk", 8)
    acts = step.func.__self__.ae.encode(x, use_threshold=False)
    assert (acts > 0).sum() == 8 * len(x)
    assert step() == pytest.approx((acts @ sae.W_dec + sae.b_dec - x).square().sum(1).mean().item(), rel=1e-5)


def test_harvest_prints_one_json_object(root):
    found = json.loads(run(root, "harvest.py", "--json", "--rounds", "3", "--contexts", "2").stdout)
    assert found.keys() == {"speedup_vs_transformer_lens", "max_rel_error"}
    speedup = found["speedup_vs_transformer_lens"]
    assert 0 < speedup["p25"] <= speedup["median"] <= speedup["p75"] and 0 <= found["max_rel_error"] <= 1e-5


def test_growth_prints_curves_with_exponents(root, monkeypatch, tmp_path):
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path))
    found = json.loads(run(root, "growth.py", "--json", "--quick").stdout)
    curves = found["curves"]
    assert curves.keys() == found["exponents"].keys()
    assert [p["size"] for p in curves["split over tokens"]] == [40_000, 80_000]
    assert [p["d_sae"] for p in curves["wide over d_sae"]] == [256, 512]
    assert [p["split"] for p in curves["parents"]] == [1, 2]
    for points in curves.values():
        assert all(p["seconds"] > 0 and p["peak_mb"] > 100 for p in points)
