"""Outlines of pixels, drawn back by asking of every pixel's centre whether it lies inside."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from hnscc_qp.patches.sources.trace import trace_values


def tiles_of(image, side):
    for y in range(0, image.shape[0], side):
        for x in range(0, image.shape[1], side):
            yield x, y, image[y : y + side, x : x + side]


def draw(polygons, shape):
    """How often the centre of each pixel is covered."""
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    return sum((shapely.contains_xy(one, x, y).astype(int) for one in polygons), np.zeros(shape, int))


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 2)),
    st.integers(1, 13),
)
def test_outlines_cover_just_the_pixels_of_their_value_however_the_image_is_tiled(image, side):
    traced = trace_values(tiles_of(image, side), [1, 2])
    for value, polygons in traced.items():
        assert all(one.is_valid for one in polygons)
        assert (draw(polygons, image.shape) == (image == value)).all()
        assert sum(one.area for one in polygons) == (image == value).sum()
        assert len(polygons) == ndimage.label(image == value)[1]


def test_a_ring_keeps_its_hole_and_the_island_in_it():
    image = np.zeros((40, 50), np.uint8)
    image[5:35, 5:45] = 1
    image[10:30, 10:40] = 0
    image[15:20, 15:20] = 1
    ring, island = trace_values(tiles_of(image, 16), [1])[1]
    assert ring.equals(shapely.box(5, 5, 45, 35) - shapely.box(10, 10, 40, 30))
    assert len(ring.exterior.coords) == 5, "where tiles met there is no corner"
    assert island.equals(shapely.box(15, 15, 20, 20))


@pytest.mark.parametrize("side", [7, 64, 300])
def test_a_large_noisy_image_comes_out_alike_in_every_tiling(side):
    image = (ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(300, 260)), 4) > 0.02).astype(
        np.uint8
    )
    whole = trace_values([(0, 0, image)], [1])[1]
    tiled = trace_values(tiles_of(image, side), [1])[1]
    assert [one.wkt for one in tiled] == [one.wkt for one in whole]
