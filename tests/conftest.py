"""What holds for every test: shapes and types checked at run time, a cache of its own, few threads, one style of figure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before the first import of saelib: every annotated function is checked on every call, in tests only.
# SAELIB_TEST_UNCHECKED=1 switches it off, to tell a failure of a check from a failure of the code.
if "SAELIB_TEST_UNCHECKED" not in os.environ:
    from jaxtyping import install_import_hook

    assert "saelib" not in sys.modules, "saelib was imported before its type checks were installed"
    install_import_hook("saelib", "beartype.beartype")

# Before the first import of matplotlib and torch, and inherited by the kernels that tests start. Workers of pytest-xdist,
# two of them in `make test`, share the cores.
os.environ["MPLBACKEND"] = "Agg"
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model hub is never needed, and asking one costs 20 s of retries

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest goes first, so that one worker has it while the other does the rest."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of the whole session: a fresh one, or SAELIB_TEST_CACHE to reuse what an earlier session made."""
    kept = os.environ.get("SAELIB_TEST_CACHE")
    folder = Path(kept).expanduser().absolute() if kept else tmp_path_factory.mktemp("cache")
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("SAELIB_CACHE")
    os.environ["SAELIB_CACHE"] = str(folder)
    yield folder
    if before is None:
        os.environ.pop("SAELIB_CACHE", None)
    else:
        os.environ["SAELIB_CACHE"] = before


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for one test alone."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("SAELIB_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded stream of random numbers for one test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def study_text(session_cache: Path) -> list[np.ndarray]:
    """The contexts of the smoke profile's train, select and test splits: real text, downloaded once a session."""
    from saelib.study import study
    from saelib.study.profiles import get_profile

    store = study.tokens(get_profile("smoke"))
    return [np.asarray(store.contexts(split)) for split in ("train", "select", "test")]
