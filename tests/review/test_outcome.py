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


def outcome_of(votes: np.ndarray, shapes: list[tuple[object, str]], threshold: int) -> SlideOutcome:
    return slide_outcome(
        ScoreMap(votes, np.full_like(votes, 16), GRID, SIZE, windows=1),
        [annotation(roi, name) for roi, name in shapes],
        entry_id="1",
        image="a.tif",
        patient="P1",
        positive=True,
        call="positive",
        threshold_votes=threshold,
        classes=CLASSES,
        settings=Patches(),
    )


def together(blocks: set[tuple[int, int]], *, corners: bool) -> list[set[tuple[int, int]]]:
    """Connected sets of blocks, by walking."""
    left, found = set(blocks), []
    while left:
        waiting, group = [left.pop()], set()
        while waiting:
            row, column = waiting.pop()
            group.add((row, column))
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    near = (row + down, column + right)
                    if near in left and (corners or not (down and right)):
                        left.remove(near)
                        waiting.append(near)
        found.append(group)
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 16), min_size=144, max_size=144),
    st.lists(st.tuples(*[st.integers(0, 200)] * 2, *[st.integers(5, 60)] * 2), max_size=3),
    st.integers(1, 16),
)
def test_areas_lesions_and_findings_are_those_of_single_blocks(
    drawn: list[int], boxes: list[tuple[int, int, int, int]], threshold: int
) -> None:
    votes = np.array(drawn, np.uint8).reshape(12, 12)
    rois = [box(x, 2 * y, x + w, 2 * (y + h)) for x, y, w, h in boxes]
    found = outcome_of(votes, [(roi, "Tumor") for roi in rois], threshold)
    tumor = shapely.union_all(rois).intersection(box(0, 0, *SIZE))
    blocks = {(r, c): box(20 * c, 40 * r, 20 * c + 20, 40 * r + 40) for r in range(12) for c in range(12)}
    inside = {at: tumor.intersection(block).area / 8 for at, block in blocks.items()}  # px² of 0.125 µm²
    over = {at for at in blocks if votes[at] >= threshold}
    assert found.truth_um2 == pytest.approx(tumor.area / 8)
    assert found.found_um2 == pytest.approx(100 * len(over))
    assert found.both_um2 == pytest.approx(sum(inside[at] for at in over))
    lesions = together({at for at, area in inside.items() if area > 1e-6}, corners=True)
    findings = together(over, corners=False)
    best = [
        max((max(votes[at] for at in one) / 16 for one in findings if one & lesion), default=0)
        for lesion in lesions
    ]
    false = [
        max(votes[at] for at in one) / 16 for one in findings if not any(one & lesion for lesion in lesions)
    ]
    assert sorted(found.lesions) == pytest.approx(sorted(best))
    assert sorted(found.false_findings) == pytest.approx(sorted(false))


def test_what_lies_under_an_ignored_annotation_is_not_judged() -> None:
    votes = np.full((12, 12), 16, np.uint8)
    artefact = box(0, 0, 240, 240)
    found = outcome_of(votes, [(box(40, 40, 100, 100), "Tumor"), (artefact, "Artefact")], 11)
    # The smaller annotation lies on top, but most of each of its blocks is artefact.
    assert found.found_um2 <= 100 * 12 * 6 + 100 * 6
    clear = outcome_of(votes, [(box(40, 280, 100, 360), "Tumor"), (artefact, "Artefact")], 11)
    assert clear.found_um2 == pytest.approx(100 * 72)
    assert clear.both_um2 == clear.truth_um2 == pytest.approx(60 * 80 / 8)
