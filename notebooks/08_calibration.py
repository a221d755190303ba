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
# # How often is the verdict right?
#
# Children are trained on parents whose true children are known, and judged like any others: on synthetic parents and impostors,
# and on this profile's own parent with a split put into its activations. The bounds of the verdict stand or fall here; the
# study's runs have no say in them.

# %% tags=["parameters"]
profile = "mini"

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.report import report, views
from saelib.report.calibration_figures import implants_figure, sensitivity_figure
from saelib.report.tables import keep_table
from saelib.split import calibration
from saelib.split.verdict import BOUNDS, FROZEN
from saelib.study import calibrated, study
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
pd.Series(vars(BOUNDS), name=f"bound, frozen on {FROZEN}").to_frame()

# %% [markdown]
# ## Synthetic parents
#
# The share of true trees that are judged `split`, with Wilson's 95% interval. The effect size is how far a child's component
# stands out along its direction, in standard deviations of everything else there; a tree's rarest class has 5% of the tokens.
# Children here are 16 of two seeds, trained for 400 steps (a split's own: K by its rule, three seeds, 1,000 steps), and leak is
# that of a sample of silent tokens (a split's own counts them all). The seven clusters' children start at cluster centres;
# from the product's start they end up sharing clusters.

# %%
synthetic = keep_table(calibration.synthetic_summary(calibrated.synthetic_table(settings)), "synthetic")
sensitivity_figure(synthetic[synthetic["case"] == "tree"])
plt.show()

# %% [markdown]
# Of impostors, `rate` is the share of which a context passes that is no true child; of true cases, the share judged `split`.

# %%
synthetic[(synthetic["case"] != "tree") | (synthetic["parent_tokens"] == calibration.STATED_TOKENS)]

# %% [markdown]
# ## Implants
#
# A direction of its own is added to part of this parent's tokens, `delta` standard deviations long, and children are trained
# anew. At 0 nothing is there to find. Where the verdict stays behind the probe, this assay cannot see a split there.

# %%
rows = keep_table(calibrated.implants_table(settings), "implants")
summary = calibration.implants_summary(rows)
implants_figure(summary)
plt.show()

# %%
summary

# %% [markdown]
# Of those that a linear probe sees (MCC of at least 0.8) and the rest of the SAE does not tell apart already:

# %%
seen = calibration.implants_seen(rows)
seen

# %% [markdown]
# ## Conclusion

# %%
numbers = calibration.conclusion(synthetic, rows)
report.headline(
    answer=f"On synthetic parents {numbers['detected']} of {numbers['true_cases']} true trees are found at "
    f"{calibration.STATED_EFFECT:g} standard deviations, {numbers['clusters_detected']} of {numbers['clusters']} sets of seven "
    f"clusters where children start at clusters, and {numbers['false']} of {numbers['impostors']} impostors pass. In "
    f"this parent's activations {numbers['implants_found']} of {numbers['implants_seen']} implants that a probe sees are found, "
    f"and {numbers['absent_split']} of {numbers['absent']} are found where there is none.",
    **numbers,
)

# %%
report.watermark(seeds={"cases": list(range(settings.calibration_seeds))}, text_manifest=study.text_summary(settings))
