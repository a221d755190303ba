"""Freed memory: kept by the process within a loop, given back between stages.

glibc hands arrays above a threshold back to the system when they are freed; the next step asks for them anew, and the system
clears each page again. In a training loop whose temporaries are tens of megabytes that costs about a third of the time.
What is below the threshold it keeps, in pieces: a split of a feature held twice what it used.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEEP = 1 << 30


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of what it frees. Returns whether the C library can do that (glibc can)."""
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and (
        all(mallopt(option, _KEEP) == 1 for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
        and mallopt(_TOP_PAD, 1 << 26) == 1
    )


def give_back_freed_memory() -> None:
    """Hand what this process has freed back to the system, where the C library can (glibc); milliseconds."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
