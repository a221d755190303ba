"""Where the files of gelu-1l are: a local folder, an existing hub cache, or the hub. Imports no torch, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from saelib.base.cache import cache_dir, read_json
from saelib.base.hub import cached_snapshot, fetch_snapshot, hub_reachable, missing, named_folder

REPOSITORY = "NeelNanda/GELU_1L512W_C4_Code"
TOKENIZER_REPOSITORY = "NeelNanda/gpt-neox-tokenizer-digits"
VARIABLE = "SAELIB_GELU_1L"
"""Environment variable that names a local folder."""
NEEDS = "config.json, *final.pth, tokenizer.json"


def at_hand() -> bool:
    """Whether the model can be loaded with no network."""
    local = named_folder(VARIABLE) or _if_whole(cache_dir() / "models" / "gelu-1l")
    return local is not None or _in_hub_cache() is not None


def find_gelu_1l() -> tuple[Path, Path]:
    """The folders of the model and of its tokenizer.

    Raises:
        UserError: neither is at hand; the three ways to supply them are named, within a second.
    """
    local = named_folder(VARIABLE) or _if_whole(cache_dir() / "models" / "gelu-1l")
    if local is not None:
        return local, local
    cached = _in_hub_cache()
    if cached is not None:
        return cached
    if not hub_reachable():
        raise missing("gelu-1l", NEEDS, VARIABLE)
    model = fetch_snapshot(REPOSITORY, ["config.json", "*final.pth"])
    name = read_json(model / "config.json").get("tokenizer_name") or TOKENIZER_REPOSITORY
    return model, fetch_snapshot(name, ["tokenizer*.json", "special_tokens_map.json"])


def _in_hub_cache() -> tuple[Path, Path] | None:
    model, tokenizer = _if_whole(cached_snapshot(REPOSITORY), tokenizer=False), cached_snapshot(TOKENIZER_REPOSITORY)
    for folder in (model, tokenizer):
        if model is not None and folder is not None and (folder / "tokenizer.json").is_file():
            return model, folder
    return None


def _if_whole(folder: Path | None, tokenizer: bool = True) -> Path | None:
    if folder is None or not (folder / "config.json").is_file() or not list(folder.glob("*final.pth")):
        return None
    return folder if not tokenizer or (folder / "tokenizer.json").is_file() else None
