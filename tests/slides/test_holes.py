from __future__ import annotations

import numpy as np
import pytest
import tifffile

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Grid, Mpp, PixelSize, Region
from hnscc_qp.slides.holes import Area, read_around_holes
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.slides.tissue import find_tissue

ONE = Mpp(1.0)


class Broken:
    """A grey slide of 1 µm/px whose rectangles (top, left, bottom, right) can't be read; counts reads."""

    pixel_size = PixelSize(ONE, ONE)
    size = (2000, 2000)
    name = "broken.svs"

    def __init__(self, *broken: tuple[int, int, int, int]) -> None:
        self.broken, self.reads = broken, 0

    def read(self, region: Region, mpp: float) -> np.ndarray:
        self.reads += 1
        top, left, bottom, right = region.y, region.x, region.y + region.height, region.x + region.width
        for t, l, b, r in self.broken:  # noqa: E741
            if top < b and t < bottom and left < r and l < right:
                raise SlideReadError("can't be read there")
        return np.full((round(region.height), round(region.width), 3), 100, np.uint8)


@pytest.mark.parametrize("area", [Area(0, 0, 670, 670), Area(-160, 635, 1000, 700), Area(3, 7, 55, 1)])
@pytest.mark.parametrize("broken", [(100, 640, 164, 704), (0, 0, 5, 5), (39, 700, 41, 1500)])
def test_only_pieces_of_ten_px_that_meet_the_damage_are_lost(area, broken):
    slide = Broken(broken)
    read = read_around_holes(slide, area, ONE)
    rows, columns = np.arange(area.height) + area.top, np.arange(area.width) + area.left
    top, left, bottom, right = broken
    # Pieces lie on multiples of 10 px.
    lost_rows = (rows // 10 * 10 < bottom) & (rows // 10 * 10 + 10 > top)
    lost_columns = (columns // 10 * 10 < right) & (columns // 10 * 10 + 10 > left)
    allowed = np.outer(lost_rows, lost_columns)
    truly = np.outer((rows >= top) & (rows < bottom), (columns >= left) & (columns < right))
    lost = read.lost(area)
    assert (lost >= truly).all()
    assert (lost <= allowed).all()
    assert (read.pixels[lost] == 255).all()
    assert (read.pixels[~lost] == 100).all()
    assert (read.reason is None) == (not lost.any())


def test_a_slide_that_is_all_broken_is_soon_given_up():
    slide = Broken((-5000, -5000, 9000, 9000))
    area = Area(0, 0, 1000, 1000)
    assert read_around_holes(slide, area, ONE).lost(area).all()
    assert slide.reads < 100


def test_what_can_not_be_decoded_counts_as_tissue_and_is_never_passed_over(write_slide):
    pixels = np.full((640, 640, 3), 240, np.uint8)
    path = write_slide(pixels)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
        height, width = tiff.pages[0].tile[:2]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)
    size = PixelSize(ONE, ONE)
    slide = open_slide(path, pixel_size=size)
    with pytest.raises(SlideReadError):
        slide.read(Region(0, 0, 10, 10), ONE)
    tissue = find_tissue(slide, Grid.of_method(slide.size, size))
    assert tissue[: height // 10, : width // 10].all()
    far = np.s_[-(-height // 160) * 16 :, :]
    assert not tissue[far].any()
