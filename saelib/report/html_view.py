"""A template and what fills it, shown in a notebook or saved as a page that opens offline, with a JSON sibling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import markupsafe
import pandas as pd

from saelib.base.cache import write_json
from saelib.base.provenance import provenance
from saelib.report.page import environment, label, plain, show, write_page
from saelib.report.views import Displayed, TokenView, bundle, top_contexts, view_html

_NUMBERS = ("feature", "other", "child", "match", "row", "run", "seed")
"""Columns that hold names made of digits: no thousands separator."""


@dataclass(frozen=True)
class HtmlView(Displayed):
    """A page's body with its data. `save` writes `path` and its `.json` sibling; in a notebook it displays itself."""

    template: str
    title: str
    context: Mapping[str, Any]
    """What the template is filled with; coloured texts in it are put in place by the template's `place(...)`."""
    record: Mapping[str, Any]
    """What the JSON sibling holds."""
    kicker: str = ""
    answer: str = ""
    """A sentence under the title."""
    text: str = field(default="")

    def data(self) -> dict[str, Any]:
        """HTML with an empty place for each coloured text, and what is to be drawn there."""
        body = self._body()
        lead = f"<p>{markupsafe.escape(self.answer)}</p>" if self.answer else ""
        return {**body, "html": f"<h2>{markupsafe.escape(self.title)}</h2>{lead}{body['html']}"}

    def _body(self) -> dict[str, Any]:
        mounts: list[dict[str, Any]] = []

        def place(view: TokenView) -> markupsafe.Markup:
            data = view.data()
            mounts.extend(data["mounts"])
            return markupsafe.Markup(data["html"])

        html = environment().get_template(self.template).render(place=place, **self.context)
        return {"html": html, "mounts": mounts}

    def save(self, path: str | Path, *, standalone: bool = True) -> Path:
        """Write the page and its `.json` sibling.

        Args:
            path: an .html file.
            standalone: everything inside the one file (1.4 MB); otherwise scripts and styles lie beside it in `assets/`,
                shared by all pages of the folder.

        Raises:
            UserError: the disk refuses.
        """
        path = Path(path)
        body = self._body()
        record = {"page": path.stem, "title": self.title, **plain(self.record), **plain(provenance())}
        write_page(
            path,
            "view.html.j2",
            standalone=standalone,
            scripts={"circuitsvis.js": bundle()} if body["mounts"] else {},
            title=self.title,
            kicker=self.kicker,
            answer=self.answer,
            body=markupsafe.Markup(view_html(body)),
            record=record,
        )
        write_json(path.with_suffix(".json"), record)
        return path


def table(
    frame: pd.DataFrame, headings: Mapping[str, str] | Iterable[str] | None = None, percent: Iterable[str] = ()
) -> dict[str, Any]:
    """A DataFrame as the templates' `table` macro takes it: numbers as a reader wants them, some columns as percentages.

    `headings` chooses and names the columns; an index that is not just numbered becomes the first column.
    """
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    names = list(headings) if headings is not None else [str(name) for name in frame.columns]
    words = dict(headings) if isinstance(headings, Mapping) else {name: label(name) for name in names}
    shares = set(percent)
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in names]

    def cell(name: str, value: Any) -> str:
        value = plain(value)
        if value is not None and name in shares:
            return f"{100 * value:.3g}%"
        return str(int(value)) if name in _NUMBERS and isinstance(value, int | float) else show(value)

    rows = [
        [cell(name, value) for name, value in zip(names, row, strict=True)] for row in frame[names].to_numpy(object)
    ]
    return {"head": list(zip([words[name] for name in names], numeric, strict=True)), "rows": rows, "numeric": numeric}


def examples(
    frame: pd.DataFrame, *, caption: str = "", max_value: float | None = None, bands: bool = False
) -> TokenView:
    """Examples of one feature, from `examples.highest_activating_tokens`, as coloured texts on one scale.

    `bands` says from where in the activations each comes, and of which token: it may be too pale to see.
    """
    columns: dict[str, list[Any]] = {"activation": frame["activation"].tolist()}
    if bands:
        columns["from"] = [
            f"{_band(b)}: “{token.strip() or token}”" for b, token in zip(frame["band"], frame["token"], strict=True)
        ]
    return top_contexts(
        frame["tokens"].tolist(),
        frame["activations"].tolist(),
        columns=columns,
        max_value=max_value,
        caption=caption,
    )


def _band(band: str) -> str:
    return "top" if band == "top" else f"stronger than {100 * float(band.removeprefix('q=')):g}%"
