"""A language model as the rest of the package uses it: activations at one hook, and next-token logits when they are replaced.

`LanguageModel` is the interface. `OneLayerModel` is the embedded model and gelu-1l: bulk work runs the block's formulas
directly (`saelib.lm.mini_lm`), faster than transformer_lens, and every harvest checks its first batch against
transformer_lens. `saelib.lm.hf_model` is any Hugging Face causal model.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from saelib.base.cache import read_json
from saelib.base.errors import UserError
from saelib.lm import mini_lm
from saelib.lm.hooked import hook_value, hooked_model

EMBEDDED_FOLDER = Path(__file__).parent / "models" / "mini"
HOOK_NAME = "blocks.0.hook_mlp_out"
HarvestDtype = Literal["float32", "bfloat16"]
Logits = Callable[..., Tensor]
"""`logits(put, at=...)`: see `LanguageModel.splice`."""
HARVEST_TOLERANCE: dict[HarvestDtype, float] = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest difference from transformer_lens, relative to the largest entry, that a harvest in each may have."""


class LanguageModel(ABC):
    """A language model with its tokenizer and one hook."""

    name: str
    key: str
    """Hash of weights and tokenizer: part of every key derived from the model."""
    tokenizer: tokenizers.Tokenizer
    hook_name: str
    """Where the SAE sits."""
    center_writing_weights: bool
    """Whether the mean over d_model was taken out of the weights that write to the residual stream; stores and SAEs record
    it, and those that differ are not mixed."""
    bos_token: str
    eos_token: str
    n_layers = 1
    """Layers in all."""

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """Longest context."""

    @property
    @abstractmethod
    def d_vocab(self) -> int:
        """Number of tokens."""

    @property
    @abstractmethod
    def d_in(self) -> int:
        """Width of the activation at the hook."""

    @property
    @abstractmethod
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""

    @property
    def device(self) -> torch.device:
        """Where the weights are, and what is computed; tokens may come from anywhere."""
        return self.W_U.device

    @property
    def contexts_at_a_time(self) -> int:
        """Contexts that bulk work reads in one call: few keep a processor's caches, many keep a GPU busy."""
        return 32 if self.device.type == "cpu" else 256

    def on(self, device: torch.device) -> LanguageModel:
        """The model on a device: itself when it is there, else a copy.

        Raises:
            UserError: this kind of model cannot be moved.
        """
        if device == self.device:
            return self
        raise UserError(f"device of the model {self.name} must be {self.device}", device, f"pass {self.device.type}")

    @abstractmethod
    def activations(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d_in"]:
        """The activation at the hook."""

    @abstractmethod
    def splice(self, tokens: Int[Tensor, "b t"]) -> tuple[Tensor, Logits]:
        """The activation at the hook, and a function from what is put in its place to next-token logits.

        The function gives (b, t, d_vocab), or with `at`, an index of (b, t), the logits there: at few positions most of the
        cost is saved.
        """

    def bulk(self, dtype: HarvestDtype = "float32") -> Callable[[Int[Tensor, "b t"]], Float[Tensor, "b t d_in"]]:
        """`activations`, laid out for bulk work.

        Raises:
            UserError: this model is not computed in `dtype`.
        """
        if dtype != "float32":
            raise UserError("activations of this model must be computed in float32", dtype, "use the default")
        return self.activations

    def check(self, tokens: Int[Tensor, "b t"], dtype: HarvestDtype = "float32") -> float:
        """Largest relative difference of `bulk` from another implementation's; 0 where this is the only one."""
        return 0.0

    def to_tokens(self, text: str) -> Int[Tensor, "1 t"]:
        """BOS and the text's tokens, cut to the model's context."""
        ids = [self.bos, *self.tokenizer.encode(text, add_special_tokens=False).ids][: self.n_ctx]
        return torch.tensor([ids])

    def to_str_tokens(self, tokens: Any) -> list[str]:
        """Each token's own text; bytes that are no whole character show as U+FFFD."""
        return [self.vocabulary[int(token)] for token in tokens]

    @functools.cached_property
    def vocabulary(self) -> list[str]:
        """The text of every token."""
        special = {self.eos: self.eos_token, self.bos: self.bos_token}
        decode = self.tokenizer.decode
        return [special.get(i) or decode([i], skip_special_tokens=False) for i in range(self.d_vocab)]

    def token_id(self, token: str) -> int:
        """The id of a token.

        Raises:
            UserError: the tokenizer does not have it as one token.
        """
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise UserError(
                "tokenizer must hold the token", repr(token), "use the tokenizer the model was trained with"
            )
        return found

    @property
    def bos(self) -> int:
        """The token at the head of every context."""
        return self.token_id(self.bos_token)

    @property
    def eos(self) -> int:
        """The token after every document."""
        return self.token_id(self.eos_token)


@dataclass(frozen=True)
class OneLayerModel(LanguageModel):
    """A 1-layer GELU transformer, hooked at the output of its MLP."""

    name: str
    weights: dict[str, Tensor]
    """fp32, under transformer_lens's names, processed as `center_writing_weights` says and not otherwise."""
    tokenizer: tokenizers.Tokenizer
    key: str
    center_writing_weights: bool = False
    bos_token: str = "<|bos|>"
    eos_token: str = "<|eos|>"
    hook_name: str = HOOK_NAME

    @property
    def cfg(self) -> mini_lm.MiniLMConfig:
        """The model's shape, read off its weights."""
        n_heads, d_model, _ = self.weights["blocks.0.attn.W_Q"].shape
        d_vocab, n_ctx = self.weights["embed.W_E"].shape[0], self.weights["pos_embed.W_pos"].shape[0]
        return mini_lm.MiniLMConfig(d_model=d_model, n_heads=n_heads, n_ctx=n_ctx, d_vocab=d_vocab)

    def on(self, device: torch.device) -> OneLayerModel:
        """The model on a device: itself when it is there, else a copy."""
        if device == self.device:
            return self
        return replace(self, weights={name: tensor.to(device) for name, tensor in self.weights.items()})

    def plain(self, dtype: torch.dtype = torch.float32) -> mini_lm.PlainBlock:
        """The block's arithmetic, laid out for bulk work."""
        return mini_lm.PlainBlock(self.weights, dtype)

    @property
    def n_ctx(self) -> int:
        """Longest context."""
        return self.cfg.n_ctx

    @property
    def d_vocab(self) -> int:
        """Number of tokens."""
        return self.cfg.d_vocab

    @property
    def d_in(self) -> int:
        """`mlp_out` is as wide as the residual stream."""
        return self.cfg.d_model

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return self.weights["unembed.W_U"]

    def residual_mid(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """`blocks.0.hook_resid_mid`: embedding, position and attention."""
        x = self.weights["embed.W_E"][tokens.to(self.device)] + self.weights["pos_embed.W_pos"][: tokens.shape[1]]
        return x + mini_lm.attention(x, self.weights)

    def mlp_out(self, residual_mid: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """`blocks.0.hook_mlp_out` from `residual_mid`."""
        w, b = self.weights["blocks.0.ln2.w"], self.weights["blocks.0.ln2.b"]
        return mini_lm.mlp(F.layer_norm(residual_mid, residual_mid.shape[-1:], w, b), self.weights)

    def logits(self, residual: Float[Tensor, "... d"]) -> Float[Tensor, "... d_vocab"]:
        """Next-token logits from the residual stream after the block."""
        w, b = self.weights["ln_final.w"], self.weights["ln_final.b"]
        logits = F.layer_norm(residual, residual.shape[-1:], w, b) @ self.W_U
        return logits + self.weights["unembed.b_U"] if "unembed.b_U" in self.weights else logits

    def activations(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d_in"]:
        """`blocks.0.hook_mlp_out`."""
        return self.mlp_out(self.residual_mid(tokens))

    def splice(self, tokens: Int[Tensor, "b t"]) -> tuple[Tensor, Logits]:
        """The MLP's output, and the logits when it is replaced."""
        mid = self.residual_mid(tokens)

        def logits(mlp_out: Tensor, at: Any = ...) -> Tensor:
            return self.logits((mid + mlp_out)[at])

        return self.mlp_out(mid), logits

    @functools.cached_property
    def hooked(self) -> Any:
        """The same model in transformer_lens on the processor (imported here, since that takes seconds)."""
        weights = {name: tensor.cpu() for name, tensor in self.weights.items()}
        return hooked_model(weights, n_ctx=self.cfg.n_ctx, act_fn="gelu", name=self.name)

    def bulk(self, dtype: HarvestDtype = "float32") -> Callable[[Int[Tensor, "b t"]], Float[Tensor, "b t d_in"]]:
        """The block's arithmetic, laid out for bulk work."""
        return self.plain(torch.bfloat16 if dtype == "bfloat16" else torch.float32).mlp_out

    def check(self, tokens: Int[Tensor, "b t"], dtype: HarvestDtype = "float32") -> float:
        """As `check_against_hooked`, to `HARVEST_TOLERANCE`."""
        plain = self.plain(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        return self.check_against_hooked(tokens, HARVEST_TOLERANCE[dtype], plain)

    def check_against_hooked(
        self, tokens: Int[Tensor, "b t"], tolerance: float = 1e-5, plain: mini_lm.PlainBlock | None = None
    ) -> float:
        """Largest difference of plain and transformer_lens `mlp_out`, relative to the largest entry; refuse a bad one."""
        expected = hook_value(self.hooked, tokens.cpu(), HOOK_NAME)
        got = (plain or self.plain()).mlp_out(tokens).cpu()
        error = float((got - expected).abs().max() / expected.abs().max())
        if not error <= tolerance:
            raise UserError(
                f"plain arithmetic must agree with transformer_lens to {tolerance:g}",
                f"{error:g}",
                "switch TF32 off while text is read, else report this as a bug",
            )
        return error


def load_embedded(folder: Path = EMBEDDED_FOLDER) -> OneLayerModel:
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
    model = OneLayerModel("saelib-mini", weights, tokenizers.Tokenizer.from_file(str(tokenizer_file)), digest)
    expected = read_json(folder / "config.json")["d_model"]
    if model.cfg.d_model != expected:
        raise UserError(f"d_model must be {expected} as config.json says", model.cfg.d_model, "reinstall saelib")
    return model
