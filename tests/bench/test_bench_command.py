"""`saelib bench` itself: from the command to rows, leaderboard and page; where rows are made, and a device that is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import saelib.bench.run as run_module
from saelib import cli
from saelib.base.errors import UserError
from saelib.bench.backend import side_by_side
from saelib.bench.known import World
from saelib.bench.parents import Parent, choose_parents, read_parents
from saelib.bench.run import Pieces, run_bench, run_pieces
from saelib.bench.suite import BenchConfig, Origin, read_suite, world_origins
from saelib.bench.table import ROW, read_table, write_table
from saelib.report.bench_page import bench_page
from saelib.report.bench_report import BenchRequest, device_of

pytestmark = pytest.mark.slow

WORLD = World("made-3", d_in=24, n_background=40, contexts=(200, 120, 120))
ORIGIN = Origin(WORLD.name, "known", world=WORLD)
CONFIG = BenchConfig(K=6, seeds=1, least=20, swap=False)
NO_GPU = "device cuda needs a GPU that torch can use; got none "


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def parent(session_cache: Path) -> Parent:
    return choose_parents(ORIGIN, CONFIG, 1, 1)[0]


@pytest.fixture(scope="module")
def rows(parent: Parent) -> pd.DataFrame:
    return run_bench([ORIGIN], [parent], ("rest",), CONFIG, jobs=1)


def test_the_command_makes_rows_leaderboard_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--quick` on two of its eight worlds."""
    two = tuple(origin for origin in world_origins() if origin.name in ("known-2", "known-none"))
    monkeypatch.setattr("saelib.report.bench_report.world_origins", lambda: two)
    out = tmp_path / "bench"
    asked = ["bench", "--quick", "--jobs", "1", "--out", str(out)]
    assert cli.main([*asked, "--methods", "children-8,rest"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"open {out / 'index.html'}"
    assert [p.parent for p in read_parents(out / "parents.csv")] == ["known-2:5", "known-none:5"]
    made = read_table(out / "splitbench.csv")
    assert list(zip(made["parent"], made["method"], strict=True)) == [
        (parent, method) for parent in ("known-2:5", "known-none:5") for method in ("children-8", "rest")
    ]
    assert made["reason"].isna().all() and (made["device"] == "cpu").all()
    there = made.set_index(["parent", "method"])
    assert there.loc[("known-2:5", "children-8"), "S_2"] > there.loc[("known-2:5", "rest"), "S_2"] + 0.1
    board = pd.read_csv(out / "leaderboard.csv").set_index("method")  # an impostor is in no mean
    assert board["parents"].to_dict() == {"children-8": 1, "rest": 1}
    assert board.loc["children-8", "S_2"] == pytest.approx(there.loc[("known-2:5", "children-8"), "S_2"], abs=1e-5)
    record = json.loads((out / "index.json").read_text())
    assert record["ours"] == "children-8" and record["parents"]["known"] == 2
    assert record["rows_by_device"] == {"cpu": 4}
    page = (out / "index.html").read_text()
    assert f"{board.loc['children-8', 'S_2']:.2f}" in page and "<summary>known-2:5: 2 contexts</summary>" in page
    assert "made on a GPU" not in page
    # Another method joins the table; what is there is not made again.
    assert cli.main([*asked, "--methods", "quantiles"]) == 0
    again = read_table(out / "splitbench.csv")
    pd.testing.assert_frame_equal(again[again["method"] != "quantiles"].reset_index(drop=True), made)
    assert len(again) == 6


# --- the device -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [("cuda", NO_GPU), ("tpu", "device must be one of auto, cpu, cuda; got 'tpu'")],
)
def test_a_device_that_is_not_there_is_one_line(
    asked: str, message: str, no_gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--quick", "--device", asked, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*")), "refused before anything is chosen"


def test_a_worker_without_the_device_says_so_and_keeps_nothing(no_gpu: None, parent: Parent, empty_cache: Path) -> None:
    on_gpu = replace(CONFIG, device="cuda")
    with pytest.raises(UserError, match=NO_GPU):
        run_bench([ORIGIN], [parent], ("rest",), on_gpu, jobs=1)
    assert not list(empty_cache.glob("splitbench/*.json"))
    work = [Pieces(ORIGIN, parent, ("rest",), on_gpu)]
    if not torch.cuda.device_count():  # a process of its own looks for itself
        with pytest.raises(UserError, match=NO_GPU):
            list(side_by_side(run_pieces, [*work, *work], jobs=2))


def test_auto_is_settled_once_and_a_cluster_speaks_for_its_workers(no_gpu: None, tmp_path: Path) -> None:
    request = BenchRequest(tmp_path, device="auto")
    assert device_of(request) == device_of(BenchRequest(tmp_path)) == "cpu"
    cluster = BenchRequest(tmp_path, scheduler="tcp://host:8786", device="cuda")
    assert device_of(cluster) == "cuda" and device_of(replace(cluster, device="auto")) == "cpu"
    with pytest.raises(UserError, match=NO_GPU):
        device_of(replace(cluster, scheduler=None))
    with pytest.raises(UserError, match="device of a benchmark must be cpu or cuda; got 'auto'"):
        BenchConfig(device="auto")
    (tmp_path / "suite.json").write_text(
        json.dumps({"saes": [{"name": "a", "side": "dev", "folder": "x", "device": "cuda"}]})
    )
    with pytest.raises(UserError, match="got device"):
        read_suite(tmp_path / "suite.json")


def test_a_piece_of_a_gpu_is_kept_apart_and_the_processor_is_not_named(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, Any]] = []
    monkeypatch.setattr(run_module, "content_key", lambda **facts: seen.append(facts) or str(len(seen)))
    for device in ("cpu", "cuda"):
        run_module._Bench(Pieces(ORIGIN, parent, ("rest",), replace(CONFIG, device=device))).key("rest")
    on_cpu, on_gpu = seen
    assert "device" not in on_cpu and "device" not in on_cpu["sizes"]
    assert on_gpu == {**on_cpu, "device": "cuda"}


def test_a_table_says_where_its_rows_were_made(rows: pd.DataFrame, tmp_path: Path) -> None:
    path = write_table(rows, tmp_path / "splitbench.csv")
    assert read_table(path)["device"].tolist() == ["cpu"]
    rows.drop(columns="device").to_csv(path, index=False)  # as tables were before there was a choice
    old = read_table(path)
    assert list(old.columns) == [*ROW] and old["device"].tolist() == ["cpu"]
    both = pd.concat([rows, rows.assign(method="children-8", kind="local", device="cuda")])
    page = bench_page(both)
    assert page.record["rows_by_device"] == {"cpu": 1, "cuda": 1} and page.context["on_gpu"] == 1
    assert "1 rows were made on a GPU" in page.data()["html"]
