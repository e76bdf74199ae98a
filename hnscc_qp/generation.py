"""`generations/NNN`: where every step of one round writes, each with its manifest.

A step is done when its `manifest.json` is there and its key is what the same step would have
now: the key covers the step's settings and the keys of what it read. So a changed setting makes
its step, and all that came of it, stale.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hnscc_qp import __version__
from hnscc_qp.errors import StepError
from hnscc_qp.files import sha256_json, write_json, write_text
from hnscc_qp.study import Study

MANIFEST = "manifest.json"
_REPORTED_PACKAGES = ("numpy", "torch", "torchvision", "shapely", "openslide-python", "openslide-bin")


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
    root = study.root / "generations"
    pointer = root / "current"
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if not create:
            raise StepError(f"{study.name} has no generation yet; run: hnscc-qp run {study.path}") from None
        name = "001"
        (root / name).mkdir(parents=True, exist_ok=True)
        write_text(pointer, name + "\n")
    if not (root / name).is_dir():
        raise StepError(f"{pointer} names generation {name}, which is not there; correct or delete {pointer}")
    return Generation(root / name)


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
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
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
