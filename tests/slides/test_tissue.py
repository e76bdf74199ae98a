from __future__ import annotations

import numpy as np
import pytest

from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.slides.tissue import find_tissue

GLASS = (238, 236, 238)
STROMA = (214, 150, 190)
PIXEL = PixelSize(Mpp(0.5), Mpp(0.5))


def tissue_of(write_slide, pixels) -> np.ndarray:
    slide = open_slide(write_slide(pixels.astype(np.uint8)), pixel_size=PIXEL)
    return find_tissue(slide, Grid.over(slide.size, PIXEL, mpp=Mpp(1.0), step_px=10, window_px=40))


def draw(color, size=(800, 600), noise=6) -> np.ndarray:
    pixels = np.random.default_rng(1).normal(0, noise, (size[1], size[0], 3)) + color
    return np.clip(pixels, 0, 255)


def test_tissue_on_glass_is_found_block_for_block(write_slide):
    pixels = draw(GLASS)
    pixels[100:400, 200:600] = draw(STROMA)[100:400, 200:600]
    expected = np.zeros((30, 40), bool)
    expected[5:20, 10:30] = True
    assert (tissue_of(write_slide, pixels) == expected).all()


@pytest.mark.parametrize("color", [STROMA, (232, 212, 226), (110, 80, 150), (95, 90, 160), (200, 60, 80)])
def test_a_slide_that_is_tissue_from_edge_to_edge_has_no_background(write_slide, color):
    assert tissue_of(write_slide, draw(color)).all()


@pytest.mark.parametrize(
    "color", [(255, 255, 255), GLASS, (180, 180, 180), (236, 228, 234), (0, 0, 0), (12, 9, 11), (40, 160, 70)]
)
def test_glass_grey_black_and_green_ink_are_no_tissue(write_slide, color):
    assert not tissue_of(write_slide, draw(color, noise=3)).any()


def test_blue_ink_is_no_tissue(write_slide):
    assert not tissue_of(write_slide, draw((30, 60, 190))).any()


def test_specks_are_dropped_and_small_holes_filled(write_slide):
    pixels = draw(GLASS)
    pixels[100:400, 200:600] = draw(STROMA)[100:400, 200:600]
    clean = tissue_of(write_slide, pixels)
    pixels[500:540, 100:140] = STROMA  # 2 × 2 blocks of dust
    pixels[200:240, 300:340] = GLASS  # 2 × 2 blocks of fat
    assert (tissue_of(write_slide, pixels) == clean).all()
    pixels[200:300, 300:400] = GLASS  # 5 × 5 blocks stay open
    opened = tissue_of(write_slide, pixels)
    assert (clean & ~opened).sum() == 25 and not (opened & ~clean).any()


def test_strips_do_not_show(write_slide, monkeypatch):
    pixels = draw(GLASS)
    pixels[100:400, 200:600] = draw(STROMA)[100:400, 200:600]
    whole = tissue_of(write_slide, pixels)
    monkeypatch.setattr("hnscc_qp.slides.tissue._STRIP_ROWS", 7)
    assert (tissue_of(write_slide, pixels) == whole).all()


@pytest.mark.parametrize(
    ("name", "mpp", "least", "most"),
    [
        ("camelyon/slides/CAM-03.tif", 1.0, 0.55, 0.62),
        ("camelyon/slides/CAM-09.tif", 1.0, 0.29, 0.34),
        ("wsi/tcga-cr-7395-01a-01-ts1.svs", 0.5, 0.57, 0.68),
        ("wsi/CMU-1-Small-Region.svs", 0.499, 0.33, 0.42),
    ],
)
def test_real_tissue_is_found(shared, name, mpp, least, most):
    slide = open_slide(shared / name, pixel_size=PixelSize(Mpp(mpp), Mpp(mpp)))
    grid = Grid.over(slide.size, slide.pixel_size, mpp=Mpp(1.0), step_px=10, window_px=40)
    assert least < find_tissue(slide, grid).mean() < most
