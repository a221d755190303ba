"""The table of a parent's children: what each marks, what it adds, where it leaks, what it resembles."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csc_array

from saelib.lm.model import LanguageModel
from saelib.sae.stream import sparse_acts
from saelib.split.exported import child_numbers
from saelib.split.names import best_other, name_child
from saelib.split.separation import LEAST_ROOM, Separation
from saelib.split.work import Made, Work
from saelib.split.yardstick import interval


def children_table(model: LanguageModel, work: Work, made: Made, rest: Separation) -> pd.DataFrame:
    """One row a child, the one whose name says best where it fires first; the index is the child's place in the dictionary.

    Args:
        rest: separation of the SAE without the parent.
    """
    y, documents = work.yardstick, work.yardstick.documents
    fires = {s: made.acts["on"][s] > 0 for s in ("select", "test")}
    used = fires["test"][y.used["test"]]
    inside = y.member["test"][:, made.context_of]
    counts = documents.mcc(used, inside)
    hits, firings = documents.sums(used & inside), documents.sums(used)
    precision = np.divide(hits, firings, out=np.zeros_like(hits), where=firings > 0)
    leaks = work.leak(made)
    W_dec, E = work.sae.W_dec.detach(), made.dictionary.E
    d_p = W_dec[work.feature]
    to_rest = torch.nn.functional.normalize(W_dec[work.rest], dim=1) @ E.T
    nearest = to_rest.max(0)
    on = work.tokens.on
    names = [name_child(model, on, {s: fires[s][:, j] for s in fires}) for j in range(len(made.theta))]
    says = {s: np.column_stack([name.says[s] for name in names]) for s in fires}
    others = {s: csc_array(sparse_acts(work.sae, on[s].x, work.feature)) for s in fires}
    other, other_mcc = best_other(others, says)
    rows = []
    for j in range(len(made.theta)):
        c = int(made.context_of[j])
        room = y.ceiling_draws[:, c] - rest.draws[1][:, c]
        apart = bool(y.reasons[c]) or y.ceiling.select_mcc[c] - rest.select_mcc[1][c] < LEAST_ROOM
        gain = np.divide(counts[:, j] - rest.draws[1][:, c], room, out=np.full(len(room), np.nan), where=room > 0)
        add = interval(np.full(len(room), np.nan) if apart else gain)
        mark, exact = interval(counts[:, j]), interval(precision[:, j])
        act = made.acts["on"]["test"][:, j]
        rows.append(
            {
                "feature": child_numbers(work.sae, len(made.theta))[j],
                "name": names[j].name, "name_mcc": names[j].mcc, "rest_mcc": float(other_mcc[j]), "rest_feature": int(other[j]),
                "share": float(fires["test"][:, j].mean()), "theta": float(made.theta[j]),
                "context": work.labels.contexts[c].name,
                "mcc": mark.value, "mcc_low": mark.low, "mcc_high": mark.high,
                "precision": exact.value, "precision_low": exact.low, "precision_high": exact.high,
                "added": add.value, "added_low": add.low, "added_high": add.high,
                "leak": leaks.foreign[j].value, "leak_high": leaks.foreign[j].high, "missed": leaks.missed[j].value,
                "cosine_parent": float(torch.nn.functional.cosine_similarity(E[j], d_p, dim=0)),
                "max_cosine_rest": float(nearest.values[j]),
                "copy_of": work.rest[int(nearest.indices[j])] if nearest.values[j] > 0.7 else -1,
                "mean_activation": float(act[act > 0].mean()) if (act > 0).any() else 0.0,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values(["name_mcc", "share"], ascending=False, kind="stable")
