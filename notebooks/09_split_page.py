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
# # What is the hyphen made of?
#
# The study's parent split into children by the product's own method; then what the wide run that tells the hyphen's classes
# apart best holds in the parent's place, where its features came from, and a map of both dictionaries.

# %% tags=["parameters"]
profile = "mini"
run: int | None = None

# %%
from saelib.base.errors import UserError
from saelib.report import report, run_views, tools, views
from saelib.report.children_page import children_page
from saelib.study import children_rows, effects, results, study, selection, trainings
from saelib.study.profiles import get_profile
from saelib.study.runs import RUNS

views.figure_style()
settings = get_profile(profile)
model, parent, narrow = study.language_model(settings), selection.parent(settings), study.narrow_sae(settings).sae

# %%
try:
    split, reason = children_rows.study_split(settings, parent), ""
except UserError as error:
    split, reason = None, str(error)

# %% [markdown]
# ## The split

# %%
children_page(split, run_views.prompts_on(split)) if split is not None else print(reason)

# %% [markdown]
# ## The wide run that tells the classes apart best

# %%
rows = results.results(settings, [spec.run for spec in RUNS if run in (None, spec.run)])
best = run_views.best_run(rows)
trained, features = trainings.trained_run(settings, best.run), best.outcome.strict.features()
print(f"run {best.run}: {run_views.run_answer(best)}")

# %% [markdown]
# The best feature of each class without which the model predicts worse: the change in log-probability (nats) of the true next
# tokens.

# %%
effects.causal_table(settings, trained.sae, features)

# %% [markdown]
# What each dictionary keeps of the hyphens, at matched L0.

# %%
dictionaries = {"narrow": narrow, f"run {best.run}": trained.sae}
effects.usefulness(settings, dictionaries | ({} if split is None else {"narrow + children": split.sae}))

# %% [markdown]
# ## Lineage: what the features of the narrow SAE became

# %%
matched = tools.match_saes(narrow, trained.sae)
matched["decoder_cosine"].describe().to_frame("decoder cosine of matched features")

# %%
tools.lineage(narrow, parent.feature, trained.sae, [*features.values()]) if features else None

# %% [markdown]
# ## Figure 7: a map of both dictionaries

# %%
marks = {(f"run {best.run}", j): name for name, j in features.items()} | {("narrow", parent.feature): "parent"}
tools.map_view(tools.decoder_map(dictionaries), marked=marks)

# %% [markdown]
# ## Conclusion

# %%
report.headline(**run_views.split_headline(split, reason, best))

# %%
report.watermark(
    seeds={"run": best.seed, "narrow": settings.seed, "children": 0}, text_manifest=study.text_summary(settings)
)
