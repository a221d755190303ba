"""Faults, seeded: kill, fill, damage, race and misdate a whole study, then run it again and compare every hash.

    python tests/faults.py                    # 120 kills and every other fault; minutes; writes reports/faults/
    python tests/faults.py --kills 1000       # about an hour
    python tests/faults.py --short            # 8 kills and each other fault once

The study is `tiny_study`: the library's own functions from text to report. This process loads them once and is forked for
every attempt, so a fault strikes work and not imports. After each fault the same work is started again, and must end with
the hashes of an undisturbed run, or say in one line, with exit code 2, which file is bad and what to delete; what it says
is then done, and a third start must end with those hashes. Nothing else counts: no temporary file may be left, either.

Half of the kills come by the clock, at a random share of the time the stage takes; the other half at a file operation
drawn from those the stage makes, so that they fall between two writes and are the same in every run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import importlib.util
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import tiny_study
import torch
from dask_cluster import Cluster
from tiny_study import PROFILE, STAGES, run_stages

from saelib.acts.batches import ShuffledBatches
from saelib.base.errors import UserError
from saelib.base.provenance import provenance
from saelib.report.page import show_seconds, write_page, write_text
from saelib.study.profiles import Profile

KILLED_STAGES = ("text", "harvest", "filter", "training", "scoring", "report", "split", "bench")
EVERYTHING = tuple(STAGES)
GIVE_UP = 300  # seconds
FILE_OPERATIONS = {
    "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.listdir", "os.scandir",
    "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp",
}  # fmt: skip
SAME, TOLD, LOST = "same hashes", "one line, exit 2; same hashes after its remedy", "LOST"


class Attempt(NamedTuple):
    """How one process ended."""

    code: int
    """Its exit code; -9 when it was killed."""
    made: dict[str, Any] | None
    lines: list[str]
    """What it wrote to stderr."""
    operations: int
    seconds: float


@dataclass
class Row:
    """One fault and what came of it."""

    number: int
    fault: str
    stage: str
    moment: str
    kills: int
    outcome: str
    said: str = ""
    seconds: float = 0.0


@dataclass
class Bench:
    """Where faults are tried: the hashes to reach, and a copy of the folder as it is before each stage and at the end."""

    root: Path
    rng: random.Random
    rows: list[Row] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def before(self, stage: str) -> Path:
        return self.root / f"before-{stage}"

    @property
    def finished(self) -> Path:
        return self.root / "finished"

    def undisturbed(self) -> None:
        """Run every stage once, keeping copies; then once more in one go, which must make the same."""
        work = self.root / "undisturbed"
        for stage in EVERYTHING:
            copy(work, self.before(stage)) if work.exists() else tiny_study.make_archive(self.before(stage))
            copy(self.before(stage), work)
            done = attempt(work, (stage,))
            require(done.code == 0 and done.made is not None, f"{stage} must run undisturbed", done)
            self.expected |= done.made or {}
            self.seconds[stage], self.operations[stage] = done.seconds, done.operations
            self.sizes[stage] = size_of(work)
        copy(work, self.finished)
        copy(self.before("text"), work)
        done = attempt(work, EVERYTHING)
        require(done.made == self.expected, "two undisturbed runs must make the same", done)
        shutil.rmtree(work)

    # --- judging -----------------------------------------------------------------------------------------------------

    def judge(self, work: Path, stages: tuple[str, ...], **more: Any) -> tuple[str, str]:
        """Start the work again in `work`; the outcome, and the line it said."""
        done = attempt(work, stages, **more)
        if done.code == 0:
            return self._verdict(done, work, stages), " | ".join(shortened(done.lines, work))
        said = " | ".join(shortened(done.lines, work))
        remedy = re.search(r"delete (?:the file|it|(\S+?))(?:;| to | and |$)", done.lines[0]) if done.lines else None
        if done.code != 2 or len(done.lines) != 1 or remedy is None:
            return LOST, f"exit {done.code}: {said}"
        target = remedy[1] or re.search(r"got (\S+)", done.lines[0])[1]  # type: ignore[index]
        if not Path(target).is_relative_to(work):
            return LOST, f"a remedy outside the cache: {said}"
        shutil.rmtree(target) if Path(target).is_dir() else Path(target).unlink()
        if "archives" in target:  # downloaded again
            tiny_study.make_archive(work)
        again = attempt(work, stages, **more)
        return TOLD if self._verdict(again, work, stages) == SAME else LOST, said

    def _verdict(self, done: Attempt, work: Path, stages: tuple[str, ...]) -> str:
        if done.code != 0 or done.made is None:
            return f"{LOST}: exit {done.code}: {' | '.join(done.lines)[-300:]}"
        wrong = [stage for stage in stages if done.made[stage] != self.expected[stage]]
        if wrong:
            return f"{LOST}: other hashes for {', '.join(wrong)}"
        left = leftovers(work)
        return f"{LOST}: left behind {', '.join(left)}" if left else SAME

    def add(self, fault: str, stage: str, moment: str, kills: int, verdict: tuple[str, str], began: float) -> None:
        outcome, said = verdict
        row = Row(len(self.rows) + 1, fault, stage, moment, kills, outcome, said, round(time.monotonic() - began, 1))
        self.rows.append(row)
        if outcome.startswith(LOST) or row.number % 10 == 0:
            print(f"[{row.number}] {fault} in {stage}, {moment}: {outcome} {said}", flush=True)

    @contextlib.contextmanager
    def work(self, start: Path) -> Iterator[Path]:
        """A folder as `start` is."""
        folder = self.root / "work"
        copy(start, folder)
        yield folder
        shutil.rmtree(folder)

    # --- faults ------------------------------------------------------------------------------------------------------

    def lost_workers(self, cases: int) -> None:
        """SIGKILL both workers of a Dask cluster on which the benchmark runs, each replaced by a new one; nobody restarts it."""
        with tempfile.TemporaryDirectory(prefix="saelib-faults-") as folder, Cluster(Path(folder)) as cluster:
            running = [cluster.worker(self.root / "work") for _ in range(2)]
            for case in range(-1, cases):  # the first loads what the workers need
                began, shares = time.monotonic(), sorted(self.rng.random() for _ in running)
                with self.work(self.before("bench")) as work:
                    child = start(work, ("bench",), scheduler=cluster.address)
                    for place, share in enumerate(shares if case >= 0 else ()):
                        time.sleep(max(0.0, child.began + 2 * share * self.seconds["bench"] - time.monotonic()))
                        running[place].kill()
                        running[place].wait()
                        running[place] = cluster.worker(work)
                    verdict = self._verdict(child.wait(), work, ("bench",))
                    moment = " and ".join(f"{share:.0%}" for share in shares) + " of twice its time"
                    if case >= 0:
                        self.add("Dask worker killed", "bench", moment, len(shares), (verdict, ""), began)

    def kill(self, stage: str, by_clock: bool, times: int) -> None:
        """SIGKILL, `times` times over, then run to the end."""
        began, moments, kills = time.monotonic(), [], 0
        with self.work(self.before(stage)) as work:
            while kills < times and len(moments) < 5 * times:
                if by_clock:
                    share = self.rng.random()
                    moments.append(f"{share:.0%}")
                    done = attempt(work, (stage,), kill_after=share * self.seconds[stage])
                else:
                    n = self.rng.randint(1, max(1, self.operations[stage] - (kills > 0) * self.operations[stage] // 2))
                    moments.append(f"{n}/{self.operations[stage]}")
                    done = attempt(work, (stage,), kill_at=n)
                kills += done.code == -signal.SIGKILL
                require(done.code in (0, -signal.SIGKILL), "a kill must be a kill", done)
            self.add("SIGKILL", stage, " ".join(moments), kills, self.judge(work, (stage,)), began)

    def damage(
        self,
        name: str,
        pattern: str,
        how: str,
        stages: tuple[str, ...],
        start: Path | None = None,
        which: slice = slice(-1, None),
    ) -> None:
        """Truncate, or flip a bit of, the files that match (the last, or `which`); then run stages."""
        began = time.monotonic()
        with self.work(start or self.finished) as work:
            files = sorted(work.glob(pattern))[which]
            require(bool(files), f"there must be a {pattern} to damage", None)
            where = [spoil(file, how, self.rng) for file in files]
            self.add(how, name, ", ".join(where), 0, self.judge(work, stages), began)

    def two_processes(self, killed: bool) -> None:
        """Two processes on one empty cache, one of them killed on the way or none."""
        began = time.monotonic()
        with self.work(self.before("text")) as work:
            first, second = start(work, EVERYTHING), start(work, EVERYTHING)
            moment = "begun together"
            if killed:
                share = self.rng.random()
                moment += f", one killed at {share:.0%}"
                time.sleep(share * sum(self.seconds.values()))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(first.pid, signal.SIGKILL)
            ends = [first.wait(), second.wait()]
            bad = [self._verdict(end, work, EVERYTHING) for end in ends[1 if killed else 0 :]]
            bad = [verdict for verdict in bad if verdict != SAME]
            verdict = (bad[0], "") if bad else self.judge(work, EVERYTHING)
            self.add("two processes", "everything", moment, int(ends[0].code == -9), verdict, began)

    def clock(self, stage: str, how: str) -> None:
        """Kill half-way, date the files wrongly, and go on with a clock that is wrong or runs backwards."""
        began = time.monotonic()
        with self.work(self.before(stage)) as work:
            done = attempt(work, (stage,), kill_at=max(1, int(self.operations[stage] * 0.6)), clock=how)
            year = 365 * 86400
            for number, path in enumerate(sorted(work.rglob("*"))):
                date = time.time() + (10 * year if how == "files dated ahead" else -year * (number % 7))
                os.utime(path, (date, date), follow_symlinks=False)
            kills = int(done.code == -signal.SIGKILL)
            self.add("clock", stage, how, kills, self.judge(work, (stage,), clock=how), began)

    def full_disk(self, stage: str) -> None:
        """Run a stage where there is room for a part of what it writes; then make room and run it again."""
        began, share = time.monotonic(), self.rng.uniform(0.02, 0.95)
        work = self.root / "small-disk"
        work.mkdir(exist_ok=True)
        had = size_of(self.before(stage))
        limit = int(had + share * (self.sizes[stage] - had))

        def in_namespace() -> dict[str, Any]:
            way = small_disk(work, 2 * had + self.sizes[stage] + (8 << 20))
            copy_into(self.before(stage), work)
            if way == "tmpfs":
                resize(work, limit)
            biggest = max((path.stat().st_size for path in self.finished.rglob("*") if path.is_file()), default=1)
            full = attempt(work, (stage,), file_limit=None if way == "tmpfs" else int(share * biggest))
            if way == "tmpfs":
                resize(work, 64 << 20)
            outcome, said = self.judge(work, (stage,))
            lines = shortened(full.lines, work)
            if full.code != 0 and (full.code != 2 or len(lines) != 1 or "disk must have room" not in lines[0]):
                if not (way != "tmpfs" and full.code == 2 and "file size limit" in lines[0]):
                    outcome = f"{LOST}: exit {full.code} on the full disk"
            return {"way": way, "code": full.code, "said": " | ".join(lines) or said, "outcome": outcome}

        answer = forked(in_namespace).wait()
        made = answer.made or {"way": "?", "code": answer.code, "said": " | ".join(answer.lines), "outcome": LOST}
        moment = f"room for {share:.0%} of what it writes ({made['way']}), exit {made['code']}"
        self.add("disk full", stage, moment, 0, (made["outcome"], made["said"]), began)
        shutil.rmtree(work, ignore_errors=True)

    def unsound(self, name: str, profile: Profile, poison: float | None, told: str) -> None:
        """Train on what cannot be trained; then, as it should be, from what the stopped run left."""
        began, at = time.monotonic(), self.rng.randint(25, 140)
        with self.work(self.before("training")) as work:
            done = attempt(work, ("training",), profile=profile, poison=None if poison is None else (at, poison))
            line = " | ".join(shortened(done.lines, work))
            named = re.search(told.replace("{step}", str(at)) + r".*; last good checkpoint: (none yet|\S+)\)", line)
            if named and named[1] != "none yet":
                named = named if Path(named[1].replace("$SAELIB_CACHE", str(work))).exists() else None
            for stopped in work.glob("runs/*/checkpoints"):  # of a run of its own, which stays where it was stopped
                if profile != PROFILE:
                    shutil.rmtree(stopped.parent)
            verdict = self.judge(work, ("training",))[0]
            if done.code != 2 or len(done.lines) != 1 or not named:
                verdict = f"{LOST}: exit {done.code}"
            self.add("unsound training", name, f"step {at}" if poison is not None else "-", 0, (verdict, line), began)


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A forked process at work."""

    pid: int
    answer: Path
    errors: Path
    began: float

    def wait(self, kill_after: float | None = None, kill_when: Callable[[], bool] = lambda: False) -> Attempt:
        """Wait for its end, or kill it after so many seconds, or as soon as something is so."""
        deadline = self.began + (GIVE_UP if kill_after is None else kill_after)
        killed = False
        while True:
            pid, status = os.waitpid(self.pid, 0 if killed else os.WNOHANG)
            if pid:
                break
            if time.monotonic() >= deadline or kill_when():
                os.kill(self.pid, signal.SIGKILL)
                killed = True
            else:
                time.sleep(0.002)
        seconds = time.monotonic() - self.began
        text = self.errors.read_text()
        told = json.loads(self.answer.read_text() or "{}")
        self.errors.unlink()
        self.answer.unlink()
        lines = [line for line in text.splitlines() if line and not line.startswith("  warnings.warn(")]
        return Attempt(os.waitstatus_to_exitcode(status), told.get("made"), lines, told.get("operations", 0), seconds)


def forked(function: Callable[[], Any], operations: Callable[[], int] = lambda: 0) -> Child:
    """Run `function` in a process of its own; as the command line does, a `UserError` is a line and exit code 2."""
    answer, errors = (Path(tempfile.mkstemp(prefix="saelib-faults-")[1]) for _ in range(2))
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, answer, errors, time.monotonic())
    code = 1
    try:
        with open(errors, "w") as log:
            os.dup2(log.fileno(), 2)
        try:
            made = function()
            answer.write_text(json.dumps({"made": made, "operations": operations()}))
            code = 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def start(
    work: Path,
    stages: tuple[str, ...],
    *,
    profile: Profile = PROFILE,
    kill_at: int | None = None,
    clock: str | None = None,
    poison: tuple[int, float] | None = None,
    file_limit: int | None = None,
    scheduler: str | None = None,
) -> Child:
    """Start stages in `work`; `kill_at` kills at that file operation."""
    counted = [0]

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_OPERATIONS and arguments and str(work) in str(arguments[0]):
            counted[0] += 1
            if counted[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def run() -> dict[str, Any]:
        os.environ["SAELIB_CACHE"] = str(work)
        if scheduler is not None:
            os.environ[tiny_study.CLUSTER] = scheduler
        if clock is not None:
            run_clock_backwards()
        if poison is not None:
            poison_batches(*poison)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        sys.addaudithook(on_event)
        return run_stages(stages, profile)

    return forked(run, lambda: counted[0])


def attempt(work: Path, stages: tuple[str, ...], *, kill_after: float | None = None, **more: Any) -> Attempt:
    """Start stages in `work` and wait for their end, or kill them after so many seconds."""
    return start(work, stages, **more).wait(kill_after)


def run_clock_backwards() -> None:
    """From now on, in this process, each look at the clock finds it a minute earlier, from a year ago on."""
    now = [time.time() - 365 * 86400]

    def earlier() -> float:
        now[0] -= 60
        return now[0]

    time.time = earlier
    time.time_ns = lambda: int(earlier() * 1e9)


def poison_batches(step: int, value: float) -> None:
    """From now on, in this process, one number of the batch of `step` is `value`."""
    batch = ShuffledBatches.batch

    def poisoned(self: ShuffledBatches, asked: int, out: torch.Tensor | None = None) -> torch.Tensor:
        x = batch(self, asked, out)
        if asked == step:
            x[3, 5] = value
        return x

    ShuffledBatches.batch = poisoned  # type: ignore[method-assign]


# --- files and disks -------------------------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def copy_into(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def size_of(folder: Path) -> int:
    """Bytes in whole pages, folders included, as a tmpfs counts."""
    return sum(-(-max(path.lstat().st_size, 1) // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def leftovers(work: Path) -> list[str]:
    """What an undisturbed run would not leave behind."""
    found = [path for path in work.rglob("*") if re.search(r"\.tmp$|\.part$|^acts\.xxh3_128$", path.name)]
    found += list(work.glob("runs/*/checkpoints/*"))
    return sorted(str(path.relative_to(work)) for path in found)


def spoil(file: Path, how: str, rng: random.Random) -> str:
    """Damage a file; where, in words."""
    data = bytearray(file.read_bytes())
    if how == "truncated":
        keep = rng.randrange(len(data))
        file.write_bytes(data[:keep])
        return f"{file.name} cut to {keep} of {len(data)} bytes"
    position, bit = rng.randrange(len(data)), rng.randrange(8)
    data[position] ^= 1 << bit
    file.write_bytes(data)
    return f"{file.name}, bit {bit} of byte {position} flipped"


def small_disk(folder: Path, size: int) -> str:
    """Mount a tmpfs on `folder` that only this process and its children see; the way that was found.

    It takes root, or a system that lets a user have a namespace. Elsewhere a limit on the size of files stands in.
    """
    new_namespace, new_user = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
    private = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
    user, group = os.getuid(), os.getgid()
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(new_namespace) != 0:
            if libc.unshare(new_namespace | new_user) != 0:
                return "RLIMIT_FSIZE"
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        libc.mount(b"none", b"/", None, private, None)
        if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size},mode=700".encode()) == 0:
            return "tmpfs"
    return "RLIMIT_FSIZE"


def resize(folder: Path, size: int) -> None:
    remount = 0x20  # MS_REMOUNT
    status = ctypes.CDLL(None, use_errno=True).mount(None, os.fsencode(folder), None, remount, f"size={size}".encode())
    require(status == 0, "the small disk must change its size", os.strerror(ctypes.get_errno()))


def shortened(lines: list[str], work: Path) -> list[str]:
    """Lines that are the same wherever they were said."""
    lines = [re.sub(r"^\S+\.py:\d+: ", "", line) for line in lines]
    return [line.replace(str(work), "$SAELIB_CACHE") for line in lines]


def require(ok: bool, rule: str, got: object) -> None:
    if not ok:
        raise SystemExit(f"error: {rule}; got {got}")


# --- the plan --------------------------------------------------------------------------------------------------------

TARGETS = {
    "archive of text": ("text", "archives/*.whl"),
    "token store": ("text", "tokens/*/train.bin"),
    "token store, documents": ("scoring", "tokens/*/select.documents.bin"),
    "token store, manifest": ("text", "tokens/*/manifest.json"),
    "token store, checksums": ("text", "tokens/*/SHA256SUMS"),
    "activation store": ("harvest", "activations/*/acts.bin"),
    "activation store, manifest": ("harvest", "activations/*/manifest.json"),
    "SAE, weights": ("training", "runs/*/sae/sae_weights.safetensors"),
    "SAE, config": ("training", "runs/*/sae/cfg.json"),
    "training, history": ("training", "runs/*/history.csv"),
    "training, summary": ("training", "runs/*/summary.json"),
    "quality": ("scoring", "quality/*.json"),
    "ranking of parents": ("filter", "parents/*.json"),
    "a feature's activations": ("filter", "features/*/values.npy"),
    "executed notebook": ("report", "notebooks/*/executed.ipynb"),
    "notebook's result": ("report", "notebooks/*/result.json"),
    "page": ("report", "reports/pages/*.html"),
    "a split's SAE": ("split", "reports/split/sae/sae_weights.safetensors"),
    "piece of the benchmark": ("bench", "splitbench/*.json"),
}
"""What is damaged: a stage that reads it (the long version runs all), and where it is."""
HOW = ("truncated", "bit flipped")
_NOT_FINITE = r"loss must stay finite; got \S+ .*step {step} \(first bad tensor: "
BAD_TRAININGS: tuple[tuple[str, Profile, float | None, str], ...] = (
    ("NaN in a batch", PROFILE, float("nan"), _NOT_FINITE + "the batch"),
    ("infinity in a batch", PROFILE, float("inf"), _NOT_FINITE + "the batch"),
    ("overflowing weights", replace(PROFILE, lr=1e36), None, _NOT_FINITE.replace("{step}", r"\d+")),
    ("diverging", replace(PROFILE, lr=30.0), None, r"loss must not run away; got \S+ at step \d+"),
    (
        "all features dead",
        replace(PROFILE, l1_grid=(1e3,), lr=0.3),
        None,
        r"some feature must fire; got all .* step \d+",
    ),
)


def half_done(bench: Bench, stage: str, at_least: int, *wanted: str) -> Path:
    """A folder as a kill left it in the middle of a stage, with so many files of each kind."""
    folder = bench.root / f"half-{stage}"

    def there() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return all(sum(path.stat().st_size > 0 for path in folder.glob(kind)) >= at_least for kind in wanted)
        return False

    for _ in range(32):  # a file may be gone again when the kill comes
        copy(bench.before(stage), folder)
        start(folder, (stage,)).wait(kill_when=there)
        if there():
            return folder
    raise SystemExit(f"error: a killed {stage} must leave {at_least} of {', '.join(wanted)}")


def strike(bench: Bench, kills: int, repeats: int) -> None:
    """Every fault: `kills` SIGKILLs at least, and each of the others once, or in the long version (`repeats` 2) more often."""
    by_clock = True
    while sum(row.kills for row in bench.rows) < kills:
        number = len(bench.rows)
        bench.kill(KILLED_STAGES[number % len(KILLED_STAGES)], by_clock, 1 + (number % 4 == 3) * 2)
        by_clock = not by_clock if number % len(KILLED_STAGES) == len(KILLED_STAGES) - 1 else by_clock
        by_clock = not by_clock
    if repeats > 1 and importlib.util.find_spec("distributed"):
        bench.lost_workers(max(1, kills // 50))
    half = half_done(bench, "training", 2, "runs/run-*/checkpoints/*.json")
    part = half_done(bench, "harvest", 1, "activations/*/acts.part", "activations/*/acts.xxh3_128")
    tensors, scalars = "runs/run-*/checkpoints/*.safetensors", "runs/run-*/checkpoints/*.json"
    for number, how in enumerate(HOW):
        bench.damage("checkpoint, newest, tensors", tensors, how, ("training",), half)
        bench.damage("checkpoint, newest, json", scalars, how, ("training",), half)
        bench.damage("checkpoints, both", tensors, how, ("training",), half, slice(None))
        bench.damage("interrupted harvest", "activations/*/acts.part", how, ("harvest",), part)
        for position, (name, (stage, pattern)) in enumerate(TARGETS.items()):
            if repeats == 1 and position % 2 != number:
                continue  # the short version damages each in one way
            start = bench.before("text") if name == "archive of text" else None
            which = slice(None) if stage == "report" else slice(-1, None)
            bench.damage(name, pattern, how, (stage,) if repeats == 1 else EVERYTHING, start, which)
    for turn in range(repeats):
        bench.two_processes(killed=turn % 2 == 1)
    stages = KILLED_STAGES * repeats if repeats > 1 else ("harvest", "training")
    for stage in stages:
        bench.full_disk(stage)
    for number, stage in enumerate(KILLED_STAGES * ((repeats + 1) // 2) if repeats > 1 else ("training",)):
        bench.clock(stage, ("running backwards", "files dated ahead")[number % 2])
    for name, profile, poison, told in BAD_TRAININGS:
        bench.unsound(name, profile, poison, told)


# --- the table -------------------------------------------------------------------------------------------------------


def summary(bench: Bench) -> list[dict[str, Any]]:
    """One row a kind of fault."""
    found: dict[str, dict[str, Any]] = {}
    for row in bench.rows:
        line = found.setdefault(
            row.fault, {"fault": row.fault, "cases": 0, "kills": 0, "same": 0, "told": 0, "lost": 0}
        )
        line["cases"] += 1
        line["kills"] += row.kills
        line["same" if row.outcome == SAME else "told" if row.outcome == TOLD else "lost"] += 1
    return list(found.values())


def write_report(bench: Bench, out: Path, parameters: dict[str, Any], seconds: float) -> None:
    """`faults.csv`, `faults.json` and `index.html`."""
    rows = [asdict(row) for row in bench.rows]
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(out / "faults.csv", text.getvalue())
    lines = summary(bench)
    total = {name: sum(line[name] for line in lines) for name in ("cases", "kills", "same", "told", "lost")}
    record = provenance() | {
        "wall_seconds": round(seconds, 1),
        "parameters": parameters,
        "summary": lines,
        "total": total,
    }
    write_text(out / "faults.json", json.dumps(record, indent=2) + "\n")
    answer = (
        f"{total['cases']} faults, {total['kills']} SIGKILLs among them: {total['same']} ended with the hashes of an undisturbed "
        f"run, {total['told']} in one line with the file and the remedy, {total['lost']} were lost."
    )
    write_page(
        out / "index.html", "page.html.j2", assets="assets", standalone=True, scripts={}, title="Faults",
        heading="Is anything lost when the machine fails?", answer=answer, headline=[], body=_body(bench, lines),
        record=record | {"seeds": {"faults": parameters["seed"]}, "text_manifest": None}, before=None, after=None,
        navigation=False,
    )  # fmt: skip
    print(answer)


def _body(bench: Bench, lines: list[dict[str, Any]]) -> Any:
    from markupsafe import Markup, escape

    def table(header: list[str], rows: list[list[Any]]) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
        return (
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    counts = table(
        ["fault", "cases", "SIGKILLs", "same hashes", "one line, then same hashes", "lost"],
        [[line[name] for name in ("fault", "cases", "kills", "same", "told", "lost")] for line in lines],
    )
    killed = [row for row in bench.rows if row.fault == "SIGKILL"]
    kills = table(
        ["stage", "cases", "SIGKILLs", "lost"],
        [
            [stage, len(own), sum(r.kills for r in own), sum(r.outcome not in (SAME, TOLD) for r in own)]
            for stage in KILLED_STAGES
            if (own := [r for r in killed if r.stage == stage])
        ],
    )
    cases = table(
        ["", "fault", "where", "moment", "outcome", "said", "seconds"],
        [
            [r.number, r.fault, r.stage, r.moment, r.outcome, r.said, show_seconds(r.seconds)]
            for r in bench.rows
            if r.fault != "SIGKILL" or r.outcome not in (SAME, TOLD)
        ],
    )
    how = (
        "<p>A study of a few seconds on made-up text, through the functions of the real one, is struck and started again. It "
        "must end with the hashes of an undisturbed run, or say in one line, with exit code 2, which file is bad and what to "
        "delete; that is then done, and the next start must end with those hashes.</p>"
    )
    return Markup(
        f"{how}<h2>By kind</h2>{counts}<h2>SIGKILLs by stage</h2>"
        "<p>Each case with its moments (a share of the stage's time, or the file operation of so many) stands in faults.csv.</p>"
        f"{kills}<h2>Every other case</h2>{cases}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Strike, write the report, and return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="8 kills and every other fault once")
    parser.add_argument("--kills", type=int, help="SIGKILLs at least (120; with --short 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "reports" / "faults")
    given = parser.parse_args(arguments)
    kills, repeats = given.kills or (8 if given.short else 120), 1 if given.short else 2
    began = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="saelib-faults-") as folder:
        bench = Bench(Path(folder), random.Random(given.seed))
        os.environ["SAELIB_CACHE"] = folder
        tiny_study.set_up(tiny_study.make_archive(Path(folder)))
        bench.undisturbed()
        print(f"undisturbed: {', '.join(f'{k} {v:.1f} s' for k, v in bench.seconds.items())}", flush=True)
        strike(bench, kills, repeats)
        parameters = {"seed": given.seed, "kills": kills, "repeats": repeats}
        write_report(bench, given.out, parameters, time.monotonic() - began)
    return int(any(row.outcome not in (SAME, TOLD) for row in bench.rows))


if __name__ == "__main__":
    sys.exit(main())
