"""What the page of the study's parent shows: where it fires, how well it marks each class, and the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saelib.interpret.feature_f1 import Cut
from saelib.split.classes import CLASSES, hyphen_mask
from saelib.study import selection, study
from saelib.study.profiles import Profile


def firing_figure(profile: Profile, acts: Float[np.ndarray, " n"], parent: selection.Parent) -> Figure:
    """How strongly the parent fires on "-" and on all other tokens of test."""
    hyphen = hyphen_mask(study.activations(profile, "test"), study.language_model(profile))
    figure, axis = plt.subplots()
    fired = [acts[hyphen & (acts > 0)], acts[~hyphen & (acts > 0)]]
    axis.hist(fired, bins=40, stacked=True, label=["-", "other tokens"])
    axis.axvline(parent.tau, color="black", linestyle="--", label="tau")
    axis.set(xlabel="activation", ylabel="test tokens", title=f"Feature {parent.feature}, where it fires", yscale="log")
    axis.legend()
    return figure


def by_class(profile: Profile, acts: Float[np.ndarray, " n"], parent: selection.Parent) -> pd.DataFrame:
    """A row a class of hyphens on test: how many, on how many the parent fires and exceeds tau, its mean."""
    rows, label = study.joining_hyphens(profile, "test")
    frame = pd.DataFrame({"class": [CLASSES[c] for c in label], "activation": acts[rows]})
    frame = frame.assign(fires=frame["activation"] > 0, above_tau=frame["activation"] > parent.tau)
    means = frame.groupby("class").mean().rename(columns={"activation": "mean"})
    means.insert(0, "hyphens", frame.groupby("class").size())
    return means[["hyphens", "fires", "above_tau", "mean"]]


def parent_headline(parent: selection.Parent, fits: Mapping[str, Cut]) -> dict[str, Any]:
    """Whether the parent is the hyphen's, in words and numbers; `fits` are those on select and test."""
    fit = fits["test"]
    numbers = (
        f"of the test tokens on which it exceeds {parent.tau:.3g}, {fit.purity:.0%} are hyphens that join words (purity), and "
        f"so it finds {fit.recall:.0%} of these (recall)"
    )
    answer = f"Feature {parent.feature} is the hyphen's: {numbers}."
    if not selection.is_hyphens(fit):
        answer = (
            f"There is no such parent. The best is feature {parent.feature}: {numbers}; {selection.LEAST_FIT:g} is asked of "
            "both. What later pages say of a split is not about hyphens."
        )
    return {
        "answer": answer, "parent": parent.feature, "tau": parent.tau, "purity": fit.purity, "recall": fit.recall,
        "f1": fit.f1, "f1_select": fits["select"].f1, "max_activation": parent.max_activation,
    }  # fmt: skip
