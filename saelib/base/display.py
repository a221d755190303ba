"""How a result shows itself in a notebook, without the result knowing of pages.

A result lives in a room below `report`, and the HTML is made there. `saelib/__init__.py`, which may import everything, says
here which function shows which class; the class asks for it when Jupyter calls its `_repr_html_`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_SHOW: dict[str, Callable[[Any], str]] = {}


def show_with(name: str, show: Callable[[Any], str]) -> None:
    """From now on objects of the class with this name show themselves as `show(object)`, an HTML string."""
    _SHOW[name] = show


def html_of(thing: Any) -> str | None:
    """The HTML of an object; None where nothing shows its class, which Jupyter takes as "show its text"."""
    show = _SHOW.get(type(thing).__name__)
    return None if show is None else show(thing)
