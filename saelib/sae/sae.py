"""The sparse autoencoder: what it computes. `saelib.sae.initial` begins one, `saelib.sae.load` opens one.

Every weight has one orientation, here and everywhere in the package: `W_enc` is (d_in, d_sae), `W_dec` is
(d_sae, d_in).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from saelib.base.errors import UserError
from saelib.sae.format import ARCHITECTURES, NORMALISATIONS, RUN_TIME_NORMALISATIONS, tensor_shapes, write_folder

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is, and what it was trained on."""

    d_in: int
    """Width of the activation it reads and rebuilds."""
    d_sae: int
    """Number of features."""
    hook_name: str
    """Activation site, by its transformer_lens name, for example `blocks.0.hook_mlp_out`."""
    model_name: str
    """The language model."""
    center_writing_weights: bool | None = None
    """Whether the model's writing weights were centred, which removes the mean over d_model from the activation and so
    changes what the SAE sees. None: a folder written elsewhere did not say."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping with the weights (seed, tokens, l1_coeff ...); must be JSON."""
    architecture: str = "standard"
    """`standard` (ReLU: what is trained here), `jumprelu` or `topk`, by SAELens's names."""
    k: int | None = None
    """Active features a token, for `topk`."""
    rescale_acts_by_decoder_norm: bool = False
    """For `topk`: choose and report pre-activations times their decoder row's norm."""
    apply_b_dec_to_input: bool = True
    """Whether `b_dec` is subtracted before encoding."""
    normalize_activations: str = "none"
    """SAELens's mode. `constant_norm_rescale` and `layer_norm` scale each activation and undo it after decoding; the
    other modes leave the activation alone."""

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name} must be a positive integer", value, "give the number of dimensions")
        for name, allowed in (("architecture", ARCHITECTURES), ("normalize_activations", NORMALISATIONS)):
            if getattr(self, name) not in allowed:
                rule = f"{name} of an SAE must be one of {', '.join(allowed)}"
                raise UserError(rule, repr(getattr(self, name)), "pass one of these")
        if (self.architecture == "topk") != (self.k is not None) or not 1 <= (self.k or 1) <= self.d_sae:
            raise UserError(f"k must be in [1, d_sae={self.d_sae}] for topk and None otherwise", self.k, "mend k")

    def to_dict(self) -> dict[str, Any]:
        """The `cfg.json` of the SAELens folder format."""
        own = {
            "hook_name": self.hook_name,
            "model_name": self.model_name,
            "center_writing_weights": self.center_writing_weights,
        }
        topk = {"k": self.k, "rescale_acts_by_decoder_norm": self.rescale_acts_by_decoder_norm}
        return {
            **(topk if self.architecture == "topk" else {}),
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": self.normalize_activations,
            "reshape_activations": "none",
            "metadata": {**self.metadata, **own},
            "architecture": self.architecture,
        }


class SAEOutput(NamedTuple):
    """What `SAE.forward` returns."""

    x_hat: Float[Tensor, "*batch d_in"]
    """The reconstruction."""
    feature_acts: Float[Tensor, "*batch d_sae"]
    """The feature activations, zero or positive."""


class Normalised(NamedTuple):
    """A normalised activation: `x * scale + shift` is what it was."""

    x: Float[Tensor, "*batch d_in"]
    scale: Float[Tensor, "*batch 1"] | float
    shift: Float[Tensor, "*batch 1"] | float


class SAE(nn.Module):
    """A one-layer autoencoder.

    feature_acts = relu((x - b_dec) @ W_enc + b_enc)        x_hat = feature_acts @ W_dec + b_dec

    That is `standard`, the only kind trained here. The others differ in what becomes of the pre-activation:
    `jumprelu` keeps it where it exceeds its feature's `threshold`, `topk` keeps a token's `k` largest (with a ReLU).
    `SAEConfig` says which SAEs leave `b_dec` in the input or normalise it first.

    Built with all parameters zero; `saelib.sae.initial` and `saelib.sae.load` fill them.
    """

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_enc = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_sae))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, cfg.d_in))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        if cfg.architecture == "jumprelu":
            self.threshold = nn.Parameter(torch.zeros(cfg.d_sae), requires_grad=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are; what is encoded must be there too."""
        return self.W_enc.device

    def on(self, device: torch.device) -> SAE:
        """The SAE on a device: itself when it is there, else a copy."""
        return self if device == self.device else copy.deepcopy(self).to(device)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations of x."""
        if self.cfg.architecture == "topk":
            return self._topk(x)
        return self._columns(x, slice(None))

    def encode_features(
        self, x: Float[Tensor, "*batch d_in"], features: Integer[Tensor | np.ndarray, " k"]
    ) -> Float[Tensor, "*batch k"]:
        """Some features' activations, in the order asked for: `encode(x)[..., features]`.

        Costs only these features' columns, except under topk, where which features are active depends on all of them
        (`n_encoded`).
        """
        chosen = torch.as_tensor(features).to(self.W_enc.device)
        return self.encode(x)[..., chosen] if self.cfg.architecture == "topk" else self._columns(x, chosen)

    def encode_feature(self, x: Float[Tensor, "*batch d_in"], feature: int) -> Float[Tensor, "*batch"]:
        """One feature's activation: `encode(x)[..., feature]`, at the price of `encode_features`."""
        return self.encode(x)[..., feature] if self.cfg.architecture == "topk" else self._columns(x, feature)

    def n_encoded(self, n_features: int) -> int:
        """Features that are computed to encode `n_features` of them: by this a block of tokens is sized."""
        return self.cfg.d_sae if self.cfg.architecture == "topk" else n_features

    def _columns(self, x: Tensor, features: int | slice | Tensor) -> Tensor:
        """Activations of the kinds whose features do not depend on each other."""
        pre = (self.encoder_input(x) @ self.W_enc[:, features]).add_(self.b_enc[features])
        if self.cfg.architecture == "jumprelu":
            return torch.relu(pre) * (pre > self.threshold[features])
        return pre.relu_()  # in place: blocks of tokens are as large as memory is fast

    def _topk(self, x: Tensor) -> Tensor:
        assert self.cfg.k is not None
        pre = self.encoder_input(x) @ self.W_enc + self.b_enc
        pre = pre * self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else pre
        values, features = pre.topk(self.cfg.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, features, values.relu())

    def decode(
        self, feature_acts: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from feature activations.

        `x` is the activation they came from, needed by an SAE that normalises at run time, to undo that.
        """
        if self.cfg.rescale_acts_by_decoder_norm:
            feature_acts = feature_acts * self._inverse_norm()
        x_hat = feature_acts @ self.W_dec + self.b_dec
        if self.cfg.normalize_activations in RUN_TIME_NORMALISATIONS:
            if x is None:
                raise ValueError("an SAE that normalises its input decodes only beside that input: pass x")
            _, scale, shift = self.normalised(x)
            x_hat = x_hat * scale + shift
        return x_hat

    def contributions(
        self, feature_acts: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """How much of each decoder row stands in the reconstruction: feature j adds `contributions[..., j] * W_dec[j]` to it.

        The activations themselves, except where `decode` divides them by the decoder's norm or scales what it gives back
        to x's. `x` is the activation they came from.
        """
        if self.cfg.rescale_acts_by_decoder_norm:
            feature_acts = feature_acts * self._inverse_norm()
        if self.cfg.normalize_activations in RUN_TIME_NORMALISATIONS:
            feature_acts = feature_acts * self.normalised(x).scale
        return feature_acts

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> SAEOutput:
        """Encode, then decode."""
        feature_acts = self.encode(x)
        return SAEOutput(self.decode(feature_acts, x), feature_acts)

    def save(self, folder: str | Path) -> Path:
        """Write `folder` in the SAELens format, all at once or not at all; an SAE already there is replaced.

        Beside the two files of that format lies `SHA256SUMS`, by which `load_sae` (or `sha256sum -c`) finds a damaged file.

        Raises:
            UserError: `folder` holds something other than an SAE, a parameter is not finite, or the disk refuses.
        """
        names = tensor_shapes(self.cfg.architecture, self.cfg.d_in, self.cfg.d_sae)
        return write_folder(Path(folder), self.cfg.to_dict(), {name: getattr(self, name) for name in names})

    def _inverse_norm(self) -> Tensor:
        """1 / |d_j|; a row of zeros, whose activation is 0, gives a number instead of NaN."""
        return 1 / self.W_dec.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)

    def encoder_input(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """What the encoder's weights meet: x normalised as the SAE does, less b_dec where it is subtracted."""
        x = self.normalised(x).x
        return x - self.b_dec if self.cfg.apply_b_dec_to_input else x

    def normalised(self, x: Float[Tensor, "*batch d_in"]) -> Normalised:
        """x as the SAE normalises it at run time, with what undoes that; x itself where it does not.

        SAELens's layer_norm leaves its 1e-5 out of the scale.
        """
        if self.cfg.normalize_activations == "constant_norm_rescale":
            coefficient = self.cfg.d_in**0.5 / x.norm(dim=-1, keepdim=True)  # in SAELens's order, to its rounding
            return Normalised(x * coefficient, 1 / coefficient, 0.0)
        if self.cfg.normalize_activations == "layer_norm" and x.numel():  # torch warns of the deviation of nothing
            mean, std = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
            return Normalised((x - mean) / (std + 1e-5), std, mean)
        return Normalised(x, 1.0, 0.0)


def require_fits(
    cfg: SAEConfig, *, d_in: int, hook_name: str | None = None, center_writing_weights: bool | None = None
) -> None:
    """Refuse an SAE that was trained on other activations than those at hand; what one side does not state is not compared.

    Raises:
        UserError: another width, another hook, or other weight centring.
    """
    if cfg.d_in != d_in:
        raise UserError(f"the SAE's d_in must be the activations' {d_in}", cfg.d_in, "pass an SAE of this model")
    if cfg.hook_name and hook_name and cfg.hook_name != hook_name:
        rule = f"the SAE's hook must be that of the activations, {hook_name}"
        raise UserError(rule, cfg.hook_name, "harvest at the SAE's hook, or pass an SAE of this one")
    centred = cfg.center_writing_weights
    if None not in (centred, center_writing_weights) and centred != center_writing_weights:
        rule = f"the SAE's center_writing_weights must be that of the activations ({center_writing_weights})"
        raise UserError(rule, centred, "load the model the way the SAE's was loaded")


def require_trainable(cfg: SAEConfig) -> None:
    """Refuse to train what the training step does not compute: anything but a standard (ReLU, L1) SAE."""
    for name, wanted in (
        ("architecture", "standard"),
        ("normalize_activations", "none"),
        ("apply_b_dec_to_input", True),
    ):
        if getattr(cfg, name) != wanted:
            got = repr(getattr(cfg, name))
            raise UserError(f"{name} of an SAE in training must be {wanted!r}", got, "start from a standard SAE")
