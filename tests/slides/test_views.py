"""Slides that QuPath shows cropped and turned, against numpy's own cropping and turning."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnscc_qp.errors import UnsupportedServerError
from hnscc_qp.geometry import Crop, Mpp, PixelSize, Region, Turn
from hnscc_qp.slides.reader import open_slide


@st.composite
def views(draw: st.DrawFn):
    """Up to four steps that fit an image of 420 × 300 px and leave 40 px at least."""
    width, height = 420, 300
    view = []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            quarters = draw(st.integers(1, 3))
            view.append(Turn(quarters))
            if quarters % 2:
                width, height = height, width
        else:
            x, y = draw(st.integers(0, width - 40)), draw(st.integers(0, height - 40))
            width, height = draw(st.integers(40, width - x)), draw(st.integers(40, height - y))
            view.append(Crop(x, y, width, height))
    return tuple(view)


def show(pixels, view):
    for step in view:
        if isinstance(step, Turn):
            pixels = np.rot90(pixels, -step.quarters)
        else:
            pixels = pixels[step.y : step.y + step.height, step.x : step.x + step.width]
    return pixels


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(view=views())
def test_a_view_shows_what_numpy_cuts_and_turns(write_slide, noise, view):
    slide = open_slide(write_slide(noise), view=view)
    expected = show(noise, view)
    assert slide.size == (expected.shape[1], expected.shape[0])
    whole = slide.read(Region(0, 0, *slide.size), Mpp(0.5))
    np.testing.assert_array_equal(whole, expected)
    part = slide.read(Region(-3, 5, 30, 20), Mpp(0.5))
    assert (part[:, :3] == 255).all()
    np.testing.assert_array_equal(part[:, 3:], expected[5:25, :27])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(view=views(), mpp=st.sampled_from([(0.25, 0.25), (0.2428, 0.2428), (0.5, 0.31)]))
def test_a_coarser_read_of_a_view_is_that_of_the_plain_image(write_slide, noise, view, mpp):
    pixel_size = PixelSize(*map(Mpp, mpp))
    slide = open_slide(write_slide(noise), pixel_size=pixel_size, view=view)
    plain = open_slide(write_slide(show(noise, view), name="plain.tif"), pixel_size=pixel_size)
    region = Region(6.6, 4.2, 30, 27)
    read, expected = slide.read(region, Mpp(1.0)), plain.read(region, Mpp(1.0))
    # Sums of 32-bit floats taken in another order may round the other way.
    assert np.abs(read.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_tilings_of_a_turned_slide_agree_byte_for_byte(write_slide, noise, quarters):
    slide = open_slide(write_slide(noise, mpp=(0.2428, 0.2428)), view=(Turn(quarters),))
    step = slide.pixel_size.qupath_px_per(Mpp(1.0))[0]
    whole = slide.read(Region(0, 0, 60 * step, 60 * step), Mpp(1.0))
    part = slide.read(Region(17 * step, 23 * step, 20 * step, 10 * step), Mpp(1.0))
    np.testing.assert_array_equal(part, whole[23:33, 17:37])


def test_a_quarter_turn_swaps_the_sides_of_the_file_s_pixels_but_not_of_qupath_s(write_slide, noise):
    path = write_slide(noise, mpp=(0.25, 0.5))
    assert open_slide(path, view=(Turn(1),)).pixel_size == PixelSize(Mpp(0.5), Mpp(0.25))
    assert open_slide(path, view=(Turn(2),)).pixel_size == PixelSize(Mpp(0.25), Mpp(0.5))
    given_size = PixelSize(Mpp(0.3), Mpp(0.4))
    assert open_slide(path, view=(Turn(3),), pixel_size=given_size).pixel_size == given_size


def test_a_view_of_a_slide_with_bounds_counts_from_the_bounds(scn):
    path, pixels = scn
    view = (Crop(20, 10, 200, 150), Turn(1), Crop(5, 6, 100, 120))
    slide = open_slide(path, view=view)
    np.testing.assert_array_equal(slide.read(Region(0, 0, 100, 120), Mpp(0.5)), show(pixels, view))


def test_a_view_survives_being_sent_to_another_process(write_slide, noise):
    slide = open_slide(write_slide(noise), view=(Turn(1), Crop(10, 20, 100, 50)))
    again = pickle.loads(pickle.dumps(slide))
    region = Region(0, 0, 100, 50)
    np.testing.assert_array_equal(again.read(region, Mpp(0.5)), slide.read(region, Mpp(0.5)))


def test_a_part_that_reaches_beyond_the_image_is_refused(write_slide, noise):
    with pytest.raises(UnsupportedServerError, match=r"reaches beyond its 300 × 420 px"):
        open_slide(write_slide(noise), view=(Turn(1), Crop(0, 400, 100, 50)))
