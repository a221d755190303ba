"""transformer_lens before and after its version 4: the only module that knows which is installed.

Up to 3.9 a model with our own weights is a `HookedTransformer`; 4.0 removed that class, and there it is a
`TransformerBridge` whose checkpoint has other names. Both run with hooks by the names of version 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelib.base.errors import UserError

_BUFFERS = ("attn.mask", "attn.IGNORE")
"""Constants that old checkpoints carry along."""


def transformer_lens_version() -> tuple[int, int]:
    """Major and minor version of what is installed."""
    return tuple(int(part) for part in re.findall(r"\d+", metadata.version("transformer_lens"))[:2])  # type: ignore[return-value]


def hooked_model(weights: Mapping[str, Tensor], *, n_ctx: int, act_fn: str, name: str) -> Any:
    """A 1-layer transformer_lens model with exactly these weights: nothing folded, nothing centred.

    Args:
        weights: fp32, under the names of transformer_lens 3 (`blocks.0.attn.W_Q` ...); a missing `unembed.b_U` is zero.
        n_ctx: rows of the position embedding that are used.
        act_fn: the MLP's activation function, for example `gelu`.
        name: what the model is called.

    Returns:
        a `HookedTransformer`, or with transformer_lens 4 a `TransformerBridge`.
    """
    n_heads, d_model, d_head = weights["blocks.0.attn.W_Q"].shape
    d_vocab, d_mlp = weights["embed.W_E"].shape[0], weights["blocks.0.mlp.W_in"].shape[1]
    sizes: dict[str, Any] = {
        "n_layers": 1, "d_model": d_model, "n_ctx": n_ctx, "d_head": d_head, "n_heads": n_heads, "d_mlp": d_mlp,
        "d_vocab": d_vocab, "act_fn": act_fn, "normalization_type": "LN", "seed": None, "device": "cpu",
    }  # fmt: skip
    state = {"unembed.b_U": torch.zeros(d_vocab), **weights}
    if transformer_lens_version() < (4, 0):
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        hooked = HookedTransformer(HookedTransformerConfig(**sizes, model_name=name))
        hooked.load_state_dict({**hooked.state_dict(), **state})
    else:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

        cfg = TransformerBridgeConfig(**sizes, architecture="TransformerLensNative")
        hooked = TransformerBridge.boot_native(cfg, model_name=name)
        hooked.load_state_dict(convert_tl_checkpoint(state, cfg), strict=True)
    return hooked.eval().requires_grad_(False)


class _Reached(Exception):
    """Carries the value of a hook out of a forward pass, which ends there."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__()


@torch.no_grad()
def hook_value(hooked: Any, tokens: Int[Tensor, "b t"], hook_name: str) -> Float[Tensor, "b t d"]:
    """The activation at a hook, computed no further than that.

    `stop_at_layer` does not stop a 1-layer model in transformer_lens 4, and version 3.9 ignores a misspelt name; so the
    name is looked up first, and the pass is left from inside the hook.

    Raises:
        UserError: the model has no such hook.
    """
    if hook_name not in hooked.hook_dict:
        near = ", ".join(name for name in hooked.hook_dict if name.startswith("blocks.0.hook_"))
        raise UserError("hook must be one of the model's", repr(hook_name), f"pass for example one of {near}")

    def leave(value: Tensor, hook: Any) -> None:
        raise _Reached(value)

    try:
        hooked.run_with_hooks(tokens, fwd_hooks=[(hook_name, leave)])
    except _Reached as reached:
        return reached.value
    raise UserError("hook must be reached by a forward pass", repr(hook_name), "pass the name of an activation")


def centre_writing_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that write to the residual stream, less their mean over d_model: transformer_lens's `center_writing_weights`.

    Every LayerNorm that reads the stream takes that mean away, so logits stay the same; `mlp_out` does not.
    """
    writers = re.compile(r"embed\.W_E|pos_embed\.W_pos|blocks\.\d+\.(attn\.(W_O|b_O)|mlp\.(W_out|b_out))")
    return {
        name: tensor - tensor.mean(-1, keepdim=True) if writers.fullmatch(name) else tensor
        for name, tensor in weights.items()
    }


def without_buffers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's parameters, fp32."""
    return {name: tensor.float() for name, tensor in state.items() if not name.endswith(_BUFFERS)}
