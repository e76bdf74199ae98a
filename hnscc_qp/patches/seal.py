"""The split, sealed: which images develop, and which are only ever tested on.

Training and mining get their patches as a `DevelopmentSet` (`patches.dataset`) and their slides
through `SealedSplit.admit`; neither can be had for an image of a test patient. The split is
fixed by the cohort that patches are cut from, and its test patients by the first generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hnscc_qp.errors import SealedSplitError
from hnscc_qp.files import sha256_json
from hnscc_qp.patches.split import Side


@dataclass(frozen=True, slots=True)
class Member:
    """An image of the cohort, as later steps need it."""

    patient: str
    positive: bool
    side: Side


@dataclass(frozen=True, slots=True)
class SealedSplit:
    """The cohort as the patches were cut from it.

    Raises:
        SealedSplitError: where it is made, if a patient is on both sides.
    """

    by_entry: Mapping[str, Member]
    """Entry id → member."""
    sha256: str
    """Of the cohort's file."""

    def __post_init__(self) -> None:
        tested = {member.patient for member in self.by_entry.values() if member.side is Side.TEST}
        torn = sorted({m.patient for m in self.by_entry.values() if m.side is not Side.TEST} & tested)
        if torn:
            raise SealedSplitError(
                f"{', '.join(torn)} would be both developed and tested on; put each patient on one side"
            )

    @property
    def seal(self) -> str:
        """Hash of who is on which side; a set of patches carries it, and opens only with its own split."""
        return sha256_json(sorted([entry, m.patient, str(m.side)] for entry, m in self.by_entry.items()))

    def admit(self, entry_ids: Iterable[str]) -> None:
        """Let images through to training or mining; the gate that no test image passes.

        Raises:
            SealedSplitError: one belongs to a test patient, or is not of the cohort.
        """
        for entry_id in dict.fromkeys(entry_ids):
            member = self.by_entry.get(entry_id)
            if member is None:
                raise SealedSplitError(
                    f"image {entry_id} is not of the cohort, so nobody can say that it is no test image; "
                    "run hnscc-qp patches again"
                )
            if member.side is Side.TEST:
                raise SealedSplitError(
                    f"image {entry_id} belongs to {member.patient}, a test patient: it can't be trained on; "
                    "use an image of the development set"
                )

    def check(self, entry_id: str, patient: str, side: str, *, what: str, step: str) -> None:
        """See that something cut from an image says of it what the split says.

        Args:
            entry_id: of the image.
            patient: whose it says it is.
            side: what it says it is for.
            what: `patch` or `tile`, for the message.
            step: the command that cuts it anew.

        Raises:
            SealedSplitError: it does not.
        """
        member = self.by_entry.get(entry_id)
        if member is None or (member.patient, member.side) != (patient, side):
            raise SealedSplitError(
                f"a {what} of image {entry_id} says it is of {patient} for {side}, which is not what the "
                f"split says; run hnscc-qp {step} with --force"
            )
