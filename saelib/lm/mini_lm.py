"""The embedded language model's architecture, written plainly: gelu-1l's shape at a width that a laptop trains.

One block of LayerNorm, causal attention with learned absolute positions, LayerNorm, GELU MLP; a final LayerNorm; an
untied unembedding. Parameter names are transformer_lens's, so a state dict loads there unchanged (`saelib.lm.model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


@dataclass(frozen=True)
class MiniLMConfig:
    """Shape of a 1-layer GELU transformer; `d_mlp = 4 d_model` as in gelu-1l."""

    d_model: int = 256
    n_heads: int = 8
    n_ctx: int = 128
    d_vocab: int = 8192

    @property
    def d_mlp(self) -> int:
        """Width of the hidden layer."""
        return 4 * self.d_model

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads


class MiniLM(nn.Module):
    """Training-time form of the model. Shapes: b batch, t position, d d_model, h head, k d_head."""

    def __init__(self, cfg: MiniLMConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.cfg = cfg
        d, h, k = cfg.d_model, cfg.n_heads, cfg.d_head

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * std)

        scale = d**-0.5
        shapes: dict[str, nn.Parameter] = {
            "embed.W_E": normal(cfg.d_vocab, d, std=0.5 * scale),
            "pos_embed.W_pos": normal(cfg.n_ctx, d, std=0.25 * scale),
            "blocks.0.ln1.w": nn.Parameter(torch.ones(d)),
            "blocks.0.ln1.b": nn.Parameter(torch.zeros(d)),
            "blocks.0.attn.W_Q": normal(h, d, k, std=scale),
            "blocks.0.attn.W_K": normal(h, d, k, std=scale),
            "blocks.0.attn.W_V": normal(h, d, k, std=scale),
            "blocks.0.attn.W_O": normal(h, k, d, std=scale * 0.7),
            "blocks.0.attn.b_Q": nn.Parameter(torch.zeros(h, k)),
            "blocks.0.attn.b_K": nn.Parameter(torch.zeros(h, k)),
            "blocks.0.attn.b_V": nn.Parameter(torch.zeros(h, k)),
            "blocks.0.attn.b_O": nn.Parameter(torch.zeros(d)),
            "blocks.0.ln2.w": nn.Parameter(torch.ones(d)),
            "blocks.0.ln2.b": nn.Parameter(torch.zeros(d)),
            "blocks.0.mlp.W_in": normal(d, cfg.d_mlp, std=scale),
            "blocks.0.mlp.b_in": nn.Parameter(torch.zeros(cfg.d_mlp)),
            "blocks.0.mlp.W_out": normal(cfg.d_mlp, d, std=0.35 * scale),
            "blocks.0.mlp.b_out": nn.Parameter(torch.zeros(d)),
            "ln_final.w": nn.Parameter(torch.ones(d)),
            "ln_final.b": nn.Parameter(torch.zeros(d)),
            "unembed.W_U": normal(d, cfg.d_vocab, std=0.5 * scale),
        }
        for name, parameter in shapes.items():
            self.register_parameter(name.replace(".", "__"), parameter)

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, name.replace(".", "__"))

    def tensors(self) -> dict[str, Tensor]:
        """Parameters under transformer_lens's names."""
        return {name.replace("__", "."): p.detach() for name, p in self.named_parameters()}

    def residual(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The normalised residual stream that the unembedding reads."""
        x = self["embed.W_E"][tokens] + self["pos_embed.W_pos"][: tokens.shape[1]]
        x = x + attention(x, self)
        x = x + mlp(F.layer_norm(x, x.shape[-1:], self["blocks.0.ln2.w"], self["blocks.0.ln2.b"]), self)
        return F.layer_norm(x, x.shape[-1:], self["ln_final.w"], self["ln_final.b"])


def attention(x: Tensor, weights: Any) -> Tensor:
    """Causal multi-head attention of block 0 on the raw residual stream, with its LayerNorm."""
    b, t, d = x.shape
    x = F.layer_norm(x, (d,), weights["blocks.0.ln1.w"], weights["blocks.0.ln1.b"])
    h, _, k = weights["blocks.0.attn.W_Q"].shape
    heads = []
    for name in "QKV":
        weight = weights[f"blocks.0.attn.W_{name}"].permute(0, 2, 1).reshape(h * k, d)  # (h k, d)
        heads.append(
            F.linear(x, weight, weights[f"blocks.0.attn.b_{name}"].reshape(-1)).view(b, t, h, k).transpose(1, 2)
        )
    q, k_heads, v = heads
    z = F.scaled_dot_product_attention(q, k_heads, v, is_causal=True).transpose(1, 2).reshape(b, t, h * k)
    return F.linear(z, weights["blocks.0.attn.W_O"].reshape(h * k, d).T, weights["blocks.0.attn.b_O"])


def mlp(x: Tensor, weights: Any) -> Tensor:
    """The GELU MLP of block 0 on an already normalised input: `mlp_out`."""
    hidden = F.gelu(F.linear(x, weights["blocks.0.mlp.W_in"].T, weights["blocks.0.mlp.b_in"]))
    return F.linear(hidden, weights["blocks.0.mlp.W_out"].T, weights["blocks.0.mlp.b_out"])


class Linear:
    """x @ W + b, optionally with GELU after it: by oneDNN on weights packed once, else as torch does it.

    On the processors this was measured on (AMD Zen 4), oneDNN's fp32 product is 15 to 20% faster than the one torch.mm calls.
    """

    def __init__(self, weight: Float[Tensor, "d_from d_to"], bias: Float[Tensor, " d_to"], gelu: bool = False) -> None:
        self.weight, self.bias, self.gelu = weight.t().contiguous(), bias.contiguous(), gelu
        self.packed = None
        if torch.backends.mkldnn.is_available() and weight.device.type == "cpu":
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: Shaped[Tensor, "n d_from"]) -> Shaped[Tensor, "n d_to"]:
        """The product, of x's own type."""
        if self.packed is not None:
            attribute, algorithm = ("gelu", "none") if self.gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, attribute, [], algorithm)
        out = F.linear(x, self.weight, self.bias)
        return F.gelu(out) if self.gelu else out


class PlainBlock:
    """The one block with its weights laid out for speed: tokens in, `mlp_out` out.

    Queries, keys and values are one product, weights are packed, and contexts go through a few at a time, so that what is
    written stays in cache until it is read. With bf16 weights every product is bf16 (sums in fp32) and so is what lies
    between: 0.8% of the largest entry off at gelu-1l's shape, about twice as fast where the processor multiplies bf16.
    """

    CONTEXTS = 8

    def __init__(self, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        h, d, k = weights["blocks.0.attn.W_Q"].shape
        self.n_heads, self.dtype = h, dtype

        def held(name: str) -> Tensor:
            return weights[f"blocks.0.{name}"].detach().to(dtype)

        def stacked(kind: str) -> Tensor:  # (d, 3 h k) or (3 h k)
            parts = [held(f"attn.{kind}_{letter}") for letter in "QKV"]
            return torch.cat(
                [p.transpose(0, 1).reshape(d, h * k) if kind == "W" else p.reshape(h * k) for p in parts], -1
            )

        self.qkv = Linear(stacked("W"), stacked("b"))
        self.attention_out = Linear(held("attn.W_O").reshape(h * k, d), held("attn.b_O"))
        self.mlp_in = Linear(held("mlp.W_in"), held("mlp.b_in"), gelu=True)
        self.mlp_down = Linear(held("mlp.W_out"), held("mlp.b_out"))
        self.W_E, self.W_pos = weights["embed.W_E"], weights["pos_embed.W_pos"]
        # A LayerNorm that was folded into the weights after it has no weights of its own.
        self.norms = [
            tuple(held(f"{norm}.{part}") if f"blocks.0.{norm}.{part}" in weights else None for part in "wb")
            for norm in ("ln1", "ln2")
        ]

    @torch.no_grad()
    def mlp_out(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """`blocks.0.hook_mlp_out`, fp32."""
        return torch.cat([self._some(few) for few in tokens.to(self.W_E.device).split(self.CONTEXTS)])

    def _normed(self, x: Tensor, which: int) -> Tensor:
        weight, bias = self.norms[which]
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def _some(self, tokens: Tensor) -> Tensor:
        b, t = tokens.shape
        x = (self.W_E[tokens] + self.W_pos[:t]).view(b * t, -1).to(self.dtype)
        d = x.shape[1]
        qkv = self.qkv(self._normed(x, 0)).view(b, t, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        mid = self.attention_out(z.transpose(1, 2).reshape(b * t, -1)).add_(x)
        out = self.mlp_down(self.mlp_in(self._normed(mid, 1)))
        return out.float().view(b, t, d)
