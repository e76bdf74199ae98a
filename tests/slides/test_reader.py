from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from hnscc_qp.errors import MissingMppError, SlideNotFoundError, SlideReadError, UnusableSlideError
from hnscc_qp.geometry import Mpp, PixelSize, Region
from hnscc_qp.slides.reader import Slide, open_slide, require_mpp
from hnscc_qp.slides.resample import average_area, whole_factors

ONE = Mpp(1.0)


def square(mpp: float) -> PixelSize:
    return PixelSize(Mpp(mpp), Mpp(mpp))


def average_slowly(source, start, step, size):
    """Mean over fractional overlaps by plain loops, in double precision; beyond the source is white."""
    (x0, y0), (step_x, step_y), (columns, rows) = start, step, size
    out = np.zeros((rows, columns, 3))
    for row in range(rows):
        for column in range(columns):
            left, top = x0 + column * step_x, y0 + row * step_y
            right, bottom = left + step_x, top + step_y
            for y in range(math.floor(top), math.ceil(bottom)):
                for x in range(math.floor(left), math.ceil(right)):
                    area = (min(right, x + 1) - max(left, x)) * (min(bottom, y + 1) - max(top, y))
                    inside = 0 <= y < source.shape[0] and 0 <= x < source.shape[1]
                    out[row, column] += area * (source[y, x] if inside else 255.0)
    return out / (step_x * step_y)


def half(pixels):
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    cropped = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    return (cropped.mean(axis=(1, 3)) + 0.5).astype(np.uint8)


@pytest.mark.parametrize(
    ("x_mpp", "y_mpp"), [(0.25, 0.25), (0.2428, 0.2428), (0.499, 0.499), (0.5, 0.5), (1.0, 1.0), (0.25, 0.46)]
)
def test_a_read_is_the_mean_of_the_area_that_each_pixel_covers(write_slide, noise, x_mpp, y_mpp):
    slide = open_slide(write_slide(noise), pixel_size=PixelSize(Mpp(x_mpp), Mpp(y_mpp)))
    step_x, step_y = 1 / x_mpp, 1 / y_mpp
    read = slide.read(Region(7 * step_x, 5 * step_y, 20 * step_x, 15 * step_y), ONE)
    expected = average_slowly(noise, (7 * step_x, 5 * step_y), (step_x, step_y), (20, 15))
    assert read.shape == (15, 20, 3)
    # Half a grey value is rounding; a hair more where a value lies half way.
    assert np.abs(read - expected).max() < 0.51


def test_a_read_may_start_anywhere_and_reach_beyond_the_image(write_slide, noise):
    slide = open_slide(write_slide(noise), pixel_size=square(0.4))
    read = slide.read(Region(-11.3, -4.7, 50, 40), ONE)
    expected = average_slowly(noise, (-11.3, -4.7), (2.5, 2.5), (20, 16))
    assert np.abs(read - expected).max() < 0.51
    beyond = slide.read(Region(410, 290, 100, 100), ONE)
    assert np.abs(beyond - average_slowly(noise, (410, 290), (2.5, 2.5), (40, 40))).max() < 0.51
    assert (slide.read(Region(1000, 1000, 25, 25), ONE) == 255).all()


@pytest.mark.parametrize(
    ("x_mpp", "y_mpp"), [(0.25, 0.25), (0.2428, 0.2428), (0.499, 0.499), (0.5, 0.5), (1.0, 1.0), (0.25, 0.46)]
)
def test_two_tilings_of_the_grid_agree_byte_for_byte(write_slide, noise, x_mpp, y_mpp, monkeypatch):
    pixel_size = PixelSize(Mpp(x_mpp), Mpp(y_mpp))
    path = write_slide(noise, half(noise))
    slide = open_slide(path, pixel_size=pixel_size)
    step_x, step_y = pixel_size.qupath_px_per(ONE)
    columns, rows = math.ceil(420 / step_x), math.ceil(300 / step_y)

    def tiled(width: int, height: int):
        whole = np.zeros((rows, columns, 3), np.uint8)
        for y in range(0, rows, height):
            for x in range(0, columns, width):
                w, h = min(width, columns - x), min(height, rows - y)
                tile = slide.read(Region(x * step_x, y * step_y, w * step_x, h * step_y), ONE)
                whole[y : y + h, x : x + w] = tile
        return whole

    at_once = tiled(columns, rows)
    assert (tiled(17, 31) == at_once).all()
    assert (tiled(40, 7) == at_once).all()
    monkeypatch.setattr("hnscc_qp.slides.reader._CHUNK_LEVEL_PX", 50)
    assert (tiled(columns, rows) == at_once).all()


@pytest.mark.parametrize("size", [(421, 301), (423, 303)])
def test_tilings_agree_where_openslide_would_interpolate(write_slide, size):
    pixels = np.random.default_rng(3).integers(0, 256, (size[1] * 3, size[0] * 3, 3), dtype=np.uint8)
    path = write_slide(pixels, half(pixels))
    slide = open_slide(path, pixel_size=square(0.5))
    assert not openslide.OpenSlide(path).level_downsamples[1].is_integer()
    assert slide.levels[1].downsample == (2, 2)
    whole = slide.read(Region(0, 0, 1200, 800), ONE)
    part = slide.read(Region(506, 302, 600, 400), ONE)
    assert (part == whole[151:351, 253:553]).all()


def test_a_level_whose_sides_were_rounded_is_placed_within_half_a_pixel(write_slide):
    # 4001 / 1000 is not 4: taken for the downsample, the far edge would be off by a pixel.
    pixels = np.full((803, 4003, 3), 255, np.uint8)
    pixels[:, 3600:3610] = 0
    slide = open_slide(write_slide(pixels, half(pixels), half(half(pixels))), pixel_size=square(0.25))
    assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
    line = 255.0 - slide.read(Region(0, 100, 4000, 4), ONE)[0, :, 0]
    centre = (line * (np.arange(1000) + 0.5) * 4).sum() / line.sum()
    assert abs(centre - 3605) < 0.5


def test_the_coarsest_level_that_is_fine_enough_is_read(write_slide):
    levels = [np.full((256 >> n, 256 >> n, 3), 50 * n, np.uint8) for n in range(4)]
    slide = open_slide(write_slide(*levels), pixel_size=square(0.25))

    def level_read(mpp: float) -> int:
        return int(slide.read(Region(0, 0, 64, 64), Mpp(mpp))[0, 0, 0]) // 50

    assert [level_read(mpp) for mpp in (0.25, 0.49, 0.5, 0.9, 0.995, 1.0, 1.9, 2.0, 50 / 8)] == [
        *(0, 0, 1, 1, 2, 2, 2, 3, 3)
    ]


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.integers(0, 10**6))
@hypothesis_settings(max_examples=30, deadline=None)
def test_the_fast_way_equals_the_exact_way(factor_x, factor_y, seed):
    shape = (factor_y * 5 + 3, factor_x * 6 + 2, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    x_edges, y_edges = 2.0 + np.arange(7) * factor_x, 3.0 + np.arange(6) * factor_y
    exact = np.floor(average_slowly(pixels, (2, 3), (factor_x, factor_y), (6, 5)) + 0.5)
    factors = whole_factors(float(factor_x), float(factor_y))
    assert factors == (factor_x, factor_y)
    for way in (factors, None):
        assert (average_area(Image.fromarray(pixels), x_edges, y_edges, factors=way) == exact).all()


def test_the_fast_way_is_taken_only_where_it_is_exact():
    assert whole_factors(4.0, 4.0) == (4, 4)
    assert whole_factors(1 / 0.1, 8.0) is None  # Pillow would round wrongly
    assert whole_factors(4.0001, 4.0) is None
    assert whole_factors(0.4, 4.0) is None


def test_what_is_cropped_to_bounds_counts_from_the_bounds(scn):
    path, pixels = scn
    assert openslide.OpenSlide(path).properties["openslide.bounds-x"] == "96"
    slide = open_slide(path)
    assert (slide.size, slide.bounds) == ((256, 192), (96, 64))
    assert slide.pixel_size == square(0.5)
    full = slide.read(Region(0, 0, 256, 192), Mpp(0.5))
    assert (full == pixels).all()
    red = slide.read(Region(100, 40, 60, 40), ONE)
    assert (red == (200, 30, 90)).all()
    around = slide.read(Region(98, 38, 64, 44), ONE)
    assert (around[1:-1, 1:-1] == (200, 30, 90)).all()
    assert (around[0] == 240).all() and (around[:, 0] == 240).all()


def test_what_was_not_scanned_and_what_lies_beyond_the_bounds_is_white(scn):
    path, pixels = scn
    slide = open_slide(path)
    beyond = slide.read(Region(-10, -10, 300, 230), Mpp(0.5))
    assert (beyond[10:202, 10:266] == pixels).all()
    beyond[10:202, 10:266] = 255
    assert (beyond == 255).all()
    uncropped = open_slide(path, crop_to_bounds=False)
    assert (uncropped.size, uncropped.bounds) == ((512, 384), (0, 0))
    whole = uncropped.read(Region(0, 0, 512, 384), Mpp(0.5))
    assert (whole[64:256, 96:352] == pixels).all()
    assert (whole[:64] == 255).all() and (whole[:, 352:] == 255).all()


def test_tilings_of_a_cropped_slide_agree(scn):
    path, _ = scn
    slide = open_slide(path, pixel_size=square(0.3))
    step = 1 / 0.3
    whole = slide.read(Region(0, 0, 76 * step, 57 * step), ONE)
    part = slide.read(Region(29 * step, 11 * step, 20 * step, 15 * step), ONE)
    assert (part == whole[11:26, 29:49]).all()


def test_half_transparent_pixels_are_laid_on_white(write_slide, noise, monkeypatch):
    slide = open_slide(write_slide(noise))
    monkeypatch.setattr(
        openslide.OpenSlide,
        "read_region",
        lambda self, at, level, size: Image.new("RGBA", size, (0, 0, 0, 51)),
    )
    assert (slide.read(Region(0, 0, 20, 20), ONE) == 204).all()


def test_qupaths_calibration_wins_over_the_slides(write_slide, noise):
    path = write_slide(noise, mpp=(0.5, 0.25))
    from_slide = open_slide(path)
    assert from_slide.pixel_size_source == "slide"
    assert from_slide.pixel_size.x == pytest.approx(0.5) and from_slide.pixel_size.y == pytest.approx(0.25)
    calibrated = open_slide(path, pixel_size=square(0.46))
    assert (calibrated.pixel_size_source, calibrated.pixel_size) == ("QuPath", square(0.46))
    assert calibrated.read(Region(0, 0, 100, 100), ONE).shape == (46, 46, 3)


def test_without_a_pixel_size_reading_names_the_slide_and_the_remedy(write_slide, noise):
    slide = open_slide(write_slide(noise, mpp=None, name="case 3.tif"))
    assert slide.pixel_size_source is None
    with pytest.raises(MissingMppError, match=r"case 3\.tif has no pixel size; set it in QuPath"):
        slide.read(Region(0, 0, 10, 10), ONE)
    assert slide.thumbnail(42).shape == (30, 42, 3)


def test_a_thumbnail_shows_the_whole_image(scn):
    path, pixels = scn
    small = open_slide(path).thumbnail(128)
    assert small.shape == (96, 128, 3)
    assert np.abs(small - half(pixels).astype(float)).max() <= 1
    assert (open_slide(path).thumbnail(5000) == pixels).all()


def test_a_slide_that_is_too_coarse_is_refused(write_slide, noise):
    path = write_slide(noise)
    require_mpp(open_slide(path, pixel_size=square(1.04)), ONE)
    with pytest.raises(UnusableSlideError, match=r"a\.tif is 28\.97 µm/px, coarser than the 1\.0 µm/px"):
        require_mpp(open_slide(path, pixel_size=PixelSize(Mpp(0.5), Mpp(28.97))), ONE)


def test_what_is_missing_or_not_a_slide_is_named(tmp_path: Path):
    with pytest.raises(SlideNotFoundError, match=r"gone\.svs"):
        open_slide(tmp_path / "gone.svs")
    (tmp_path / "notes.svs").write_text("not a slide")
    with pytest.raises(SlideReadError, match=r"notes\.svs is not a slide .*convert it"):
        open_slide(tmp_path / "notes.svs")


def damage_first_tile(path: Path) -> None:
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)


def test_a_damaged_tile_is_named_and_the_rest_can_still_be_read(write_slide, noise):
    path = write_slide(noise)
    damage_first_tile(path)
    slide = open_slide(path, pixel_size=square(1.0))
    for _ in range(2):
        with pytest.raises(SlideReadError, match=r"a\.tif can't be read at x = 10, y = 20 px"):
            slide.read(Region(10, 20, 30, 30), ONE)
        assert (slide.read(Region(100, 100, 30, 30), ONE) == noise[100:130, 100:130]).all()


def test_a_damaged_tile_does_not_fail_other_threads(write_slide, noise):
    path = write_slide(noise)
    damage_first_tile(path)
    slide = open_slide(path, pixel_size=square(1.0))

    def read(n: int) -> bool:
        if n % 2:
            with pytest.raises(SlideReadError):
                slide.read(Region(0, 0, 20, 20), ONE)
            return True
        return bool(
            (slide.read(Region(100 + n, 100, 30, 30), ONE) == noise[100:130, 100 + n : 130 + n]).all()
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(80)))


def test_a_slide_survives_pickling(write_slide, noise):
    slide = open_slide(write_slide(noise), pixel_size=square(0.4), crop_to_bounds=False)
    copy: Slide = pickle.loads(pickle.dumps(slide))
    region = Region(0, 0, 100, 100)
    assert (copy.read(region, ONE) == slide.read(region, ONE)).all()
    assert copy.pixel_size == square(0.4) and not copy.crop_to_bounds


def test_real_slides_read_the_same_in_any_tiling(shared):
    slide = open_slide(shared / "wsi" / "tcga-cr-7395-01a-01-ts1.svs", pixel_size=square(0.2428))
    step = 1 / 0.2428
    whole = slide.read(Region(400 * step, 300 * step, 300 * step, 200 * step), ONE)
    part = slide.read(Region(533 * step, 371 * step, 100 * step, 100 * step), ONE)
    assert whole.std() > 10
    assert (part == whole[71:171, 133:233]).all()
