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
# # Who takes over from the parent after a warm start, and when?
#
# The 2024 post saw that the parent wins on "-" in the first batches even when it is zeroed in the loss, then others take
# over, and proposes to study this *replacing* and to speed it up by resetting the parent's decoder row (its next step 3). The
# first steps of many warm starts, one by one; then what is done to the parent before they begin.

# %% tags=["parameters"]
profile = "mini"

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.report import report, study_figures, views
from saelib.report.film import Film
from saelib.report.tables import keep_table
from saelib.split.classes import CLASSES
from saelib.study import replacing, replacing_tables, study
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
runs = keep_table(replacing_tables.runs_table(settings), "runs")
curves = replacing_tables.mean_curves(settings)
pd.DataFrame([(arm.name, arm.text) for arm in replacing.ARMS], columns=["arm", "what is done"])

# %% [markdown]
# ## The first steps as a film
#
# Of each class's hyphens on which the parent was on (select split), the share whose largest feature is the parent, another
# feature copied from the narrow SAE, or a fresh one. Mean over the seeds; the slider is the step.

# %%
Film(curves, {arm.name: arm.text for arm in replacing.ARMS}, CLASSES)

# %%
study_figures.replaced_figure(curves, CLASSES)
plt.show()

# %% [markdown]
# The same as lines: the mean, and pale between the least and the largest seed. Lines that lie over each other have markers of
# their own.
#
# ## Steps to replacement, and by whom
#
# A class is replaced at the first step from which on the parent is the largest feature on less than half of its tokens, so a
# parent that comes back is not. Median over seeds with a 95% interval, censored at the last step recorded (Kaplan and Meier):
# what takes longer was not watched. `by_copy`: of the seeds in which it is replaced, the share in which copies of other features
# lead at the end, not fresh ones; `cosine`: of the winner (the largest besides the parent) to the parent's old row; `first`:
# share of seeds in which this class is replaced before the others.

# %%
summary = keep_table(replacing_tables.summary_table(runs, settings.replacing_steps))
summary[["arm", "class", "steps", "low", "high", "reached", "seeds", "by_copy", "cosine", "first"]]

# %% [markdown]
# The share of the watched tokens on which the parent is the largest after the last step, mean over classes and seeds: above 0
# where it was replaced, it is coming back.

# %%
left = curves.groupby("arm", sort=False)[[f"parent_{name}" for name in CLASSES]].last().mean(axis=1)
left.to_frame("parent largest")

# %% [markdown]
# ## What it does to separation and to reconstruction
#
# After the last recorded step, on test: separation of the hyphen's classes, and FVU on tokens with the parent on (P) and on
# tokens without. `smallest`: the difference in S_2 from a plain warm start, seed by seed, that so many seeds show with 80%
# power. A parent zeroed in the loss is silent here, too; its decoder row then takes part in nothing, so drawing it anew beside
# that would change no bit.

# %%
ends = summary.drop_duplicates("arm").set_index("arm")
ends[["S_2", "S_2_low", "S_2_high", "smallest"]]

# %%
ends[["fvu_on", "fvu_on_low", "fvu_on_high", "fvu_off", "fvu_off_low", "fvu_off_high"]]

# %% [markdown]
# FVU is far above 1 at step 0: the fresh features are drawn at random at full size, and many are on and add what belongs nowhere.

# %%
study_figures.watched_figure(curves)
plt.show()

# %% [markdown]
# ## Conclusion

# %%
report.headline(
    answer=replacing_tables.answer(summary),
    steps_recorded=settings.replacing_steps,
    seeds_per_arm=settings.replacing_seeds,
    watched_tokens=len(replacing.watched_tokens(settings)[1]),
    S_2={arm: float(row["S_2"]) for arm, row in ends.iterrows()},
    parent_largest_at_the_end=left.to_dict(),
)

# %%
report.watermark(
    seeds={"arms": list(range(settings.replacing_seeds)), "narrow": settings.seed},
    text_manifest=study.text_summary(settings),
)
