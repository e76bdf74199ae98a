"""`retrain`: the next generation, built beside the one in use, compared with it, promoted only if better.

A candidate is a generation like any other, with the one in use as its parent. Its steps are the same and
write under it; `current` does not name it before it is promoted. Stopped at any moment, the same command
goes on with it: each step that is done stays done, and `decision.json` ends it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hnscc_qp.errors import StepError
from hnscc_qp.files import write_json
from hnscc_qp.generation import (
    Generation,
    GenerationRecord,
    all_generations,
    current_generation,
    generations_folder,
    make_manifest,
    utc_now,
    write_manifest,
)
from hnscc_qp.review.gate import Decision, decide
from hnscc_qp.review.verdicts import ImageLessons
from hnscc_qp.steps import patches, run
from hnscc_qp.steps.changes import changes, describe
from hnscc_qp.steps.cohort import read_cohort
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.drawn import AS_DRAWN, anything_to_learn
from hnscc_qp.steps.judge import judge, need_whole
from hnscc_qp.steps.learn import TaughtNow, learn_from_review, taught_now
from hnscc_qp.steps.lessonfile import STEP as LESSONS
from hnscc_qp.steps.lessonfile import image_lessons_as_json, read_lessons
from hnscc_qp.steps.patches import make_patches
from hnscc_qp.steps.promote import (
    JUDGED,
    PROMOTED,
    log_entries,
    promote,
    review_log,
    sole_builder,
    who,
)
from hnscc_qp.steps.push import push_detections
from hnscc_qp.training.compute import processes

STEP = "retrain"
DECISION_FILE = "decision.json"
CHANGES_FILE = "changes.json"


@dataclass(frozen=True, slots=True)
class Wish:
    """How somebody wants to retrain."""

    from_scratch: bool = False
    promote: bool = False
    """Bring the candidate into use, whatever the gate says."""
    by: str | None = None
    """Who asks; None for whoever is logged in."""


def retrain_study(context: Context, wish: Wish) -> Manifest:
    """Build, or go on building, the generation after the one in use; judge it; promote it if it is better.

    Raises:
        StepError: the generation in use is not finished, or there is nothing new to learn.
        SealedSplitError: somebody of the test set would be learnt from.
        ReviewLogError: the review log is broken.
        ProjectError: another command is building a generation of this study.
        HnsccQpError: a step fails; see there.
    """
    if processes() > 1:
        raise StepError("torchrun shares out a training, not a generation; run hnscc-qp retrain by itself")
    started = time.time()
    with sole_builder(context.study):
        current = current_generation(context.study)
        need_whole(current, replace(context, at=current))
        candidate = _candidate(context, current, wish)
        built = replace(context, at=candidate, force=False)
        failed = {} if read_decision(candidate) else _build(built)
        return _end(built, current, candidate, wish, failed=failed, started=started)


def _candidate(context: Context, current: Generation, wish: Wish) -> Generation:
    """The candidate to go on with, or a new one."""
    taught = taught_now(replace(context, at=current))
    later = [one for one in all_generations(context.study) if int(one.name) > int(current.name)]
    children = [one for one in later if one.record and one.record.parent == current.name]
    for child in reversed(children):
        if (decision := read_decision(child)) is not None:
            if decision["promoted"] and not _was_promoted(context, child, decision["key"]):
                return child  # stopped between the decision and its promotion
            continue
        record = child.record
        assert record is not None
        context.progress.say(f"going on with generation {child.name}, begun {record.begun}")
        if (record.log_head, record.verdicts) != (taught.head, taught.verdicts):
            child.write_record(replace(record, log_head=taught.head, verdicts=taught.verdicts))
        return child
    fine_tuned = context.study.retraining.fine_tune and not wish.from_scratch
    if not context.force and not wish.from_scratch:
        for known in (*reversed(children), current):
            if not _is_news(context, known, taught):
                if known is not current and wish.promote:
                    return known
                for line in taught.refused.values():
                    context.progress.warn(line)
                _refuse(context, known, current)
    # A folder without a record is what a kill left of one that was about to begin.
    begun = [one for one in all_generations(context.study) if one.record or one.name == current.name]
    new = Generation(generations_folder(context.study) / f"{max(int(one.name) for one in begun) + 1:03d}")
    new.path.mkdir(exist_ok=True)
    why = f"{taught.sentence}; {'fine-tuned' if fine_tuned else 'trained from scratch'}"
    new.write_record(
        GenerationRecord(
            parent=current.name,
            why=why,
            begun=utc_now(),
            by=wish.by or who(),
            fine_tuned=fine_tuned,
            log_head=taught.head,
            verdicts=taught.verdicts,
        )
    )
    context.progress.say(f"generation {new.name} begins: {why}")
    return new


def _is_news(context: Context, known: Generation, taught: TaughtNow) -> bool:
    """Whether review or the project say something that a generation has not learnt from."""
    cut = known.manifest(patches.STEP)
    learnt = read_lessons(known.step(LESSONS))
    if cut is None or _as_json(learnt) != _as_json(taught.lessons):
        return True
    here = replace(context, at=known)
    there = {name: value for name, value in cut["inputs"].items() if name.startswith("image ")}
    if there == {f"image {image.entry_id}": patches.state_of(here, image) for image in here.project.images}:
        return False
    # Something was saved since: by the push, it may be.
    before = cut.get(AS_DRAWN)
    if before is None or cut["failed"]:
        return True
    cohort = read_cohort(here)
    return bool(cohort.failed) or anything_to_learn(here, cohort, before)


def _as_json(lessons: Mapping[str, ImageLessons]) -> dict[str, Any]:
    return {entry_id: image_lessons_as_json(image) for entry_id, image in lessons.items()}


def _was_promoted(context: Context, candidate: Generation, key: str) -> bool:
    return any(
        (entry.body["to"], entry.body["key"]) == (candidate.name, key)
        for entry in log_entries(context.study, PROMOTED)
    )


def read_decision(candidate: Generation) -> dict[str, Any] | None:
    """What was decided on a generation; None if nothing is yet.

    Raises:
        StepError: the file is damaged.
    """
    path = candidate.path / DECISION_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StepError(f"{path} is damaged; delete it, and hnscc-qp retrain decides again") from error


def _refuse(context: Context, known: Generation, current: Generation) -> None:
    path = context.study.path
    if known is current:
        raise StepError(
            f"nothing is new since generation {current.name}, so there is nothing to learn; review in "
            f"QuPath, save, and run hnscc-qp pull {path}, or retrain with --force"
        )
    raise StepError(
        f"generation {known.name} has learnt all that is known by now, and is not in use; review more, or "
        f"run hnscc-qp retrain {path} with --promote to use it all the same, or with --force to train anew"
    )


def _build(context: Context) -> dict[str, str]:
    """Every step of the candidate that is not done yet; what failed, image by image."""
    steps = [(title, step) for title, step in run.steps_of(context.study) if step is not push_detections]
    steps = [(title, _cut if step is make_patches else step) for title, step in steps]
    wanted = [("lessons from review", learn_from_review), *steps]
    failed: dict[str, str] = {}
    for number, (title, step) in enumerate(wanted, start=1):
        context.progress.say(f"[{number}/{len(wanted)}] {title}")
        # A context of its own: it keeps what it has read, and the first step changes what is learnt.
        failed |= step(replace(context))["failed"]
    return failed


def _cut(context: Context) -> Manifest:
    """Cut patches, and say what is new in them."""
    manifest = make_patches(context)
    parent = context.generation.parent
    assert parent is not None
    found = changes(parent, context.generation)
    write_json(context.generation.path / CHANGES_FILE, found)
    for line in describe(found):
        context.progress.say(f"  {line}")
    return manifest


def _end(
    context: Context,
    current: Generation,
    candidate: Generation,
    wish: Wish,
    *,
    failed: dict[str, str],
    started: float,
) -> Manifest:
    """Judge the candidate, promote it or keep it, and say so."""
    judged = judge(context, current, candidate)
    decision = decide(judged.current, judged.candidate, context.study.promotion)
    notes = [f"{name} decides nothing: {reason}" for name, reason in judged.left_out.items()]
    known = {entry.body["key"] for entry in log_entries(context.study, JUDGED)}
    if judged.key not in known:
        review_log(context.study).append(
            JUDGED,
            [
                {
                    "key": judged.key,
                    "candidate": candidate.name,
                    "current": current.name,
                    "side": decision.side,
                    "passed": decision.passed,
                    "reason": decision.reason,
                }
            ],
        )
    uses = test_set_uses(context)
    promoted = decision.passed or wish.promote
    values = _decision_values(decision, judged.key, current, promoted=promoted, uses=uses)
    write_json(candidate.path / DECISION_FILE, values)
    if promoted:
        promote(
            context.study,
            candidate,
            by=wish.by,
            reason=decision.reason,
            overridden=not decision.passed,
            key=judged.key,
        )
    notes += _say(context, decision, candidate, promoted=promoted, uses=uses)
    record = candidate.record
    manifest = make_manifest(
        step=STEP,
        settings=context.study.settings("retraining", "promotion"),
        inputs={"current": current.name, "judged": judged.key},
        counts={
            "generation": candidate.name,
            "parent": current.name,
            "promoted": promoted,
            "passed": decision.passed,
            "decisions by the test set": uses,
        },
        started=started,
        failed=failed,
        notes=notes,
    )
    manifest["record"] = {} if record is None else {"why": record.why, "verdicts": record.verdicts}
    manifest["changes"] = changes(current, candidate)
    manifest["decision"] = values
    write_manifest(candidate.step(STEP), manifest)
    return manifest


def test_set_uses(context: Context) -> int:
    """How many candidates the test set has judged so far."""
    return sum(entry.body["side"] == "test" for entry in log_entries(context.study, JUDGED))


def _decision_values(
    decision: Decision, key: str, current: Generation, *, promoted: bool, uses: int
) -> dict[str, Any]:
    return decision.as_json() | {
        "against": current.name,
        "key": key,
        "promoted": promoted,
        "decisions by the test set": uses,
        "decided": utc_now(),
    }


def _say(
    context: Context, decision: Decision, candidate: Generation, *, promoted: bool, uses: int
) -> list[str]:
    path = context.study.path
    if decision.passed:
        lines = [f"generation {candidate.name} is in use: {decision.reason}"]
    elif promoted:
        lines = [f"generation {candidate.name} is in use by --promote, against the gate: {decision.reason}"]
    else:
        lines = [f"generation {candidate.name} is kept as a candidate: {decision.reason}"]
    if promoted:
        lines.append(f"hand its detections to QuPath with hnscc-qp push {path}")
    if decision.side == "test" and uses > 1:
        lines.append(
            f"the test set has judged {uses} candidates by now: each time some of a difference may be luck; "
            "confirm the last one on patients whom no generation was judged by"
        )
    return lines
