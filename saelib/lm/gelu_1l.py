"""The model of the 2024 post, gelu-1l: from a local folder, an existing hub cache, or the hub.

A folder holds `config.json`, one file whose name ends in `final.pth`, and `tokenizer.json`, as the hub's repositories do (there
the tokenizer has a repository of its own, named in the configuration). Neither major version of transformer_lens loads
such a folder by its path, and both ask the hub for a list of files even when all are in the cache. So it is read here.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from saelib.base.cache import file_sha256, read_json
from saelib.base.errors import UserError
from saelib.lm.gelu_1l_files import NEEDS, find_gelu_1l
from saelib.lm.hooked import centre_writing_weights, without_buffers
from saelib.lm.model import OneLayerModel

_SPECIAL = ("<|BOS|>", "<|bos|>", "<|endoftext|>", "<s>")
_KIND = {"n_layers": 1, "act_fn": "gelu", "attn_only": False, "normalization": "LN", "shortformer_pos": False}
"""The architecture that this package computes; a configuration with other values is of another model."""


def load_gelu_1l(center_writing_weights: bool = True) -> OneLayerModel:
    """gelu-1l, with its weights processed as the post's trainer had them: centred, and the last LayerNorm folded.

    Args:
        center_writing_weights: take the mean over d_model out of the weights that write to the residual stream
            (transformer_lens 3's default, and the post's). Recorded with every store and SAE.
    """
    return load_gelu_folder(*find_gelu_1l(), center_writing_weights)


def load_gelu_folder(folder: Path, tokenizer_folder: Path, center_writing_weights: bool = True) -> OneLayerModel:
    """The model from its two folders. The checkpoint is loaded with `weights_only=True`: tensors and nothing else.

    Raises:
        UserError: a file is missing or damaged, or it is another kind of model.
    """
    config = _config(folder)
    checkpoints = sorted(folder.glob("*final.pth"))
    if not checkpoints:
        raise UserError("a gelu-1l folder must hold a file *final.pth", folder, f"put {NEEDS} there")
    tokenizer_file = tokenizer_folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise UserError("a gelu-1l folder must hold tokenizer.json", tokenizer_folder, f"put {NEEDS} there")
    weights = _weights(checkpoints[0], config)
    if center_writing_weights:
        weights = fold_final_layer_norm(centre_writing_weights(weights))
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    bos, eos = (
        _special_token("bos_token", tokenizer, tokenizer_folder),
        _special_token("eos_token", tokenizer, tokenizer_folder),
    )
    digest = hashlib.sha256(file_sha256(checkpoints[0]).encode() + tokenizer_file.read_bytes()).hexdigest()[:15]
    key = f"{digest}{'c' if center_writing_weights else '-'}"
    return OneLayerModel("gelu-1l", weights, tokenizer, key, center_writing_weights, bos, eos)


def fold_final_layer_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last LayerNorm's scale and shift folded into the unembedding, whose directions are then centred both ways.

    That leaves log-probabilities as they were and makes `direction @ W_U` the effect that the post's figures show.
    """
    W_U, bias = weights["unembed.W_U"], weights.get("unembed.b_U", torch.zeros(weights["unembed.W_U"].shape[1]))
    bias = bias + weights["ln_final.b"] @ W_U
    W_U = weights["ln_final.w"][:, None] * W_U
    W_U = W_U - W_U.mean(0, keepdim=True)  # the LayerNorm's output has no mean over d_model
    ones, zeros = torch.ones_like(weights["ln_final.w"]), torch.zeros_like(weights["ln_final.b"])
    unembed = {"unembed.W_U": W_U - W_U.mean(1, keepdim=True), "unembed.b_U": bias - bias.mean()}
    return {**weights, **unembed, "ln_final.w": ones, "ln_final.b": zeros}


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise UserError("a gelu-1l folder must hold config.json", folder, f"put {NEEDS} there")
    config: dict[str, Any] = read_json(folder / "config.json")
    config.setdefault("normalization", config.get("normalization_type"))
    for name, wanted in _KIND.items():
        if config.get(name, wanted) != wanted:
            got = f"{config[name]!r} in {folder / 'config.json'}"
            raise UserError(f"{name} of a gelu-1l model must be {wanted!r}", got, "use a folder of gelu-1l")
    return config


def _weights(path: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError("checkpoint must hold tensors and nothing else", path, "fetch the file again") from error
    weights = without_buffers(state)
    try:
        d, m, h, k, v = (config[name] for name in ("d_model", "d_mlp", "n_heads", "d_head", "d_vocab"))
    except KeyError as error:
        raise UserError(f"config.json must say {error.args[0]}", path.parent, "fetch the file again") from error
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (v, d), "pos_embed.W_pos": (config["n_ctx"], d), "unembed.W_U": (d, v), "unembed.b_U": (v,),
        "blocks.0.attn.W_O": (h, k, d), "blocks.0.attn.b_O": (d,), "blocks.0.mlp.W_in": (d, m),
        "blocks.0.mlp.b_in": (m,), "blocks.0.mlp.W_out": (m, d), "blocks.0.mlp.b_out": (d,),
        **{f"blocks.0.attn.W_{x}": (h, d, k) for x in "QKV"}, **{f"blocks.0.attn.b_{x}": (h, k) for x in "QKV"},
        **{f"{ln}.{x}": (d,) for ln in ("blocks.0.ln1", "blocks.0.ln2", "ln_final") for x in "wb"},
    }  # fmt: skip
    for name, shape in shapes.items():
        if name not in weights and name == "unembed.b_U":
            continue
        got = tuple(weights[name].shape) if name in weights else "none"
        if got != shape:
            raise UserError(f"{name} must have the shape {shape}", f"{got} in {path}", "fetch the file again")
    return {name: weights[name] for name in shapes if name in weights}


def _special_token(name: str, tokenizer: tokenizers.Tokenizer, folder: Path) -> str:
    """The tokenizer's BOS or EOS: as its configuration says, else the first usual one it has."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            value = read_json(folder / file).get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if value:
                return str(value)
    known = (
        tuple(token.replace("BOS", "EOS").replace("bos", "eos") for token in _SPECIAL) if "eos" in name else _SPECIAL
    )
    found = [token for token in known if tokenizer.token_to_id(token) is not None]
    if not found:
        raise UserError(f"tokenizer must name its {name}", folder, "put its tokenizer_config.json there, too")
    return found[0]
