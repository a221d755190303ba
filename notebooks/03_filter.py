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
# # What does filtering by the parent keep, and what does it cost?
#
# The study trains on "data where the parent's activation is above 2" and kept about 72% of it, without saying whether
# tokens or contexts are kept. 72% of tokens cannot be hyphens, so contexts must be meant: a context is kept when any of
# its tokens activates the parent above the threshold. Keeping single tokens is the stronger filter, which the study did
# not try. Both are views of the same store; nothing is copied.

# %% tags=["parameters"]
profile = "mini"
feature: int | None = None
tau: float | None = None

# %%
from matplotlib import pyplot as plt

from saelib.report import report, study_figures, views
from saelib.study import filtering, selection, study
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
parent = selection.parent(settings, feature, tau)

# %%
acts, seconds_activations = study.seconds_of(lambda: selection.parent_on(settings, "train", parent.feature))
print(f"parent {parent.feature}, tau {parent.tau:.3f}, {len(acts):,} train tokens")

# %%
kept = filtering.kept_by_filter(settings, parent)
kept

# %% [markdown]
# `enrichment` is the parent-active share over that of the whole data. The parent's activation on every token had to be
# known first; that is the filter's own cost, paid once (0 s when it was in the cache).
#
# ## How the share kept depends on the threshold

# %%
study_figures.share_kept_figure(filtering.share_by_threshold(settings, parent), parent.tau)
plt.show()

# %% [markdown]
# ## Conclusion

# %%
context, token = kept.loc["context"], kept.loc["token"]
report.headline(
    answer=f"By context {context['share kept']:.1%} of the tokens stay (the study: about 72%), enriched "
    f"{context['enrichment']:.1f} times; by token {token['share kept']:.2%}, enriched {token['enrichment']:.0f} times.",
    tau=parent.tau,
    kept_by_context=context["share kept"],
    kept_by_token=token["share kept"],
    enrichment_by_context=context["enrichment"],
    enrichment_by_token=token["enrichment"],
    hyphen_share=kept["hyphen share"]["none"],
    train_tokens=len(acts),
    seconds_for_activations=seconds_activations,
)

# %%
report.watermark(seeds={"narrow": settings.seed}, text_manifest=study.text_summary(settings))
