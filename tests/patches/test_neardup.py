"""The same tissue is known again, turned, flipped, paler and smaller; other tissue is not."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from hnscc_qp.geometry import Grid
from hnscc_qp.patches.neardup import (
    distance,
    fingerprint_picture,
    fingerprint_slide,
    near_duplicates,
)
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.slides.tissue import find_tissue


def draw_node(seed, shape=(360, 480)):
    rng = np.random.default_rng(seed)
    grain = sum(ndimage.gaussian_filter(rng.normal(size=shape), size) * size for size in (6, 15, 40))
    grain = (grain - grain.min()) / np.ptp(grain)
    return (np.array([120, 60, 140]) + grain[..., None] * np.array([110, 150, 90])).astype(np.uint8)


def smaller(pixels):
    return np.asarray(Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2)))


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: np.rot90(pixels).copy(),
        lambda pixels: pixels[::-1, ::-1].copy(),
        lambda pixels: np.rot90(pixels[:, ::-1]).copy(),
        lambda pixels: (255 * (pixels / 255) ** 0.6).astype(np.uint8),
        smaller,
        lambda pixels: smaller(np.rot90(pixels[4:-3, 5:]).copy()),
    ],
)
def test_a_changed_copy_is_known_again(change):
    node = draw_node(1)
    looks = {"a": fingerprint_picture(node), "b": fingerprint_picture(change(node))}
    assert [pair[:2] for pair in near_duplicates(looks)] == [("a", "b")]


def test_other_tissue_is_not_taken_for_a_copy():
    looks = {seed: fingerprint_picture(draw_node(seed)) for seed in range(8)}
    assert near_duplicates(looks) == []


def test_no_two_real_slides_are_near_and_a_copy_is(shared):
    looks = {}
    for path in sorted((shared / "camelyon" / "slides").glob("*.tif")):
        slide = open_slide(path)
        grid = Grid.of_method(slide.size, slide.pixel_size)
        looks[path.name] = fingerprint_slide(slide, grid, find_tissue(slide, grid))
    assert len(looks) == 11
    assert min(distance(one, other) for one, other in combinations(looks.values(), 2)) > 0.2
    assert near_duplicates(looks) == []
    looks["copy"] = looks["CAM-05.tif"]
    assert near_duplicates(looks) == [("CAM-05.tif", "copy", 0.0)]
