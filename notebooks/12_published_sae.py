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
# # What does the study's own wide SAE hold?
#
# The study read its children off a public SAE of 4096 features, "run-25", before it trained any: Figures 2 to 5. Here the same
# is read off that SAE when it is at hand, and measured as every run is.

# %% tags=["parameters"]
profile = "gelu-1l"

# %%
import pandas as pd

from saelib.base.table import as_row
from saelib.text import hub_data
from saelib.report import report, run_views, views
from saelib.study import selection, study
from saelib.study.outcome import outcome
from saelib.study.prompt_check import prompt_check
from saelib.acts.activations import text_store
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
published = study.published_sae(settings)
model = study.language_model(settings)
children = {"count": 826, "number": 2821, "compound": 3833}
if published is None:
    print(
        "The study's wide SAE is not at hand. Set SAELIB_RUN_25 to run-25's .pt, with its _cfg.json beside it, and run this "
        "notebook again under a profile of its model, gelu-1l: Figures 2 to 5 are made from it."
    )

# %% [markdown]
# ## The three prompts (Figures 2, 4 and 5), with the published activations beside ours

# %%
if published is not None:
    table = run_views.beside_published(published, model)
    display(table, *run_views.prompt_views(published, model, children))

# %% [markdown]
# ## The children (Figure 3)
#
# On the study's own text for reading features where that is at hand, else on the test split.

# %%
if published is not None:
    texts = hub_data.interpretation_texts(2_000)
    store = text_store(model, texts, max_contexts=4_000) if texts else study.activations(settings, "test")
    print(hub_data.INTERPRETATION if texts else "test split", f"{store.n_tokens:,} tokens")
    display(*run_views.feature_views(published, model, store, children))

# %% [markdown]
# ## What it comes to

# %%
if published is not None:
    quality = study.quality_of(settings, published)
    found = outcome(settings, selection.parent(settings), published)
    own = [win.context_class for win in prompt_check(published, model) if win.own]
    display(pd.Series(quality._asdict() | as_row(found), name="on test text").to_frame())

# %% [markdown]
# ## Conclusion

# %%
if published is None:
    report.headline(
        answer="The study's wide SAE is not at hand, so Figures 2 to 5 are not made from it.", at_hand=False
    )
else:
    off = (table["here"] - table["published"]).abs().max()
    report.headline(
        answer=f"A feature of its own on the post's prompts: {', '.join(own) or 'none'}; strict verdict: "
        f"{found.strict.verdict}. The published activations are met to within {off:.2f}.",
        at_hand=True,
        prompts=len(own),
        largest_difference=off,
        **quality._asdict() | as_row(found),
    )

# %%
report.watermark(seeds={"narrow": settings.seed}, text_manifest=study.text_summary(settings))
