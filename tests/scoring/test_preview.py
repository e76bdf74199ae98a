from __future__ import annotations

import numpy as np
import pytest
import shapely

from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.scoring.preview import draw_preview

ORANGE, GREEN = (255, 90, 0), (0, 120, 60)


class GraySlide:
    """600 × 300 QuPath px of 0.5 × 1.0 µm: a square of 300 µm."""

    name = "a slide whose name is far too long to stand beside the note in any legend at all.svs"
    size = (600, 300)
    pixel_size = PixelSize(Mpp(0.5), Mpp(1.0))

    def read(self, region, mpp):
        height, width = round(region.height / mpp), round(region.width * 0.5 / mpp)
        return np.full((height, width, 3), 200, np.uint8)


@pytest.fixture
def score_map(make_score_map):
    votes = np.zeros((30, 30), np.uint8)
    votes[10:20, 5:15] = 16
    return make_score_map(votes, pixel_size=(0.5, 1.0))


def test_scores_and_outlines_lie_where_they_belong(score_map):
    truth = [shapely.box(400, 60, 500, 120)]
    picture = draw_preview(GraySlide(), score_map, 11, truth=truth, longest_side_px=600)
    assert picture.width == 600
    assert picture.height > 600
    assert picture.getpixel((50, 50)) == (200, 200, 200)  # no votes
    red, green, blue = picture.getpixel((200, 300))  # in the middle of the votes
    assert red > green + 50
    assert red > blue + 50
    assert picture.getpixel((200, 200)) == ORANGE  # the region's upper side, at 100 µm
    assert picture.getpixel((450, 120)) == GREEN  # the annotation's upper side, at 60 µm


def test_the_legend_names_the_pathologist_only_with_annotations(score_map):
    with_truth = draw_preview(
        GraySlide(), score_map, 11, truth=[shapely.box(0, 0, 9, 9)], longest_side_px=600
    )
    without = draw_preview(GraySlide(), score_map, 11, longest_side_px=600)
    legends = [picture.crop((0, 600, *picture.size)).getcolors(100_000) for picture in (with_truth, without)]
    assert [GREEN in [color for _, color in legend] for legend in legends] == [True, False]


def test_the_same_input_gives_the_same_picture(score_map):
    pictures = [draw_preview(GraySlide(), score_map, 11, longest_side_px=300) for _ in range(2)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_a_slide_without_votes_is_drawn_as_it_is(make_score_map):
    empty = make_score_map(np.zeros((30, 30), np.uint8), pixel_size=(0.5, 1.0))
    picture = draw_preview(GraySlide(), empty, 11, longest_side_px=600)
    assert picture.crop((0, 0, 600, 600)).getcolors() == [(360_000, (200, 200, 200))]
