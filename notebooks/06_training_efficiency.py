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
import pandas as pd
from matplotlib import pyplot as plt

from saelib.report import report, views
from saelib.base import stats
from saelib.study import trainings, study
from saelib.study.profiles import get_profile
from saelib.study.runs import RUNS

views.figure_style()
settings = get_profile(profile)
specs = {spec.run: spec for spec in RUNS if spec.size == "wide"}
histories = {run: trainings.trained_run(settings, run).history for run in specs}

# %% [markdown]
# ## Figure 6: loss against tokens

# %%
compared = {run: spec for run, spec in specs.items() if spec.filtered and not spec.zero_parent}
figure, axis = plt.subplots(figsize=(7, 4))
for run, spec in compared.items():
    history = histories[run].rolling(3, min_periods=1).mean()
    label = f"run {run}: {'warm' if spec.init_from_narrow else 'random'}, seed {spec.seed}"
    axis.plot(history["tokens"], history["loss"], color="C0" if spec.init_from_narrow else "C1", alpha=0.7, label=label)
axis.set(xlabel="tokens", ylabel="loss", yscale="log", title="Filtered data, standard loss; blue: warm start")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# Tokens until the loss first comes within 5% of the level that the random starts end at (median of their last ten
# logged losses). A run that never gets there is censored: it needs more than it was given.

# %%
random_runs = [run for run, spec in compared.items() if not spec.init_from_narrow]
level = 1.05 * pd.concat([histories[run]["loss"].tail(10) for run in random_runs]).median()
tokens_to = {run: stats.first_at_or_below(histories[run], "loss", level) for run in compared}
table = pd.DataFrame(
    {
        "start": {run: "warm" if spec.init_from_narrow else "random" for run, spec in compared.items()},
        "seed": {run: spec.seed for run, spec in compared.items()},
        "first loss": {run: histories[run]["loss"].iloc[0] for run in compared},
        "last loss": {run: histories[run]["loss"].tail(10).median() for run in compared},
        "tokens to level": tokens_to,
        "tokens given": {run: int(histories[run]["tokens"].iloc[-1]) for run in compared},
    }
)
table

# %% [markdown]
# ## Replacing: how long does the old parent stay on top?
#
# After a warm start the parent's index keeps its meaning. The share of parent-active hyphens (select split) on which it
# is still the most active feature, against tokens.

# %%
figure, axis = plt.subplots(figsize=(7, 4))
for run, spec in specs.items():
    if spec.init_from_narrow:
        style = ("-" if spec.zero_parent else "--", "C2" if spec.filtered else "C3")
        label = f"run {run}: {'parent zeroed' if spec.zero_parent else 'standard'}, {'filtered' if spec.filtered else 'all data'}"
        axis.plot(histories[run]["tokens"], histories[run]["parent_still_top"], *style[:1], color=style[1], label=label)
axis.set(xlabel="tokens", ylabel="share", ylim=(-0.02, 1.02), title="Old parent still the top feature on its hyphens")
axis.legend(fontsize=7)
plt.show()

# %%
shares = {run: histories[run]["parent_still_top"] for run, spec in specs.items() if spec.init_from_narrow}
peak, still = {r: float(s.max()) for r, s in shares.items()}, {r: float(s.iloc[-1]) for r, s in shares.items()}
pd.DataFrame({"largest at any time": peak, "at the end": still})

# %% [markdown]
# ## Conclusion

# %%
warm, cold = (table[table["start"] == start]["tokens to level"] for start in ("warm", "random"))
report.headline(
    answer=f"Tokens to the same loss: warm {stats.median_text(warm)}, random {stats.median_text(cold)} "
    f"({len(warm)} and {len(cold)} runs).",
    level=level,
    warm_reached=int(warm.notna().sum()),
    warm_runs=len(warm),
    random_reached=int(cold.notna().sum()),
    random_runs=len(cold),
    warm_median_tokens=stats.censored_median(warm),
    random_median_tokens=stats.censored_median(cold),
    parent_top_peak_zeroed=[round(peak[run], 3) for run in peak if specs[run].zero_parent],
    parent_top_peak_standard=[round(peak[run], 3) for run in peak if not specs[run].zero_parent],
    parent_still_top_zeroed=[round(still[run], 3) for run in still if specs[run].zero_parent],
    parent_still_top_standard=[round(still[run], 3) for run in still if not specs[run].zero_parent],
)

# %%
report.watermark(seeds={"runs": sorted({s.seed for s in specs.values()})}, text_manifest=study.text_summary(settings))
