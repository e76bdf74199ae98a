"""What a generation makes of one slide, for the promotion gate: from its score map and the frozen truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hnscc_qp import study
from hnscc_qp.geometry import Grid
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.outlines import sort_annotations
from hnscc_qp.patches.territories import Windows, find_overlaps
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.review.gate import Call, SlideOutcome
from hnscc_qp.scoring.score_map import ScoreMap

_TOUCHING = np.ones((3, 3), np.bool_)
"""Blocks of a lesion may touch at a corner: its outline is finer than they are."""
Areas = NDArray[np.float64]


def slide_outcome(
    score_map: ScoreMap,
    objects: Sequence[PathObject],
    *,
    entry_id: str,
    image: str,
    patient: str,
    positive: bool,
    call: Call,
    threshold_votes: int,
    classes: study.Classes,
    settings: study.Patches,
) -> SlideOutcome:
    """Judge a score map by annotations.

    Areas are of blocks and, of the truth, what each block holds of it; blocks of which an ignored annotation
    covers half or more are not judged. A lesion is a connected piece of outlined tumor, a finding a connected
    region over the threshold; a finding hits a lesion if they share a block.

    Args:
        score_map: of the slide.
        objects: the annotations that are true of it, in QuPath px.
        entry_id: of the image.
        image: its name.
        patient: whose it is.
        positive: its true status.
        call: what the generation called it.
        threshold_votes: a block with so many votes is over the threshold.
        classes: what the annotations' classes mean.
        settings: how they are read.
    """
    grid = score_map.grid
    tumor, ignored = _covered(score_map, objects, image=image, classes=classes, settings=settings)
    block_px2 = float(np.prod(grid.block_qupath))
    judged = ignored < block_px2 / 2
    over = (score_map.votes >= threshold_votes) & judged
    tumor = np.where(judged, tumor, 0.0)
    findings, found = ndimage.label(over)
    lesions, outlined = ndimage.label(tumor > 0, structure=_TOUCHING)
    # The highest votes of every finding; number 0 is no finding.
    highest = np.zeros(found + 1)
    np.maximum.at(highest, findings[over], score_map.votes[over])
    score = highest / score_map.max_level
    hits = np.unique(np.stack([findings, lesions], axis=-1)[(findings > 0) & (lesions > 0)], axis=0)
    best = np.zeros(outlined + 1)
    for finding, lesion in hits.tolist():
        best[lesion] = max(best[lesion], score[finding])
    false = np.setdiff1d(np.arange(1, found + 1), hits[:, 0])
    to_um2 = grid.pixel_size.area_um2
    return SlideOutcome(
        entry_id=entry_id,
        image=image,
        patient=patient,
        positive=positive,
        call=call,
        lesions=tuple(best[1:].tolist()),
        false_findings=tuple(score[false].tolist()),
        truth_um2=to_um2(float(tumor.sum())),
        found_um2=to_um2(float(over.sum()) * block_px2),
        both_um2=to_um2(float(tumor[over].sum())),
    )


def _covered(
    score_map: ScoreMap,
    objects: Sequence[PathObject],
    *,
    image: str,
    classes: study.Classes,
    settings: study.Patches,
) -> tuple[Areas, Areas]:
    """QuPath px² of every block under outlined tumor, and under ignored annotations: (rows, columns)."""
    grid: Grid = score_map.grid
    outlines = sort_annotations(
        objects,
        name=image,
        size=score_map.image_size_px,
        pixel_size=grid.pixel_size,
        classes=classes,
        settings=settings,
    )
    width, height = grid.block_qupath
    left, top = (np.arange(count, dtype=np.float64) for count in (grid.columns, grid.rows))
    blocks = Windows(left * width, top * height, (width, height))
    first = outlines.meanings == Label.TUMOR if settings.nested == "tumor" else None
    block, shape, area = find_overlaps(outlines.shapes, blocks, first=first)

    def covered(label: Label) -> Areas:
        some = outlines.meanings[shape] == label
        areas = np.zeros(grid.rows * grid.columns)
        np.add.at(areas, block[some], area[some])
        return areas.reshape(grid.rows, grid.columns)

    return covered(Label.TUMOR), covered(Label.IGNORED)
