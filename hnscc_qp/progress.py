"""How library code tells of its progress without knowing who watches."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Task(Protocol):
    """One counted piece of work, used as a context manager."""

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        """Count `amount` more as done; `note` is a short state such as `loss 0.12`."""

    def __enter__(self) -> Task: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Progress(Protocol):
    """Where tasks are shown and lines are printed."""

    def task(self, description: str, total: float | None = None, *, unit: str = "") -> Task:
        """Start a task of `total` units."""

    def say(self, line: str) -> None:
        """Tell one line that should stay on the screen."""

    def warn(self, line: str) -> None:
        """Tell one line that a person should act on."""


class _Silent:
    def advance(self, amount: float = 1, *, note: str = "") -> None:
        pass

    def __enter__(self) -> _Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def task(self, description: str, total: float | None = None, *, unit: str = "") -> _Silent:
        return self

    def say(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        pass


SILENT: Progress = _Silent()
"""Watches nothing."""
