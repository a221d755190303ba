"""Work side by side through joblib: processes of this machine, or a Dask cluster. No scheduler, queue or retry of our own.

A worker of a cluster that is lost is the cluster's business: Dask gives its work to another, and since what a piece makes is kept
and depends on nothing but its input, it is the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import joblib
from threadpoolctl import threadpool_limits

from saelib.base import threads
from saelib.base.errors import UserError
from saelib.base.memory import give_back_freed_memory
from saelib.base.progress import PROGRESS_ENV

Given = TypeVar("Given")
Made = TypeVar("Made")


def side_by_side(
    function: Callable[[Given], Made], work: Sequence[Given], jobs: int | None = None, scheduler: str | None = None
) -> Iterator[tuple[int, Made]]:
    """`(place in work, function(work[place]))`, as they get done.

    Args:
        jobs: processes on this machine; None as many as there are cores.
        scheduler: address of a Dask scheduler, `tcp://host:8786`, in place of local processes.

    Raises:
        UserError: the extra `cluster` is not installed, or nothing answers at that address; and what `function` raises.
    """
    with _backend(jobs, scheduler):
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
        yield from parallel(joblib.delayed(_numbered)(function, i, given) for i, given in enumerate(work))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread in every library that computes, so that a piece's numbers do not depend on where it runs."""
    with threads.one_thread(), threadpool_limits(1):
        yield


def _numbered(function: Callable[[Given], Made], i: int, given: Given) -> tuple[int, Made]:
    """One piece. It keeps its own progress to itself: who waits for all pieces counts them."""
    file = os.environ.pop(PROGRESS_ENV, None)
    try:
        return i, function(given)
    finally:
        give_back_freed_memory()  # joblib takes a worker whose memory has grown for one that leaks, and starts another
        if file is not None:
            os.environ[PROGRESS_ENV] = file


@contextlib.contextmanager
def _backend(jobs: int | None, scheduler: str | None) -> Iterator[None]:
    if scheduler is None:
        with joblib.parallel_config(backend="loky", n_jobs=jobs or os.cpu_count() or 1, inner_max_num_threads=1):
            yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        rule = "a scheduler needs the extra `cluster`"
        raise UserError(rule, scheduler, 'pip install "saelib[cluster]"') from error
    try:
        client = Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(
            "a Dask scheduler must answer", f"{scheduler} ({error})", "start one: dask scheduler"
        ) from error
    with client, joblib.parallel_config(backend="dask", client=client):
        yield
