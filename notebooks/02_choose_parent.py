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
# feature is ranked by how well its firing marks the token "-" among all tokens of the select split, by F1. The number
# can be given instead.

# %% tags=["parameters"]
profile = "mini"
feature: int | None = None
tau: float | None = None

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.interpret import features
from saelib.report import report, views
from saelib.study import study
from saelib.split.classes import CLASSES
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
model, narrow = study.language_model(settings), study.narrow_sae(settings).sae

# %% [markdown]
# ## Ranking, on the select split

# %%
ranking = study.rank_parents(settings, narrow)
ranking.head(8)

# %%
parent = study.parent(settings, feature, tau)
row = ranking[ranking["feature"] == parent.feature].iloc[0]
print(
    f"parent: feature {parent.feature}; tau = {parent.tau:.3f} of a largest activation of {parent.max_activation:.3f}"
)

# %% [markdown]
# The study's threshold of 2 is 0.217 of its parent's largest published activation, 9.23. Activations have another scale
# here, so tau is the same share of this parent's largest activation on the select split, unless it is given.
#
# ## Figure 1: where the parent fires most (test split)

# %%
store, acts = study.activations(settings, "test"), study.parent_on(settings, "test", parent.feature)
rows = features.top_rows(acts, 20)
texts, values = zip(*(features.context_of(store, model, row, acts) for row in rows), strict=True)
views.top_contexts(
    texts,
    values,
    scores=acts[rows],
    caption=f"Top activations of feature {parent.feature}, {store.n_tokens:,} test tokens",
)

# %% [markdown]
# Tops alone mislead; these are spread evenly over the tokens on which the parent fires.

# %%
spread = features.quantile_rows(acts, 10)
texts, values = zip(*(features.context_of(store, model, row, acts) for row in spread), strict=True)
views.top_contexts(texts, values, scores=acts[spread], caption="From the strongest to the weakest tenth")

# %% [markdown]
# ## What it does to the logits

# %%
features.logit_effects(narrow.W_dec[parent.feature], model)

# %% [markdown]
# ## How it fires

# %%
is_hyphen = store.token_ids == model.hyphen
figure, axis = plt.subplots()
axis.hist(
    [acts[is_hyphen & (acts > 0)], acts[~is_hyphen & (acts > 0)]], bins=40, stacked=True, label=["-", "other tokens"]
)
axis.axvline(parent.tau, color="black", linestyle="--", label="tau")
axis.set(xlabel="activation", ylabel="test tokens", title=f"Feature {parent.feature}, where it fires", yscale="log")
axis.legend()
plt.show()

# %%
hyphens = study.hyphens(settings, "test")
on_hyphens = narrow.encode(hyphens.x)[:, parent.feature].detach().numpy()
by_class = pd.DataFrame(
    {
        name: {
            "hyphens": int((hyphens.label == c).sum()),
            "parent fires": (on_hyphens[hyphens.label == c] > 0).mean(),
            "parent above tau": (on_hyphens[hyphens.label == c] > parent.tau).mean(),
            "mean activation": on_hyphens[hyphens.label == c].mean(),
        }
        for c, name in enumerate(CLASSES)
    }
).T
by_class

# %% [markdown]
# ## Conclusion

# %%
report.headline(
    answer=f"Feature {parent.feature} marks the hyphen best: F1 {row.f1:.2f} over all tokens of the select split "
    f"(precision {row.precision:.2f}, recall {row.recall:.2f}).",
    parent=parent.feature,
    tau=parent.tau,
    max_activation=parent.max_activation,
    f1=row.f1,
    precision=row.precision,
    recall=row.recall,
    select_tokens=study.activations(settings, "select").n_tokens,
)

# %%
report.watermark(seeds={"narrow": settings.seed}, text_manifest=study.text_summary(settings))
