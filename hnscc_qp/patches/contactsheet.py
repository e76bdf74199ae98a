"""The contact sheet: one HTML file that shows a pathologist what the machine is told."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from shapely.geometry.base import BaseGeometry

from hnscc_qp import RESEARCH_USE_ONLY, __version__, study
from hnscc_qp.files import write_text
from hnscc_qp.geometry import Grid, Region
from hnscc_qp.patches.labels import Label, WindowLabels, annotated_meanings
from hnscc_qp.patches.lint import Finding
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.slides.reader import Slide

KINDS = {
    "borderline": "Borderline: tumor and nontumor windows side by side",
    "tumor": "Tumor windows",
    "nontumor": "Nontumor windows",
    "ignored": "Ignored windows",
}
_AROUND_PX = 60
"""Of the window, on each side, at the window's resolution."""
_JPEG_QUALITY = 85
_MAX_FINDINGS = 500
_COLORS = {Label.TUMOR: "#b3123a", Label.NONTUMOR: "#0b57c4", Label.IGNORED: "#54545f", None: "#54545f"}


@dataclass(frozen=True, slots=True)
class Outline:
    """An annotation's boundary within a picture."""

    path: str
    """SVG path data in the picture's px."""
    color: str
    dashed: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A window in its surroundings, and what is said about it."""

    image: str
    label: str
    reason: str
    annotation_ids: tuple[str, ...]
    x: int
    """Centre of the window, in QuPath px."""
    y: int
    side_px: int
    at_px: int
    """Where the window begins in the picture, across and down."""
    window_px: int
    jpeg: str
    """Base64."""
    outlines: tuple[Outline, ...]

    @property
    def script(self) -> str:
        """A line for QuPath's script editor that goes there and selects what decided."""
        line = f"getCurrentViewer().setCenterPixelLocation({self.x}, {self.y})"
        if self.annotation_ids:
            ids = ", ".join(f"'{one}'" for one in self.annotation_ids)
            line += f"; selectObjects {{ [{ids}].contains(it.getID().toString()) }}"
        return line


@dataclass(frozen=True, slots=True)
class DrawnShapes:
    """All annotations of an image, sorted out once for all of its pictures."""

    rois: npt.NDArray[np.object_]
    bounds: npt.NDArray[np.float64]
    meanings: tuple[Label | None, ...]

    @classmethod
    def of(cls, objects: Sequence[PathObject], classes: study.Classes) -> DrawnShapes:
        """Annotations at any depth, with what the study makes of them."""
        drawn = list(annotated_meanings(objects, classes))
        rois = np.empty(len(drawn), object)
        rois[:] = [item.roi for item, _ in drawn]
        return cls(rois, shapely.bounds(rois).reshape(-1, 4), tuple(meaning for _, meaning in drawn))

    def near(self, box: BaseGeometry) -> list[tuple[BaseGeometry, Label | None]]:
        """Those whose bounds meet a box."""
        x0, y0, x1, y1 = box.bounds
        left, top, right, bottom = self.bounds.T
        # An empty shape has no bounds, and comparing them is false.
        hit = np.flatnonzero((left <= x1) & (right >= x0) & (top <= y1) & (bottom >= y0))
        return [(self.rois[index], self.meanings[index]) for index in hit]


@dataclass(frozen=True, slots=True)
class SheetRow:
    """A line of the table of rules."""

    image: str
    side: str
    windows: Mapping[str, int]
    """Rule → windows."""


def kinds_of(windows: WindowLabels) -> dict[str, npt.NDArray[np.intp]]:
    """Indices of the windows of each kind; a borderline window is tumor or nontumor too."""
    found = {
        label.name.lower(): np.flatnonzero(windows.label == label)
        for label in (Label.TUMOR, Label.NONTUMOR, Label.IGNORED)
    }
    columns = len(np.unique(windows.x_px))
    label = windows.label.reshape(-1, columns) if columns else windows.label.reshape(0, 0)
    border = np.zeros(label.shape, bool)
    for axis in (0, 1):
        before, after = (np.swapaxes(label, 0, axis)[part] for part in (np.s_[:-1], np.s_[1:]))
        differ = (before != after) & (before != Label.IGNORED) & (after != Label.IGNORED)
        view = np.swapaxes(border, 0, axis)
        view[:-1] |= differ
        view[1:] |= differ
    return {"borderline": np.flatnonzero(border.ravel())} | found


def sample_windows(
    windows: Mapping[str, WindowLabels], *, each: int, seed: int
) -> dict[str, list[tuple[str, int]]]:
    """Choose up to `each` windows of every kind, in turn from each slide and rule; the same for a seed.

    Args:
        windows: by entry id.
        each: of a kind.
        seed: another one shows other windows.

    Returns:
        Kind → (entry id, index of the window).
    """
    groups: dict[str, dict[tuple[str, str], npt.NDArray[np.intp]]] = defaultdict(dict)
    for entry_id, one in windows.items():
        reasons = np.asarray(one.reason.codes)
        for kind, indices in kinds_of(one).items():
            for code in np.unique(reasons[indices]):
                groups[kind][entry_id, str(code)] = indices[reasons[indices] == code]
    return {kind: _in_turn(groups[kind], each, f"{seed}/{kind}") for kind in KINDS}


def _in_turn(
    groups: Mapping[tuple[str, str], npt.NDArray[np.intp]], each: int, seed: str
) -> list[tuple[str, int]]:
    shuffled = []
    for entry_id, code in sorted(groups):
        digest = hashlib.sha256(f"{seed}/{entry_id}/{code}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        indices = groups[entry_id, code]
        shuffled.append((entry_id, generator.choice(indices, min(each, len(indices)), replace=False)))
    chosen: list[tuple[str, int]] = []
    for turn in range(each):
        chosen += [(entry_id, int(indices[turn])) for entry_id, indices in shuffled if turn < len(indices)]
        if len(chosen) >= each:
            break
    return sorted(chosen[:each])


def draw_picture(
    slide: Slide,
    grid: Grid,
    windows: WindowLabels,
    index: int,
    *,
    image: str,
    drawn: DrawnShapes,
) -> Picture:
    """Read a window with what lies around it, and what was drawn there."""
    scale_x, scale_y = grid.pixel_size.qupath_px_per(grid.mpp)
    left, top = int(windows.x_px[index]) - _AROUND_PX, int(windows.y_px[index]) - _AROUND_PX
    side = grid.window_px + 2 * _AROUND_PX
    region = Region(left * scale_x, top * scale_y, side * scale_x, side * scale_y)
    buffer = io.BytesIO()
    Image.fromarray(slide.read(region, grid.mpp)).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    box = shapely.box(region.x, region.y, region.x + region.width, region.y + region.height)
    outlines = []
    for roi, meaning in drawn.near(box):
        part = _boundary_within(roi, box)
        if not part.is_empty:
            shifted = shapely.transform(part, lambda points: points / (scale_x, scale_y) - (left, top))
            outlines.append(Outline(_svg_path(shifted), _COLORS[meaning], meaning is None))
    half = grid.window_px / 2
    return Picture(
        image=image,
        label=Label(int(windows.label[index])).name.lower(),
        reason=windows.reason[index],
        annotation_ids=windows.annotation_ids[index],
        x=round((left + _AROUND_PX + half) * scale_x),
        y=round((top + _AROUND_PX + half) * scale_y),
        side_px=side,
        at_px=_AROUND_PX,
        window_px=grid.window_px,
        jpeg=base64.b64encode(buffer.getvalue()).decode("ascii"),
        outlines=tuple(outlines),
    )


def write_sheet(
    path: Path,
    *,
    study_name: str,
    pictures: Mapping[str, Sequence[Picture]],
    findings: Sequence[Finding],
    rows: Sequence[SheetRow],
) -> None:
    """Write the sheet, with everything in it; it needs no network.

    Args:
        path: of the HTML file.
        study_name: for the title.
        pictures: by kind.
        findings: the first ones are shown, the worst first.
        rows: how many windows each rule made what they are.
    """
    environment = Environment(
        loader=PackageLoader("hnscc_qp.patches"), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("contact-sheet.html").render(
        study=study_name,
        research_use_only=RESEARCH_USE_ONLY,
        version=__version__,
        kinds=[
            {"name": kind, "title": title, "pictures": pictures.get(kind, ())}
            for kind, title in KINDS.items()
        ],
        findings=findings[:_MAX_FINDINGS],
        left_out=max(0, len(findings) - _MAX_FINDINGS),
        columns=sorted({rule for row in rows for rule in row.windows}),
        rows=rows,
    )
    write_text(path, text)


def _boundary_within(roi: BaseGeometry, box: BaseGeometry) -> BaseGeometry:
    """Lines of an outline inside the picture, and small circles for points."""
    if shapely.get_dimensions(roi) == 0:
        roi = roi.buffer(max(box.bounds[2] - box.bounds[0], 1) / 50)
    lines = roi if shapely.get_dimensions(roi) == 1 else shapely.boundary(roi)
    return shapely.intersection(lines, box)


def _svg_path(lines: BaseGeometry) -> str:
    parts = []
    for line in shapely.get_parts(shapely.line_merge(lines)):
        if shapely.get_dimensions(line) == 1:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shapely.get_coordinates(line))
            parts.append(f"M{points}")
    return " ".join(parts)
