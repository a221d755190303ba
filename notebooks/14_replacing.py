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
# ## Steps to replacement, and by whom
#
# A class is replaced at the first step from which on the parent is the largest feature on less than half of its tokens.
# Median over seeds with a 95% interval, censored at the last step recorded (Kaplan and Meier). `by_copy`: share of seeds in
# which copies of other features lead at the end, not fresh ones; `cosine`: of the winner to the parent's old row; `first`:
# share of seeds in which this class is replaced before the others.

# %%
summary = keep_table(replacing_tables.summary_table(runs, settings.replacing_steps))
summary[["arm", "class", "steps", "low", "high", "reached", "seeds", "by_copy", "cosine", "first"]]

# %% [markdown]
# ## What it does to separation and to reconstruction
#
# After the last recorded step, on test: separation of the hyphen's classes, and FVU on tokens with the parent on (P) and on
# tokens without. A parent zeroed in the loss is silent here, too; its decoder row then takes part in nothing, so
# drawing it anew beside that would change no bit.

# %%
ends = summary.drop_duplicates("arm").set_index("arm")
ends[[f"{name}{end}" for name in ("S_2", "fvu_on", "fvu_off") for end in ("", "_low", "_high")]]

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
)

# %%
report.watermark(
    seeds={"arms": list(range(settings.replacing_seeds)), "narrow": settings.seed},
    text_manifest=study.text_summary(settings),
)
