"""What is annotated in QuPath comes back to where it was, in every frame that a slide can have.

A rectangle is painted into the scan and annotated in QuPath; patches are cut from it, a stub that sees
nothing but colour scores the slide, and the regions go back. So a shift anywhere on the way, of
pixels or of places, shows.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import torch
from drawnframes import TUMOR, Shown, half, make_context, write_scn, write_tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import box

from hnscc_qp.geometry import STEP_PX, WINDOW_MPP, Grid
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.patches.labels import Label, label_windows
from hnscc_qp.qupath.geojson import read_geojson
from hnscc_qp.qupath.objects import ObjectType, PathObject, RoiKind
from hnscc_qp.scoring.regions import to_detection, vectorize
from hnscc_qp.scoring.slide import score_slide
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.steps.context import Context

TISSUE_RGB = (225, 150, 190)
TUMOR_RGB = (90, 40, 130)
HALF_THE_VOTES = 8
_HAIR_UM = 0.25
"""Half a level-0 px: by so much OpenSlide itself moves levels whose downsample is not whole."""


class ColourClassifier(torch.nn.Module):
    """Says tumor if most of a window has the painted colour."""

    temperature = 1.0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        margin = (TISSUE_RGB[1] + TUMOR_RGB[1]) / 2 - windows[:, 1].float().mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


class ColourCascade(Cascade):
    """That classifier alone."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.primary, self.secondary = ColourClassifier(), None


@dataclass(frozen=True)
class Frame:
    """One way for a scan to become what QuPath shows."""

    mpp: tuple[float, float]
    calibrated: bool
    """In QuPath; the file then says something else."""
    bounds: str
    """`none`, `crop` (a scan with bounds, as QuPath shows it), `no-crop` (with that argument)."""
    origin: tuple[int, int]
    """Of the bounds, in level-0 px."""
    levels: int
    crop_px: tuple[int, int, int, int] | None = None
    """Cut off by QuPath: left, top, right, bottom."""
    quarters: int = 0
    """Then turned by QuPath, clockwise."""

    @property
    def shown_mpp(self) -> tuple[float, float]:
        return (self.mpp[1], self.mpp[0]) if self.quarters % 2 else self.mpp


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    mpp = draw(st.sampled_from([(0.25, 0.25), (0.5, 0.5), (0.2428, 0.2428), (0.25, 0.46), (0.5, 0.33)]))
    # Files can't say that their pixels are not square, or not in whole nm, in a form OpenSlide takes.
    calibrated = mpp not in [(0.25, 0.25), (0.5, 0.5)] or draw(st.booleans())
    bounds = draw(st.sampled_from(["none", "crop", "no-crop"]))
    origin = (0, 0) if bounds == "none" else (draw(st.integers(80, 300)), draw(st.integers(80, 300)))
    crop = draw(st.none() | st.tuples(*[st.integers(0, 15)] * 4))
    return Frame(
        mpp, calibrated, bounds, origin, draw(st.integers(1, 2)), crop, draw(st.sampled_from([0, 0, 1, 2, 3]))
    )


@st.composite
def rectangles_um(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) within the imaged part, µm."""
    left, top = draw(st.floats(50, 110)), draw(st.floats(50, 90))
    return left, top, left + draw(st.floats(60, 120)), top + draw(st.floats(60, 110))


SIZE_UM = (290, 260)


def draw_case(
    folder: Path, frame: Frame, rectangle_um: tuple[float, float, float, float]
) -> tuple[Context, tuple[int, ...]]:
    """The project, and the painted rectangle in QuPath px."""
    width, height = round(SIZE_UM[0] / frame.mpp[0]), round(SIZE_UM[1] / frame.mpp[1])
    left, top, right, bottom = (round(side / frame.mpp[axis % 2]) for axis, side in enumerate(rectangle_um))
    pixels = np.full((height, width, 3), TISSUE_RGB, np.uint8)
    pixels[top:bottom, left:right] = TUMOR_RGB
    levels = [pixels, half(pixels)][: frame.levels]
    in_file = 0.4 if frame.calibrated else frame.mpp[0]
    if frame.bounds == "none":
        slide = write_tiff(folder / "drawn.tif", levels, in_file)
    else:
        slide = write_scn(folder / "drawn.scn", levels, in_file, frame.origin)
    size, painted = (width, height), (left, top, right, bottom)
    if frame.bounds == "no-crop":
        x, y = frame.origin
        size = width + 2 * x, height + 2 * y
        painted = left + x, top + y, right + x, bottom + y
    wrappers = []
    if frame.crop_px:
        x, y, *cut = frame.crop_px
        size = size[0] - x - cut[0], size[1] - y - cut[1]
        painted = painted[0] - x, painted[1] - y, painted[2] - x, painted[3] - y
        region = {"x": x, "y": y, "width": size[0], "height": size[1], "z": 0, "t": 0}
        wrappers.append({"builderType": "cropped", "region": region})
    for _ in range(frame.quarters):
        left, top, right, bottom = painted
        painted = size[1] - bottom, left, size[1] - top, right
        size = size[1], size[0]
    if frame.quarters:
        wrappers.append({"builderType": "rotated", "rotation": f"ROTATE_{90 * frame.quarters}"})
    shown = Shown(
        size,
        calibration=frame.shown_mpp if frame.calibrated else None,
        args=("--no-crop",) if frame.bounds == "no-crop" else (),
        wrappers=tuple(wrappers),
    )
    annotation = PathObject(
        ObjectType.ANNOTATION,
        box(*painted),
        RoiKind.RECTANGLE,
        box(*painted).area,
        UUID(int=7, version=4),
        path_class=TUMOR,
    )
    return make_context(folder, slide, shown, [annotation]), painted


def round_trip(context: Context) -> tuple[float, ...]:
    """Score by colour, push, and read back: the bounds of the one detection in QuPath px."""
    (image,) = context.project.images
    slide = context.open_image(image)
    score_map = score_slide(
        slide,
        cascade=ColourCascade(),
        settings=context.study.scoring,
        device=torch.device("cpu"),
    ).score_map
    detections = [
        to_detection(region, slide_name=image.name, model_hash="stub", generation="001")
        for region in vectorize(score_map, threshold_votes=HALF_THE_VOTES)
    ]
    (found,) = read_geojson(context.project.write_detections(image, detections)).objects
    return found.roi.bounds


@settings(max_examples=30, deadline=None)
@given(frames(), rectangles_um())
def test_what_is_annotated_comes_back_within_one_block(frame, rectangle_um):
    with tempfile.TemporaryDirectory() as folder:
        context, painted = draw_case(Path(folder), frame, rectangle_um)
        found = round_trip(context)
        off_um = [
            abs(one - other) * frame.shown_mpp[axis % 2]
            for axis, (one, other) in enumerate(zip(found, painted, strict=True))
        ]
        assert max(off_um) <= STEP_PX * WINDOW_MPP + _HAIR_UM


@settings(max_examples=30, deadline=None)
@given(frames(), rectangles_um())
def test_a_patch_shows_tumor_where_its_label_says_so(frame, rectangle_um):
    with tempfile.TemporaryDirectory() as folder:
        context, painted = draw_case(Path(folder), frame, rectangle_um)
        (image,) = context.project.images
        slide = context.open_image(image)
        assert (slide.pixel_size.x, slide.pixel_size.y) == pytest.approx(frame.shown_mpp)
        grid = Grid.of_method(slide.size, slide.pixel_size)
        labels = label_windows(
            context.project.objects(image),
            name=image.name,
            size=slide.size,
            grid=grid,
            tissue=find_tissue(slide, grid),
            classes=context.study.classes,
            positive=True,
            settings=context.study.patches.model_copy(update={"stride_px": STEP_PX}),
        )
        pixels = cut_windows(slide, grid, labels.x_px, labels.y_px)
    painted_like = pixels[..., 1] < (TISSUE_RGB[1] + TUMOR_RGB[1]) / 2
    shows_tumor = painted_like.any(axis=(1, 2))
    is_tumor = labels.label == Label.TUMOR
    assert is_tumor.any()
    assert not (shows_tumor & ~is_tumor).any()
    # A window that overlaps by less than its outermost pixel need not show it.
    left, top, right, bottom = (side * frame.shown_mpp[axis % 2] for axis, side in enumerate(painted))
    across = np.minimum(labels.x_px + 40, right) - np.maximum(labels.x_px, left)
    down = np.minimum(labels.y_px + 40, bottom) - np.maximum(labels.y_px, top)
    clear = (across > 1.5) & (down > 1.5)
    assert shows_tumor[clear].all()
    assert is_tumor[clear].all()


@pytest.mark.parametrize("bounds", ["crop", "no-crop"])
def test_a_wrong_frame_would_not_pass_unseen(tmp_path, bounds):
    """The checks above can fail: with the bounds taken the wrong way, the rectangle lands elsewhere."""
    frame = Frame((0.5, 0.5), True, bounds, (120, 90), 1)
    context, painted = draw_case(tmp_path, frame, (60, 60, 160, 160))
    (image,) = context.project.images
    wrong = dataclasses.replace(image, args=() if bounds == "no-crop" else ("--no-crop",), size=None)
    context.project.images = (wrong,)
    found = round_trip(context)
    assert abs(found[0] - painted[0]) * 0.5 > 2 * STEP_PX
