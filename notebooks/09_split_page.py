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
# # What became of the parent in the run that came closest?
#
# The run with the most classes passed by the score, then the highest best F1, on one page: the parent, a card a class with
# its child, what the child does, where it came from, and the controls.

# %% tags=["parameters"]
profile = "mini"
run: int | None = None

# %%
import pandas as pd

from saelib.report import report, tools, views
from saelib.study import study, verdicts
from saelib.split.classes import CLASSES, PROMPTS
from saelib.study.profiles import get_profile
from saelib.study.runs import get_run
from saelib.report.study_plan import results_table

views.figure_style()
settings = get_profile(profile)
model, store = study.language_model(settings), study.activations(settings, "test")

# %%
ours = results_table(profile).set_index("run")
passed = ours[[f"score_{name}" for name in CLASSES]].eq(True).sum(axis=1)
f1 = ours[[f"best_f1_{name}" for name in CLASSES]].mean(axis=1)
best = run or int(pd.DataFrame({"passed": passed, "f1": f1}).sort_values(["passed", "f1"]).index[-1])
spec, trained, narrow, parent = (
    get_run(best),
    study.trained_run(settings, best),
    study.narrow_sae(settings).sae,
    study.parent(settings),
)
score, chosen = verdicts.score_of(settings, trained.sae, parent, warm=spec.init_from_narrow)
print(f"run {best}: {score.verdict}, best F1 {f1[best]:.2f}")

# %% [markdown]
# ## Controls and cost

# %%
controls = verdicts.kmeans_control(settings, parent).groupby("clustered")["f1"].mean().rename("mean F1").reset_index()
controls["clustered"] = "k-means on the " + controls["clustered"]
by_parent = sum(row.parent_f1 for row in score.classes) / len(CLASSES)
mine = [[f"run {best}: best feature a class", f1[best]], ["the parent's own best threshold", by_parent]]
controls = pd.concat([pd.DataFrame(mine, columns=controls.columns), controls]).rename(columns={"clustered": "control"})
cost = pd.DataFrame([{"what": f"run {best}", "tokens": trained.n_tokens, "seconds": trained.seconds}])
effects = verdicts.causal_effects(settings, trained.sae, chosen.best_features, parent)
causal = pd.DataFrame(effects, columns=[f"on {name}, nats" for name in CLASSES])
causal.insert(
    0, "without feature", [f"{j} (best for {name})" for name, j in zip(CLASSES, chosen.best_features, strict=True)]
)

# %% [markdown]
# ## The split

# %%
page = tools.split_page(
    tools.Member(narrow, parent.feature, "-"),
    trained.sae,
    model,
    store,
    score,
    prompts=PROMPTS,
    prompt_token="-",
    causal=causal,
    controls=controls,
    cost=cost,
    firing=False,
)
page

# %% [markdown]
# ## The features that come nearest, where there is no child

# %%
found = tools.highest_activating_tokens(trained.sae, model, store, chosen.best_features, k=6)
for name, j in zip(CLASSES, chosen.best_features, strict=True):
    print(f"{name}: feature {j}")
    display(tools.examples(found[found["feature"] == j]))
    display(tools.logit_effects(trained.sae.W_dec[j], model, k=6))

# %% [markdown]
# ## What each dictionary keeps of the parent's tokens, at matched L0

# %%
verdicts.usefulness(settings, {"narrow": narrow, f"run {best}": trained.sae}, parent)

# %% [markdown]
# ## Lineage: what the other features of the narrow SAE became

# %%
matched = tools.match_saes(narrow, trained.sae)
matched["decoder_cosine"].describe().to_frame("decoder cosine of matched features")

# %%
tools.lineage(narrow, parent.feature, trained.sae, chosen.best_features)

# %% [markdown]
# ## Figure 7: a map of both dictionaries

# %%
marks = {(f"run {best}", j): name for name, j in zip(CLASSES, chosen.best_features, strict=True)}
marks[("narrow", parent.feature)] = "parent"
points = tools.decoder_map({"narrow": narrow, f"run {best}": trained.sae})
tools.map_view(points, marked=marks)

# %% [markdown]
# ## Conclusion

# %%
report.headline(
    answer=f"Run {best}, which comes closest: {score.verdict}; {score.candidates} candidate children; best F1 "
    + ", ".join(f"{name} {value:.2f}" for name, value in zip(CLASSES, score.best_f1, strict=True))
    + ".",
    run=best,
    score=score.verdict,
    candidates=score.candidates,
    coverage=score.coverage,
    best_f1=f1[best],
    test_parent_tokens=score.parent_tokens,
)

# %%
report.watermark(seeds={"run": spec.seed, "narrow": settings.seed}, text_manifest=study.text_summary(settings))
