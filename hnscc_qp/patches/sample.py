"""Balanced sampling: as many tumor as nontumor windows, spread evenly over patients and their slides.

How many each slide gives follows from counts alone, and which ones from a generator of the slide's
own: neither depends on the order in which slides are worked on, nor on how many at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.split import Side

Quotas = Mapping[tuple[str, Label], int]
"""Slide and label → how many windows it gives."""


@dataclass(frozen=True, slots=True)
class Supply:
    """How many windows a slide has."""

    slide: str
    """A name that is unique in the project, such as the entry's id."""
    patient: str
    side: Side
    positive: bool
    windows: Mapping[Label, int]


def share_out(
    supplies: Sequence[Supply], *, per_class: int, nontumor_from_negative: float, seed: int
) -> Quotas:
    """Say how many windows of each label each slide gives: equal numbers of both on each side.

    At most `per_class` of each label over training and validation together, shared out in
    proportion to what they have, and as many again for the test side. Of a side's nontumor windows
    the share `nontumor_from_negative` comes from negative slides and the rest from positive ones; where
    one kind has not enough, the other fills up. Within each of these every patient gives the same
    number, and every slide of a patient, or all it has.

    Args:
        supplies: every slide, in any order.
        per_class: cap.
        nontumor_from_negative: in 0..1.
        seed: decides who gives the odd one.
    """
    quotas: dict[tuple[str, Label], int] = {}
    for side, total in _side_totals(supplies, per_class).items():
        here = [supply for supply in supplies if supply.side is side]
        quotas |= _spread(here, Label.TUMOR, total, seed)
        negative = [supply for supply in here if not supply.positive]
        positive = [supply for supply in here if supply.positive]
        wanted = math.floor(nontumor_from_negative * total + 0.5)
        from_negative = min(_available(negative), max(wanted, total - _available(positive)))
        quotas |= _spread(negative, Label.NONTUMOR, from_negative, seed)
        quotas |= _spread(positive, Label.NONTUMOR, total - from_negative, seed)
    return quotas


def draw_windows(available: int, quota: int, *, slide: str, label: Label, seed: int) -> npt.NDArray[np.intp]:
    """Draw `quota` of a slide's windows of a label, numbered row by row: (quota,) rising numbers."""
    return np.sort(_generator(f"{seed}/{label}/{slide}").choice(available, size=quota, replace=False))


def _side_totals(supplies: Sequence[Supply], per_class: int) -> dict[Side, int]:
    balanced = {
        side: min(
            sum(supply.windows[label] for supply in supplies if supply.side is side)
            for label in (Label.TUMOR, Label.NONTUMOR)
        )
        for side in Side
    }
    development = balanced[Side.TRAIN] + balanced[Side.VALIDATION]
    totals = {**balanced, Side.TEST: min(balanced[Side.TEST], per_class)}
    if development > per_class:
        totals[Side.TRAIN] = math.floor(per_class * balanced[Side.TRAIN] / development + 0.5)
        totals[Side.VALIDATION] = per_class - totals[Side.TRAIN]
    return totals


def _available(supplies: Sequence[Supply]) -> int:
    return sum(supply.windows[Label.NONTUMOR] for supply in supplies)


def _spread(supplies: Sequence[Supply], label: Label, total: int, seed: int) -> dict[tuple[str, Label], int]:
    """Share `total` out evenly over patients, and each one's part over the patient's slides."""
    of_patient: dict[str, dict[str, int]] = {}
    for supply in supplies:
        of_patient.setdefault(supply.patient, {})[supply.slide] = supply.windows[label]
    stream = f"{seed}/{label}"
    parts = _even_quotas({name: sum(slides.values()) for name, slides in of_patient.items()}, total, stream)
    return {
        (slide, label): number
        for patient, slides in of_patient.items()
        for slide, number in _even_quotas(slides, parts[patient], f"{stream}/{patient}").items()
    }


def _even_quotas(available: Mapping[str, int], total: int, stream: str) -> dict[str, int]:
    """Share `total` out evenly; what one does not have goes to the others."""
    assert total <= sum(available.values())
    # Those that have least first: each takes an equal share of what is left, or all it has.
    # Among equals the order is drawn, so that the odd one does not always go to the last name.
    drawn = {name: hashlib.sha256(f"{stream}/{name}".encode()).hexdigest() for name in available}
    quotas: dict[str, int] = {}
    for served, name in enumerate(sorted(available, key=lambda name: (available[name], drawn[name]))):
        quotas[name] = min(available[name], total // (len(available) - served))
        total -= quotas[name]
    return quotas


def _generator(stream: str) -> np.random.Generator:
    """A generator of its own for each slide, so that one slide more does not move the others' choice."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big"))
