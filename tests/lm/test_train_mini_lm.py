"""The script that trains the embedded language model: killed and started again, it ends with the same bits."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from saelib.base.checkpoints import Checkpoints
from saelib.lm.model import EMBEDDED_FOLDER
from saelib.text.tokens import CONTEXT_LENGTH, TokenStore


class Killed(Exception):
    pass


@pytest.fixture
def script(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script at a size of seconds: 12 steps on random tokens, a checkpoint every 3, a row of the curve every 5."""
    spec = importlib.util.spec_from_file_location("train_mini_lm", root / "scripts" / "train_mini_lm.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    contexts = np.random.default_rng(0).integers(3, 8192, (8, CONTEXT_LENGTH)).astype(np.uint16)
    splits = {name: {"contexts": 8, "tokens": 8 * 127} for name in ("train", "select")}
    for name in splits:
        contexts.tofile(tmp_path / f"{name}.bin")
    store = TokenStore(tmp_path, {"key": "made", "splits": splits})
    monkeypatch.setattr(module, "build_token_store", lambda *args, **kwargs: store)
    for name, value in {"BATCH_CONTEXTS": 1, "CHECKPOINT_EVERY": 3, "VALIDATE_EVERY": 5, "WARM_UP_STEPS": 4}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sys, "argv", ["train_mini_lm.py", "--d-model", "16", "--tokens", str(12 * 127)])
    return module


def trained(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None
) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """The exported weights and curve of a run in `folder`, or `Killed` after that step."""
    package = folder / "package"
    package.mkdir(parents=True, exist_ok=True)
    shutil.copy(EMBEDDED_FOLDER / "tokenizer.json", package)
    monkeypatch.setenv("SAELIB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(script, "EMBEDDED_FOLDER", package)
    rate = script.learning_rate

    def learning_rate(step: int, n_steps: int, peak: float) -> float:
        if step == kill_at:
            raise Killed
        return float(rate(step, n_steps, peak))

    with monkeypatch.context() as patched:
        patched.setattr(script, "learning_rate", learning_rate)
        script.main()
    return safetensors.torch.load_file(package / "model.safetensors"), pd.read_csv(package / "loss_curve.csv")


@pytest.mark.slow
def test_killed_twice_and_damaged_it_ends_with_the_same_bits(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, curve = trained(script, tmp_path / "straight", monkeypatch)
    for step in (2, 10):  # before there is a checkpoint, and in the middle of a row of the curve
        with pytest.raises(Killed):
            trained(script, tmp_path / "killed", monkeypatch, kill_at=step)
    folder = next((tmp_path / "killed" / "cache" / "mini_lm").iterdir())
    newest = Checkpoints(folder, folder.name, "language model").paths()[0].with_suffix(".safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"language model: damaged checkpoint .*step-000000009.*older step-000000006"):
        again, curve_again = trained(script, tmp_path / "killed", monkeypatch)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert curve["step"].tolist() == [5, 10, 12]
    columns = ["step", "tokens", "train_loss", "validation_loss"]
    assert curve[columns].equals(curve_again[columns])


@pytest.mark.parametrize(("products", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_chunked_cross_entropy_equals_autograd(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, products: torch.dtype, error: float
) -> None:
    monkeypatch.setattr(script, "PRODUCTS", products)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1100, 16, generator=generator, requires_grad=True)
    weight = torch.randn(16, 50, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (1100,), generator=generator)
    expected = torch.nn.functional.cross_entropy(x @ weight, targets)
    expected_grads = torch.autograd.grad(expected, [x, weight])
    loss = script.ChunkedCrossEntropy.apply(x, weight, targets)
    grads = torch.autograd.grad(loss, [x, weight])
    assert loss.item() == pytest.approx(expected.item(), rel=error)
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert (got - wanted).norm() / wanted.norm() < error
