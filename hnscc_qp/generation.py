"""`generations/NNN`: where every step of one round writes, each with its manifest.

A step is done when its `manifest.json` is there and its key is what the same step would have
now: the key covers the step's settings and the keys of what it read. So a changed setting makes
its step, and all that came of it, stale.

`generation.json` in a generation's folder says what it descends from and why it was begun. `current`
beside the generations names the one in use; a candidate is built beside it and is not in use before it
is promoted.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hnscc_qp import __version__
from hnscc_qp.errors import StepError
from hnscc_qp.files import sha256_json, write_json, write_text
from hnscc_qp.study import Study

MANIFEST = "manifest.json"
RECORD = "generation.json"
_REPORTED_PACKAGES = (
    "numpy",
    "torch",
    "torchvision",
    "onnxruntime",
    "shapely",
    "openslide-python",
    "openslide-bin",
)


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """What `generation.json` says: where a generation comes from."""

    parent: str | None
    """The generation whose review led to this one; None for a study's first."""
    why: str
    """For people, in one line."""
    begun: str
    """UTC, as 2026-01-31T12:00:00Z."""
    by: str | None = None
    """Who asked for it."""
    fine_tuned: bool = False
    """Its models start from the parent's; if not, as the study's `training.weights` says."""
    log_head: str | None = None
    """Hash of the last verdict that it may learn from; None if there was none."""
    verdicts: int = 0
    """Entries of the verdict log up to there."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One round of patches, models, scores and regions."""

    path: Path

    @property
    def name(self) -> str:
        """`001`, `002`, ..."""
        return self.path.name

    def step(self, name: str) -> Path:
        """The folder of a step."""
        return self.path / name

    @property
    def record(self) -> GenerationRecord | None:
        """Where it comes from; None for a first generation that older versions of this program began.

        Raises:
            StepError: `generation.json` is damaged.
        """
        path = self.path / RECORD
        try:
            return GenerationRecord(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StepError(
                f"{path} is damaged, so nobody can say what generation {self.name} descends from; restore "
                f"it, or delete {self.path} if the generation is not in use"
            ) from error

    def write_record(self, record: GenerationRecord) -> None:
        """Write `generation.json`."""
        write_json(self.path / RECORD, asdict(record))

    @property
    def parent(self) -> Generation | None:
        """The generation that it descends from."""
        record = self.record
        return Generation(self.path.with_name(record.parent)) if record and record.parent else None

    def manifest(self, step: str) -> dict[str, Any] | None:
        """What a finished step wrote of itself; None if it is not done."""
        try:
            manifest = json.loads((self.step(step) / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StepError(f"{self.step(step) / MANIFEST} is damaged; delete {self.step(step)}") from error
        return manifest if isinstance(manifest, dict) else None

    def need(self, step: str, *, command: str) -> dict[str, Any]:
        """The manifest of a step that must be done.

        Raises:
            StepError: it is not; the message names the command.
        """
        manifest = self.manifest(step)
        if manifest is None:
            raise StepError(f"generation {self.name} has no {step} yet; run: {command}")
        return manifest


def current_generation(study: Study, *, create: bool = False) -> Generation:
    """The generation that `generations/current` names, the first one if there is none yet.

    Raises:
        StepError: there is none and `create` is false.
    """
    root = generations_folder(study)
    pointer = root / "current"
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if not create:
            raise StepError(f"{study.name} has no generation yet; run: hnscc-qp run {study.path}") from None
        name = "001"
        first = Generation(root / name)
        first.path.mkdir(parents=True, exist_ok=True)
        if first.record is None:
            first.write_record(GenerationRecord(None, "the study's first generation", utc_now()))
        set_current(study, first)
    if not (root / name).is_dir():
        raise StepError(f"{pointer} names generation {name}, which is not there; correct or delete {pointer}")
    return Generation(root / name)


def generations_folder(study: Study) -> Path:
    """Where a study's generations lie."""
    return study.root / "generations"


def all_generations(study: Study) -> list[Generation]:
    """Every generation of a study, the oldest first, whether in use or not."""
    root = generations_folder(study)
    if not root.is_dir():
        return []
    names = [path.name for path in root.iterdir() if path.is_dir() and re.fullmatch(r"[0-9]{3,}", path.name)]
    return [Generation(root / name) for name in sorted(names, key=int)]


def set_current(study: Study, generation: Generation) -> None:
    """Let `generations/current` name a generation: from then on it is the one in use."""
    write_text(generations_folder(study) / "current", generation.name + "\n")


def utc_now() -> str:
    """Now, as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def step_key(step: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What identifies a step's result: its settings and the hashes of its inputs."""
    return sha256_json({"step": step, "settings": dict(settings), "inputs": dict(inputs)})


def make_manifest(
    *,
    step: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    counts: Mapping[str, Any],
    started: float,
    outputs: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What a step says of itself.

    Args:
        step: its name.
        settings: every setting that bears on the result, the seed included.
        inputs: name → hash of what was read.
        counts: what came out, in numbers.
        started: `time.time()` when the step began.
        outputs: name → hash of what later steps read.
        failed: image name → reason, for images that could not be done.
        notes: what a person should know of the result.
    """
    return {
        "step": step,
        "key": step_key(step, settings, inputs),
        "settings": dict(settings),
        "inputs": dict(inputs),
        "outputs": dict(outputs or {}),
        "counts": dict(counts),
        "failed": dict(failed or {}),
        "notes": list(notes),
        "seconds": round(time.time() - started, 2),
        "written": utc_now(),
        "versions": versions(),
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a step's `manifest.json`, last of its files: with it the step is done."""
    write_json(folder / MANIFEST, manifest)


def versions() -> dict[str, str]:
    """Versions of this program, Python and the packages that bear on results."""
    found = {"hnscc-qp": __version__, "python": platform.python_version()}
    for package in _REPORTED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
