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
# # What is this feature of my SAE made of?
#
# The notebook form of `saelib split`: an SAE folder, a feature and a text, to a verdict with its controls. What is computed
# is kept in the cache, so that the notebook and the command share it.

# %% tags=["parameters"]
sae = ""
feature = 0
model = "mini"
text = "study"
filter_by = "context"
start = "random"
tokens = 2_000_000
seeds = 2
width = 8
classes = "auto"
n_classes = 3
tau: float | None = None
l1: float | None = None

# %%
from saelib.report import report, views
from saelib.report.split_any import SplitRequest, page_of, split_feature

views.figure_style()
request = SplitRequest(sae, feature, model, text, filter_by, start, tokens, seeds, width, classes, n_classes, tau, l1)
outcome = split_feature(request)

# %% [markdown]
# ## Every wide SAE that was trained

# %%
outcome.runs

# %% [markdown]
# ## The L1 coefficient, chosen before any split

# %%
outcome.coefficients

# %% [markdown]
# ## The split

# %%
page_of(outcome)

# %% [markdown]
# ## Conclusion

# %%
score = outcome.score
report.headline(
    answer=f"Feature {feature}: {score.verdict}; {score.candidates} candidate children of {score.parent_tokens:,} test tokens.",
    verdict=score.verdict,
    candidates=score.candidates,
    tau=outcome.chosen.tau,
    classes=list(outcome.chosen.labels.names),
    automatic_classes=outcome.chosen.labels.automatic,
    tokens=int(outcome.runs["tokens"].iloc[0]),
)

# %%
report.watermark(seeds={"wide": list(range(seeds))})
