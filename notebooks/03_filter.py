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
# # What does filtering by the parent keep, and what does it cost?
#
# The study trains on "data where the parent's activation is above 2" and kept about 72% of it, without saying whether
# tokens or contexts are kept. 72% of tokens cannot be hyphens, so contexts must be meant: a context is kept when any of
# its tokens activates the parent above the threshold. Keeping single tokens is the stronger filter, which the study did
# not try. Both are views of the same store; nothing is copied.

# %% tags=["parameters"]
profile = "mini"
feature: int | None = None
tau: float | None = None

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.report import report, views
from saelib.study import selection, study
from saelib.acts.store import POSITIONS
from saelib.acts.filter import filter_view
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
model, parent = study.language_model(settings), selection.parent(settings, feature, tau)
store = study.activations(settings, "train")

# %%
acts, seconds_activations = study.seconds_of(lambda: selection.parent_on(settings, "train", parent.feature))
is_hyphen, active = store.token_ids == model.hyphen, acts > parent.tau
print(f"parent {parent.feature}, tau {parent.tau:.3f}, {store.n_tokens:,} train tokens")

# %%
rows = []
for by in ("none", "context", "token"):
    view, seconds = study.seconds_of(lambda by=by: filter_view(store, acts, parent.tau, by))
    index = slice(None) if view.index is None else view.index
    row = {"filter": by, "tokens kept": view.n_tokens, "share kept": view.n_tokens / store.n_tokens}
    row |= {"hyphen share": is_hyphen[index].mean(), "parent-active share": active[index].mean(), "seconds": seconds}
    rows.append(row)
kept = pd.DataFrame(rows).set_index("filter")
kept["enrichment"] = kept["parent-active share"] / kept["parent-active share"]["none"]
kept

# %% [markdown]
# `enrichment` is the parent-active share over that of the whole data. The parent's activation on every token had to be
# known first; that is the filter's own cost, paid once (0 s when it was in the cache).
#
# ## How the share kept depends on the threshold

# %%
largest = acts.reshape(-1, POSITIONS).max(axis=1)
taus = [parent.max_activation * share for share in (0.02, 0.05, 0.1, 0.15, 0.217, 0.3, 0.4, 0.5, 0.6, 0.8)]
curve = pd.DataFrame(
    {"tau": taus, "contexts": [(largest > t).mean() for t in taus], "tokens": [(acts > t).mean() for t in taus]}
)
axis = curve.plot(x="tau", y=["contexts", "tokens"], logy=True, marker="o")
axis.axvline(parent.tau, color="black", linestyle="--")
axis.axhline(0.72, color="gray", linestyle=":")
axis.set(ylabel="share kept", title="dashed: tau used; dotted: the study's 72%")
plt.show()

# %% [markdown]
# ## Conclusion

# %%
context, token = kept.loc["context"], kept.loc["token"]
report.headline(
    answer=f"By context {context['share kept']:.1%} of the tokens stay (the study: about 72%), enriched "
    f"{context['enrichment']:.1f} times; by token {token['share kept']:.2%}, enriched {token['enrichment']:.0f} times.",
    tau=parent.tau,
    kept_by_context=context["share kept"],
    kept_by_token=token["share kept"],
    enrichment_by_context=context["enrichment"],
    enrichment_by_token=token["enrichment"],
    hyphen_share=kept["hyphen share"]["none"],
    train_tokens=store.n_tokens,
    seconds_for_activations=seconds_activations,
)

# %%
report.watermark(seeds={"narrow": settings.seed}, text_manifest=study.text_summary(settings))
