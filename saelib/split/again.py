"""Children that come back: of several trainings only what the others find too, each encoder refitted to its own firings.

One training fills its K places whether or not there is that much to find: the rest of them fit what no other seed fits. A child
of one training comes back in the others by

    back(j) = mean over the other trainings of IoU(j, the child it is matched to), on P of select    (`saelib.split.stability`)

It stays when back(j) >= `AGAIN`; of two that fire on the same tokens (IoU >= `AGAIN`), from whatever training, the one that
comes back more. The encoders of those that stay are refitted to where they fire themselves, above `SHARE` of their 0.9 quantile
on P (`saelib.split.refit`).

A parent of whose children none comes back is refused: there is nothing in it that can be told from noise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from saelib.base.errors import UserError
from saelib.split.children import Dictionary
from saelib.split.local import trained
from saelib.split.methods import Task, method
from saelib.split.refit import own_firings, refit_encoders
from saelib.split.stability import iou, stability

TRAININGS = 5
AGAIN = 0.5
"""Least mean IoU with the children of other trainings."""
SHARE = 0.4
"""A child fires for its refit above this share of its 0.9 quantile on P."""
RIDGE = 10.0


@method("again", "local", "ours: children that come back in other seeds, encoders refitted to their own firings")
def again(task: Task) -> Dictionary:
    """The children of `TRAININGS` trainings that come back, refitted."""
    work, cfg = task.work, task.config
    made = [
        work.install(trained(task, task.targets, replace(cfg, seed=TRAININGS * cfg.seed + i))) for i in range(TRAININGS)
    ]
    fires = [m.acts["on"]["select"] > 0 for m in made]
    back = [stability(own, fires[:i] + fires[i + 1 :]) for i, own in enumerate(fires)]
    score = np.concatenate([each for each in back if each is not None])
    same = iou(*[np.concatenate(fires, axis=1)] * 2) >= AGAIN
    chosen: list[int] = []
    for j in np.argsort(-score, kind="stable").tolist():
        if score[j] >= AGAIN and not same[j, chosen].any():
            chosen.append(j)
    if not chosen:
        got = f"the best comes back with an IoU of {score.max(initial=0):.2f}"
        rule = f"a child must fire on the same tokens in {TRAININGS} trainings (IoU of at least {AGAIN})"
        raise UserError(rule, got, "take --method children, or leave the feature whole")
    E, W, b = (
        torch.cat(parts, -1) for parts in zip(*((m.dictionary.E.T, *m.dictionary[:2]) for m in made), strict=True)
    )
    kept = Dictionary(W[:, chosen], b[chosen], E.T[chosen])
    refitted = refit_encoders(task.targets, own_firings(kept, task.targets, SHARE), RIDGE, cfg.seed)
    return Dictionary(*refitted, kept.E)
