"""What the benchmarks of this folder share: how timings are told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = (round(float(q), 3) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "p25": low, "p75": high, "rounds": len(values)}
