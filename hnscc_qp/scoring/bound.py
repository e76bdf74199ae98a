"""A threshold whose miss rate on new patients is bounded, with stated confidence.

A threshold that misses k of n positive patients misses at most a share α of new ones, with confidence 1-δ,
if P(Binomial(n, α) ≤ k) ≤ δ: the upper limit of Clopper and Pearson (1934) is then below α. Misses only
grow with the threshold, so the thresholds can be tried from the lowest up, each at level δ, until the first
fails, and the last that passed keeps the guarantee without a price for having tried several (fixed-sequence
testing: Angelopoulos et al. 2021, "Learn then Test", arXiv:2110.01052). For one score per patient this is
split conformal prediction with training-conditional confidence (Vovk 2012, ACML 25:475-490).

It holds for patients drawn as these were: of the same hospital, scanner and stain, and none of them learnt
from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binom

from hnscc_qp.scoring.threshold import SlideScore


@dataclass(frozen=True, slots=True)
class MissBound:
    """The highest threshold with the guarantee, or why there is none."""

    alpha: float
    confidence: float
    patients: int
    """Positive patients that it rests on."""
    needed: int
    """Positive patients needed if none of them is missed."""
    votes: int | None
    score: float | None
    missed: int
    """Of the patients, at that threshold."""
    sentence: str


def patients_needed(alpha: float, confidence: float) -> int:
    """The fewest positive patients with which a threshold that misses none has the guarantee."""
    return max(1, math.ceil(math.log(1 - confidence) / math.log(1 - alpha) - 1e-9))


def bound_misses(slides: Sequence[SlideScore], *, alpha: float, confidence: float) -> MissBound:
    """The highest threshold that misses at most a share `alpha` of new positive patients.

    A patient is missed if none of their positive slides reaches the threshold.

    Args:
        slides: of patients that nothing was learnt from; negative slides do not count.
        alpha: 0..1, the largest share missed.
        confidence: 0..1, how sure.
    """
    best = _best_of_patients(slides)
    levels = slides[0].levels if slides else 0
    needed = patients_needed(alpha, confidence)
    votes, missed = None, 0
    for candidate in range(1, levels + 1):
        misses = sum(reached < candidate for reached in best.values())
        if not best or binom.cdf(misses, len(best), alpha) > 1 - confidence + 1e-12:
            break
        votes, missed = candidate, misses
    wish = f"a miss rate of at most {alpha:.0%} with {confidence:.0%} confidence"
    on = f"{len(best)} positive validation patient{'' if len(best) == 1 else 's'}"
    if votes is not None:
        sentence = (
            f"Thresholds up to {votes}/{levels} = {votes / levels:.4f} have {wish} on new patients like "
            f"these; that one misses {missed} of {on}."
        )
    elif len(best) < needed:
        sentence = f"No threshold can promise {wish}: that takes {needed} positive patients; here: {on}."
    else:
        sentence = f"No threshold has {wish}: too many of {on} are missed even at one vote."
    return MissBound(
        alpha=alpha,
        confidence=confidence,
        patients=len(best),
        needed=needed,
        votes=votes,
        score=votes / levels if votes else None,
        missed=missed,
        sentence=sentence,
    )


def _best_of_patients(slides: Sequence[SlideScore]) -> Mapping[str, int]:
    best: dict[str, int] = {}
    for slide in slides:
        if slide.positive:
            best[slide.patient] = max(best.get(slide.patient, 0), slide.max_votes)
    return best
