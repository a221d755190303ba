"""What `saelib split` does: check everything that can be checked before a model is loaded, then split and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from saelib.base.device import DEVICES, Device, choose_device
from saelib.base.errors import UserError

if TYPE_CHECKING:
    from saelib.split.result import Split
    from saelib.split.split_by import MethodSplit

CONTEXTS = ("auto", "hyphen", "automatic")
OURS = "children"


@dataclass(frozen=True)
class SplitRequest:
    """The options of the command, as they were given; notebook `10_split_any_feature` gives the same."""

    sae: str
    feature: int | None = None
    everything: Path | None = None
    out: Path | None = None
    model: str = "mini"
    text: str = "study"
    contexts: str = "auto"
    method: str = OURS
    tokens: int | None = None
    d_sae: int | None = None
    K: int | None = None
    tau: float | None = None
    seed: int = 0
    device: str = "auto"
    prompts: tuple[str, ...] = ()
    jobs: int | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if (self.feature is None) == (self.everything is None):
            got = "neither" if self.feature is None else "both"
            raise UserError("one of --feature and --all must be given", got, "pass one")
        if self.device not in DEVICES:
            raise UserError(f"device must be one of {', '.join(DEVICES)}", repr(self.device), "pass one")
        if self.contexts not in CONTEXTS and not self.contexts.endswith(".json"):
            rule = f"contexts must be one of {', '.join(CONTEXTS)} or a .json of rules"
            raise UserError(rule, repr(self.contexts), "pass one")
        if self.prompts and self.everything is not None:
            raise UserError("prompts are shown for one feature", "--all", "leave --prompt out")


def run_split(request: SplitRequest, say: Callable[[str], object]) -> None:
    """Split one feature, or every one; `say` is called with what a terminal shows.

    Raises:
        UserError: the options do not go together, or whatever splitting refuses.
    """
    from saelib.report.finish import check_writable
    from saelib.split.contexts import read_rules
    from saelib.split.methods import get_method

    everything, out = request.everything, request.out
    get_method(request.method)
    if everything is not None and request.device == "cuda":  # on the processor only
        raise UserError("device must be cpu or auto for --all", request.device, "leave --device out")
    choose_device("cpu" if everything is not None else request.device)
    if request.contexts.endswith(".json"):
        read_rules(Path(request.contexts))
    if out is not None:
        check_writable(out, "out must be a writable folder", "pass --out with another folder")
    if everything is None:
        _split_one(request, say)
        return
    if request.method != OURS or request.tau is not None:
        rule = "--all splits by the method children, each feature at its own tau"
        raise UserError(rule, request.method, "leave it out")
    check_writable(everything, "DIR of --all must be a writable folder", "pass another folder")
    say(f"open {_split_all(request, everything)}")


def _split_one(request: SplitRequest, say: Callable[[str], object]) -> None:
    from saelib.base.progress import shown_progress
    from saelib.report.split_report import split_text
    from saelib.split.result import Split

    with shown_progress(f"feature {request.feature}"):
        found = split_of(request)
    say(split_text(found, request.prompts) if isinstance(found, Split) else found.text())
    if request.out is not None:
        say(f"{'open' if isinstance(found, Split) else 'written to'} {write(found, request)}")


def split_of(request: SplitRequest) -> Split | MethodSplit:
    """Split the feature by the method that is asked for; one that gives children writes its page to `out` before other seeds
    are trained.

    Raises:
        UserError: whatever splitting refuses.
    """
    from saelib.report.split_report import check_prompts, first_page
    from saelib.sae.load import load_sae
    from saelib.split.engine import SplitConfig, split_feature
    from saelib.split.methods import get_method
    from saelib.split.split_by import split_by
    from saelib.split.wide import WideConfig
    from saelib.study.texts import activations

    feature, out, prompts = request.feature, request.out, request.prompts
    assert feature is not None
    gives_children = get_method(request.method).gives_children
    if prompts and not gives_children:
        raise UserError("prompts are shown with children", request.method, "leave --prompt out, or take another method")
    sae = load_sae(request.sae)
    if not 0 <= feature < sae.cfg.d_sae:
        raise UserError(f"feature must be in [0, d_sae={sae.cfg.d_sae})", feature, "pass a feature of the SAE")
    cfg = SplitConfig(
        contexts=request.contexts, tau=request.tau, K=request.K, seed=request.seed, method=request.method,
        require_separable=request.contexts not in ("auto", "automatic"),
    )  # fmt: skip
    acts = activations(request.model, request.text, sae=sae, device=cast(Device, request.device))
    if not gives_children:
        wide = WideConfig(d_sae=request.d_sae or 4 * sae.cfg.d_sae, n_tokens=request.tokens or WideConfig().n_tokens)
        return split_by(sae, feature, acts, request.method, cfg, wide)
    check_prompts(sae, feature, acts, prompts, request.tau)
    first = None if out is None else partial(first_page, out=out, prompts=prompts)
    return split_feature(sae, feature, acts, cfg, first)


def write(found: Split | MethodSplit, request: SplitRequest) -> Path:
    """Write the tables and the new SAE to `out`, with the page where there are children. Returns what to open."""
    from saelib.report.split_report import write_split
    from saelib.split.result import Split

    assert request.out is not None
    return write_split(found, request.out, request.prompts) if isinstance(found, Split) else found.save(request.out)


def numbers(found: Split | MethodSplit) -> dict[str, Any]:
    """What heads the page of a split."""
    from saelib.report.children_page import verdict_sentence
    from saelib.split.result import Split

    parent = found.parent
    if isinstance(found, Split):
        head = {
            "answer": f"Feature {parent.feature}: {verdict_sentence(found)}",
            "verdict": str(found.verdict.value),
            "S_2": found.separation["rest + children"].S[2].value,
            "added_2": found.added[2].value,
            "seconds_training": found.cost["seconds_training"],
        }
    else:
        head = {name: found.judged.row[name] for name in ("verdict", "S_2", "added_2", "seconds")}
        said = f"S_2 {head['S_2']:.2f}, added_2 {head['added_2']:.2f}"
        head = {"answer": f"Feature {parent.feature} by {found.method.name}: {said}."} | head
    return head | {"children": len(found.children), "tau": parent.tau, "tokens_of_P": parent.n_on["test"]}


def _split_all(request: SplitRequest, out: Path) -> Path:
    """Split every feature that passes the parent rule; the index."""
    from saelib.base.progress import shown_progress
    from saelib.report.split_all import AllRequest, split_all

    contexts = "automatic" if request.contexts == "auto" else request.contexts
    all_ = AllRequest(request.sae, str(out), request.model, request.text, contexts, request.K or 64, request.seed)
    with shown_progress("every feature"):
        return split_all(all_, None, jobs=request.jobs, scheduler=request.scheduler)
