"""Figures come out of a notebook as they went in, under the heading they stood below; in a page they are the same, smaller."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from saelib.report.figures import image_uri, save_figures


def test_figures_are_saved_in_order_with_the_heading_above(tmp_path: Path) -> None:
    def output(**data: object) -> dict[str, object]:
        return {"output_type": "display_data", "data": data, "metadata": {}}

    png, svg = b"\x89PNG...", "<svg>x</svg>"
    cells = [
        {"cell_type": "markdown", "source": "# The question\ntext"},
        {"cell_type": "code", "outputs": [output(**{"image/png": base64.b64encode(png).decode(), "text/plain": "f"})]},
        {"cell_type": "markdown", "source": ["## How close\n", "text"]},
        {"cell_type": "markdown", "source": "no heading"},
        {
            "cell_type": "code",
            "outputs": [output(**{"text/plain": "no figure"}), output(**{"image/svg+xml": [svg[:4], svg[4:]]})],
        },
    ]
    (tmp_path / "executed.ipynb").write_text(json.dumps({"cells": cells}))
    saved = save_figures(tmp_path / "executed.ipynb", tmp_path / "assets", "05_results")
    assert [(Path(entry["path"]).name, entry["caption"]) for entry in saved] == [
        ("05_results-1.png", "The question"),
        ("05_results-2.svg", "How close"),
    ]
    assert [Path(entry["path"]).read_bytes() for entry in saved] == [png, svg.encode()]


def test_a_page_holds_the_same_pixels_in_fewer_bytes() -> None:
    figure, axis = plt.subplots()
    axis.plot(np.arange(30) ** 2, label="30 points")
    axis.legend()
    plot = BytesIO()
    figure.savefig(plot, format="png")
    plt.close(figure)
    kind, _, small = image_uri(base64.b64encode(plot.getvalue()).decode()).partition(",")
    assert kind == "data:image/webp;base64" and image_uri(plot.getvalue()) == f"{kind},{small}"
    before, after = (
        np.asarray(Image.open(BytesIO(b)).convert("RGBA")) for b in (plot.getvalue(), base64.b64decode(small))
    )
    assert np.array_equal(before, after) and len(base64.b64decode(small)) < 0.6 * len(plot.getvalue())
