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
# # Does a parent of another kind split?
#
# The study split one feature, for "-". Here the same is asked of the narrow SAE's feature that best marks another kind of
# token, chosen by F1 on the select split before anything is trained: filter on it, train wide SAEs, judge.

# %% tags=["parameters"]
profile = "smollm2"
kind = "digit"
seeds = 2

# %%
from saelib.report import report, views
from saelib.study import study
from saelib.study.profiles import get_profile
from saelib.report.split_any import SplitRequest, page_of, split_feature

views.figure_style()
settings = get_profile(profile)
narrow = study.narrow_sae(settings).sae

# %% [markdown]
# ## The parents
#
# `token` is what the feature marks: any single digit, or one token of code. The hyphen's parent is left out.

# %%
parents = study.parents_of_other_kinds(settings, narrow)
parents

# %%
chosen = study.parent_of_kind(parents, kind)
request = SplitRequest(
    sae=str(study.narrow_folder(settings)),
    feature=int(chosen["feature"]),
    model=settings.model,
    tokens=settings.wide_steps * settings.batch_size,
    seeds=seeds,
    width=max(1, settings.d_sae_wide // settings.d_in),
    l1=study.coefficient(settings).l1_coeff * settings.batch_size,
)
outcome = split_feature(request, settings)

# %% [markdown]
# ## Every wide SAE that was trained
#
# With the profile's own coefficient, the same for all.

# %%
outcome.runs

# %% [markdown]
# ## The split
#
# The classes are automatic: clusters of what stands before the token.

# %%
page_of(outcome)

# %% [markdown]
# ## Conclusion

# %%
score = outcome.score
best = ", ".join(f"{name} {f1:.2f}" for name, f1 in zip(outcome.chosen.labels.names, score.best_f1, strict=True))
report.headline(
    answer=f"The parent for {chosen['token']!r} (feature {request.feature}, F1 {chosen['f1']:.2f}): {score.verdict}; "
    f"{score.candidates} candidate children of {score.parent_tokens:,} test tokens; best F1 {best}.",
    kind=kind,
    token=chosen["token"],
    parent=request.feature,
    parent_f1=chosen["f1"],
    tau=outcome.chosen.tau,
    score=score.verdict,
    candidates=score.candidates,
    coverage=score.coverage,
    test_parent_tokens=score.parent_tokens,
    classes=list(outcome.chosen.labels.names),
    automatic_classes=outcome.chosen.labels.automatic,
    tokens=int(outcome.runs["tokens"].iloc[0]),
)

# %%
report.watermark(
    seeds={"narrow": settings.seed, "wide": list(range(seeds))}, text_manifest=study.text_summary(settings)
)
