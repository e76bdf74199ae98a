"""What the generations of a simulated review are worth on slides that no round shows: see `review_rounds.py`.

Each generation's figures at its own threshold, as the product calls it, and at the middle of the thresholds
that separate its development set, of which the method takes the lowest; and figures that hang on no
threshold, for thresholds jump where a handful of slides chooses them. For these the test slides of an arm are
swept together, by votes, 0 to 16, and more finely by the mean P(tumor) of a block's windows (the lower of
both stages' where both were asked), in steps of 1/200. Between two steps, and from the strictest one to
nothing found, the curve is straight.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from hnscc_qp.generation import Generation
from hnscc_qp.geometry import WINDOW_MPP, WINDOW_PX
from hnscc_qp.progress import SILENT
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.review.gate import FIGURES as GATE
from hnscc_qp.review.gate import SlideOutcome
from hnscc_qp.review.judged import judge
from hnscc_qp.review.outcome import slide_outcome
from hnscc_qp.scoring.probabilities import read_probabilities
from hnscc_qp.scoring.score_map import ScoreMap, read_score_map
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.steps import calibrate, score
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.scorejob import probabilities_file
from hnscc_qp.studyfile import load_study
from hnscc_qp.training.intervals import bootstrap, paired_bootstrap

TUMOR = PathClass(("Tumor",), (200, 0, 0))
SENSITIVITY = 0.7
"""One of the two area sensitivities at which generations are compared; the other is that of the start."""
_STEPS = 200
"""Of the mean P(tumor)."""
_SPACE = UUID(int=8)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A slide with its truth and its part in the play."""

    name: str
    slide: Path
    size: tuple[int, int]
    pixel_size: Any
    truth: BaseGeometry
    """True tumor, in QuPath px; empty on a negative slide."""
    part: str
    """`train`, `validation` and `test` are known from the start, `round 1` and later ones once reviewed."""

    @property
    def positive(self) -> bool:
        """Whether there is tumor."""
        return not self.truth.is_empty


def outlines(case: Case) -> list[PathObject]:
    """The truth as annotations, one for each piece."""
    return [annotation(part, case.name) for part in shapely.get_parts(case.truth) if part.area > 0]


def annotation(roi: BaseGeometry, name: str) -> PathObject:
    """Tumor that was drawn by hand."""
    return PathObject(
        type=ObjectType.ANNOTATION,
        roi=roi,
        roi_kind=RoiKind.GEOMETRY,
        area_px=roi.area,
        id=uuid5(_SPACE, name + roi.wkt),
        path_class=TUMOR,
    )


@dataclass(frozen=True)
class Tested:
    """A test slide under one generation: at its threshold, and at every other."""

    outcome: SlideOutcome
    lowest: int
    """The generation's threshold, in votes."""
    middle: int
    """Of the thresholds that separate its development set; the same as `lowest` where none does."""
    max_votes: int
    by_votes: Floats
    """(2, 17) µm² of true tumor found, and µm² found farther from it than a window reaches (what is nearer,
    windows with tumor may cover), at every number of votes, from 0 (all that was looked at) to 16."""
    by_probability: Floats
    """(2, 201) the same at every mean P(tumor)."""
    truth_um2: float
    free_um2: float
    """Tissue that no window with tumor reaches."""


def tested(folder: Path, generation: str, cases: Sequence[Case]) -> list[Tested]:
    """What a generation makes of the test slides, by the truth."""
    study = load_study(folder)
    context = Context(study, progress=SILENT, at=Generation(study.root / "generations" / generation))
    calibrated = context.generation.need(calibrate.STEP, command="calibrate")
    calls = {slide["image"]: slide["call"] for slide in calibrated["slides"]}
    threshold = json.loads((context.generation.step(calibrate.STEP) / calibrate.THRESHOLD_FILE).read_text())
    middle = sum(threshold["interval"]) // 2 if threshold["interval"] else threshold["votes"]
    found = []
    for image, case in zip(context.project.images, cases, strict=True):
        if case.part != "test":
            continue
        score_map = read_score_map(score.score_map_file(context, image))
        tissue = find_tissue(context.open_as_scanned(image), score_map.grid)
        judged = partial(
            judge,
            name=case.name,
            size=score_map.image_size_px,
            grid=score_map.grid,
            tissue=tissue,
            classes=study.classes,
            settings=study.patches,
            positive=case.positive,
        )
        window_px = WINDOW_PX * WINDOW_MPP / case.pixel_size.x
        near = [annotation(case.truth.buffer(window_px), case.name)] if case.positive else []
        true, around = judged(outlines(case)), judged(near)
        weights = np.stack([true.tumor_um2, around.judged_um2 - around.tumor_um2])
        seen = score_map.coverage > 0
        probabilities = read_probabilities(probabilities_file(context, image))
        by_votes = _by_level(score_map.votes, seen, weights, score_map.max_level)
        found.append(
            Tested(
                slide_outcome(
                    score_map,
                    outlines(case),
                    tissue=tissue,
                    entry_id=image.entry_id,
                    image=image.name,
                    patient=case.name,
                    positive=case.positive,
                    call=calls[image.name],
                    threshold_votes=threshold["votes"],
                    classes=study.classes,
                    settings=study.patches,
                ),
                threshold["votes"],
                middle,
                score_map.max_votes,
                by_votes,
                _by_level(_mean_probability(probabilities, score_map), seen, weights, _STEPS),
                float(true.tumor_um2.sum()),
                float((weights[1] * seen).sum()),
            )
        )
    return found


def _by_level(levels: NDArray[Any], seen: NDArray[np.bool_], weights: Floats, highest: int) -> Floats:
    """(2, highest + 1): the sum of each weight over the blocks looked at that reach each level."""
    sums = [
        np.bincount(levels[seen].ravel(), weight[seen].ravel(), minlength=highest + 1) for weight in weights
    ]
    return np.cumsum(np.stack(sums)[:, ::-1], axis=1)[:, ::-1]


def _mean_probability(stages: NDArray[np.float16], score_map: ScoreMap) -> NDArray[np.int64]:
    """For each block the mean of its windows' P(tumor), in steps: (rows, columns) 0 to `_STEPS`."""
    of_window = stages.astype(np.float64)
    primary = of_window[0]
    both = np.fmin(primary, of_window[1]) if len(of_window) > 1 else primary
    asked = ~np.isnan(primary)
    side = score_map.grid.window_blocks
    rows, columns = score_map.votes.shape
    total, count = np.zeros((rows, columns)), np.zeros((rows, columns))
    for down in range(side):
        for right in range(side):
            part = np.s_[down : down + both.shape[0], right : right + both.shape[1]]
            total[part] += np.where(asked, both, 0)
            count[part] += asked
    return np.rint(_STEPS * total / np.maximum(count, 1)).astype(np.int64)


def false_per_mm2(where: str, slides: Sequence[Tested], counts: Any) -> float | None:
    """False-positive area in µm² by mm² of tissue that no window with tumor reaches, at a threshold."""
    free = _sum(counts, [one.free_um2 for one in slides])
    false = _sum(counts, [one.by_votes[1, getattr(one, where)] for one in slides])
    return false / free * 1e6 if free else None


def area_sensitivity(where: str, slides: Sequence[Tested], counts: Any) -> float | None:
    """Share of the true tumor's area that is found at a threshold."""
    truth = _sum(counts, [one.truth_um2 for one in slides])
    return _sum(counts, [one.by_votes[0, getattr(one, where)] for one in slides]) / truth if truth else None


def slides_right(where: str, positive: bool, slides: Sequence[Tested], counts: Any) -> float | None:
    """Share of the positive, or of the negative, slides that a threshold calls rightly."""
    of = _sum(counts, [one.outcome.positive is positive for one in slides])
    right = [
        one.outcome.positive is positive and (one.max_votes >= getattr(one, where)) is positive
        for one in slides
    ]
    return _sum(counts, right) / of if of else None


def false_at(sensitivity: float, curve: str, slides: Sequence[Tested], counts: Any) -> float | None:
    """False µm² per mm² where so much of the tumor is found; None where it never is."""
    swept = _swept(curve, slides, counts)
    if swept is None:
        return None
    true, false = swept
    if true[-1] < sensitivity:
        return None
    at = int(np.searchsorted(true, sensitivity))
    step = true[at] - true[at - 1]
    return float(1e6 * (false[at - 1] + (sensitivity - true[at - 1]) / step * (false[at] - false[at - 1])))


def area_auc(curve: str, slides: Sequence[Tested], counts: Any) -> float | None:
    """Area under share of tumor found over share of tumor-free tissue found, from nothing to all."""
    swept = _swept(curve, slides, counts)
    if swept is None:
        return None
    true, false = (np.append(one, 1.0) for one in swept)
    return float(np.trapezoid(true, false))


def _swept(curve: str, slides: Sequence[Tested], counts: Any) -> tuple[Floats, Floats] | None:
    """Shares of the tumor, and of the tumor-free tissue, that are found: from nothing to all looked at."""
    truth = _sum(counts, [one.truth_um2 for one in slides])
    free = _sum(counts, [one.free_um2 for one in slides])
    if not truth or not free:
        return None
    found = sum(n * getattr(one, curve) for n, one in zip(counts, slides, strict=True))
    both = np.concatenate([np.zeros((2, 1)), found[:, ::-1]], axis=1)
    return both[0] / truth, both[1] / free


def _sum(counts: Any, values: Sequence[float]) -> float:
    return float(np.dot(counts, values))


Figure = Callable[[Sequence[Tested], Any], float | None]


def _of_outcomes(figure: Any) -> Figure:
    return lambda slides, counts: figure([one.outcome for one in slides])(counts)


AT_THRESHOLD: dict[str, Figure] = {
    "false µm² per mm²": partial(false_per_mm2, "lowest"),
    "area sensitivity": partial(area_sensitivity, "lowest"),
    "slide sensitivity": _of_outcomes(GATE["sensitivity"]),
    "slide specificity": _of_outcomes(GATE["specificity"]),
    "Dice": _of_outcomes(GATE["dice"]),
    "FROC": _of_outcomes(GATE["froc"]),
    "false µm² per mm² at the middle": partial(false_per_mm2, "middle"),
    "area sensitivity at the middle": partial(area_sensitivity, "middle"),
    "slide sensitivity at the middle": partial(slides_right, "middle", True),
    "slide specificity at the middle": partial(slides_right, "middle", False),
}


def without_threshold(start: Sequence[Tested]) -> dict[str, Figure]:
    """The figures that hang on no threshold, given the slides under the first generation."""
    found = area_sensitivity("lowest", start, np.ones(len(start)))
    figures: dict[str, Figure] = {}
    for curve, words in (("by_votes", "by votes"), ("by_probability", "by P")):
        figures[f"false µm² per mm² at {SENSITIVITY}, {words}"] = partial(false_at, SENSITIVITY, curve)
        if found:
            figures[f"false µm² per mm² at the start's {found:.3f}, {words}"] = partial(
                false_at, found, curve
            )
        figures[f"area AUC, {words}"] = partial(area_auc, curve)
    return figures


def report(folder: Path, cases: Sequence[Case], *, rounds: int) -> None:
    """Print each generation's figures on the test slides, and what review differs by from the control."""
    kept: dict[tuple[str, int], list[Tested]] = {}
    figures = dict(AT_THRESHOLD)
    for arm, number, note in _notes(folder, rounds):
        slides = kept[arm, number] = tested(folder / arm, note["generation"], cases)
        if arm == "start":
            figures |= without_threshold(slides)
        _print_generation(folder / arm, number, note, slides, figures)
    for number in range(1, rounds + 1):
        for other, one in (("control", "review"), ("start", "review"), ("start", "control")):
            before, after = kept.get((other, 0 if other == "start" else number)), kept.get((one, number))
            if before and after:
                _print_difference(f"round {number}, {one} less {other}", before, after, figures)


def _notes(folder: Path, rounds: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for arm in ("start", "review", "control"):
        for number in range(rounds + 1):
            note = folder / arm / f"round-{number}.json"
            if note.exists() and (arm == "start" or number):
                yield arm, number, json.loads(note.read_text())


def _print_generation(
    folder: Path, number: int, note: dict[str, Any], slides: list[Tested], figures: dict[str, Figure]
) -> None:
    generation = folder / "generations" / note["generation"]
    said = folder / f"said-{number}.json"
    words = said.read_text() if said.exists() else ""
    print(  # noqa: T201
        f"{folder.name} {number}: {note['seconds']} s, threshold {slides[0].lowest}/16, middle of those that "
        f"separate {slides[0].middle}/16 {words}"
    )
    secondary = json.loads((generation / "secondary" / "manifest.json").read_text())
    print(f"    the secondary: {'; '.join(secondary['notes'])}")  # noqa: T201
    decided = generation / "decision.json"
    if decided.exists():
        decision = json.loads(decided.read_text())
        print(f"    the gate: {decision['passed']}, {decision['reason']}")  # noqa: T201
    patients = [one.outcome.patient for one in slides]
    for name, figure in figures.items():
        estimate = bootstrap(patients, partial(figure, slides))
        print(f"    {name}: {_text(name, estimate)}")  # noqa: T201


def _print_difference(
    title: str, before: list[Tested], after: list[Tested], figures: dict[str, Figure]
) -> None:
    patients = [slide.outcome.patient for slide in before]
    for name, figure in figures.items():
        gain = paired_bootstrap(patients, partial(figure, before), partial(figure, after))
        if gain and gain.interval:
            low, high = gain.interval
            digits = 0 if "µm²" in name else 3
            print(  # noqa: T201
                f"{title}: {name} {gain.difference:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
            )


def _text(name: str, estimate: Any) -> str:
    if estimate is None:
        return "-"
    digits = 0 if "µm²" in name else 3
    interval = (
        "" if estimate.interval is None else " ({:.{d}f} to {:.{d}f})".format(*estimate.interval, d=digits)
    )
    return f"{estimate.value:.{digits}f}{interval}"
