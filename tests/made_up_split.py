"""A `Split` whose tokens, SAE and children are real and whose judgement is made up: what a page needs, in a second or two."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from saelib.acts.activations import Activations
from saelib.interpret.features import prompt_activations
from saelib.sae.sae import SAE, SAEConfig
from saelib.split import children, contexts, exported, parent
from saelib.split.detectors import mcc
from saelib.split.separation import ContextSeparation, Interval, Separation
from saelib.split.tokens import SPLITS
from saelib.split.verdict import Verdict


def around(value: float, half: float = 0.04) -> Interval:
    return Interval(value, value - half, value + half)


@torch.no_grad()
def made_up_split(
    acts: Activations,
    sae: SAE,
    feature: int,
    *,
    K: int = 6,
    n_steps: int = 150,
    how: str = "auto",
    tau: float | None = None,
) -> Any:
    """Children really trained; the numbers of the judge invented, in the shape that the judge gives them."""
    tokens = parent.gather(acts, sae, feature, tau)
    model, on = acts.model, tokens.on["test"]
    texts = {s: np.asarray(acts.stores[s].contexts) for s in SPLITS}
    labels = contexts.label(model, tokens.on, texts, how)
    jump = exported.as_jumprelu(sae, tokens.on["train"].x)

    def y(part: Any) -> torch.Tensor:
        return exported.inner_target(jump, feature, part.x)

    on_train, weak, off = (getattr(tokens, name)["train"] for name in ("on", "weak", "off"))
    inputs = [exported.encoder_input(jump, part.x) for part in (on_train, weak, off)]
    pools = children.Pools(inputs[0], y(on_train), inputs[1], y(weak), inputs[2])
    found = children.train_children(pools, children.ChildrenConfig(K=K, n_steps=n_steps))
    K = len(found.b)
    new = exported.replace_parent(jump, feature, found, torch.zeros(K))
    numbers = exported.child_numbers(jump, feature, K)
    c = new.encode_features(on.x, torch.tensor(numbers)).detach().numpy() > 0
    off_c = new.encode_features(tokens.off["test"].x, torch.tensor(numbers)).detach().numpy() > 0

    # names and scores from frequent neighbours, whatever the contexts asked about
    words = [(f'{w} "{model.vocabulary[t].strip()}"', getattr(on, k) == t) for k, w in (("previous", "after"), ("next", "before"))
             for t in pd.Series(getattr(on, k)).value_counts().index[:30] if t >= 0]  # fmt: skip
    member = np.stack([m for _, m in words], axis=1)
    tp = c.T.astype(float) @ member
    fp, fn = c.sum(0)[:, None] - tp, member.sum(0)[None] - tp
    score = mcc(tp, fp, fn, len(c) - tp - fp - fn)
    best = score.argmax(1)
    n_on, n_off = tokens.n_on["test"], tokens.n_off["test"]
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "feature": numbers,
            "name": [words[b][0] for b in best],
            "share": c.mean(0),
            "theta": 0.0,
            "context": [words[b][0] for b in best],
            "mcc": score[range(K), best],
            "mcc_low": score[range(K), best] - 0.05,
            "mcc_high": score[range(K), best] + 0.05,
            "precision": tp[range(K), best] / c.sum(0).clip(1),
            "added": [np.nan if j % 5 == 4 else 0.7 * score[j, best[j]] for j in range(K)],
            "added_low": [np.nan if j % 5 == 4 else 0.7 * score[j, best[j]] - 0.06 for j in range(K)],
            "added_high": [np.nan if j % 5 == 4 else 0.7 * score[j, best[j]] + 0.06 for j in range(K)],
            "leak": off_c.mean(0) * n_off / np.maximum(off_c.mean(0) * n_off + c.mean(0) * n_on, 1),
            "leak_high": 0.1,
            "missed": 0.01,
            "cosine_parent": torch.cosine_similarity(found.E, sae.W_dec[feature][None].detach()).numpy(),
            "max_cosine_rest": rng.uniform(0.2, 0.8, K),
            "copy_of": [3 if j == 2 else -1 for j in range(K)],
            "mean_activation": 1.5,
        }
    )
    frame = frame.sort_values("share", ascending=False).reset_index(drop=True)
    order = [numbers.index(f) for f in frame["feature"]]
    fired = c[:, order].astype(float)
    both, size = fired.T @ fired, fired.sum(0)
    E = found.E[order]
    separation = {
        name: _separation(labels, level)
        for name, level in (("rest + children", 0.75), ("children", 0.7), ("rest", 0.45))
    }
    over = []
    for position in ("previous", "current", "next"):
        ids, others = getattr(on, position), getattr(tokens.off["test"], position)
        for t, n in pd.Series(ids[ids >= 0]).value_counts().head(8).items():
            elsewhere = float((others == t).mean())
            over.append(
                (position, model.vocabulary[int(t)], n / len(ids), elsewhere, n / len(ids) / max(elsewhere, 1e-5))
            )
    names = ["rest + children", "children", "rest", "random decoder", "k-means", "small L1 SAE", "permuted labels",
             "quantiles of the parent", "wrong parent"]  # fmt: skip
    level = [0.66, 0.6, 0.47, 0.51, 0.4, 0.58, 0.02, 0.05, 0.2]
    controls = pd.DataFrame({"name": names})
    for k, more in ((1, -0.1), (2, 0.0), (4, 0.08)):
        for end, off_by in (("", 0.0), ("_low", -0.05), ("_high", 0.05)):
            controls[f"S_{k}{end}"] = [v + more + off_by for v in level]
    controls["fvu_on_p"] = [0.16, 0.2, 0.5, 0.41, 0.38, 0.22, np.nan, 0.3, 0.45]
    controls["leak"] = [0.03, 0.03, np.nan, 0.2, 0.4, 0.1, np.nan, 0.0, 0.5]
    swap = pd.DataFrame(
        {"fvu_before": [0.31, 0.214], "fvu_after": [0.16, 0.2131], "l0_before": [31.0, 24.1], "l0_after": [33.4, 24.12],
         "loss_recovered_before": [0.93, 0.951], "loss_recovered_after": [0.95, 0.9511]},
        index=["on P", "overall"],
    )  # fmt: skip

    def on_text(text: str) -> pd.DataFrame:
        pieces, ours = prompt_activations(new, model, text)
        _, theirs = prompt_activations(sae, model, text)
        out = pd.DataFrame({"position": range(len(pieces)), "token": pieces, "parent": theirs[:, feature].numpy()})
        for name, f in zip(frame["name"], frame["feature"], strict=True):
            out[f"{name} ({f})"] = ours[:, f].numpy()
        return out

    n_all = tokens.n_tokens["test"]
    return SimpleNamespace(
        original=sae, sae=new, tokens=tokens, acts=acts, labels=labels, children=frame, separation=separation,
        parent=SimpleNamespace(
            feature=feature, tau=tokens.tau, rate=n_on / n_all, n_on=tokens.n_on, largest=float(on.parent.max()),
            purity=labels.purity() if labels.named else None, recall=0.93 if labels.named else None,
            over_represented=pd.DataFrame(over, columns=["position", "token", "share_in_P", "share_elsewhere", "lift"]),
            examples=pd.DataFrame(),
        ),
        added={k: around(0.5) for k in (1, 2, 4)}, verdict=Verdict.SPLIT, verdict_text="split: 6 of 8 contexts",
        swap=swap, relations={"iou": both / np.maximum(size[:, None] + size[None] - both, 1), "cosine": (E @ E.T).numpy()},
        k_curve=pd.DataFrame({"K": [16, 32, 64, 128], "fvu": [0.24, 0.19, 0.165, 0.16], "chosen": [False, False, True, False]}),
        controls=controls, cost={"seconds": 14.2, "seconds_training": 6.1, "tokens_sae": 3_400_000, "tokens_lm": n_all * 4},
        on=on_text, to_json=lambda: {"verdict": "split", "children": frame.to_dict("records")},
    )  # fmt: skip


def _separation(labels: contexts.Labels, level: float) -> Separation:
    rng = np.random.default_rng(int(level * 100))
    rows = []
    for i, context in enumerate(labels.contexts):
        judged = context.primary and i % 4 != 3
        value = level * rng.uniform(0.7, 1.1)
        rows.append(
            ContextSeparation(
                context.name, context.kind, context.primary, int(labels.member["select"][:, i].sum()),
                int(labels.member["test"][:, i].sum()), {k: around(value + 0.03 * k) for k in (1, 2, 4)}, (1, 2),
                around(0.9), around(0.15), judged, "" if judged else "not separable by a linear probe",
            )
        )  # fmt: skip
    empty = {k: np.zeros((1, len(rows))) for k in (1, 2, 4)}
    fires = {k: np.zeros((1, len(rows)), dtype=bool) for k in (1, 2, 4)}
    return Separation(tuple(rows), {k: around(level) for k in (1, 2, 4)}, {k: around(level) for k in (1, 2, 4)},
                      {k: v[0] for k, v in empty.items()}, fires, empty)  # fmt: skip


WORDS = ["long", "multi", "3", "twin", "7", "single", "well", "double"]
NOUNS = ["term", "headed", "point", "standing", "day", "known"]


def documents(n: int = 70, odd: str = "</script><b>bold</b> &") -> list[str]:
    """Made-up lines with every kind of hyphen, and text that looks like markup."""
    rng = np.random.default_rng(0)

    def line(i: int) -> str:
        plan = f"The {rng.choice(WORDS)}-{rng.choice(NOUNS)} plan number {rng.integers(99)} was read."
        return f"{plan} {odd}" if i % 9 == 0 else plan

    return [" ".join(line(i) for i in range(40)) for _ in range(n)]


@torch.no_grad()
def hyphen_sae(acts: Activations, d_sae: int = 12) -> SAE:
    """Feature 3 fires on "-", the others on parts of what is left: directions of some of the tokens themselves."""
    store = acts.stores["train"]
    x = store.rows(slice(None))
    hyphen = torch.from_numpy(np.asarray(store.token_ids) == acts.model.hyphen)
    cfg = SAEConfig(store.d_in, d_sae, acts.model.hook_name, acts.model.name, False)
    sae = SAE(cfg)
    sae.b_dec.copy_(x.mean(0))
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:d_sae]
    unit = torch.nn.functional.normalize(x[chosen] - sae.b_dec, dim=1)
    unit[3] = torch.nn.functional.normalize(x[hyphen].mean(0) - sae.b_dec, dim=0)
    sae.W_dec.copy_(unit)
    sae.W_enc.copy_(unit.T)
    reads = (x - sae.b_dec) @ unit.T
    sae.b_enc.copy_(-reads.quantile(0.9, dim=0))
    sae.b_enc[3] = -reads[~hyphen, 3].quantile(0.995)
    return sae
