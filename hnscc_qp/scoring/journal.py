"""What is scored of a slide so far, tile by tile, so that a run that is killed goes on where it was.

One file: a line of JSON that says what it belongs to, then a record for each tile: mark, number, length
and the first 16 bytes of the SHA-256 of number and content, then the content. A record that was cut off or
spoilt ends the journal; what comes after it is scored again.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.files import storing

_FORMAT = "hnscc-qp/score-journal/1"
_RECORD = struct.Struct("<4sII16s")
_MARK = b"TILE"


@dataclass(frozen=True, slots=True, eq=False)
class TileResult:
    """What was found of a tile's windows."""

    evaluated: NDArray[np.bool_]
    """(rows, columns): they could be read, and were looked at."""
    called: NDArray[np.bool_]
    """(rows, columns): tumor, by both stages."""
    probabilities: NDArray[np.floating] | None
    """(stages, rows, columns) P(tumor), NaN where a stage was not asked; None unless wanted."""
    reason: str | None
    """Why some could not be read."""

    def to_bytes(self) -> bytes:
        """Pack; `from_bytes` unpacks."""
        head = json.dumps(self.reason).encode()
        bits = np.packbits(np.stack([self.evaluated, self.called])).tobytes()
        values = b"" if self.probabilities is None else self.probabilities.astype("<f2").tobytes()
        return zlib.compress(struct.pack("<I", len(head)) + head + bits + values, 1)

    @classmethod
    def from_bytes(cls, data: bytes, *, shape: tuple[int, int], stages: int | None) -> TileResult:
        """Unpack what `to_bytes` packed; `stages` is None where no probabilities were wanted."""
        raw = zlib.decompress(data)
        start = 4 + struct.unpack_from("<I", raw)[0]
        count = 2 * shape[0] * shape[1]
        stop = start + -(-count // 8)
        bits = np.frombuffer(raw[start:stop], np.uint8)
        evaluated, called = np.unpackbits(bits, count=count).astype(bool).reshape(2, *shape)
        values = None if stages is None else np.frombuffer(raw[stop:], "<f2").reshape(stages, *shape)
        return cls(evaluated, called, values, json.loads(raw[4:start]))


class Journal:
    """The file, open for appending."""

    def __init__(self, path: Path, *, key: str) -> None:
        """Open the journal of `path` if it is one of `key`, else begin a new one.

        Args:
            path: of the file.
            key: hash of all that the tiles' results depend on: models, settings, slide, machine.

        Raises:
            StorageError: it can't be written.
        """
        self._path = path
        head = json.dumps({"format": _FORMAT, "key": key}).encode() + b"\n"
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream: IO[bytes] = path.open("a+b")
            self._stream.seek(0)
            self._records: dict[int, bytes] = {}
            if self._stream.readline() == head:
                stop = self._stream.tell()
                while record := _read_record(self._stream):
                    self._records[record[0]] = record[1]
                    stop = self._stream.tell()
                self._stream.truncate(stop)
            else:
                self._stream.truncate(0)
                self._stream.write(head)
                self._stream.flush()

    def get(self, number: int) -> bytes | None:
        """Content of a tile's record; None if it is not done. It is handed out once, and not kept."""
        return self._records.pop(number, None)

    def append(self, number: int, content: bytes) -> None:
        """Keep a tile's record, before anything is told of it.

        Raises:
            StorageError: there is no room; what was kept before stays.
        """
        with storing(self._path):
            self._stream.write(
                _RECORD.pack(_MARK, number, len(content), _checksum(number, content)) + content
            )
            # To the system, which a killed process leaves standing.
            self._stream.flush()

    def close(self) -> None:
        """Close the file, which stays."""
        # What is in its buffer found no room before, and was told then.
        with suppress(OSError):
            self._stream.close()


def _read_record(stream: IO[bytes]) -> tuple[int, bytes] | None:
    head = stream.read(_RECORD.size)
    if len(head) < _RECORD.size:
        return None
    mark, number, length, checksum = _RECORD.unpack(head)
    if mark != _MARK:
        return None
    content = stream.read(length)
    if len(content) < length or _checksum(number, content) != checksum:
        return None
    return number, content


def _checksum(number: int, content: bytes) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "little") + content).digest()[:16]
