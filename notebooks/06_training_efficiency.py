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
# # Does a warm start converge faster?
#
# The study's Figure 6 plots the loss against the training step for one warm start and two random ones: at logged step
# 50 the warm start stands at 139.99 against 149.68 and 148.61, and all are near 129 by step 250. Here are all runs on
# the same filtered data, with the standard loss.

# %% tags=["parameters"]
profile = "mini"

# %%
from matplotlib import pyplot as plt

from saelib.base import stats
from saelib.report import report, study_figures, views
from saelib.study import study, warm_starts
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
logs = warm_starts.histories(settings)

# %% [markdown]
# ## Figure 6: loss against tokens

# %%
study_figures.loss_figure(logs)
plt.show()

# %% [markdown]
# Tokens until the loss first comes within 5% of the level that the random starts end at (median of their last ten
# logged losses). A run that never gets there is censored: it needs more than it was given.

# %%
table = warm_starts.tokens_to_level(logs)
table

# %% [markdown]
# ## Replacing: how long does the old parent stay on top?
#
# After a warm start the parent's index keeps its meaning. The share of parent-active hyphens (select split) on which it
# is still the most active feature, against tokens.

# %%
study_figures.parent_on_top_figure(logs)
plt.show()

# %%
on_top = warm_starts.parent_on_top(logs)
on_top

# %% [markdown]
# ## Conclusion

# %%
warm, cold = (table[table["start"] == start]["tokens to level"] for start in ("warm", "random"))
report.headline(
    answer=f"Tokens to the same loss: warm {stats.median_text(warm)}, random {stats.median_text(cold)} "
    f"({len(warm)} and {len(cold)} runs).",
    level=warm_starts.loss_level(logs),
    warm_reached=int(warm.notna().sum()),
    warm_runs=len(warm),
    random_reached=int(cold.notna().sum()),
    random_runs=len(cold),
    warm_median_tokens=stats.censored_median(warm),
    random_median_tokens=stats.censored_median(cold),
    parent_on_top=on_top.round(3).to_dict("index"),
)

# %%
report.watermark(
    seeds={"runs": sorted({spec.seed for spec in warm_starts.WIDE.values()})},
    text_manifest=study.text_summary(settings),
)
