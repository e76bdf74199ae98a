from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring.conftest import MapMaker

from hnscc_qp.scoring.extent import (
    area_by_level,
    block_areas_um2,
    largest_regions,
    regions_by_level,
    votes_reached,
)
from hnscc_qp.scoring.regions import vectorize
from hnscc_qp.scoring.threshold import SlideScore, choose_threshold_and_area, choose_with_area


@pytest.mark.parametrize("seed", range(4))
def test_areas_are_those_of_the_outlines(make_score_map: MapMaker, seed: int) -> None:
    votes = np.random.default_rng(seed).integers(0, 17, (9, 11)).astype(np.uint8)
    score_map = make_score_map(votes, pixel_size=(0.5, 0.25), cut=0.4)
    blocks, largest = block_areas_um2(score_map), largest_regions(score_map)
    summed = area_by_level(score_map, blocks)
    for level, labels, count in regions_by_level(score_map):
        outlined = [region.area_um2 for region in vectorize(score_map, threshold_votes=level)]
        assert count == labels.max() == len(outlined)
        assert largest[level - 1] == pytest.approx(max(outlined, default=0.0))
        assert summed[level - 1] == pytest.approx(sum(outlined))


def test_a_slide_reaches_what_a_large_enough_region_reaches() -> None:
    largest = (900.0, 400.0, 100.0, 0.0)
    assert [votes_reached(largest, area) for area in (0, 100, 101, 400, 900, 901)] == [3, 3, 2, 2, 1, 0]


def slide(name: str, positive: bool, largest: dict[int, float]) -> SlideScore:
    levels = tuple(
        max((area for votes, area in largest.items() if votes >= level), default=0.0)
        for level in range(1, 17)
    )
    return SlideScore(name, name, positive, max(largest, default=0), 16, levels)


def test_the_smallest_area_that_separates_is_chosen() -> None:
    slides = [
        slide("p1", True, {12: 5000.0}),
        slide("p2", True, {14: 3000.0}),
        slide("n1", False, {16: 100.0, 6: 400.0}),
        slide("n2", False, {4: 9000.0}),
    ]
    chosen = choose_threshold_and_area(slides, sensitivity=1.0)
    assert (chosen.min_lesion_um2, chosen.votes, chosen.separates) == (101.0, 7, True)
    assert chosen.sentence.startswith("Only regions of at least 101 µm² count. ")
    assert not choose_with_area(slides, 0.0, sensitivity=1.0).separates


def test_where_blocks_separate_no_area_is_asked_for() -> None:
    slides = [slide("p", True, {12: 100.0}), slide("n", False, {3: 90_000.0})]
    chosen = choose_threshold_and_area(slides, sensitivity=1.0)
    assert (chosen.min_lesion_um2, chosen.votes) == (0.0, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_other_area_does_better(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def drawn(name: str, positive: bool) -> SlideScore:
        return slide(name, positive, {int(v): float(a) * 100 for v, a in rng.integers(1, 17, (3, 2))})

    slides = [drawn(f"p{i}", True) for i in range(3)] + [drawn(f"n{i}", False) for i in range(3)]
    chosen = choose_threshold_and_area(slides, sensitivity=1.0)
    for area in np.arange(0, 1700, 50.0):
        other = choose_with_area(slides, area, sensitivity=1.0)
        assert chosen.separates or not other.separates
        if not chosen.separates and other.sensitivity >= chosen.sensitivity:
            assert other.specificity <= chosen.specificity
        if chosen.separates and other.separates:
            assert chosen.min_lesion_um2 <= area + 1
