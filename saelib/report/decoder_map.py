"""A map of the decoder rows of several SAEs (the study's Figure 7): UMAP by cosine, 15 neighbours, min_dist 0.05."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import markupsafe
import numpy as np
import pandas as pd

from saelib.base.errors import UserError
from saelib.report.charts import scatter_svg
from saelib.report.html_view import HtmlView
from saelib.sae.sae import SAE

NEIGHBOURS = 15
MIN_DIST = 0.05


def decoder_map(
    saes: Mapping[str, SAE], *, neighbours: int = NEIGHBOURS, min_dist: float = MIN_DIST, seed: int = 0
) -> pd.DataFrame:
    """Every decoder row of the SAEs as a point in the plane; rows of zeros are left out.

    Distances in the plane mean little; which rows lie together does. Repeatable with one seed on one machine.

    Returns:
        columns group (the SAE's name), feature, x, y.

    Raises:
        UserError: umap-learn is not installed, the SAEs differ in d_in, hold too few features, or are not finite.
    """
    widths = {sae.cfg.d_in for sae in saes.values()}
    if len(widths) != 1:
        raise UserError("the SAEs of a map must have one d_in", sorted(widths) or "no SAE", "pass SAEs of one site")
    parts, rows = [], []
    for name, sae in saes.items():
        W_dec = sae.W_dec.detach().numpy()
        alive = np.flatnonzero((W_dec**2).sum(1) != 0)  # NaN is kept, to be refused below
        parts.append(pd.DataFrame({"group": name, "feature": alive}))
        rows.append(W_dec[alive])
    points, frame = np.concatenate(rows), pd.concat(parts, ignore_index=True)
    if not np.isfinite(points).all():
        raise UserError("W_dec of an SAE must be finite", "NaN or infinity", "train or load the SAE again")
    if len(points) <= neighbours:
        raise UserError(f"a map needs more than {neighbours} decoder rows", len(points), "lower neighbours")
    place = _umap().UMAP(
        n_neighbors=neighbours, min_dist=min_dist, metric="cosine", random_state=seed, n_jobs=1
    ).fit_transform(points)  # fmt: skip
    return frame.assign(x=place[:, 0].astype(float), y=place[:, 1].astype(float))


def map_view(
    points: pd.DataFrame,
    *,
    hover: pd.Series | Mapping[tuple[str, int], str] | None = None,
    marked: Mapping[tuple[str, int], str] | None = None,
    title: str = "Decoder rows of the SAEs",
) -> HtmlView:
    """The map as a picture: point at a feature to read its number and `hover` text. Saves as a page like any view.

    Args:
        points: from `decoder_map`.
        hover, marked: (group, feature) -> text to read on pointing; words written beside the point.
    """
    words = dict(hover.items()) if hover is not None else {}
    keys = list(zip(points["group"], points["feature"].astype(int), strict=True))
    texts = [f"{group}, feature {f}" + (f": {words[group, f]}" if (group, f) in words else "") for group, f in keys]
    counts = ", ".join(f"{(points['group'] == group).sum():,} of {group}" for group in dict.fromkeys(points["group"]))
    return HtmlView(
        template="map.html.j2",
        title=title,
        context={"map": markupsafe.Markup(scatter_svg(points.assign(hover=texts), marked=marked))},
        record={"points": points.to_dict("records"), "marked": [[*key, name] for key, name in (marked or {}).items()]},
        kicker="map of features",
        text=f"{title}: {counts}",
    )


def _umap() -> Any:
    try:
        with warnings.catch_warnings():
            # it says that a neural variant and a progress bar, neither used here, would need other packages
            warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
            warnings.filterwarnings("ignore", message="IProgress not found")
            import umap
    except ImportError as error:
        raise UserError("a map needs the package umap-learn", "none", 'pip install "saelib[umap]"') from error
    return umap
