"""JSON files that carry the hash of their own content."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with `sha256`, the hash of its canonical JSON."""
    return {"sha256": _content_sha256(content), **content}


def seal_holds(content: Any) -> bool:
    """Whether `content` is a JSON object whose `sha256` is that of the rest."""
    if not isinstance(content, dict) or "sha256" not in content:
        return False
    return bool(content["sha256"] == _content_sha256({k: v for k, v in content.items() if k != "sha256"}))


def _content_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
