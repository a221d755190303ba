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
# is read off that SAE when it is at hand, and put to the eye test and the score.

# %% tags=["parameters"]
profile = "gelu-1l"

# %%
import pandas as pd

from saelib.text import hub_data
from saelib.report import report, run_views, views
from saelib.study import study, verdicts
from saelib.split.classes import CLASSES
from saelib.study.eye_test import eye_test
from saelib.acts.activations import text_store
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
published = study.published_sae(settings)
model = study.language_model(settings)
if published is None:
    print(
        "The study's wide SAE is not at hand. Set SAELIB_RUN_25 to run-25's .pt, with its _cfg.json beside it, and run this "
        "notebook again under a profile of its model, gelu-1l: Figures 2 to 5 are made from it."
    )

# %% [markdown]
# ## The three prompts (Figures 2, 4 and 5), with the published activations beside ours

# %%
if published is not None:
    children = {826: "count", 2821: "number", 3833: "compound"}
    table = run_views.beside_published(published, model)
    display(table)
    for view in run_views.prompt_views(published, model, children):
        display(view)

# %% [markdown]
# ## The children (Figure 3)
#
# On the study's own text for reading features where that is at hand, else on the test split.

# %%
if published is not None:
    texts = hub_data.interpretation_texts(2_000)
    store = text_store(model, texts, max_contexts=4_000) if texts else study.activations(settings, "test")
    print(hub_data.INTERPRETATION if texts else "test split", f"{store.n_tokens:,} tokens")
    for shown in run_views.child_views(published, model, store, children):
        display(shown)

# %% [markdown]
# ## The verdicts on it

# %%
if published is not None:
    parent = study.parent(settings)
    quality = study.quality_of(settings, published)
    test = eye_test(published, model, study.hyphens(settings, "select"), study.hyphens(settings, "test"))
    score, chosen = verdicts.score_of(settings, published, parent)
    display(pd.Series(quality._asdict(), name="on test text").to_frame())
    display(test.frame().set_index("context_class").T)
    display(score.frame().T)

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
        answer=f"Eye test: {test.verdict}; score: {score.verdict}. The published activations are met to within {off:.2f}.",
        at_hand=True,
        verdict=test.verdict,
        score=score.verdict,
        candidates=score.candidates,
        largest_difference=off,
        l0=quality.l0,
        fvu=quality.fvu,
        loss_recovered=quality.loss_recovered,
        **{f"best_f1_{name}": f1 for name, f1 in zip(CLASSES, score.best_f1, strict=True)},
    )

# %%
report.watermark(seeds={"narrow": settings.seed}, text_manifest=study.text_summary(settings))
