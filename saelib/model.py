"""One small adapter around the language model: transformer_lens for looking inside, plain arithmetic for bulk work.

`LanguageModel.hooked` is a `transformer_lens.HookedTransformer` with the same weights. Bulk harvesting runs the single
block's arithmetic written plainly (`saelib.mini_lm`), which is several times faster; every harvest checks its first batch
against transformer_lens (`check_against_hooked`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from saelib import mini_lm
from saelib.cache import read_json
from saelib.errors import UserError

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

EMBEDDED_FOLDER = Path(__file__).parent / "models" / "mini"
HOOK_NAME = "blocks.0.hook_mlp_out"


@dataclass(frozen=True)
class LanguageModel:
    """A 1-layer language model with its tokenizer. Weights are kept as trained: nothing folded, nothing centred."""

    name: str
    weights: dict[str, Tensor]
    """fp32, under transformer_lens's names."""
    tokenizer: tokenizers.Tokenizer
    key: str
    """Hash of weights and tokenizer: part of every key derived from the model."""
    center_writing_weights: bool = False

    @property
    def cfg(self) -> mini_lm.MiniLMConfig:
        """The model's shape, read off its weights."""
        n_heads, d_model, _ = self.weights["blocks.0.attn.W_Q"].shape
        d_vocab, n_ctx = self.weights["embed.W_E"].shape[0], self.weights["pos_embed.W_pos"].shape[0]
        return mini_lm.MiniLMConfig(d_model=d_model, n_heads=n_heads, n_ctx=n_ctx, d_vocab=d_vocab)

    def plain(self, dtype: torch.dtype = torch.float32) -> mini_lm.PlainBlock:
        """The block's arithmetic, laid out for bulk work."""
        return mini_lm.PlainBlock(self.weights, dtype)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return self.weights["unembed.W_U"]

    def residual_mid(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """`blocks.0.hook_resid_mid`: embedding, position and attention."""
        x = self.weights["embed.W_E"][tokens] + self.weights["pos_embed.W_pos"][: tokens.shape[1]]
        return x + mini_lm.attention(x, self.weights)

    def mlp_out(self, residual_mid: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """`blocks.0.hook_mlp_out` from `residual_mid`."""
        w, b = self.weights["blocks.0.ln2.w"], self.weights["blocks.0.ln2.b"]
        return mini_lm.mlp(F.layer_norm(residual_mid, residual_mid.shape[-1:], w, b), self.weights)

    def logits(self, residual: Float[Tensor, "... d"]) -> Float[Tensor, "... d_vocab"]:
        """Next-token logits from the residual stream after the block."""
        w, b = self.weights["ln_final.w"], self.weights["ln_final.b"]
        return F.layer_norm(residual, residual.shape[-1:], w, b) @ self.W_U

    @functools.cached_property
    def hooked(self) -> HookedTransformer:
        """The same model in transformer_lens (imported here, since that takes seconds)."""
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        cfg = self.cfg
        hooked_cfg = HookedTransformerConfig(
            n_layers=1, d_model=cfg.d_model, n_ctx=cfg.n_ctx, d_head=cfg.d_head, n_heads=cfg.n_heads, d_mlp=cfg.d_mlp,
            d_vocab=cfg.d_vocab, act_fn="gelu", normalization_type="LN", seed=None, device="cpu", model_name=self.name,
        )  # fmt: skip
        hooked = HookedTransformer(hooked_cfg)
        state = {**hooked.state_dict(), **self.weights, "unembed.b_U": torch.zeros(cfg.d_vocab)}
        hooked.load_state_dict(state)
        return hooked.eval().requires_grad_(False)

    def check_against_hooked(
        self, tokens: Int[Tensor, "b t"], tolerance: float = 1e-5, plain: mini_lm.PlainBlock | None = None
    ) -> float:
        """Largest difference of plain and transformer_lens `mlp_out`, relative to the largest entry; refuse a bad one."""
        _, cache = self.hooked.run_with_cache(tokens, names_filter=HOOK_NAME, stop_at_layer=1)
        expected = cache[HOOK_NAME]
        got = (plain or self.plain()).mlp_out(tokens)
        error = float((got - expected).abs().max() / expected.abs().max())
        if not error <= tolerance:
            raise UserError(
                f"plain arithmetic must agree with transformer_lens to {tolerance:g}",
                f"{error:g}",
                "report this as a bug",
            )
        return error

    def to_tokens(self, text: str) -> Int[Tensor, "1 t"]:
        """BOS and the text's tokens, cut to the model's context."""
        ids = [self.bos, *self.tokenizer.encode(text).ids][: self.cfg.n_ctx]
        return torch.tensor([ids])

    def to_str_tokens(self, tokens: Any) -> list[str]:
        """Each token's own text; bytes that are no whole character show as U+FFFD."""
        return [self.vocabulary[int(token)] for token in tokens]

    @functools.cached_property
    def vocabulary(self) -> list[str]:
        """The text of every token."""
        special = {self.bos: "<|bos|>", self.eos: "<|eos|>"}
        decode = self.tokenizer.decode
        return [special.get(i) or decode([i], skip_special_tokens=False) for i in range(self.cfg.d_vocab)]

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise UserError(
                "tokenizer must hold the token", repr(token), "use the tokenizer the model was trained with"
            )
        return found

    @property
    def bos(self) -> int:
        """The token at the head of every context."""
        return self._id("<|bos|>")

    @property
    def eos(self) -> int:
        """The token after every document."""
        return self._id("<|eos|>")

    @property
    def hyphen(self) -> int:
        """The token "-"."""
        return self._id("-")


def mlp_out_source(
    hooked: HookedTransformer, tokens: Int[Tensor, "b t"], tolerance: float = 1e-5
) -> tuple[Callable[[Int[Tensor, "b t"]], Float[Tensor, "b t d"]], bool]:
    """The fastest right way to a transformer_lens model's `blocks.0.hook_mlp_out`, and whether it is plain arithmetic.

    Plain where the architecture is the one written out in `saelib.mini_lm` and the two agree on `tokens` to `tolerance` of
    the largest entry; the model itself, stopped after its first layer, for all others.
    """

    def adapter(tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        return hooked.run_with_cache(tokens, names_filter=HOOK_NAME, stop_at_layer=1)[1][HOOK_NAME]

    known = {
        "act_fn": ("gelu",), "normalization_type": ("LN", "LNPre"), "positional_embedding_type": ("standard",),
        "attention_dir": ("causal",), "attn_only": (False,), "parallel_attn_mlp": (False,), "gated_mlp": (False,),
        "use_local_attn": (False,), "scale_attn_by_inverse_layer_idx": (False,), "use_attn_scale": (True,),
        "post_embedding_ln": (False,), "use_normalization_before_and_after": (False,), "eps": (1e-5,),
        "n_key_value_heads": (None,), "dtype": (torch.float32,),
    }  # fmt: skip
    missing = object()
    if all(getattr(hooked.cfg, name, missing) in values for name, values in known.items()):
        block = mini_lm.PlainBlock({name: tensor.detach() for name, tensor in hooked.state_dict().items()})
        with torch.no_grad():
            expected = adapter(tokens)
        if (block.mlp_out(tokens) - expected).abs().max() <= tolerance * expected.abs().max():
            return block.mlp_out, True
    return adapter, False


def load_embedded(folder: Path = EMBEDDED_FOLDER) -> LanguageModel:
    """The language model that comes with the package.

    Raises:
        UserError: a file is missing, or a tensor is missing or not finite.
    """
    weights_file, tokenizer_file = folder / "model.safetensors", folder / "tokenizer.json"
    for file in (weights_file, tokenizer_file, folder / "config.json"):
        if not file.exists():
            raise UserError("embedded model must be complete", f"no {file}", "reinstall saelib or check out the file")
    weights = {name: tensor.float() for name, tensor in load_file(weights_file).items()}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError("model weights must be finite", f"{name} in {weights_file}", "check out the file again")
    digest = hashlib.sha256(weights_file.read_bytes() + tokenizer_file.read_bytes()).hexdigest()[:16]
    model = LanguageModel("saelib-mini", weights, tokenizers.Tokenizer.from_file(str(tokenizer_file)), digest)
    expected = read_json(folder / "config.json")["d_model"]
    if model.cfg.d_model != expected:
        raise UserError(f"d_model must be {expected} as config.json says", model.cfg.d_model, "reinstall saelib")
    return model
