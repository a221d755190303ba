"""Names of activation sites: transformer_lens's, with the newer spellings of the same places."""

from __future__ import annotations

import re
from typing import NamedTuple

from saelib.base.errors import UserError

SITES = ("hook_resid_pre", "hook_mlp_out", "hook_resid_post")
"""Where an SAE of this package may sit: before a layer, at the output of its MLP, after the layer."""
_NEWER = {"hook_in": "hook_resid_pre", "mlp.hook_out": "hook_mlp_out", "hook_out": "hook_resid_post"}
_PATTERN = re.compile(r"blocks\.(\d+)\.(.+)")


class HookPoint(NamedTuple):
    """A layer and a place in it."""

    layer: int
    site: str
    """One of `SITES`."""

    @property
    def name(self) -> str:
        """`blocks.<layer>.<site>`."""
        return f"blocks.{self.layer}.{self.site}"


def canonical_hook(name: str) -> str:
    """The transformer_lens 3 name of a site; a name that is not understood comes back unchanged."""
    match = _PATTERN.fullmatch(name)
    return f"blocks.{int(match[1])}.{_NEWER.get(match[2], match[2])}" if match else name


def parse_hook(name: str, n_layers: int) -> HookPoint:
    """Layer and site of a hook name.

    A misspelt name is refused here, because the libraries underneath ignore it silently.

    Raises:
        UserError: not `blocks.<layer>.<site>`, an unknown site, or a layer the model does not have.
    """
    match = _PATTERN.fullmatch(canonical_hook(name))
    if match is None or match[2] not in SITES:
        sites = ", ".join(f"blocks.<layer>.{site}" for site in SITES)
        raise UserError(f"hook name must be one of {sites}", repr(name), "pass a name of this form")
    if int(match[1]) >= n_layers:
        raise UserError(f"layer of a hook must be in [0, {n_layers})", repr(name), "pass a layer the model has")
    return HookPoint(int(match[1]), match[2])
