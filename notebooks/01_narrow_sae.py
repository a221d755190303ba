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
# # How well does a narrow SAE describe the model's MLP output?
#
# The study begins with a narrow SAE on `blocks.0.hook_mlp_out`, one feature for each dimension of the residual stream.
# Here it is trained on the profile's language model, after the L1 coefficient has been chosen by a rule that knows
# nothing of any split.

# %% tags=["parameters"]
profile = "mini"

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.report import report, views
from saelib.study import study
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)

# %% [markdown]
# ## The text
#
# Split by document into train, select (choices are made here) and test (numbers are reported from here).

# %%
manifest = study.tokens(settings).manifest
pd.DataFrame(manifest["splits"]).T

# %%
pd.DataFrame(manifest["sources"])[["package", "version", "kind", "documents", "tokens", "hyphens", "licence"]]

# %% [markdown]
# ## The activations
#
# Harvested once in bf16, positions after BOS. The bulk arithmetic is checked against transformer_lens at each harvest.

# %%
stores = {split: study.activations(settings, split) for split in ("train", "select", "test")}
pd.DataFrame(
    {
        split: {
            "tokens": store.n_tokens,
            "mean norm": float(store.rows(slice(0, 4096)).norm(dim=1).mean()),
            "relative error against transformer_lens": store.manifest["error_against_transformer_lens"],
        }
        for split, store in stores.items()
    }
).T

# %% [markdown]
# ## The L1 coefficient
#
# The study's 3e-4 (summed over a batch of 4096: 1.23 a token) belongs to gelu-1l's activation scale. Rule for another
# model: the smallest coefficient of the grid at which the narrow SAE's L0 on select data lies within the profile's
# range. The same coefficient is then used in every run. Loss recovered stands beside it.

# %%
print(f"rule: L0 in {settings.l0_range}")
coefficient = study.coefficient(settings)
coefficient.grid

# %% [markdown]
# ## The narrow SAE

# %%
narrow = study.narrow_sae(settings)
figure, axes = plt.subplots(1, 3, figsize=(10, 3))
for axis, column in zip(axes, ("loss", "l0", "dead_share"), strict=True):
    axis.plot(narrow.history["tokens"], narrow.history[column])
    axis.set(xlabel="tokens", title=column)
axes[0].set_yscale("log")
plt.show()

# %%
quality = study.quality_of(settings, narrow.sae)
pd.Series(quality._asdict(), name="on test text").to_frame()

# %% [markdown]
# ## Conclusion

# %%
met = "meets the rule" if coefficient.meets_rule else "is the nearest of the grid; none met the rule"
report.headline(
    answer=f"With {settings.d_sae_narrow} features the narrow SAE keeps {quality.loss_recovered:.1%} of the loss at an L0 "
    f"of {quality.l0:.1f}; its coefficient {met}.",
    l1_coeff=coefficient.l1_coeff,
    l1_per_token=coefficient.l1_coeff * settings.batch_size,
    meets_rule=coefficient.meets_rule,
    **quality._asdict(),
    training_tokens=narrow.n_tokens,
    seconds=narrow.seconds,
)

# %%
report.watermark(seeds={"narrow": settings.seed}, text_manifest=study.text_summary(settings))
