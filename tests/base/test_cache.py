"""Written whole or not at all, checked when read, and nothing left behind by the dead."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

from saelib.base import cache
from saelib.base.cache import SUMS_FILE, atomic_dir, atomic_path, damage_in, disk_errors, kept_folder, kept_json
from saelib.base.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def flip(path: Path, position: int = -2) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# Written whole or not at all


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "b") as temporary:
        (temporary / "half").write_text(f"half {1 / 0}")
    assert names(tmp_path) == ["a"]


def test_what_a_killed_process_left_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    (tmp_path / ".a.12345678.tmp").write_text("left by a kill")
    (tmp_path / ".a.abcdefgh.tmp").mkdir()
    (tmp_path / ".a.abcdefgh.tmp" / "part").write_text("left by a kill")
    (tmp_path / ".another.12345678.tmp").write_text("not ours to judge")
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == [".another.12345678.tmp", "a"]


@pytest.mark.parametrize("folder", [False, True])
def test_what_a_living_process_holds_is_left_alone(tmp_path: Path, folder: bool) -> None:
    with cache.temporary_beside(tmp_path / "a", folder=folder) as first:
        with cache.temporary_beside(tmp_path / "a", folder=folder) as second:
            assert first.exists() and second.exists() and first != second
        assert first.exists()
    assert names(tmp_path) == []


def test_a_temporary_that_another_took_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, []

    def slow(descriptor: int, how: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:  # between making it and holding it
            next(tmp_path.glob(".a.*.tmp")).unlink()
        lock(descriptor, how)

    monkeypatch.setattr(cache.fcntl, "flock", slow)
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert len(calls) == 2 and (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(cache, "_exchange", lambda first, second: False)
    for content in ("old", "new"):
        with atomic_dir(tmp_path / "b") as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["b"] and names(tmp_path / "b") == [SUMS_FILE, "new"]


def test_an_older_folder_is_never_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system can exchange two folders, the old one is there until the new one is."""
    with atomic_dir(tmp_path / "b") as temporary:
        (temporary / "old").write_text("old")
    if not cache._exchange(tmp_path / "b", tmp_path / "b"):
        pytest.skip("this system cannot exchange two folders in one step")
    monkeypatch.setattr(cache.shutil, "rmtree", lambda path, **_: pytest.fail("removed") if path.name == "b" else None)
    with atomic_dir(tmp_path / "b") as temporary:
        (temporary / "new").write_text("new")


def test_a_folder_does_not_take_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("a file")
    with pytest.raises(UserError, match=r"must be a folder"), atomic_dir(tmp_path / "b") as temporary:
        (temporary / "new").write_text("new")
    assert (tmp_path / "b").read_text() == "a file" and names(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("number", "rule"),
    [
        (errno.ENOSPC, "disk must have room"),
        (errno.EDQUOT, "disk quota must have room"),
        (errno.EFBIG, "file size limit must allow"),
        (errno.EIO, "disk must be able to read and write"),
        (errno.EROFS, "cache folder must be writable"),
    ],
)
def test_what_a_disk_refuses_is_one_line(tmp_path: Path, number: int, rule: str) -> None:
    with (
        pytest.raises(UserError, match=rf"{rule}.*; got .*: free some space or set SAELIB_CACHE"),
        disk_errors(tmp_path),
    ):
        raise OSError(number, os.strerror(number))


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.filelock.FileLock, "acquire", refuse)
    with pytest.raises(UserError, match="disk must have room"), cache.locked(tmp_path / "a"):
        pass


# Checked when read


def test_a_folder_has_checksums_that_other_tools_read(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "b") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "x").write_text("x")
        (temporary / "y").write_bytes(bytes(range(256)))
    assert damage_in(tmp_path / "b") is None
    done = subprocess.run(["sha256sum", "-c", SUMS_FILE], cwd=tmp_path / "b", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "deep/x: OK\ny: OK\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x", "y", SUMS_FILE])
def test_every_flipped_bit_in_a_folder_is_found(tmp_path: Path, name: str) -> None:
    with atomic_dir(tmp_path / "b") as temporary:
        (temporary / "x").write_text("an x")
        (temporary / "y").write_text("a y")
    path = tmp_path / "b" / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            path.write_bytes(data)
            assert damage_in(tmp_path / "b") is not None, (position, bit)
    whole_lines = whole.find(b"\n") + 1  # a list that lost whole lines still holds for the files it names
    for size in set(range(len(whole))) - {whole_lines if name == SUMS_FILE else -1}:
        path.write_bytes(whole[:size])
        assert damage_in(tmp_path / "b") is not None, size


def test_kept_numbers_are_computed_once_and_again_when_damaged(empty_cache: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"l0": 14.25}

    assert kept_json("quality", "k", compute) == kept_json("quality", "k", compute) == {"l0": 14.25}
    assert len(calls) == 1
    path = empty_cache / "quality" / "k.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole)
        flip(path, position)
        try:
            same = json.loads(path.read_bytes()) == json.loads(whole)
        except ValueError:
            same = False
        if not same:
            with pytest.warns(UserWarning, match=r"damaged .*k\.json; it is made again"):
                assert kept_json("quality", "k", compute) == {"l0": 14.25}
            assert path.read_bytes() == whole
    path.write_text('{"l0": 14.25}')  # as an older version kept it
    calls.clear()
    assert kept_json("quality", "k", compute) == {"l0": 14.25} and not calls


def test_a_kept_folder_is_made_once_and_again_when_damaged(empty_cache: Path) -> None:
    calls: list[Path] = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "values").write_text("1 2 3")

    path = empty_cache / "features" / "a"
    kept_folder(path, make)
    assert (kept_folder(path, make) / "values").read_text() == "1 2 3" and len(calls) == 1
    flip(path / "values")
    with pytest.warns(UserWarning, match=r"damaged .*values; it is made again"):
        kept_folder(path, make)
    assert (path / "values").read_text() == "1 2 3" and len(calls) == 2
    assert names(path.parent) == ["a"]


def test_a_sealed_object_says_when_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    cache.write_json(path, cache.sealed({"n": 3, "nan": float("nan"), "list": [1.5, None]}))
    assert cache.read_sealed(path, "delete it")["n"] == 3
    path.write_text(path.read_text().replace("3", "4"))
    with pytest.raises(UserError, match=r"file must be as it was written; got .*s\.json: delete it"):
        cache.read_sealed(path, "delete it")
