# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How often is the verdict right?
#
# `saelib.split.score` put to synthetic features whose true split is known, and to impostors. Its bounds stand or fall here; the
# study's own runs have no say in them.

# %% tags=["parameters"]
profile = "mini"

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.split import calibration
from saelib.report import report, views
from saelib.study.profiles import get_profile
from saelib.split.score import BOUNDS
from saelib.split.synthetic import SHARES

views.figure_style()
settings = get_profile(profile)
pd.Series(vars(BOUNDS), name="bound, frozen on 2026-11-22").to_frame()

# %% [markdown]
# ## Sensitivity
#
# The share of true splits that are judged `split`, with Wilson's 95% interval. The effect size is how far a child's component
# stands out along its direction, in standard deviations of everything else there; the curves differ in the test tokens of
# the rarest of three classes.

# %%
found = calibration.sensitivity(seeds=range(settings.calibration_seeds))
figure, axis = plt.subplots()
for tokens, rows in found.groupby("rare_tokens"):
    axis.plot(rows["effect"], rows["rate"], marker="o", label=f"{tokens} tokens of the rarest class")
    axis.fill_between(rows["effect"], rows["low"], rows["high"], alpha=0.12)
axis.axhline(calibration.DETECTION_MIN, color="black", linestyle="--", linewidth=0.8)
axis.set(xlabel="effect size (standard deviations)", ylabel="share judged split", ylim=(-0.03, 1.03))
axis.legend()
plt.show()

# %%
found.pivot(index="effect", columns="rare_tokens", values="rate")

# %% [markdown]
# ## False positives
#
# Each impostor at the effect size at which true splits are to be found: the share of cases in which a class passes that is
# not truly split.

# %%
false = calibration.false_positives(seeds=range(settings.calibration_seeds))
false

# %% [markdown]
# ## Against effect size

# %%
by_effect = pd.concat(
    [
        calibration.false_positives(seeds=range(max(settings.calibration_seeds // 2, 1)), effect=effect)
        for effect in (4.0, 7.0, 10.0)
    ]
)
by_effect.pivot(index="impostor", columns="effect", values="rate")

# %% [markdown]
# ## Conclusion

# %%
rare = round(calibration.STATED_TOKENS * min(SHARES))
stated = found[(found["effect"] == calibration.STATED_EFFECT) & (found["rare_tokens"] == rare)].iloc[0]
report.headline(
    answer=f"At {calibration.STATED_EFFECT:g} standard deviations and {rare} tokens of the rarest class, {int(stated.found)} of "
    f"{int(stated.cases)} true splits are found; {false.passed.sum()} of {false.cases.sum()} impostors pass.",
    detection=float(stated.rate),
    detection_low=float(stated.low),
    cases=int(stated.cases),
    false_positives=int(false.passed.sum()),
    impostors=int(false.cases.sum()),
    false_positive_rate=float(false.passed.sum() / false.cases.sum()),
)

# %%
report.watermark(seeds={"cases": list(range(settings.calibration_seeds))})
