"""Who has once been tested on never trains, and who has trained never tests, in no later generation.

`generations/sides.json` stands beside the generations of a study and only ever grows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnscc_qp.errors import SealedSplitError, StepError, listed
from hnscc_qp.files import write_json

SIDES_FILE = "sides.json"


@dataclass(frozen=True, slots=True)
class Seat:
    """One image of the cohort and the side it would get."""

    patient: str
    image: str
    """A name for the image that stays when its patient is renamed: entry id and file name."""
    tests: bool


@dataclass(frozen=True, slots=True)
class FrozenSides:
    """Patients and images that have a side for good."""

    path: Path
    settings: Mapping[str, Any]
    """Those of the split that gave the sides."""
    patients: Mapping[str, bool]
    """True: tests."""
    images: Mapping[str, bool]

    def check(self, seats: Iterable[Seat]) -> None:
        """Let a split pass that moves nobody.

        Raises:
            SealedSplitError: it would move a patient, or an image under another patient's name.
        """
        moved: dict[bool, list[str]] = {True: [], False: []}
        for seat in seats:
            for name, known in ((seat.patient, self.patients), (seat.image, self.images)):
                if known.get(name, seat.tests) is not seat.tests and name not in moved[seat.tests]:
                    moved[seat.tests].append(name)
                    break  # the patient stands for the image
        remedy = (
            f"set [split] (and who is whose patient) back as it was in {self.path.name}, or start a new "
            "study in a new folder"
        )
        if moved[False]:
            raise SealedSplitError(
                f"of the sealed test set of this study {listed(moved[False])} would be trained on; {remedy}"
            )
        if moved[True]:
            raise SealedSplitError(
                f"of those that developed this study's models {listed(moved[True])} would test; {remedy}"
            )


def read_frozen(path: Path) -> FrozenSides | None:
    """Read the sides that are fixed; None in a study that has none yet.

    Raises:
        StepError: the file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        patients = {str(name): bool(tests) for name, tests in value["patients"].items()}
        images = {str(name): bool(tests) for name, tests in value["images"].items()}
        return FrozenSides(path, dict(value["split"]), patients, images)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StepError(
            f"{path} is damaged, and with it the word on who may be trained on; restore it from a backup"
        ) from error


def freeze_sides(
    path: Path, before: FrozenSides | None, seats: Iterable[Seat], settings: Mapping[str, Any]
) -> None:
    """Fix the sides of all seats besides those that were fixed before."""
    patients = dict(before.patients) if before else {}
    images = dict(before.images) if before else {}
    for seat in seats:
        patients[seat.patient] = images[seat.image] = seat.tests
    value = {
        "split": dict(settings),
        "patients": dict(sorted(patients.items())),
        "images": dict(sorted(images.items())),
    }
    if before is None or (before.settings, before.patients, before.images) != tuple(value.values()):
        write_json(path, value)
