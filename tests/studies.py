"""A drawn cohort of six small slides, its QuPath project and its study: cheap enough for every test."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
import pytest
import tifffile
from shapely.geometry import Polygon, box

from hnscc_qp.cli.main import main
from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.qupath.create import NewImage, create_project
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind

SIZE = (400, 320)
"""Width and height in px, at 1.0 µm/px."""
TUMOR_BOX = (80, 80, 240, 240)
"""Where the tumor of every positive slide lies."""
_SPACE = UUID(int=0)

STUDY = """\
name = "tiny"
project = "project"
backend = "embedded"
device = "cpu"

[classes]
tumor = ["Tumor"]

[patches]
stride_px = 10
per_class = 600

[training]
recipe = "window"
weights = "none"
input_px = 32

[training.window]
orientations = 1
epochs = 5
batch_size = 16

[mining]
min_false_positives = 1000
"""


def annotation(roi: Polygon, path_class: str = "Tumor") -> PathObject:
    """An annotation with an id that depends on its outline."""
    return PathObject(
        type=ObjectType.ANNOTATION,
        roi=roi,
        roi_kind=RoiKind.POLYGON,
        area_px=roi.area,
        id=uuid5(_SPACE, roi.wkt + path_class),
        path_class=PathClass(tuple(path_class.split(": ")), (200, 0, 0)),
    )


def write_slide(path: Path, *, tumor: bool, seed: int, mpp: float | None = 1.0) -> Path:
    """A pink slide with a frame of glass; the tumor is a dark square."""
    generator = np.random.default_rng(seed)
    pixels = np.full((SIZE[1], SIZE[0], 3), 243.0)
    pixels[20:-20, 20:-20] = (225, 160, 195)
    if tumor:
        left, top, right, bottom = TUMOR_BOX
        pixels[top:bottom, left:right] = (120, 70, 150)
    pixels += generator.normal(0, 8, pixels.shape)
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3}
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        pixels.clip(0, 255).astype(np.uint8),
        photometric="rgb",
        tile=(128, 128),
        compression="deflate",
        metadata=None,
        **resolution,
    )
    return path


def new_image(slide: Path, *, number: int, tumor: bool, mpp: float | None = 1.0) -> NewImage:
    """The slide as an image of a project, annotated if it has a tumor."""
    return NewImage(
        slide=slide,
        name=slide.name,
        size=SIZE,
        levels=[(1.0, *SIZE)],
        pixel_size=None if mpp is None else PixelSize(Mpp(mpp), Mpp(mpp)),
        metadata={"patient": f"P{number}", "status": "positive" if tumor else "negative"},
        annotations=[annotation(box(*TUMOR_BOX))] if tumor else [],
    )


def write_study(folder: Path, *, text: str = STUDY) -> Path:
    """Three positive and three negative patients; returns the study file."""
    images = []
    for number in range(1, 7):
        tumor = number % 2 == 1
        slide = write_slide(folder / "slides" / f"S{number}.tif", tumor=tumor, seed=number)
        images.append(new_image(slide, number=number, tumor=tumor))
    create_project(folder / "project", images, path_classes=[PathClass(("Tumor",), (200, 0, 0))])
    study = folder / "study.toml"
    study.write_text(text, encoding="utf-8")
    return study


def call(*arguments: object) -> int:
    """Run the command line as a user does; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)
