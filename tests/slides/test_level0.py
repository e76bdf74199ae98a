"""Points of a file's level 0 lie where the pixels there are shown."""

from __future__ import annotations

import numpy as np
import pytest

from hnscc_qp.geometry import Crop, Turn
from hnscc_qp.slides.reader import open_slide

CENTRE = (96 + 130, 64 + 60)
"""Of the red box, in level-0 px; what was imaged begins at (96, 64)."""


@pytest.mark.parametrize(
    ("view", "crop_to_bounds"),
    [
        ((), False),
        ((), True),
        ((Turn(1),), True),
        ((Turn(2),), True),
        ((Turn(3),), True),
        ((Crop(50, 30, 150, 120),), True),
        ((Turn(1), Crop(40, 60, 130, 120), Turn(2)), True),
    ],
)
def test_a_point_of_the_file_is_found_in_what_qupath_shows(scn, view, crop_to_bounds):
    path, _ = scn
    slide = open_slide(path, view=view, crop_to_bounds=crop_to_bounds)
    shown = slide.thumbnail(max(slide.size)).astype(int)
    y, x = np.nonzero((shown[..., 0] > 150) & (shown[..., 1] < 90) & (shown[..., 2] < 150))
    [[found_x, found_y]] = slide.to_qupath(np.array([CENTRE], float))
    assert (found_x, found_y) == (x.mean() + 0.5, y.mean() + 0.5)
