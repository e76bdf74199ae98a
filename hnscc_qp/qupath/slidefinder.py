"""Where the slide of an image lies now.

A project names its slides by absolute URI, which is stale once a disk was mounted elsewhere or the
project was copied to another computer. The order of looking is QuPath's own (`UriUpdater`): the stored
place; the same way from the present project as once from the stored one; then the file name in folders.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hnscc_qp.errors import SlideNotFoundError


@dataclass(frozen=True, slots=True)
class FileUri:
    """A `file:` URI, of whichever system wrote it."""

    root: str
    """`C:` or `//server` of Windows; empty for a POSIX path."""
    path: str
    """Decoded, with forward slashes, from the root on."""

    @classmethod
    def parse(cls, uri: str) -> FileUri | None:
        """Take a URI apart; None if it does not name one whole file (http:, a fragment, ...)."""
        try:
            parts = urlsplit(uri)
        except ValueError:
            return None
        if parts.scheme != "file" or parts.query or parts.fragment or not parts.path:
            return None
        host, path = parts.netloc, unquote(parts.path)
        if not host and path.startswith("//"):  # Java writes \\server\share as file:////server/share
            host, _, rest = path[2:].partition("/")
            path = "/" + rest
        if drive := re.match(r"/([A-Za-z]:)(/.*)", path, re.DOTALL):
            return cls(drive[1].upper(), drive[2])
        return cls("" if host in ("", "localhost") else f"//{host}", path)

    def __str__(self) -> str:
        return self.root + self.path

    @property
    def name(self) -> str:
        """The file's name."""
        return posixpath.basename(self.path)

    def here(self) -> Path | None:
        """The path on this computer; None for a Windows path elsewhere."""
        return Path(str(self)) if os.name == "nt" or not self.root else None

    def relative_to(self, base: FileUri) -> str | None:
        """The way from the folder of the file `base`, with `..` where needed; None across roots."""
        if self.root != base.root:
            return None
        return posixpath.relpath(self.path, posixpath.dirname(base.path))


class SlideFinder:
    """Finds the slides of one project."""

    def __init__(self, *, stored_project_uri: str | None, project_dir: Path, folders: Sequence[Path]) -> None:
        self._stored_project = FileUri.parse(stored_project_uri) if stored_project_uri else None
        self._project_dir = project_dir
        self._folders = tuple(folders)
        self._listings: dict[Path, dict[str, list[Path]]] = {}

    def find(self, uri: str, *, image: str) -> Path:
        """Look for the slide stored as `uri`, a `file:` URI.

        Raises:
            SlideNotFoundError: it is nowhere, or a folder holds several of its name.
        """
        slide = FileUri.parse(uri)
        if slide is None:
            raise SlideNotFoundError(
                f"the slide of {image} is not a file: {uri}; open a local copy in QuPath"
            )
        looked_at = [str(slide)]
        stored = slide.here()
        if stored is not None and _is_there(stored):
            return stored
        moved = slide.relative_to(self._stored_project) if self._stored_project else None
        if moved is not None:
            place = Path(os.path.normpath(self._project_dir / moved))
            if _is_there(place):
                return place
            looked_at.append(str(place))
        for folder in self._folders:
            found = self._in_folder(folder, slide.name)
            if len(found) > 1:
                raise SlideNotFoundError(
                    f"the slide of {image} can't be told apart: {' and '.join(map(str, found[:3]))} have the "
                    "same name; name the right folder first in `slides` of the study file"
                )
            if found:
                return found[0]
            looked_at.append(f"{folder} and below" if folder.is_dir() else f"{folder} (no such folder)")
        places = ", ".join(dict.fromkeys(looked_at))
        raise SlideNotFoundError(
            f"the slide {slide.name} of {image} is not there; looked at {places}; "
            "name its folder in `slides` of the study file, or mend the link in QuPath"
        )

    def _in_folder(self, folder: Path, name: str) -> list[Path]:
        """Files of that name in a folder; if there are none, below it."""
        direct = folder / name
        if os.path.isfile(direct):  # noqa: PTH113 - see _is_there
            return [direct]
        if folder not in self._listings:
            listing: dict[str, list[Path]] = defaultdict(list)
            for parent, _, names in os.walk(folder):
                for found in names:
                    listing[_comparable(found)].append(Path(parent, found))
            self._listings[folder] = listing
        return sorted(self._listings[folder].get(_comparable(name), []))


def _is_there(path: Path) -> bool:
    # Not path.exists(): that raises where a folder on the way may not be entered.
    return os.path.exists(path)  # noqa: PTH110


def _comparable(name: str) -> str:
    # macOS stores umlauts as two characters, others as one.
    return unicodedata.normalize("NFC", name)
