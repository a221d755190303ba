"""SAEs that are kept: what names them, and trainings made once, which go on where they were killed and are read back checked."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from saelib.acts.batches import ShuffledBatches, View
from saelib.base.cache import atomic_path, cache_dir, content_key, file_sha256, locked, read_sealed, write_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.base.seals import sealed
from saelib.sae.initial import init_from_narrow, init_random
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.train import TRAINING_CODE, Hooks, TrainResult, train
from saelib.sae.train_config import TrainConfig


def weights_hash(sae: SAE) -> str:
    """16 hex digits of SHA-256 over an SAE's exact weights: equal for trainings that agree bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def sae_key(sae: SAE) -> str:
    """Identifies what an SAE computes: its weights and its kind. Two SAEs of the same weights may differ in their `k`."""
    kind = {name: value for name, value in sae.cfg.to_dict().items() if name != "metadata"}
    return content_key(weights=weights_hash(sae), kind=kind)


def training_folder(name: str, key: str) -> Path:
    """Where `train_once` keeps a training: named by its key and by the code that trains."""
    return cache_dir() / "runs" / f"{name}-{content_key(key=key, code=code_version(*TRAINING_CODE))}"


def beginning(
    cfg: SAEConfig,
    train: TrainConfig,
    view: View,
    device: torch.device,
    narrow: SAE | None = None,
    normalise: bool = True,
) -> tuple[SAE, ShuffledBatches]:
    """The first SAE of a training and its batches, both drawn with the training's seed: what `train_once` begins with.

    Args:
        narrow: begin as this SAE plus fresh features (`init_from_narrow`); None: at random (`init_random`).

    Raises:
        UserError: as of `init_from_narrow`.
    """
    generator = torch.Generator().manual_seed(train.seed)
    sae = init_random(cfg, generator) if narrow is None else init_from_narrow(narrow, cfg, normalise, generator)
    return sae.on(device), ShuffledBatches(view, train.batch_size, train.seed)


def is_trained(name: str, key: str) -> bool:
    """Whether `train_once` has finished this training and kept it."""
    return _summary(training_folder(name, key)).exists()


def _summary(folder: Path) -> Path:
    """What is written last: a folder that holds it is finished."""
    return folder / "summary.json"


def train_once(
    key: str,
    name: str,
    begin: Callable[[], tuple[SAE, ShuffledBatches]],
    cfg: TrainConfig,
    probe: Callable[[SAE], dict[str, float]] | None = None,
    keep: Sequence[int] = (),
) -> TrainResult:
    """Train, or return what the cache holds under `key` from the same code; a killed training goes on from its checkpoint.

    Args:
        begin: makes the first SAE and the batches, when they are needed. It is trained where it is; what comes back is on the
            processor.
        probe: as for `train`.
        keep: steps after which the SAE is kept beside the last one.
    """
    folder = training_folder(name, key)
    with locked(folder):
        if not _summary(folder).exists():

            def on_step(done: int, total: int) -> None:
                report_progress(name, done, total)

            snapshots = {n: functools.partial(SAE.save, folder=folder / f"sae-{n}") for n in keep if n < cfg.n_steps}
            sae, batches = begin()
            result = train(
                sae, batches, cfg, workdir=folder / "checkpoints", hooks=Hooks(probe, on_step, snapshots), name=name,
            )  # fmt: skip
            result.sae.save(folder / "sae")
            history = folder / "history.csv"
            with atomic_path(history) as temporary:
                result.history.to_csv(temporary, index=False)
            summary = {"seconds": result.seconds, "n_tokens": result.n_tokens, "history_sha256": file_sha256(history)}
            write_json(_summary(folder), sealed(summary))
        for checkpoint in (folder / "checkpoints").glob("*"):  # also those of a process that was killed just here
            checkpoint.unlink()
    return _finished_training(folder)


def _finished_training(folder: Path) -> TrainResult:
    """What `train_once` left in a folder; a damaged file is a `UserError`, since training again takes minutes."""
    remedy = f"delete {folder}; it will be trained again"
    summary = read_sealed(_summary(folder), remedy)
    path = folder / "history.csv"
    digest = file_sha256(path) if path.exists() else None
    if digest != summary.get("history_sha256", digest) or digest is None:
        raise UserError("file must be as it was written", path, remedy)
    try:
        sae = load_sae(folder / "sae")
    except UserError as error:
        raise UserError(error.rule, error.got, remedy) from error
    return TrainResult(sae, pd.read_csv(path), summary["seconds"], summary["n_tokens"])
