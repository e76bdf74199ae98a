"""Writing into a project such that nothing is lost: alone, checked, backed up, swapped whole, undone.

QuPath knows no locks: who saves last wins. So we never write into a file of QuPath's in place. The new
one is made complete beside it and checked; the old one is copied; and only if nobody changed the old one
meanwhile are they swapped. An image that a QuPath of this computer has open is left alone (see `running`);
if it is open elsewhere and saved there afterwards, our detections are gone from the file, but nothing of the
pathologist's is.

Layout, in the project's folder: `.hnscc-qp/lock` while one of us writes, and `.hnscc-qp/backup/<n>/`, one
for each command that wrote, with `backup.json` and the files as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hnscc_qp.errors import ProjectError
from hnscc_qp.files import atomic_path, sha256_file, write_json

KEPT_BACKUPS = 5
_FOLDER = ".hnscc-qp"
_GEOJSON_ROUTE = 'or import the GeoJSON files instead (backend = "embedded" writes them)'


def content_hash(file: Path) -> str | None:
    """SHA-256 of a file's bytes; None if it is not there."""
    return sha256_file(file) if file.is_file() else None


class SafeWriter:
    """All that one command writes into a project, to be undone together."""

    def __init__(self, project_file: Path) -> None:
        self._project_file = project_file
        self._folder = project_file.parent
        self._backup: Path | None = None

    def replace(
        self,
        contents: Mapping[Path, bytes | None],
        *,
        image: str,
        read: Mapping[Path, str | None],
        check: Callable[[Path], None] | None = None,
    ) -> None:
        """Give files of the project new contents, all or none.

        Args:
            contents: each file's new bytes; None removes it.
            image: the image's name, for messages and `undo`.
            read: the hash, by `content_hash`, that each file had when the contents were made from them.
            check: called with the first file's new version, beside it; what it raises leaves all as it was.

        Raises:
            ProjectError: QuPath or another writer is at work, a file has changed since it was read, or
                the disk is full or read-only. Everything is as it was.
        """
        refuse_while_saving(self._project_file, next(iter(contents)).parent, image=image)
        backup: Path | None = None
        swapping = False
        try:
            with sole_writer(self._folder), ExitStack() as swap:
                staged = {
                    final: swap.enter_context(atomic_path(final))
                    for final, content in contents.items()
                    if content is not None
                }
                for final, partial in staged.items():
                    _write_through(partial, contents[final] or b"")
                if check is not None:
                    check(next(iter(staged.values())))
                backup = self._back_up(contents, image=image)
                for final, known in read.items():
                    if content_hash(final) != known:
                        raise ProjectError(
                            f"{image}: {final.name} was changed by someone else just now, so nothing was "
                            f"written; close the image in QuPath and push again, {_GEOJSON_ROUTE}"
                        )
                swapping = True
                for final, content in contents.items():
                    if content is None:
                        final.unlink(missing_ok=True)
            for final, content in contents.items():
                if content_hash(final) != _hash(content):
                    raise OSError(None, "it reads back otherwise than it was written", str(final))
        except BaseException as error:
            if backup is not None:
                if swapping:
                    _restore(backup, self._folder)
                _discard(backup)
            if isinstance(error, OSError) and not isinstance(error, ProjectError):
                reason = f"{error.filename or self._folder} can't be written ({error.strerror or error})"
                raise ProjectError(
                    f"{image}: {reason}, so nothing was changed; make room or ask for the right to write, "
                    f"{_GEOJSON_ROUTE}"
                ) from error
            raise

    def _back_up(self, contents: Mapping[Path, bytes | None], *, image: str) -> Path:
        if self._backup is None:
            present = _backups(self._folder)
            number = int(present[-1].name) + 1 if present else 1
            self._backup = self._folder / _FOLDER / "backup" / str(number)
            for old in present[: -KEPT_BACKUPS + 1]:
                shutil.rmtree(old)
        place = self._backup / str(len(list(self._backup.glob("*"))) + 1)
        try:
            place.mkdir(parents=True)
            files: list[dict[str, str | None]] = []
            for final, content in contents.items():
                before = content_hash(final)
                if before is not None:
                    shutil.copy2(final, place / f"{len(files)}")
                    if content_hash(place / f"{len(files)}") != before:
                        raise OSError(None, "the backup differs from the file", str(final))
                name = final.relative_to(self._folder).as_posix()
                files.append({"file": name, "before": before, "after": _hash(content)})
            write_json(place / "backup.json", {"image": image, "files": files})
        except BaseException:
            _discard(place)
            raise
        return place


def refuse_while_saving(project_file: Path, folder: Path, *, image: str) -> None:
    """Refuse if the files lie as they do while QuPath saves.

    Raises:
        ProjectError: QuPath saves at this moment, or was stopped while it did.
    """
    for trace in (folder / "data.qpdata.bkp", project_file.with_name(project_file.name + ".tmp")):
        if trace.exists():
            raise ProjectError(
                f"{image}: QuPath is saving, or was stopped while it did ({trace} is there); wait, or "
                f"open the image in QuPath and save it, then push again, {_GEOJSON_ROUTE}"
            )


def undo_last_write(
    project_file: Path, *, check: Callable[[str], None] = lambda image: None
) -> tuple[str, ...]:
    """Put every file that the last writing command changed back to what it was, to the last byte.

    Args:
        project_file: the `.qpproj`.
        check: called with each image's name before anything is changed; what it raises leaves all as it is.

    Returns:
        The names of the images.

    Raises:
        ProjectError: there is nothing to undo, or a file was changed since: all is left as it is.
    """
    folder = project_file.parent
    with sole_writer(folder):
        backups = _backups(folder)
        if not backups:
            raise ProjectError(f"{project_file} has no push of ours that could be undone")
        places = sorted(backups[-1].glob("*/backup.json"), key=lambda file: -int(file.parent.name))
        records = [(file.parent, _read_record(file)) for file in places]
        hashes: dict[str, str | None] = {}
        for _, record in records:
            check(record["image"])
            for item in record["files"]:
                file = folder / item["file"]
                refuse_while_saving(project_file, file.parent, image=record["image"])
                present = hashes.get(item["file"], content_hash(file))
                hashes[item["file"]] = item["before"]
                if present not in (item["before"], item["after"]):
                    raise ProjectError(
                        f"{record['image']}: {item['file']} was saved in QuPath since the push, and undoing "
                        "would lose that work; delete our detections in QuPath, or take the file from "
                        f"{backups[-1]}"
                    )
        try:
            for place, _ in records:
                _restore(place, folder)
        except OSError as error:
            raise ProjectError(
                f"{error.filename} can't be written ({error.strerror}); make room and undo again, "
                f"nothing is lost, the files lie in {backups[-1]}"
            ) from error
        shutil.rmtree(backups[-1])
        return tuple(sorted({record["image"] for _, record in records}))


@contextmanager
def sole_writer(project_folder: Path) -> Iterator[None]:
    """Keep other writers of ours out of the project, on this computer and on others.

    Raises:
        ProjectError: another one is at work.
        OSError: the lock can't be written.
    """
    lock = project_folder / _FOLDER / "lock"
    lock.parent.mkdir(exist_ok=True)
    me: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    try:
        _take(lock, me)
    except FileExistsError:
        holder = _holder(lock)
        if not _is_dead(holder, me["host"]):
            raise ProjectError(
                f"{project_folder} is being written to by another hnscc-qp ({holder or 'unknown'}); wait for "
                f"it, or remove {lock} if there is none"
            ) from None
        lock.unlink(missing_ok=True)
        # Should another one have found the dead one's lock as well, it fails here, or we do.
        _take(lock, me)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _take(lock: Path, me: dict[str, Any]) -> None:
    """Make the lock with its holder in it, at once: whoever is killed meanwhile leaves none without."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=lock.parent, prefix="lock-", delete=False
    ) as stream:
        json.dump(me, stream)
    written = Path(stream.name)
    try:
        os.link(written, lock)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with lock.open("x", encoding="utf-8") as plain:
            json.dump(me, plain)
    finally:
        written.unlink()


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8")
    except OSError:
        return ""


def _is_dead(holder: str, host: str) -> bool:
    try:
        about = json.loads(holder)
        if about["host"] != host or os.name == "nt":  # where a signal of 0 would end the process
            return False
        os.kill(int(about["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def _backups(folder: Path) -> list[Path]:
    """Backups with something in them, the oldest first."""
    found = (folder / _FOLDER / "backup").glob("*")
    numbered = [path for path in found if re.fullmatch(r"\d+", path.name)]
    return sorted(
        (path for path in numbered if any(path.glob("*/backup.json"))), key=lambda path: int(path.name)
    )


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProjectError(f"{file} can't be read ({error}); restore the files beside it by hand") from error
    return record


def _restore(place: Path, folder: Path) -> None:
    for number, item in enumerate(_read_record(place / "backup.json")["files"]):
        final = folder / item["file"]
        if item["before"] is None:
            final.unlink(missing_ok=True)
        elif content_hash(final) != item["before"]:
            with atomic_path(final) as partial:
                shutil.copyfile(place / str(number), partial)
            shutil.copystat(place / str(number), final)  # QuPath shows when a file was saved


def _discard(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    for empty in (place.parent, place.parent.parent):
        if not any(empty.glob("*")):
            empty.rmdir()


def _write_through(partial: Path, content: bytes) -> None:
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _hash(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()
