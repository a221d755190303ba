"""Let the process keep large arrays that it frees at the end of a step, instead of giving the memory back.

glibc hands arrays above a threshold back to the system when they are freed; the next step asks for them anew, and the system
clears each page again. In a training loop whose temporaries are tens of megabytes that costs about a third of the time.
"""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEEP = 1 << 30


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of what it frees. Returns whether the C library can do that (glibc can)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return (
        all(mallopt(option, _KEEP) == 1 for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
        and mallopt(_TOP_PAD, 1 << 26) == 1
    )
