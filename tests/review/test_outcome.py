"""What a score map is by the truth, beside block by block with plain shapely."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box
from studies import annotation

from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.review.gate import SlideOutcome
from hnscc_qp.review.outcome import slide_outcome
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.study import Classes, Patches

CLASSES = Classes(ignored=("Artefact",))
PIXEL = PixelSize(Mpp(0.5), Mpp(0.25))
SIZE = (240, 480)
"""12 × 12 blocks of 20 × 40 px."""
GRID = Grid.of_method(SIZE, PIXEL)


def outcome_of(
    votes: np.ndarray, shapes: list[tuple[object, str]], threshold: int, *, tissue: np.ndarray | None = None
) -> SlideOutcome:
    return slide_outcome(
        ScoreMap(votes, np.full_like(votes, 16), GRID, SIZE, windows=1),
        [annotation(roi, name) for roi, name in shapes],
        tissue=np.ones((12, 12), np.bool_) if tissue is None else tissue,
        entry_id="1",
        image="a.tif",
        patient="P1",
        positive=True,
        call="positive",
        threshold_votes=threshold,
        classes=CLASSES,
        settings=Patches(),
    )


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 16), min_size=144, max_size=144),
    st.lists(st.tuples(*[st.integers(0, 200)] * 2, *[st.integers(5, 60)] * 2), max_size=3),
    st.integers(1, 16),
    st.sets(st.integers(0, 143), max_size=20),
)
def test_areas_are_those_of_single_blocks(
    drawn: list[int], boxes: list[tuple[int, int, int, int]], threshold: int, glass: set[int]
) -> None:
    votes = np.array(drawn, np.uint8).reshape(12, 12)
    tissue = ~np.isin(np.arange(144), list(glass)).reshape(12, 12)
    rois = [box(x, 2 * y, x + w, 2 * (y + h)) for x, y, w, h in boxes]
    found = outcome_of(votes, [(roi, "Tumor") for roi in rois], threshold, tissue=tissue)
    tumor = shapely.union_all(rois)
    truth = area = both = 0.0
    for row in range(12):
        for column in range(12):
            if tissue[row, column]:
                block = box(20 * column, 40 * row, 20 * column + 20, 40 * row + 40)
                inside = tumor.intersection(block).area / 8  # a px is 0.125 µm²
                truth += inside
                if votes[row, column] >= threshold:
                    area, both = area + 100, both + inside
    outlined = bool(rois)  # a positive slide without an outline is judged by its status only
    assert found.truth_um2 == pytest.approx(truth)
    assert found.found_um2 == pytest.approx(area if outlined else 0)
    assert found.both_um2 == pytest.approx(both)
    assert outlined or not found.false_findings


def test_what_lies_under_an_ignored_annotation_is_not_judged() -> None:
    votes = np.full((12, 12), 16, np.uint8)
    artefact = box(0, 0, 240, 240)
    found = outcome_of(votes, [(box(40, 280, 100, 360), "Tumor"), (artefact, "Artefact")], 11)
    assert found.found_um2 == pytest.approx(100 * 72)
    assert found.both_um2 == found.truth_um2 == pytest.approx(60 * 80 / 8)


def test_hit_and_false_detections_are_told_apart() -> None:
    votes = np.zeros((12, 12), np.uint8)
    votes[2, 2], votes[9, 9] = 12, 7
    found = outcome_of(votes, [(box(20, 40, 100, 160), "Tumor")], 5)
    assert found.lesions == ()  # of isolated cells, which count neither as found nor as missed
    assert found.false_findings == (7 / 16,)
