"""A mask, one value per pixel → outlines that follow its pixels exactly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
import tifffile
from PIL import Image
from shapely.geometry.base import BaseGeometry

from hnscc_qp.errors import TruthError
from hnscc_qp.patches.sources.trace import trace_values

_STRIP_ROWS = 1024
_MAX_VALUES_NAMED = 8
_TIFF = (".tif", ".tiff")

Tile = tuple[int, int, npt.NDArray[np.integer]]


def read_mask(
    path: Path, *, size: tuple[int, int], classes: Mapping[int, str]
) -> list[tuple[str, BaseGeometry]]:
    """Outline what a mask says, in pixels of the image that it covers.

    The mask may be coarser or finer than the image; it must have its proportions. TIFFs are read tile by
    tile, other files as a whole.

    Args:
        path: PNG or TIFF of one channel (or of equal ones); 1-bit masks hold 0 and 1.
        size: (width, height) of the image.
        classes: value → class name, the empty name for none; 0 is nothing unless it is named.

    Returns:
        Class and polygon, with holes, of every piece.

    Raises:
        TruthError: the file is no mask, has other proportions, or holds a value without a class.
    """
    # tifffile's errors and its codecs' (RuntimeError) are of many kinds; all mean that the file is no good.
    try:
        shape, tiles = _open_tiff(path) if path.suffix.lower() in _TIFF else _open_image(path)
        scale = _scale(path, shape, size)
        strangers: dict[int, int] = {}
        wanted = {value: name for value, name in classes.items() if name}
        traced = trace_values(_watched(tiles, {0, *classes}, strangers), wanted)
    except (OSError, ValueError, IndexError, RuntimeError, Image.DecompressionBombError) as error:
        if isinstance(error, TruthError):
            raise
        raise TruthError(
            f"mask {path} can't be read ({error}); save it as a PNG or TIFF of one channel"
        ) from error
    if strangers:
        listed = ", ".join(
            f"{value} ({count} px)" for value, count in sorted(strangers.items())[:_MAX_VALUES_NAMED]
        )
        raise TruthError(
            f"mask {path} holds values that truth.classes does not name: {listed}; name a class for each, "
            "or '' for none"
        )
    return [
        (wanted[value], shapely.transform(polygon, lambda points: points * scale))
        for value, polygons in traced.items()
        for polygon in polygons
    ]


def _watched(tiles: Iterator[Tile], known: set[int], strangers: dict[int, int]) -> Iterator[Tile]:
    """The tiles as they are; values that are not known are counted."""
    for x, y, tile in tiles:
        for value, count in zip(*np.unique(tile, return_counts=True), strict=True):
            if int(value) not in known:
                strangers[int(value)] = strangers.get(int(value), 0) + int(count)
        yield x, y, tile


def _scale(path: Path, shape: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Image px per mask px, for x and y; sides of a smaller picture are rounded, to a pixel at most."""
    width, height = shape
    for one, other, full_one, full_other in ((width, height, *size), (height, width, *size[::-1])):
        if abs(other - full_other * one / full_one) <= 1:
            return np.array(size, float) / (width, height)
    raise TruthError(
        f"mask {path} is {width} × {height} px, which are not the proportions of the image of "
        f"{size[0]} × {size[1]} px; export it again, or set truth.frame if it covers the whole file"
    )


def _open_tiff(path: Path) -> tuple[tuple[int, int], Iterator[Tile]]:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        shape = page.imagewidth, page.imagelength
        if page.dtype is None or page.dtype.kind not in "bui":
            raise ValueError(f"its values are {page.dtype}, not whole numbers")
    return shape, _tiff_tiles(path, shape)


def _tiff_tiles(path: Path, shape: tuple[int, int]) -> Iterator[Tile]:
    width, height = shape
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        planar = page.samplesperpixel > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        if planar:
            raise ValueError("its channels lie apart")
        for data, index, _ in page.segments():
            y, x = index[2], index[3]
            rows, columns = min(page.tilelength or page.rowsperstrip, height - y), width - x
            if page.is_tiled:
                columns = min(page.tilewidth, columns)
            if data is None:  # a tile that was never written
                yield x, y, np.zeros((rows, columns), np.uint8)
            else:
                yield x, y, _one_channel(data[0, :rows, :columns])


def _open_image(path: Path) -> tuple[tuple[int, int], Iterator[Tile]]:
    with warnings.catch_warnings():
        # Pillow's limit for errors is twice that for warnings.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            values = np.asarray(image)
            if image.mode in ("RGBA", "LA"):
                values = values[..., :-1]
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    height, width = values.shape[:2]

    def strips() -> Iterator[Tile]:
        for y in range(0, height, _STRIP_ROWS):
            yield 0, y, _one_channel(np.atleast_3d(values[y : y + _STRIP_ROWS]))

    return (width, height), strips()


def _one_channel(pixels: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """(rows, columns, channels) → (rows, columns)."""
    if pixels.dtype.kind not in "bui":
        raise ValueError(f"its values are {pixels.dtype}, not whole numbers")
    if not (pixels == pixels[..., :1]).all():
        raise ValueError("it is a colour picture")
    first: npt.NDArray[np.integer] = pixels[..., 0]
    return first
