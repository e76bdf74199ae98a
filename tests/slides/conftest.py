"""Drawn slides: small pyramidal TIFFs, and a Leica SCN whose image is a part of the scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

Pixels = npt.NDArray[np.uint8]
WriteSlide = Callable[..., Path]


@pytest.fixture(scope="session")
def noise() -> Pixels:
    """(300, 420, 3): every pixel differs from its neighbours, so a shift by a fraction shows."""
    return np.random.default_rng(7).integers(0, 256, (300, 420, 3), dtype=np.uint8)


@pytest.fixture
def write_slide(tmp_path: Path) -> WriteSlide:
    """Write levels as a tiled TIFF, losslessly; `mpp` None leaves the resolution out."""

    def write(*levels: Pixels, mpp: tuple[float, float] | None = (0.5, 0.5), name: str = "a.tif") -> Path:
        resolution = {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": 3} if mpp else {}
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            for number, level in enumerate(levels):
                tiff.write(
                    level,
                    photometric="rgb",
                    tile=(64, 64),
                    compression="deflate",
                    subfiletype=1 if number else 0,
                    metadata=None,
                    **({} if number else resolution),
                )
        return tmp_path / name

    return write


SCN_ORIGIN = (96, 64)
SCN_SIZE = (256, 192)
_NM_PER_PX = 500
_SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
 <collection name="drawn" sizeX="{across}" sizeY="{down}">
  <image name="macro">
   <device model="drawn" version="1"/>
   <pixels sizeX="64" sizeY="64"><dimension sizeX="64" sizeY="64" r="0" ifd="2"/></pixels>
   <view sizeX="{across}" sizeY="{down}" offsetX="0" offsetY="0"/>
   <scanSettings><illuminationSettings><illuminationSource>brightfield</illuminationSource>
   </illuminationSettings></scanSettings>
  </image>
  <image name="main">
   <device model="drawn" version="1"/>
   <pixels sizeX="{width}" sizeY="{height}">
    <dimension sizeX="{width}" sizeY="{height}" r="0" ifd="0"/>
    <dimension sizeX="{half_width}" sizeY="{half_height}" r="1" ifd="1"/>
   </pixels>
   <view sizeX="{view_x}" sizeY="{view_y}" offsetX="{offset_x}" offsetY="{offset_y}"/>
   <scanSettings>
    <objectiveSettings><objective>20</objective></objectiveSettings>
    <illuminationSettings><numericalAperture>0.8</numericalAperture>
     <illuminationSource>brightfield</illuminationSource></illuminationSettings>
   </scanSettings>
  </image>
 </collection>
</scn>"""


@pytest.fixture
def scn(tmp_path: Path) -> tuple[Path, Pixels]:
    """A scan of 512 × 384 px of which only a part was imaged, at SCN_ORIGIN; and that part's pixels."""
    width, height = SCN_SIZE
    pixels = np.full((height, width, 3), 240, np.uint8)
    pixels[40:80, 100:160] = (200, 30, 90)
    pixels[0, 0] = (0, 0, 255)
    half = pixels.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    description = _SCN.format(
        across=512 * _NM_PER_PX,
        down=384 * _NM_PER_PX,
        width=width,
        height=height,
        half_width=width // 2,
        half_height=height // 2,
        view_x=width * _NM_PER_PX,
        view_y=height * _NM_PER_PX,
        offset_x=SCN_ORIGIN[0] * _NM_PER_PX,
        offset_y=SCN_ORIGIN[1] * _NM_PER_PX,
    )
    path = tmp_path / "drawn.scn"
    macro = np.full((64, 64, 3), 128, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, level in enumerate((pixels, half, macro)):
            tiff.write(
                level,
                photometric="rgb",
                tile=(64, 64),
                compression="deflate",
                metadata=None,
                description=description if number == 0 else None,
                resolution=(20_000, 20_000),
                resolutionunit="CENTIMETER",
            )
    return path, pixels
