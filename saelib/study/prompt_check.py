"""The 2024 post's own check on its three prompts: at each hyphen, is one feature alone on top, and silent on the other two?

Nothing is chosen on other text; three tokens decide. It says what the post's author would have seen, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE
from saelib.sae.scaled import scaled_acts
from saelib.split.classes import PROMPTS, hyphen_token

CLOSE = 0.5
"""Another feature is close when its activation exceeds this share of the strongest one's."""


@dataclass(frozen=True)
class PromptWin:
    """The strongest feature at the hyphen of one prompt."""

    context_class: str
    feature: int
    activation: float
    """On the scale of `scaled_acts`."""
    runner_up: float
    """The next strongest feature's."""
    silent: bool
    """It does not fire at the hyphens of the other prompts."""

    @property
    def own(self) -> bool:
        """It fires, no other is close, and it is silent elsewhere: what the post called a feature of its own."""
        return self.activation > 0 and self.runner_up <= CLOSE * self.activation and self.silent


@torch.no_grad()
def prompt_hyphens(model: LanguageModel) -> Float[Tensor, "prompts d_in"]:
    """The activation at the hyphen of each prompt."""
    found = []
    for prompt in PROMPTS.values():
        tokens = model.to_tokens(prompt)
        found.append(model.activations(tokens)[0, tokens[0].tolist().index(hyphen_token(model))])
    return torch.stack(found)


@torch.no_grad()
def prompt_check(sae: SAE, model: LanguageModel) -> tuple[PromptWin, ...]:
    """Which feature wins at each prompt's hyphen."""
    acts = scaled_acts(sae, prompt_hyphens(model))  # (prompts, d_sae)
    wins = []
    for c, name in enumerate(PROMPTS):
        top = acts[c].topk(min(2, acts.shape[1]))
        j, others = int(top.indices[0]), torch.arange(len(acts)) != c
        runner_up = float(top.values[1]) if len(top.values) > 1 else 0.0
        wins.append(PromptWin(name, j, float(top.values[0]), runner_up, not bool((acts[others, j] > 0).any())))
    return tuple(wins)
