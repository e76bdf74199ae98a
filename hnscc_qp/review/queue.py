"""What to review next: places ranked by their value to the model, and some drawn at random.

The value of a place is the weighted mean of four measures, each as its rank among all places (0 the least, 1
the most; ties share): how much the two stages disagree, how near the highest score is to the threshold,
how unlike the tissue is to what the models learnt from, and how large it is. What was not measured does
not count.

The random part is a simple random sample without replacement of each stratum (detections; places without
any), drawn before and without regard to the ranking. So its share of errors estimates the stratum's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, rankdata


class Stratum(StrEnum):
    """What kind of place it is, and so what an error is there."""

    DETECTION = "detection"
    """A region over the threshold; an error if it is rejected."""
    SILENT = "silent"
    """A square of tissue without any; an error if tumor is found in it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to look."""

    stratum: Stratum
    entry_id: str
    image: str
    box_qupath: tuple[float, float, float, float]
    """left, top, right, bottom"""
    object_id: str | None
    """Of the detection."""
    max_score: float
    """0..1"""
    disagreement: float | None
    """Mean |P(primary) - P(secondary)| over its windows that both stages saw; None if not kept."""
    near_threshold: float
    """1 - |max_score - threshold|, 0..1."""
    novelty: float | None
    """Mahalanobis distance of its colours from those of training tissue; None if that is not known."""
    size_um2: float
    """Of the detection; of a silent place, of its blocks with any vote."""


@dataclass(frozen=True, slots=True)
class QueueItem:
    """A place in the queue."""

    rank: int
    """From 1: the order to look in."""
    place: Place
    value: float
    """0..1"""
    drawn: int | None
    """Which draw of the random part, within its stratum, from 1; None if its value brought it here."""


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """How often a stratum is wrong, by the random part of a queue."""

    stratum: Stratum
    errors: int
    looked_at: int
    """Drawn places that were answered, up to the first one left open."""
    drawn: int
    frame: int
    """Places in the stratum."""
    rate: float | None
    """Unbiased: the share of errors among those looked at. None if nothing was."""
    interval: tuple[float, float] | None
    """95 %, exact for draws without replacement (hypergeometric)."""


def rank_places(places: Sequence[Place], weights: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """The value of each place, 0..1: (places,)."""
    if not places:
        return np.zeros(0)
    measures: list[list[float | None]] = [
        [place.disagreement for place in places],
        [place.near_threshold for place in places],
        [place.novelty for place in places],
        [place.size_um2 for place in places],
    ]
    total, weight_sum = np.zeros(len(places)), np.zeros(len(places))
    for values, weight in zip(measures, weights, strict=True):
        known = np.array([value is not None for value in values])
        ranks = _ranks(np.array([0.0 if value is None else value for value in values])[known])
        total[known] += weight * ranks
        weight_sum[known] += weight
    return np.divide(total, weight_sum, out=np.zeros(len(places)), where=weight_sum > 0)


def draw_queue(
    places: Sequence[Place], values: NDArray[np.float64], *, length: int, random_share: float, seed: int
) -> tuple[QueueItem, ...]:
    """Choose and order the places to look at.

    Args:
        places: all there are, in an order that depends on nothing but them.
        values: of each, by `rank_places`.
        length: of the queue; all places if there are fewer.
        random_share: of the length, half from each stratum, or what it has; rounded up to one of each.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    length = min(length, len(places))
    strata = {kind: [n for n, place in enumerate(places) if place.stratum is kind] for kind in Stratum}
    shares = _share_out(round(random_share * length), {kind: len(of) for kind, of in strata.items()})
    drawn: list[tuple[int, int]] = []
    for kind, members in strata.items():
        if members:
            sample = generator.choice(len(members), shares[kind], replace=False)
            drawn += [(members[int(number)], draw) for draw, number in enumerate(sample, start=1)]
    chosen = {number for number, _ in drawn}
    order = sorted((n for n in range(len(places)) if n not in chosen), key=lambda n: (-values[n], n))
    best = [(number, None) for number in order[: length - len(drawn)]]
    # Spread among the others, so that a queue left half way has its share of both.
    spots = np.sort(generator.choice(length, len(drawn), replace=False)) if drawn else np.zeros(0, int)
    rest, mixed = iter(best), iter(_alternating(drawn, places))
    items = []
    for position in range(length):
        number, draw = next(mixed) if position in spots else next(rest)
        items.append(QueueItem(position + 1, places[number], float(values[number]), draw))
    return tuple(items)


def estimate_errors(answers: Sequence[bool | None], *, stratum: Stratum, frame: int) -> ErrorRate:
    """The error rate of a stratum, from its drawn places.

    Places count up to the first one left open, in the order of the draws: else whoever leaves out the hard
    ones would shift the rate.

    Args:
        answers: of every drawn place, in the order of the draws: whether it was an error; None: open.
        stratum: which.
        frame: places in the stratum, all told.
    """
    seen: list[bool] = []
    for answer in answers:
        if answer is None:
            break
        seen.append(answer)
    errors = sum(seen)
    if not seen:
        return ErrorRate(stratum, 0, 0, len(answers), frame, None, None)
    interval = hypergeometric_interval(errors, len(seen), frame)
    return ErrorRate(stratum, errors, len(seen), len(answers), frame, errors / len(seen), interval)


def hypergeometric_interval(errors: int, looked_at: int, frame: int) -> tuple[float, float]:
    """Shares of errors in the frame that the sample does not speak against, at 2.5 % on either side."""
    counts = np.arange(errors, frame - (looked_at - errors) + 1)
    too_few = hypergeom.sf(errors - 1, frame, counts, looked_at) > 0.025
    too_many = hypergeom.cdf(errors, frame, counts, looked_at) > 0.025
    possible = counts[too_few & too_many]
    return float(possible.min() / frame), float(possible.max() / frame)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """0..1, the mean rank for ties; all alike are 0.5."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    ranks: NDArray[np.float64] = (rankdata(values) - 1) / (len(values) - 1)
    return ranks


def _share_out(wanted: int, sizes: dict[Stratum, int]) -> dict[Stratum, int]:
    """Half to each stratum; what one lacks the other fills up."""
    first, second = Stratum.DETECTION, Stratum.SILENT
    of_first = min(sizes[first], wanted - wanted // 2)
    of_second = min(sizes[second], wanted - of_first)
    return {first: min(sizes[first], wanted - of_second), second: of_second}


def _alternating(drawn: list[tuple[int, int]], places: Sequence[Place]) -> list[tuple[int, int]]:
    """By the number of the draw: the first of either stratum, then the second, and so on."""
    return sorted(drawn, key=lambda item: (item[1], places[item[0]].stratum))
