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
# # Which of the claims hold here?
#
# Every arm of the post's design, and ours, on several narrow SAEs of different seeds, each with its own parent; one row a
# claim: the published evidence, ours, the effect on S_2 with its 95% interval, the test, and what follows.

# %% tags=["parameters"]
profile = "mini"

# %%
from saelib.base.table import as_row, frame_of
from saelib.report import claim_views, report, views
from saelib.study import arms, claims, study
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
runs = arms.arm_runs(settings)

# %% [markdown]
# ## The narrow SAEs
#
# The unit of every test: a seed each, and in each the parent by the study's rule.

# %%
every = frame_of(arms.ArmRun, map(as_row, runs))
every.groupby("block")[["parent", "purity", "recall", "floor_number", "floor_count"]].first()

# %% [markdown]
# ## The arms
#
# Means over narrow SAEs and seeds at the end of training. The L1 coefficient of each wide arm (`l1_scale`, as a multiple of the
# narrow SAE's) is calibrated on the first narrow SAE so that as many features are active on a hyphen at the end as in the plain
# control; on the others, and early on, L0 is what comes out (`l0_hyphens`), and children have their own.

# %%
claim_views.arms_table(every)

# %%
claim_views.arms_figure(every)

# %% [markdown]
# ## The claims
#
# Supported: the interval excludes 0 in the direction claimed and p by Holm is below 0.05. Not supported: it excludes an effect
# of 0.10. Else undecided. A claim that two are as good as each other is supported when the interval lies within 0.10 of 0 and
# p by Holm is below 0.05. Holm's correction is over the claims; controls stand outside, judged by their intervals.

# %%
judged = claims.judge_claims(runs)
table = frame_of(claims.ClaimResult, map(as_row, judged)).set_index("claim")
table[["kind", "published", "arms", "effect", "low", "high", "p", "p_holm", "smallest_effect", "verdict"]]

# %%
claim_views.effects_figure(judged)

# %% [markdown]
# ## The strict verdict, second
#
# The share of runs whose verdict is `split`, and how many of the two classes pass.

# %%
table[["arms", "first_strict", "second_strict", "first_passed", "second_passed", "first_l0", "second_l0"]]

# %% [markdown]
# ## Are the runs long enough?
#
# S_2 early and at the end of each run, beside the spread of two seeds on one narrow SAE.

# %%
gains = claim_views.early_and_late(every)
print(claim_views.long_enough(gains))
gains

# %% [markdown]
# ## What the embedded model's differences do to these conclusions
#
# The model is small and a run here sees some millions of tokens, the post's 26 million to two thousand million. Training
# longer makes features rarer and purer: a claim about longer training is not refuted by an effect that is not there yet.

# %% [markdown]
# ## Conclusion

# %%
report.headline(**claim_views.claims_headline(settings, judged, every))

# %%
seeds = {
    "narrow": list(range(settings.seed, settings.seed + settings.claim_blocks)),
    "runs": sorted({r.seed for r in runs}),
}
report.watermark(seeds=seeds, text_manifest=study.text_summary(settings))
