"""A QuPath project read and written by a real QuPath, without its window.

paquo finds QuPath and starts its Java; from there on QuPath's own classes are asked, because paquo's
wrappers leave out much (detections' children, FeatureCollections, classes without colour). This is the
only module that imports paquo (GPL-3) and jpype, and it does so when a project is opened, not before.

A process has one Java and so one QuPath, for good; it must not fork any more after that. Java gets and gives
bytes, never paths of data files: those are read, checked, backed up and swapped here, see `safewrite`.
What the images are is read from `project.qpproj` as `embedded` does, for QuPath goes by nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from hnscc_qp.errors import BackendError, HnsccQpError, ObjectDataError, ProjectError
from hnscc_qp.files import atomic_path
from hnscc_qp.qupath.embedded import EmbeddedProject
from hnscc_qp.qupath.geojson import encode_geojson
from hnscc_qp.qupath.jvmobjects import Java, convert_objects, list_objects, read_path_class, text_or_none
from hnscc_qp.qupath.objects import PathClass, PathObject, walk
from hnscc_qp.qupath.ownership import (
    AI_TUMOR,
    MEMORY_PROPERTY,
    WritePlan,
    find_damage,
    plan_write,
    remember,
)
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.qupath.qpdata import read_qpdata
from hnscc_qp.qupath.running import refuse_while_open
from hnscc_qp.qupath.safewrite import SafeWriter, content_hash, refuse_while_saving

_OLDEST, _NEWEST = (0, 4), (0, 7)
"""Versions of QuPath that this was tried with."""
_INSTALL = 'pip install "hnscc-qp[qupath]"'


def find_qupath() -> Path:
    """The QuPath that paquo would start: `PAQUO_QUPATH_DIR`, else its configuration. Starts nothing.

    Raises:
        BackendError: paquo is not installed, or there is no QuPath.
    """
    return Path(_find().app_dir)


@dataclass(frozen=True, slots=True)
class _QuPath:
    """A running QuPath."""

    version: str
    java: Any
    """`jpype.JClass`: a Java class by its name."""
    error: type[Exception]
    """What every Java exception is."""

    @property
    def release(self) -> tuple[int, int]:
        return _release(self.version) or (0, 0)


class PaquoProject:
    """The `Project` that asks QuPath."""

    backend = "paquo"

    def __init__(self, path: Path, *, slide_folders: Sequence[Path] = ()) -> None:
        self._files = EmbeddedProject(path, slide_folders=slide_folders)
        self.path = self._files.path
        self._qupath = _start_qupath()
        self._writer = SafeWriter(self.path)
        java = self._qupath.java
        with (
            self._translated(ProjectError, str(self.path), "open it in QuPath to see why"),
            _copy_of_what_describes(self.path) as copy,
        ):
            project = java("qupath.lib.projects.ProjectIO").loadProject(
                java("java.io.File")(str(copy)), java("java.awt.image.BufferedImage").class_
            )
            self._entries = {str(entry.getID()): entry for entry in project.getImageList()}
            self.qupath_version = text_or_none(project.getVersion())
            self.path_classes = tuple(filter(None, map(read_path_class, project.getPathClasses())))
            self.images = tuple(self._image(image) for image in self._files.images)
        self.notes = (*self._files.notes, *_notes(self._qupath, self.qupath_version))

    def objects(self, image: ImageEntry) -> tuple[PathObject, ...]:
        """See `Project.objects`."""
        # Read without QuPath first: of a file cut short QuPath never stops reading.
        known = self._files.objects(image)
        data_file = self._data_file(image)
        if not data_file.is_file():
            return known
        with self._unreadable(image):
            stream = self._stream(data_file.read_bytes())
            hierarchy = self._qupath.java("qupath.lib.io.PathIO").readHierarchy(stream)
            return convert_objects(hierarchy, self._qupath.java)

    def fingerprint(self, image: ImageEntry) -> str:
        """See `Project.fingerprint`: the files are the same, whoever reads them."""
        return self._files.fingerprint(image)

    def imported_ids(self, image: ImageEntry) -> frozenset[UUID]:
        """See `Project.imported_ids`."""
        return self._files.imported_ids(image)

    def saved_at(self, image: ImageEntry) -> float | None:
        """See `Project.saved_at`."""
        return self._files.saved_at(image)

    def slide_path(self, image: ImageEntry) -> Path:
        """See `Project.slide_path`."""
        return self._files.slide_path(image)

    def plan_detections(
        self, image: ImageEntry, detections: Sequence[PathObject], *, kind: PathClass = AI_TUMOR
    ) -> WritePlan:
        """See `Project.plan_detections`."""
        # On the file's own corners: those that QuPath gives lack any that lie on a straight side.
        return self._files.plan_detections(image, detections, kind=kind)

    def write_detections(
        self, image: ImageEntry, detections: Sequence[PathObject], *, kind: PathClass = AI_TUMOR
    ) -> Path:
        """See `Project.write_detections`.

        They go into the image's `data.qpdata`; nothing else but QuPath's summary of it is
        written, the project file neither. An image that QuPath has not saved yet gets the
        GeoJSON instead: what it holds must be taken in within QuPath first.

        Raises:
            BackendError: the image was saved by a newer QuPath than the one at hand.
            ObjectDataError: its objects are damaged, or would have been by the write.
            ProjectError: the image is open in a QuPath's window; or see `SafeWriter.replace`.
        """
        data_file = self._data_file(image)
        refuse_while_saving(self.path, data_file.parent, image=image.name)
        if not data_file.is_file():
            return self._files.write_detections(image, detections, kind=kind)
        refuse_while_open([data_file, *self._slide(image)], image=image.name)
        summary_file = data_file.with_name("summary.json")
        read = {file: content_hash(file) for file in (data_file, summary_file)}
        data = data_file.read_bytes()
        if hashlib.sha256(data).hexdigest() != read[data_file]:
            raise ProjectError(f"{image.name}: QuPath is saving it; push again when it has done so")
        before = read_qpdata(data_file, image=image.name)
        written_by = _release(before.qupath_version)
        if written_by is not None and written_by > self._qupath.release:
            raise BackendError(
                f"{image.name} was saved by QuPath {before.qupath_version}, and {self._qupath.version} might "
                'not keep all of it; set PAQUO_QUPATH_DIR to the newer one, or use backend = "embedded"'
            )
        memory = before.properties.get(MEMORY_PROPERTY, "")
        plan = plan_write(before.objects, detections, memory=memory, kind=kind)
        if not plan.changes:
            return data_file
        with self._unreadable(image):
            image_data = self._read_image_data(image, data)
            self._carry_out(plan, before.objects, image_data.getHierarchy())
            image_data.setProperty(MEMORY_PROPERTY, remember(memory, plan))
            contents = {data_file: self._serialize(image_data), summary_file: self._summarize(image_data)}

        def check(written: Path) -> None:
            after = read_qpdata(written, image=image.name)
            exact = written_by == _release(after.qupath_version)
            damage = find_damage(before.objects, after.objects, plan, exact=exact)
            kept = {**after.properties, MEMORY_PROPERTY: memory}
            if damage is None and (after.image_type, kept) != (
                before.image_type,
                {**before.properties, MEMORY_PROPERTY: memory},
            ):
                damage = "the image's type or properties would change"
            if damage is not None:
                raise ObjectDataError(
                    f"{image.name}: QuPath {self._qupath.version} would not write it back as it was "
                    f'({damage}), so nothing was written; use backend = "embedded"'
                )

        self._writer.replace(contents, image=image.name, read=read, check=check)
        return data_file

    def set_image_type(self, image: ImageEntry, image_type: str) -> None:
        """Save an image for the first time: of that type, with QuPath's default stains for it, and empty.

        Args:
            image: one that QuPath has not saved yet.
            image_type: a key of `IMAGE_TYPES`.

        Raises:
            ProjectError: it holds objects already, or can't be written.
            ObjectDataError: QuPath can't open the slide.
        """
        data_file = self._data_file(image)
        if image.saved or self._files.objects(image):
            raise ProjectError(f"{image.name} has been saved already; choose its type in QuPath (Image tab)")
        java = self._qupath.java
        with self._unreadable(image):
            server = self._entries[image.entry_id].getServerBuilder().build()
            try:
                image_data = java("qupath.lib.images.ImageData")(server)
                kind = java("qupath.lib.images.ImageData$ImageType")
                image_data.setImageType(kind.valueOf(image_type))
                # The objects' file first: a summary without it means that objects were lost.
                contents = {
                    data_file: self._serialize(image_data),
                    data_file.with_name("summary.json"): self._summarize(image_data),
                }
            finally:
                server.close()
        try:
            for final, content in contents.items():
                with atomic_path(final) as partial:
                    partial.write_bytes(content)
        except OSError as error:
            raise ProjectError(f"{data_file} can't be written: {error.strerror}; make room") from error

    # --- what QuPath is asked to do ----------------------------------------------------------

    def _image(self, image: ImageEntry) -> ImageEntry:
        entry = self._entries[image.entry_id]
        return replace(
            image,
            name=str(entry.getImageName()),
            metadata={str(pair.getKey()): str(pair.getValue()) for pair in entry.getMetadataMap().entrySet()},
            description=text_or_none(entry.getDescription()),
        )

    def _read_image_data(self, image: ImageEntry, data: bytes) -> Java:
        java = self._qupath.java
        path_io, stream = java("qupath.lib.io.PathIO"), self._stream(data)
        builder = self._entries[image.entry_id].getServerBuilder()
        if self._qupath.release >= (0, 6):
            return path_io.readImageData(stream, builder)
        # Before 0.6 QuPath opens the slide, even to look at the objects only.
        moved = java("java.util.HashMap")()
        for uri in builder.getURIs():
            moved.put(uri, java("java.net.URI")(self.slide_path(image).as_uri()))
        server = builder.updateURIs(moved).build()
        try:
            return path_io.readImageData(stream, None, server, java("java.awt.image.BufferedImage").class_)
        finally:
            server.close()

    def _carry_out(self, plan: WritePlan, present: Sequence[PathObject], hierarchy: Java) -> None:
        # QuPath keeps the file's order. Would it not, `find_damage` tells.
        gone = {id(item) for item in plan.remove}
        removed = self._qupath.java("java.util.ArrayList")()
        for (_, item), (twin, _) in zip(walk(present), list_objects(hierarchy), strict=False):
            if id(item) in gone:
                removed.add(twin)
        # As GeoJSON, so that they become what they become when imported by hand.
        stream = self._stream(encode_geojson(plan.add, name="the image"))
        added = self._qupath.java("qupath.lib.io.PathIO").readObjectsFromGeoJSON(stream)
        hierarchy.removeObjects(removed, True)
        hierarchy.addObjects(added)

    def _serialize(self, image_data: Java) -> bytes:
        stream = self._qupath.java("java.io.ByteArrayOutputStream")()
        self._qupath.java("qupath.lib.io.PathIO").writeImageData(stream, image_data)
        return bytes(stream.toByteArray())

    def _summarize(self, image_data: Java) -> bytes:
        """What QuPath puts into `summary.json`; it keeps the class that knows how to itself."""
        java = self._qupath.java
        kind = java("java.lang.Class").forName("qupath.lib.projects.DefaultProject$ImageDataSummary")
        (make,) = kind.getDeclaredConstructors()
        make.setAccessible(True)
        saved_ms = java("java.lang.Long")(time.time_ns() // 1_000_000)
        summary = make.newInstance(image_data, saved_ms)
        return str(java("qupath.lib.io.GsonTools").getInstance().toJson(summary)).encode()

    def _stream(self, data: bytes) -> Java:
        return self._qupath.java("java.io.ByteArrayInputStream")(data)

    def _slide(self, image: ImageEntry) -> Iterator[Path]:
        """The slide's file, if it is found: to write objects it need not be there."""
        with suppress(HnsccQpError):
            yield self.slide_path(image)

    def _data_file(self, image: ImageEntry) -> Path:
        return self.path.parent / "data" / image.entry_id / "data.qpdata"

    @contextmanager
    def _translated(self, kind: type[HnsccQpError], what: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except self._qupath.error as error:
            raise kind(f"{what}: QuPath {self._qupath.version} says {_one_line(error)}; {remedy}") from error

    def _unreadable(self, image: ImageEntry) -> Any:
        return self._translated(ObjectDataError, image.name, 'try backend = "embedded"')


@contextmanager
def _copy_of_what_describes(project_file: Path) -> Iterator[Path]:
    """The project without its data, at a place that Java can spell in every locale."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "project.qpproj")
        try:
            shutil.copyfile(project_file, copy)
            classes = project_file.parent / "classifiers" / "classes.json"
            if classes.is_file():
                (copy.parent / "classifiers").mkdir()
                shutil.copyfile(classes, copy.parent / "classifiers" / "classes.json")
        except OSError as error:
            raise ProjectError(
                f"{project_file} can't be copied for QuPath to read ({error.strerror}); make room in {folder}"
            ) from error
        yield copy


# --- starting QuPath -------------------------------------------------------------------------


def _find() -> Any:
    if importlib.util.find_spec("paquo") is None:
        raise BackendError(f'paquo is not installed; {_INSTALL}, or use backend = "embedded"')
    from paquo._config import settings, to_kwargs  # noqa: PLC0415
    from paquo.jpype_backend import find_qupath as find  # noqa: PLC0415

    wanted = to_kwargs(settings)
    try:
        return find(**wanted)
    except (OSError, ValueError) as error:
        place = f"PAQUO_QUPATH_DIR = {wanted['qupath_dir']} leads to" if wanted["qupath_dir"] else "there is"
        raise BackendError(
            f"{place} no QuPath that paquo can start ({error}); set PAQUO_QUPATH_DIR to the folder where "
            'QuPath is installed, or use backend = "embedded"'
        ) from error


@cache
def _start_qupath() -> _QuPath:
    """Start QuPath's Java, once in a process.

    Raises:
        BackendError: it can't be found or does not start.
    """
    found = _find()
    import jpype  # noqa: PLC0415
    from paquo.jpype_backend import start_jvm  # noqa: PLC0415

    options = [
        *found.jvm_options,
        "-Djava.awt.headless=true",
        "-Xrs",  # Ctrl-C is Python's
        "--enable-native-access=ALL-UNNAMED",  # asked for by jpype, else Java 24 and later warn
    ]
    try:
        version = start_jvm(finder=lambda **_: found._replace(jvm_options=options))
        java = jpype.JClass
        # Standard output is for what a command prints.
        system = java("java.lang.System")
        system.setOut(system.err)
        # Its loading teaches QuPath's JSON about servers, which in the application has happened before.
        java("qupath.lib.images.servers.ImageServers")
        java("org.slf4j.LoggerFactory").getLogger("ROOT").setLevel(java("ch.qos.logback.classic.Level").ERROR)
    except Exception as error:
        raise BackendError(
            f"the Java of the QuPath in {found.app_dir} does not start ({_one_line(error)}); install QuPath "
            'again, or use backend = "embedded"'
        ) from error
    qupath = _QuPath(str(version), java, jpype.JException)
    if qupath.release < _OLDEST:
        raise BackendError(
            f"the QuPath in {found.app_dir} is {version}, which gives objects no ids; set PAQUO_QUPATH_DIR "
            f'to {_dotted(_OLDEST)} or later, or use backend = "embedded"'
        )
    return qupath


def _notes(qupath: _QuPath, project_version: str | None) -> Iterator[str]:
    yield f"read and written by QuPath {qupath.version}, through paquo"
    if qupath.release > _NEWEST:
        yield (
            f"QuPath {qupath.version} is newer than {_dotted(_NEWEST)}, the last one that this version of "
            "hnscc-qp was tried with; every write is checked, but look at the objects with `hnscc-qp objects`"
        )
    saved_by = _release(project_version)
    if saved_by is not None and saved_by < qupath.release:
        yield (
            f"the project was saved by QuPath {project_version}; images that hnscc-qp writes to are of "
            f"{qupath.version} from then on"
        )


def _release(version: str | None) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)", version or "")
    return None if found is None else (int(found[1]), int(found[2]))


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
