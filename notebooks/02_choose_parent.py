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
# # Which feature of the narrow SAE is the hyphen's?
#
# The study's parent is feature 240 of its narrow SAE, which fires on "-" in many contexts (its Figure 1). Here every
# feature is asked how well it marks the hyphens that join two words (multi-, 3-, long-), among all tokens of the select
# split, at the threshold of its own at which F1 is best. The feature whose F1 is best is the parent, and that threshold is
# tau. The number can be given instead.

# %% tags=["parameters"]
profile = "mini"
feature: int | None = None
tau: float | None = None

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.interpret import examples, features
from saelib.report import parent_views, report, views
from saelib.study import selection, study
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
model, narrow = study.language_model(settings), study.narrow_sae(settings).sae

# %% [markdown]
# ## Ranking, on the select split

# %%
ranking = selection.rank_parents(settings, narrow)
ranking.head(8)

# %%
parent = selection.parent(settings, feature, tau)
print(
    f"parent: feature {parent.feature}; tau = {parent.tau:.3f} of a largest activation of {parent.max_activation:.3f}"
)

# %% [markdown]
# The study's threshold of 2 is 0.217 of its parent's largest published activation, 9.23. A feature that is named without a
# threshold has the same share of its largest activation on the select split.
#
# ## Is it the hyphen's?
#
# Purity: the share of the tokens on which the parent exceeds tau that are hyphens joining two words. Recall: the share of
# such hyphens on which it does. Both of at least 0.8 on the test split are asked of a parent.

# %%
fits = {split: selection.parent_fit(settings, parent, split) for split in ("select", "test")}
pd.DataFrame({split: cut._asdict() for split, cut in fits.items()}).T

# %% [markdown]
# ## Figure 1: where the parent fires most (test split)

# %%
store, acts = study.activations(settings, "test"), selection.parent_on(settings, "test", parent.feature)
rows = examples.top_rows(acts, 20)
texts, values = zip(*(examples.context_of(store, model, row, acts) for row in rows), strict=True)
views.top_contexts(
    texts,
    values,
    columns={"activation": acts[rows]},
    caption=f"Top activations of feature {parent.feature}, {store.n_tokens:,} test tokens",
)

# %% [markdown]
# Tops alone mislead; these are spread evenly over the tokens on which the parent fires.

# %%
spread = examples.quantile_rows(acts, 10)
texts, values = zip(*(examples.context_of(store, model, row, acts) for row in spread), strict=True)
views.top_contexts(
    texts, values, columns={"activation": acts[spread]}, caption="From the strongest to the weakest tenth"
)

# %% [markdown]
# ## What it does to the logits

# %%
features.logit_effects(narrow.W_dec[parent.feature], model)

# %% [markdown]
# ## How it fires

# %%
parent_views.firing_figure(settings, acts, parent)
plt.show()

# %%
parent_views.by_class(settings, acts, parent)

# %% [markdown]
# ## Conclusion

# %%
report.headline(
    **parent_views.parent_headline(parent, fits), select_tokens=study.activations(settings, "select").n_tokens
)

# %%
report.watermark(seeds={"narrow": settings.seed}, text_manifest=study.text_summary(settings))
