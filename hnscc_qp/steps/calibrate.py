"""`calibrate`: the threshold from the development set, and the call of every slide."""

from __future__ import annotations

import csv
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hnscc_qp.files import atomic_path, sha256_file, write_json
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.patches.split import Side
from hnscc_qp.scoring.score_map import read_score_map
from hnscc_qp.scoring.threshold import SlideScore, choose_threshold, slide_status, votes_for
from hnscc_qp.steps import patches, score
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context, Manifest

STEP = "calibrate"


def calibrate_study(context: Context) -> Manifest:
    """Choose the threshold and call every scored slide; `threshold.json` and `slides.csv`.

    Slides of training patients were seen in training, so their scores flatter; those of the test
    set decide nothing here and are the honest figures.

    Raises:
        StepError: the slides are not scored yet.
        CohortError: there is no positive development slide.
    """
    started = time.time()
    scored = context.generation.need(score.STEP, command=f"hnscc-qp score {context.study.path}")
    members = read_members(context.generation.step(patches.STEP))
    settings = context.study.settings("calibration")
    inputs = dict(scored["outputs"]) | {"cohort": members.sha256}
    if done := context.finished(STEP, settings, inputs):
        return done
    rows = []
    for image in context.project.images:
        if image.entry_id not in scored["outputs"]:
            continue
        score_map = read_score_map(score.score_map_file(context, image))
        member = members.by_entry.get(image.entry_id)
        rows.append((image.name, member, score_map.max_votes, score_map.max_level, score_map.windows))
    threshold = choose_threshold(
        [
            SlideScore(name, member.patient, member.positive, votes, levels)
            for name, member, votes, levels, _ in rows
            if member and member.side is not Side.TEST
        ],
        sensitivity=context.study.calibration.sensitivity,
    )
    slides = [
        {
            "image": name,
            "patient": member.patient if member else None,
            "side": str(member.side) if member else None,
            "truth": ("positive" if member.positive else "negative") if member else None,
            "max_score": votes / levels,
            # No window looked at is not "no tumour found".
            "call": slide_status(votes, votes_for(threshold.score, levels)) if windows else "no tissue",
        }
        for name, member, votes, levels, windows in rows
    ]
    folder = context.generation.step(STEP)
    write_json(folder / "threshold.json", {"score": threshold.score} | asdict(threshold))
    _write_table(folder / "slides.csv", slides)
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={"threshold.json": sha256_file(folder / "threshold.json")},
        counts={
            "threshold votes": threshold.votes,
            "threshold score": threshold.score,
            "separates": threshold.separates,
            "development": _agreement(slides, Side.TRAIN, Side.VALIDATION),
            "test": _agreement(slides, Side.TEST),
        },
        started=started,
        notes=[threshold.sentence],
    )
    manifest["slides"] = slides
    write_manifest(folder, manifest)
    return manifest


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


def _write_table(path: Path, slides: list[dict[str, Any]]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(slides[0]))
        table.writeheader()
        table.writerows(slides)
