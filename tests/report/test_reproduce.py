"""The study's order, and that what is finished survives kill -9: on notebooks that compute nothing, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saelib.report.reproduce import cores
from saelib.report.run_record import keep_record

# Seconds each on an idle machine. The limits are for a machine that is busy with something else.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEAD = """\
# %% [markdown]
# # {title}

# %% tags=["parameters"]
profile = "smoke"

# %%
import os
from IPython.display import display
with open(os.environ["EXECUTIONS"], "a") as file:
    print("{name}", os.environ["OMP_NUM_THREADS"], file=file)
"""
# The training run counts to 40 in a file of its own, and goes on from there: a stand-in for train()'s checkpoints.
TRAINING = """
# %%
import time
from pathlib import Path
from saelib.base.progress import report_progress
checkpoint = Path(os.environ["EXECUTIONS"]).with_name(f"checkpoint-{run}")
begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
for step in range(begin, 40):
    if step == 20 and os.environ.get("FULL"):
        raise OSError(28, "No space left on device")
    if step == 20 and run == 2 and os.environ.get("HOLD"):
        time.sleep(900)
    checkpoint.with_suffix(".tmp").write_text(str(step + 1))
    checkpoint.with_suffix(".tmp").replace(checkpoint)
    report_progress("steps", step + 1, 40)
display({"application/vnd.saelib.headline+json": {"steps": 40 - begin, "seed": run}, "text/plain": ""}, raw=True)
"""
AFTER = ("05_results", "06_training_efficiency", "09_split_page", "11_other_parent")
NAMES = ("01_narrow_sae", "02_choose_parent", "03_filter", "04_training_run", *AFTER)
NOT_ASKED_FOR = ("07_claims", "08_calibration", "13_data_needed", "14_replacing", "15_circuits")
EVERYTHING = {**dict.fromkeys(NAMES, 1), "04_training_run": 2, "prepare": 1, "tables": 1}
DRIVER = Path(__file__).parents[1] / "study_driver.py"


class Study:
    """A folder with notebooks, cache and reports, and the command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "executions"
        (folder / "notebooks").mkdir()
        for name in (*NAMES, *NOT_ASKED_FOR):
            text = HEAD.format(name=name, title=f"What does {name} show?")
            if name == "04_training_run":
                text = text.replace('profile = "smoke"', 'profile = "smoke"\nrun = 1\nseed = -1') + TRAINING
            if name == "11_other_parent":
                text = text.replace('profile = "smoke"', 'profile = "smoke"\nkind = "code"')
            (folder / "notebooks" / f"{name}.py").write_text(text)
        (folder / "fake_study.py").write_text(
            "import os\ndef prepare(profile):\n    print('prepare', profile, file=open(os.environ['EXECUTIONS'], 'a'))\n"
            "    return {'text': 1.0, 'harvest': 2.0}\n"
            "def tables(profile, runs, whole, claims):\n"
            "    print('tables', whole, file=open(os.environ['EXECUTIONS'], 'a'))\n"
            "    return {'runs': [{'run': run, 'seed': run} for run in runs]}\n"
        )
        self.environment = os.environ | {
            "SAELIB_CACHE": str(folder / "cache"),
            "SAELIB_NOTEBOOKS": str(folder / "notebooks"),
            "EXECUTIONS": str(self.log),
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(DRIVER), *arguments, "--reports", str(self.folder / "reports")]
        return subprocess.Popen(
            command, env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    def executed(self) -> Counter[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(line.split()[0] for line in lines)

    def wait_until_held(self, process: subprocess.Popen[str], *files: Path) -> None:
        """Until run 2 has stopped after its 20th step, and `files` are there."""
        checkpoint = self.folder / "checkpoint-2"
        deadline = time.monotonic() + 400
        while not (checkpoint.exists() and checkpoint.read_text() == "20" and all(file.exists() for file in files)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "run 2 did not get going"
            time.sleep(0.02)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_kill_9_in_a_run_then_the_same_command_finishes_without_doing_anything_twice(study: Study) -> None:
    command = ("reproduce", "--profile", "smoke", "--jobs", "2")
    pages = study.folder / "reports" / "smoke"
    first = study.start(*command, HOLD="1")
    study.wait_until_held(first, pages / "run-01.json")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = study.executed()
    assert before == {"prepare": 1, "01_narrow_sae": 1, "02_choose_parent": 1, "03_filter": 1, "04_training_run": 2}

    code, out, err = study.run(*command)
    assert (code, err) == (0, "")
    again = study.executed() - before
    assert again == {"prepare": 1, "04_training_run": 1, **dict.fromkeys(AFTER, 1), "tables": 1}
    assert json.loads((pages / "run-01.json").read_text())["headline"]["steps"] == 40
    assert json.loads((pages / "run-02.json").read_text())["headline"]["steps"] == 20  # it went on from its checkpoint
    assert "04_training_run run 1: already finished" in out
    assert "04_training_run run 2: started" in out
    assert f"open {pages / 'index.html'}" in out

    table = pd.read_csv(pages / "results.csv")
    assert list(table["run"]) == [1, 2]
    assert list(table["seed"]) == [1, 2]
    names = {
        "01_narrow_sae",
        "02_choose_parent",
        "03_filter",
        "run-01",
        "run-02",
        *AFTER[:-1],
        "11_other_parent-digit",
    }
    assert {path.stem for path in pages.glob("*.html")} == names | {"index"}
    record = json.loads((pages / "run.json").read_text())
    assert "uninterrupted" not in record
    assert record["command"]["peak_memory_bytes"] > 50e6
    assert record["command"]["cache_bytes"] > 10_000

    code, out, err = study.run(*command)
    assert (code, err) == (0, "")
    assert study.executed() == before + again
    assert "9 notebooks, 9 already finished" in out


def test_an_edited_run_is_done_again_with_what_is_built_on_it_and_nothing_else(study: Study) -> None:
    command = ("reproduce", "--profile", "smoke", "--jobs", "2")
    code, out, err = study.run(*command)
    assert (code, err) == (0, "")
    assert study.executed() == EVERYTHING
    told = [line.partition("] ")[2] for line in out.splitlines()]
    assert told.index("06_training_efficiency: started") == told.index("05_results: started") + 1  # side by side
    threads = dict(line.split() for line in study.log.read_text().splitlines() if not line.startswith("prepare"))
    assert threads["04_training_run"] == "1"
    assert threads["01_narrow_sae"] == str(cores()) and threads["05_results"] == str(max(1, cores() // 2))
    record = json.loads((study.folder / "reports/smoke/run.json").read_text())
    assert record["uninterrupted"]["executed"] == list(record["keys"])
    work, seconds = record["uninterrupted"]["work_seconds"], record["seconds"]
    assert (work["text"], work["harvest"], work["training"]) == (1.0, 2.0, 0.0) and work["rendering"] > 0
    notebooks = sum(seconds[label] for label in record["keys"])
    assert work["narrow SAE"] + work["scores and figures"] == pytest.approx(notebooks, abs=0.5)

    study.log.unlink()
    source = study.folder / "notebooks" / "03_filter.py"
    source.write_text(source.read_text() + "\n# %%\n1 + 1\n")
    code, _, err = study.run(*command)
    assert (code, err) == (0, "")
    assert study.executed() == {
        "prepare": 1,
        "03_filter": 1,
        **dict.fromkeys(AFTER[:-1], 1),
        "tables": 1,
    }  # 11 builds on 01 alone


def test_one_run_takes_only_what_it_needs(study: Study) -> None:
    code, out, err = study.run("reproduce", "--profile", "smoke", "--run", "2")
    assert (code, err) == (0, "")
    once = ("prepare", "01_narrow_sae", "02_choose_parent", "04_training_run", "tables")
    assert study.executed() == dict.fromkeys(once, 1)
    assert f"open {study.folder / 'reports/smoke/run-02.html'}" in out
    assert not (study.folder / "reports/smoke/index.html").exists()
    # a run of one's own is kept apart from the study's
    code, out, _ = study.run("notebook", "04_training_run", "--profile", "smoke", "-p", "run", "2", "-p", "seed", "7")
    assert code == 0
    assert {path.name.rpartition("-")[0] for path in (study.folder / "reports/smoke").glob("run-02-*.html")} == {
        "run-02"
    }


def test_ctrl_c_says_one_line_and_exits_130(study: Study) -> None:
    process = study.start("reproduce", "--profile", "smoke", "--run", "2", HOLD="1")
    study.wait_until_held(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "interrupted: what is finished is kept; the same command goes on from there"


def test_a_disk_that_fills_up_in_a_run_is_one_line_and_exit_2(study: Study) -> None:
    code, _, err = study.run("notebook", "04_training_run", "--profile", "smoke", "-p", "run", "1", FULL="1")
    assert code == 2
    assert err.startswith("error: disk must have room for what is written; got ")
    assert err.count("\n") == 1


def test_a_failing_cell_is_exit_1_with_the_partial_notebook(study: Study) -> None:
    source = study.folder / "notebooks" / "03_filter.py"
    source.write_text(source.read_text() + "\n# %%\n1 / 0\n")
    code, _, err = study.run("notebook", "03_filter", "--profile", "smoke")
    assert code == 1
    assert err.startswith("error: notebook 03_filter failed: ZeroDivisionError: division by zero; as far as it got: ")
    assert err.count("\n") == 1
    assert Path(err.strip().rpartition(" ")[2]).is_file()


def test_the_time_of_the_whole_study_stays_while_its_notebooks_stay(tmp_path: Path) -> None:
    def told(keys: dict[str, str], executed: list[str], found_work: bool = True) -> dict[str, Any]:
        record = {
            "keys": keys,
            "command": {"executed": executed, "found_work": found_work, "wall_seconds": len(executed)},
        }
        keep_record(tmp_path / "run.json", record)
        return dict(json.loads((tmp_path / "run.json").read_text()))

    study = {"01": "a", "02": "b"}
    assert "uninterrupted" not in told(study, ["01", "02"])  # from a cache that was not empty
    whole = told(study, ["01", "02"], found_work=False)["uninterrupted"]
    assert whole["wall_seconds"] == 2
    assert told(study | {"07": "c"}, ["07"])["uninterrupted"] == whole  # something beside the study was added
    assert "uninterrupted" not in told({"01": "a", "02": "changed"}, ["02"])
    assert "uninterrupted" not in told(study, [])
