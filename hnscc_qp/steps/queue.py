"""`queue`: what a pathologist should look at next, as a table and as boxes in QuPath; and the error rates."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import box

from hnscc_qp.errors import HnsccQpError, ObjectDataError, StepError
from hnscc_qp.files import atomic_path, write_json
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.patches.labels import Label, annotated_meanings
from hnscc_qp.patches.split import Side
from hnscc_qp.qupath.geojson import read_geojson
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.log import now
from hnscc_qp.review.queue import (
    Place,
    QueueItem,
    Stratum,
    draw_queue,
    rank_places,
)
from hnscc_qp.review.queue_novelty import Features, describe_squares, distances
from hnscc_qp.review.verdict_lessons import standing
from hnscc_qp.scoring.probabilities import read_probabilities
from hnscc_qp.scoring.score_map import ScoreMap, read_score_map
from hnscc_qp.steps import calibrate, patches, regions, score
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.pull import review_log, verdicts_of
from hnscc_qp.steps.queueboxes import box_object
from hnscc_qp.steps.scorejob import probabilities_file

STEP = "queue"
_MIN_COVERED = 0.25
"""Share of a square's blocks that were scored, for the square to be a place."""
_MARGIN_UM = 20.0
"""Between a detection and its box."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """An image with what was found on it."""

    image: ImageEntry
    score_map: ScoreMap
    disagreement: NDArray[np.float64] | None
    """(window_rows, window_columns) |P(primary) - P(secondary)|, NaN where not both were asked."""
    detections: tuple[PathObject, ...]
    known: shapely.Geometry
    """Where tumor is annotated: nothing to be found out."""
    features: Features


def make_queue(context: Context, *, seed: int = 1) -> Manifest:
    """Rank every place of the slides that may be learnt from, draw the random part, write the tables.

    Slides of the sealed test set are left out: what is said of them teaches nothing.

    Raises:
        StepError: slides are not scored, calibrated or outlined yet.
        HnsccQpError: no image can be read.
    """
    started = time.time()
    study = context.study
    settings = study.review
    scored = context.generation.need(score.STEP, command=f"hnscc-qp score {study.path}")
    calibrated = context.generation.need(calibrate.STEP, command=f"hnscc-qp calibrate {study.path}")
    drawn = context.generation.need(regions.STEP, command=f"hnscc-qp regions {study.path}")
    threshold = float(calibrated["counts"]["threshold score"])
    split = read_members(context.generation.step(patches.STEP))
    tests = {entry for entry, member in split.by_entry.items() if member.side is Side.TEST}
    images = [
        image
        for image in context.project.images
        if image.entry_id in scored["outputs"]
        and image.entry_id in drawn["outputs"]
        and image.entry_id not in tests
    ]
    if not images:
        raise StepError("every scored slide is of the test set: there is nothing to ask for; add slides")
    read, failed = context.each_image(images, lambda image: _read(context, image), doing="reading scores")
    training = {entry for entry, member in split.by_entry.items() if member.side is Side.TRAIN}
    usual = [one.features.reshape(-1, 6) for entry, one in read.items() if entry in training]
    reference = np.concatenate(usual) if usual else np.zeros((0, 6))
    judged = {verdict.object_id for verdict in standing(verdicts_of(review_log(context).read()))}
    places = [
        place
        for one in read.values()
        for place in _places(
            one, distances(one.features, reference), threshold, judged, side_um=settings.place_um
        )
    ]
    values = rank_places(places, settings.queue_weights)
    items = draw_queue(
        places, values, length=settings.queue_length, random_share=settings.random_share, seed=seed
    )
    frame = {str(kind): sum(place.stratum is kind for place in places) for kind in Stratum}
    made = now()
    folder = review_log(context).folder / "queue"
    _write_items(folder / "queue.csv", items)
    slides = _slides(read.values(), places, values)
    _write_slides(folder / "slides.csv", slides)
    rows = [
        asdict(item) | {"box_id": str(box_object(item, made, context.generation.name).id)} for item in items
    ]
    queue = {"made": made, "generation": context.generation.name, "seed": seed, "frame": frame, "items": rows}
    write_json(folder / "queue.json", queue)
    measured = [place.disagreement is not None for place in places]
    notes = [f"left out, for they are of the test set: {len(tests)} slides"] if tests else []
    if not all(measured):
        notes.append(
            "how far the stages disagree is not known for all places and counts where it is; set "
            "probabilities = true under [scoring] and score again to know it"
        )
    if all(place.novelty is None for place in places):
        notes.append("how new the tissue is is not known: too little training tissue to compare with")
    manifest = make_manifest(
        step=STEP,
        settings=study.settings("review") | {"seed": seed},
        inputs=scored["outputs"],
        counts={"images": len(read), "queue": len(items), "random": sum(i.drawn is not None for i in items)}
        | {f"{kind} places": count for kind, count in frame.items()},
        started=started,
        failed=failed,
        notes=notes,
    )
    manifest["items"] = rows
    manifest["slides"] = slides
    write_manifest(context.generation.step(STEP), manifest)
    return manifest


def _read(context: Context, image: ImageEntry) -> _Scored:
    score_map = read_score_map(score.score_map_file(context, image))
    read = read_geojson(regions.region_file(context, image))
    if read.skipped:
        raise ObjectDataError(f"{image.name}: {read.skipped[0]}; draw its regions again")
    meanings = annotated_meanings(context.objects(image), context.study.classes)
    known = shapely.union_all([item.roi.buffer(0) for item, meaning in meanings if meaning is Label.TUMOR])
    features = describe_squares(context.open_image(image), side_um=context.study.review.place_um)
    return _Scored(image, score_map, _disagreement(context, image), read.objects, known, features)


def _disagreement(context: Context, image: ImageEntry) -> NDArray[np.float64] | None:
    try:
        stages = read_probabilities(probabilities_file(context, image)).astype(np.float64)
    except HnsccQpError:
        return None
    return None if len(stages) < 2 else np.abs(stages[0] - stages[1])


def _places(
    one: _Scored,
    novelty: Features | None,
    threshold: float,
    judged: set[str],
    *,
    side_um: int,
) -> Iterable[Place]:
    """Detections without a verdict, and squares of tissue without a detection or annotated tumor."""
    grid, score_map = one.score_map.grid, one.score_map
    block_x, block_y = grid.block_qupath
    shares = score_map.votes / score_map.max_level
    width, height = score_map.image_size_px
    across = side_um / grid.pixel_size.x, side_um / grid.pixel_size.y

    def place(
        stratum: Stratum, bounds: tuple[float, float, float, float], top: float, size: float, who: str | None
    ) -> Place:
        left, upper, right, lower = bounds
        blocks = np.s_[
            int(upper / block_y) : int(np.ceil(lower / block_y)),
            int(left / block_x) : int(np.ceil(right / block_x)),
        ]
        squares = np.s_[
            int(upper / across[1]) : int(np.ceil(lower / across[1])),
            int(left / across[0]) : int(np.ceil(right / across[0])),
        ]
        return Place(
            stratum=stratum,
            entry_id=one.image.entry_id,
            image=one.image.name,
            box_qupath=bounds,
            object_id=who,
            max_score=top,
            disagreement=None if one.disagreement is None else _mean(one.disagreement[blocks]) or 0.0,
            near_threshold=1 - abs(top - threshold),
            novelty=None if novelty is None else _mean(novelty[squares]),
            size_um2=size,
        )

    margin = _MARGIN_UM / grid.pixel_size.x, _MARGIN_UM / grid.pixel_size.y
    for item in one.detections:
        if str(item.id) in judged:
            continue
        left, upper, right, lower = item.roi.bounds
        bounds = (
            round(max(0.0, left - margin[0]), 2),
            round(max(0.0, upper - margin[1]), 2),
            round(min(float(width), right + margin[0]), 2),
            round(min(float(height), lower + margin[1]), 2),
        )
        top = float(item.measurements["AI: Max score"])
        area = grid.pixel_size.area_um2(item.roi.area)
        yield place(Stratum.DETECTION, bounds, top, round(area, 2), str(item.id))
    blocks_per_square = side_um // int(grid.mpp * grid.step_px)
    shapely.prepare(one.known)
    for row in range(0, grid.rows, blocks_per_square):
        for column in range(0, grid.columns, blocks_per_square):
            part = np.s_[row : row + blocks_per_square, column : column + blocks_per_square]
            if (score_map.coverage[part] > 0).mean() < _MIN_COVERED:
                continue
            top = float(shares[part].max())
            bounds = (
                round(column * block_x, 2),
                round(row * block_y, 2),
                round(min((column + blocks_per_square) * block_x, width), 2),
                round(min((row + blocks_per_square) * block_y, height), 2),
            )
            if top >= threshold or one.known.intersects(box(*bounds)):
                continue
            voted = float((score_map.votes[part] > 0).sum() * (grid.mpp * grid.step_px) ** 2)
            yield place(Stratum.SILENT, bounds, top, voted, None)


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _slides(
    read: Iterable[_Scored], places: Sequence[Place], values: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Slides by the mean value of their five most valuable places."""
    by_image: dict[str, list[float]] = defaultdict(list)
    for place, value in zip(places, values, strict=True):
        by_image[place.image].append(float(value))
    rows = []
    for one in read:
        best = sorted(by_image[one.image.name], reverse=True)[:5]
        rows.append(
            {
                "image": one.image.name,
                "value": round(sum(best) / len(best), 4) if best else 0.0,
                "places": len(by_image[one.image.name]),
                "max score": round(one.score_map.max_votes / one.score_map.max_level, 4),
            }
        )
    rows.sort(key=lambda row: (-float(str(row["value"])), str(row["image"])))
    return [{"rank": rank} | row for rank, row in enumerate(rows, start=1)]


def _write_slides(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as out:
        table = csv.DictWriter(out, ["rank", "image", "value", "places", "max score"])
        table.writeheader()
        table.writerows(rows)


def _write_items(path: Path, items: Sequence[QueueItem]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(
            (
                "rank",
                "image",
                "what",
                "chosen",
                "x_qupath",
                "y_qupath",
                "width_qupath",
                "height_qupath",
                "object",
                "value",
                "max_score",
                "disagreement",
                "near_threshold",
                "novelty",
                "size_um2",
            )
        )
        for item in items:
            place = item.place
            left, upper, right, lower = place.box_qupath
            table.writerow(
                (
                    item.rank,
                    place.image,
                    place.stratum,
                    "for its value" if item.drawn is None else "at random",
                    left,
                    upper,
                    round(right - left, 2),
                    round(lower - upper, 2),
                    place.object_id,
                    round(item.value, 4),
                    round(place.max_score, 4),
                    place.disagreement if place.disagreement is None else round(place.disagreement, 4),
                    round(place.near_threshold, 4),
                    place.novelty if place.novelty is None else round(place.novelty, 3),
                    place.size_um2,
                )
            )
