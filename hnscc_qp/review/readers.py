"""AI beside people, or beside another model: who calls which slide positive.

Cohen's kappa (Cohen 1960) is of two, Fleiss' (Fleiss 1971, Psychological Bulletin 76:378-382) of all readers
at once; McNemar's test is the exact one, on the slides of which one is right and the other wrong (McNemar
1947). All are of slides that both, or all, have called: who called what else is
counted and named.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from hnscc_qp.errors import ReadersError, listed
from hnscc_qp.review.comparison import PairKappa, ReaderResult, Readers
from hnscc_qp.training.intervals import bootstrap, proportion

Calls = Mapping[str, bool]
"""Image name → called positive; an image that was not called is not there."""

_POSITIVE = frozenset({"positive", "pos", "1", "+", "yes", "true", "tumor", "tumour"})
_NEGATIVE = frozenset({"negative", "neg", "0", "-", "no", "false", "none"})
_NOT_CALLED = frozenset({"", "no tissue", "na", "n/a", "not read"})
_NAME_COLUMNS = ("image", "slide", "name")


def read_calls(path: Path, images: Sequence[str], *, name: str | None = None) -> dict[str, dict[str, bool]]:
    """Read a CSV of calls; by reader.

    One column is `image` (or `slide`). The others are `reader` and `call`, one row for each call; or `call`
    alone, of one reader (such as another model's `slides.csv`); or one column for each reader.

    Args:
        path: of the CSV, UTF-8, separated by commas or semicolons.
        images: names that the project has.
        name: of the reader where the table has only one; else the file's.

    Raises:
        ReadersError: it can't be read, is empty, names images that are not in the project, holds a word
        that is no
            call, or gives one reader two calls of one image.
    """
    header, rows = _read_table(path)
    at = next((column for column in _NAME_COLUMNS if column in header), None)
    if at is None:
        raise ReadersError(
            f"{path} has no column 'image' (it has {', '.join(header)}); name the column of the images so"
        )
    if "call" in header:
        readers = ["call"]
    else:
        readers = [column for column in header if column not in (at, "reader", "patient")]
    if not readers:
        raise ReadersError(f"{path} has no calls; add a column 'call', or one for each reader")
    calls: dict[str, dict[str, bool]] = {}
    unknown: list[str] = []
    for number, row in enumerate(rows, start=2):
        image = row[at].strip()
        if image not in images:
            unknown.append(image)
            continue
        for column in readers:
            reader = column
            if column == "call":
                reader = row.get("reader", "").strip() or name or path.stem
            called = _call(row[column], f"{path}, line {number}")
            if called is None:
                continue
            before = calls.setdefault(reader, {}).setdefault(image, called)
            if before is not called:
                raise ReadersError(
                    f"{path}, line {number}: {reader} calls {image} both positive and negative; keep one row"
                )
    if unknown:
        near = difflib.get_close_matches(unknown[0], images, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ReadersError(
            f"{path} names images that the project does not have: {listed(sorted(set(unknown)))}{hint}; "
            "correct the names or delete the rows"
        )
    if not calls:
        raise ReadersError(f"{path} holds no call; fill in positive or negative")
    return calls


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReadersError(f"{path} can't be read ({error}); name a CSV file in UTF-8") from error
    lines = text.splitlines()
    if not lines or not lines[0].strip():
        raise ReadersError(f"{path} is empty; give it a column 'image' and one for each reader")
    separator = ";" if lines[0].count(";") > lines[0].count(",") else ","
    table = csv.reader(lines, delimiter=separator)
    header = [cell.strip() for cell in next(table)]
    # Readers keep their spelling, columns that mean something do not.
    meant = {*_NAME_COLUMNS, "reader", "call", "patient"}
    header = [cell.lower() if cell.lower() in meant else cell for cell in header]
    if twice := sorted({cell for cell in header if header.count(cell) > 1}):
        raise ReadersError(f"{path} has the column {', '.join(twice)} twice; rename one")
    rows = []
    for cells in table:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                raise ReadersError(
                    f"{path}, line {table.line_num}: {len(cells)} cells for {len(header)} columns; correct it"
                )
            rows.append(dict(zip(header, cells, strict=True)))
    if not rows:
        raise ReadersError(f"{path} has no rows; add one for each image")
    return header, rows


def _call(word: str, where: str) -> bool | None:
    plain = word.strip().lower()
    if plain in _NOT_CALLED:
        return None
    if plain in _POSITIVE:
        return True
    if plain in _NEGATIVE:
        return False
    raise ReadersError(f"{where}: '{word.strip()}' is no call; write positive, negative or nothing")


def compare_readers(
    ai: Calls, readers: Mapping[str, Calls], truth: Calls, patients: Mapping[str, str]
) -> Readers:
    """The AI beside each reader, the readers beside each other, and all together.

    Args:
        ai: the AI's calls.
        readers: each reader's; a name may stand for another model.
        truth: of the slides whose truth is known.
        patients: whose each slide is.
    """
    results = tuple(_one(name, ai, calls, truth, patients) for name, calls in readers.items())
    pairs = []
    for first, second in combinations(readers, 2):
        both = sorted(readers[first].keys() & readers[second].keys())
        kappa = cohens_kappa(
            [readers[first][image] for image in both], [readers[second][image] for image in both]
        )
        pairs.append(PairKappa(first, second, len(both), kappa))
    everyone = set.intersection(*(set(calls) for calls in readers.values())) if readers else set()
    shared = sorted(everyone)
    with_ai = sorted(everyone & ai.keys())
    together = [[calls[image] for calls in readers.values()] for image in shared]
    also_ai = [[ai[image], *(calls[image] for calls in readers.values())] for image in with_ai]
    notes = []
    union = set().union(*(calls.keys() for calls in readers.values())) if readers else set()
    if len(readers) > 1 and union != everyone:
        apart = sorted(union - everyone)
        notes.append(
            f"the readers did not call the same slides: {len(everyone)} were called by all {len(readers)}, "
            f"{len(apart)} by some only ({listed(apart)})"
        )
    notes += [
        f"{one.reader} and the AI did not call the same slides: {len(one.left_out)} left out "
        f"({listed(one.left_out)})"
        for one in results
        if one.left_out
    ]
    return Readers(
        readers=results,
        pairs=tuple(pairs),
        fleiss=fleiss_kappa(together) if len(readers) > 1 else None,
        fleiss_with_ai=fleiss_kappa(also_ai) if readers else None,
        fleiss_slides=len(shared),
        notes=tuple(notes),
    )


def _one(name: str, ai: Calls, reader: Calls, truth: Calls, patients: Mapping[str, str]) -> ReaderResult:
    both = sorted(ai.keys() & reader.keys())
    ours = np.array([ai[image] for image in both], np.bool_)
    theirs = np.array([reader[image] for image in both], np.bool_)
    known = np.array([image in truth for image in both], np.bool_)
    true = np.array([truth.get(image, False) for image in both], np.bool_)
    ours_right, theirs_right = (known & (calls == true) for calls in (ours, theirs))
    only_ai, only_reader = int((ours_right & ~theirs_right).sum()), int((theirs_right & ~ours_right).sum())
    kappa = (
        bootstrap(
            [patients.get(image, image) for image in both],
            lambda counts: cohens_kappa(ours, theirs, counts),
        )
        if both
        else None
    )
    return ReaderResult(
        reader=name,
        slides=len(both),
        left_out=tuple(sorted(ai.keys() ^ reader.keys())),
        both_positive=int((ours & theirs).sum()),
        only_ai_positive=int((ours & ~theirs).sum()),
        only_reader_positive=int((~ours & theirs).sum()),
        both_negative=int((~ours & ~theirs).sum()),
        kappa=kappa.value if kappa else None,
        kappa_interval=kappa.interval if kappa else None,
        sensitivity=proportion(int((known & true & theirs).sum()), int((known & true).sum())),
        specificity=proportion(int((known & ~true & ~theirs).sum()), int((known & ~true).sum())),
        only_ai_right=only_ai,
        only_reader_right=only_reader,
        mcnemar_p=mcnemar(only_ai, only_reader),
    )


def cohens_kappa(
    first: ArrayLike, second: ArrayLike, counts: NDArray[np.int64] | None = None
) -> float | None:
    """Agreement of two beyond chance, -1..1; None where there is no slide, or both say the same one thing.

    Args:
        first: (n,) bool.
        second: (n,) bool.
        counts: (n,) how often each slide counts.
    """
    first, second = np.asarray(first, np.bool_), np.asarray(second, np.bool_)
    counts = np.ones(len(first), np.int64) if counts is None else counts
    total = int(counts.sum())
    if not total:
        return None
    agreed = float(counts @ (first == second)) / total
    positive, also = float(counts @ first) / total, float(counts @ second) / total
    by_chance = positive * also + (1 - positive) * (1 - also)
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def fleiss_kappa(calls: ArrayLike) -> float | None:
    """Agreement of several beyond chance; None where there is no slide, or all say the same one thing.

    Args:
        calls: (slides, readers) bool, at least two readers.
    """
    table = np.asarray(calls, np.bool_)
    if table.ndim != 2 or not table.size or table.shape[1] < 2:
        return None
    slides, readers = table.shape
    positive = table.sum(axis=1)
    votes = np.stack([positive, readers - positive], axis=1)
    agreed = ((votes**2).sum(axis=1) - readers) / (readers * (readers - 1))
    by_chance = float(((votes.sum(axis=0) / (slides * readers)) ** 2).sum())
    return None if by_chance == 1 else float((agreed.mean() - by_chance) / (1 - by_chance))


def mcnemar(only_first: int, only_second: int) -> float | None:
    """Exact two-sided p of as many slides being right by one only; None if there is no such slide."""
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else None
