"""`generations` and `rollback`: what descends from what, how each did, and who put it in use."""

from __future__ import annotations

from typing import Any, Literal

from hnscc_qp.errors import StepError
from hnscc_qp.generation import Generation, all_generations, current_generation, generations_folder
from hnscc_qp.review.gate import FIGURES
from hnscc_qp.review.log import Entry
from hnscc_qp.steps import calibrate, patches, regions
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.lessonfile import STEP as LESSONS
from hnscc_qp.steps.promote import JUDGED, PROMOTED, ROLLED_BACK, log_entries, roll_back
from hnscc_qp.steps.retrain import read_decision

State = Literal["in use", "candidate", "unfinished", "was in use", "kept"]


def list_generations(context: Context) -> dict[str, Any]:
    """Every generation of a study with its parent, its data, its figures and its fate.

    Raises:
        StepError: there is none yet, or a record is damaged.
        ReviewLogError: the review log is broken.
    """
    study = context.study
    found = all_generations(study)
    if not found:
        raise StepError(f"{study.name} has no generation yet; run: hnscc-qp run {study.path}")
    current = current_generation(study)
    moves = log_entries(study, PROMOTED, ROLLED_BACK)
    judged = log_entries(study, JUDGED)
    tested = [entry for entry in judged if entry.body["side"] == "test"]
    decisions = {one.name: read_decision(one) for one in found}
    notes = []
    if tested:
        names = ", ".join(sorted({str(entry.body["candidate"]) for entry in tested}))
        notes.append(
            f"the test set has judged {len(tested)} time{'s' if len(tested) > 1 else ''} ({names}): the "
            "figures of a generation that it chose are a little too good, and more so each time"
        )
    if current.parent is not None and not any(entry.body["to"] == current.name for entry in moves):
        notes.append(
            f"the log does not say who brought generation {current.name} into use: generations/current was "
            "edited, or the log is not the one of this study"
        )
    if (generations_folder(study) / "moving.json").exists():
        notes.append("a promotion or rollback was stopped half way; hnscc-qp retrain or rollback finishes it")
    return {
        "study": study.name,
        "current": current.name,
        "generations": [_row(one, current, decisions, moves) for one in found],
        "history": [
            {"time": entry.time, "event": entry.event, **dict(entry.body)}
            for entry in sorted([*judged, *moves], key=lambda entry: entry.n)
        ],
        "decisions by the test set": len(tested),
        "notes": notes,
    }


def roll_back_to(context: Context, name: str | None, *, by: str | None, why: str) -> dict[str, Any]:
    """Use an earlier generation again; raises as `promote.roll_back`."""
    before, after = roll_back(context.study, name, by=by, why=why)
    return {
        "from": before.name,
        "to": after.name,
        "notes": [
            f"generation {after.name} is in use again, {before.name} is kept",
            f"hand its detections to QuPath with hnscc-qp push {context.study.path}",
        ],
    }


def _row(
    one: Generation, current: Generation, decisions: dict[str, Any], moves: list[Entry]
) -> dict[str, Any]:
    record = one.record
    cut = one.manifest(patches.STEP)
    lessons = one.manifest(LESSONS)
    promoted = [entry for entry in moves if entry.event == PROMOTED and entry.body["to"] == one.name]
    decision = decisions[one.name]
    return {
        "generation": one.name,
        "state": _state(one, current, decision, moves),
        "parent": record.parent if record else None,
        "begun": record.begun if record else None,
        "by": record.by if record else None,
        "why": record.why if record else None,
        "fine-tuned": bool(record and record.fine_tuned),
        "log head": record.log_head if record else None,
        "data": cut["key"] if cut else None,
        "patches": sum(sum(side.values()) for side in cut["counts"]["patches"].values()) if cut else None,
        "regions from review": sum(lessons["counts"]["regions"].values()) if lessons else 0,
        "figures": _figures(one, decisions),
        "decision": decision and {name: decision[name] for name in ("passed", "promoted", "reason")},
        "promoted": [
            {
                "by": entry.body["by"],
                "time": entry.time,
                "overridden": entry.body["overridden"],
                "reason": entry.body["reason"],
            }
            for entry in promoted
        ],
    }


def _state(one: Generation, current: Generation, decision: Any, moves: list[Entry]) -> State:
    if one.name == current.name:
        return "in use"
    if any(one.name in (entry.body["from"], entry.body["to"]) for entry in moves):
        return "was in use"
    if one.manifest(regions.STEP) is None:
        return "unfinished"
    return "kept" if decision else "candidate"


def _figures(one: Generation, decisions: dict[str, Any]) -> dict[str, Any]:
    """Figures of the frozen set: as last judged, else what calibration counted on the test slides."""
    for name in sorted(decisions, key=int, reverse=True):
        decision = decisions[name]
        if decision is None:
            continue
        mine = "candidate" if name == one.name else "current" if decision["against"] == one.name else None
        if mine:
            figures = {figure: decision["figures"][figure][mine] for figure in FIGURES}
            return figures | {"side": decision["side"], "patients": decision["patients"]}
    calibrated = one.manifest(calibrate.STEP)
    if calibrated is None:
        return {}
    test = calibrated["counts"]["test"]
    return {
        "sensitivity": _share(test["true positive"], test["false negative"]),
        "specificity": _share(test["true negative"], test["false positive"]),
        "side": "test",
    }


def _share(right: int, wrong: int) -> float | None:
    return right / (right + wrong) if right + wrong else None
