"""The order of the study's notebooks, and the key under which each one's result is kept.

    01 narrow SAE -> 02 parent -> 03 filter -> 04 one training run each -> 05 results, 06, 09, 11, 12 -> 07, 08

What stands between two arrows goes side by side.

Every notebook's key is known before anything runs (it hashes inputs, not outputs), so a bad plan fails at once, and a
second command finds what is finished and starts with what is not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from saelib.base.cache import content_key, file_sha256
from saelib.base.errors import UserError
from saelib.base.hub import named_path
from saelib.report.notebook_runner import ExecutedNotebook, cached_notebook, notebook_key
from saelib.report.notebook_source import Scalar, load_notebook
from saelib.report.side_work import LEFT_OPEN
from saelib.study.profiles import Profile, get_profile
from saelib.study.runs import RUNS

TRAINING_RUN = "04_training_run"
BEFORE_RUNS = ("01_narrow_sae", "02_choose_parent", "03_filter")
AFTER_RUNS = ("05_results", "06_training_efficiency", "09_split_page")
OTHER_PARENT = "11_other_parent"
PUBLISHED_SAE = "12_published_sae"
CLAIMS = "07_claims"
EVIDENCE = (CLAIMS, "08_calibration")
"""What `--claims` adds: arms on many narrow SAEs take longer than the study's own runs."""
_SAYS_WHICH = ("profile", "run", "kind")
"""Parameters that say which page of the study a notebook becomes; one with others changed is a page of its own."""
FOR_A_RUN = ("01_narrow_sae", "02_choose_parent")
_BUILDS_ON: dict[str, tuple[str, ...]] = {
    "01_narrow_sae": (),
    "02_choose_parent": ("01_narrow_sae",),
    "03_filter": FOR_A_RUN,
    TRAINING_RUN: FOR_A_RUN,
    CLAIMS: FOR_A_RUN,
    OTHER_PARENT: ("01_narrow_sae",),
    PUBLISHED_SAE: FOR_A_RUN,
    **dict.fromkeys(LEFT_OPEN, FOR_A_RUN),
    "00_start_here": (),
    "10_split_any_feature": (),
    "08_calibration": FOR_A_RUN,
}


@dataclass(frozen=True)
class PlannedPage:
    """One notebook with its parameters: what is executed, under which key, and the page it becomes."""

    notebook: str
    parameters: dict[str, Scalar] = field(hash=False)
    key_extra: dict[str, Any] = field(hash=False)
    key: str
    title: str
    stem: str

    @property
    def label(self) -> str:
        """How this is called in progress lines and in `run.json`."""
        if self.notebook == OTHER_PARENT:
            return f"{self.notebook} {self.parameters.get('kind')}"
        return self.notebook if self.run is None else f"{self.notebook} run {self.run}"

    @property
    def run(self) -> int | None:
        """Number of the training run; None for a notebook that is not one."""
        run = self.parameters.get("run")
        return run if self.notebook == TRAINING_RUN and isinstance(run, int) else None

    def finished(self) -> ExecutedNotebook | None:
        """The result in the cache, if this has been run."""
        return cached_notebook(self.key)

    def require_finished(self) -> ExecutedNotebook:
        """As `finished`.

        Raises:
            UserError: it is not in the cache.
        """
        found = self.finished()
        if found is None:
            rule = "finished notebooks must stay in the cache during a run"
            raise UserError(rule, f"none of {self.label}", "start again")
        return found

    @property
    def is_evidence(self) -> bool:
        """Whether `--claims` asks for it."""
        return self.notebook in EVIDENCE


def plan_page(profile: str, notebook: str, parameters: dict[str, Any] | None = None) -> PlannedPage:
    """Check the parameters of one notebook and work out its key; `UserError` for a bad name or value."""
    source = load_notebook(notebook)
    given = dict(parameters or {})
    if "profile" in source.parameters:
        given.setdefault("profile", profile)
    resolved = source.resolve(given)
    default = source.resolve({k: given[k] for k in _SAYS_WHICH if k in given})
    extra = _key_extra(profile, notebook, resolved)
    key = notebook_key(source, resolved, extra)
    stem, title = notebook, source.title
    if notebook == TRAINING_RUN:
        stem, title = f"run-{resolved['run']:02d}", f"Run {resolved['run']}"
    elif notebook == OTHER_PARENT:
        stem, title = f"{notebook}-{resolved['kind']}", f"Does a parent of another kind split? ({resolved['kind']})"
    if resolved != default:  # a page of one's own, beside the study's
        stem += f"-{key[:6]}"
    return PlannedPage(notebook, resolved, extra, key, title, stem)


def plan_study(profile: str, runs: Sequence[int] | None = None, claims: bool = False) -> list[list[PlannedPage]]:
    """The notebooks of the study in stages; those of one stage may run side by side. With `runs`, only what they need.

    The claims and the calibration are there when asked for, or when they are finished already; the notebooks on what the post
    left open only when they are finished.
    """
    numbers = _run_numbers()
    for run in runs or ():
        if run not in numbers:
            raise UserError("run must be a row of the run table", run, f"use one of {min(numbers)} to {max(numbers)}")
    first = [[plan_page(profile, name)] for name in (BEFORE_RUNS if runs is None else FOR_A_RUN)]
    training = [
        plan_page(profile, TRAINING_RUN, {"run": run}) for run in (numbers if runs is None else sorted(set(runs)))
    ]
    last = [plan_page(profile, name) for name in AFTER_RUNS] if runs is None else []
    if runs is None:
        settings = get_profile(profile)
        last += [plan_page(profile, OTHER_PARENT, {"kind": kind}) for kind in settings.other_parents]
        last += [plan_page(profile, PUBLISHED_SAE)] if settings.published_sae_variable else []
    evidence = [plan_page(profile, name) for name in EVIDENCE] if runs is None or claims else []
    evidence = [page for page in evidence if claims or page.finished() is not None]
    left_open = [plan_page(profile, name) for name in LEFT_OPEN] if runs is None else []
    evidence += [
        page for page in left_open if page.finished() is not None
    ]  # run one by one: `saelib reproduce --notebook`
    return [stage for stage in (*first, training, last, evidence) if stage]


def _key_extra(profile: str, notebook: str, parameters: dict[str, Scalar]) -> dict[str, Any]:
    """What a notebook's result depends on besides its own text and parameters."""
    settings = get_profile(profile)
    sizes = {name: value for name, value in dataclasses.asdict(settings).items() if name != "jobs"}
    if settings.device == "cpu":
        del sizes["device"]  # as if there were no choice: results are the same on every machine
    extra: dict[str, Any] = {"profile": sizes, "model": _model_fingerprint(settings.model)}
    outside = _outside_inputs(settings)
    if outside:
        extra["outside"] = outside
    if notebook == PUBLISHED_SAE:
        from saelib.text.hub_data import INTERPRETATION, INTERPRETATION_VARIABLE, local_files

        extra["published"] = _named_key(settings.published_sae_variable)
        if texts := local_files(INTERPRETATION, INTERPRETATION_VARIABLE):
            extra["texts"] = _files_key(texts)
    if notebook == TRAINING_RUN:
        rows = [dataclasses.asdict(row) for row in RUNS if row.run == parameters.get("run")]
        if not rows:
            known = _run_numbers()
            remedy = f"use one of {min(known)} to {max(known)}"
            raise UserError("run must be a row of the run table", parameters.get("run"), remedy)
        extra["run"] = rows[0]
    if notebook in _BUILDS_ON:
        extra["upstream"] = [plan_page(profile, name).key for name in _BUILDS_ON[notebook]]
    else:
        runs = [plan_page(profile, TRAINING_RUN, {"run": run}) for run in _run_numbers()]
        extra["upstream"] = [page.key for page in [plan_page(profile, BEFORE_RUNS[-1]), *runs]]
    return extra


@cache
def _model_fingerprint(model: str) -> str | None:
    """Hash of an embedded model's files; None for a model that is not embedded."""
    from saelib.lm.model import EMBEDDED_FOLDER

    files = sorted((EMBEDDED_FOLDER.parent / model).glob("*"))
    digests = {path.name: file_sha256(path) for path in files if path.suffix in (".json", ".safetensors")}
    return content_key(**digests) if digests else None


@lru_cache(maxsize=16)
def _outside_inputs(settings: Profile) -> dict[str, str]:
    """Files outside the package that a profile reads, by name and content; what is missing is told before anything runs."""
    from saelib.lm import gelu_1l
    from saelib.text import hub_data

    found: dict[str, str] = {}
    if settings.model == "gelu-1l":
        found["model"] = _files_key(path for folder in gelu_1l.find_gelu_1l() for path in folder.iterdir())
    elif Path(settings.model).is_dir():
        found["model"] = _files_key(Path(settings.model).iterdir())
    if settings.text == (hub_data.PRETOKENISED,):
        found["data"] = _files_key(hub_data.require_source(hub_data.PRETOKENISED, hub_data.PRETOKENISED_VARIABLE))
    if narrow := _named_key(settings.narrow_sae_variable):
        found["narrow"] = narrow
    return found


def _named_key(variable: str | None) -> str | None:
    """The key of what an environment variable names, if it is set."""
    path = named_path(variable)
    if path is None:
        return None
    return _files_key(path.iterdir() if path.is_dir() else [path])


def _files_key(paths: Iterable[Path]) -> str:
    """Hash of the names and contents of files, 0.6 s a GB."""
    return content_key(files=sorted((path.name, _digest(path)) for path in paths if path.is_file()))


def _digest(path: Path) -> str:
    """SHA-256 of a file's content. A hub cache names its large files by it, so those are not read."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    return file_sha256(path)


def _run_numbers() -> list[int]:
    return [row.run for row in RUNS]
