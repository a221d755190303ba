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
# nothing afterwards; the split itself takes seconds.

# %% tags=["parameters"]
sae = "my-sae"
feature = 7
model = "mini"
text = "study"
prompt = ""

# %%
import saelib

parent_sae = saelib.load_sae(sae)
acts = saelib.activations(model, text, hook=parent_sae.cfg.hook_name)

# %% [markdown]
# A feature and its children: how much of the feature each covers, what it is for, what it adds to what the rest of the SAE
# tells apart already.

# %%
split = saelib.split(parent_sae, feature, acts)
split

# %% [markdown]
# Where each child fires, with the parent beside it, on text of your choice.

# %%
from saelib.report.split_report import example_text

split.on(prompt or example_text(split))

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
