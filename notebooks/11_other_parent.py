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
# # Does a parent of another kind split?
#
# The 2024 post split one feature, for "-". Here the same is asked of the narrow SAE's feature that best marks another kind of
# token, chosen by F1 on the select split before anything is trained: children in its place, judged by the tokens that often
# stand before and after it.

# %% tags=["parameters"]
profile = "smollm2"
kind = "digit"
seeds = 2

# %%
import saelib
from saelib.report import report, views
from saelib.report.children_page import children_page, verdict_sentence
from saelib.study import selection, study, texts
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
narrow = study.narrow_sae(settings).sae

# %% [markdown]
# ## The parents
#
# `token` is what the feature marks: any single digit, or one token of code. The hyphen's parent is left out.

# %%
parents = selection.parents_of_other_kinds(settings, narrow)
parents

# %%
chosen = selection.parent_of_kind(parents, kind)
options = {"contexts": "automatic", "least": settings.context_least, "K": settings.children_K, "seeds": seeds}
split = saelib.split(narrow, int(chosen["feature"]), texts.of_profile(settings), **options)

# %% [markdown]
# ## The split

# %%
children_page(split)

# %% [markdown]
# ## Conclusion

# %%
marks = (
    f"The parent for {chosen['token']!r} (feature {split.parent.feature}; where it fires at all, on select: purity "
    f"{chosen['precision']:.2f}, recall {chosen['recall']:.2f})"
)
report.headline(
    answer=f"{marks}: {verdict_sentence(split)}",
    kind=kind,
    token=chosen["token"],
    parent=split.parent.feature,
    parent_f1=chosen["f1"],
    purity=chosen["precision"],
    recall=chosen["recall"],
    tau=split.parent.tau,
    verdict=str(split.verdict.value),
    children=len(split.children),
    S_2=split.separation["rest + children"].S[2].value,
    test_parent_tokens=split.parent.n_on["test"],
    contexts=[context.name for context in split.contexts],
)

# %%
report.watermark(seeds={"narrow": settings.seed, "children": seeds}, text_manifest=study.text_summary(settings))
