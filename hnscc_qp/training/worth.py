"""Is a secondary worth its place? The cascade beside the primary alone, called at a stricter probability.

Whatever rejects windows leaves fewer false positives, and less of the tumor. So the cascade is held against
what costs nothing: the primary alone, called so strictly that it finds as many tumor windows as the cascade.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from hnscc_qp.training.report import Predictions

ENOUGH = 20
"""False positives of the primary, and tumor windows that it finds: with fewer, a comparison tells nothing."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What both stages, and the primary alone, call tumor of some windows that neither learnt from."""

    tumor: int
    """Tumor windows."""
    nontumor: int
    """Nontumor windows: the primary's false positives where it was mined, and what review rejected."""
    patients: int
    """Whose nontumor windows they are."""
    primary_true: int
    """Tumor windows that the primary finds, at P(tumor) > 0.5."""
    primary_false: int
    """Nontumor windows that it calls tumor."""
    cascade_true: int
    """Tumor windows that both stages call tumor."""
    cascade_false: int
    """Nontumor windows that both stages call tumor."""
    stricter_probability: float | None
    """From which P(tumor) on the primary alone finds as many tumor windows as the cascade; None if that
    finds none."""
    stricter_false: float
    """Nontumor windows that it then calls tumor; of those of just this probability, the share of the tumor
    windows that are needed."""

    @property
    def is_enough(self) -> bool:
        """Whether there are windows enough to tell."""
        return min(self.primary_true, self.primary_false) >= ENOUGH

    @property
    def is_better(self) -> bool:
        """Whether there are enough, and the cascade leaves fewer false positives."""
        return self.is_enough and self.cascade_false < self.stricter_false

    @property
    def sentence(self) -> str:
        """What was found, for people, in one line."""
        patients = f"{self.patients} validation patient{'s' if self.patients != 1 else ''}"
        if not self.is_enough:
            return (
                f"the primary finds {self.primary_true} tumor windows of validation and has "
                f"{self.primary_false} false positives there ({patients}): fewer than {ENOUGH} of either "
                "can't tell whether the secondary is worth its place"
            )
        both = (
            f"of {self.primary_false} false positives of the primary ({patients}) both stages leave "
            f"{self.cascade_false} and find {self.cascade_true} of {self.tumor} tumor windows"
        )
        if self.stricter_probability is None:
            return both
        return (
            f"{both}; the primary alone, called at P {self.stricter_probability:.3g}, finds as many and "
            f"leaves {self.stricter_false:.0f}"
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"enough": self.is_enough, "better": self.is_better}


def weigh(primary: Predictions, secondary: Predictions) -> Worth:
    """Hold the cascade against a stricter primary.

    Args:
        primary: what it says of some windows.
        secondary: what it says of the same ones, in the same order.

    Raises:
        ValueError: they are not of the same windows.
    """
    labels = np.asarray(primary.labels).astype(bool)
    if not np.array_equal(labels, np.asarray(secondary.labels).astype(bool)):
        raise ValueError("the two stages were not judged on the same windows")
    likely = np.asarray(primary.probabilities, np.float64)
    called = likely > 0.5
    both = called & (np.asarray(secondary.probabilities) > 0.5)
    found = int((both & labels).sum())
    strict, left = None, 0.0
    if found:
        strict = float(np.sort(likely[labels])[-found])
        # Windows of just this probability are alike to the primary: it needs a share of them.
        above, at = likely > strict, likely == strict
        share = (found - (above & labels).sum()) / (at & labels).sum()
        left = float((above & ~labels).sum() + share * (at & ~labels).sum())
    return Worth(
        tumor=int(labels.sum()),
        nontumor=int((~labels).sum()),
        patients=len(np.unique(np.asarray(primary.patients)[~labels])),
        primary_true=int((called & labels).sum()),
        primary_false=int((called & ~labels).sum()),
        cascade_true=found,
        cascade_false=int((both & ~labels).sum()),
        stricter_probability=strict,
        stricter_false=left,
    )


def keeps(worth: Worth, rule: Literal["always", "if_better"]) -> tuple[bool, str]:
    """Whether the cascade is to have its secondary, and why, in one line for people.

    Without enough windows to tell, `if_better` does without: what is not proved must not cost tumor.
    """
    if rule == "always":
        return True, f'the secondary is used, as keep_secondary = "always" asks: {worth.sentence}'
    if worth.is_better:
        return True, f"the secondary is used: {worth.sentence}"
    return False, f"the secondary is not used, the cascade is the primary alone: {worth.sentence}"
