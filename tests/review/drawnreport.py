"""Reports of drawn slides: pictures of noise with a square of votes, and their comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from drawncomparison import LEVELS, drawn_comparison, drawn_slide
from shapely.geometry import box

from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.review.comparison import Comparison
from hnscc_qp.review.report import write_report
from hnscc_qp.review.reportpictures import SlidePicture, bytes_per_slide, draw_slide
from hnscc_qp.scoring.score_map import ScoreMap

MPP = Mpp(1.0)


def drawn_map(width: int, height: int, *, max_votes: int, levels: int = 16) -> ScoreMap:
    """A square of rising votes: one column of blocks for each number up to `max_votes`."""
    step_px = {16: 10, 64: 5, 4: 20}[levels]
    grid = Grid.of_method((width, height), PixelSize(MPP, MPP), step_px=step_px)
    votes = np.zeros((grid.rows, grid.columns), np.uint8)
    for number in range(1, max_votes + 1):
        votes[5:15, 4 + number] = number
    coverage = np.full_like(votes, grid.window_blocks**2)
    return ScoreMap(votes, coverage, grid, (width, height), windows=1)


def drawn_picture(
    *, width: int = 400, height: int = 320, max_votes: int, max_bytes: int, seed: int = 1
) -> SlidePicture:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(150, 256, (height, width, 3), dtype=np.uint8)
    truth = [box(80, 60, 200, 160).difference(box(100, 80, 120, 100))]
    return draw_slide(pixels, drawn_map(width, height, max_votes=max_votes), truth, max_bytes=max_bytes)


def write_drawn_report(path: Path, *, slides: int = 0, side: int = 400) -> Comparison:
    """The drawn comparison; with `slides`, of so many slides, each with pictures of noise of `side` px."""
    comparison = drawn_comparison()
    if slides:
        many = tuple(
            drawn_slide(number, tumor=number % 2 == 1, max_votes=number % (LEVELS + 1))
            for number in range(1, slides + 1)
        )
        comparison = replace(comparison, slides=many)
    budget = bytes_per_slide(len(comparison.slides))
    pictures: dict[str, SlidePicture | str] = {
        slide.entry_id: drawn_picture(
            width=side, height=side * 4 // 5, max_votes=slide.max_votes, max_bytes=budget, seed=number
        )
        for number, slide in enumerate(comparison.slides)
    }
    write_report(path, comparison, pictures, settings={"split": {"test": 0.3}, "classes": {"tumor": ["<b>"]}})
    return comparison
