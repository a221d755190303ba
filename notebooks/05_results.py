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
# # Which runs split the hyphen, and does filtering make the difference?
#
# The published table beside ours, the children method beside the wide runs, and the post's Figures 2 to 5 for the run that
# tells the hyphen's classes apart best.

# %% tags=["parameters"]
profile = "mini"

# %%
from saelib.report import report, run_views, views
from saelib.study import children_rows, results, study, selection, trainings
from saelib.study.profiles import get_profile
from saelib.study.runs import RUNS

views.figure_style()
settings = get_profile(profile)
rows = results.results(settings, [spec.run for spec in RUNS])
table = results.results_frame(rows)

# %% [markdown]
# ## The table
#
# `S_2`: how far two features a class tell hyphens after a number and after a count word apart, from 0 (the parent's own
# size) to 1 (a linear probe), on every hyphen that joins two words; in brackets its 95% interval over documents. `prompts`:
# classes with a feature of their own on the post's three prompts, as the post judged (`published_classes`). `verdict` is the
# strict one.

# %%
run_views.results_table(table)

# %%
run_views.separation_figure(table)

# %% [markdown]
# ## Beside the wide runs: children
#
# The same narrow SAE with a small dictionary of children for its one parent (`saelib split`), trained on the parent's tokens
# and a sample of others; everything else is frozen. Measured on the same hyphens, with the rest of the narrow SAE beside the
# children. Beside each seed stands the strong null: as many children with random decoder rows.

# %%
parent = selection.parent(settings)
children = children_rows.children_results(settings, parent)
run_views.children_table(children)

# %%
run_views.compared(settings, parent, table, children)

# %% [markdown]
# ## By how it was trained
#
# Mean S_2 with its range over runs. With so few runs an arm, and seeds that differ too, this describes and does not test:
# the claims are tested in `07_claims` on many narrow SAEs.

# %%
run_views.arms_table(table)

# %% [markdown]
# ## The post's Figures 2 to 5 under the run with the highest S_2

# %%
best = run_views.best_run(rows)
model, trained = study.language_model(settings), trainings.trained_run(settings, best.run)
print(f"run {best.run}: {run_views.run_answer(best)}")

# %%
for view in run_views.prompt_views(trained.sae, model, best.outcome.strict.features()):
    display(view)

# %% [markdown]
# ## Conclusion

# %%
report.headline(**run_views.results_headline(rows, children))

# %%
seeds = {"runs": sorted(set(table["seed"])), "narrow": settings.seed, "children": list(children_rows.SEEDS)}
report.watermark(seeds=seeds, text_manifest=study.text_summary(settings))
