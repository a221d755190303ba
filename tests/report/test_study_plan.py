"""Keys of the study's notebooks: files of the user's own count by what is in them, never by their date."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from saelib.base.hub import cached_snapshot
from saelib.report import study_plan
from saelib.study.profiles import get_profile

DATES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "getmtime", "getctime"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights 1")
    return folder


def key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of the first notebook, planned anew."""
    monkeypatch.setenv("SAELIB_NARROW_SAE", str(folder))
    monkeypatch.setattr(
        study_plan, "_outside_inputs", lambda settings: {"narrow": study_plan._named_key("SAELIB_NARROW_SAE")}
    )
    return study_plan.plan_page("smoke", "01_narrow_sae").key


def test_a_key_follows_content_and_not_the_date(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key(model, monkeypatch)
    for path in model.iterdir():
        os.utime(path, (1, 1))
    assert key(model, monkeypatch) == first
    moved = shutil.copytree(model, model.with_name("moved"))
    assert key(moved, monkeypatch) == first
    weights = model / "model.safetensors"
    date = weights.stat().st_mtime_ns
    weights.write_bytes(b"weights 2")  # as long as before
    os.utime(weights, ns=(date, date))
    assert key(model, monkeypatch) != first


def test_the_page_of_the_published_sae_depends_on_the_texts_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no hub cache"))

    def key() -> str:
        return study_plan.plan_page("smoke", study_plan.PUBLISHED_SAE).key

    monkeypatch.delenv("SAELIB_C4_CODE_20K", raising=False)
    keys = {key()}
    monkeypatch.setenv("SAELIB_C4_CODE_20K", str(texts))
    for content in (b"texts 1", b"texts 2"):
        (texts / "train.parquet").write_bytes(content)
        keys.add(key())
    assert len(keys) == 3


def test_a_profile_that_names_a_folder_depends_on_its_files(model: Path) -> None:
    from dataclasses import replace

    settings = replace(get_profile("smoke"), model=str(model))
    before = study_plan._outside_inputs(settings)
    (model / "config.json").write_text("[]")
    study_plan._outside_inputs.cache_clear()
    assert before["model"] != study_plan._outside_inputs(settings)["model"]


def test_a_blob_of_a_hub_cache_has_its_digest_for_a_name(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"tensors").hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / digest).write_bytes(b"tensors")
    (tmp_path / "snapshots").mkdir()
    link = tmp_path / "snapshots" / "model.safetensors"
    link.symlink_to(tmp_path / "blobs" / digest)
    plain = tmp_path / "model.safetensors"
    plain.write_bytes(b"tensors")
    assert study_plan._files_key([link]) == study_plan._files_key([plain])


def test_which_snapshot_is_taken_does_not_depend_on_dates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--a--b" / "snapshots"
    for name, date in (("1", 2), ("2", 1)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (date, date))
    assert cached_snapshot("a/b") == folder / "2"


def test_no_module_reads_a_date(root: Path) -> None:
    for path in (root / "saelib").rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & DATES, f"{path.relative_to(root)} reads a file's date: {sorted(names & DATES)}"
