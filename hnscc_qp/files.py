"""Files are written beside and renamed, so that a reader never meets half of one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hnscc_qp.errors import HnsccQpError, StorageError


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a path beside `final` (same suffix); on success rename it to `final`, on failure remove it."""
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=final.parent, prefix=".partial-", suffix=final.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # mkstemp makes files private; a study is shared among colleagues.
        partial.chmod(0o666 & ~_umask())
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


_UMASK_LOCK = threading.Lock()


def _umask() -> int:
    # It can be read only by setting it, for all threads of the process.
    with _UMASK_LOCK:
        umask = os.umask(0)
        os.umask(umask)
    return umask


@contextmanager
def storing(final: Path) -> Iterator[None]:
    """Tell in one line why a result can't be written.

    Raises:
        StorageError: the disk is full, the folder is read-only, or the like.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, HnsccQpError):
            raise
        reason = error.strerror or str(error)
        raise StorageError(
            f"{final} can't be written ({reason}); make room or choose another disk, then run the same "
            "command again: what is done is kept"
        ) from error


def write_text(final: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(final) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(final: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinities are refused."""
    write_text(final, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
