"""The figures of executed notebooks, as files and within pages: what the index shows is what the notebooks drew."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from saelib.base.cache import atomic_path

_TYPES = {"image/svg+xml": "svg", "image/png": "png"}


def image_uri(png: bytes | str) -> str:
    """An image, its bytes or their base64, as a data URI of the same pixels in WebP: of a plot 40% of the bytes."""
    from PIL import Image

    if isinstance(png, str):
        png = base64.b64decode(png)
    small = BytesIO()
    Image.open(BytesIO(png)).save(small, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"


def save_figures(executed: Path, folder: Path, stem: str) -> list[dict[str, str]]:
    """Write every figure of an executed notebook to `<stem>-<n>.svg|png`; a list of `path` and `caption` (the heading above)."""
    notebook = json.loads(executed.read_text(encoding="utf-8"))
    saved = []
    for number, (content, suffix, caption) in enumerate(_figures(notebook), start=1):
        path = folder / f"{stem}-{number}.{suffix}"
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        saved.append({"path": str(path), "caption": caption})
    return saved


def _figures(notebook: dict[str, Any]) -> Iterator[tuple[bytes, str, str]]:
    heading = ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            titles = [line.lstrip("# ") for line in "".join(cell["source"]).splitlines() if line.startswith("#")]
            heading = titles[-1] if titles else heading
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in _TYPES if kind in data), None)
            if kind is not None:
                text = "".join(data[kind])
                yield (text.encode() if kind == "image/svg+xml" else base64.b64decode(text)), _TYPES[kind], heading
