"""Slides that show the same tissue: perceptual hashes that don't mind turns, flips, stain and scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Grid, Mpp, Region
from hnscc_qp.slides.holes import Area, read_around_holes
from hnscc_qp.slides.reader import RGBPixels, Slide

_HASH_SIZE = 16
"""256 bits: with 64, nodes of alike outline are taken for one another."""
_MAX_DISTANCE = 0.16
"""Share of bits that differ. Two pictures of different tissue differ in 0.3 and more; see the tests."""
_PICTURE_PX = 512

Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Hashes of a slide's tissue in its eight orientations: (8, 256) bool; the first is as it is shown."""

    bits: Bits


def fingerprint_slide(slide: Slide, grid: Grid, tissue: npt.NDArray[np.bool_]) -> Fingerprint | None:
    """Hash the tissue of a slide, cropped to it; None if there is none."""
    if not tissue.any():
        return None
    rows, columns = (np.flatnonzero(tissue.any(axis=axis)) for axis in (1, 0))
    width, height = grid.block_qupath
    x, y = columns[0] * width, rows[0] * height
    region = Region(
        x,
        y,
        min((columns[-1] + 1) * width, slide.size[0]) - x,
        min((rows[-1] + 1) * height, slide.size[1]) - y,
    )
    size = slide.pixel_size
    longest_um = max(region.width * size.x, region.height * size.y)
    mpp = Mpp(max(longest_um / _PICTURE_PX, size.x, size.y))
    try:
        return fingerprint_picture(slide.read(region, mpp))
    except SlideReadError:  # what is left of it may still be known again
        step_x, step_y = size.qupath_px_per(mpp)
        top, left = round(region.y / step_y), round(region.x / step_x)
        area = Area(top, left, round(region.height / step_y), round(region.width / step_x))
        return fingerprint_picture(read_around_holes(slide, area, mpp).pixels)


def fingerprint_picture(pixels: RGBPixels) -> Fingerprint:
    """Hash a picture, in grey."""
    # Made square first, so that a turned picture is sampled alike.
    grey = Image.fromarray(pixels).convert("L").resize((_PICTURE_PX, _PICTURE_PX), Image.Resampling.BOX)
    shown = np.asarray(grey)
    turned = [np.rot90(one, quarters) for one in (shown, shown[:, ::-1]) for quarters in range(4)]
    hashes = [imagehash.phash(Image.fromarray(np.ascontiguousarray(one)), _HASH_SIZE) for one in turned]
    return Fingerprint(np.array([one.hash.ravel() for one in hashes]))


def distance(one: Fingerprint, other: Fingerprint) -> float:
    """Share of bits that differ, in the orientation where they agree best: 0..1."""
    return float((one.bits[0] != other.bits).mean(axis=1).min())


def near_duplicates(fingerprints: Mapping[str, Fingerprint]) -> list[tuple[str, str, float]]:
    """Pairs of keys whose slides look the same, with their distance, the nearest first."""
    keys = list(fingerprints)
    pairs = []
    for number, key in enumerate(keys):
        for other in keys[number + 1 :]:
            apart = distance(fingerprints[key], fingerprints[other])
            if apart <= _MAX_DISTANCE:
                pairs.append((key, other, round(apart, 3)))
    return sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))
