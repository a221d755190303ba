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
# One row of the run table: train the SAE it describes, then look for a feature of its own for "-" after a count word,
# after a number, and in other compounds.

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
from matplotlib import pyplot as plt

from saelib.report import report, run_views, views
from saelib.study import graded, study, verdicts
from saelib.split.classes import CLASSES
from saelib.study.eye_test import eye_test
from saelib.study.profiles import get_profile
from saelib.study.runs import get_run

views.figure_style()
settings, spec = get_profile(profile), get_run(run)

# %%
spec = spec if seed is None else replace(spec, seed=seed)
steps = settings.steps(spec.short) if n_steps is None else n_steps
parent = study.parent(settings, feature, tau)
pd.Series({**asdict(spec), "steps": steps, "parent": parent.feature, "tau": parent.tau}, name="this run").to_frame()

# %% [markdown]
# A warm start copies the narrow SAE's encoder columns, biases and decoder rows into features 0 to d_narrow - 1 of the
# wide one, so the parent keeps its number; the other features begin at random.
#
# ## Training

# %%
trained = study.train_run(settings, spec, parent, filter_by, steps)
history = trained.history
columns = [c for c in ("loss", "l0", "dead_share", "parent_still_top") if c in history]
figure, axes = plt.subplots(1, len(columns), figsize=(3.3 * len(columns), 3))
for axis, column in zip(axes, columns, strict=True):
    axis.plot(history["tokens"], history[column])
    axis.set(xlabel="tokens", title=column)
plt.show()

# %%
quality = study.quality_of(settings, trained.sae)
pd.Series(quality._asdict(), name="on test text").to_frame()

# %% [markdown]
# ## Separation
#
# How far the features tell the hyphen's classes apart, on every hyphen that joins two words: the Matthews correlation (MCC)
# on test text of the best one, two and four features a class, chosen on select text, between the floor (what the parent's
# own size tells) and the ceiling (a linear probe of the activations). S is the sum over number and count of MCC less floor,
# over the sum of ceiling less floor: 0 is the floor, 1 the probe.

# %%
separation = graded.separation(settings, parent, trained.sae)
S = pd.DataFrame({f"S_{k}": [separation[f"S_{k}{end}"] for end in ("", "_low", "_high")] for k in (1, 2, 4)})
display(S.set_axis(["value", "95% from", "to"]).T)
pd.DataFrame(
    {
        name: {what: separation[f"{what}_{name}"] for what in ("floor", "mcc_1", "mcc_2", "mcc_4", "ceiling")}
        for name in graded.GRADED_CLASSES
    }
).T

# %% [markdown]
# ## The eye test
#
# Children are the features whose firing best marks each class among the hyphens of the select split (F1, Hungarian
# assignment); everything below is measured on the test split. A class passes when its child is the top feature on more
# than half of its hyphens, fires on at most 5% of the others', boosts the words that follow it, and is alone on the
# study's prompt and silent on the other two.

# %%
model = study.language_model(settings)
test = eye_test(trained.sae, model, study.hyphens(settings, "select"), study.hyphens(settings, "test"))
test.frame().set_index("context_class").T

# %% [markdown]
# ## The score
#
# The rigorous verdict: candidate children fire where the parent does and carry weight there; each class's child, chosen on
# select, must pass its bounds with the end of a 95% interval over test documents. Where there is no candidate, the best F1 of
# any feature says how near the dictionary comes.

# %%
score, chosen = verdicts.score_of(settings, trained.sae, parent, warm=spec.init_from_narrow)
print(
    f"{score.verdict}: {score.candidates} candidate children, covering {score.coverage:.0%} of {score.parent_tokens:,} tokens"
)
print(
    "best F1 of any feature: " + ", ".join(f"{name} {f1:.2f}" for name, f1 in zip(CLASSES, score.best_f1, strict=True))
)
score.frame().T

# %% [markdown]
# What is lost when a class's best feature is taken away: the change in log-probability (nats) of the true next tokens, by
# class.

# %%
effects = verdicts.causal_effects(settings, trained.sae, chosen.best_features, parent)
pd.DataFrame(
    effects,
    columns=[f"on {name}" for name in CLASSES],
    index=[f"{n}: {j}" for n, j in zip(CLASSES, chosen.best_features, strict=True)],
)

# %% [markdown]
# ## The three prompts (the study's Figures 2, 4 and 5)

# %%
children = {row.child: row.context_class for row in test.classes}
for view in run_views.prompt_views(trained.sae, model, children):
    display(view)

# %% [markdown]
# ## The children (the study's Figure 3): where each fires most on test text, and its logits

# %%
for shown in run_views.child_views(trained.sae, model, study.activations(settings, "test"), children):
    display(shown)

# %% [markdown]
# ## Conclusion

# %%
passed = [row.context_class for row in test.classes if row.passed]
apart = (
    f"Two features a class tell hyphens apart {separation['S_2']:.0%} of the way from the parent's own size to a linear probe "
    f"({separation['S_2_low']:.0%} to {separation['S_2_high']:.0%}). "
    if pd.notna(separation["S_2"])
    else "Too few hyphens for a separation. "
)
report.headline(
    answer=f"{apart}Eye test: {test.verdict}; score: {score.verdict}. Classes with a feature of their own, by eye: "
    f"{', '.join(passed) or 'none'}; by score: {', '.join(r.context_class for r in score.classes if r.passed) or 'none'}. "
    f"Published for this run: {spec.published or 'nothing, the study did not make it'}.",
    run=run,
    seed=spec.seed,
    d_sae=trained.sae.cfg.d_sae,
    **separation,
    verdict=test.verdict,
    score=score.verdict,
    candidates=score.candidates,
    coverage=score.coverage,
    max_cosine=score.max_cosine,
    max_jaccard=score.max_jaccard,
    max_logit_cosine=score.max_logit_cosine,
    **{f"score_{row.context_class}": row.passed for row in score.classes},
    **{f"best_f1_{name}": f1 for name, f1 in zip(CLASSES, score.best_f1, strict=True)},
    **{row.context_class: row.passed for row in test.classes},
    **{f"f1_{row.context_class}": row.f1 for row in test.classes},
    **{f"child_{row.context_class}": row.child for row in test.classes},
    **{f"words_{row.context_class}": row.words_pass for row in test.classes},
    **{f"prompt_{row.context_class}": row.prompts_pass for row in test.classes},
    **{f"win_rate_{row.context_class}": row.win_rate for row in test.classes},
    **{f"fires_elsewhere_{row.context_class}": row.fires_elsewhere for row in test.classes},
    **{f"test_hyphens_{row.context_class}": row.test_tokens for row in test.classes},
    steps=steps,
    tokens=trained.n_tokens,
    l0=quality.l0,
    fvu=quality.fvu,
    loss_recovered=quality.loss_recovered,
    dead_share=1 - quality.alive_share,
    test_tokens=quality.tokens,
    seconds=trained.seconds,
    weights=study.weights_hash(trained.sae),
)

# %%
report.watermark(seeds={"run": spec.seed, "narrow": settings.seed}, text_manifest=study.text_summary(settings))
