"""Children that keep to their names: each encoder refitted to the tokens that the child's name means.

A child fires on part of what it stands for: one for tokens after ":" fired there with a precision of 0.99 and a recall of 0.57,
where a linear probe has both. Nothing in the activations says that the rest belongs with these; the text does. Each child is
named on P of train (`saelib.split.names`), and its encoder refitted to fire on all tokens of the name and nowhere else
(`saelib.split.refit`). Of names that mean much the same tokens (IoU >= `SAME`) only the best is refitted; a child without a name,
or with one that says little (MCC < `LEAST_NAME`), stays as it is.

The children are found without labels, and what they are refitted to is the tokens beside them: so are the contexts by which a
split is judged. It is no fair row beside methods that see activations alone, and says so wherever it stands.

`supervised` is given the judge's own contexts: what linear encoders reach that are exported and leak as little as children may.
"""

from __future__ import annotations

import numpy as np
import torch

from saelib.base.errors import UserError
from saelib.split.children import Dictionary, Pools
from saelib.split.local import trained, unit_rows
from saelib.split.methods import Task, method
from saelib.split.names import best_rule
from saelib.split.refit import own_firings, refit_encoders
from saelib.split.tokens import TokenSet

SHARE = 0.2
"""A child is named by where it is above this share of its 0.9 quantile on P."""
LEAST_NAME = 0.15
"""Least MCC of a name with the child's firings."""
SAME = 0.5
RIDGE = 30.0
MOST_ON = 20_000
"""Tokens of P that encoders are refitted on."""
CLEAN = 0.03
"""Foreign leak on select above which `named-clean` leaves a child out."""
_WORDS = "ours, encoders refitted to the words of the children's names, so it sees the text, as the judge does"
SUPERVISED_RIDGES = (1.0, 10.0, 100.0)


@method("named", "local", _WORDS)
def named(task: Task) -> Dictionary:
    """Children, each refitted to its name."""
    found = trained(task, task.targets, task.config)
    return to_names(found, task.targets, task.work.tokens.on["train"], task.seed)


method("named-128", "local", f"{_WORDS}; K = 128", K=128)(named)
method(
    "named-clean",
    "local",
    f"{_WORDS}; K = 256, no child whose foreign leak on select is above {CLEAN:.0%}",
    K=256,
    most_leak=CLEAN,
)(named)


@torch.no_grad()
def to_names(found: Dictionary, pools: Pools, on: TokenSet, seed: int = 0) -> Dictionary:
    """The same children, the encoders of those with a name refitted to it.

    Args:
        on: the tokens of the pools' P.
    """
    fires = own_firings(found, pools, SHARE).cpu().numpy()
    rules = {j: rule for j in range(fires.shape[1]) if (rule := best_rule(on, fires[:, j])) and rule.mcc >= LEAST_NAME}
    chosen, says = list[int](), list[np.ndarray]()
    for j in sorted(rules, key=lambda j: -rules[j].mcc):
        own = rules[j].says(on)
        if all((own & other).sum() < SAME * (own | other).sum() for other in says):
            chosen.append(j)
            says.append(own)
    if not chosen:
        return found
    y = torch.from_numpy(np.stack(says, axis=1)).to(found.W.device)
    W, b = found.W.clone(), found.b.clone()
    at = torch.tensor(chosen)
    W[:, at], b[at] = refit_encoders(pools, y, RIDGE, seed, MOST_ON)
    return Dictionary(W, b, found.E)


@method(
    "supervised",
    "local",
    "a ceiling: encoders fitted to the judge's own contexts, exported like children",
    prune=False,
    seeded=False,
)
@torch.no_grad()
def supervised(task: Task) -> Dictionary:
    """A logistic regression of each judged context against all other tokens, at each of `SUPERVISED_RIDGES`.

    Raises:
        UserError: no context is judged.
    """
    yardstick, rows = task.work.yardstick, torch.from_numpy(task.work.yardstick.used["train"])
    member = torch.from_numpy(yardstick.member["train"][:, yardstick.judged])
    if not member.shape[1]:
        raise UserError("at least one context must be told apart by a probe", 0, "there is nothing to be found")
    pools = task.targets
    pools = pools._replace(
        **{name: getattr(pools, name)[rows.to(pools.x_on.device)] for name in ("x_on", "y_on", "a_on")}
    )
    y = member.to(pools.x_on.device)
    fitted = [refit_encoders(pools, y, ridge) for ridge in SUPERVISED_RIDGES]
    E = unit_rows(y.float().T @ (pools.y_on - pools.y_on.mean(0)))
    return Dictionary(torch.cat([W for W, _ in fitted], 1), torch.cat([b for _, b in fitted]), E.repeat(len(fitted), 1))
