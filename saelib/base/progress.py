"""Progress across processes: long work reports it to a small file, the command that waits for the work draws it.

A notebook that is executed runs in a kernel, two processes away from the terminal. `report_progress` is called inside the
work and replaces the file named by `SAELIB_PROGRESS`; `Display` shows the content of such files in one line. `shown_progress`
does both for work in this process. Where a person runs the cells, in JupyterLab, the same call draws a bar under the cell.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

PROGRESS_ENV = "SAELIB_PROGRESS"
_WRITE_INTERVAL = 0.2  # seconds between two writes of the file
_LINE_INTERVAL = 15.0  # seconds between two lines where the output is not a terminal
_BAR_AFTER = 2.0  # seconds of a cell's work after which its bar shows
_last: dict[str, Any] = {}


def report_progress(label: str, done: int, total: int) -> None:
    """Say that `done` of `total` units of `label` are finished; free to call at every step.

    Nothing happens unless `SAELIB_PROGRESS` names a file, or a person runs a notebook's cell; either is renewed at most five
    times a second. Disk errors are ignored: a missing progress line must not end a run.
    """
    name = os.environ.get(PROGRESS_ENV)
    shell = None if name else _attended_shell()
    if not name and shell is None:
        return
    now = time.monotonic()
    if _last.get("label") != label or done < _last["first_done"]:
        _last.update(label=label, first_done=done, first_at=time.monotonic(), written=-_WRITE_INTERVAL)
    if now - _last["written"] < _WRITE_INTERVAL and done < total:
        return
    _last["written"] = now
    if not name:
        _bar_of(shell).show(label, done, total)
        return
    state = {k: _last[k] for k in ("label", "first_done", "first_at")} | {
        "done": done,
        "total": total,
        "at": time.monotonic(),
    }
    temporary = f"{name}.{os.getpid()}.tmp"
    with contextlib.suppress(OSError):
        Path(temporary).write_text(json.dumps(state))
        os.replace(temporary, name)


def _attended_shell() -> Any:
    """The IPython of this kernel, when it runs a cell that could ask a person something; papermill's and nbclient's cannot."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if getattr(getattr(shell, "kernel", None), "_allow_stdin", False) else None


class _CellBar:
    """The one bar under a running cell: its label follows the work, and it goes when the cell ends."""

    def __init__(self, shell: Any) -> None:
        self.shell, self.began, self.label = shell, time.monotonic(), ""
        self.bar: Any = None
        shell.events.register("post_run_cell", self.close)

    def show(self, label: str, done: int, total: int) -> None:
        """Draw it, once the cell's work has taken some time."""
        if time.monotonic() - self.began < _BAR_AFTER:
            return
        if self.bar is None:
            with warnings.catch_warnings():  # without ipywidgets the bar is text
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm
            self.bar = tqdm(desc=label, total=total, initial=done, leave=False)
        elif label != self.label:
            self.bar.reset(total)
            self.bar.initial = done  # steps of an earlier process say nothing of the pace
            self.bar.set_description(label, refresh=False)
        self.label = label
        self.bar.n = done
        self.bar.refresh()

    def close(self, _result: Any = None) -> None:
        """Take it away."""
        global _cell_bar
        self.shell.events.unregister("post_run_cell", self.close)
        _cell_bar = None
        if self.bar is not None:
            self.bar.close()


_cell_bar: _CellBar | None = None


def _bar_of(shell: Any) -> _CellBar:
    global _cell_bar
    _cell_bar = _cell_bar or _CellBar(shell)
    return _cell_bar


def read_progress(path: Path) -> dict[str, Any] | None:
    """The newest report in a progress file, or None where nothing has been reported yet."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def describe(state: dict[str, Any]) -> str:
    """`steps 300/1200 (25%), 1:30 left`. The time left is from the pace of this process; steps of an earlier one do not count."""
    done, total = state["done"], state["total"]
    text = f"{state['label']} {done}/{total}"
    if total > 0:
        text += f" ({100 * done // total}%)"
    gained, elapsed = done - state["first_done"], state["at"] - state["first_at"]
    if 0 < done < total and gained > 0 and elapsed > 0.5:
        since = max(0.0, time.monotonic() - state["at"])
        text += f", {clock(max(0.0, (total - done) * elapsed / gained - since))} left"
    return text


def so_far(label: str, state: dict[str, Any], began: float) -> str:
    """`describe` of a piece of work that began then (`time.monotonic`), with the time spent."""
    return f"{label}: {describe(state)}, {clock(time.monotonic() - began)} so far"


def clock(seconds: int | float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """One status line that is redrawn on a terminal, and written every 15 s where the output is a file or a pipe."""

    def __init__(self, stream: TextIO | None = None, line_interval: float = _LINE_INTERVAL) -> None:
        self.stream = stream or sys.stdout
        self.line_interval = line_interval
        self.started = time.monotonic()
        self._is_terminal = self.stream.isatty()
        self._shown = 0  # width of the status now on the terminal
        self._last_line = self.started

    def event(self, text: str) -> None:
        """Print a lasting line: something began, finished or needs attention."""
        self.clear()
        self._write(f"[{clock(time.monotonic() - self.started)}] {text}\n")
        self._last_line = time.monotonic()

    def status(self, parts: Sequence[str]) -> None:
        """Show what goes on now, one part for each piece of work."""
        now = time.monotonic()
        if not self._is_terminal and now - self._last_line < self.line_interval:
            return
        line = f"[{clock(now - self.started)}] " + " | ".join(parts)
        if self._is_terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + line.ljust(self._shown))
            self._shown = len(line)
        else:
            self._write(line + "\n")
            self._last_line = now

    def clear(self) -> None:
        """Take the status line off a terminal."""
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()


@contextlib.contextmanager
def shown_progress(label: str, display: Display | None = None) -> Iterator[None]:
    """Draw what the work inside reports, from a thread beside it."""
    display = display or Display()
    before, stop = os.environ.get(PROGRESS_ENV), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "progress.json"

        def draw() -> None:
            while not stop.wait(_WRITE_INTERVAL):
                if state := read_progress(path):
                    display.status([so_far(label, state, display.started)])

        os.environ[PROGRESS_ENV] = str(path)
        drawing = threading.Thread(target=draw, daemon=True)
        drawing.start()
        try:
            yield
        finally:
            stop.set()
            drawing.join()
            display.clear()
            if before is None:
                del os.environ[PROGRESS_ENV]
            else:
                os.environ[PROGRESS_ENV] = before
