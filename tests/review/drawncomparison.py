"""A small comparison, made up: three slides, every kind of entry."""

from __future__ import annotations

from hnscc_qp.review.comparison import (
    Bound,
    Comparison,
    Disagreement,
    Froc,
    FrocPoint,
    LeftOut,
    Lesion,
    LevelResult,
    Overlap,
    ReaderResult,
    Readers,
    RocPoint,
    SetFigures,
    SetName,
    SlideResult,
    StratumResult,
    ThresholdResult,
    TruthLesion,
)
from hnscc_qp.training.intervals import Estimate, proportion

LEVELS = 16


def falling(top: float, *, until: int = LEVELS) -> tuple[float, ...]:
    """An area per level that shrinks and is gone above `until` votes."""
    return tuple(top * (until - level) / until if level < until else 0.0 for level in range(LEVELS))


def drawn_slide(number: int, *, tumor: bool, max_votes: int) -> SlideResult:
    area = falling(90_000.0, until=max_votes) if max_votes else (0.0,) * LEVELS
    overlap = Overlap(0.8, 2 / 3, 1.1, 12.5, 40.0) if tumor else Overlap(None, None, None, None, None)
    return SlideResult(
        image=f"S{number}.tif",
        entry_id=str(number),
        patient=f"P{number}",
        side="test" if number > 2 else "train",
        truth="positive" if tumor else "negative",
        call="positive" if max_votes >= 11 else "negative",
        max_votes=max_votes,
        max_score=max_votes / LEVELS,
        size_qupath=(400, 320),
        pixel_size_um=(1.0, 1.0),
        score_map=f"score/{number} S{number}.tif.ome.tiff",
        tissue_um2=100_000.0,
        outlined=True,
        truth_um2=25_600.0 if tumor else 0.0,
        ai_um2=area,
        overlap_um2=tuple(value / 3 if tumor else 0.0 for value in area),
        largest_um2=area,
        regions=tuple(int(value > 0) for value in area),
        false_regions=tuple(int(value > 0 and not tumor) for value in area),
        exact=overlap,
        grid=overlap,
    )


def drawn_figures(name: SetName) -> SetFigures:
    return SetFigures(
        set=name,
        slides=50,
        patients=40,
        positive=21,
        negative=29,
        no_tissue=0,
        sensitivity=proportion(21, 21),
        specificity=proportion(22, 29),
        accuracy=proportion(43, 50),
        auc=Estimate(0.95, (0.88, 0.99)),
        dice=Estimate(0.8, (0.6, 0.9)),
        iou=Estimate(2 / 3, (0.43, 0.82)),
        area_ratio=1.1,
        boundary_mean_um=12.5,
        boundary_95_um=40.0,
        lesions=(
            StratumResult("≥2 mm", None),
            StratumResult("0.2 to 2 mm", proportion(9, 10)),
            StratumResult("<0.2 mm", proportion(1, 3)),
        ),
        lesion_sensitivity=proportion(10, 13),
        false_regions=4,
        roc=(RocPoint(17, 0.0, 0.0), RocPoint(11, 7 / 29, 1.0), RocPoint(1, 1.0, 1.0)),
        froc=Froc(
            points=(FrocPoint(1.0, 0.0, 0.5), FrocPoint(0.5, 0.6, 0.9)),
            at=((0.25, 0.7), (0.5, 0.8), (1.0, 0.9), (2.0, 0.9), (4.0, 0.9), (8.0, 0.9)),
            score=Estimate(0.85, (0.7, 0.95)),
            slides=50,
            lesions=12,
            isolated_cells=1,
        ),
    )


def drawn_sweep(name: SetName) -> list[LevelResult]:
    return [
        LevelResult(
            set=name,
            votes=votes,
            score=votes / LEVELS,
            sensitivity=proportion(21 if votes < 14 else 20, 21),
            specificity=proportion(min(29, 11 + votes), 29),
            false_um2_per_mm2=160.0 - 10 * votes,
            false_um2_per_mm2_negative=160.0 - 10 * votes,
            lesion_sensitivity=proportion(13 - votes // 4, 13),
            false_regions_per_slide=(16 - votes) / 50,
            dice=0.5 + votes / 40,
        )
        for votes in range(1, LEVELS + 1)
    ]


def drawn_comparison() -> Comparison:
    """One slide found, one false alarm with a name that HTML must escape, one left out."""
    return Comparison(
        study="drawn",
        generation="001",
        model="0123abcd",
        threshold=ThresholdResult(
            votes=11,
            levels=LEVELS,
            score=11 / LEVELS,
            min_lesion_um2=0.0,
            separates=True,
            interval=(11, 14),
            sentence="A score of 11/16 = 0.6875 calls a slide positive.",
            bound=Bound(0.1, 0.95, 12, 29, None, None, "12 positive patients are too few; 29 are needed."),
        ),
        figures=(drawn_figures("development"), drawn_figures("test")),
        slides=(
            drawn_slide(1, tumor=True, max_votes=16),
            drawn_slide(2, tumor=False, max_votes=3),
            drawn_slide(3, tumor=False, max_votes=12),
        ),
        left_out=(LeftOut("<S4> & co.tif", "neither status nor tumor annotation", "everything"),),
        lesions=(
            Lesion(
                image="S3.tif",
                patient="P3",
                side="test",
                id="6f0c9b54-3c5e-4f0e-9a3b-6f5b1b0d7a11",
                x_qupath=100.0,
                y_qupath=120.0,
                area_um2=1600.0,
                longest_diameter_mm=0.06,
                stratum="<0.2 mm",
                max_score=0.75,
                mean_score=0.7,
                edge_distance_mm=0.08,
                match="false",
                truth_ids=(),
                overlap_um2=0.0,
            ),
        ),
        truth_lesions=(
            TruthLesion(
                image="S1.tif",
                patient="P1",
                side="train",
                id="6f0c9b54-3c5e-4f0e-9a3b-6f5b1b0d7a12",
                x_qupath=160.0,
                y_qupath=160.0,
                area_um2=25_600.0,
                longest_diameter_mm=0.226,
                stratum="0.2 to 2 mm",
                edge_distance_mm=0.06,
                found=True,
                max_score=1.0,
                covered=0.9,
                lesion_ids=("6f0c9b54-3c5e-4f0e-9a3b-6f5b1b0d7a13",),
                isolated_cells=False,
            ),
        ),
        sweep=(*drawn_sweep("development"), *drawn_sweep("test")),
        readers=Readers(
            readers=(
                ReaderResult(
                    reader="Dr A",
                    slides=3,
                    left_out=(),
                    both_positive=1,
                    only_ai_positive=1,
                    only_reader_positive=0,
                    both_negative=1,
                    kappa=0.4,
                    kappa_interval=None,
                    sensitivity=proportion(1, 1),
                    specificity=proportion(2, 2),
                    only_ai_right=0,
                    only_reader_right=1,
                    mcnemar_p=1.0,
                ),
            ),
            pairs=(),
            fleiss=None,
            fleiss_with_ai=0.4,
            fleiss_slides=3,
            notes=(),
        ),
        disagreements=(
            Disagreement(
                image="S3.tif",
                patient="P3",
                side="test",
                kind="slide false alarm",
                against="manual review",
                reason="unexplained",
                detail="highest score 0.75; no rule applies",
                object_id="6f0c9b54-3c5e-4f0e-9a3b-6f5b1b0d7a11",
                x_qupath=100.0,
                y_qupath=120.0,
                area_um2=1600.0,
                max_score=0.75,
            ),
        ),
        notes=("Slides of training patients were seen in training: their figures flatter.",),
    )
