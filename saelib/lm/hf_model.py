"""Any Hugging Face causal language model, hooked at the output of an MLP or at the residual stream of a layer.

The model runs as transformers wrote it. Harvesting leaves the forward pass at the hook, so an early layer costs what the
layers before it cost. Nothing is folded. A model comes from a folder, or by its name on the hub from the hub's cache, or from the
hub itself.

`center_writing_weights`, as transformer_lens does it and many published SAEs need it, takes the mean over d_model out of every
weight that writes to the residual stream. The stream and each MLP's output are linear in those, so here their own mean is taken
out. LayerNorm does not see it; a model without LayerNorm is left alone, as by transformer_lens.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelib.base.cache import file_sha256, read_json
from saelib.base.errors import UserError
from saelib.base.hub import cached_snapshot, fetch_snapshot, hub_address, hub_cache, hub_reachable
from saelib.lm.hook_point import HookPoint, parse_hook
from saelib.lm.model import LanguageModel, Logits

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm.auto, which transformers imports, on every page

_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
"""What transformers calls the feed-forward part of a layer."""


class _Reached(Exception):
    """Carries an activation out of a forward pass."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__()


def _first(output: Any) -> Tensor:
    """A layer's hidden state: some layers return it alone, some as the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True, eq=False)
class HFModel(LanguageModel):
    """A transformers model with one hook."""

    name: str
    module: Any
    """The `PreTrainedModel`, fp32, in evaluation mode."""
    tokenizer: tokenizers.Tokenizer
    key: str
    hook: HookPoint
    bos_token: str
    eos_token: str
    center_writing_weights: bool = False
    """As transformer_lens would have it; without LayerNorm in the model it changes nothing there either."""

    @property
    def hook_name(self) -> str:  # type: ignore[override]
        """`blocks.<layer>.<site>`."""
        return self.hook.name

    def on(self, device: torch.device) -> HFModel:
        """The model on a device: itself when it is there, else a copy; tied weights stay tied."""
        if device == self.device:
            return self
        moved: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().to(device), requires_grad=False) for p in self.module.parameters()
        }
        moved |= {id(b): b.to(device) for b in self.module.buffers()}
        return replace(self, module=copy.deepcopy(self.module, moved))

    @functools.cached_property
    def _centre(self) -> bool:
        """Whether an activation's mean over d_model is taken out."""
        return self.center_writing_weights and any(isinstance(part, nn.LayerNorm) for part in self.module.modules())

    @functools.cached_property
    def n_layers(self) -> int:  # type: ignore[override]
        """Decoder layers."""
        return len(layers_of(self.module))

    @property
    def n_ctx(self) -> int:
        """Longest context that the configuration states."""
        config = self.module.config
        stated = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return int(stated) if stated else 2048

    @property
    def d_vocab(self) -> int:
        """Rows of the unembedding."""
        return int(self.module.get_output_embeddings().weight.shape[0])

    @property
    def d_in(self) -> int:
        """All sites are as wide as the residual stream."""
        return int(self.module.get_output_embeddings().weight.shape[1])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return self.module.get_output_embeddings().weight.detach().T

    @functools.cached_property
    def _site(self) -> nn.Module:
        """The module whose output (input, for `hook_resid_pre`) is the activation."""
        layer = layers_of(self.module)[self.hook.layer]
        if self.hook.site != "hook_mlp_out":
            return layer
        found = [getattr(layer, name) for name in _MLP_NAMES if isinstance(getattr(layer, name, None), nn.Module)]
        if not found:
            children = ", ".join(name for name, _ in layer.named_children())
            raise UserError("layer must have an MLP of its own", children, "hook the residual stream instead")
        return found[0]

    @torch.no_grad()
    def activations(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d_in"]:
        """The activation at the hook; the forward pass ends there."""

        def leave(value: Tensor) -> Tensor:
            raise _Reached(value)

        try:
            self._run(tokens, leave)
        except _Reached as reached:
            value = reached.value.float()
            return value - value.mean(-1, keepdim=True) if self._centre else value
        raise AssertionError("the hooked module is part of every forward pass")

    @torch.no_grad()
    def splice(self, tokens: Int[Tensor, "b t"]) -> tuple[Tensor, Logits]:
        """The activation, and the logits of a whole forward pass in which it is replaced."""

        def logits(put: Tensor, at: Any = ...) -> Tensor:
            found: Tensor = self._run(tokens, lambda value: put.to(value.dtype)).logits[at]
            return found.float()

        return self.activations(tokens), logits

    @torch.no_grad()
    def _run(self, tokens: Tensor, change: Callable[[Tensor], Tensor]) -> Any:
        """A forward pass in which the activation is what `change` makes of it."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            value = change(_first(output))
            return (value, *output[1:]) if isinstance(output, tuple) else value

        if self.hook.site == "hook_resid_pre":
            handle = self._site.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = self._site.register_forward_hook(after)
        try:
            return self.module(tokens.to(self.device), use_cache=False)
        finally:
            handle.remove()


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Transformers' bars for what takes a second would stand in every page."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def layers_of(module: nn.Module) -> nn.ModuleList:
    """The decoder layers: the longest list of modules in the model.

    Raises:
        UserError: there is none.
    """
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList) and len(child)]
    if not lists:
        raise UserError("model must be a stack of layers", type(module).__name__, "pass a causal language model")
    return max(lists, key=len)


_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
          "special_tokens_map.json")  # fmt: skip


def find_hf_folder(model: str | Path) -> Path:
    """The folder of a Hugging Face model: the folder named, or a repository's, from the hub's cache or else from the hub.

    A name without an owner, such as `gpt2`, is also found in the cache under its one owner there.

    Raises:
        UserError: no such folder, none in the cache, and the hub cannot be reached (told within a second) or does not have it.
    """
    name, folder = str(model), Path(model).expanduser()
    if folder.exists() or not _REPOSITORY.fullmatch(name):
        return folder
    owned = [] if "/" in name else sorted(hub_cache().glob(f"models--*--{name}"))
    found = cached_snapshot(name)
    if found is None and len(owned) == 1:
        found = cached_snapshot(owned[0].name.removeprefix("models--").replace("--", "/"))
    if found is not None and (found / "config.json").is_file() and list(found.glob("*.safetensors")):
        return found
    if not hub_reachable():
        host = hub_address().host
        got = f"no such folder, none in the hub cache {hub_cache()}, and {host} not reachable or switched off"
        raise UserError(f"model {name} must be at hand", got, f"pass a folder, set HF_HOME, or connect to {host}")
    return fetch_snapshot(name, _FILES)


def _name_of(folder: Path) -> str:
    """The repository's name where the folder is a snapshot of the hub's cache, else the folder's."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def load_hf_folder(
    folder: Path,
    hook_name: str,
    *,
    name: str | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    center_writing_weights: bool = False,
) -> HFModel:
    """A causal language model from a local folder: `config.json`, `*.safetensors`, `tokenizer.json`. Nothing is fetched.

    BOS and EOS are the tokenizer's unless given; a tokenizer with only one of them uses it for both. The name is the
    folder's, or the repository's in a hub cache.

    Raises:
        UserError: a file is missing, the weights are pickles, transformers cannot read the folder, or it has no such hook.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).is_file():
            raise UserError(f"a model folder must hold {file}", folder, "pass a folder that save_pretrained wrote")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        remedy = "save the model again with safe_serialization=True"
        raise UserError("a model folder must hold safetensors: opening a pickle can run any code", folder, remedy)
    try:
        with no_progress_bars():
            module = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
            )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise UserError(
            "transformers must be able to read the model", f"{folder} ({error})", "check the folder"
        ) from error
    special = _special_tokens(folder)
    bos = bos_token or special.get("bos_token") or special.get("eos_token")
    eos = eos_token or special.get("eos_token") or bos
    if bos is None or eos is None:
        raise UserError("tokenizer must name a BOS or EOS token", folder, "add bos_token to its tokenizer_config.json")
    digest = hashlib.sha256()
    for path in (*weights, folder / "config.json", folder / "tokenizer.json"):
        digest.update(file_sha256(path).encode())
    hook = parse_hook(hook_name, len(layers_of(module)))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    module.eval().requires_grad_(False)
    key = digest.hexdigest()[:16] + ("c" if center_writing_weights else "")
    return HFModel(name or _name_of(folder), module, tokenizer, key, hook, bos, eos, center_writing_weights)


def _special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token` and `eos_token` as the tokenizer's configuration names them."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        raw = read_json(folder / file) if (folder / file).is_file() else {}
        for name in ("bos_token", "eos_token"):
            value = raw.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if value:
                found[name] = str(value)
    return found
