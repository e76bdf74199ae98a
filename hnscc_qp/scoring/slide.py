"""One slide: tissue → windows → votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from hnscc_qp.errors import UnusableSlideError
from hnscc_qp.geometry import WINDOW_MPP, WINDOW_PX, Grid
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.scoring.windows import vote
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Scoring


def score_slide(
    slide: Slide,
    *,
    cascade: Cascade,
    settings: Scoring,
    device: torch.device,
    progress: Progress = SILENT,
    provenance: Mapping[str, str] | None = None,
) -> ScoreMap:
    """Score every block of a slide: 40 px windows at 1.0 µm/px, every 10 px (Tang et al. 2022, §2.5).

    A slide without tissue gives a score map without coverage, and a warning: it was looked at, and there
    was nothing to score. `windows` of the score map is then 0.

    Args:
        slide: to score.
        cascade: both stages.
        settings: how much tissue a window needs, and how many windows go to the network at once.
        device: where the network works.
        progress: told of every batch.
        provenance: what else the score map should say of its making, such as the models' hashes.

    Raises:
        MissingMppError: its pixel size is not known.
        UnusableSlideError: it is smaller than a window, or too coarse.
        SlideReadError: nothing of it can be decoded.
    """
    require_mpp(slide, WINDOW_MPP)
    grid = Grid.of_method(slide.size, slide.pixel_size)
    if not (grid.window_rows and grid.window_columns):
        width, height = slide.size
        raise UnusableSlideError(
            f"{slide.name} ({width} × {height} px) is smaller than one window of {WINDOW_PX} µm; "
            "check its pixel size in QuPath, or leave it out"
        )
    tissue = find_tissue(slide, grid)
    if not tissue.any():
        progress.warn(f"{slide.name}: no tissue was found, so nothing is scored; review it by eye")
    score_map = vote(
        slide, grid, tissue=tissue, cascade=cascade, device=device, settings=settings, progress=progress
    )
    return replace(score_map, provenance={**score_map.provenance, **(provenance or {})})
