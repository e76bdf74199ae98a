from __future__ import annotations

import numpy as np
import pytest
import torch

from hnscc_qp.errors import UnusableSlideError
from hnscc_qp.scoring import slide as slide_module
from hnscc_qp.scoring.slide import score_slide
from hnscc_qp.study import Scoring

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tissue_is_what_is_not_white(monkeypatch):
    def find(slide, grid):
        return np.array(
            [
                [
                    (slide.read(grid.region(y, x, rows=1, columns=1), 1.0) < 255).any()
                    for x in range(grid.columns)
                ]
                for y in range(grid.rows)
            ]
        )

    monkeypatch.setattr(slide_module, "find_tissue", find)


def test_a_dark_square_gets_all_votes_at_its_middle(array_slide, dark_cascade):
    pixels = np.full((200, 300, 3), 255, np.uint8)
    pixels[60:140, 100:180] = 10
    score_map = score_slide(
        array_slide(pixels),
        cascade=dark_cascade,
        settings=Scoring(),
        device=CPU,
        provenance={"primary": "abc"},
    ).score_map
    assert (score_map.votes[9:11, 13:15] == 16).all()
    assert score_map.votes[:4].sum() == 0
    # Only windows over the 8 × 8 tissue blocks were looked at.
    assert score_map.windows == 11 * 11
    assert score_map.provenance == {
        "slide": "drawn.svs",
        "mode": "exact",
        "runtime": "torch",
        "primary": "abc",
    }


def test_a_slide_without_tissue_has_no_coverage_and_says_so(array_slide, dark_cascade, recorder):
    blank = array_slide(np.full((100, 100, 3), 255, np.uint8))
    score_map = score_slide(
        blank, cascade=dark_cascade, settings=Scoring(), device=CPU, progress=recorder
    ).score_map
    assert (score_map.windows, score_map.max_votes, score_map.coverage.max()) == (0, 0, 0)
    assert dark_cascade.shapes == []
    assert recorder.warnings == ["drawn.svs: no tissue was found, so nothing is scored; review it by eye"]


@pytest.mark.parametrize("shape", [(30, 500), (500, 30)])
def test_a_slide_smaller_than_a_window_is_refused(array_slide, dark_cascade, shape):
    small = array_slide(np.zeros((*shape, 3), np.uint8))
    with pytest.raises(UnusableSlideError, match=r"drawn\.svs .* is smaller than one window"):
        score_slide(small, cascade=dark_cascade, settings=Scoring(), device=CPU)
    # With a hair more than three blocks there is one row of windows, which reaches into white.
    just = array_slide(np.zeros((max(shape[0], 31), max(shape[1], 31), 3), np.uint8))
    assert score_slide(just, cascade=dark_cascade, settings=Scoring(), device=CPU).score_map.windows == 47


def test_a_slide_coarser_than_the_model_is_refused(array_slide, dark_cascade, monkeypatch):
    slide = array_slide(np.zeros((100, 100, 3), np.uint8))
    monkeypatch.setattr(slide, "pixel_size", type(slide.pixel_size)(28.97, 28.97), raising=False)
    with pytest.raises(UnusableSlideError, match="coarser"):
        score_slide(slide, cascade=dark_cascade, settings=Scoring(), device=CPU)
