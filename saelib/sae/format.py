"""SAEs on disk: the SAELens folder, and the `.pt` files of the study. Nothing is ever unpickled.

    folder/cfg.json                       what it is: architecture, sizes, normalisation, and metadata about its training
    folder/sae_weights.safetensors        W_enc, b_enc, W_dec, b_dec; JumpReLU adds threshold

Both readers give plain fields and tensors, checked against each other, for `saelib.sae.sae` to build on. The folder is
SAELens 6's; folders of versions 3 to 5, which kept everything at the top level of `cfg.json`, are read too.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from saelib.base.cache import SUMS_FILE, atomic_dir, disk_errors, read_json, require_intact
from saelib.base.errors import UserError
from saelib.lm.hook_point import canonical_hook

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SCALER_FILE = "activation_scaler.json"
"""Beside an SAELens checkpoint whose activation scale is not in its weights yet."""
WHITENING_FILE = "activation_whitening.safetensors"
FORMAT_VERSION = "6.0.0"
"""SAELens reads the metadata of a folder only if it says that it is of this version or newer."""
ARCHITECTURES = ("standard", "jumprelu", "topk")
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")
RUN_TIME_NORMALISATIONS = ("constant_norm_rescale", "layer_norm")
"""Applied to each activation when the SAE is used. The other modes are a fold of the weights, done after training."""
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
OWN_METADATA = ("hook_name", "model_name", "center_writing_weights")
_REMEDY = f"pass a folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}"


def tensor_shapes(architecture: str, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an SAE's tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)
    }  # fmt: skip
    return shapes | ({"threshold": (d_sae,)} if architecture == "jumprelu" else {})


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write an SAE folder, all at once or not at all; an SAE already there is replaced.

    Raises:
        UserError: `folder` holds something other than an SAE, a tensor is not finite, or the disk refuses.
    """
    folder = Path(folder)
    ours = {CONFIG_FILE, WEIGHTS_FILE, SUMS_FILE}
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= ours):
        raise UserError("an SAE must be saved to a folder of its own", folder, "choose a new or empty folder")
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    _require_finite(plain, folder)
    config = {**config, "metadata": {"sae_lens_version": FORMAT_VERSION, **config.get("metadata", {})}}
    with atomic_dir(folder) as temporary:
        # Through bytes, not through the library's own file writer: a full disk then arrives as an OSError.
        (temporary / WEIGHTS_FILE).write_bytes(safetensors.torch.save(plain))
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    return folder


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields for `SAEConfig` and fp32 tensors of an SAELens folder.

    A checkpoint that SAELens wrote during training with `expected_average_only_in` has its scale `s` beside it; it is
    folded in as SAELens does when training ends: W_enc s, W_dec / s, b_dec / s. Without that file the weights are taken
    as they are, which is what SAELens does too.

    Raises:
        UserError: not such a folder, a pickle, an architecture or mode unknown here, a missing, misshapen or non-finite
            tensor, a file that is not as the folder's `SHA256SUMS`, if it has one, says.
    """
    folder = Path(folder)
    _refuse_pickle(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"an SAE folder must hold {name}", folder, _REMEDY)
    raw = read_json(folder / CONFIG_FILE)
    if not isinstance(raw, dict):
        raise UserError(f"{CONFIG_FILE} must hold a JSON object", folder / CONFIG_FILE, _REMEDY)
    fields, tensors = checked(raw, lambda: _read_tensors(folder / WEIGHTS_FILE), folder)
    require_intact(folder, "an SAE", f"copy or train it again (or delete {SUMS_FILE} if the change was meant)")
    if fields["normalize_activations"] == "expected_average_only_in" and (folder / SCALER_FILE).is_file():
        scale = (read_json(folder / SCALER_FILE) or {}).get("scaling_factor")
        if scale is not None:
            tensors |= {
                "W_enc": tensors["W_enc"] * scale, "W_dec": tensors["W_dec"] / scale, "b_dec": tensors["b_dec"] / scale
            }  # fmt: skip
            fields["normalize_activations"] = "none"
    if (folder / WHITENING_FILE).is_file():
        got = f"{WHITENING_FILE} in {folder}"
        raise UserError("whitening must be folded into the weights", got, "pass the SAE that SAELens saved at the end")
    return fields, tensors


def checked(
    raw: Mapping[str, Any], read: Callable[[], Mapping[str, Tensor]] | Mapping[str, Tensor], source: Path | str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields for `SAEConfig` and fp32 tensors from the contents of a `cfg.json` and its weights, checked against each other.

    Args:
        read: the tensors, or what reads them once the configuration is known to be of a kind that is understood.
        source: the folder or release, for messages.

    Raises:
        UserError: an architecture or mode unknown here, a missing, misshapen or non-finite tensor.
    """
    fields = _fields(dict(raw), source / CONFIG_FILE if isinstance(source, Path) else source)
    tensors = {name: tensor.detach().float() for name, tensor in (read() if callable(read) else read).items()}
    if fields["architecture"] == "jumprelu" and "log_threshold" in tensors:  # SAELens before 4
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    _drop_unit_scaling(tensors, source)
    _check_tensors(tensors, fields, source)
    return fields, tensors


def read_study_files(weights: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields and tensors of an SAE as the study's trainer keeps it: `NAME.pt` and, beside it, `NAME_cfg.json`.

    The `.pt` is a state dict (`W_enc`, `b_enc`, `W_dec`, `b_dec`), loaded with `weights_only=True`: tensors and nothing
    else. The sizes are the tensors'; `act_size` (or `d_mlp`) and `dict_mult` or `dict_size` must agree where given. The
    trainer loads its model with transformer_lens's defaults, which centre the writing weights.

    Raises:
        UserError: no such pair, more than tensors in the pickle, a missing or misshapen tensor, sizes that disagree.
    """
    weights = Path(weights)
    config = weights.with_name(f"{weights.stem}_cfg.json")
    for path in (weights, config):
        if not path.is_file():
            raise UserError("the study's SAE must be NAME.pt with NAME_cfg.json beside it", f"no {path}", _REMEDY)
    raw = read_json(config)
    if not isinstance(raw, dict):
        raise UserError("the study's configuration must be a JSON object", config, "copy the file again")
    try:
        with warnings.catch_warnings():  # about the pickle's protocol: a bad file is an error below, a good one is fine
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        rule = "a .pt file must hold tensors and nothing else (anything else could run code when opened)"
        raise UserError(rule, weights, "get the file from its author again, or convert it to safetensors") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError("a .pt file must hold a state dict of tensors", weights, "save sae.state_dict()")
    tensors = {str(name): tensor.float() for name, tensor in loaded.items()}
    if "W_enc" not in tensors or tensors["W_enc"].ndim != 2:
        raise UserError(
            "a .pt file must hold W_enc as a matrix", f"{sorted(tensors)} in {weights}", "save the whole SAE"
        )
    d_in, d_sae = tensors["W_enc"].shape
    _compare_sizes(raw, d_in, d_sae, config)
    site, layer = raw.get("site", "mlp_out" if "act_size" in raw else "post"), raw.get("layer", 0)
    names = {"mlp_out": f"blocks.{layer}.hook_mlp_out", "post": f"blocks.{layer}.mlp.hook_post"}
    names |= {name: f"blocks.{layer}.hook_{name}" for name in ("resid_pre", "resid_mid", "resid_post")}
    fields = {
        "d_in": d_in, "d_sae": d_sae, "architecture": "standard", "normalize_activations": "none",
        "apply_b_dec_to_input": True, "hook_name": str(raw.get("act_name") or names.get(site, str(site))),
        "model_name": str(raw.get("model_name", "gelu-1l")),
        "center_writing_weights": bool(raw.get("center_writing_weights", True)), "metadata": {"study": raw},
    }  # fmt: skip
    _check_tensors(tensors, fields, weights)
    return fields, tensors


def _compare_sizes(raw: dict[str, Any], d_in: int, d_sae: int, config: Path) -> None:
    width = raw.get("act_size", raw.get("d_mlp") if "site" not in raw else None)
    stated = raw.get("dict_size")
    if stated is None and "dict_mult" in raw:
        stated = raw["dict_mult"] * (width or d_in)
    for name, given, actual in (("act_size", width, d_in), ("dict_size", stated, d_sae)):
        if given is not None and given != actual:
            raise UserError(f"{name} must be the weights' {actual}", f"{given} in {config}", "pair the right two files")


def _fields(raw: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """Fields of `SAEConfig` from a `cfg.json` of any SAELens version since 3, or ours."""
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError("metadata of an SAE must be a JSON object", path, "write the folder again")
    known = {**raw, **metadata}
    # what older versions wrote for the same things
    activation = raw.get("activation_fn", raw.get("activation_fn_str", "relu"))
    k = raw.get("k", (raw.get("activation_fn_kwargs") or {}).get("k"))
    architecture = "topk" if activation == "topk" else raw.get("architecture", "standard")
    normalise = raw.get("normalize_activations") or "none"
    if normalise is True:
        normalise = "expected_average_only_in"
    _refuse_other_kinds(raw, known, str(architecture), path)
    hook = str(known.get("hook_name") or known.get("hook_point") or "")
    reshape = raw.get("reshape_activations", "hook_z" if "hook_z" in hook else "none")
    for name, value, allowed in (
        ("activation_fn", activation, ("relu", "topk")),
        ("normalize_activations", normalise, NORMALISATIONS),
        ("reshape_activations", reshape, ("none",)),
    ):
        if value not in allowed:
            rule = f"{name} of an SAE must be one of {', '.join(allowed)}"
            raise UserError(rule, f"{value!r} in {path}", "pass an SAE of a kind that is known here")
    for name in ("d_in", "d_sae", *(["k"] if architecture == "topk" else [])):
        value = k if name == "k" else raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(
                f"{name} of an SAE must be a positive integer", f"{value!r} in {path}", "write the folder again"
            )
    # SAELens records how the model was loaded under this other name.
    loading = known.get("model_from_pretrained_kwargs") or {}
    centred = known.get("center_writing_weights", loading.get("center_writing_weights"))
    return {
        "d_in": raw["d_in"],
        "d_sae": raw["d_sae"],
        "architecture": architecture,
        "k": k if architecture == "topk" else None,
        "rescale_acts_by_decoder_norm": architecture == "topk" and bool(raw.get("rescale_acts_by_decoder_norm", False)),
        "apply_b_dec_to_input": bool(raw.get("apply_b_dec_to_input", True)),
        "normalize_activations": normalise,
        "hook_name": canonical_hook(hook),
        "model_name": str(known.get("model_name") or ""),
        "center_writing_weights": None if centred is None else bool(centred),
        "metadata": {
            name: value
            for name, value in metadata.items()
            if name not in OWN_METADATA and (name, value) != ("sae_lens_version", FORMAT_VERSION)
        },
    }


def _refuse_other_kinds(raw: dict[str, Any], known: dict[str, Any], architecture: str, path: Path | str) -> None:
    """Dictionaries that are no SAE of one activation (transcoders write elsewhere than they read, crosscoders read several)
    and kinds of SAE that are not known here."""
    remedy = f"pass an SAE whose architecture is {', '.join(ARCHITECTURES[:-1])} or {ARCHITECTURES[-1]}"
    hook, written = (known.get(name) for name in ("hook_name", "hook_name_out"))
    elsewhere = raw.get("d_out") not in (None, raw.get("d_in")) or bool(written and written != hook)
    several = isinstance(hook, list | tuple) or isinstance(raw.get("d_in"), list | tuple)
    for other, is_one in (("transcoder", elsewhere), ("crosscoder", several)):
        if is_one or other in architecture:
            rule = "an SAE must rebuild the one activation that it reads"
            raise UserError(rule, f"a {other} in {path}", remedy)
    if architecture not in ARCHITECTURES:
        rule = f"architecture of an SAE must be one of {', '.join(ARCHITECTURES)}"
        raise UserError(rule, f"{architecture!r} in {path}", remedy)


def _refuse_pickle(path: Path) -> None:
    """A file that must be unpickled is refused whatever it is called: opening one can run any code."""
    rule = "an SAE must come as safetensors: opening a pickle can run any code"
    if path.is_file() and path.suffix in PICKLES:
        raise UserError(rule, path, f"{_REMEDY}, or the study's NAME.pt with NAME_cfg.json beside it")
    if path.is_dir() and not (path / WEIGHTS_FILE).exists():
        found = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        if found:
            raise UserError(rule, f"{found[0]} in {path}", "convert it with the library that wrote it")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with disk_errors(path):
        data = path.read_bytes()
    if data[:2] == b"PK" or data[:1] == b"\x80":  # what torch.save and pickle write, by another name
        rule = "weights must be an intact safetensors file, not a pickle: opening one can run any code"
        raise UserError(rule, path, "convert it with the library that wrote it")
    try:
        return dict(safetensors.torch.load(data))
    except SafetensorError as error:
        raise UserError("weights must be an intact safetensors file", path, "copy or train the SAE again") from error


def _drop_unit_scaling(tensors: dict[str, Tensor], folder: Path | str) -> None:
    """SAELens 3 wrote a `scaling_factor` of ones, which says nothing; any other value changes the reconstruction."""
    if "scaling_factor" in tensors:
        if not torch.allclose(tensors["scaling_factor"], torch.ones(())):
            remedy = "load and save it once with SAELens"
            raise UserError("scaling_factor of an SAE must be 1", f"another value in {folder}", remedy)
        del tensors["scaling_factor"]


def _check_tensors(tensors: Mapping[str, Tensor], fields: Mapping[str, Any], source: Path | str) -> None:
    shapes = tensor_shapes(fields["architecture"], fields["d_in"], fields["d_sae"])
    if set(tensors) != set(shapes):
        what = source.name if isinstance(source, Path) and not source.is_dir() else WEIGHTS_FILE
        raise UserError(f"{what} must hold {sorted(shapes)}", f"{sorted(tensors)} in {source}", _REMEDY)
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            got = f"{tuple(tensors[name].shape)} in {source}"
            raise UserError(f"{name} must have the shape {shape} that {CONFIG_FILE} gives", got, _REMEDY)
    _require_finite(tensors, source)


def _require_finite(tensors: Mapping[str, Tensor], folder: Path | str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} of an SAE must be finite", f"NaN or infinity for {folder}", "train the SAE again")
