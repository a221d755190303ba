"""Each notebook is a py:percent source and an .ipynb made from it; they must not drift apart."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = """\
# %% [markdown]
# # What is x?

# %% tags=["parameters"]
profile = "smoke"

# %%
x = 1

# %%
x = 1
"""


@pytest.fixture(scope="module")
def pairing() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "pair_notebooks.py"
    spec = importlib.util.spec_from_file_location("pair_notebooks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, pairing: ModuleType) -> Path:
    (tmp_path / "01_x.py").write_text(SOURCE)
    (tmp_path / "01_x.ipynb").write_text(pairing.paired_text(tmp_path / "01_x.py"))
    return tmp_path


def test_the_pairs_of_the_repo_agree(pairing: ModuleType, root: Path) -> None:
    assert pairing.differences(root / "notebooks") == []


def test_writing_the_pairs_of_the_repo_again_changes_no_byte(pairing: ModuleType, root: Path) -> None:
    for source in sorted((root / "notebooks").glob("*.py")):
        assert source.with_suffix(".ipynb").read_text(encoding="utf-8") == pairing.paired_text(source), source.name


def test_a_fresh_pair_agrees_and_is_byte_stable(folder: Path, pairing: ModuleType) -> None:
    assert pairing.differences(folder) == []
    text = (folder / "01_x.ipynb").read_text()
    assert pairing.paired_text(folder / "01_x.py") == text
    cells = json.loads(text)["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "code", "code"]
    assert cells[1]["metadata"] == {"tags": ["parameters"]}
    assert len({cell["id"] for cell in cells}) == 4  # two cells are equal


def edit_notebook(change: Callable[[list[dict]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "01_x.ipynb"
        notebook = json.loads(path.read_text())
        change(notebook["cells"])
        path.write_text(json.dumps(notebook))

    return apply


def as_raw(cells: list[dict]) -> None:
    cells[0]["cell_type"] = "raw"


DRIFTS = {
    "source": (lambda folder: (folder / "01_x.py").write_text(SOURCE.replace("x = 1", "x = 2", 1)), "cell 3: source"),
    "tags": (edit_notebook(lambda cells: cells[1]["metadata"].clear()), "cell 2: tags"),
    "type": (edit_notebook(as_raw), "cell 1: type"),
    "cell added": (lambda folder: (folder / "01_x.py").write_text(SOURCE + "\n# %%\ny = 2\n"), "5 cells in the .py"),
    "outputs": (edit_notebook(lambda cells: cells[2].update(execution_count=1)), "holds outputs"),
    "pair missing": (lambda folder: (folder / "01_x.ipynb").unlink(), "01_x.py has no 01_x.ipynb"),
    "source missing": (lambda folder: (folder / "01_x.py").unlink(), "01_x.ipynb has no 01_x.py"),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_is_found(drift: str, folder: Path, pairing: ModuleType) -> None:
    apply, message = DRIFTS[drift]
    apply(folder)
    assert any(message in line for line in pairing.differences(folder)), pairing.differences(folder)
