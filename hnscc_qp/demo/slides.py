"""Pixels → a tiled, pyramidal TIFF that OpenSlide and QuPath open."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from hnscc_qp.demo.draw import Pixels
from hnscc_qp.files import atomic_path
from hnscc_qp.geometry import Mpp

_TILE_PX = 256
_QUALITY = 87

Level = tuple[float, int, int]
"""(downsample, width, height)."""


def write_slide(path: Path, pixels: Pixels, *, mpp: Mpp | None, levels: int = 3) -> tuple[Level, ...]:
    """Write one slide atomically; each level is half as large as the one before.

    Args:
        path: the `.tif`.
        pixels: (height, width, 3) uint8.
        mpp: stored as the resolution; None leaves the file uncalibrated, as some scanners' exports are.
        levels: how many.

    Returns:
        The levels, largest first.
    """
    image = Image.fromarray(pixels)
    written: list[Level] = []
    with atomic_path(path) as partial, tifffile.TiffWriter(partial) as tiff:
        for level in range(levels):
            reduced = image.reduce(2**level) if level else image
            tiff.write(
                # Encoded here: what lies beyond the image in the last tiles must be white, not black.
                _jpeg_tiles(reduced),
                shape=(reduced.height, reduced.width, 3),
                dtype=np.uint8,
                tile=(_TILE_PX, _TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=1 if level else 0,
                metadata=None,
                description="hnscc-qp demo: a drawing, not a patient" if level == 0 else None,
                resolution=None if mpp is None else (1e4 / (mpp * 2**level),) * 2,
                resolutionunit=None if mpp is None else "CENTIMETER",
            )
            written.append((image.width / reduced.width, reduced.width, reduced.height))
    return tuple(written)


def _jpeg_tiles(image: Image.Image) -> Iterator[bytes]:
    for top in range(0, image.height, _TILE_PX):
        for left in range(0, image.width, _TILE_PX):
            box = left, top, min(left + _TILE_PX, image.width), min(top + _TILE_PX, image.height)
            tile = Image.new("RGB", (_TILE_PX, _TILE_PX), "white")
            tile.paste(image.crop(box))
            stream = io.BytesIO()
            tile.save(stream, "JPEG", quality=_QUALITY, subsampling="4:2:0")
            yield stream.getvalue()
