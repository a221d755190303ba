"""A one-layer model with two heads whose circuits are known: head 0 copies the token before, head 1 the one before it."""

from __future__ import annotations

import tokenizers
import torch

from saelib.lm.model import OneLayerModel

D, HEADS, K, PLACES, VOCABULARY = 16, 2, 6, 6, 5
BOS, HYPHEN, A, B, OTHER = range(VOCABULARY)


def axis(i: int) -> torch.Tensor:
    """A direction of mean 0, so that LayerNorm only scales it; squared length 2."""
    out = torch.zeros(D)
    out[2 * i], out[2 * i + 1] = 1, -1
    return out


def toy_model() -> OneLayerModel:
    """A and B are +-axis 0, all other tokens axis 1, position p is axis 2 + p: every input has squared length 4, and the first
    LayerNorm doubles it. The MLP passes axis 0 on, by a hidden unit far out where GELU is the identity."""
    weights = {
        "embed.W_E": torch.stack([axis(1), axis(1), axis(0), -axis(0), axis(1)]),
        "pos_embed.W_pos": torch.stack([axis(2 + p) for p in range(PLACES)]),
        "blocks.0.attn.W_Q": torch.zeros(HEADS, D, K),
        "blocks.0.attn.W_K": torch.zeros(HEADS, D, K),
        "blocks.0.attn.W_V": torch.zeros(HEADS, D, K),
        "blocks.0.attn.W_O": torch.zeros(HEADS, K, D),
        "blocks.0.mlp.W_in": torch.zeros(D, 4 * D),
        "blocks.0.mlp.b_in": torch.zeros(4 * D),
        "blocks.0.mlp.W_out": torch.zeros(4 * D, D),
        "blocks.0.mlp.b_out": torch.zeros(D),
        "unembed.W_U": torch.zeros(D, VOCABULARY),
    }
    for name in "QKV":
        weights[f"blocks.0.attn.b_{name}"] = torch.zeros(HEADS, K)
    weights["blocks.0.attn.b_O"] = torch.zeros(D)
    for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_final"):
        weights |= {f"{norm}.w": torch.ones(D), f"{norm}.b": torch.zeros(D)}
    for head, gain in ((0, 2.0), (1, 1.0)):
        for p in range(PLACES):
            weights["blocks.0.attn.W_K"][head, :, p] = axis(2 + p)
            if p > head:
                weights["blocks.0.attn.W_Q"][head, :, p - 1 - head] = 20 * axis(2 + p)
        weights["blocks.0.attn.W_V"][head, :, 0] = axis(0) / 2
        weights["blocks.0.attn.W_O"][head, 0] = gain * axis(0)
    weights["blocks.0.mlp.W_in"][:, 0] = axis(0) / 2
    weights["blocks.0.mlp.b_in"][0] = 20
    weights["blocks.0.mlp.W_out"][0, 3] = 1
    weights["unembed.W_U"][:, A] = axis(0) / 2 + 0.1  # what LayerNorm gives has mean 0: no matter
    return OneLayerModel("toy", weights, tokenizers.Tokenizer(tokenizers.models.BPE()), "toy")
