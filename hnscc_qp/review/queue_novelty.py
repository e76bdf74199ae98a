"""How unlike a piece of tissue is to what the models learnt from, by its colours.

Each square is described by mean and standard deviation of the optical density of red, green and blue over its
stained pixels at 8 µm/px: six numbers that tell stain, cell density and coarse texture. Novelty is their
Mahalanobis distance from the squares of the training slides. It is cheap, and blind to what colours
don't tell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.geometry import Mpp, Region
from hnscc_qp.slides.reader import RGBPixels, Slide
from hnscc_qp.slides.tissue import is_stained

MPP = Mpp(8.0)
_MIN_STAINED = 0.25
_RIDGE = 1e-3
_FEWEST = 20
"""Squares without which nothing can be said of what is usual."""

Features = NDArray[np.float64]


def describe_squares(slide: Slide, *, side_um: float) -> Features:
    """Describe the slide's squares, from its corner on: (rows, columns, 6); NaN where there is little tissue.

    The slide is read a row of squares at a time.
    """
    width, height = slide.size
    size = slide.pixel_size
    across, down = side_um / size.x, side_um / size.y
    rows, columns = int(np.ceil(height / down)), int(np.ceil(width / across))
    side_px = round(side_um / MPP)
    found = np.full((rows, columns, 6), np.nan)
    for row in range(rows):
        strip = slide.read(Region(0, row * down, columns * across, down), MPP)
        for column in range(columns):
            found[row, column] = _describe(strip[:side_px, column * side_px : (column + 1) * side_px])
    return found


def distances(features: Features, usual: Features) -> Features | None:
    """Mahalanobis distance of each (..., 6) from the usual ones (n, 6), NaN for NaN; None if n is small."""
    usual = usual[np.isfinite(usual).all(axis=1)]
    if len(usual) < _FEWEST:
        return None
    covariance = np.cov(usual, rowvar=False)
    covariance += np.eye(len(covariance)) * _RIDGE * np.trace(covariance) / len(covariance)
    off = features - usual.mean(axis=0)
    squared = np.einsum("...i,ij,...j->...", off, np.linalg.inv(covariance), off)
    result: Features = np.sqrt(squared)
    return result


def _describe(pixels: RGBPixels) -> Features:
    stained = is_stained(pixels) if pixels.size else np.zeros(0, np.bool_)
    if not stained.size or stained.mean() < _MIN_STAINED:
        return np.full(6, np.nan)
    density = -np.log10((pixels[stained].astype(np.float64) + 1) / 256)
    return np.concatenate((density.mean(axis=0), density.std(axis=0)))
