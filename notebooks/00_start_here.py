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
# # Which finer features is a feature made of?
#
# Choose an SAE and one of its features, split it, look at the children. Reading the text takes minutes the first time and
# nothing afterwards; the split itself takes seconds. The SAE given here is the study's, and the feature the one that the study
# splits; any folder in the SAELens format will do, its path seen from this notebook.

# %% tags=["parameters"]
sae = "../reports/mini/narrow_sae"
feature = 83
model = "mini"
text = "study"
prompt = ""

# %%
import saelib

parent_sae = saelib.load_sae(sae)
acts = saelib.activations(model, text, sae=parent_sae)

# %% [markdown]
# A feature and its children: how much of the feature each covers, what it is for, what it adds to what the rest of the SAE
# tells apart already.

# %%
split = saelib.split(parent_sae, feature, acts)
split

# %% [markdown]
# Which child fires on which token of a text of your choice, the parent first.

# %%
from saelib.report import views
from saelib.report.split_report import example_text

fires = split.on(prompt or example_text(split))
names = [*fires.columns[2:]]
display(views.top_contexts([fires["token"]] * len(names), [fires[n] for n in names], columns={"feature": names}))
fires

# %% [markdown]
# The whole page: examples, contexts, controls, cost.

# %%
from saelib.report.children_page import children_page

children_page(split)

# %% [markdown]
# The same SAE with the children in the feature's place, in the SAELens format: `split.sae.save("my-sae-split")`.

# %%
from saelib.report import report

report.headline(
    answer=f"Feature {feature} has {len(split.children)} children: {split.verdict_text}.",
    verdict=str(split.verdict.value),
    children=len(split.children),
)
report.watermark(seeds={"children": 0})
