"""The sparse autoencoder: what it computes, how it begins, how it lies on disk.

Every weight has one orientation, here and everywhere in the package: `W_enc` is (d_in, d_sae), `W_dec` is
(d_sae, d_in).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from saelib.cache import atomic_dir, disk_errors, read_json
from saelib.errors import UserError

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
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

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name} must be a positive integer", value, "give the number of dimensions")

    def to_dict(self) -> dict[str, Any]:
        """The `cfg.json` of the SAELens folder format (architecture "standard")."""
        own = {
            "hook_name": self.hook_name,
            "model_name": self.model_name,
            "center_writing_weights": self.center_writing_weights,
        }
        return {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {**self.metadata, **own},
            "architecture": "standard",
        }


class SAEOutput(NamedTuple):
    """What `SAE.forward` returns."""

    x_hat: Float[Tensor, "*batch d_in"]
    """The reconstruction."""
    feature_acts: Float[Tensor, "*batch d_sae"]
    """The feature activations, zero or positive."""


class SAE(nn.Module):
    """A one-layer autoencoder with a ReLU.

    feature_acts = relu((x - b_dec) @ W_enc + b_enc)        x_hat = feature_acts @ W_dec + b_dec

    Built with all parameters zero; `init_random`, `init_from_narrow` and `load_sae` fill them.
    """

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_enc = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_sae))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, cfg.d_in))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations of x."""
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from feature activations."""
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> SAEOutput:
        """Encode, then decode."""
        feature_acts = self.encode(x)
        return SAEOutput(self.decode(feature_acts), feature_acts)


def kaiming_uniform(shape: tuple[int, int], generator: torch.Generator | None) -> Float[Tensor, "fan_out fan_in"]:
    """Uniform on ±sqrt(6 / fan_in), with fan_in the *second* dimension.

    That is what torch's initialiser does to a matrix stored as the study stores them, so `W_enc` begins with bound
    sqrt(6 / d_sae) although its true fan-in is d_in. Kept, because it sets the scale everything else starts from.
    """
    bound = math.sqrt(6 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def unit_rows(W: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Rows scaled to unit Euclidean norm; a row of zeros stays zero."""
    return W / W.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)


@torch.no_grad()
def init_random(cfg: SAEConfig, generator: torch.Generator) -> SAE:
    """The study's standard initialisation: Kaiming-uniform weights, unit decoder rows, zero biases."""
    sae = SAE(cfg)
    sae.W_enc.copy_(kaiming_uniform((cfg.d_in, cfg.d_sae), generator))
    sae.W_dec.copy_(unit_rows(kaiming_uniform((cfg.d_sae, cfg.d_in), generator)))
    return sae


@torch.no_grad()
def init_from_narrow(narrow: SAE, cfg: SAEConfig, normalise: bool, generator: torch.Generator) -> SAE:
    """Begin a wide SAE as a narrow one plus fresh features.

    Features 0 ... d_narrow-1 are the narrow SAE's: its encoder columns, encoder biases and decoder rows, and `b_dec` is
    its `b_dec`. The rest begin as in `init_random`: Kaiming-uniform, zero bias.

    `normalise=True` then scales every decoder row, copied or fresh, to unit norm. With False they stay as they are: the
    fresh rows have norm near sqrt(2), the copies differ from 1 by one optimiser step. The training step normalises the
    rows after each backward pass in either case, so this choice is about the first loss and its gradients.

    Raises:
        UserError: the wide SAE is smaller than the narrow one, or they belong to different models or sites.
    """
    d_narrow = narrow.cfg.d_sae
    if cfg.d_sae < d_narrow:
        rule = f"d_sae of the wide SAE must be at least the narrow SAE's {d_narrow}"
        raise UserError(rule, cfg.d_sae, "widen the wide SAE or pass a narrower one")
    for name in ("d_in", "hook_name", "model_name", "center_writing_weights"):
        wide_value, narrow_value = getattr(cfg, name), getattr(narrow.cfg, name)
        if wide_value != narrow_value:
            rule = f"{name} of the wide SAE must be the narrow SAE's ({narrow_value!r})"
            raise UserError(rule, repr(wide_value), "use one model, one site and one weight processing for both")
    sae = SAE(cfg)
    sae.W_enc.copy_(kaiming_uniform((cfg.d_in, cfg.d_sae), generator))
    sae.W_dec.copy_(kaiming_uniform((cfg.d_sae, cfg.d_in), generator))
    sae.W_enc[:, :d_narrow] = narrow.W_enc
    sae.b_enc[:d_narrow] = narrow.b_enc
    sae.W_dec[:d_narrow] = narrow.W_dec
    sae.b_dec.copy_(narrow.b_dec)
    if normalise:
        sae.W_dec.copy_(unit_rows(sae.W_dec))
    return sae


def save_sae(sae: SAE, folder: Path) -> Path:
    """Write `folder` in the SAELens format, all at once or not at all; an SAE already there is replaced.

    Raises:
        UserError: `folder` holds something other than an SAE, a parameter is not finite, or the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= {CONFIG_FILE, WEIGHTS_FILE}):
        raise UserError("an SAE must be saved to a folder of its own", folder, "choose a new or empty folder")
    tensors = {name: getattr(sae, name).detach().to("cpu", torch.float32).contiguous() for name in PARAMETERS}
    _require_finite(tensors, folder)
    with atomic_dir(folder) as temporary:
        # Through bytes, not through the library's own file writer: a full disk then arrives as an OSError.
        (temporary / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
        (temporary / CONFIG_FILE).write_text(json.dumps(sae.cfg.to_dict(), indent=2) + "\n")
    return folder


def load_sae(folder: str | Path) -> SAE:
    """Read an SAE folder written by `save_sae` or by SAELens (architecture "standard"). Nothing is ever unpickled.

    Weights become float32. An SAE that does not subtract `b_dec` from its input is rewritten as one that does:
    relu(x @ W_enc + b_enc) = relu((x - b_dec) @ W_enc + (b_enc + b_dec @ W_enc)).

    Raises:
        UserError: not such a folder, another architecture, a missing, misshapen or non-finite tensor.
    """
    folder = Path(folder)
    remedy = f"pass a folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}"
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"an SAE folder must hold {name}", folder, remedy)
    raw = read_json(folder / CONFIG_FILE)
    if not isinstance(raw, dict):
        raise UserError(f"{CONFIG_FILE} must hold a JSON object", folder / CONFIG_FILE, remedy)
    cfg = _config_from_dict(raw, folder / CONFIG_FILE)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    shapes = {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "b_enc": (cfg.d_sae,),
        "W_dec": (cfg.d_sae, cfg.d_in),
        "b_dec": (cfg.d_in,),
    }
    if set(tensors) != set(shapes):
        raise UserError(f"{WEIGHTS_FILE} must hold {sorted(shapes)}", f"{sorted(tensors)} in {folder}", remedy)
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            got = f"{tuple(tensors[name].shape)} in {folder}"
            raise UserError(f"{name} must have the shape {shape} that {CONFIG_FILE} gives", got, remedy)
    _require_finite(tensors, folder)
    sae = SAE(cfg)
    with torch.no_grad():
        for name in PARAMETERS:
            getattr(sae, name).copy_(tensors[name])
        if not raw.get("apply_b_dec_to_input", True):
            sae.b_enc.add_(sae.b_dec @ sae.W_enc)
    return sae


def _config_from_dict(raw: dict[str, Any], path: Path) -> SAEConfig:
    """`SAEConfig` from a `cfg.json`, ours or SAELens's."""
    supported = {"architecture": "standard", "normalize_activations": "none", "reshape_activations": "none"}
    for name, value in supported.items():
        if raw.get(name, value) != value:
            got = f"{raw[name]!r} in {path}"
            raise UserError(f"{name} of an SAE must be {value!r}", got, "convert it to a standard SAE first")
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError("metadata of an SAE must be a JSON object", path, "write the folder again")
    known = {**raw, **metadata}  # before its version 6, SAELens kept these names at the top level
    for name in ("d_in", "d_sae"):
        if not isinstance(raw.get(name), int):
            got = f"{raw.get(name)!r} in {path}"
            raise UserError(f"{name} of an SAE must be a positive integer", got, "write the folder again")
    # SAELens records how the model was loaded under this other name.
    loading = known.get("model_from_pretrained_kwargs") or {}
    centred = known.get("center_writing_weights", loading.get("center_writing_weights"))
    own = ("hook_name", "model_name", "center_writing_weights")
    return SAEConfig(
        d_in=raw["d_in"],
        d_sae=raw["d_sae"],
        hook_name=str(known.get("hook_name") or ""),
        model_name=str(known.get("model_name") or ""),
        center_writing_weights=None if centred is None else bool(centred),
        metadata={name: value for name, value in metadata.items() if name not in own},
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with disk_errors(path):
        data = path.read_bytes()
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise UserError("weights must be an intact safetensors file", path, "copy or train the SAE again") from error


def _require_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} of an SAE must be finite", f"NaN or infinity for {folder}", "train the SAE again")
