"""The real command on real text with the real model, at profile `smoke`: every notebook, resuming, kill -9, bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from saelib.acts.activations import text_store
from saelib.base.table import meanings
from saelib.lm.model import load_embedded
from saelib.report.index_page import TABLES
from saelib.report.left_open import left_open
from saelib.report.page import outside_references
from saelib.report.side_work import LEFT_OPEN
from saelib.sae.load import load_sae
from saelib.split.verdict import Verdict
from saelib.study.claims import CLAIMS
from saelib.study.runs import ARMS, RUNS

SAELIB = Path(sys.executable).parent / "saelib"
OUTSIDE = re.compile(
    r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(\s*["']?(?:https?:)?//|\bfetch\(["']http"""
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the smoke study: four minutes alone on two cores


def saelib(*arguments: str | Path, cache: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environment | ({"SAELIB_CACHE": str(cache)} if cache else {})
    command = [str(SAELIB), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Path:
    """The whole smoke study, once a session."""
    folder = tmp_path_factory.mktemp("reports")
    done = saelib("reproduce", "--profile", "smoke", "--claims", "--reports", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"open {folder / 'smoke' / 'index.html'}" in done.stdout
    return folder / "smoke"


def test_every_table_is_a_csv_with_every_documented_column(reports: Path) -> None:
    tables = {name: pd.read_csv(reports / file) for name, (file, _) in TABLES.items()}
    assert {name: list(frame.columns) for name, frame in tables.items()} == {
        name: list(meanings(table)) for name, (_, table) in TABLES.items()
    }
    runs = tables["runs"]
    assert runs["run"].tolist() == [spec.run for spec in RUNS] == list(range(1, 16))
    assert runs[["mcc_2_number", "mcc_2_count", "ceiling_count", "floor_count"]].notna().all().all()
    assert (
        runs[["verdict", "prompts", "tokens", "l0", "fvu", "loss_recovered", "dead_share", "seconds"]]
        .notna()
        .all()
        .all()
    )
    assert (runs["fvu"] > 0).all() and runs["loss_recovered"].between(-1, 1).all()
    assert set(runs["verdict"]) <= {verdict.value for verdict in Verdict} and runs["prompts"].between(0, 3).all()
    assert runs["published_classes"].isna().tolist() == [False] * 12 + [True] * 3
    children = tables["children"]
    assert children["seed"].tolist() == [0, 0, 1, 1, 2, 2] and children["dictionary"].nunique() == 2
    assert tables["claims"]["claim"].tolist() == [claim.text for claim in CLAIMS]
    assert load_sae(reports / "narrow_sae").cfg.d_sae == 32
    assert set(tables["arms"]["block"]) == {0, 1} and set(tables["arms"]["arm"]) >= {arm.name for arm in ARMS}


def test_the_parent_says_at_the_top_whether_it_is_the_hyphens(reports: Path) -> None:
    headline = json.loads((reports / "02_choose_parent.json").read_text())["headline"]
    page = (reports / "02_choose_parent.html").read_text()
    is_hyphens = min(headline["purity"], headline["recall"]) >= 0.8
    assert headline["answer"].startswith(
        f"Feature {headline['parent']} is" if is_hyphens else "There is no such parent."
    )
    assert page.index(headline["answer"].split(":")[0]) < page.index("Ranking, on the select split")


def test_every_notebook_has_a_page_and_a_record_and_no_page_needs_a_network(reports: Path, root: Path) -> None:
    several = {"00_start_here", "04_training_run", "10_split_any_feature", "11_other_parent", "12_published_sae"}
    several |= set(LEFT_OPEN)  # asked for by name: see below
    names = {path.stem for path in (root / "notebooks").glob("*.py")} - several | {"11_other_parent-digit"}
    names |= {f"run-{spec.run:02d}" for spec in RUNS} | {"index"}
    assert names <= {path.stem for path in reports.glob("*.html")}
    for name in names - {"index"}:
        record = json.loads((reports / f"{name}.json").read_text())
        assert record["parameters"]["profile"] == "smoke" and record["versions"]["torch"]
        assert record["headline"]["answer"] and record["seeds"]
        manifest = record["text_manifest"]
        assert all(source["hyphens"] >= 0 and len(source["sha256"]) == 64 for source in manifest["sources"])
    for page in [*reports.glob("*.html"), *reports.glob("assets/*.css")]:
        assert not OUTSIDE.search(page.read_text()), page


@pytest.mark.usefixtures("reports")
def test_the_benchmark_of_a_split_prints_one_json_object(root: Path) -> None:
    command = [
        sys.executable,
        root / "benchmarks" / "split.py",
        "--json",
        "--profile",
        "smoke",
        "--rounds",
        "1",
        "--parents",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    spreads = ("seconds_total", "seconds_training", "speedup_vs_wide")
    assert found.keys() == {*spreads, "seconds_per_parent_batched", "separation_children", "separation_wide"}
    for name in spreads:
        assert 0 < found[name]["p25"] <= found[name]["median"] <= found[name]["p75"]
    assert found["seconds_training"]["median"] < found["seconds_total"]["median"]


@pytest.mark.usefixtures("reports")
def test_the_notebooks_that_are_not_in_the_plan(session_cache: Path, tmp_path: Path) -> None:
    narrow = next(session_cache.glob("runs/narrow-*/sae"))
    texts = [" ".join(f"a {w}-way {i} street, in {i % 7} parts." for w in ["two", "long", "3"] * 12) for i in range(90)]
    (tmp_path / "text").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "text" / f"{i}.txt").write_text(text)
    store = text_store(load_embedded(), texts)
    fires = (load_sae(narrow).encode(store.rows(slice(0, 2000))) > 0).float().sum(0)
    parameters = {"sae": narrow, "feature": int(fires.argmax()), "text": tmp_path / "text"}
    options = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    ours, other = ("-p", "K", "8", "-p", "device", "cpu"), ("-p", "K", "8", "-p", "method", "quantiles")
    for name, more in (("10_split_any_feature", ours), ("10_split_any_feature", other), ("00_start_here", ())):
        done = saelib("notebook", name, *options, *more, "--reports", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(tmp_path.rglob(f"{name}*.html"))
    done = saelib("notebook", "11_other_parent", "--profile", "smoke", "-p", "kind", "verb", "--reports", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "kind must be one of digit, code; got 'verb'" in done.stderr
    done = saelib("notebook", "12_published_sae", "--profile", "smoke", "--reports", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SAELIB_RUN_25" in (tmp_path / "smoke" / "12_published_sae.html").read_text()


def test_a_second_command_does_nothing_again(reports: Path) -> None:
    begun = time.monotonic()
    done = saelib("reproduce", "--profile", "smoke", "--reports", reports.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads((reports / "run.json").read_text())["command"]["executed"] == []
    assert time.monotonic() - begun < 60


RUN_7 = ("notebook", "04_training_run", "--profile", "smoke", "-p", "run", "7", "-p", "n_steps", "1500")


def copied_cache(cache: Path, to: Path) -> Path:
    """A cache from which run 7 has yet to be trained."""
    shutil.copytree(cache, to, ignore=shutil.ignore_patterns("notebooks", "run-*"))
    return to


@pytest.fixture(scope="session")
def killed(reports: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose run 7 was ended by kill -9 after two checkpoints."""
    cache = copied_cache(session_cache, tmp_path_factory.mktemp("killed") / "cache")
    process = subprocess.Popen(
        [str(SAELIB), *RUN_7, "--reports", str(cache.parent)],
        env=os.environ | {"SAELIB_CACHE": str(cache)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while len(list(cache.glob("runs/run-07-*/checkpoints/*.safetensors"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(cache.glob("runs/run-07-*/summary.json")), "killed in the middle"
    time.sleep(3)  # the kernel notices that its parent is gone
    return cache


def test_kill_9_in_training_run_7_then_resume_gives_the_same_bits(
    killed: Path, session_cache: Path, tmp_path: Path
) -> None:
    weights = []
    straight = copied_cache(session_cache, tmp_path / "straight")
    resumed = tmp_path / "resumed"
    shutil.copytree(killed, resumed)
    for cache in (straight, resumed):
        done = saelib(*RUN_7, "--reports", tmp_path / f"{cache.name}-reports", cache=cache)
        assert done.returncode == 0, done.stderr
        record = json.loads(next(tmp_path.glob(f"{cache.name}-reports/smoke/run-07*.json")).read_text())
        weights.append(record["headline"]["weights"])
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "sede", "42"], r"sede.*seed"),
        (["-p", "run", "99"], r"run must be .*99"),
        (["-p", "n_steps", "0", "-p", "seed", "-1"], r"n_steps must be at least 1; got 0"),
        (["-p", "feature", "4096"], r"feature must be in \[0, d_sae=32\); got 4096: pass a feature of the narrow SAE"),
        (["-p", "tau", "1000000.0"], r"the filter must keep at least one token.*lower tau"),
        (["-p", "filter_by", "document"], r"filter must be one of none, context, token"),
    ],
)
def test_bad_input_to_a_run_is_one_line_and_exit_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = saelib("notebook", "04_training_run", "--profile", "smoke", *arguments, "--reports", tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 1 and re.search(message, errors[0]), done.stderr
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize("name", LEFT_OPEN)
def test_what_the_post_left_open_is_a_page_with_an_answer_and_its_table(
    reports: Path, tmp_path: Path, name: str
) -> None:
    """After the study, into a folder of its own that holds its index: the session's pages stay as they are."""
    (tmp_path / "smoke").mkdir()
    shutil.copy(reports / "index.html", tmp_path / "smoke")
    done = saelib("reproduce", "--profile", "smoke", "--notebook", name, "--reports", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "smoke" / f"{name}.json").read_text())
    answers = {one.page: one.answer for one in left_open(tmp_path / "smoke")}
    assert answers[f"{name}.html"] == record["headline"]["answer"]  # the same sentence, read back from the CSV
    assert f'<dt><a href="{name}.html">' in (tmp_path / "smoke" / "index.html").read_text()
    assert not outside_references((tmp_path / "smoke" / f"{name}.html").read_text())


def test_damaged_checkpoints_are_named(killed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(killed, cache)
    for path in cache.glob("runs/run-07-*/checkpoints/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-64])
    done = saelib(*RUN_7, "--reports", tmp_path / "r", cache=cache)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "checkpoint" in done.stderr and str(cache) in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_missing_text_without_a_network_is_one_line_and_nothing_half_written(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = saelib("reproduce", "--profile", "smoke", "--reports", tmp_path / "r", cache=cache, **nowhere)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 1 and "must be reachable through pip" in errors[0] and "archives" in errors[0]
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
