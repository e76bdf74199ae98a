"""Balanced sampling: as many tumor as nontumor windows, spread evenly over slides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.split import Side

Indices = npt.NDArray[np.intp]


def sample_balanced(
    *,
    label: npt.ArrayLike,
    side: Sequence[Side],
    slide: Sequence[str],
    x_px: npt.ArrayLike,
    y_px: npt.ArrayLike,
    per_class: int,
    seed: int,
) -> Indices:
    """Choose windows: equal numbers of both labels on each side.

    At most `per_class` of each label over training and validation together, shared out in
    proportion to what they have, and as many again for the test side. Within a side and a label
    every slide gives the same number, or all it has; which ones is drawn at random. The choice
    does not depend on the order of the windows.

    Args:
        label: (n,) `Label`; ignored windows are never chosen.
        side: (n,) of each window's patient.
        slide: (n,) a name that is unique in the project, such as the entry's id.
        x_px: (n,) place of the window, in any frame.
        y_px: (n,) likewise.
        per_class: cap.
        seed: of the random choice.

    Returns:
        Indices of the chosen windows, ordered by slide, then by row and column.
    """
    labels, sides, slides = np.asarray(label), np.asarray(side, np.str_), np.asarray(slide, np.str_)
    order = np.lexsort((np.asarray(x_px), np.asarray(y_px), slides))
    pools = {
        (one_side, one_label): order[(labels[order] == one_label) & (sides[order] == one_side.value)]
        for one_side in Side
        for one_label in (Label.TUMOR, Label.NONTUMOR)
    }
    balanced = {s: min(len(pools[s, Label.TUMOR]), len(pools[s, Label.NONTUMOR])) for s in Side}
    development = balanced[Side.TRAIN] + balanced[Side.VALIDATION]
    quota = {**balanced, Side.TEST: min(balanced[Side.TEST], per_class)}
    if development > per_class:
        quota[Side.TRAIN] = math.floor(per_class * balanced[Side.TRAIN] / development + 0.5)
        quota[Side.VALIDATION] = per_class - quota[Side.TRAIN]
    chosen = np.zeros(len(labels), np.bool_)
    for (one_side, one_label), pool in pools.items():
        stream = f"{seed}/{one_label}"
        chosen[_spread(pool, slides[pool], quota[one_side], stream)] = True
    return order[chosen[order]]


def _spread(pool: Indices, slides: npt.NDArray[np.str_], quota: int, stream: str) -> Indices:
    """`quota` of the pool, evenly over slides."""
    names, group = np.unique(slides, return_inverse=True)
    numbers = _even_quotas(np.bincount(group, minlength=len(names)), names, quota, stream)
    picked = [
        _generator(f"{stream}/{name}").choice(pool[group == number], size=int(size), replace=False)
        for number, (name, size) in enumerate(zip(names, numbers, strict=True))
    ]
    return np.concatenate(picked) if picked else np.empty(0, np.intp)


def _even_quotas(
    available: npt.NDArray[np.intp], names: npt.NDArray[np.str_], total: int, stream: str
) -> npt.NDArray[np.intp]:
    """Share `total` out evenly; what a slide does not have goes to the others."""
    assert total <= available.sum()
    # Those that have least first: each takes an equal share of what is left, or all it has.
    # Among equals the order is drawn, so that the odd one does not always go to the last name.
    drawn = [hashlib.sha256(f"{stream}/{name}".encode()).hexdigest() for name in names]
    quotas = np.zeros(len(available), np.intp)
    order = sorted(range(len(available)), key=lambda i: (available[i], drawn[i]))
    for served, index in enumerate(order):
        quotas[index] = min(available[index], total // (len(order) - served))
        total -= quotas[index]
    return quotas


def _generator(stream: str) -> np.random.Generator:
    """A generator of its own for each slide, so that one slide more does not move the others' choice."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big"))
