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
# # Which of the study's claims hold here?
#
# Every arm of the study's design with many seeds, the verdict of `saelib.split.score` on each, and one row a claim: the published
# evidence, ours, the effect with its 95% interval, the test, and what follows.

# %% tags=["parameters"]
profile = "mini"

# %%
import pandas as pd
from matplotlib import pyplot as plt

from saelib.study import claims, study, verdicts
from saelib.report import report, views
from saelib.base import stats
from saelib.split.classes import CLASSES
from saelib.study.profiles import get_profile
from saelib.study.runs import ARMS

views.figure_style()
settings = get_profile(profile)
table = claims.arm_table(settings)
last = table[table["step"] == settings.claim_steps]

# %% [markdown]
# ## The arms
#
# A run is a success when its verdict is `split`; intervals are Wilson's. `best F1` is the mean over the classes of the F1, on
# test, of the feature that marks the class best, with none of the verdict's bounds asked of it. All arms have the same
# coefficient, batch and number of tokens.

# %%
rates = stats.rate_table({arm.name: (last["verdict"][last["arm"] == arm.name] == "split").tolist() for arm in ARMS})
means = last.groupby("arm")[["classes_passed", "candidates", "best_f1", "l0", "loss", "seconds"]].mean()
rates = rates.join(means)
rates.insert(0, "arm is", [arm.text for arm in ARMS])
rates

# %% [markdown]
# Why children fail, over all seeds of an arm: the bounds not passed.

# %%
reasons = {
    arm.name: pd.concat([last.loc[last["arm"] == arm.name, f"failed_{name}"] for name in CLASSES]).value_counts()
    for arm in ARMS
}
pd.DataFrame(reasons).fillna(0).astype(int).T

# %% [markdown]
# ## The claims
#
# A claimed difference is supported when the interval of the difference in success rates lies above zero, and not supported
# when it does not reach the published difference. A claim of no help is supported when the interval ends below 0.25.

# %%
compared = claims.compare_arms(table)
compared.set_index("claim").T

# %%
figure, axis = plt.subplots(figsize=(7, 3.6))
rows = range(len(compared))
axis.errorbar(
    compared["f1_difference"],
    rows,
    fmt="o",
    capsize=3,
    xerr=[compared["f1_difference"] - compared["f1_low"], compared["f1_high"] - compared["f1_difference"]],
)
axis.set_yticks(rows, compared["claim"])
axis.axvline(0, color="black", linewidth=0.8)
axis.set(xlabel="difference in best F1, first arm less second (95% interval)", title="Effects on best F1")
plt.show()

# %% [markdown]
# ## Warm start converges faster?
#
# Tokens at which the loss first stays at the level that the median random start reaches at half its steps. Runs that never
# do are censored. Loss is the training loss on the arm's own (filtered) data.

# %%
speed = claims.convergence(settings)
level = float(speed["level"].iloc[0])
medians = speed.groupby("arm")["tokens"].agg(stats.median_text)
medians.to_frame(f"median tokens to a loss of {level:.1f}")

# %%
warm, random = (speed.loc[speed["arm"] == arm, "tokens"] for arm in ("warm", "random"))
p_speed = stats.censored_rank_p(warm, random)
print(f"warm against random, Mann-Whitney on tokens to the level, censored last: p = {p_speed:.4f}")
figure, axis = plt.subplots()
for arm in ("warm", "warm-normalised", "random"):
    for seed in claims.seeds_of(settings, claims.get_arm(arm)):
        history = claims.train_arm(settings, claims.get_arm(arm), seed).history
        color = {"warm": "C0", "warm-normalised": "C2", "random": "C1"}[arm]
        axis.plot(history["tokens"], history["loss"], color=color, linewidth=0.7, label=arm if seed == 0 else None)
axis.axhline(level, color="black", linestyle="--", linewidth=0.8)
axis.set(xlabel="tokens", ylabel="loss", yscale="log", title="Loss of every seed")
axis.legend()
plt.show()

# %% [markdown]
# ## Few tokens suffice?
#
# Share of seeds that have split after so many tokens; seeds that never do within the run are censored, not failures of
# speed. The curve beside it is best F1.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for index, arm in enumerate(ARMS):
    rows = table[table["arm"] == arm.name].groupby("tokens")
    share = rows["verdict"].apply(lambda verdicts: (verdicts == "split").mean())
    axes[0].plot(share.index, share, marker="o", color=f"C{index}", label=arm.name)
    axes[1].plot(share.index, rows["best_f1"].mean(), marker="o", color=f"C{index}")
axes[0].set(xlabel="tokens", ylabel="share of seeds that split", ylim=(-0.03, 1.03))
axes[1].set(xlabel="tokens", ylabel="best F1, mean over seeds")
axes[0].legend(fontsize=7)
plt.show()

# %%
first = claims.tokens_to_success(table).groupby("arm", sort=False)["tokens"]
pd.DataFrame(
    {"split within the run": first.count(), "runs": first.size(), "median tokens": first.agg(stats.median_text)}
)

# %% [markdown]
# The filter raises the share of parent tokens, so arms are compared at equal parent-active tokens, too: the filtered arm
# early against the unfiltered arm late.

# %%
chosen = study.parent(settings)
share_kept = study.view(settings, "context", chosen).n_tokens / study.activations(settings, "train").n_tokens
early = min(settings.claim_snapshots, key=lambda step: abs(step - share_kept * settings.claim_steps))
matched = table[
    ((table["arm"] == "random") & (table["step"] == early))
    | ((table["arm"] == "random-all") & (table["step"] == settings.claim_steps))
]
print(
    f"the filter keeps {share_kept:.1%} of the tokens: step {early} filtered against step {settings.claim_steps} of all data"
)
matched.groupby("arm")[["tokens", "classes_passed", "best_f1"]].mean()

# %% [markdown]
# ## Do several seeds agree?
#
# How often the feature that marks a class best in one seed is found in another (encoder and decoder cosine of at least 0.7).

# %%
agree = {arm: claims.stability(settings, arm).set_index("class")["rate"] for arm in ("random", "warm", "random-all")}
agreement = pd.DataFrame(agree)
agreement

# %% [markdown]
# ## Controls on the same tokens
#
# K-means on the parent's test tokens, and the same dictionaries under permuted labels: what a verdict must beat.

# %%
kmeans = verdicts.kmeans_control(settings, chosen)
kmeans.pivot(index="clustered", columns="class", values="f1")

# %%
permuted = verdicts.permuted_control(
    settings, claims.train_arm(settings, claims.get_arm("random"), 0).sae, chosen, draws=5
)
permuted.describe().loc[["mean", "max"]]

# %% [markdown]
# ## Every claim in one table
#
# The three claims that are no difference between two success rates, beside the others. "Several seeds agree" and "few tokens
# suffice" are supported when the 95% interval of the arm's success rate lies above one half, not supported when below.
# "Faster" is supported when the test is significant at 5% and the warm median is the smaller.

# %%
both = rates.loc[["random", "warm"]]
by_rate = [
    "supported" if low > 0.5 else "not supported" if high < 0.5 else "undecided"
    for low, high in zip(both["low"], both["high"], strict=True)
]
warm_faster = stats.censored_median(warm) < (stats.censored_median(random) if random.notna().any() else float("inf"))
faster = "undecided" if p_speed > 0.05 else "supported" if warm_faster else "not supported"

# %%
others = pd.DataFrame(
    {
        "claim": ["Several seeds agree", "Few tokens suffice with a warm start", "A warm start converges faster"],
        "published": ["runs 4-6: 3 of 3", "run 9: yes after 26.2M tokens", "loss at step 50: 140.0 against 149.7, 148.6"],
        "arms": ["random", "warm", "warm against random"],
        "split": [f"{row.successes}/{row.runs}" for row in both.itertuples()] + [f"p = {p_speed:.2g}"],
        "low": [*both["low"], float("nan")], "high": [*both["high"], float("nan")],
        "verdict": [*by_rate, faster],
    }
)  # fmt: skip
every = pd.concat([compared, others], ignore_index=True)
every[
    [
        "claim",
        "published",
        "arms",
        "split",
        "difference",
        "low",
        "high",
        "f1_difference",
        "f1_low",
        "f1_high",
        "verdict",
    ]
]

# %% [markdown]
# ## What the embedded model's differences do to these conclusions
#
# The model is half as wide as gelu-1l and has seen 41 million tokens; a run here sees some millions of tokens, the study's 26
# million to two thousand million. Training longer makes features rarer and purer, so an arm in which nothing has split *yet* does
# not refute a claim about longer training; it says that the effect is not there at this scale. Differences in best F1 and in
# convergence are measured at equal tokens and hold at this scale only. The parent fires weakly on much that is no hyphen, so
# that a feature that fires weakly does, too, and is then no candidate child: the commonest reason above.

# %% [markdown]
# ## Conclusion

# %%
splits = int((last["verdict"] == "split").sum())
partial = int(last["verdict"].str.startswith("partial").sum())
by_verdict = every["verdict"].value_counts().to_dict()
reason = pd.DataFrame(reasons).sum(axis=1).sort_values().index[-1]
report.headline(
    answer=f"{splits} of {len(last)} runs split the parent ({partial} in part); the commonest reason why a class has no child "
    f"is: {reason}. Claims: " + "; ".join(f"{row.claim.lower()}: {row.verdict}" for row in every.itertuples()) + ".",
    runs=len(last),
    split=splits,
    partial=partial,
    seeds_per_arm=settings.claim_seeds,
    tokens_per_run=settings.claim_steps * settings.batch_size,
    claims=by_verdict,
    warm_start_p=p_speed,
    warm_start_median=medians["warm"],
    random_start_median=medians["random"],
    best_f1={arm.name: float(rates.loc[arm.name, "best_f1"]) for arm in ARMS},
    test_parent_tokens=len(verdicts.parent_tokens(settings, "test", chosen).rows),
)

# %%
report.watermark(
    seeds={"arms": list(range(settings.claim_seeds)), "narrow": settings.seed},
    text_manifest=study.text_summary(settings),
)
