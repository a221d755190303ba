"""What `saelib split` does: check everything that can be checked before a model is loaded, then split and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saelib.base.device import DEVICES, Device, choose_device
from saelib.base.errors import UserError

CONTEXTS = ("auto", "hyphen", "automatic")
OURS = "children"


@dataclass(frozen=True)
class SplitRequest:
    """The options of the command, as they were given."""

    sae: str
    feature: int | None
    everything: Path | None
    out: Path | None
    model: str
    text: str
    contexts: str
    method: str
    tokens: int | None
    d_sae: int | None
    K: int | None
    tau: float | None
    seed: int
    device: str
    prompts: tuple[str, ...]
    jobs: int | None
    scheduler: str | None

    def __post_init__(self) -> None:
        if (self.feature is None) == (self.everything is None):
            got = "neither" if self.feature is None else "both"
            raise UserError("one of --feature and --all must be given", got, "pass one")
        if self.device not in DEVICES:
            raise UserError(f"device must be one of {', '.join(DEVICES)}", repr(self.device), "pass one")
        if self.contexts not in CONTEXTS and not self.contexts.endswith(".json"):
            rule = f"contexts must be one of {', '.join(CONTEXTS)} or a .json of rules"
            raise UserError(rule, repr(self.contexts), "pass one")


def run_split(request: SplitRequest, say: Callable[[str], object]) -> None:
    """Split one feature, or every one; `say` is called with what a terminal shows.

    Raises:
        UserError: the options do not go together, or whatever splitting refuses.
    """
    from saelib.report.finish import check_writable
    from saelib.split.contexts import read_rules
    from saelib.split.methods import get_method

    everything, own = request.everything, get_method(request.method).name == OURS
    device: Device = next(name for name in DEVICES if name == request.device)
    if everything is not None:  # on the processor only
        if device == "cuda":
            raise UserError("device must be cpu or auto for --all", device, "leave --device out")
        device = "cpu"
    if request.prompts and (not own or everything is not None):
        rule = "prompts are shown for one feature and the method children"
        raise UserError(rule, request.method, "leave --prompt out")
    choose_device(device)
    if request.contexts.endswith(".json"):
        read_rules(Path(request.contexts))
    if request.out is not None:
        check_writable(request.out, "out must be a writable folder", "pass --out with another folder")
    if everything is None:
        _split_one(request, device, say)
        return
    if not own or request.tau is not None:
        rule = "--all splits by the method children, each feature at its own tau"
        raise UserError(rule, request.method, "leave it out")
    check_writable(everything, "DIR of --all must be a writable folder", "pass another folder")
    say(f"open {_split_all(request, everything)}")


def _split_one(request: SplitRequest, device: Device, say: Callable[[str], object]) -> None:
    from saelib.base.progress import shown_progress
    from saelib.report.split_report import check_prompts, first_page, split_text, write_split
    from saelib.sae.load import load_sae
    from saelib.split.engine import SplitConfig, split_feature
    from saelib.study.texts import activations

    feature, out, prompts = request.feature, request.out, request.prompts
    assert feature is not None
    sae = load_sae(request.sae)
    if not 0 <= feature < sae.cfg.d_sae:
        raise UserError(f"feature must be in [0, d_sae={sae.cfg.d_sae})", feature, "pass a feature of the SAE")
    cfg = SplitConfig(
        contexts=request.contexts, tau=request.tau, K=request.K, seed=request.seed,
        require_separable=request.contexts not in ("auto", "automatic"),
    )  # fmt: skip
    with shown_progress(f"feature {feature}"):
        acts = activations(request.model, request.text, sae=sae, device=device)
        if request.method != OURS:
            say(_split_by(request, sae, feature, acts, cfg))
            return
        check_prompts(sae, feature, acts, prompts, request.tau)
        first = None if out is None else partial(first_page, out=out, prompts=prompts)
        found = split_feature(sae, feature, acts, cfg, first)
    say(split_text(found, prompts))
    if out is not None:
        say(f"open {write_split(found, out, prompts)}")


def _split_all(request: SplitRequest, out: Path) -> Path:
    """Split every feature that passes the parent rule; the index."""
    from saelib.base.progress import shown_progress
    from saelib.report.split_all import AllRequest, split_all

    contexts = "automatic" if request.contexts == "auto" else request.contexts
    all_ = AllRequest(request.sae, str(out), request.model, request.text, contexts, request.K or 64, request.seed)
    with shown_progress("every feature"):
        return split_all(all_, None, jobs=request.jobs, scheduler=request.scheduler)


def _split_by(request: SplitRequest, sae: Any, feature: int, acts: Any, cfg: Any) -> str:
    """Split by another method than ours; the table as text, and where it is kept."""
    from saelib.split.split_by import split_by
    from saelib.split.wide import WideConfig

    wide = WideConfig(
        d_sae=request.d_sae or 4 * sae.cfg.d_sae, n_tokens=request.tokens or WideConfig().n_tokens
    )  # fmt: skip
    found = split_by(sae, feature, acts, request.method, cfg, wide)
    return found.text() + (f"\nwritten to {found.save(request.out)}" if request.out is not None else "")
