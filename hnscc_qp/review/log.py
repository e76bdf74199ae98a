"""The review log: who said what, in lines that only ever follow one another.

`review/log.jsonl` beside the study, one JSON object a line: its number, the hash of the line before, when it
was written, an event and its body, and the hash of all that. Whoever changes, removes or reorders a
line breaks the chain there; `head.json` beside it tells whether lines are missing at the end. (Whoever
rewrites the whole log and the head leaves no trace here: keep a head hash elsewhere, as generations do.)
The order of the lines is the order of events, whatever the clocks say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hnscc_qp.errors import ReviewLogError
from hnscc_qp.files import sha256_json, storing, write_json
from hnscc_qp.qupath.safewrite import sole_writer

LOG_FILE = "log.jsonl"
HEAD_FILE = "head.json"
_FIELDS = ("n", "previous", "time", "event", "body")
_NOTHING = "0" * 64
"""What the first line follows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log."""

    n: int
    """From 1."""
    previous: str
    """Hash of the entry before."""
    time: str
    """UTC, by the clock of whoever wrote it."""
    event: str
    """`verdict`, or another word of whoever wrote it."""
    body: Mapping[str, Any]
    hash: str
    """Hex SHA-256 of all the other fields."""


@dataclass(frozen=True, slots=True)
class LogCheck:
    """What reading the whole log came to."""

    entries: tuple[Entry, ...]
    """Up to the first break."""
    breaks: tuple[str, ...]
    """Where the chain is broken and how, each in one line; the first is what is to be mended."""
    warnings: tuple[str, ...]
    """What is odd and breaks nothing: clocks that ran backwards, a torn last line."""

    @property
    def head(self) -> str | None:
        """Hash of the last good entry."""
        return self.entries[-1].hash if self.entries else None

    def as_json(self, *, with_entries: bool) -> dict[str, Any]:
        """JSON values."""
        value: dict[str, Any] = {
            "good entries": len(self.entries),
            "head": self.head,
            "breaks": list(self.breaks),
            "warnings": list(self.warnings),
        }
        return value | {"entries": [asdict(entry) for entry in self.entries]} if with_entries else value


class ReviewLog:
    """The log of one study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LOG_FILE
        self._head = folder / HEAD_FILE

    def read(self) -> tuple[Entry, ...]:
        """All entries, in the order of the chain; none where there is no log yet.

        Raises:
            ReviewLogError: the chain is broken; the message says where.
        """
        found = self.check()
        if found.breaks:
            raise ReviewLogError(
                f"{self.path} is broken: {found.breaks[0]}; restore it from a backup, or move {self.folder} "
                "away to begin a new log (hnscc-qp log --verify tells more)"
            )
        return found.entries

    def check(self) -> LogCheck:
        """Follow the chain from its first line, and say where it does not hold.

        Raises:
            ReviewLogError: the file can't be read.
        """
        lines, tail = self._lines()
        entries: list[Entry] = []
        breaks: list[str] = []
        warnings: list[str] = []
        previous, good = _NOTHING, True
        for number, line in enumerate(lines, start=1):
            entry, problem = _read_line(line, number=number, previous=previous)
            if problem:
                breaks.append(problem)
                good = False
            if entry is not None:
                if entries and entry.time < entries[-1].time:
                    warnings.append(
                        f"line {number} was written at {entry.time}, before the line above it "
                        f"({entries[-1].time}): a clock ran backwards; the order of the lines counts"
                    )
                # What follows is judged by the line above it as it stands, so that one break is one break.
                previous = entry.hash
                if good:
                    entries.append(entry)
            else:
                previous = ""
        if tail:
            warnings.append(
                f"line {len(lines) + 1} is torn ({len(tail)} bytes without an end): whoever wrote it was "
                "stopped; the next pull sets it aside and reads its verdicts anew"
            )
        if good and self._head.is_file():
            breaks += self._missing_at_the_end(entries)
        elif good and entries:
            warnings.append(f"{self._head.name} is gone: nothing tells whether lines are missing at the end")
        return LogCheck(tuple(entries), tuple(breaks), tuple(warnings))

    def append(self, event: str, bodies: Sequence[Mapping[str, Any]]) -> tuple[Entry, ...]:
        """Add entries at the end and see them onto the disk; a torn last line is set aside first.

        Args:
            event: what happened, in a word or two.
            bodies: JSON values, an entry each.

        Returns:
            The entries as written.

        Raises:
            ReviewLogError: the chain is broken.
            ProjectError: another process is writing.
            StorageError: there is no room.
        """
        if not bodies:
            return ()
        with storing(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with sole_writer(self.folder):
                self._set_torn_line_aside()
                present = self.read()
                made = []
                last, n = (present[-1].hash, present[-1].n) if present else (_NOTHING, 0)
                for number, body in enumerate(bodies, start=n + 1):
                    made.append(_entry(number, last, event, body))
                    last = made[-1].hash
                _append("".join(_line(entry) for entry in made).encode(), self.path)
                write_json(self._head, {"n": made[-1].n, "hash": last})
        return tuple(made)

    def _lines(self) -> tuple[list[bytes], bytes]:
        """Whole lines, and what comes after the last line's end."""
        try:
            *lines, tail = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], b""
        except OSError as error:
            raise ReviewLogError(f"{self.path} can't be read: {error.strerror}; mend that first") from error
        return lines, tail

    def _set_torn_line_aside(self) -> None:
        lines, tail = self._lines()
        if not tail:
            return
        number = 1
        while (aside := self.folder / f"torn-{len(lines) + 1}-{number}.txt").exists():
            number += 1
        aside.write_bytes(tail)
        with self.path.open("r+b") as stream:
            stream.truncate(sum(len(line) + 1 for line in lines))
            os.fsync(stream.fileno())

    def _missing_at_the_end(self, entries: Sequence[Entry]) -> list[str]:
        try:
            known = json.loads(self._head.read_text(encoding="utf-8"))
            n, digest = int(known["n"]), str(known["hash"])
        except FileNotFoundError:
            # Lost between the line and its head: nothing says that more lines were there.
            return []
        except (OSError, ValueError, KeyError, TypeError):
            return [
                f"{self._head.name} is damaged, so that nothing tells whether lines are missing at the end"
            ]
        if n > len(entries):
            return [f"after line {len(entries)}: {n - len(entries)} lines are missing at the end"]
        # The log may be ahead: its writer was stopped before it wrote the head.
        if entries and n and entries[n - 1].hash != digest:
            return [f"line {n} is not the one that was written: its hash is not that in {self._head.name}"]
        return []


def now() -> str:
    """The time, in UTC and whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _entry(n: int, previous: str, event: str, body: Mapping[str, Any]) -> Entry:
    values: dict[str, Any] = {"n": n, "previous": previous, "time": now(), "event": event, "body": dict(body)}
    return Entry(**values, hash=sha256_json(values))


def _line(entry: Entry) -> str:
    values = {name: getattr(entry, name) for name in (*_FIELDS, "hash")}
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def _read_line(line: bytes, *, number: int, previous: str) -> tuple[Entry | None, str | None]:
    """An entry if the line is one, and what is wrong with it or with its place."""
    try:
        values = json.loads(line)
        entry = Entry(**{name: values[name] for name in (*_FIELDS, "hash")})
        stated = {name: values[name] for name in _FIELDS}
    except (ValueError, KeyError, TypeError):
        return None, f"line {number} is no entry"
    if not isinstance(entry.body, dict) or sha256_json(stated) != entry.hash:
        return entry, f"line {number} was changed: its content does not have the hash that it states"
    if entry.n != number:
        return entry, f"line {number} says that it is number {entry.n}: lines were removed, added or moved"
    if previous and entry.previous != previous:
        where = f"line {number - 1}" if number > 1 else "the beginning"
        return entry, f"line {number} does not follow {where}: the line before it was another one"
    return entry, None


def _append(data: bytes, path: Path) -> None:
    is_new = not path.exists()
    with path.open("ab", buffering=0) as stream:
        left = memoryview(data)
        while left:  # in one call, mostly: a kill leaves at most one torn line
            left = left[stream.write(left) :]
        os.fsync(stream.fileno())
    if is_new and os.name != "nt":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
