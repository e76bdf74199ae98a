"""Which generation is in use: promotion and rollback, each in the review log, safe to kill at any moment.

A change is first noted beside the generations (`moving.json`), then written to the log, then made by letting
`current` name the other generation. Whoever finds the note finishes what it says.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hnscc_qp.errors import StepError
from hnscc_qp.files import write_json
from hnscc_qp.generation import (
    Generation,
    all_generations,
    current_generation,
    generations_folder,
    set_current,
)
from hnscc_qp.qupath.safewrite import sole_writer
from hnscc_qp.review.log import Entry, ReviewLog
from hnscc_qp.steps import regions
from hnscc_qp.study import Study

JUDGED, PROMOTED, ROLLED_BACK = "generation judged", "generation promoted", "generation rolled back"
REVIEW_FOLDER = "review"
_MOVING = "moving.json"


def review_log(study: Study) -> ReviewLog:
    """The log of verdicts and of what became of generations, in `review/` beside the study file."""
    return ReviewLog(study.root / REVIEW_FOLDER)


def log_entries(study: Study, *events: str) -> list[Entry]:
    """The log's entries of these events, in the order of the chain.

    Raises:
        ReviewLogError: the chain is broken.
    """
    return [entry for entry in review_log(study).read() if entry.event in events]


@contextmanager
def sole_builder(study: Study) -> Iterator[None]:
    """Keep other commands from building or promoting generations; finish what one left half done.

    Raises:
        StepError: the study has no generation yet.
        ProjectError: another one is at work.
    """
    current_generation(study)  # a study without one is left as it is
    with sole_writer(generations_folder(study)):
        _finish(study)
        yield


def promote(
    study: Study, candidate: Generation, *, by: str | None, reason: str, overridden: bool, key: str
) -> None:
    """Bring a candidate into use, and log who did it and why.

    Args:
        study: of the generations.
        candidate: a whole generation that is not in use.
        by: who asked for it; None for whoever is logged in.
        reason: what the gate said.
        overridden: the gate had not let it pass.
        key: identifies what was judged, so that the log tells which models came into use.
    """
    body = {
        "to": candidate.name,
        "from": current_generation(study).name,
        "by": by or who(),
        "reason": reason,
        "overridden": overridden,
        "key": key,
    }
    _move(study, PROMOTED, body)


def roll_back(study: Study, name: str | None, *, by: str | None, why: str) -> tuple[Generation, Generation]:
    """Go back to an earlier generation, and log it.

    Args:
        study: of the generations.
        name: where to; None for the generation that was in use before the one that is.
        by: who asked for it; None for whoever is logged in.
        why: in their words.

    Returns:
        The generation that was in use, and the one that is now.

    Raises:
        StepError: there is no such generation, it is in use already, or it was never in use.
    """
    with sole_builder(study):
        before = current_generation(study)
        target = _target(study, before, name)
        _move(study, ROLLED_BACK, {"to": target.name, "from": before.name, "by": by or who(), "reason": why})
    return before, target


def _target(study: Study, before: Generation, name: str | None) -> Generation:
    if name is None:
        parent = before.parent
        if parent is None:
            raise StepError(
                f"generation {before.name} is the study's first, there is none to go back to; "
                f"hnscc-qp generations {study.path} lists all"
            )
        name = parent.name
    known = {one.name: one for one in all_generations(study)}
    target = known.get(name) or known.get(name.zfill(3))
    if target is None:
        raise StepError(f"there is no generation {name}; there are {', '.join(known)}")
    if target.name == before.name:
        raise StepError(f"generation {target.name} is in use already; name another one to go back to")
    if target.manifest(regions.STEP) is None:
        raise StepError(f"generation {target.name} was never finished, so it can't be used; name another one")
    if target.parent is not None and not was_in_use(study, target):
        raise StepError(
            f"generation {target.name} was never in use, so there is no going back to it; hnscc-qp retrain "
            f"{study.path} --promote brings a candidate into use"
        )
    return target


def was_in_use(study: Study, generation: Generation) -> bool:
    """Whether the log says that a generation came into use, or went out of it."""
    return any(
        generation.name in (entry.body["from"], entry.body["to"])
        for entry in log_entries(study, PROMOTED, ROLLED_BACK)
    )


def who() -> str:
    """The name under which somebody is logged in to this computer."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user, as in some containers
        return "unknown"


def _move(study: Study, event: str, body: dict[str, Any]) -> None:
    # Read it before anything is noted: a broken log must not leave a note that can't be carried out.
    log = review_log(study)
    log.read()
    write_json(generations_folder(study) / _MOVING, {"event": event, "body": body})
    _finish(study)


def _finish(study: Study) -> None:
    """Carry out the noted change, or the rest of it."""
    note = generations_folder(study) / _MOVING
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        event, body = str(noted["event"]), dict(noted["body"])
        target = Generation(generations_folder(study) / str(body["to"]))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(f"{note} is damaged; delete it, then promote or roll back again") from error
    moves = log_entries(study, PROMOTED, ROLLED_BACK)
    if not moves or (moves[-1].event, dict(moves[-1].body)) != (event, body):
        review_log(study).append(event, [body])
    set_current(study, target)
    note.unlink()
