"""Ways to put something in a parent's place, by name: what `saelib split --method` and the benchmark choose from.

A method is a function from a `Task` (one parent, its tokens, K, a seed) to one of

* a `Dictionary`: a *local* method. It is put beside the parent's core, given thresholds, refitted and exported as children are
  (`Work.install`), and measured with the rest of the SAE beside it;
* an `SAE`: a *wide* method. The whole new SAE is measured in place of the old one;
* activations on P, an array a split: a *readout*, which is measured beside the rest and has no SAE of its own.

    @method("pca", "local", "principal axes of what the rest leaves on P")
    def pca(task: Task) -> Dictionary:
        y, x = task.targets.y_on, task.targets.x_on
        E = torch.linalg.svd(y - y.mean(0), full_matrices=False).Vh[: task.K]
        return Dictionary(E.T.contiguous(), -(x.mean(0) @ E.T), E)

`docs/splitbench.md` shows one from the first line to its row in the table. A function that lies elsewhere is named by
`package.module:function`, or by the path of a file, `my_method.py:function`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.sparse import issparse
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.base.cache import content_key, file_sha256
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.sae.sae import SAE
from saelib.sae.train import TRAINING_CODE
from saelib.split.children import ChildrenConfig, Dictionary, Pools

if TYPE_CHECKING:
    from saelib.split.wide import WideConfig
    from saelib.split.work import Work

Kind = Literal["local", "wide", "readout"]
Outcome = Dictionary | SAE | Mapping[str, Any]
"""What a method gives; a mapping holds activations on P, (n, F) or sparse, for train, select and test."""
OURS = "children"
"""The method that is the default."""
HOMES = ("saelib.split.local", "saelib.split.again", "saelib.split.named", "saelib.split.wide")
"""Where the package's own methods lie."""
LOCAL_CODE = (
    "split.again", "split.children", "split.contexts", "split.controls", "split.exported", "split.leak", "split.local",
    "split.methods", "split.named", "split.names", "split.parent", "split.refit", "split.work",
)  # fmt: skip
WIDE_CODE = (*TRAINING_CODE, "split.wide")
JUDGE_CODE = (
    "base.stats", "sae.evaluate", "sae.sae", "sae.stream", "split.children_table", "split.classes", "split.contexts",
    "split.detectors", "split.feature_parts", "split.judged", "split.leak", "split.parent", "split.probe", "split.separation",
    "split.split_count", "split.stability", "split.swap", "split.verdict", "split.work", "split.yardstick",
)  # fmt: skip
"""What computes a row of measures: with the method's own code, the version that a kept row depends on."""


@dataclass
class Meter:
    """What making something costs beside its own wall time; a method adds to it."""

    tokens_sae: int = 0
    """Tokens that were trained on, repeats included."""
    tokens_lm: int = 0
    """Tokens that the language model had to read for it."""
    arithmetic: float = 0.0
    """Multiplications and additions of training as if it were dense: 10 d_in features a token."""
    seconds_shared: float = 0.0
    """Training time that also serves other parents: a wide SAE's, made once and kept."""

    def train(self, tokens: int, d_in: int, features: int) -> None:
        """Count a training: encoder, decoder and three products of the gradient, 2 d_in features operations each."""
        self.tokens_sae += tokens
        self.arithmetic += 10.0 * tokens * d_in * features


@dataclass(frozen=True)
class Task:
    """One parent to split, as a method is given it."""

    acts: Activations
    """All activations, with the model and the text."""
    work: Work
    """The parent's tokens and yardstick; the original SAE and the parent's number are there."""
    K: int
    """Features to make (a local method)."""
    seed: int
    children: ChildrenConfig
    """How children are trained; `config` is the same with this task's K and seed."""
    wide: WideConfig
    """Budget and width of wide SAEs."""
    meter: Meter = field(default_factory=Meter)

    @property
    def pools(self) -> Pools:
        """Tokens of train with what the rest of the SAE leaves there, y."""
        return self.work.pools

    @property
    def targets(self) -> Pools:
        """The same beyond the core: y less what all tokens of P have in common."""
        return self.work.targets

    @property
    def d_p(self) -> Float[Tensor, " d_in"]:
        """The parent's decoder row."""
        return self.work.sae.W_dec.detach()[self.work.feature]

    @cached_property
    def config(self) -> ChildrenConfig:
        """How children are trained, with this task's K and seed."""
        return replace(self.children, K=self.K, seed=self.seed)


@dataclass(frozen=True)
class Method:
    """A way to make what takes a parent's place."""

    name: str
    kind: Kind
    about: str
    """One line for tables."""
    make: Callable[[Task], Outcome] = field(repr=False)
    prune: bool = True
    """Whether features that carry nothing are dropped when a dictionary is exported: for methods of ours, not for controls."""
    permuted: bool = False
    """Whether contexts are dealt out at random before it is measured: a control in which nothing may be found."""
    per_parent: bool = True
    """Whether the work is done for one parent only; a plain wide SAE serves all."""
    seeded: bool = True
    """Whether a seed changes what it gives; else it is run once."""
    K: int | None = None
    """Features it makes whatever is asked for; None: as many as are asked for."""
    most_leak: float | None = None
    """The foreign leak that a child may have on select: those above it at every threshold are dropped; None: none are."""
    source: Path | None = None
    """The file of a method that is not the package's own."""

    @property
    def gives_children(self) -> bool:
        """Whether it puts children in a parent's place that are judged by the contexts as they are."""
        return self.kind == "local" and not self.permuted

    @property
    def version(self) -> str:
        """Changes with the code that makes it."""
        if self.source is not None:
            return content_key(own=file_sha256(self.source), code=code_version(*LOCAL_CODE))
        return code_version(*(WIDE_CODE if self.kind == "wide" else LOCAL_CODE))


_REGISTRY: dict[str, Method] = {}


def method(
    name: str, kind: Kind, about: str, **options: Any
) -> Callable[[Callable[[Task], Outcome]], Callable[[Task], Outcome]]:
    """Register a function as a method; `options` are the flags of `Method`.

    Raises:
        UserError: the name is taken by another function.
    """

    def register(make: Callable[[Task], Outcome]) -> Callable[[Task], Outcome]:
        known = _REGISTRY.get(name)
        origin = sys.modules.get(make.__module__)
        file = getattr(origin, "__file__", None)
        own = make.__module__.startswith("saelib.")
        if known is not None and (known.make.__module__, known.make.__qualname__) != (
            make.__module__,
            make.__qualname__,
        ):
            raise UserError("a method's name must be free", repr(name), "choose another")
        source = None if own or file is None else Path(file)
        _REGISTRY[name] = Method(name, kind, about, make, source=source, **options)
        return make

    return register


def method_names() -> tuple[str, ...]:
    """The package's own methods: ours, other local ones, readouts, wide ones."""
    for home in HOMES:
        importlib.import_module(home)
    order = ("local", "readout", "wide")
    own = [m for m in _REGISTRY.values() if m.source is None]
    return tuple(m.name for m in sorted(own, key=lambda m: order.index(m.kind)))


def get_method(name: str) -> Method:
    """A method by name; `package.module:function` or `file.py:function` for one that lies elsewhere, `sae:FOLDER` for an
    SAE that is there already.

    Raises:
        UserError: there is none.
    """
    names = method_names()
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name.startswith("sae:"):
        from saelib.split.wide import opened

        return opened(name)
    if ":" in name:
        return _elsewhere(name)
    near = difflib.get_close_matches(name, names, 1)
    remedy = f"did you mean {near[0]!r}?" if near else "pass one, or module:function"
    raise UserError(f"method must be one of {', '.join(names)}", repr(name), remedy)


def _elsewhere(name: str) -> Method:
    """The function of a module or file; where it is registered under a name of its own its flags are kept."""
    where, _, function = name.rpartition(":")
    module = _module_of(where, name)
    make = getattr(module, function, None)
    if not callable(make):
        raise UserError(f"{where} must have the function", function, "mend the name")
    for known in _REGISTRY.values():
        if known.make is make:
            return replace(known, name=name)
    about = (make.__doc__ or name).strip().splitlines()[0]
    return Method(name, "local", about, make, source=Path(str(module.__file__)))


def _module_of(where: str, name: str) -> Any:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ImportError as error:
            raise UserError(
                "method must be in a module that can be imported", f"{name} ({error})", "install it"
            ) from error
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise UserError("a method's file must be there", path, "mend the path")
    module_name = f"saelib_method_{content_key(path=str(path))}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return sys.modules[module_name]


def make(chosen: Method, task: Task) -> Outcome:
    """Run a method and look at what it gives.

    Raises:
        UserError: it gives something of another kind or shape, or numbers that are not finite.
    """
    found = chosen.make(task if chosen.K is None else replace(task, K=chosen.K))
    if isinstance(found, Dictionary):
        d = task.pools.x_on.shape[1]
        K = found.W.shape[1]
        shapes = (tuple(found.W.shape), tuple(found.b.shape), tuple(found.E.shape))
        if shapes != ((d, K), (K,), (K, d)) or K < 1:
            raise UserError(f"a dictionary must be W ({d}, K), b (K), E (K, {d})", shapes, f"mend {chosen.name}")
        finite = all(bool(t.isfinite().all()) for t in found)
    elif isinstance(found, SAE):
        finite = all(bool(p.isfinite().all()) for p in found.parameters())
    elif isinstance(found, Mapping):
        finite = all(bool(np.isfinite(v.data if issparse(v) else np.asarray(v)).all()) for v in found.values())
    else:
        raise UserError("a method must give a Dictionary, an SAE or activations on P", type(found).__name__, "mend it")
    if not finite:
        raise UserError(f"what {chosen.name} gives must be finite", "NaN or infinity", "mend it")
    if isinstance(found, SAE):
        return found.on(task.acts.device)
    return Dictionary(*(t.to(task.acts.device) for t in found)) if isinstance(found, Dictionary) else found
