"""Faithful stand-ins for what cannot be fetched in a test: gelu-1l as a hub cache holds it, with random weights.

File names, configuration keys, tensor names and shapes are those of the repositories; only the values are made up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

REVISION = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"d_model": 512, "d_mlp": 2048, "n_heads": 8, "d_head": 64, "n_ctx": 1024, "d_vocab": 48_262}
WORDS = (
    "I am a multi millionaire A 3 point landing that encapsulated the long standing - of and to in is self (".split()
)


def gelu_config(**changes: Any) -> dict[str, Any]:
    return {
        "n_layers": 1, **SIZES, "tokenizer_name": "NeelNanda/gpt-neox-tokenizer-digits", "act_fn": "gelu",
        "attn_only": False, "normalization": "LN", "shortformer_pos": False, "seed": 69420, "dataset_name": "c4+code",
        "lr": 0.001, "batch_size_per_device": 32, **changes,
    }  # fmt: skip


def gelu_state(sizes: dict[str, int] = SIZES, seed: int = 0) -> dict[str, Tensor]:
    d, m, h, k, t, v = (sizes[name] for name in ("d_model", "d_mlp", "n_heads", "d_head", "n_ctx", "d_vocab"))
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    return {
        "embed.W_E": draw(v, d, std=0.05), "pos_embed.W_pos": draw(t, d, std=0.02),
        "blocks.0.ln1.w": 1 + draw(d, std=0.1), "blocks.0.ln1.b": draw(d, std=0.1),
        **{f"blocks.0.attn.W_{x}": draw(h, d, k, std=d**-0.5) for x in "QKV"},
        **{f"blocks.0.attn.b_{x}": draw(h, k, std=0.1) for x in "QKV"},
        "blocks.0.attn.W_O": draw(h, k, d, std=d**-0.5), "blocks.0.attn.b_O": draw(d, std=0.1),
        "blocks.0.attn.mask": torch.tril(torch.ones(t, t)).bool(), "blocks.0.attn.IGNORE": torch.tensor(-1e5),
        "blocks.0.ln2.w": 1 + draw(d, std=0.1), "blocks.0.ln2.b": draw(d, std=0.1),
        "blocks.0.mlp.W_in": draw(d, m, std=d**-0.5), "blocks.0.mlp.b_in": draw(m, std=0.1),
        "blocks.0.mlp.W_out": draw(m, d, std=m**-0.5), "blocks.0.mlp.b_out": draw(d, std=0.1),
        "ln_final.w": 1 + draw(d, std=0.1), "ln_final.b": draw(d, std=0.1),
        "unembed.W_U": draw(d, v, std=d**-0.5), "unembed.b_U": draw(v, std=0.1),
    }  # fmt: skip


def digits_tokenizer(d_vocab: int = SIZES["d_vocab"]) -> Tokenizer:
    vocabulary = {"<|EOS|>": 0, "<|BOS|>": 1, "<|PAD|>": 2, "<|UNK|>": 3}
    for word in [*WORDS, *"0123456789", *(f"w{i}" for i in range(d_vocab))]:
        if len(vocabulary) < d_vocab:
            vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|UNK|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return tokenizer


def write_tokenizer(folder: Path, d_vocab: int = SIZES["d_vocab"]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digits_tokenizer(d_vocab).save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<|BOS|>", "eos_token": {"content": "<|EOS|>", "lstrip": False}, "pad_token": "<|PAD|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def write_gelu_1l(folder: Path, sizes: dict[str, int] = SIZES, **changes: Any) -> Path:
    """config.json and model_final.pth, as in the model's repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(gelu_config(**sizes, **changes)))
    torch.save(gelu_state(sizes), folder / "model_final.pth")
    return folder


def snapshot_folder(home: Path, repo: str, kind: str = "models") -> Path:
    """Where a hub cache under `home` keeps the current revision of a repository."""
    root = home / "hub" / f"{kind}--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(REVISION)
    folder = root / "snapshots" / REVISION
    folder.mkdir(parents=True)
    return folder
