"""Verdicts → lessons: which regions training takes for tumor, for hard negatives, and for nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from hnscc_qp import study
from hnscc_qp.review.verdicts import Lessons, Verdict


def lessons_from(
    verdicts: Iterable[Verdict],
    *,
    present: Collection[tuple[str, str]],
    settings: study.Review,
    classes: study.Classes,
    head: str | None = None,
) -> Lessons:
    """What the standing verdicts of all reviewers have to teach.

    Args:
        verdicts: the last of every reviewer on every object, see `standing`.
        present: entry id and slide file name of every image that the project has now.
        settings: what is learnt from what.
        classes: what QuPath's classes mean.
        head: hash of the log's last entry.
    """
    raise NotImplementedError
