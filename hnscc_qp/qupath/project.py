"""What a QuPath project is to the rest of the program, and how to open one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from hnscc_qp.geometry import PixelSize
from hnscc_qp.qupath.objects import PathClass, PathObject

Backend = Literal["auto", "embedded", "paquo"]


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of a project, as the project describes it."""

    entry_id: str
    name: str
    uri: str
    """As stored; it may point to where the project once was."""
    server: str
    """Simple class name of the server builder, such as `OpenslideServerBuilder`."""
    args: tuple[str, ...]
    metadata: Mapping[str, str]
    description: str | None
    image_type: str | None
    """QuPath's words, such as `Brightfield (H&E)`; None if the image was never saved."""
    size: tuple[int, int] | None
    """(width, height) in QuPath px, if the project says."""
    pixel_size: PixelSize | None
    """Calibration stored in the project, if it is in µm."""
    saved: bool
    """Whether QuPath has saved the image's objects."""
    unsupported: str | None = None
    """Why this image can't be placed exactly (rotated, cropped, a series, ...); None if it can."""

    @property
    def crop_to_bounds(self) -> bool:
        """QuPath crops to the slide's bounds unless told not to."""
        return "--no-crop" not in self.args


class Project(Protocol):
    """A QuPath project. Reading never changes it."""

    @property
    def path(self) -> Path:
        """The `.qpproj` file."""

    @property
    def backend(self) -> str:
        """`embedded` or `paquo`."""

    @property
    def qupath_version(self) -> str | None:
        """Version that last wrote the project."""

    @property
    def path_classes(self) -> Sequence[PathClass]:
        """The project's list of classes."""

    @property
    def images(self) -> Sequence[ImageEntry]:
        """Every entry, in the project's order, readable or not."""

    def objects(self, image: ImageEntry) -> tuple[PathObject, ...]:
        """The image's top-level objects; children hang below them.

        Raises:
            ObjectDataError: the stored objects are damaged.
        """

    def slide_path(self, image: ImageEntry) -> Path:
        """Where the slide lies now.

        Raises:
            SlideNotFoundError: with every place that was looked at.
            UnsupportedServerError: the image can't be placed exactly.
        """

    def write_detections(self, image: ImageEntry, detections: Sequence[PathObject]) -> Path:
        """Write our detections for QuPath to take in; returns the file. Nothing else is touched."""


def open_project(path: Path, *, backend: Backend = "auto", slide_folders: Sequence[Path] = ()) -> Project:
    """Open a project by its `.qpproj` file or its directory.

    Args:
        path: the file or the directory that holds it.
        backend: `embedded` reads the files without Java; `paquo` asks a real QuPath;
            `auto` takes what is there.
        slide_folders: searched by file name for slides that are not where the project says.

    Raises:
        ProjectNotFoundError: nothing there.
        ProjectError: not a project, or one without images.
        BackendError: the backend is not available.
    """
    raise NotImplementedError
