"""`report.html`: the comparison with manual review as one file that needs no network.

It shows what `Comparison` holds. The one thing computed in the browser is the slides' calls at the threshold
that the slider is on, by the rule that `Comparison` states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from hnscc_qp import RESEARCH_USE_ONLY, __version__
from hnscc_qp.files import write_text
from hnscc_qp.models.modelcard import ModelCard
from hnscc_qp.review import reportcharts as charts
from hnscc_qp.review.comparison import Comparison, Disagreement, SetName, SlideResult
from hnscc_qp.review.reportpictures import SlidePicture
from hnscc_qp.review.tables import Table, cohort_table
from hnscc_qp.training.intervals import Estimate, Proportion, percent

REPORT_FILE = "report.html"
_MOST_OBJECTS = 12
"""Of one slide that are listed; lesions.csv has all."""
_MOST_DISAGREEMENTS = 300
_STRIP_WIDTH = 560


@dataclass(frozen=True, slots=True)
class FoundObject:
    """Something on a slide that can be looked up in QuPath."""

    what: str
    """In words, with its size and score."""
    x: int
    """QuPath px."""
    y: int
    id: str
    """UUID in QuPath; empty if it has none."""
    bad: bool
    """AI and manual review disagree about it."""

    @property
    def script(self) -> str:
        """A line for QuPath's script editor that goes there and selects it."""
        line = f"getCurrentViewer().setCenterPixelLocation({self.x}, {self.y})"
        if self.id:
            line += f"; selectObjects {{ it.getID().toString() == '{self.id}' }}"
        return line


@dataclass(frozen=True, slots=True)
class SlideCard:
    """One slide of the gallery."""

    number: int
    slide: SlideResult
    set: SetName
    picture: SlidePicture | None
    problem: str
    """Why there is no picture."""
    objects: tuple[FoundObject, ...]
    more_objects: int

    @property
    def wrong(self) -> bool:
        """The call contradicts the truth, at the study's threshold."""
        return self.slide.call not in ("no tissue", self.slide.truth)


def write_report(
    path: Path,
    comparison: Comparison,
    pictures: Mapping[str, SlidePicture | str],
    *,
    cards: Sequence[ModelCard] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the report.

    Args:
        path: of the HTML file.
        comparison: what it shows.
        pictures: by entry id; text says why a slide has none.
        cards: of the models, primary first.
        settings: of the study, section by section.

    Raises:
        StorageError: it can't be written.
    """
    environment = Environment(
        loader=PackageLoader("hnscc_qp.review"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "share": _share, "interval": _interval, "um2": _area}
    slides = slide_cards(comparison, pictures)
    text = environment.get_template("report.html").render(
        comparison=comparison,
        version=__version__,
        research_use_only=RESEARCH_USE_ONLY,
        # Both are ours, and hold nothing of the study.
        style=Markup(_package_text(environment, "report.css")),
        script=Markup(_package_text(environment, "report.js")),
        cohort=cohort_table(comparison),
        slides=slides,
        number_of={card.slide.image: card.number for card in slides},
        wrong=sum(card.wrong for card in slides),
        roc=charts.roc_curves(comparison),
        froc=charts.froc_curves(comparison),
        froc_ticks=charts.froc_ticks(),
        strips=charts.score_strips(comparison, width=_STRIP_WIDTH),
        strip_width=_STRIP_WIDTH,
        side=charts.SIDE_PX,
        disagreements=comparison.disagreements[:_MOST_DISAGREEMENTS],
        more_disagreements=max(0, len(comparison.disagreements) - _MOST_DISAGREEMENTS),
        models=[Markup(_render_card(card)) for card in cards],
        settings=list(_flat(settings or {})),
        data=_data(comparison, slides),
        describe=describe,
        wilson=_wilson_rows(comparison),
    )
    write_text(path, text)


def slide_cards(comparison: Comparison, pictures: Mapping[str, SlidePicture | str]) -> list[SlideCard]:
    """The slides, worst disagreement first.

    A wrong call comes before any right one, a missed positive before a false alarm; then counts
    the area that only one of AI and manual review outlines.
    """
    objects = _objects(comparison)
    level = comparison.threshold.votes - 1

    def badness(slide: SlideResult) -> tuple[int, float, str]:
        wrong = slide.call != slide.truth
        wrong = wrong and (slide.call, slide.truth) != ("no tissue", "negative")
        kind = 0 if wrong and slide.truth == "positive" else 1 if wrong else 2
        apart = slide.ai_um2[level] + slide.truth_um2 - 2 * slide.overlap_um2[level]
        return kind, -apart, slide.image

    cards = []
    for number, slide in enumerate(sorted(comparison.slides, key=badness), start=1):
        picture = pictures.get(slide.entry_id, "no picture was made")
        found = objects.get(slide.image, [])
        cards.append(
            SlideCard(
                number=number,
                slide=slide,
                set=charts.set_of(slide),
                picture=None if isinstance(picture, str) else picture,
                problem=picture if isinstance(picture, str) else "",
                objects=tuple(found[:_MOST_OBJECTS]),
                more_objects=max(0, len(found) - _MOST_OBJECTS),
            )
        )
    return cards


def describe(one: Disagreement) -> str:
    """What an entry is about, in words."""
    return f"{one.kind}, against {one.against}" if one.kind == "reader" else one.kind


def _objects(comparison: Comparison) -> dict[str, list[FoundObject]]:
    """By image: what was missed, what is false, then what agrees; the larger first."""
    rows: list[tuple[str, int, float, FoundObject]] = []
    for missed in comparison.truth_lesions:
        if missed.found:
            continue
        what = (
            f"missed: outlined tumor, {missed.longest_diameter_mm:.2f} mm, "
            f"highest score {missed.max_score:.4f}"
        )
        # Of several pieces of one annotation, QuPath knows the whole.
        place = round(missed.x_qupath), round(missed.y_qupath), missed.id.partition(" part ")[0]
        rows.append((missed.image, 0, -missed.area_um2, FoundObject(what, *place, bad=True)))
    for lesion in comparison.lesions:
        bad = lesion.match == "false"
        what = (
            f"{lesion.match}: region, {lesion.longest_diameter_mm:.2f} mm, "
            f"highest score {lesion.max_score:.4f}"
        )
        place = round(lesion.x_qupath), round(lesion.y_qupath), lesion.id
        rows.append((lesion.image, 1 if bad else 2, -lesion.area_um2, FoundObject(what, *place, bad=bad)))
    found: dict[str, list[FoundObject]] = {}
    for image, _, _, item in sorted(rows, key=lambda row: row[:3]):
        found.setdefault(image, []).append(item)
    return found


def _data(comparison: Comparison, slides: Sequence[SlideCard]) -> dict[str, Any]:
    """What the script needs: levels, the sweep, and each slide's areas."""
    sweep: dict[str, list[dict[str, Any]]] = {}
    for level in comparison.sweep:
        sweep.setdefault(level.set, []).append(
            {
                "votes": level.votes,
                "sensitivity": _share(level.sensitivity),
                "specificity": _share(level.specificity),
                "lesions": _share(level.lesion_sensitivity),
                "falseArea": _number(level.false_um2_per_mm2, 0),
                "falseRegions": _number(level.false_regions_per_slide, 2),
                "dice": _number(level.dice, 3),
            }
        )
    return {
        "levels": comparison.threshold.levels,
        "votes": comparison.threshold.votes,
        "minArea": comparison.threshold.min_lesion_um2,
        "side": charts.SIDE_PX,
        "sweep": sweep,
        "slides": [
            {
                "truth": card.slide.truth,
                "set": card.set,
                "max": card.slide.max_votes,
                "tissue": card.slide.call != "no tissue",
                "largest": [round(area) for area in card.slide.largest_um2],
                "area": [round(area) for area in card.slide.ai_um2],
                "overlap": [round(area) for area in card.slide.overlap_um2],
                "truthArea": round(card.slide.truth_um2),
            }
            for card in slides
        ],
    }


def _render_card(card: ModelCard) -> str:
    # What a card says is text: HTML in it is shown, not obeyed.
    html: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(card.as_markdown())
    for level in (2, 1):
        html = html.replace(f"<h{level}>", f"<h{level + 2}>").replace(f"</h{level}>", f"</h{level + 2}>")
    return html.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")


def _wilson_rows(comparison: Comparison) -> Table:
    rows = []
    for figures in comparison.figures:
        for name in ("sensitivity", "specificity", "accuracy"):
            found: Proportion | None = getattr(figures, name)
            if found is not None:
                exact, wilson = (
                    "{:.1f} to {:.1f} %".format(*(100 * end for end in ends))
                    for ends in (found.clopper_pearson, found.wilson)
                )
                rows.append(
                    (figures.set, name, f"{found.count}/{found.of}", percent(found.value), exact, wilson)
                )
    return Table(
        "Table 3",
        ("set", "figure", "slides", "share", "95 % exact (Clopper-Pearson)", "95 % Wilson"),
        tuple(rows),
    )


def _share(found: Proportion | None) -> str:
    return "none" if found is None else f"{percent(found.value)} ({found.count}/{found.of})"


def _interval(found: Proportion | Estimate | None) -> str:
    """The interval in words; of shares the exact one."""
    if found is None:
        return ""
    if isinstance(found, Proportion):
        low, high = found.clopper_pearson
        return f"95 %: {100 * low:.1f} to {100 * high:.1f}\xa0%"
    if found.interval is None:
        return "too few patients for an interval"
    return "95 %: {:.3f} to {:.3f}".format(*found.interval)


def _area(area_um2: float) -> str:
    """In mm², or µm² where that would be nought."""
    if area_um2 == 0:
        return "0"
    return f"{area_um2 / 1e6:.3f} mm²" if area_um2 >= 1e4 else f"{area_um2:,.0f} µm²"


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:,.{digits}f}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            yield f"{prefix}{key}", "none" if text in (None, "", {}) else str(text)


def _package_text(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
