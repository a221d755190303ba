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
# The notebook form of `saelib split`, with its options: an SAE folder, a feature and a text, to its children, a verdict with its
# controls, and the same SAE with the children in the feature's place. Activations are kept in the cache, so that the notebook
# and the command share them.

# %% tags=["parameters"]
sae = ""
feature = 0
model = "mini"
text = "study"
contexts = "auto"
method = "children"
tokens: int | None = None
d_sae: int | None = None
K: int | None = None
tau: float | None = None
seed = 0
device = "auto"
prompt = ""
out = ""

# %%
from pathlib import Path

from saelib.report import report, split_command, views
from saelib.report.children_page import children_page
from saelib.report.split_report import example_text
from saelib.split.result import Split

request = split_command.SplitRequest(
    sae=sae, feature=feature, model=model, text=text, contexts=contexts, method=method, tokens=tokens,
    d_sae=d_sae, K=K, tau=tau, seed=seed, device=device, prompts=(prompt,) if prompt else (), out=Path(out) if out else None,
)  # fmt: skip

# %% [markdown]
# ## The split

# %%
split = split_command.split_of(request)
has_children = isinstance(split, Split)
children_page(split, request.prompts) if has_children else split.rows

# %% [markdown]
# ## Every child

# %%
split.children

# %% [markdown]
# ## Which child fires on which token, the parent first

# %%
if has_children:
    fires = split.on(prompt or example_text(split))
    names = [*fires.columns[2:]]
    display(views.top_contexts([fires["token"]] * len(names), [fires[n] for n in names], columns={"feature": names}))
    display(fires)

# %% [markdown]
# ## Every context

# %%
split.separation["rest + children"].frame() if has_children else split.contexts

# %%
if out:
    print("written:", split_command.write(split, request))

# %% [markdown]
# ## Conclusion

# %%
report.headline(**split_command.numbers(split))

# %%
report.watermark(seeds={"children": seed})
