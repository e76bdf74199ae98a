"""Points of a file's level 0 lie where the pixels there are shown."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from shapely.geometry import box

from hnscc_qp.geometry import Crop, Turn
from hnscc_qp.patches.sources.truth import read_truth, truth_file
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.study import Truth

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


@pytest.mark.parametrize("source", ["mask", "asap"])
@pytest.mark.parametrize("quarters", [0, 1])
def test_masks_and_xml_of_the_whole_file_lie_where_qupath_shows_it(scn, tmp_path, source, quarters):
    path, _ = scn
    left, top, right, bottom = CENTRE[0] - 30, CENTRE[1] - 20, CENTRE[0] + 30, CENTRE[1] + 20
    slide = open_slide(path, view=(Turn(quarters),) if quarters else ())
    if source == "mask":
        mask = np.zeros((384, 512), np.uint8)
        mask[top:bottom, left:right] = 255
        Image.fromarray(mask).save(tmp_path / "drawn.mask.png")
        settings = Truth(source="mask", frame="file", classes={"255": "Tumor"})
    else:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        places = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in corners)
        (tmp_path / "drawn.xml").write_text(
            '<ASAP_Annotations><Annotations><Annotation Type="Polygon" PartOfGroup="Tumor"><Coordinates>'
            f"{places}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
        )
        settings = Truth(source="asap")
    file = truth_file(path, settings, root=tmp_path)
    [found] = read_truth(file, settings, slide=slide, image_name="drawn.scn").objects
    # Turned clockwise, what was 192 px high is 192 px wide, and the box's lower edge is its left one.
    expected = box(192 - 80, 100, 192 - 40, 160) if quarters else box(100, 40, 160, 80)
    assert found.roi.equals(expected)
    assert str(found.path_class) == "Tumor"
