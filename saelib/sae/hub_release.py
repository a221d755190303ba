"""SAEs of the hub, by release and id, through sae-lens's own loader (the extra `saelens`).

    gpt2-small-res-jb/blocks.8.hook_resid_pre        a release of sae-lens's directory, and an id in it
    owner/name/folder                                a repository of the hub, and the folder in it

sae-lens has a loader for each of some ten formats. Importing it takes seconds, and asking a hub that is not there takes more;
so the release, the id and the hub cache are looked up first, and what is missing is told at once. Its loaders open some
formats with `torch.load`, which takes tensors and nothing else by itself.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from saelib.base.errors import UserError
from saelib.base.hub import cached_snapshot, hub_address, hub_cache, hub_reachable, offline
from saelib.sae.format import checked

_DIRECTORY = "pretrained_saes.yaml"
_EXTRA = "pip install 'saelib[saelens]'"


class Release(NamedTuple):
    """Where an SAE of the hub lies."""

    name: str
    """The release, or the repository itself."""
    sae_id: str
    """The id in it."""
    repo: str
    path: str
    """Folder or file in the repository."""
    loading: dict[str, Any]
    """How the release says that its language model was loaded."""


def is_release(name: str) -> bool:
    """Whether a name has the form of a release and id, and nothing of that name is on this disk."""
    path = Path(name).expanduser()
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[^/\s]+)+", name)) and not path.exists()


def find_release(name: str) -> Release:
    """Look up `RELEASE/ID` in the directory that sae-lens carries, without importing it.

    Raises:
        UserError: sae-lens is not installed, or there is no such release or id; the nearest is suggested.
    """
    found = importlib.util.find_spec("sae_lens")
    file = Path(found.origin).with_name(_DIRECTORY) if found and found.origin else None
    if file is None or not file.is_file():
        rule = "an SAE must be a folder, or with the package sae-lens RELEASE/ID of the hub"
        raise UserError(rule, f"{name}, which is no folder, and no sae-lens", f"mend the path, or {_EXTRA}")
    text = file.read_text()
    heads = {match[1]: match.start() for match in re.finditer(r"^([^\s#:][^\s:]*):[ \t]*$", text, re.MULTILINE)}
    release, _, sae_id = name.partition("/")
    if release in heads:
        block = text[heads[release] :]
        end = re.search(r"\n(?=\S)(?!- )", block)
        return _of_block(release, sae_id, block[: end.start()] if end else block)
    near = _nearest(release, list(heads), 0.75)
    parts = name.split("/", 2)
    if len(parts) < 3 or near:
        raise UserError("release must be one of sae-lens's", repr(release), near or "mend it, or name a folder")
    return Release("/".join(parts[:2]), parts[2], "/".join(parts[:2]), parts[2], {})


def _of_block(release: str, sae_id: str, block: str) -> Release:
    """One release's part of the directory: the whole file takes a second to parse."""
    import yaml

    told = yaml.safe_load(block)[release]
    paths = {str(each["id"]): str(each["path"]) for each in told["saes"]}
    if sae_id not in paths:
        remedy = _nearest(sae_id, list(paths), 0.0)
        raise UserError(f"id must be one of the {len(paths)} in release {release}", repr(sae_id), remedy)
    loading = (told.get("config_overrides") or {}).get("model_from_pretrained_kwargs") or {}
    return Release(release, sae_id, told["repo_id"], paths[sae_id], loading)


def _nearest(name: str, known: Sequence[str], cutoff: float) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""


def read_release(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields for `SAEConfig` and fp32 tensors of an SAE of the hub.

    Raises:
        UserError: no such release or id, neither in the hub cache nor to be had, refused by sae-lens, or of a kind that is not
            known here (see `saelib.sae.format`).
    """
    release = find_release(name)
    reachable = hub_reachable()
    snapshot = cached_snapshot(release.repo)
    if not reachable and (snapshot is None or not (snapshot / release.path).exists()):
        host = hub_address().host
        got = f"{release.repo} not in the hub cache {hub_cache()}, and {host} not reachable or switched off"
        raise UserError(f"{name} must be at hand", got, f"set HF_HOME to a cache that holds it, or connect to {host}")
    with warnings.catch_warnings(), offline(not reachable):
        warnings.simplefilter("ignore")  # what it and its dependencies warn about among themselves
        import sae_lens

        try:
            theirs = sae_lens.SAE.from_pretrained(release.name, release.sae_id)
        except Exception as error:  # a dozen kinds, from HTTP to a missing key
            got = f"{name} ({type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''})"
            raise UserError("sae-lens must be able to load the SAE", got, "mend the name, or try again") from error
        config, tensors = theirs.cfg.to_dict(), dict(theirs.state_dict())
        theirs.process_state_dict_for_saving(tensors)
    metadata = config.get("metadata") or {}
    metadata.setdefault("model_from_pretrained_kwargs", release.loading)
    return checked(
        {**config, "metadata": {**metadata, "release": release.name, "sae_id": release.sae_id}}, tensors, name
    )
