"""Write `requirements.lock` and `environment.yml` from `pyproject.toml` and what is installed here.

The lock holds every package that saelib needs, with all extras but those of `ELSEWHERE`, at the version this environment runs;
anything else that happens to be installed is left out. Run it with `make lock`, in the environment in which the tests pass.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent

LOCK_HEADER = """\
# Written by scripts/pin.py (`make lock`): the versions that `make` installs, for Python {python}.
# torch is pinned to one exact release and installed before the rest: a bare or wider request lets pip choose a build
# with gigabytes of GPU libraries. A GPU build of the same release serves as well if it is already there.
"""

ENVIRONMENT = """\
# Written by scripts/pin.py (`make lock`) from pyproject.toml, which is the one source of versions.
name: {name}
channels:
  - conda-forge
dependencies:
  - python{python}
  - pip
  - pip:
      - -c requirements.lock
      - {torch}
      - -e .[dev]
"""


def read_pyproject(root: Path = ROOT) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


ELSEWHERE = ("cluster", "peers", "saelens")
"""Extras that live in an environment of their own: what they need is not tested in this one."""


def declared(pyproject: dict[str, Any]) -> list[Requirement]:
    """Every requirement of the project, extras included unless they live elsewhere."""
    project = pyproject["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ELSEWHERE}
    lines = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    return [Requirement(line) for line in lines]


def installed_closure(requirements: list[Requirement]) -> dict[str, str]:
    """Name -> public version of everything the requirements lead to in this environment."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        wanted = {(name, each) for each in ("", *requirement.extras)} - seen
        if not wanted:
            continue
        seen |= wanted
        distribution = metadata.distribution(name)
        versions[name] = Version(distribution.version).public  # "2.13.0+cpu" -> "2.13.0"
        for line in distribution.requires or []:
            todo.extend((Requirement(line), each) for _, each in wanted)
    return versions


def environment_yml(pyproject: dict[str, Any], lock: str) -> str:
    """The conda environment file that says the same as `pyproject.toml`."""
    torch = re.search(r"^torch==\S+", lock, re.MULTILINE)
    assert torch is not None, "the lock always pins torch"
    project = pyproject["project"]
    return ENVIRONMENT.format(name=project["name"], python=project["requires-python"], torch=torch.group())


def main() -> None:
    pyproject = read_pyproject()
    versions = installed_closure(declared(pyproject))
    python = pyproject["project"]["requires-python"]
    lock = LOCK_HEADER.format(python=python) + "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))
    (ROOT / "requirements.lock").write_text(lock)
    (ROOT / "environment.yml").write_text(environment_yml(pyproject, lock))
    print(f"requirements.lock: {len(versions)} packages; environment.yml")


if __name__ == "__main__":
    main()
