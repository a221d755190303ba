"""A Dask scheduler and its workers on this machine, each a process of its own, so that a worker can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any


class Cluster:
    """A scheduler without workers; `worker()` adds one. All are killed at the end of the `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.contact = folder, folder / "scheduler.json"
        self.log = (folder / "log").open("wb")
        self.workers: list[subprocess.Popen[bytes]] = []
        options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.contact))
        self.scheduler = self._start("dask_scheduler", *options)
        deadline = time.monotonic() + 120
        while not self.contact.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        self.address: str = json.loads(self.contact.read_text())["address"]

    def worker(self, cache: Path) -> subprocess.Popen[bytes]:
        """Start a worker of one thread with a cache folder; it joins when it has loaded."""
        own = self.folder / f"work-{len(self.workers)}"
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(own))
        environment = {"SAELIB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        self.workers.append(self._start("dask_worker", "--scheduler-file", str(self.contact), *options, **environment))
        return self.workers[-1]

    def _start(self, module: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *options]
        streams: Any = {"stdout": self.log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=os.environ | environment, **streams)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        self.log.close()
