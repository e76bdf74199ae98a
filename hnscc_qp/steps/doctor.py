"""`doctor`: what is installed, and whether every image of a study is where the study takes it to be.

Nothing is written but temporary files; the project is only read.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import openslide
import shapely
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hnscc_qp import __version__
from hnscc_qp.errors import BackendError, HnsccQpError, MissingMppError
from hnscc_qp.geometry import WINDOW_MPP, WINDOW_PX, Grid, Region
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.patches.labels import Label, label_windows
from hnscc_qp.qupath.geojson import read_geojson, write_geojson
from hnscc_qp.qupath.jvm import find_qupath
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind, walk
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.scoring.regions import to_detection, vectorize
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.slides.framecheck import correlate, find_offset
from hnscc_qp.slides.reader import RGBPixels, Slide, open_slide, require_mpp
from hnscc_qp.steps.context import Context

_MARK_WINDOWS = 3
"""Windows along one side of a mark."""
_MARKS = 4
_ALIKE = 0.8
"""Least correlation of a mark with level 0; averaging in another order keeps 0.99 and more."""
_SAME_PICTURE = 0.5
"""Least correlation with QuPath's thumbnail; another slide has about 0."""
_BLACK = 16
_MPP_TOLERANCE = 0.02
_GEOJSON_PX = 0.02


@dataclass(slots=True)
class ImageCheck:
    """What was found of one image; what could not be found out is None."""

    image: str
    slide: str | None = None
    size_px: tuple[int, int] | None = None
    """In QuPath."""
    slide_size_px: tuple[int, int] | None = None
    """Level 0, before any cropping."""
    bounds_origin_px: tuple[int, int] | None = None
    """Corner of what QuPath shows, in level 0."""
    view: list[str] = field(default_factory=list)
    mpp: tuple[float, float] | None = None
    mpp_source: str | None = None
    levels: list[float] = field(default_factory=list)
    """Downsample of each."""
    objects: int | None = None
    marks: int = 0
    """Places that were marked, read and sent both ways."""
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_installation() -> list[dict[str, Any]]:
    """What is installed: rows of `part`, `version` (None if it is missing), `needed` and `meaning`."""
    return [
        _part("hnscc-qp", __version__),
        _part("Python", platform.python_version()),
        _torch(),
        _part("OpenSlide", openslide.__library_version__, "reads slides"),
        _qupath(),
    ]


def check_study(context: Context) -> dict[str, Any]:
    """Check every image: its slide, pixel size and objects, and that places survive the way there and back.

    Marks of 120 µm are set where the image has most contrast. Each is written as an annotation,
    read, turned into labelled windows, cut as patches, looked for in level 0 of the file, made a
    region and read back. They must lie within a grid pixel of where QuPath has them.

    Returns:
        `study`, `project`, `backend`, `notes`, `images` (one `ImageCheck` each, as JSON) and
        `failed`: image name → problems.

    Raises:
        ProjectNotFoundError, ProjectError, BackendError: as `open_project`.
    """
    project = context.project
    checks = []
    with context.progress.task("checking images", total=len(project.images), unit="images") as task:
        for image in project.images:
            checks.append(_check_image(context, image))
            task.advance(note=image.name)
    return {
        "study": str(context.study.path),
        "project": str(project.path),
        "backend": project.backend,
        "notes": list(project.notes),
        "images": [{name: getattr(check, name) for name in ImageCheck.__slots__} for check in checks],
        "failed": {check.image: "; ".join(check.problems) for check in checks if check.problems},
    }


def _check_image(context: Context, image: ImageEntry) -> ImageCheck:
    check = ImageCheck(image.name, size_px=image.size, view=[str(step) for step in image.view])
    try:
        check.objects = sum(1 for _ in walk(context.objects(image)))
    except HnsccQpError as error:
        check.problems.append(str(error))
    try:
        slide = context.open_as_scanned(image)
        check.slide, check.size_px = str(slide.path), slide.size
        check.slide_size_px, check.bounds_origin_px = slide.levels[0].size, slide.bounds
        check.levels = [max(level.downsample) for level in slide.levels]
        _check_pixel_size(check, slide)
        _check_thumbnail(check, slide, context.project.path.parent / "data" / image.entry_id)
        require_mpp(slide, WINDOW_MPP)
        _check_marks(check, slide, image, context)
    except HnsccQpError as error:
        check.problems.append(str(error))
    return check


def _check_pixel_size(check: ImageCheck, slide: Slide) -> None:
    size = slide.pixel_size
    check.mpp, check.mpp_source = (size.x, size.y), slide.pixel_size_source
    try:
        stored = open_slide(slide.path, view=slide.view, crop_to_bounds=slide.crop_to_bounds).pixel_size
    except MissingMppError:
        return
    if max(abs(size.x / stored.x - 1), abs(size.y / stored.y - 1)) > _MPP_TOLERANCE:
        check.remarks.append(
            f"QuPath says {size.x:.4g} × {size.y:.4g} µm/px and the slide {stored.x:.4g} × {stored.y:.4g}; "
            "QuPath's is used"
        )


def _check_thumbnail(check: ImageCheck, slide: Slide, data: Path) -> None:
    """QuPath's own picture of the image tells a slide that is another of the same size."""
    try:
        with Image.open(data / "thumbnail.jpg") as opened:
            theirs = np.array(opened.convert("RGB"))
    except OSError:  # none was made, or it is damaged: not needed for anything else
        return
    height, width = theirs.shape[:2]
    ours = Image.fromarray(slide.thumbnail(max(height, width))).resize((width, height))
    # What was not scanned is black in QuPath and white here.
    theirs[theirs.max(axis=2) < _BLACK] = 255
    correlation = correlate(np.asarray(ours), theirs)
    if correlation is not None and correlation < _SAME_PICTURE:
        check.problems.append(
            f"{check.image}: {slide.path} does not look like QuPath's thumbnail (correlation "
            f"{correlation:.2f}), so it may be another slide; correct the slide's path in QuPath"
        )


def _check_marks(check: ImageCheck, slide: Slide, image: ImageEntry, context: Context) -> None:
    grid = Grid.of_method(slide.size, slide.pixel_size)
    places = _choose_places(slide, grid)
    if not places:
        check.remarks.append("places not checked: the image is too small")
        return
    marks = [_mark(grid, place, context.study.classes.tumor[0]) for place in places]
    marks = _through_geojson(marks)
    labels = label_windows(
        marks,
        name=image.name,
        size=slide.size,
        grid=grid,
        tissue=np.ones((grid.rows, grid.columns), np.bool_),
        classes=context.study.classes,
        positive=True,
        settings=context.study.patches.model_copy(update={"stride_px": WINDOW_PX}),
    )
    plain = 0
    for place, mark in zip(places, marks, strict=True):
        mine = [ids == (str(mark.id),) for ids in labels.annotation_ids]
        chosen = np.flatnonzero(np.array(mine) & (labels.label == Label.TUMOR))
        x_px, y_px = labels.x_px[chosen], labels.y_px[chosen]
        problem = _misplaced(grid, place, x_px, y_px) or _not_back(slide, grid, mark, x_px, y_px)
        if problem is None:
            pixels = _mosaic(cut_windows(slide, grid, x_px, y_px))
            offset = find_offset(slide, pixels, _region(grid, place), size=image.size)
            if offset is None:
                plain += 1
                continue
            if offset.correlation < _ALIKE:
                problem = f"shows something else (correlation {offset.correlation:.2f})"
            elif offset.x_px or offset.y_px:
                problem = f"is off by {offset.x_px}, {offset.y_px} µm in the pixels"
        if problem:
            bounds = _region(grid, place)
            check.problems.append(
                f"{image.name}: what QuPath has at x = {bounds.x:.0f}, y = {bounds.y:.0f} px {problem}; "
                "leave the image out and report it with this line"
            )
            return
        check.marks += 1
    if plain == len(places):
        check.remarks.append("places not checked: nothing with contrast was found")


def _choose_places(slide: Slide, grid: Grid) -> list[tuple[int, int]]:
    """(row, column) of the window that a mark starts on: where each quarter of the image varies most."""
    rows, columns = grid.rows // grid.window_blocks, grid.columns // grid.window_blocks
    # Far enough from the border that the search around a mark stays within the image.
    free_rows, free_columns = rows - _MARK_WINDOWS - 1, columns - _MARK_WINDOWS - 1
    if free_rows < 1 or free_columns < 1:
        return []
    overview = Image.fromarray(slide.thumbnail(max(rows, columns))).resize((columns, rows))
    grey = np.asarray(overview.convert("L"), np.float64)
    mean = ndimage.uniform_filter(grey, _MARK_WINDOWS)
    variance = ndimage.uniform_filter(grey**2, _MARK_WINDOWS) - mean**2
    # Of the square that starts there, rather than of the one around.
    starts = variance[1 : 1 + rows, 1 : 1 + columns][1 : 1 + free_rows, 1 : 1 + free_columns]
    places = []
    for part_rows in np.array_split(np.arange(free_rows), 2):
        for part_columns in np.array_split(np.arange(free_columns), 2):
            if len(part_rows) and len(part_columns):
                part = starts[np.ix_(part_rows, part_columns)]
                row, column = np.unravel_index(int(part.argmax()), part.shape)
                places.append((int(part_rows[row]) + 1, int(part_columns[column]) + 1))
    # Marks that overlap would share windows.
    apart: list[tuple[int, int]] = []
    for place in places[:_MARKS]:
        if all(max(abs(place[0] - row), abs(place[1] - column)) > _MARK_WINDOWS for row, column in apart):
            apart.append(place)
    return apart


def _region(grid: Grid, place: tuple[int, int]) -> Region:
    blocks = grid.window_blocks
    side = _MARK_WINDOWS * blocks
    return grid.region(place[0] * blocks, place[1] * blocks, rows=side, columns=side)


def _mark(grid: Grid, place: tuple[int, int], class_name: str) -> PathObject:
    """An annotation a grid pixel within the windows it marks: GeoJSON keeps 0.01 px only."""
    region = _region(grid, place)
    inset_x, inset_y = grid.pixel_size.qupath_px_per(grid.mpp)
    shape = shapely.box(
        region.x + inset_x,
        region.y + inset_y,
        region.x + region.width - inset_x,
        region.y + region.height - inset_y,
    )
    return PathObject(
        ObjectType.ANNOTATION,
        shape,
        RoiKind.RECTANGLE,
        shape.area,
        UUID(int=place[0] << 32 | place[1], version=4),
        path_class=PathClass(tuple(class_name.split(": "))),
    )


def _through_geojson(objects: Sequence[PathObject]) -> list[PathObject]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "marks.geojson")
        write_geojson(file, objects)
        return list(read_geojson(file).objects)


def _misplaced(
    grid: Grid, place: tuple[int, int], x_px: NDArray[np.int32], y_px: NDArray[np.int32]
) -> str | None:
    """Whether the windows under a mark are not those that it was drawn over."""
    wanted = {
        ((place[1] + column) * grid.window_px, (place[0] + row) * grid.window_px)
        for row in range(_MARK_WINDOWS)
        for column in range(_MARK_WINDOWS)
    }
    found = set(zip(x_px.tolist(), y_px.tolist(), strict=True))
    return None if found == wanted else f"labels {len(found)} windows, {len(wanted - found)} of its own not"


def _not_back(
    slide: Slide, grid: Grid, mark: PathObject, x_px: NDArray[np.int32], y_px: NDArray[np.int32]
) -> str | None:
    """Whether the region made of a mark's windows does not come back to the mark."""
    votes = np.zeros((grid.rows, grid.columns), np.uint8)
    for x, y in zip(x_px // grid.step_px, y_px // grid.step_px, strict=True):
        votes[y : y + grid.window_blocks, x : x + grid.window_blocks] = grid.window_blocks**2
    score_map = ScoreMap(votes, np.full_like(votes, 16), grid, slide.size, windows=len(x_px))
    regions = vectorize(score_map, threshold_votes=16)
    back = _through_geojson(
        [to_detection(one, slide_name=slide.name, model_hash="", generation="") for one in regions]
    )
    block = min(grid.block_qupath) + _GEOJSON_PX
    if len(back) == 1 and np.abs(np.subtract(back[0].roi.bounds, mark.roi.bounds)).max() <= block:
        return None
    return "does not come back to its place as a region"


def _mosaic(windows: RGBPixels) -> RGBPixels:
    """Nine windows, row by row → the mark as one picture."""
    side = windows.shape[1]
    rows = windows.reshape(_MARK_WINDOWS, _MARK_WINDOWS, side, side, 3).swapaxes(1, 2)
    return rows.reshape(_MARK_WINDOWS * side, _MARK_WINDOWS * side, 3)


def _part(name: str, version: str | None, meaning: str = "", *, needed: bool = True) -> dict[str, Any]:
    return {"part": name, "version": version, "needed": needed, "meaning": meaning}


def _torch() -> dict[str, Any]:
    try:
        # Here, so that a broken installation is named rather than stops the doctor.
        import torch  # noqa: PLC0415
    except (ImportError, OSError) as error:
        return _part("PyTorch", None, f"can't be loaded ({error}); install hnscc-qp again")
    if torch.cuda.is_available():
        return _part("PyTorch", torch.__version__, f"networks run on {torch.cuda.get_device_name()}")
    return _part("PyTorch", torch.__version__, "no CUDA: networks run on the processor, which is slow")


def _qupath() -> dict[str, Any]:
    try:
        return _part("QuPath", str(find_qupath()), "reads and writes projects, through paquo", needed=False)
    except BackendError as error:
        meaning = f"not needed; without it projects are read all the same and detections go to files: {error}"
        return _part("QuPath", None, meaning, needed=False)
