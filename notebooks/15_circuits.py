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
# # Does a more specific feature help to find a circuit?
#
# The 2024 post's next step 4, in three parts that are well posed in a one-layer model: where a feature's contrast between a class
# and its siblings comes from, what it does to the next token, whether it is cleaner to act on. For the hyphen's parent, children,
# wide features, neurons and random directions. Choices are made on select, numbers are of test, intervals draw documents.

# %% tags=["parameters"]
profile = "mini"

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.report import report, views
from saelib.report.study_figures import acting_figure, previous_token_figure, saving_figure
from saelib.report.tables import keep_table
from saelib.study import circuit_answer, circuit_tables, circuits, study
from saelib.study.profiles import get_profile

views.figure_style()
settings = get_profile(profile)
cases = circuits.hyphen_cases(settings)
many = keep_table(circuits.parents_table(settings), "parents")

# %% [markdown]
# ## Where does it come from?
#
# Of the contrast in a feature's pre-activation, the share that each head carries from each source offset (attention frozen,
# the MLP linear for each token, which leaves an error), and the amount: a contrast near 0 has no shares. (Of the whole
# pre-activation the "-" itself is most.) Here for what is acted on; the CSV has every child.

# %%
sources = pd.concat([case.sources() for case in cases.values()])
acted_on = sources["object"].isin({way.name for case in cases.values() for way in case.ways})
whole = sources[acted_on & sources["component"].isin(["direct", "previous token", "linearisation error"])]
whole.pivot_table(index=["context", "object"], columns="component", values=["share", "amount"], sort=False)

# %%
previous_token_figure(sources)
plt.show()

# %% [markdown]
# The five largest (head, offset) of the parent and of the child that is worth most for the class.

# %%
circuit_tables.largest_heads(sources, cases)

# %% [markdown]
# ## What does it do?
#
# `tokens_90`: tokens that make up 90% of the direct effect on the logits (final LayerNorm frozen); `changed_90`: of the mean
# change of probabilities. Then the mean change of the actual next token's log-probability under ablation (the SAE's
# error stays), predicted from frozen logits and measured; `correlation` is over tokens.

# %%
effects = pd.concat([case.effects() for case in cases.values()])
effects.drop(columns="family")

# %% [markdown]
# ## Is it cleaner to act on?
#
# The behaviour: what follows the class against what follows its siblings (20 tokens each at most, found on train). It is
# asked only where its log-odds on the class lie above zero.

# %%
odds = {(name, part): case.odds(part) for name, case in cases.items() for part in ("select", "test")}
pd.DataFrame(odds, index=["log-odds", "low", "high"]).T

# %%
acting_figure(cases)
plt.show()

# %% [markdown]
# At the dashed level: damage to the siblings, its ratio to the parent's, and the strength (1 is ablation). Empty: never reached.

# %%
damage = pd.concat([circuit_answer.damage_table(case) for case in cases.values()])
damage

# %% [markdown]
# ## Over many parents
#
# Does what a split adds (`added_2`) predict how much less damage the best child does at the same effect? The parents are not
# SplitBench's: features of the study's narrow SAE above tau on 0.05% to 2% of select tokens, drawn by the profile's seed. One
# context each: of the eight most frequent judged ones the first that, on select, has the behaviour.

# %%
found = circuit_tables.rank_correlation(many["added_2"].to_numpy(dtype=float), many["saving"].to_numpy(dtype=float))
saving_figure(many)
plt.show()
many["reason"].fillna("").replace("", "compared").value_counts()

# %% [markdown]
# ## Conclusion

# %%
result = keep_table(circuit_answer.summary_table(sources, effects, damage, many))
report.headline(
    answer=circuit_answer.answer(result),
    classes=list(cases),
    parents=len(many),
    parents_compared=found["n"],
    rank_correlation=found["value"],
    smallest_correlation_to_be_seen=found["smallest"],
)

# %%
report.watermark(seeds={"narrow": settings.seed, "children": 0}, text_manifest=study.text_summary(settings))
