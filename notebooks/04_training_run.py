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
# # Does this run split the parent?
#
# One row of the run table: train the SAE it describes, then look for features for "-" after a count word, after a number, and
# in other compounds.

# %% tags=["parameters"]
profile = "mini"
run = 4
seed: int | None = None
feature: int | None = None
tau: float | None = None
filter_by = "context"
n_steps: int | None = None

# %%
from dataclasses import asdict, replace

import pandas as pd

from saelib.base.table import as_row
from saelib.report import report, run_views, views
from saelib.study import effects, prompt_check, results, study, selection, trainings
from saelib.study.profiles import get_profile
from saelib.study.runs import get_run

views.figure_style()
settings, spec = get_profile(profile), get_run(run)

# %%
spec = spec if seed is None else replace(spec, seed=seed)
steps = settings.steps(spec.short) if n_steps is None else n_steps
parent = selection.parent(settings, feature, tau)
pd.Series({**asdict(spec), "steps": steps, "parent": parent.feature, "tau": parent.tau}, name="this run").to_frame()

# %% [markdown]
# A warm start copies the narrow SAE's encoder columns, biases and decoder rows into features 0 to d_narrow - 1 of the
# wide one, so the parent keeps its number; the other features begin at random.
#
# ## Training

# %%
trained = trainings.train_run(settings, spec, parent, filter_by, steps)
run_views.history_figure(trained.history)

# %% [markdown]
# ## Separation and strict verdict
#
# How far the features tell the hyphen's classes apart, on every hyphen that joins two words: the Matthews correlation (MCC)
# on test text of the best one, two and four features a class, chosen on select text, between the floor (what the parent's
# own size tells) and the ceiling (a linear probe of the activations). S is the sum over number and count of MCC less floor,
# over the sum of ceiling less floor: 0 is the floor, 1 the probe. The strict verdict asks whether the best feature of each
# class adds to what the narrow SAE without the parent tells, is precise, and does not fire elsewhere.

# %%
result = results.run_result(settings, spec, parent, trained)
run_views.separation_table(result.outcome.graded)

# %%
pd.Series(as_row(result.outcome.strict), name="strict verdict").to_frame()

# %%
quality = study.quality_of(settings, trained.sae)
pd.Series(quality._asdict(), name="on test text").to_frame()

# %% [markdown]
# ## The post's three prompts (its Figures 2, 4 and 5)
#
# At the hyphen of each prompt: is one feature alone on top, and silent on the other two?

# %%
model = study.language_model(settings)
wins = prompt_check.prompt_check(trained.sae, model)
pd.DataFrame([asdict(win) | {"own": win.own} for win in wins])

# %%
features = result.outcome.strict.features()
for view in run_views.prompt_views(trained.sae, model, features):
    display(view)

# %% [markdown]
# ## The best feature of each class (the post's Figure 3): where it fires most on test text, and its logits

# %%
for shown in run_views.feature_views(trained.sae, model, study.activations(settings, "test"), features):
    display(shown)

# %% [markdown]
# What is lost when such a feature is taken away: the change in log-probability (nats) of the true next tokens, by class.

# %%
effects.causal_table(settings, trained.sae, features)

# %% [markdown]
# ## Conclusion

# %%
report.headline(**run_views.run_headline(result))

# %%
seeds = {"run": spec.seed, "narrow": settings.seed}
report.watermark(seeds=seeds, text_manifest=study.text_summary(settings), result=as_row(result))
