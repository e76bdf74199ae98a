"""What a QuPath project is to the rest of the program, and how to open one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from uuid import UUID

from hnscc_qp.errors import BackendError
from hnscc_qp.geometry import PixelSize, View
from hnscc_qp.qupath.objects import PathClass, PathObject
from hnscc_qp.qupath.ownership import AI_TUMOR, WritePlan

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
    """Why this image can't be placed exactly (flipped, a series, ...); None if it can."""
    view: View = ()
    """How the file's image is cropped and turned before QuPath shows it."""

    @property
    def crop_to_bounds(self) -> bool:
        """Whether QuPath shows only the slide's bounds: its OpenSlide server does unless told not to."""
        return self.server == "OpenslideServerBuilder" and "--no-crop" not in self.args


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
    def notes(self) -> Sequence[str]:
        """Lines about the project that a person should know, such as that it is of a newer QuPath."""

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

    def fingerprint(self, image: ImageEntry) -> str:
        """Hex SHA-256 of all that the project says about the image: entry, server and objects.

        It changes whenever QuPath saves the image anew, so that a result can name what it was made from.

        Raises:
            ObjectDataError: a file can't be read.
        """

    def imported_ids(self, image: ImageEntry) -> frozenset[UUID]:
        """Ids of our detections that the image remembers to have taken in; empty if it keeps no memory.

        Raises:
            ObjectDataError: the stored objects are damaged.
        """

    def saved_at(self, image: ImageEntry) -> float | None:
        """When the file that holds the image's objects was last written, in seconds since 1970; None if
        there is none."""

    def slide_path(self, image: ImageEntry) -> Path:
        """Where the slide lies now.

        Raises:
            SlideNotFoundError: with every place that was looked at.
            UnsupportedServerError: the image can't be placed exactly.
        """

    def plan_detections(
        self, image: ImageEntry, detections: Sequence[PathObject], *, kind: PathClass = AI_TUMOR
    ) -> WritePlan:
        """What `write_detections` would come to in QuPath; changes nothing.

        Raises:
            ObjectDataError: the stored objects are damaged.
        """

    def write_detections(
        self, image: ImageEntry, detections: Sequence[PathObject], *, kind: PathClass = AI_TUMOR
    ) -> Path:
        """Write our detections of one kind into the image, or for QuPath to take in; returns the file.

        They take the place of those of this class that we wrote before. What the pathologist made or
        touched stays as it is. Doing it again changes no byte. `safewrite.undo_last_write` takes back all
        that was written since the project was opened.

        Raises:
            ObjectDataError: the stored objects are damaged.
            ProjectError: the write is not safe or not possible; everything is as it was.
        """


def open_project(path: Path, *, backend: Backend = "auto", slide_folders: Sequence[Path] = ()) -> Project:
    """Open a project by its `.qpproj` file or its directory.

    Args:
        path: the file or the directory that holds it.
        backend: `embedded` reads the files without Java; `paquo` asks a real QuPath;
            `auto` takes `paquo` where it finds a QuPath, else `embedded`; which and why is in `notes`.
        slide_folders: searched by file name for slides that are not where the project says.

    Raises:
        ProjectNotFoundError: nothing there.
        ProjectError: not a project, or one without images.
        BackendError: the backend is not available.
    """
    # Imported here because the backends need the definitions above.
    from hnscc_qp.qupath.embedded import EmbeddedProject  # noqa: PLC0415
    from hnscc_qp.qupath.jvm import PaquoProject, find_qupath  # noqa: PLC0415

    if backend == "paquo":
        return PaquoProject(path, slide_folders=slide_folders)
    project = EmbeddedProject(path, slide_folders=slide_folders)
    if backend == "embedded":
        return project
    try:
        find_qupath()
        return PaquoProject(path, slide_folders=slide_folders)
    except BackendError as error:
        project.notes = (*project.notes, f"read without QuPath, detections go to GeoJSON files: {error}")
        return project
