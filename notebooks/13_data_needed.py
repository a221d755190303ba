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
# The 2024 post's next step 2: separation of the hyphen's classes (number and count; 0 is the parent's own size, 1 a linear
# probe) against training tokens, for six ways to train; then in tokens that the language model reads, and in seconds.

# %% tags=["parameters"]
profile = "mini"
# Measured on an NVIDIA H100 at gelu-1l's shape (d_in 512, 4,096 features), fp32: docs/performance.md.
gpu_lm_tokens_per_second = 3.7e6
gpu_sae_tokens_per_second = 1.05e6

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
sources = data_tables.at_one_rate(data_needed.sources(settings, table))

# %% [markdown]
# ## What is paid for
#
# `share` of the tokens pass the filter, `available` of them are in the text (seen again, they are not read again), and a
# token of training takes `sae_second` (one rate for all wide SAEs). Reading is timed here, on test text.

# %%
read = np.asarray(study.activations(settings, "test").contexts[:128])
lm_second = price.reading_second(study.language_model(settings), read)
print(f"the language model reads {1 / lm_second:,.0f} tokens a second")
pd.DataFrame({arm: vars(source) for arm, source in sources.items()}).T

# %% [markdown]
# ## Separation against tokens
#
# Median of the seeds, with all of them between the pale lines: in SAE tokens, in language-model tokens (a filtered token costs
# 1 / share of them), in seconds on this machine and on a GPU. The GPU's rates are of gelu-1l's shape, not of this one; the
# children's is as many times the wide SAEs' as here. A curve's trainings are shorter than the study's runs (in mini 400 steps,
# not 1,000), its hollow points. From a random start S_2 falls, then rises: a level is reached where it stays at or above it.
#
# The table: S_2 at the last point less that of all data from the same start, seed by seed; `smallest` is the smallest difference
# that so many seeds show with 80% power.

# %%
on_gpu = data_tables.at_rate(sources, gpu_sae_tokens_per_second)
gpu_seconds = price.scales(on_gpu, 1 / gpu_lm_tokens_per_second)["seconds"]
longest = keep_table(data_tables.study_points(settings), "study_runs")
data_figure(table, price.scales(sources, lm_second) | {"seconds on the GPU": gpu_seconds}, longest)
plt.show()
apart = data_tables.differences(table)
apart

# %% [markdown]
# ## Tokens to a level
#
# The levels: run 9's, and half, three quarters and nine tenths of the way to the probe. A seed that ends below is censored
# (Kaplan and Meier). A number that is that of the `first` point is an upper end: the level may have been reached before it.

# %%
chosen = selection.parent(settings)
run_9 = separation_of(settings, chosen, trainings.trained_run(settings, 9).sae)["S_2"]
levels = {"run 9": run_9, **data_tables.LEVELS}
result = keep_table(data_tables.priced(table, levels, sources, lm_second))
result[["arm", "level", "S_2", "tokens", "low", "high", "reached", "seeds", "first", "given"]]

# %% [markdown]
# ## Is filtering worth its price?
#
# It pays where `share`, what passes here, is above `break_even` = n_f l / (n_a (s_a + l) - n_f s_f): n tokens each needs, s and
# l seconds to train on and to read one. `ratio` is the cost against all data from the same start, no token seen twice
# (`ratio_seen_again`: as here); intervals draw seeds, which are few. `bound`: where a number of tokens is only an end, so is it.

# %%
result.loc[result["ratio"].notna(), data_tables.PRICE]

# %% [markdown]
# At the GPU's rates: the dearer training a token is against reading one, the sooner a filter pays.

# %%
there = keep_table(data_tables.priced(table, levels, on_gpu, 1 / gpu_lm_tokens_per_second), "gpu")
there.loc[there["ratio"].notna(), data_tables.PRICE]

# %% [markdown]
# ## Conclusion

# %%
report.headline(
    answer=data_tables.answer(result),
    seeds_per_arm=settings.data_seeds,
    longest_tokens=int(longest["tokens"].max()),
    run_9_S_2=run_9,
    smallest_difference=dict(zip(apart["arm"], apart["smallest"], strict=True)),
    lm_tokens_per_second=1 / lm_second,
    context_share=sources["random, contexts"].share,
    token_share=sources["random, tokens"].share,
)

# %%
seeds = {"arms": list(range(settings.data_seeds)), "narrow": settings.seed}
report.watermark(seeds=seeds, text_manifest=study.text_summary(settings))
