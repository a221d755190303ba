"""The benchmark on a real Dask cluster of two workers, one of which is killed while it works: the rows of the local run.

Needs the extra `cluster`; `make test-cluster` has it in an environment of its own.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from dask_cluster import Cluster

pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

from saelib.base.errors import UserError
from saelib.bench.known import World
from saelib.bench.parents import Parent, choose_parents
from saelib.bench.run import run_bench
from saelib.bench.suite import BenchConfig, Origin
from saelib.bench.table import ROW, TIMES
from saelib.split.children import ChildrenConfig
from saelib.split.wide import WideConfig

pytestmark = pytest.mark.slow
CONFIG = BenchConfig(
    K=6, seeds=2, least=20, swap=False, children=ChildrenConfig(n_steps=120), wide=WideConfig(n_tokens=10_000)
)
METHODS = ("children-8", "rest", "k-means", "all-data")
ORIGINS = tuple(
    Origin(name, "known", world=World(name, seed=seed, d_in=24, n_background=40, contexts=(200, 120, 120)))
    for seed, name in enumerate(("one", "two", "three"))
)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler with two workers, each with a cache of its own."""
    with Cluster(tmp_path) as found:
        for i in range(2):
            (tmp_path / f"cache-{i}").mkdir()
            found.worker(tmp_path / f"cache-{i}")
        yield found


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_a_cluster_that_loses_a_worker_gives_the_rows_of_the_local_run(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = cluster.workers
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path / "local"))
    (tmp_path / "local").mkdir()
    parents: list[Parent] = [p for origin in ORIGINS for p in choose_parents(origin, CONFIG, 1, 1, jobs=1)]
    local = run_bench(ORIGINS, parents, METHODS, CONFIG, jobs=2)

    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    began = threading.Event()

    def kill_one() -> None:
        """As soon as a piece is there, whichever worker made it."""
        while not began.is_set():
            if any((tmp_path / "other").glob("splitbench/*.json")):
                workers[0].send_signal(signal.SIGKILL)
                began.set()
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    found = run_bench(ORIGINS, parents, METHODS, CONFIG, scheduler=cluster.address)
    assert began.is_set(), "no worker was killed: the run was over before"
    workers[0].wait(timeout=10)
    assert workers[1].poll() is None
    same = [name for name in ROW if name not in TIMES]
    pd.testing.assert_frame_equal(found[same], local[same], check_exact=True)


def test_no_cluster_at_the_address_is_one_line() -> None:
    with pytest.raises(UserError, match=r"a Dask scheduler must answer; got tcp://127.0.0.1:9"):
        list(
            run_bench(
                ORIGINS,
                [choose_parents(ORIGINS[0], CONFIG, 1, 1, jobs=1)[0]],
                ("rest",),
                CONFIG,
                scheduler="tcp://127.0.0.1:9",
            )
        )
