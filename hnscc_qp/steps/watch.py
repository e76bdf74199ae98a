"""`watch`: notice that the project was saved in QuPath, wait until it is quiet, pull, and report.

What was pulled is in the review log and nowhere else, so that killing this at any moment loses nothing:
started again, it pulls, and what is known adds nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hnscc_qp.errors import HnsccQpError, ReviewLogError
from hnscc_qp.qupath.embedded import ANNOTATIONS_FOLDER
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.promote import JUDGED
from hnscc_qp.steps.pull import VERDICT_EVENT, pull_verdicts, review_log
from hnscc_qp.steps.retrain import Wish, retrain_study

Saved = dict[str, tuple[int, int]]
"""File → time of its last change (ns) and size: what tells that something was saved."""


def watch_study(
    make_context: Callable[[], Context],
    *,
    interval_s: float,
    quiet_s: float,
    once: bool,
    pulled: Callable[[dict[str, Any]], None],
    retrained: Callable[[dict[str, Any]], None],
) -> None:
    """Pull whenever the project has been saved and then left alone for a while; never ends unless `once`.

    Args:
        make_context: reads the study anew: its file and the project may change meanwhile.
        interval_s: between two looks.
        quiet_s: without a change, before it is read.
        once: end after the first pull.
        pulled: told each pull's manifest.
        retrained: told each retraining's.

    Raises:
        HnsccQpError: with `once`, whatever keeps it from pulling; else only what no wait can mend: the log
            is broken, or the study can't be read to begin with.
    """
    context = make_context()
    project_file = context.project.path
    done: Saved | None = None
    seen, since = saved_files(project_file), time.monotonic()
    tried = -1
    while True:
        present = saved_files(project_file)
        if present != seen:
            if done is not None and seen == done:
                context.progress.say(f"{project_file} was saved; waiting until it is quiet for {quiet_s:g} s")
            seen, since = present, time.monotonic()
        if present != done and is_quiet(project_file, present, since, quiet_s):
            try:
                context = make_context()
                pulled(pull_verdicts(context))
            except ReviewLogError:
                raise
            except HnsccQpError as error:
                if once:
                    raise
                context.progress.warn(f"not pulled: {error}")
            done = present
            waiting = verdicts_waiting(context)
            if waiting != tried and 0 < context.study.review.retrain_after <= waiting:
                # Whatever comes of it, it is tried again only when there is more to learn.
                tried = waiting
                _retrain(context, waiting, retrained)
        if once and done is not None:
            return
        time.sleep(interval_s)


def saved_files(project_file: Path) -> Saved:
    """The files that QuPath writes when something is saved, as they are now."""
    folder = project_file.parent
    found: Saved = {}
    for path in (
        project_file,
        *folder.glob("data/*/data.qpdata"),
        *(folder / ANNOTATIONS_FOLDER).glob("*.geojson"),
    ):
        try:
            state = path.stat()
        except OSError:  # being swapped at this moment
            continue
        found[str(path.relative_to(folder))] = (state.st_mtime_ns, state.st_size)
    return found


def is_quiet(project_file: Path, present: Saved, since: float, quiet_s: float) -> bool:
    """Whether nothing was saved for so long, and nothing lies there as it does while QuPath saves.

    Args:
        project_file: the `.qpproj`.
        present: its files now.
        since: when they were first seen like this, by `time.monotonic`.
        quiet_s: how long.
    """
    folder = project_file.parent
    saving = [*folder.glob("data/*/data.qpdata.bkp"), *folder.glob("*.qpproj.tmp")]
    newest = max((changed for changed, _ in present.values()), default=0) / 1e9
    # Either clock will do: a file's time may lie in the future, and this program may just have been started.
    rested = time.time() - newest >= quiet_s or time.monotonic() - since >= quiet_s
    return bool(present) and not saving and rested


def verdicts_waiting(context: Context) -> int:
    """Verdicts logged since a generation was last judged."""
    count = 0
    for entry in review_log(context).read():
        if entry.event == JUDGED:
            count = 0
        elif entry.event == VERDICT_EVENT:
            count += 1
    return count


def _retrain(context: Context, waiting: int, retrained: Callable[[dict[str, Any]], None]) -> None:
    context.progress.say(
        f"{waiting} new verdicts, and retrain_after = {context.study.review.retrain_after}: retraining"
    )
    try:
        retrained(retrain_study(context, Wish(from_scratch=False, promote=False, by="watch")))
    except HnsccQpError as error:
        context.progress.warn(f"not retrained: {error}")
