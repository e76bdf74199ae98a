"""What a generation makes of one slide, for the promotion gate: from its score map and the frozen truth.

Areas, lesions and detections are those of the comparison with manual review: `review.judged`, `review.froc`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hnscc_qp import study
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.review.comparison import Call
from hnscc_qp.review.froc import evaluation_lesions, find_peaks, match_detections
from hnscc_qp.review.gate import SlideOutcome
from hnscc_qp.review.judged import judge
from hnscc_qp.scoring.extent import block_areas_um2
from hnscc_qp.scoring.score_map import ScoreMap


def slide_outcome(
    score_map: ScoreMap,
    objects: Sequence[PathObject],
    *,
    tissue: NDArray[np.bool_],
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

    Args:
        score_map: of the slide.
        objects: the annotations that are true of it, in QuPath px.
        tissue: (rows, columns) bool, as `find_tissue` has it.
        entry_id: of the image.
        image: its name.
        patient: whose it is.
        positive: its true status.
        call: what the generation called it.
        threshold_votes: a block with so many votes is over the threshold.
        classes: what the annotations' classes mean.
        settings: how they are read.

    Raises:
        AnnotationError: an annotation can't be used.
    """
    grid, size = score_map.grid, score_map.image_size_px
    judged = judge(
        objects,
        name=image,
        size=size,
        grid=grid,
        tissue=tissue,
        classes=classes,
        settings=settings,
        positive=positive,
    )
    lesions = evaluation_lesions(judged.tumor, size_qupath=size, pixel_size=grid.pixel_size)
    is_judged = judged.judged_um2 >= block_areas_um2(score_map) / 2
    votes = np.where(is_judged, score_map.votes, 0).astype(np.uint8)
    peaks = find_peaks(votes, levels=score_map.max_level, block_qupath=grid.block_qupath)
    detections = match_detections(peaks, lesions, patient=patient)
    over = score_map.votes >= threshold_votes
    return SlideOutcome(
        entry_id=entry_id,
        image=image,
        patient=patient,
        positive=positive,
        call=call,
        lesions=detections.hits,
        # Where tumor is there but nobody outlined it, no detection is false.
        false_findings=detections.false if judged.outlined else (),
        truth_um2=float(judged.tumor_um2.sum()),
        found_um2=float(judged.judged_um2[over].sum()) if judged.outlined else 0.0,
        both_um2=float(judged.tumor_um2[over].sum()),
    )
