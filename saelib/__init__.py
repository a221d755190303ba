"""Split one feature of a sparse autoencoder into the finer features it is made of.

    sae = saelib.load_sae("my-sae")
    acts = saelib.activations("mini", "my-texts/", hook=sae.cfg.hook_name)
    split = saelib.split(sae, 7, acts)
    split.sae.save("my-sae-split")

`load_sae`, `activations`, `split` and `feature_page` are loaded when first used: importing saelib takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from saelib.base.display import show_with

__version__ = "0.1.0"
__all__ = ["activations", "feature_page", "load_sae", "split"]

if TYPE_CHECKING:
    from saelib import split as split
    from saelib.report.feature_page import feature_page as feature_page
    from saelib.sae.load import load_sae as load_sae
    from saelib.study.texts import activations as activations

_HOMES = {
    "load_sae": "saelib.sae.load",
    "activations": "saelib.study.texts",
    "feature_page": "saelib.report.feature_page",
}


def _show_split(split: Any) -> str:
    from saelib.report.children_page import split_html

    return str(split_html(split))


show_with("Split", _show_split)


def __getattr__(name: str) -> Any:
    if name == "split":  # the room is callable: see saelib.split
        return importlib.import_module("saelib.split")
    if name not in _HOMES:
        raise AttributeError(f"module 'saelib' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
