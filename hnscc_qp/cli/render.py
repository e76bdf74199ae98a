"""How the command line shows progress and results: rich on a terminal, plain lines elsewhere.

Progress goes to stderr and results to stdout, so that either can be piped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.table import Table
from rich.text import Text

from hnscc_qp.progress import Progress, Task

_PLAIN_SECONDS = 10
"""Seconds between two lines of a running task where there is no terminal."""


def make_progress(*, quiet: bool = False) -> Progress:
    """Bars on a terminal, lines otherwise; warnings only if `quiet`."""
    if quiet:
        return _Lines(sys.stderr, warnings_only=True)
    if sys.stderr.isatty():
        return _Bars()
    return _Lines(sys.stderr)


class _Bars:
    """Bars of the tasks that run; a finished task leaves one line."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = RichBars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            transient=True,
        )
        self._running = 0

    def task(self, description: str, total: float | None = None, *, unit: str = "") -> _Bar:
        return _Bar(self, description, total, unit)

    def say(self, line: str) -> None:
        self._console.print(Text(line))

    def warn(self, line: str) -> None:
        self._console.print(Text.assemble(("warning: ", "yellow"), line))

    def begin(self, description: str, total: float | None, unit: str) -> TaskID:
        if not self._running:
            self._bars.start()
        self._running += 1
        return self._bars.add_task(description, total=total, unit=unit, note="")

    def advance(self, task: TaskID, amount: float, note: str) -> None:
        self._bars.advance(task, amount)
        if note:
            self._bars.update(task, note=note)

    def end(self, task: TaskID) -> None:
        self._bars.remove_task(task)
        self._running -= 1
        if not self._running:
            self._bars.stop()


class _Bar:
    def __init__(self, bars: _Bars, description: str, total: float | None, unit: str) -> None:
        self._bars, self._description, self._total, self._unit = bars, description, total, unit
        self._started = time.monotonic()
        self._id = TaskID(-1)

    def __enter__(self) -> Task:
        self._id = self._bars.begin(self._description, self._total, self._unit)
        return self

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        self._bars.advance(self._id, amount, note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.end(self._id)


class _Lines:
    """One line when a task starts, now and then while it runs, and when it ends."""

    def __init__(self, stream: TextIO, *, warnings_only: bool = False) -> None:
        self._stream = stream
        self._warnings_only = warnings_only

    def task(self, description: str, total: float | None = None, *, unit: str = "") -> _Line:
        return _Line(self, description, total, unit)

    def say(self, line: str) -> None:
        if not self._warnings_only:
            print(line, file=self._stream, flush=True)

    def warn(self, line: str) -> None:
        print(f"warning: {line}", file=self._stream, flush=True)


class _Line:
    def __init__(self, lines: _Lines, description: str, total: float | None, unit: str) -> None:
        self._lines, self._description, self._total, self._unit = lines, description, total, unit
        self._done = 0.0
        self._note = ""
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Task:
        return self

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        self._done += amount
        self._note = note or self._note
        now = time.monotonic()
        if now - self._told >= _PLAIN_SECONDS:
            self._told = now
            self._lines.say(self._state(now))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = time.monotonic()
        if kind is None and now - self._started >= 1:
            self._lines.say(self._state(now))

    def _state(self, now: float) -> str:
        of = f"/{_count(self._total)}" if self._total else ""
        unit = f" {self._unit}" if self._unit else ""
        note = f" ({self._note})" if self._note else ""
        return f"{self._description}: {_count(self._done)}{of}{unit} in {now - self._started:.0f} s{note}"


def _count(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def print_json(value: Any) -> None:
    """Print one JSON value on stdout, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; columns whose cells are all numbers are set flush right."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in texts)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))
    console = _stdout()
    with console.capture() as captured:
        console.print(table)
    # Rich fills lines up to the console's width.
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def print_line(line: str) -> None:
    """Print one line of result."""
    _stdout().print(Text(line), soft_wrap=True)


def print_error(message: str) -> None:
    """Print the one line that says what is wrong and what to do."""
    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def _stdout() -> Console:
    # A pipe has no width; don't fold a table that a program will read.
    return Console() if sys.stdout.isatty() else Console(width=200)


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix(" %"))
    except ValueError:
        return not text
    return True
