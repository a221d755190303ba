"""What a feature does for the model: what is lost when it is taken away, and what an SAE keeps, on hyphens that join words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saelib.sae.evaluate import LossEnds, loss_recovered
from saelib.sae.sae import SAE
from saelib.sae.scaled import scaled_acts
from saelib.split.classes import CLASSES
from saelib.split.effects import spliced, true_next
from saelib.study import study
from saelib.study.profiles import Profile


@torch.no_grad()
def causal_effects(profile: Profile, sae: SAE, features: Sequence[int]) -> Float[np.ndarray, "n_features n_classes"]:
    """What taking a feature away does to each class's true next tokens.

    What the feature adds to the reconstruction, `c_j d_j` (c the SAE's `contributions`), is subtracted from the activation
    at a hyphen, all else (the SAE's error included) left as it is: `x - c_j d_j`. The entry is the mean change in
    log-probability (nats) of the class's true next tokens; a class without hyphens gives NaN. A feature of class c lowers
    those of c and leaves the other classes' alone. Measured on the first `profile.causal_tokens` test hyphens of each class.
    """
    model, store = study.language_model(profile), study.activations(profile, "test")
    rows, label = study.joining_hyphens(profile, "test")
    keep = np.sort(np.concatenate([np.flatnonzero(label == c)[: profile.causal_tokens] for c in range(len(CLASSES))]))
    rows, label = rows[keep], label[keep]
    target = store.token_ids[rows + 1].astype(np.int64)  # a hyphen that joins words is never last in its context
    changes = np.zeros((len(features), len(rows)))
    for here, at, clean, logits in spliced(model, store, rows):
        added, following = sae.contributions(sae.encode(clean[at]), clean[at]), torch.from_numpy(target[here])
        base = true_next(logits(clean, at), following)
        for k, j in enumerate(features):
            without = clean.clone()
            without[at] -= added[:, j, None] * sae.W_dec[j]
            changes[k, here] = (true_next(logits(without, at), following) - base).numpy()
    by_class = [changes[:, label == c] for c in range(len(CLASSES))]
    return np.stack([c.mean(1) if c.shape[1] else np.full(len(features), np.nan) for c in by_class], axis=1)


def causal_table(profile: Profile, sae: SAE, features: Mapping[str, int]) -> pd.DataFrame:
    """`causal_effects` with names: one row a class's feature, one column a class."""
    rows = [f"{name}: feature {j}" for name, j in features.items()]
    return pd.DataFrame(
        causal_effects(profile, sae, [*features.values()]), index=rows, columns=[f"on {name}" for name in CLASSES]
    )


@torch.no_grad()
def usefulness(profile: Profile, saes: Mapping[str, SAE]) -> pd.DataFrame:
    """What each SAE keeps of the hyphens, at matched L0: all keep their k largest activations a token.

    k is the smallest mean L0 on these tokens. One row an SAE: l0 (its own, there), k, fvu, loss_recovered (with the
    activation replaced at the hyphens alone and the loss that of their next tokens), tokens.
    Measured on the first `2 * profile.causal_tokens` test hyphens that join words.
    """
    model, store = study.language_model(profile), study.activations(profile, "test")
    rows = study.joining_hyphens(profile, "test")[0][: 2 * profile.causal_tokens]
    target, x = torch.from_numpy(store.token_ids[rows + 1].astype(np.int64)), store.rows(rows)
    l0 = {name: float((sae.encode(x) > 0).float().sum(1).mean()) for name, sae in saes.items()}
    k = max(round(min(l0.values())), 1)
    rebuilt = {name: sae.decode(_largest(scaled_acts(sae, x), sae.encode(x), k), x) for name, sae in saes.items()}
    outputs = {"clean": x, "zero": torch.zeros_like(x), **rebuilt}
    losses = dict.fromkeys(outputs, 0.0)
    for here, at, clean, logits in spliced(model, store, rows):
        for name, out in outputs.items():
            replaced = clean.clone()
            replaced[at] = out[here]
            losses[name] += float(F.cross_entropy(logits(replaced, at), target[here], reduction="sum"))
    ends = LossEnds(losses["clean"], losses["zero"])
    variance = float((x - x.mean(0)).square().sum())
    table = {
        name: {
            "l0": l0[name],
            "k": k,
            "fvu": float((out - x).square().sum()) / variance,
            "loss_recovered": loss_recovered(losses[name], ends),
            "tokens": len(rows),
        }
        for name, out in rebuilt.items()
    }
    return pd.DataFrame(table).T


def _largest(strength: Tensor, acts: Tensor, k: int) -> Tensor:
    """The activations of each row's k strongest features, the others zero."""
    index = strength.topk(min(k, strength.shape[1]), dim=1).indices
    return torch.zeros_like(acts).scatter_(1, index, acts.gather(1, index))
