"""Coloured text and figures: circuitsvis views that work offline, and one style for every plot.

circuitsvis' own `_repr_html_` carries its 1.3 MB bundle with every view or fetches it from another host. Here a view is
data: a report page loads the bundle once from its assets and mounts each view; in a notebook the first view of a kernel
brings the bundle along. Under each view lies the same text coloured without scripts: what shows when nothing runs.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from saelib.report.page import script_safe, show

VIEW_MIME = "application/vnd.saelib.view+json"
POSITIVE, NEGATIVE = "#0072b2", "#d55e00"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
"""Okabe and Ito's colours, told apart with any common colour vision; the pale yellow last."""

_LOADING_WORDS = re.compile(r"\b(?:import|from|fetch|importScripts|src|href)\b", re.IGNORECASE)
_WORD_JOINER = "\u2060"
_ids = itertools.count(1)
_bundle_sent = False


@cache
def bundle() -> str:
    """The script that defines `CircuitsVis`, from the installed circuitsvis wheel."""
    source = files("circuitsvis").joinpath("dist/cdn/iife.js").read_text(encoding="utf-8")
    return re.sub(r"\n//# sourceMappingURL=\S+\s*$", "\n", source)  # the map is not shipped with a report


def script_json(value: Any) -> str:
    """JSON for use inside a `<script>`: ASCII only, and no `<` that could end the element or open a comment in it.

    Words of a text that would read as loading something, were they code (`from`, `import` ...), are spelled with an escape,
    so that the check of a page finds code alone.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return _LOADING_WORDS.sub(lambda match: f"\\u{ord(match.group()[0]):04x}{match.group()[1:]}", text)


def inert(token: str) -> str:
    """A token that reads the same as HTML and as plain text, for circuitsvis shows the one string both ways.

    It sets `innerHTML` to the token (so `<b>` would vanish and an `<img>` would load) and prints it in the tooltip as
    text (so `&lt;` would show as such). An invisible word joiner after `<` and `&` keeps both from meaning anything.
    Line breaks and tabs become visible marks.
    """
    visible = token.replace("\r\n", "↵").replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥").replace("\0", "�")
    return re.sub("[<&]", lambda match: match.group() + _WORD_JOINER, visible)


@dataclass(frozen=True)
class Mount:
    """One circuitsvis component, with what stands in its place until (or unless) it is drawn."""

    component: str
    props: dict[str, Any]
    fallback: str


class Displayed:
    """What shows itself in Jupyter from `data()`; `saelib.report.report` draws the same on a page."""

    text: str

    def data(self) -> dict[str, Any]:
        """HTML with an empty place for each mount, and the mounts with ids that are unique in this process."""
        raise NotImplementedError

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        global _bundle_sent
        data = self.data()
        loader = "" if _bundle_sent else f"<script>{loader_script()}</script>"
        _bundle_sent = True
        return {VIEW_MIME: data, "text/html": loader + view_html(data), "text/plain": self.text}

    def _repr_html_(self) -> str:
        return str(self._repr_mimebundle_()["text/html"])


@dataclass(frozen=True)
class TokenView(Displayed):
    """Pieces of HTML and mounts, in order."""

    pieces: tuple[str | Mount, ...]
    text: str

    def data(self) -> dict[str, Any]:
        """HTML with an empty place for each mount, and the mounts with ids that are unique in this process."""
        parts, mounts = [], []
        for piece in self.pieces:
            if isinstance(piece, str):
                parts.append(piece)
                continue
            identity = f"view-{next(_ids)}"
            parts.append(f'<div id="{identity}" class="view">{piece.fallback}</div>')
            mounts.append({"id": identity, "component": piece.component, "props": piece.props})
        return {"html": "".join(parts), "mounts": mounts}


def loader_script() -> str:
    """Define `window.CircuitsVis` unless the page has it."""
    return script_safe(
        "if(!window.CircuitsVis){window.CircuitsVis=(function(){" + bundle() + "\nreturn CircuitsVis;})();}"
    )


def view_html(data: dict[str, Any]) -> str:
    """A view's HTML and the script that mounts it where `CircuitsVis` is there."""
    calls = "".join(
        f"CircuitsVis.render({script_json(mount['id'])},CircuitsVis[{script_json(mount['component'])}],"
        f"{script_json(mount['props'])});"
        for mount in data["mounts"]
    )
    return f'<div class="views">{data["html"]}<script>if(window.CircuitsVis){{{calls}}}</script></div>'


def _checked(tokens: Sequence[str], values: Any) -> tuple[list[str], list[float]]:
    numbers = [float(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    if len(tokens) != len(numbers):
        raise ValueError(
            f"tokens and values must be of equal length; got {len(tokens)} and {len(numbers)}: pass one value a token"
        )
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("values must be finite; got NaN or infinity: mask those tokens with 0")
    return [str(token) for token in tokens], [float(f"{number:.4g}") for number in numbers]


def _blend(value: float, low: float, high: float) -> tuple[str, str]:
    """(background, text colour) as circuitsvis mixes them: white at 0, the full colour at `high` or `low`."""
    colour, share = (POSITIVE, value / high) if value >= 0 else (NEGATIVE, value / low)
    share = min(max(share, 0.0), 1.0)
    rgb = [round(255 + (int(colour[i : i + 2], 16) - 255) * share) for i in (1, 3, 5)]
    dark = sum(channel * weight for channel, weight in zip(rgb, (0.299, 0.587, 0.114), strict=True)) < 153
    return "#" + "".join(f"{channel:02x}" for channel in rgb), "#fff" if dark else "#000"


def _token_html(token: str, value: float, low: float, high: float) -> str:
    background, colour = _blend(value, low, high)
    text = html.escape(inert(token).replace(_WORD_JOINER, "")).replace(" ", "&nbsp;")
    style = f' style="background:{background};color:{colour}"' if background != "#ffffff" else ""
    return f'<span class="tok"{style} title="{value:g}">{text}</span>'


def _mount(tokens: list[str], values: list[float], max_value: float | None) -> Mount:
    high = max([max_value or 0.0, 1e-9] if max_value is not None else [*values, 1e-9])
    low = min([*values, -1e-9])
    props = {
        "tokens": [inert(token) for token in tokens],
        "values": values,
        "minValue": low,
        "maxValue": high,
        "positiveColor": POSITIVE,
        "negativeColor": NEGATIVE,
        "paddingBottom": 0,
    }
    spans = "".join(_token_html(token, value, low, high) for token, value in zip(tokens, values, strict=True))
    return Mount("ColoredTokens", props, spans)


def top_contexts(
    contexts: Sequence[Sequence[str]],
    values: Sequence[Any],
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    max_value: float | None = None,
    caption: str = "",
) -> TokenView:
    """A table of texts in the order given, one a row: columns by name (default: the largest value), then the tokens.

    All rows share one colour scale, so a pale row is a weak one.
    """
    if len(contexts) != len(values):
        raise ValueError(f"contexts and values must be of equal length; got {len(contexts)} and {len(values)}")
    rows = [_checked(tokens, numbers) for tokens, numbers in zip(contexts, values, strict=True)]
    peaks = [max(numbers, default=0.0) for _, numbers in rows]
    columns = {"activation": peaks} if columns is None else columns
    if any(len(column) != len(rows) for column in columns.values()):
        raise ValueError(f"columns must have one entry a context ({len(rows)})")
    numeric = {name: not any(isinstance(cell, str) for cell in column) for name, column in columns.items()}
    high = max_value if max_value is not None else max(peaks, default=0.0)
    heading = "".join(
        f'<th class="num">{html.escape(name)}</th>' if numeric[name] else f"<th>{html.escape(name)}</th>"
        for name in columns
    )
    pieces: list[str | Mount] = [f'<p class="caption">{html.escape(caption)}</p>'] if caption else []
    pieces.append(f'<div class="scroll"><table class="contexts"><thead><tr>{heading}<th>text</th></tr></thead><tbody>')
    lines = [caption] if caption else []
    for index, (tokens, numbers) in enumerate(rows):
        cells = {n: f"{float(c[index]):.2f}" if numeric[n] else str(c[index]) for n, c in columns.items()}
        shown = "".join(
            f'<td class="num">{cell}</td>' if numeric[name] else f"<td>{html.escape(cell)}</td>"
            for name, cell in cells.items()
        )
        pieces += [f"<tr>{shown}<td>", _mount(tokens, numbers, high), "</td></tr>"]
        lines.append(f"{next(iter(cells.values()), ''):>8}  {''.join(tokens)}")
    pieces.append("</tbody></table></div>")
    return TokenView(tuple(pieces), "\n".join(lines))


def top_features(
    tokens: Sequence[str],
    feature_acts: Any,
    *,
    position: int,
    k: int = 3,
    labels: dict[int, str] | None = None,
    caption: str = "",
) -> TokenView:
    """Show `features.top_features` at one token: a text coloured by each feature in turn, the strongest first.

    `feature_acts` is (n_tokens, d_sae), as `SAE.encode` gives it; `position` indexes the token asked about (negative:
    from the end). This is the picture the study judged a split by: one feature high at that token, no other close.
    """
    import torch  # here, since the other views need none of it

    from saelib.interpret.features import top_features as ranked

    acts = torch.as_tensor(feature_acts).detach()
    if len(tokens) != len(acts):
        raise ValueError(f"feature_acts must have one row a token; got {len(acts)} rows for {len(tokens)} tokens")
    if not -len(tokens) <= position < len(tokens):
        raise ValueError(
            f"position must be in [-{len(tokens)}, {len(tokens)}); got {position}: index one of the tokens"
        )
    here = ranked(acts[position], k)
    if here.empty:
        return TokenView(
            (f"<p>No feature is active at <code>{html.escape(str(tokens[position]))}</code>.</p>",),
            "no feature is active",
        )
    best = here["feature"].tolist()
    notes = [f"{index}{': ' + labels[index] if labels and index in labels else ''}" for index in best]
    at = f"at “{str(tokens[position]).strip() or show(str(tokens[position]))}”"
    return top_contexts(
        [tokens] * len(best),
        [acts[:, index] for index in best],
        columns={at: here["activation"].tolist(), "feature": notes},
        caption=caption,
    )


def figure_style() -> None:
    """Set this process's defaults: colour-blind-safe colours, light frame and small PNGs; tables of four digits."""
    import matplotlib
    import pandas as pd
    from cycler import cycler

    pd.options.display.float_format = lambda value: f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    matplotlib.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#555555",
            "axes.labelcolor": "#222222",
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "font.size": 10,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "image.cmap": "cividis",
        }
    )
