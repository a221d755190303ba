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
# The notebook form of `saelib split`: an SAE folder, a feature and a text, to its children, a verdict with its controls, and
# the same SAE with the children in the feature's place. Activations are kept in the cache, so that the notebook and the
# command share them.

# %% tags=["parameters"]
sae = ""
feature = 0
model = "mini"
text = "study"
contexts = "auto"
K: int | None = None
tau: float | None = None
seed = 0
out = ""

# %%
import saelib
from saelib.report import report
from saelib.report.children_page import children_page, verdict_sentence
from saelib.report.split_report import write_split

parent_sae = saelib.load_sae(sae)
acts = saelib.activations(model, text, hook=parent_sae.cfg.hook_name)

# %% [markdown]
# ## The split

# %%
split = saelib.split(parent_sae, feature, acts, contexts=contexts, K=K, tau=tau, seed=seed)
children_page(split)

# %% [markdown]
# ## Every child

# %%
split.children

# %% [markdown]
# ## Every context

# %%
split.separation["rest + children"].frame()

# %%
if out:
    print("written:", write_split(split, out))

# %% [markdown]
# ## Conclusion

# %%
S, added = split.separation["rest + children"].S, split.added
report.headline(
    answer=f"Feature {feature}: {verdict_sentence(split)}",
    verdict=str(split.verdict.value),
    children=len(split.children),
    S_2=S[2].value,
    added_2=added[2].value,
    tau=split.parent.tau,
    tokens_of_P=split.parent.n_on["test"],
    seconds_training=split.cost["seconds_training"],
)

# %%
report.watermark(seeds={"children": seed})
