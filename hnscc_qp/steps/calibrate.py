"""`calibrate`: the threshold from the development set, and the call of every slide."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hnscc_qp.files import atomic_path, sha256_file, write_json
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.patches.seal import Member
from hnscc_qp.patches.split import Side
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.scoring.bound import MissBound, bound_misses
from hnscc_qp.scoring.extent import area_by_level, block_areas_um2, largest_regions, votes_reached
from hnscc_qp.scoring.score_map import read_score_map
from hnscc_qp.scoring.threshold import (
    SlideScore,
    Threshold,
    choose_threshold_and_area,
    choose_with_area,
    slide_status,
    votes_for,
)
from hnscc_qp.steps import patches, score
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.training.intervals import Proportion, proportion

STEP = "calibrate"
THRESHOLD_FILE = "threshold.json"


@dataclass(frozen=True, slots=True)
class _Scored:
    """What a score map says of one image."""

    image: ImageEntry
    member: Member | None
    max_votes: int
    levels: int
    windows: int
    largest_um2: tuple[float, ...]
    area_um2: tuple[float, ...]
    """Per level: what reaches it, of what was looked at."""
    looked_at_um2: float

    def slide_score(self) -> SlideScore:
        assert self.member is not None
        return SlideScore(
            self.image.name,
            self.member.patient,
            self.member.positive,
            self.max_votes,
            self.levels,
            self.largest_um2,
        )


def calibrate_study(context: Context) -> Manifest:
    """Choose the threshold and call every scored slide; `threshold.json`, `sweep.csv` and `slides.csv`.

    Slides of training patients were seen in training, so their scores flatter; those of the test
    set decide nothing here and are the honest figures. A score map that can't be read is named and left out.

    Raises:
        StepError: the slides are not scored yet.
        CohortError: there is no positive development slide.
        ScoreMapError: not one score map can be read.
    """
    started = time.time()
    scored = context.generation.need(score.STEP, command=f"hnscc-qp score {context.study.path}")
    members = read_members(context.generation.step(patches.STEP))
    settings = context.study.settings("calibration")
    inputs = dict(scored["outputs"]) | {"cohort": members.sha256}
    if done := context.finished(STEP, settings, inputs):
        return done
    images = [image for image in context.project.images if image.entry_id in scored["outputs"]]
    read, failed = context.each_image(
        images,
        lambda image: _read(context, image, members.by_entry.get(image.entry_id)),
        doing="reading score maps",
    )
    found = list(read.values())
    threshold = _choose(context, found)
    bound = _bound(context, found, threshold)
    slides = [_call(one, threshold) for one in found]
    sweep = [row for name, sides in _SETS for row in _sweep(name, _of(found, sides), threshold)]
    folder = context.generation.step(STEP)
    write_json(
        folder / THRESHOLD_FILE,
        {"score": threshold.score} | asdict(threshold) | {"bound": asdict(bound), "sweep": sweep},
    )
    _write_table(folder / "slides.csv", slides)
    _write_table(folder / "sweep.csv", [_flat(row) for row in sweep])
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={THRESHOLD_FILE: sha256_file(folder / THRESHOLD_FILE)},
        counts={
            "threshold votes": threshold.votes,
            "threshold score": threshold.score,
            "smallest lesion um2": threshold.min_lesion_um2,
            "separates": threshold.separates,
            "bound votes": bound.votes,
            "development": _agreement(slides, Side.TRAIN, Side.VALIDATION),
            "test": _agreement(slides, Side.TEST),
        },
        started=started,
        failed=failed,
        notes=[threshold.sentence, bound.sentence],
    )
    manifest["slides"] = slides
    manifest["sweep"] = sweep
    write_manifest(folder, manifest)
    return manifest


_SETS = (("development", (Side.TRAIN, Side.VALIDATION)), ("test", (Side.TEST,)))


def _read(context: Context, image: ImageEntry, member: Member | None) -> _Scored:
    score_map = read_score_map(score.score_map_file(context, image))
    looked_at = block_areas_um2(score_map) * (score_map.coverage > 0)
    return _Scored(
        image=image,
        member=member,
        max_votes=score_map.max_votes,
        levels=score_map.max_level,
        windows=score_map.windows,
        largest_um2=largest_regions(score_map),
        area_um2=tuple(map(float, area_by_level(score_map, looked_at))),
        looked_at_um2=float(looked_at.sum()),
    )


def _of(found: Sequence[_Scored], sides: Sequence[Side]) -> list[_Scored]:
    return [one for one in found if one.member and one.member.side in sides]


def _choose(context: Context, found: Sequence[_Scored]) -> Threshold:
    wanted = context.study.calibration
    development = [one.slide_score() for one in _of(found, (Side.TRAIN, Side.VALIDATION))]
    if wanted.min_lesion_um2 == "auto":
        return choose_threshold_and_area(development, sensitivity=wanted.sensitivity, within=wanted.within)
    return choose_with_area(
        development, wanted.min_lesion_um2, sensitivity=wanted.sensitivity, within=wanted.within
    )


def _bound(context: Context, found: Sequence[_Scored], threshold: Threshold) -> MissBound:
    # Training patients were learnt from: that none of them is missed promises nothing.
    slides = [one.slide_score().at_least(threshold.min_lesion_um2) for one in _of(found, (Side.VALIDATION,))]
    wanted = context.study.calibration
    return bound_misses(slides, alpha=wanted.miss_rate, confidence=wanted.confidence)


def _call(one: _Scored, threshold: Threshold) -> dict[str, Any]:
    member = one.member
    call = "no tissue"  # no window looked at is not "no tumour found"
    if one.windows:
        needed = votes_for(threshold.score, one.levels)
        reached = one.max_votes
        if threshold.min_lesion_um2:
            reached = votes_reached(one.largest_um2, threshold.min_lesion_um2)
        call = slide_status(reached, needed)
    return {
        "image": one.image.name,
        "patient": member.patient if member else None,
        "side": str(member.side) if member else None,
        "truth": ("positive" if member.positive else "negative") if member else None,
        "max_score": one.max_votes / one.levels,
        "call": call,
    }


def _sweep(name: str, found: Sequence[_Scored], threshold: Threshold) -> list[dict[str, Any]]:
    """Every threshold on one set, with the smallest lesion area in use: JSON values."""
    seen = [one for one in found if one.windows]
    slides = [one.slide_score().at_least(threshold.min_lesion_um2) for one in seen]
    positive = [slide for slide in slides if slide.positive]
    negative = [slide for slide in slides if not slide.positive]
    areas = np.array([one.area_um2 for one, slide in zip(seen, slides, strict=True) if not slide.positive])
    looked_at = sum(one.looked_at_um2 for one, slide in zip(seen, slides, strict=True) if not slide.positive)
    # Nothing on a negative slide is tumour, so all of it is false.
    per_mm2 = areas.sum(axis=0) / looked_at * 1e6 if looked_at else None
    rows = []
    for votes in range(1, threshold.levels + 1) if slides else ():
        found_positive = proportion(sum(slide.max_votes >= votes for slide in positive), len(positive))
        spared = proportion(sum(slide.max_votes < votes for slide in negative), len(negative))
        rows.append(
            {
                "set": name,
                "votes": votes,
                "score": votes / threshold.levels,
                "sensitivity": _share(found_positive),
                "specificity": _share(spared),
                "false_um2_per_mm2": None if per_mm2 is None else float(per_mm2[votes - 1]),
            }
        )
    return rows


def _share(share: Proportion | None) -> dict[str, Any] | None:
    return None if share is None else {"value": share.value} | asdict(share)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the sweep for a table: shares with the ends of their exact intervals."""
    flat: dict[str, Any] = {key: row[key] for key in ("set", "votes", "score")}
    for name in ("sensitivity", "specificity"):
        share = row[name] or {"value": None, "count": None, "of": 0, "clopper_pearson": (None, None)}
        flat |= {name: share["value"], f"{name}_count": share["count"], f"{name}_of": share["of"]}
        flat |= dict(zip((f"{name}_low", f"{name}_high"), share["clopper_pearson"], strict=True))
    return flat | {"false_um2_per_mm2": row["false_um2_per_mm2"]}


def _agreement(slides: list[dict[str, Any]], *sides: Side) -> dict[str, int]:
    """Calls against truth; a slide without tissue was not called."""
    called = [slide for slide in slides if slide["side"] in sides and slide["call"] != "no tissue"]
    count = Counter((slide["truth"], slide["call"]) for slide in called)
    return {
        "true positive": count["positive", "positive"],
        "false negative": count["positive", "negative"],
        "true negative": count["negative", "negative"],
        "false positive": count["negative", "positive"],
    }


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
