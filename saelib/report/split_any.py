"""Split one feature of anybody's SAE: from a folder and a number to a page with a verdict, its controls and its cost.

    SAE, feature, model, text -> tau, classes -> filtered view -> K wide SAEs (and one on all the data) -> scores -> page

Every step is kept in the cache under all that determines it, so the same command goes on after an interruption.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from saelib.acts.filter import feature_activations, filter_view
from saelib.acts.store import POSITIONS, ActivationStore, ShuffledBatches, View
from saelib.base.cache import content_key, ensure_dir, write_json
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.lm.model import LanguageModel
from saelib.report.feature_page import Member, feature_page
from saelib.report.split_page import split_page
from saelib.sae.sae import (
    SAE,
    SAEConfig,
    init_from_narrow,
    init_random,
    load_sae,
    require_fits,
    require_trainable,
    save_sae,
)
from saelib.sae.train import TrainConfig, TrainResult
from saelib.split.choose import SelectSummary, choose, clusters_as_children, score_split
from saelib.split.context_classes import Labels, Rows, label_tokens
from saelib.split.evidence import Tokens
from saelib.split.score import Score
from saelib.study import study
from saelib.study.profiles import MINI, PROFILES, Profile
from saelib.text.own_text import split_documents, stores_of_text
from saelib.text.tokens import TokenStore

SPLITS = ("train", "select", "test")
STARTS = ("random", "narrow")
_BATCH = 4096
_COFIRE_TOKENS = 130_000
L1_SCALES = (0.03, 0.06, 0.12, 0.2, 0.35)
"""Coefficients tried, a token, as shares of the mean norm of the activations."""
_PROBE_STEPS = 150


@dataclass(frozen=True)
class SplitRequest:
    """What is asked for; every field is part of what the result depends on."""

    sae: str
    """Folder in the SAELens format, or the study's `.pt` file."""
    feature: int
    model: str = "mini"
    """`mini`, `smollm2`, `gelu-1l`, or the folder of a Hugging Face causal model."""
    text: str = "study"
    """`study` (the packages this project downloads), a text file, or a folder of .txt files."""
    filter_by: str = "context"
    """`context` or `token`."""
    start: str = "random"
    """`random`, or `narrow`: the SAE's own weights copied in."""
    tokens: int = 2_000_000
    """Tokens each wide SAE is trained on."""
    seeds: int = 2
    """Wide SAEs trained on the filtered data."""
    width: int = 8
    """Features of the wide SAE, as a multiple of d_in."""
    classes: str = "auto"
    """See `saelib.split.context_classes.label_tokens`."""
    n_classes: int = 3
    """How many automatic classes."""
    tau: float | None = None
    """The parent counts as active above this; None: 2/9.23 of its largest activation on the select split (the study's share)."""
    l1: float | None = None
    """L1 coefficient a token; None: the one of `L1_SCALES` whose SAE of the parent's size comes nearest to its L0."""
    lr: float = 1e-3

    def __post_init__(self) -> None:
        def require(ok: bool, rule: str, got: Any, remedy: str) -> None:
            if not ok:
                raise UserError(rule, got, remedy)

        require(
            self.filter_by in ("context", "token"), "filter must be context or token", repr(self.filter_by), "pass one"
        )
        require(self.start in STARTS, "init must be random or narrow", repr(self.start), "pass one")
        require(self.tokens >= _BATCH, f"tokens must be at least one batch, {_BATCH}", self.tokens, "pass more")
        for name in ("seeds", "width"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "pass more")
        require(self.n_classes >= 2, "there must be at least 2 classes", self.n_classes, "pass more")


class Material(NamedTuple):
    """What a request is carried out on."""

    sae: SAE
    model: LanguageModel
    stores: dict[str, ActivationStore]
    texts: dict[str, tuple[TokenStore, str]]
    """For each split, the token store and the name of the split in it."""


def gather(request: SplitRequest, profile: Profile | None = None) -> Material:
    """Load the SAE and the model, and harvest the text's three splits, in the sizes of `profile` if given."""
    sae = load_sae(Path(request.sae).expanduser())
    if request.start == "narrow":
        require_trainable(sae.cfg)
    profile = profile or _profile(request, sae)
    model = study.language_model(profile)
    require_fits(
        sae.cfg, d_in=model.d_in, hook_name=model.hook_name, center_writing_weights=model.center_writing_weights
    )
    if not 0 <= request.feature < sae.cfg.d_sae:
        raise UserError(f"feature must be in [0, d_sae={sae.cfg.d_sae})", request.feature, "pass a feature of the SAE")
    if request.text == "study":
        stores = {split: study.activations(profile, split) for split in SPLITS}
        texts = {split: (study.tokens(profile), split) for split in SPLITS}
    else:
        stores, texts = {}, {}
        for split, documents in split_documents(request.text).items():
            stores[split], tokens = stores_of_text(model, documents)
            texts[split] = (tokens, "text")
    return Material(sae, model, stores, texts)


def _profile(request: SplitRequest, sae: SAE) -> Profile:
    """The sizes of the model's own profile, at the SAE's hook; harvest no more training text than is used."""
    known = PROFILES.get(request.model, MINI)
    contexts = min(known.train_contexts, max(2_000, 8 * request.tokens // POSITIONS))
    hook = sae.cfg.hook_name or known.hook_name
    folder = request.model if request.model in PROFILES else str(Path(request.model).expanduser())
    return replace(known, model=folder, hook_name=hook, d_in=sae.cfg.d_in, train_contexts=contexts)


class Chosen(NamedTuple):
    """The parent on the text."""

    tau: float
    activations: dict[str, np.ndarray]
    labels: Labels
    rows: dict[str, np.ndarray]
    """Rows of P on select and test."""


def prepare(request: SplitRequest, material: Material) -> Chosen:
    """The parent's activations, its threshold, and the classes of its tokens."""
    acts = {s: feature_activations(material.stores[s], material.sae, request.feature) for s in SPLITS}
    largest = float(acts["select"].max())
    if largest <= 0:
        got = f"feature {request.feature} never fires on {len(acts['select']):,} select tokens"
        raise UserError("the parent must fire on the text", got, "use more text, or another feature")
    tau = MINI.tau_fraction * largest if request.tau is None else request.tau
    rows = {s: np.flatnonzero(acts[s] > tau) for s in ("select", "test")}
    select, test = (Rows(material.stores[s], rows[s]) for s in ("select", "test"))
    return Chosen(tau, acts, label_tokens(material.model, select, test, request.classes, request.n_classes), rows)


def tokens_of(material: Material, chosen: Chosen, split: str) -> Tokens:
    """P of a split, labelled."""
    store, rows = material.stores[split], chosen.rows[split]
    context, position = np.divmod(rows, POSITIONS)
    text, name = material.texts[split]
    label = chosen.labels.select if split == "select" else chosen.labels.test
    parent = torch.from_numpy(chosen.activations[split][rows])
    return Tokens(store.rows(rows), parent, label, text.documents_of(name, context, position + 1))


def any_tokens(material: Material, chosen: Chosen) -> Iterator[Tokens]:
    """Tokens of every kind from the select split."""
    store, last = material.stores["select"], min(_COFIRE_TOKENS, material.stores["select"].n_tokens)
    for begin in range(0, last, 16_384):
        rows = np.arange(begin, min(begin + 16_384, last))
        none = np.full(len(rows), -1, dtype=np.int64)
        yield Tokens(store.read(rows).float(), torch.from_numpy(chosen.activations["select"][rows]), none, none)


# --- training ---------------------------------------------------------------------------------------------------------


def _train(
    request: SplitRequest, material: Material, name: str, view: View, d_sae: int, l1_token: float, steps: int, seed: int
) -> TrainResult:
    cfg = TrainConfig(
        l1_coeff=l1_token / _BATCH, n_steps=steps, seed=seed, lr=request.lr, batch_size=_BATCH,
        reinit_every=max(steps // 3, 1), log_every=max(steps // 40, 1), checkpoint_every=100,
    )  # fmt: skip
    old = material.sae.cfg
    start = request.start if d_sae > old.d_sae else "random"
    sae_cfg = SAEConfig(
        d_in=old.d_in, d_sae=d_sae, hook_name=material.model.hook_name, model_name=material.model.name,
        center_writing_weights=material.model.center_writing_weights,
        metadata={"parent": request.feature, "start": start, "filter": view.name, "seed": seed, "l1_per_token": l1_token},
    )  # fmt: skip

    def initial() -> SAE:
        generator = torch.Generator().manual_seed(seed)
        if start == "narrow":
            narrow = replace_config(material.sae, sae_cfg)
            return init_from_narrow(narrow, sae_cfg, False, generator)
        return init_random(sae_cfg, generator)

    batches = ShuffledBatches(view, _BATCH, seed)
    key = content_key(
        data=batches.key, sae=sae_cfg.to_dict(), cfg=repr(cfg), narrow=study.weights_hash(material.sae), start=start
    )
    return study.train_once(key, name, initial, lambda: batches, cfg)


def replace_config(sae: SAE, like: SAEConfig) -> SAE:
    """The same weights under the model's own name for itself, so that a wide SAE may start from them."""
    sae.cfg = replace(sae.cfg, model_name=like.model_name, hook_name=like.hook_name,
                      center_writing_weights=like.center_writing_weights)  # fmt: skip
    return sae


def l0_of(sae: SAE, store: ActivationStore, n_tokens: int = 50_000) -> float:
    """Mean number of active features a token, on the first tokens of a store."""
    with torch.no_grad():
        x = store.read(np.arange(min(n_tokens, store.n_tokens))).float()
        return float((sae.encode(x) > 0).float().sum(1).mean())


def choose_l1(request: SplitRequest, material: Material) -> tuple[float, pd.DataFrame]:
    """The coefficient a token at which an SAE of the parent's size, trained briefly, comes nearest to the parent's L0.

    On select data, before and independently of any split. Columns of the table: l1_per_token, l0, wanted.
    """
    wanted = l0_of(material.sae, material.stores["select"])
    if request.l1 is not None:
        return request.l1, pd.DataFrame([{"l1_per_token": request.l1, "l0": np.nan, "wanted": wanted}])
    x = material.stores["select"].read(np.arange(min(20_000, material.stores["select"].n_tokens))).float()
    norm = float((x - x.mean(0)).norm(dim=1).mean())
    rows = []
    for scale in L1_SCALES:
        view = View(material.stores["train"])
        found = _train(
            request, material, "split-l1", view, min(material.sae.cfg.d_sae, 1024), scale * norm, _PROBE_STEPS, 0
        )
        rows.append({"l1_per_token": scale * norm, "l0": l0_of(found.sae, material.stores["select"]), "wanted": wanted})
        report_progress("coefficient", len(rows), len(L1_SCALES))
        if rows[-1]["l0"] < wanted:  # larger ones are sparser still
            break
    table = pd.DataFrame(rows)
    best = (np.log(table["l0"].clip(lower=0.1)) - np.log(max(wanted, 0.1))).abs().idxmin()
    return float(table.loc[best, "l1_per_token"]), table


# --- the verdict and its page -------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of a request."""

    request: SplitRequest
    material: Material
    chosen: Chosen
    runs: pd.DataFrame
    """One row a wide SAE: data, seed, verdict, classes_passed, candidates, best_f1, l0, tokens, seconds."""
    best: TrainResult
    score: Score
    summary: SelectSummary
    controls: pd.DataFrame
    cost: pd.DataFrame
    coefficients: pd.DataFrame


def split_feature(request: SplitRequest, profile: Profile | None = None) -> Outcome:
    """Carry a request out: train on the filtered data and on all of it, score every SAE, and gather the controls.

    Sizes of the harvest, its hook and its text are those of `profile`, by default of the model's own.
    """
    began = time.perf_counter()
    report_progress("text and activations", 0, 1)
    material = gather(request, profile)
    chosen = prepare(request, material)
    harvested = time.perf_counter() - began
    l1_token, coefficients = choose_l1(request, material)
    names, tau = chosen.labels.names, chosen.tau
    select, test = tokens_of(material, chosen, "select"), tokens_of(material, chosen, "test")
    kinds = list(any_tokens(material, chosen))
    steps, d_sae = request.tokens // _BATCH, request.width * material.sae.cfg.d_in
    filtered = filter_view(material.stores["train"], chosen.activations["train"], tau, request.filter_by)
    plan = [(request.filter_by, filtered, seed) for seed in range(request.seeds)]
    plan.append(("all data (control)", View(material.stores["train"]), 0))
    rows: list[dict[str, Any]] = []
    found: list[tuple[TrainResult, Score, SelectSummary]] = []
    for data, view, seed in plan:
        label = f"wide SAE {len(rows) + 1} of {len(plan)}"
        trained = _train(request, material, label.replace(" ", "-"), view, d_sae, l1_token, steps, seed)
        summary = choose(trained.sae, kinds, [select], len(names), tau)
        warm = request.feature if request.start == "narrow" else None
        score = score_split(trained.sae, names, summary, [test], tau, W_U=material.model.W_U, warm_parent=warm)
        rows.append(
            {"data": data, "seed": seed, "verdict": score.verdict, "classes_passed": score.classes_passed,
             "candidates": score.candidates, "best_f1": float(np.mean(score.best_f1)),
             "l0": l0_of(trained.sae, material.stores["test"]), "tokens": trained.n_tokens, "seconds": trained.seconds}
        )  # fmt: skip
        found.append((trained, score, summary))
    runs = pd.DataFrame(rows)
    ours = runs.iloc[: request.seeds]
    best = int(ours.sort_values(["classes_passed", "best_f1"]).index[-1])
    trained, score, summary = found[best]
    cost = pd.DataFrame(
        [
            {"what": "text, activations, parent", "seconds": harvested},
            {"what": f"{len(plan)} wide SAEs of {d_sae:,} features", "seconds": float(runs["seconds"].sum())},
            {"what": "everything, this command", "seconds": time.perf_counter() - began},
        ]
    )
    controls = _controls(runs, names, select, test, tau, trained.sae, kinds)
    return Outcome(request, material, chosen, runs, trained, score, summary, controls, cost, coefficients)


def _controls(
    runs: pd.DataFrame, names: tuple[str, ...], select: Tokens, test: Tokens, tau: float, sae: SAE, kinds: list[Tokens]
) -> pd.DataFrame:
    """What the verdict is shown beside: the same tokens unfiltered, permuted labels, k-means instead of an SAE."""
    rows: list[dict[str, Any]] = [
        {"control": f"{row.data}, seed {row.seed}", "verdict": row.verdict, "best_f1": row.best_f1}
        for row in runs.itertuples()
    ]
    rng = np.random.default_rng(0)
    summary = choose(sae, kinds, [select.permuted(rng)], len(names), tau)
    score = score_split(sae, names, summary, [test.permuted(rng)], tau, draws=200)
    rows.append({"control": "permuted labels", "verdict": score.verdict, "best_f1": float(np.mean(score.best_f1))})
    clustered = clusters_as_children(select, test, len(names), tau)
    for name, part in clustered.groupby("clustered"):
        rows.append({"control": f"k-means on the {name}", "verdict": "-", "best_f1": float(part["f1"].mean())})
    return pd.DataFrame(rows)


def page_of(outcome: Outcome) -> Any:
    """The split page of an outcome; shows itself in a notebook, `.save(path)` writes it."""
    parent = Member(outcome.material.sae, outcome.request.feature)
    return split_page(
        parent,
        outcome.best.sae,
        outcome.material.model,
        outcome.material.stores["test"],
        outcome.score,
        controls=outcome.controls,
        cost=outcome.cost,
        automatic_classes=outcome.chosen.labels.automatic,
        firing=False,
    )


def write_report(outcome: Outcome, out: Path) -> Path:
    """Write `index.html` (the split), `parent.html`, `runs.csv`, `split.json` and the best SAE's folder `sae/`."""
    out = ensure_dir(Path(out).expanduser())
    index = page_of(outcome).save(out / "index.html")
    material = outcome.material
    feature_page(material.sae, material.model, material.stores["test"], outcome.request.feature, firing=False).save(
        out / "parent.html"
    )
    outcome.runs.to_csv(out / "runs.csv", index=False)
    save_sae(outcome.best.sae, out / "sae")
    write_json(
        out / "split.json",
        {
            "request": asdict(outcome.request),
            "verdict": outcome.score.verdict,
            "classes": outcome.chosen.labels.names,
            "automatic_classes": outcome.chosen.labels.automatic,
            "tau": outcome.chosen.tau,
            "parent_tokens": {s: len(rows) for s, rows in outcome.chosen.rows.items()},
            "best_f1": dict(zip(outcome.chosen.labels.names, outcome.score.best_f1, strict=True)),
            "coefficients": outcome.coefficients.to_dict("records"),
            "runs": outcome.runs.to_dict("records"),
            "controls": outcome.controls.to_dict("records"),
        },
    )
    return index
