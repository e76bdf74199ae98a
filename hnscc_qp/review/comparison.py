"""Everything that a comparison with manual review found, as plain values.

`hnscc-qp compare` computes it and keeps it as `comparison.json`; the report, the tables and the exports show
what is here and compute no figure of their own. docs/comparison.md defines each figure.

Levels are votes: entry `i` of a per-level tuple is of the threshold of `i + 1` votes, up to `levels`. Places
are in QuPath px. Areas of slides are of judged tissue: tissue that no ignored annotation covers and, where a
slide has region annotations, inside those.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from hnscc_qp.errors import StepError
from hnscc_qp.files import write_text
from hnscc_qp.training.intervals import Estimate, Proportion

Status = Literal["positive", "negative"]
Call = Literal["positive", "negative", "no tissue"]
SideName = Literal["train", "validation", "test"]
SetName = Literal["development", "test"]
"""Development is training and validation together."""
Stratum = Literal["≥2 mm", "0.2 to 2 mm", "<0.2 mm"]
"""Longest diameter: size only, not staging."""
Reason = Literal[
    "missed small lesion", "follicle", "weak stain", "annotation gap", "unreadable", "unexplained"
]


@dataclass(frozen=True, slots=True)
class Overlap:
    """How well two areas agree: the AI's and the pathologist's."""

    dice: float | None
    """2 |A∩B| / (|A| + |B|); None where both are empty."""
    iou: float | None
    """|A∩B| / |A∪B|; None where both are empty."""
    area_ratio: float | None
    """AI's area by the pathologist's; None without the latter."""
    boundary_mean_um: float | None
    """Mean distance from each outline to the other, both ways; None where one is empty."""
    boundary_95_um: float | None
    """95th percentile of the same distances."""


@dataclass(frozen=True, slots=True)
class SlideResult:
    """One slide: truth, call, and what each threshold would make of it."""

    image: str
    entry_id: str
    patient: str
    side: SideName
    truth: Status
    call: Call
    max_votes: int
    max_score: float
    """0..1"""
    size_qupath: tuple[int, int]
    """Width and height in px."""
    pixel_size_um: tuple[float, float]
    score_map: str
    """Its OME-TIFF, from the generation's folder on."""
    tissue_um2: float
    """Judged tissue."""
    outlined: bool
    """Tumor is outlined, or the slide is negative: areas and lesions can be judged."""
    truth_um2: float
    """Outlined tumor in judged tissue."""
    ai_um2: tuple[float, ...]
    """Per level: area that reaches it."""
    overlap_um2: tuple[float, ...]
    """Per level: of that, inside outlined tumor."""
    largest_um2: tuple[float, ...]
    """Per level: area of the largest connected region, for thresholds with a smallest lesion area."""
    regions: tuple[int, ...]
    """Per level: connected regions."""
    false_regions: tuple[int, ...]
    """Per level: of those, the ones that touch no outlined tumor; zeros where it is not outlined."""
    exact: Overlap | None
    """At the threshold, of polygons; None where tumor is not outlined."""
    grid: Overlap | None
    """The same of whole blocks (a block is tumor if half of it is)."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A slide that is not compared, or not in full."""

    image: str
    reason: str
    what: Literal["everything", "areas and lesions"]
    """What it is left out of."""


@dataclass(frozen=True, slots=True)
class Lesion:
    """A connected region over the threshold."""

    image: str
    patient: str
    side: SideName
    id: str
    """UUID of the detection in QuPath."""
    x_qupath: float
    """A place inside it."""
    y_qupath: float
    area_um2: float
    longest_diameter_mm: float
    stratum: Stratum
    max_score: float
    mean_score: float
    edge_distance_mm: float | None
    """From its nearest point to the edge of the tissue (the capsule, where the node is whole); None where the
    image shows no edge."""
    match: Literal["detected", "false", "not judged"]
    """It touches outlined tumor, or not; or that can't be said: not outlined, or not in judged tissue."""
    truth_ids: tuple[str, ...]
    """Outlined lesions that it touches."""
    overlap_um2: float
    """Of its area, inside outlined tumor."""


@dataclass(frozen=True, slots=True)
class TruthLesion:
    """A connected piece of outlined tumor."""

    image: str
    patient: str
    side: SideName
    id: str
    """UUID of the largest of its annotations; of several pieces of one, with ` part n`."""
    x_qupath: float
    y_qupath: float
    area_um2: float
    longest_diameter_mm: float
    stratum: Stratum
    edge_distance_mm: float | None
    found: bool
    """A region over the threshold touches it."""
    max_score: float
    """Highest score of the blocks that it touches: thresholds up to this find it."""
    covered: float
    """Share of its area over the threshold, 0..1."""
    lesion_ids: tuple[str, ...]
    """Regions that touch it."""
    isolated_cells: bool
    """Too small to count in the FROC curve (CAMELYON16: under 275 µm with 37.5 µm around it)."""


@dataclass(frozen=True, slots=True)
class LevelResult:
    """How a threshold of so many votes does on one set."""

    set: SetName
    votes: int
    score: float
    sensitivity: Proportion | None
    """Of slides."""
    specificity: Proportion | None
    false_um2_per_mm2: float | None
    """Area over the threshold outside outlined tumor, by judged tissue outside outlined tumor."""
    false_um2_per_mm2_negative: float | None
    """The same on negative slides alone."""
    lesion_sensitivity: Proportion | None
    """Outlined lesions found."""
    false_regions_per_slide: float | None
    dice: float | None
    """Pooled over slides, exact."""


@dataclass(frozen=True, slots=True)
class RocPoint:
    """A slide is positive from so many votes on."""

    votes: int
    """1..levels, and levels + 1 for none."""
    false_positive_rate: float
    sensitivity: float


@dataclass(frozen=True, slots=True)
class FrocPoint:
    """A detection counts from such a score on."""

    score: float
    false_per_slide: float
    sensitivity: float


@dataclass(frozen=True, slots=True)
class Froc:
    """Lesion sensitivity against false detections per slide (CAMELYON16)."""

    points: tuple[FrocPoint, ...]
    """From few false detections to many."""
    at: tuple[tuple[float, float], ...]
    """Sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false detections per slide."""
    score: Estimate
    """The mean of those six, with its interval by patients."""
    slides: int
    lesions: int
    isolated_cells: int
    """Lesions too small to count."""


@dataclass(frozen=True, slots=True)
class StratumResult:
    """How many outlined lesions of a size are found."""

    stratum: Stratum
    found: Proportion | None


@dataclass(frozen=True, slots=True)
class SetFigures:
    """The headline figures of one set at the threshold."""

    set: SetName
    slides: int
    patients: int
    positive: int
    negative: int
    no_tissue: int
    """Slides that could not be called; in no share below."""
    sensitivity: Proportion | None
    specificity: Proportion | None
    accuracy: Proportion | None
    auc: Estimate | None
    """Of slides by highest score."""
    dice: Estimate | None
    """Pooled over slides, exact; interval by patients."""
    iou: Estimate | None
    area_ratio: float | None
    boundary_mean_um: float | None
    """Mean over slides where both outline something."""
    boundary_95_um: float | None
    lesions: tuple[StratumResult, ...]
    """One of each size, largest first."""
    lesion_sensitivity: Proportion | None
    false_regions: int
    roc: tuple[RocPoint, ...]
    """From none called positive to all; empty where a class is missing."""
    froc: Froc | None


@dataclass(frozen=True, slots=True)
class Bound:
    """A threshold with a guarantee on new patients (docs/comparison.md)."""

    alpha: float
    """Largest share of new positive patients that it may miss."""
    confidence: float
    patients: int
    """Positive validation patients that it rests on: training patients were learnt from."""
    needed: int
    """Positive patients that are needed at the least."""
    votes: int | None
    """The highest threshold with the guarantee; None if there is none."""
    score: float | None
    sentence: str
    """For people."""


@dataclass(frozen=True, slots=True)
class ThresholdResult:
    """The threshold in use and why."""

    votes: int
    levels: int
    score: float
    min_lesion_um2: float
    """A slide is positive from a connected region of this area on; 0: any block (the paper)."""
    separates: bool
    interval: tuple[int, int] | None
    """Lowest and highest number of votes that separate the development set."""
    sentence: str
    bound: Bound | None


@dataclass(frozen=True, slots=True)
class ReaderResult:
    """The AI beside one reader (or another model), on the slides that both called."""

    reader: str
    slides: int
    left_out: tuple[str, ...]
    """Images that only one of the two called."""
    both_positive: int
    only_ai_positive: int
    only_reader_positive: int
    both_negative: int
    kappa: float | None
    """Cohen's; None where both always say the same one thing."""
    kappa_interval: tuple[float, float] | None
    sensitivity: Proportion | None
    """The reader's, against the truth."""
    specificity: Proportion | None
    only_ai_right: int
    only_reader_right: int
    mcnemar_p: float | None
    """Exact, two-sided; None if they are right and wrong on the same slides."""


@dataclass(frozen=True, slots=True)
class PairKappa:
    """Cohen's kappa of two readers."""

    first: str
    second: str
    slides: int
    kappa: float | None


@dataclass(frozen=True, slots=True)
class Readers:
    """All readers."""

    readers: tuple[ReaderResult, ...]
    pairs: tuple[PairKappa, ...]
    fleiss: float | None
    """Fleiss' kappa of the readers, on slides that all of them called; None with fewer than two readers."""
    fleiss_with_ai: float | None
    fleiss_slides: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Something that AI and manual review see differently."""

    image: str
    patient: str
    side: SideName
    kind: Literal["slide missed", "slide false alarm", "lesion missed", "false region", "reader"]
    against: str
    """`manual review`, or a reader's name."""
    reason: Reason
    detail: str
    """One line: the rule that gave the reason, with its numbers."""
    object_id: str | None
    x_qupath: float | None
    y_qupath: float | None
    area_um2: float | None
    max_score: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything a report shows."""

    study: str
    generation: str
    model: str
    """Hash of the models that scored."""
    threshold: ThresholdResult
    figures: tuple[SetFigures, ...]
    """Development, then test; a set without slides is absent."""
    slides: tuple[SlideResult, ...]
    left_out: tuple[LeftOut, ...]
    lesions: tuple[Lesion, ...]
    truth_lesions: tuple[TruthLesion, ...]
    sweep: tuple[LevelResult, ...]
    """Every level of development, then every level of test."""
    readers: Readers | None
    disagreements: tuple[Disagreement, ...]
    """Worst first."""
    notes: tuple[str, ...]
    """What a person should know of these figures."""

    def of_set(self, name: SetName) -> SetFigures | None:
        """The figures of a set; None if it has no slides."""
        return next((one for one in self.figures if one.set == name), None)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return values

    @classmethod
    def from_json(cls, values: Any) -> Comparison:
        """What `to_json` made.

        Raises:
            ValueError: it is something else.
        """
        return _ADAPTER.validate_python(values)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write `comparison.json`."""
    write_text(path, _ADAPTER.dump_json(comparison, indent=2).decode() + "\n")


def read_comparison(path: Path) -> Comparison:
    """Read `comparison.json`.

    Raises:
        StepError: it is missing or damaged.
    """
    remedy = "run hnscc-qp compare with --force"
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise StepError(f"there is no comparison {path}; {remedy}") from error
    except ValidationError as error:
        raise StepError(f"{path} is damaged; {remedy}") from error


_ADAPTER = TypeAdapter(Comparison)
