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
# # How much data does a split take, and is filtering worth its price?
#
# The 2024 post asks how much more data a standard initialisation needs, and what filtering costs against what it saves (its
# next step 2). Separation of the hyphen's classes (number and count; 0 is the parent's own size, 1 a linear probe) against
# training tokens, for six ways to train; then the same in tokens that the language model reads, and in seconds.

# %% tags=["parameters"]
profile = "mini"
# Measured on an NVIDIA H100 at gelu-1l's shape, fp32 (docs/performance.md); None leaves that table out.
gpu_lm_tokens_per_second: float | None = 3.7e6
gpu_sae_tokens_per_second: float | None = 1.05e6

# %%
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from saelib.report import report, views
from saelib.report.study_figures import data_figure
from saelib.report.tables import keep_table
from saelib.study import data_needed, data_tables, price, selection, study, trainings
from saelib.study.hyphen_scale import separation_of
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
table = keep_table(data_needed.points_table(settings), "points")
sources = data_needed.sources(settings, table)

# %% [markdown]
# ## What is paid for
#
# `share` of the tokens pass the filter, `available` of them are in the text (seen again, they are not read again), and a
# token of training takes `sae_second`. Reading is timed here, on test text.

# %%
read = np.asarray(study.activations(settings, "test").contexts[:128])
lm_second = price.reading_second(study.language_model(settings), read)
print(f"the language model reads {1 / lm_second:,.0f} tokens a second")
pd.DataFrame({arm: vars(source) for arm, source in sources.items()}).T

# %% [markdown]
# ## Separation against tokens
#
# Median of the seeds, with all of them between the pale lines. One picture in SAE tokens, one in language-model tokens (a
# filtered token costs 1 / share of them), one in seconds of reading and training on this machine.

# %%
data_figure(table, price.scales(sources, lm_second))
plt.show()

# %% [markdown]
# ## Tokens to a level
#
# The levels are fixed: that of run 9 of the post's table, and half, three quarters and nine tenths of the way to the probe. A
# seed that does not get there within its tokens is censored; medians and intervals are Kaplan and Meier's.

# %%
chosen = selection.parent(settings)
run_9 = separation_of(settings, chosen, trainings.trained_run(settings, 9).sae)["S_2"]
levels = data_tables.levels_table(table, {"run 9": run_9, **data_tables.LEVELS})
result = keep_table(data_tables.priced(levels, sources, lm_second))
result[["arm", "level", "S_2", "tokens", "low", "high", "reached", "seeds", "given"]]

# %% [markdown]
# ## Is filtering worth its price?
#
# Filtering pays where `share`, what passes here, is above `break_even` = n_f l / (n_a (s_a + l) - n_f s_f), with the tokens n
# that each needs, the seconds s of training and l of reading; `ratio` is the cost against all data from the same start where
# no token is seen twice, `ratio_seen_again` what it was here. Where all data never got there (`at_least`), these are upper ends.

# %%
result.loc[result["break_even"].notna(), data_tables.PRICE]

# %% [markdown]
# ### On a GPU
#
# The same at the rates of a GPU, which are this notebook's parameters. Only their ratio moves the break-even share: the dearer
# a token of training is against one of reading, the sooner a filter pays.

# %%
on_gpu = data_tables.priced_at(levels, sources, gpu_lm_tokens_per_second, gpu_sae_tokens_per_second)
on_gpu if on_gpu is None else keep_table(on_gpu, "gpu")

# %% [markdown]
# ## Conclusion

# %%
report.headline(
    answer=data_tables.answer(result),
    seeds_per_arm=settings.data_seeds,
    points=len(table["tokens"][table["arm"] == "random, all"].unique()),
    longest_tokens=int(table["tokens"].max()),
    run_9_S_2=run_9,
    lm_tokens_per_second=1 / lm_second,
    context_share=sources["random, contexts"].share,
    token_share=sources["random, tokens"].share,
)

# %%
seeds = {"arms": list(range(settings.data_seeds)), "narrow": settings.seed}
report.watermark(seeds=seeds, text_manifest=study.text_summary(settings))
