"""Drawn scans with one tumor-coloured rectangle, and QuPath projects that show them in every frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.progress import SILENT
from hnscc_qp.qupath.create import NewImage, create_project
from hnscc_qp.qupath.objects import PathClass, PathObject
from hnscc_qp.steps.context import Context
from hnscc_qp.study import Study

Pixels = npt.NDArray[np.uint8]
TUMOR = PathClass(("Tumor",), (200, 0, 0))

_SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
 <collection name="drawn" sizeX="{across}" sizeY="{down}">
  <image name="macro">
   <device model="drawn" version="1"/>
   <pixels sizeX="64" sizeY="64"><dimension sizeX="64" sizeY="64" r="0" ifd="{levels}"/></pixels>
   <view sizeX="{across}" sizeY="{down}" offsetX="0" offsetY="0"/>
   <scanSettings><illuminationSettings><illuminationSource>brightfield</illuminationSource>
   </illuminationSettings></scanSettings>
  </image>
  <image name="main">
   <device model="drawn" version="1"/>
   <pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>
   <view sizeX="{view_x}" sizeY="{view_y}" offsetX="{offset_x}" offsetY="{offset_y}"/>
   <scanSettings>
    <objectiveSettings><objective>20</objective></objectiveSettings>
    <illuminationSettings><numericalAperture>0.8</numericalAperture>
     <illuminationSource>brightfield</illuminationSource></illuminationSettings>
   </scanSettings>
  </image>
 </collection>
</scn>"""


def half(pixels: Pixels) -> Pixels:
    """The next level: means of 2 × 2."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    cropped = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    return (cropped.mean(axis=(1, 3), dtype=np.float32) + 0.5).astype(np.uint8)


def write_tiff(path: Path, levels: Sequence[Pixels], mpp: float | None) -> Path:
    """A tiled pyramidal TIFF, losslessly."""
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3} if mpp else {}
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            tiff.write(
                level,
                photometric="rgb",
                tile=(256, 256),
                compression="deflate",
                compressionargs={"level": 1},
                subfiletype=1 if number else 0,
                metadata=None,
                **({} if number else resolution),
            )
    return path


def write_scn(path: Path, levels: Sequence[Pixels], mpp: float, origin: tuple[int, int]) -> Path:
    """A Leica SCN of which only a part was imaged, `levels`, at `origin` px; the margins are alike."""
    nm = round(mpp * 1000)
    height, width = levels[0].shape[:2]
    dimensions = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{number}" ifd="{number}"/>'
        for number, level in enumerate(levels)
    )
    description = _SCN.format(
        across=(width + 2 * origin[0]) * nm,
        down=(height + 2 * origin[1]) * nm,
        levels=len(levels),
        width=width,
        height=height,
        dimensions=dimensions,
        view_x=width * nm,
        view_y=height * nm,
        offset_x=origin[0] * nm,
        offset_y=origin[1] * nm,
    )
    macro = np.full((64, 64, 3), 128, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, level in enumerate((*levels, macro)):
            tiff.write(
                level,
                photometric="rgb",
                tile=(256, 256),
                compression="deflate",
                compressionargs={"level": 1},
                metadata=None,
                description=description if number == 0 else None,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
            )
    return path


@dataclass(frozen=True, slots=True)
class Shown:
    """How a project shows a slide."""

    size: tuple[int, int]
    calibration: tuple[float, float] | None = None
    """µm per px of the image as shown; None if the project says nothing."""
    args: tuple[str, ...] = ()
    wrappers: tuple[dict[str, Any], ...] = ()
    """Builders around that of the file, the innermost first."""


def make_context(folder: Path, slide: Path, shown: Shown, annotations: Sequence[PathObject] = ()) -> Context:
    """A study over a project of one image, written without QuPath and opened without it."""
    pixel_size = PixelSize(*map(Mpp, shown.calibration)) if shown.calibration else None
    image = NewImage(
        slide, slide.name, shown.size, [(1, *shown.size)], pixel_size=pixel_size, annotations=annotations
    )
    project = create_project(folder / "project", [image], path_classes=[TUMOR])
    value = json.loads(project.read_text(encoding="utf-8"))
    plain = value["images"][0]["serverBuilder"]
    plain["args"] = list(shown.args)
    builder = plain
    for wrapper in shown.wrappers:
        builder = {**wrapper, "builder": builder, "metadata": plain["metadata"]}
    value["images"][0]["serverBuilder"] = builder
    project.write_text(json.dumps(value), encoding="utf-8")
    return Context(
        Study(path=folder / "study.toml", name="drawn", project=project, backend="embedded"), SILENT
    )
