"""The files around the code agree with each other: versions, lock, environment, commands, layout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import saelib

# The top of the tree: the parts of the study, then what any repository needs.
LAYOUT = {"saelib", "notebooks", "tests", "reports", "environment.yml", "pyproject.toml"} | {
    ".ci", ".gitattributes", ".gitignore", ".pre-commit-config.yaml", "benchmarks", "CHANGELOG.md", "CITATION.cff",
    "CONTRIBUTING.md", "docs", "LICENSE", "Makefile", "README.md", "requirements.lock", "scripts",
}  # fmt: skip
REGISTRY_HOST = re.compile(
    r"(?<![\w.-])(?:[\w-]+\.)*(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org)"
)
MACHINE_PATH = re.compile(r"(?<![\w.:/<>$}~-])/(?:home|Users|root|work|workspace|mnt|opt|tmp|private|var)/[\w.-]+")


def tracked(root: Path) -> list[Path]:
    if not (root / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files belong to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    return [root / name for name in listed.split("\0") if name and (root / name).is_file()]


@pytest.fixture(scope="module")
def pin(root: Path) -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("pin", root / "scripts" / "pin.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def locked(root: Path) -> dict[str, str]:
    lines = [
        line for line in (root / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), f"a lock line is name==version and no more: {line}"
    names = [line.split("==")[0] for line in lines]
    assert len(names) == len(set(names)), f"pinned twice: {sorted({name for name in names if names.count(name) > 1})}"
    assert names == sorted(names)
    return dict(line.split("==") for line in lines)


def test_lock_satisfies_pyproject(pin: ModuleType, locked: dict[str, str]) -> None:
    for requirement in pin.declared(pin.read_pyproject()):
        pinned = locked.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement} is not in requirements.lock: run make lock"
        assert requirement.specifier.contains(pinned, prereleases=True), f"{requirement} excludes the locked {pinned}"


def test_lock_is_complete(locked: dict[str, str]) -> None:
    """What the pinned packages need, at the versions installed here, is pinned too."""
    for name, version in locked.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        if distribution.version.partition("+")[0] != version:
            continue
        for line in distribution.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in locked, f"{name} needs {needed.name}: run make lock"


def test_torch_is_pinned_exactly_and_first(root: Path, locked: dict[str, str]) -> None:
    installs = re.findall(r"^pip_install (.+)$", (root / "scripts" / "install.sh").read_text(), re.MULTILINE)
    assert locked["torch"] == "2.13.0"
    assert "torch==" in installs[0] and "-e" in installs[1]


def test_committed_reports_are_light(root: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z", "reports"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    sizes = {
        name: (root / name).stat().st_size for name in listed.stdout.split("\0") if name and (root / name).exists()
    }
    assert sum(sizes.values()) < 20e6, sorted(sizes.items(), key=lambda one: -one[1])[:10]


def test_environment_yml_has_not_drifted(root: Path, pin: ModuleType) -> None:
    text = (root / "environment.yml").read_text()
    assert text == pin.environment_yml(pin.read_pyproject(), (root / "requirements.lock").read_text()), "run make lock"


def test_environment_yml_means_what_pyproject_says(root: Path, pin: ModuleType) -> None:
    project = pin.read_pyproject()["project"]
    environment = yaml.safe_load((root / "environment.yml").read_text())
    python, pip, nested = environment["dependencies"]
    assert environment["name"] == project["name"]
    assert python == "python" + project["requires-python"]
    assert pip == "pip"
    assert nested["pip"] == ["-c requirements.lock", "torch==2.13.0", "-e .[dev]"]


def test_version_has_one_source(root: Path, pin: ModuleType) -> None:
    assert "version" in pin.read_pyproject()["project"]["dynamic"]
    assert metadata.version("saelib") == saelib.__version__, "the installed metadata is stale: run make venv"
    assert re.search(rf"^## \[{re.escape(saelib.__version__)}\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_commands_in_the_docs_exist(root: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (root / "Makefile").read_text(), re.MULTILINE))
    for page in [*root.glob("*.md"), *(root / "docs").glob("*.md")]:
        name, text = page.name, page.read_text()
        shown = "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text))
        used = set(re.findall(r"(?:^|[ /])make ([a-z][a-z0-9-]*)", shown, re.MULTILINE))
        assert used <= targets, f"{name} names make targets that are not there: {sorted(used - targets)}"


def test_commands_of_saelib_in_the_docs_exist(root: Path) -> None:
    cli = pytest.importorskip("saelib.cli", reason="the command line is not here yet")
    text = "\n".join((root / name).read_text() for name in ("README.md", "docs/using.md", "docs/profiles.md"))
    shown = "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text))
    used = set(re.findall(r"(?:^|[ /])saelib ([a-z]+)", shown, re.MULTILINE))
    commands = getattr(cli.main, "commands", None) or cli.cli.commands
    assert used and used <= set(commands), f"the docs name commands that are not there: {sorted(used - set(commands))}"


def test_make_help_lists_every_target(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony is not None
    shown = subprocess.run(["make"], cwd=root, capture_output=True, check=True, text=True).stdout
    assert set(re.findall(r"^  make ([a-z0-9-]+)", shown, re.MULTILINE)) == set(phony.group(1).split())


def test_layout(root: Path) -> None:
    top = {path.relative_to(root).parts[0] for path in tracked(root)}
    assert top <= LAYOUT, f"not part of the layout: {sorted(top - LAYOUT)}"
    assert {"saelib", "tests", "pyproject.toml", "environment.yml"} <= top


def test_no_registry_host_and_no_machine_path(root: Path) -> None:
    """The repo works wherever pip is configured to look, and names no folder of the machine it was written on."""
    found = []
    for path in tracked(root):
        relative = path.relative_to(root)
        if relative.parts[0] == "reports" and relative.parts[-2] == "assets":
            continue  # third-party script bundles
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        text = content.decode("utf-8", errors="replace")
        # A report shows text of the corpus, which may speak of any folder: there only this checkout's own path counts.
        pattern = re.compile(re.escape(str(root)) + r"\b") if relative.parts[0] == "reports" else MACHINE_PATH
        for rule in (REGISTRY_HOST, pattern):
            found += [f"{relative}: {match.group()}" for match in rule.finditer(text)]
    assert not found, found


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("see https://" + "pypi" + ".org/simple", True),
        ("files." + "pythonhosted" + ".org", True),
        ("open('/" + "home/someone/data')", True),
        ("cd /" + "tmp/x", True),
        ("#!/usr/bin/env bash, /dev/null, and/or, a/tmp/b, ${HOME}/tmp/x", False),
        ("https://example.com/home/page", False),
    ],
)
def test_the_rule_for_hosts_and_paths(text: str, caught: bool) -> None:
    assert bool(REGISTRY_HOST.search(text) or MACHINE_PATH.search(text)) is caught


# -- the installer, on a copy with a stand-in for pip's work ---------------------------------------------------------


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A checkout whose install asks for nothing: the steps around pip are what is tested."""
    copy = tmp_path / "check out"  # a space, as people have
    (copy / "scripts").mkdir(parents=True)
    (copy / "saelib").mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "saelib/__init__.py"):
        shutil.copy(root / name, copy / name)
    script = (root / "scripts" / "install.sh").read_text()
    assert "-m pip install" in script
    (copy / "scripts" / "install.sh").write_text(script.replace("-m pip install", '-c ""'))
    (copy / "scripts" / "install.sh").chmod(0o755)
    # A Python whose environments are one wrapper: a real one takes seconds each.
    stand_in = copy / "stand-in-python"
    stand_in.write_text(
        '#!/bin/sh\nif [ "$1 $2" != "-m venv" ]; then exec "REAL" "$@"; fi\n'
        'mkdir -p "$3/bin"\nprintf \'#!/bin/sh\\nexec "REAL" "$@"\\n\' > "$3/bin/python"\nchmod +x "$3/bin/python"\n'
    )
    stand_in.write_text(stand_in.read_text().replace("REAL", sys.executable))
    stand_in.chmod(0o755)
    return copy


def install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Not what the `make test` around this test hands down: its flags, its depth, its options.
    ours = ("VENV", "EXTRAS", "PYTHON", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    variables = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(
        ["make", "venv"],
        cwd=folder,
        env={**variables, "PYTHON": "./stand-in-python", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_install_says_so_once_then_nothing(checkout: Path) -> None:
    first = install(checkout)
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith("Installing saelib")
    assert (checkout / ".venv" / ".installed").is_file()
    again = install(checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    with (checkout / "pyproject.toml").open("a") as file:
        file.write("\n# a dependency changed\n")
    assert install(checkout).stderr.startswith("Installing saelib")


def test_install_makes_anew_what_was_cut_short_or_moved(checkout: Path, tmp_path: Path) -> None:
    half = checkout / ".venv"
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").write_text("not an interpreter")
    (half / ".installing").write_text("999999999\n")
    done = install(checkout)
    assert done.returncode == 0, done.stderr
    assert "making it anew" in done.stderr
    assert not (half / ".installing").exists()

    moved = tmp_path / "moved"
    checkout.rename(moved)
    assert "making it anew" in install(moved).stderr


def test_install_waits_for_nobody(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installing").write_text(f"{os.getpid()}\n")
    done = install(checkout)
    assert done.returncode != 0
    assert "already running" in done.stderr
    assert [path.name for path in (checkout / ".venv").iterdir()] == [".installing"]


def test_install_refuses_an_old_python_in_one_line(checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18 && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = install(checkout, PYTHON=str(old))
    assert done.returncode != 0
    line = "error: Python must be 3.11 or newer; got Python 3.9.18: install one, or name it with PYTHON=/path/to/python"
    assert done.stderr.splitlines()[0] == line
    assert not (checkout / ".venv").exists()


def test_install_names_the_log_when_pip_fails(checkout: Path) -> None:
    script = checkout / "scripts" / "install.sh"
    script.write_text(script.read_text().replace('-c ""', '-c "raise SystemExit(1)"'))
    done = install(checkout)
    assert done.returncode != 0
    assert ".venv/pip.log" in done.stderr
    assert not (checkout / ".venv" / ".installed").exists()
    assert not (checkout / ".venv" / ".installing").exists()
