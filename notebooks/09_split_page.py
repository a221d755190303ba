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
# The study's parent split into children by the product's own method, and whole wide SAEs beside it; then what the wide run
# that tells the hyphen's classes apart best holds in the parent's place, where its features came from, and a map of both.

# %% tags=["parameters"]
profile = "mini"
run: int | None = None

# %%
from saelib.base.errors import UserError
from saelib.base.table import as_row, frame_of
from saelib.report import report, run_views, tools, views
from saelib.report.children_page import children_page
from saelib.report.tables import keep_table
from saelib.study import children_rows, effects, results, rows_to_beat, study, selection, trainings
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
below = "Whole wide SAEs are not among these rows: they stand below, measured on all hyphens."
children_page(split, run_views.prompts_on(split), wide_rows=below) if split is not None else print(reason)

# %% [markdown]
# ## Rows to beat: whole wide SAEs
#
# Separation on every hyphen that joins two words, as of all runs (above: on the parent's tokens). Means over trainings, of S_2
# the smallest and largest too; `features`, `tokens`, `seconds` are those of a training. The first training of children is the
# split above. Filtered by token: a row if notebook 13 has trained it (shorter); matched in L0 it stands in `07_claims`.

# %%
rows = results.results(settings, [spec.run for spec in RUNS if run in (None, spec.run)])
beside = rows_to_beat.rows_to_beat(settings, parent, rows)
print(rows_to_beat.who_leads(beside))
keep_table(frame_of(rows_to_beat.RowToBeat, map(as_row, beside))).set_index("dictionary")

# %% [markdown]
# ## The wide run that tells the classes apart best

# %%
best = run_views.best_run([row for row in rows if row.size == "wide"] or rows)
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
report.headline(**run_views.split_headline(split, reason, best, beside))

# %%
report.watermark(
    seeds={"run": best.seed, "narrow": settings.seed, "children": 0}, text_manifest=study.text_summary(settings)
)
