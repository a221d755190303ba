"""The runner must refuse what papermill only warns about, keep what is finished, and end what its caller no longer waits for."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import saelib
from saelib.base.code_version import imported, source_hash
from saelib.base.errors import UserError
from saelib.base.progress import Display, clock, describe, read_progress, report_progress
from saelib.report.jobs import Job, JobFailed, Memory, run_jobs
from saelib.report.notebook_runner import (
    _NOT_PART_OF_RESULTS,
    NotebookFailed,
    _translated,
    cached_notebook,
    notebook_key,
    run_notebook,
)
from saelib.report.notebook_source import load_notebook

pytestmark = pytest.mark.slow  # each starts a kernel

HEAD = """\
# %% [markdown]
# # What is x?

# %% tags=["parameters"]
profile = "smoke"  # which sizes
n = 3
lr: float = 1e-3
tau: float | None = None
quick = False

# %%
"""
RECORD = """\
import os
from IPython.display import display
with open(os.environ["EXECUTIONS"], "a") as file:
    file.write(f"{os.getcwd()}\\n")
display({"application/vnd.saelib.headline+json": {"square": n * n}, "text/plain": ""}, raw=True)
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Write:
    """Write a notebook into a folder of its own and make that the notebook folder."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setenv("SAELIB_NOTEBOOKS", str(folder))
    monkeypatch.setenv("EXECUTIONS", str(tmp_path / "executions"))

    def apply(code: str, name: str = "01_x", head: str = HEAD) -> Path:
        (folder / f"{name}.py").write_text(head + code)
        return folder

    return apply


# --- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_are_read_from_the_tagged_cell(write: Write) -> None:
    write("x = 1")
    source = load_notebook("01_x")
    assert source.title == "What is x?"
    expected = {"profile": "smoke", "n": 3, "lr": 1e-3, "tau": None, "quick": False}
    assert source.resolve({}) == expected
    text = {"n": "4", "lr": "2e-4", "tau": "-1.5", "quick": "TRUE", "profile": "mini"}
    assert source.resolve(text) == {"profile": "mini", "n": 4, "lr": 2e-4, "tau": -1.5, "quick": True}
    assert source.resolve({"lr": 1, "tau": "none"}) == expected | {"lr": 1.0}


def test_an_unknown_parameter_is_named_with_its_nearest(write: Write) -> None:
    write("x = 1", head=HEAD.replace("n = 3", "seed = 3"))
    with pytest.raises(
        UserError, match=r"must have the parameter; got 'sede': did you mean 'seed'\? known: profile, seed"
    ):
        load_notebook("01_x").resolve({"sede": "42"})


@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [
        ("n", "four", "int"),
        ("n", "4.5", "int"),
        ("n", 4.5, "int"),
        ("n", True, "int"),
        ("n", None, "int"),
        ("lr", "fast", "float"),
        ("lr", "nan", "float"),
        ("lr", "inf", "float"),
        ("tau", "high", "None or float"),
        ("quick", "yes", "bool"),
        ("quick", 1, "bool"),
        ("profile", 3, "str"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: object, kinds: str, write: Write) -> None:
    write("x = 1")
    with pytest.raises(UserError, match=rf"parameter '{name}' must be {kinds}; got {re.escape(repr(value))}"):
        load_notebook("01_x").resolve({name: value})


def test_an_unknown_notebook_lists_the_names(write: Write) -> None:
    write("x = 1", name="01_narrow_sae")
    write("x = 1", name="02_choose_parent")
    with pytest.raises(
        UserError, match=r"got '01_narow_sae': did you mean '01_narrow_sae'\? known: 01_narrow_sae, 02_ch"
    ):
        load_notebook("01_narow_sae")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HEAD.replace(' tags=["parameters"]', ""), "one cell tagged parameters; got 0"),
        (HEAD + '\n# %% tags=["parameters"]\ny = 2\n', "one cell tagged parameters; got 2"),
        (HEAD.replace("n = 3", "n = [3]"), r"plain scalar; got 'n = \[3\]'"),
        (HEAD.replace("n = 3", "import os"), "only `name = scalar` lines; got 'import os'"),
    ],
)
def test_a_notebook_without_usable_parameters_is_refused(head: str, message: str, write: Write) -> None:
    write("x = 1", head=head)
    with pytest.raises(UserError, match=message):
        run_notebook("01_x", {})


# --- keys ------------------------------------------------------------------------------------------------------------


def test_the_key_follows_everything_that_determines_the_result(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("x = 1")
    source = load_notebook("01_x")
    default = source.resolve({})
    key = notebook_key(source, default)
    assert notebook_key(load_notebook("01_x"), source.resolve({"n": "3"})) == key
    write("x = 2")
    others = [
        notebook_key(load_notebook("01_x"), default),
        notebook_key(source, source.resolve({"n": 4})),
        notebook_key(source, default, {"upstream": ["other"]}),
    ]
    monkeypatch.setattr("saelib.report.notebook_runner.code_fingerprint", lambda text: "other code")
    others.append(notebook_key(source, default))
    assert len({key, *others}) == 5


def test_what_is_left_out_of_the_code_fingerprint_exists() -> None:
    modules = {path.stem for path in Path(saelib.__file__).parent.rglob("*.py")}
    assert modules >= _NOT_PART_OF_RESULTS


def test_comments_and_docstrings_do_not_change_the_code_fingerprint(tmp_path: Path) -> None:
    def fingerprint(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return source_hash([tmp_path / name])

    code = 'def f():\n    """Old."""\n    return 1\n'
    before = fingerprint("step.py", code)
    assert fingerprint("step.py", "# why\n" + code.replace("Old", "New")) == before
    assert fingerprint("step.py", code.replace("1", "2")) != before


def test_a_notebook_s_key_follows_its_own_imports_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "saelib"
    texts = {
        "__init__": "_HOMES = {'load': 'saelib.sae.load'}",
        "sae/__init__": "",
        "sae/load": "def load():\n    from saelib.sae import step\n    return step",
        "sae/step": "rate = 1",
        "report/charts": "width = 2",
        "report/jobs": "import saelib.report.charts",
        "study/plan": "TARGET = 'saelib.study.work:run'",
        "study/work": "from saelib.sae.step import rate",
    }
    for name, text in texts.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def reached(source: str) -> set[str]:
        files = imported(source, {"jobs"}, package)
        return {path.relative_to(package).with_suffix("").as_posix() for path in files}

    assert reached("from saelib.sae.load import load") == {"sae/load", "sae/step"}  # in functions, too
    assert reached("import saelib\nimport numpy") == {"__init__", "sae/load", "sae/step"}  # loaded when first used
    assert reached("from saelib.study import plan") == {"study/plan", "study/work", "sae/step"}  # a target in a string
    assert reached("from saelib.report import jobs, charts") == {"report/charts"}  # left out, and not followed
    assert reached("from saelib.sae import nothing") == {"sae/__init__"}


def test_a_change_in_a_chart_runs_no_training_again_and_one_in_the_step_does() -> None:
    def reached(name: str) -> set[str]:
        return {path.stem for path in imported(load_notebook(name).text, _NOT_PART_OF_RESULTS)}

    training, bench_page = reached("04_training_run"), {"bench_page", "bench_charts", "claim_views", "circuits"}
    assert {"step", "sparse_step", "train", "store", "separation", "views"} <= training
    assert not bench_page & training
    assert "circuits" in reached("15_circuits")


def test_what_a_notebook_imports_is_what_its_key_follows() -> None:
    text = load_notebook("09_split_page").text
    program = "\n".join(line for line in text.splitlines() if line.startswith(("from ", "import ")))
    program += "\nimport sys\nfor name in sys.modules.copy(): print(getattr(sys.modules[name], '__file__', None))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {Path(line) for line in run.stdout.splitlines() if line.startswith(str(Path(saelib.__file__).parent))}
    left_out = {path for path in loaded if path.stem in {*_NOT_PART_OF_RESULTS, "__init__"}}
    followed = set(imported(text, _NOT_PART_OF_RESULTS))
    only_for_left_out = {"notebook_body", "tables", "display"}  # what they load shows, too
    assert {path.stem for path in loaded - left_out - followed} <= only_for_left_out


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_finished_notebook_is_kept_and_not_run_again(
    write: Write, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(RECORD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    done = run_notebook("01_x", {"n": "5"})
    assert done.result["headline"] == {"square": 25}
    assert done.result["parameters"] == {"profile": "smoke", "n": 5, "lr": 1e-3, "tau": None, "quick": False}
    assert done.result["title"] == "What is x?"
    assert done.path.is_file()
    again = run_notebook("01_x", {"n": 5})
    assert again == done
    executions = Path(os.environ["EXECUTIONS"]).read_text().splitlines()
    assert len(executions) == 1
    assert not Path(executions[0]).exists()  # it ran in a throwaway folder
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in (empty_cache / "notebooks").iterdir() if not path.name.startswith(".")] == [done.key]

    (done.path.parent / "result.json").write_text("{")
    assert cached_notebook(done.key) is None  # damaged: to be made again


def test_a_failing_cell_keeps_the_notebook_as_far_as_it_got(write: Write) -> None:
    write("print('reached')\n\n# %%\n1 / 0\n\n# %%\nprint('not reached')")
    with pytest.raises(NotebookFailed, match="notebook 01_x failed: ZeroDivisionError: division by zero") as caught:
        run_notebook("01_x", {})
    assert str(caught.value.path) in str(caught.value)
    outputs = json.dumps([cell.get("outputs") for cell in json.loads(caught.value.path.read_text())["cells"]])
    assert "reached" in outputs
    assert "not reached" not in outputs


def test_a_user_error_in_a_cell_is_the_user_error_of_the_run(write: Write, empty_cache: Path) -> None:
    write(
        'from saelib.base.errors import UserError\nraise UserError("feature must be in [0, 512)", 4096, "pass another")'
    )
    with pytest.raises(UserError, match=r"^feature must be in \[0, 512\); got 4096: pass another$"):
        run_notebook("01_x", {})
    assert not list((empty_cache / "notebooks").glob("*.partial.ipynb"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_or_read_only_disk_in_a_cell_is_a_user_error(number: int, tmp_path: Path) -> None:
    failure = _translated("OSError", str(OSError(number, os.strerror(number))), tmp_path / "x")
    assert isinstance(failure, UserError)
    assert "SAELIB_CACHE" in str(failure)
    assert _translated("OSError", str(OSError(errno.ENOENT, "No such file")), tmp_path / "x") is None
    assert _translated("ValueError", "bad", tmp_path / "x") is None


def test_a_cache_folder_that_is_a_file_is_a_user_error(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(RECORD)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cache folder must be a folder"):
        run_notebook("01_x", {})


# --- processes -------------------------------------------------------------------------------------------------------

FUNCTIONS = """\
import os, time
from saelib.base.errors import UserError
from saelib.base.progress import report_progress

def threads(seconds):
    begin = time.time()
    report_progress("steps", 1, 2)
    time.sleep(seconds)
    return {"threads": [os.environ[n] for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")], "from": begin, "to": time.time()}

def sleep(path):
    open(path, "w").write(str(os.getpid()))
    time.sleep(600)

def talk(size):
    return "x" * size

def refuse(): raise UserError("disk must have room", "0 bytes", "free some")
def fail(): raise KeyError("x")
def die(): os.kill(os.getpid(), 9)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)


def gone(pid: int, within: float = 20.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def wait_for(path: Path, within: float = 120.0) -> str:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.usefixtures("functions")
def test_jobs_run_side_by_side_each_with_its_threads(capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory(interval=0.1)
    jobs = [Job(f"job {n}", "job_functions:threads", {"seconds": 1.0}, threads=n) for n in (1, 3)]
    one, three = run_jobs(jobs, width=2, display=Display(line_interval=0.2), memory=memory)
    assert (one["threads"], three["threads"]) == (["1", "1"], ["3", "3"])
    assert max(one["from"], three["from"]) < min(one["to"], three["to"])
    assert memory.peak_bytes > memory.peak_private_bytes * 0.9 > 10e6
    printed = capsys.readouterr().out
    assert "job 1: started" in printed
    assert "job 3: steps 1/2 (50%)" in printed
    assert "job 3: finished in 0:0" in printed


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("functions")
def test_an_answer_may_be_larger_than_a_pipe_holds() -> None:
    (answer,) = run_jobs([Job("long", "job_functions:talk", {"size": 1_000_000}, threads=1)])
    assert answer == "x" * 1_000_000


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("refuse", UserError, "disk must have room; got 0 bytes: free some"),
        ("fail", JobFailed, "bad failed: KeyError: 'x'"),
        ("die", JobFailed, r"bad ended without a result \(exit code -9\)"),
    ],
)
def test_the_first_failure_ends_the_other_jobs(
    function: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    jobs = [
        Job("other", "job_functions:sleep", {"path": str(tmp_path / "pid")}),
        Job("first", "job_functions:threads", {"seconds": 1.5}),
        Job("bad", f"job_functions:{function}", {}),
    ]
    with pytest.raises(kind, match=message):
        run_jobs(jobs, width=2)
    assert gone(int(wait_for(tmp_path / "pid")))


KEEP_GOING = """\
import os, time
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {os.getppid()}\\n")
time.sleep(600)
"""


def test_kill_9_of_the_caller_takes_child_and_kernel_with_it(write: Write, tmp_path: Path) -> None:
    write(KEEP_GOING)
    arguments = {"name": "01_x", "parameters": {}}
    script = f"from saelib.report.jobs import *\nrun_jobs([Job('x', 'saelib.report.jobs:execute_notebook_job', {arguments})])"
    environment = os.environ | {"PIDS": str(tmp_path / "pids")}
    caller = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.DEVNULL)
    try:
        kernel, child = (int(pid) for pid in wait_for(tmp_path / "pids").split())
        assert psutil.Process(child).ppid() == caller.pid
    finally:
        os.kill(caller.pid, signal.SIGKILL)
        caller.wait()
    assert gone(kernel)
    assert gone(child)


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_is_written_only_when_asked_and_survives_a_bad_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAELIB_PROGRESS", raising=False)
    report_progress("steps", 1, 10)
    monkeypatch.setenv("SAELIB_PROGRESS", str(tmp_path / "no" / "folder"))
    report_progress("steps", 1, 10)
    path = tmp_path / "progress.json"
    monkeypatch.setenv("SAELIB_PROGRESS", str(path))
    for done in range(11):
        report_progress("tokens", done, 10)
    state = read_progress(path)
    assert state is not None
    assert (state["label"], state["first_done"], state["done"]) == ("tokens", 0, 10)
    assert [entry.name for entry in tmp_path.iterdir()] == ["progress.json"]


@pytest.mark.parametrize(("attended", "seconds"), [(True, 0.6), (False, 0.6), (True, 0.0)])
def test_a_bar_shows_under_a_long_cell_that_a_person_runs(
    attended: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real kernel: one bar whose label follows the work, gone with the cell; none under papermill or in a short cell."""
    from jupyter_client.manager import run_kernel

    monkeypatch.delenv("SAELIB_PROGRESS", raising=False)
    work = (
        "import time\nfrom saelib.base import progress\nprogress._BAR_AFTER, progress._WRITE_INTERVAL = 0.3, 0.0\n"
        f"for label in ('harvest', 'children'):\n    for done in range(5):\n        time.sleep({seconds} / 5)\n"
        "        progress.report_progress(label, done, 4)\n"
    )
    seen: list[str] = []

    def keep(message: dict) -> None:
        if message["msg_type"] == "stream":
            seen.append(message["content"]["text"])

    with run_kernel() as client:
        for code in (work, "print('after', progress._cell_bar)"):
            reply = client.execute_interactive(code, allow_stdin=attended, output_hook=keep, timeout=60)
            assert reply["content"]["status"] == "ok", reply["content"]
    *bars, after = seen
    assert after.split() == ["after", "None"]
    text = "".join(bars)
    if not (attended and seconds):
        assert text == ""
        return
    assert "harvest:" in text and "children: 100%" in text and "4/4" in text
    assert text.index("harvest:") < text.index("children:") and "\n" not in text  # one line, drawn over itself
    assert text.endswith("\r") and not text.rstrip("\r").split("\r")[-1].strip()  # and wiped


def test_time_left_follows_the_pace_of_this_process_only() -> None:
    now = time.monotonic()
    state = {"label": "steps", "first_done": 900, "first_at": now - 10, "done": 1000, "total": 1200, "at": now}
    assert describe(state) == "steps 1000/1200 (83%), 0:20 left" or describe(state).endswith("0:19 left")
    assert describe(state | {"done": 900}) == "steps 900/1200 (75%)"
    assert (clock(59.9), clock(61), clock(3661)) == ("0:59", "1:01", "1:01:01")
