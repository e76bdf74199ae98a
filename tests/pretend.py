"""A program that the rest of the computer takes for QuPath."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def pretend_qupath(folder: Path, opened: Path) -> Iterator[int]:
    """A process of the name QuPath that has a file open."""
    program = folder / "QuPath"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with opened.open("rb") as stream:
        process = subprocess.Popen([program, "60"], stdin=stream)
    try:
        for _ in range(100):  # until it has become what it is called
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(os.fsencode(program)):
                break
            time.sleep(0.05)
        yield process.pid
    finally:
        process.kill()
        process.wait()
