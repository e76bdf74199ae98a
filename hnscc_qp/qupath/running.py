"""Which QuPaths run on this computer, and what they have open, as far as can be seen from outside.

QuPath takes no lock on a project, and keeps no file of it open. But the server of an image that is shown in
its window does keep the slide open. On Linux the system tells which process has which file open (`/proc`),
on macOS `lsof` does; on Windows it is only seen whether a QuPath runs. One on another computer never is.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnscc_qp.errors import ProjectError

_WAIT_S = 10
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class RunningQuPath:
    """A process that is QuPath."""

    pid: int
    files: frozenset[str]
    """Absolute paths of what it has open, links resolved; empty where the system does not tell."""


def find_running() -> tuple[RunningQuPath, ...]:
    """The QuPaths that run on this computer, this process aside."""
    if sys.platform == "win32":
        command = ["tasklist", "/FI", "IMAGENAME eq QuPath*", "/FO", "CSV", "/NH"]
        found = parse_tasklist(_output(command))
    elif _PROC.is_dir():
        found = _from_proc(_PROC)
    else:
        found = parse_lsof(_output(["lsof", "-n", "-P", "-w", "-c", "QuPath", "-F", "pn"]))
    return tuple(one for one in found if one.pid != os.getpid())


def refuse_while_open(files: Iterable[Path], *, image: str) -> None:
    """Refuse if a QuPath on this computer has one of the files open: the image's slide above all.

    Raises:
        ProjectError: it has.
    """
    wanted = {os.path.realpath(file): file for file in files}
    for qupath in find_running() if wanted else ():
        for path in wanted.keys() & qupath.files:
            raise ProjectError(
                f"{image} is open in QuPath (process {qupath.pid} reads {wanted[path].name}), and saving it "
                "there later would take back what is written now; save and close the image in QuPath, then "
                'push again, or import the GeoJSON files instead (backend = "embedded" writes them)'
            )


def warn_of_running() -> tuple[str, ...]:
    """A line to a person who writes into a project while some QuPath runs, though not seen to show it."""
    pids = [str(qupath.pid) for qupath in find_running()]
    if not pids:
        return ()
    return (
        f"QuPath is running (process {', '.join(pids)}): an image of this project that is open there must be "
        "opened anew (File > Reload data) before it is saved, else the detections are lost",
    )


def parse_tasklist(text: str) -> list[RunningQuPath]:
    """Read Windows' `tasklist /FO CSV /NH`; it says so in words, without quotes, if there is none."""
    rows = csv.reader(line for line in text.splitlines() if line.startswith('"'))
    return [RunningQuPath(int(row[1]), frozenset()) for row in rows if len(row) > 1 and row[1].isdigit()]


def parse_lsof(text: str) -> list[RunningQuPath]:
    """Read `lsof -F pn`: a line `p<pid>` for each process, then a line `n<path>` for each file."""
    files: dict[int, set[str]] = {}
    pid = 0
    for line in text.splitlines():
        if re.fullmatch(r"p\d+", line):
            pid = int(line[1:])
            files[pid] = set()
        elif line.startswith("n/") and pid:
            files[pid].add(line[1:])
    return [RunningQuPath(pid, frozenset(paths)) for pid, paths in files.items()]


def is_qupath(arguments: Sequence[str]) -> bool:
    """Whether a command line is QuPath's: its own launcher's, or Java's with QuPath to run."""
    if not arguments:
        return False
    program = Path(arguments[0]).name.lower()
    if program.startswith("java"):
        return any(re.match(r"(.*[\\/])?qupath[^\\/]*\.jar$|qupath\.", one, re.I) for one in arguments[1:])
    return program.startswith("qupath")


def _from_proc(proc: Path) -> list[RunningQuPath]:
    found = []
    for process in proc.glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        except OSError:  # it has ended
            continue
        if is_qupath(arguments):
            found.append(RunningQuPath(int(process.name), frozenset(_open_files(process / "fd"))))
    return found


def _open_files(folder: Path) -> set[str]:
    paths = set()
    try:
        for link in folder.iterdir():
            try:
                paths.add(str(link.readlink()))
            except OSError:  # closed meanwhile
                continue
    except OSError:  # another user's process
        return paths
    return paths


def _output(command: Sequence[str]) -> str:
    """What a tool of the system prints; nothing if it is not there or does not answer."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
