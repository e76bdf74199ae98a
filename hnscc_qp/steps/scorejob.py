"""Scoring one image, on this machine or on a worker of a cluster: the same bytes, where both are alike.

A job says where the study, the project and the models lie and what their hashes are, not what is in them. A
worker reads them there, and refuses what is not what the job speaks of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnscc_qp import __version__
from hnscc_qp.errors import ClusterError, ScoreMapError
from hnscc_qp.files import sha256_file, storing
from hnscc_qp.generation import step_key
from hnscc_qp.models import onnx_runtime
from hnscc_qp.models.cascade import AnyCascade
from hnscc_qp.models.dense import RuntimeName
from hnscc_qp.models.device import choose_device
from hnscc_qp.progress import SILENT, Task
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.scoring.probabilities import write_probabilities
from hnscc_qp.scoring.score_map import ScoreMap, read_score_map, write_score_map
from hnscc_qp.scoring.slide import score_slide
from hnscc_qp.steps.context import Context, image_file, placement
from hnscc_qp.steps.trained import load_cascade
from hnscc_qp.study import Study

STEP = "score"


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What a worker needs to know to score one image."""

    study: Study
    generation: str
    image: ImageEntry
    models: tuple[tuple[str, str], ...]
    """Name and SHA-256 of each, as `load_cascade` names them."""
    key: str
    """What identifies the result, see `score_key`."""
    runtime: RuntimeName
    """What computes, on this machine and on any other."""
    force: bool
    """Score it although a score map of this job is there."""
    version: str = __version__
    """Of the program."""


@dataclass(frozen=True, slots=True)
class SlideResult:
    """What is told of a scored image; the rest is in its file."""

    sha256: str
    """Of the score map."""
    windows: int
    unreadable: int
    max_score: float
    """0..1"""
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Listener:
    """Keeps warnings, for the machine that asked."""

    warnings: list[str] = field(default_factory=list)

    def task(self, description: str, total: float | None = None, *, unit: str = "") -> Task:
        return SILENT.task(description, total, unit=unit)

    def say(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def run_job(job: ScoreJob, context: Context, cascade: AnyCascade) -> SlideResult:
    """Score the image of a job, or find its score map, and write it into the study's folder.

    Raises:
        HnsccQpError: it can't be scored; see `score_slide`.
        StorageError: there is no room for the result. What is scored is kept in the journal.
    """
    path = score_map_file(context, job.image)
    side_path = probabilities_file(context, job.image)
    wants_side = job.study.scoring.probabilities
    journal = journal_file(context, job.image)
    score_map = None if job.force else _kept(path, job.key)
    if score_map is None or (wants_side and not side_path.is_file()):
        scores = score_slide(
            context.open_image(job.image),
            cascade=cascade,
            settings=job.study.scoring,
            device=choose_device(job.study.device),
            progress=context.progress,
            provenance={"key": job.key, "image": job.image.name, "entry_id": job.image.entry_id}
            | dict(job.models),
            journal=journal,
            runtime=job.runtime,
        )
        score_map = scores.score_map
        with storing(path):
            if scores.probabilities is not None:
                write_probabilities(side_path, scores.probabilities, score_map)
            write_score_map(path, score_map)
            journal.unlink(missing_ok=True)
    return SlideResult(
        sha256=sha256_file(path),
        windows=score_map.windows,
        unreadable=score_map.unreadable,
        max_score=score_map.max_votes / score_map.max_level,
    )


_CASCADES: dict[tuple[Path, str, tuple[tuple[str, str], ...]], AnyCascade] = {}
"""Of this process; the last one."""


def run_job_remotely(job: ScoreJob) -> SlideResult:
    """Do a job in another process: find the study's files there, and see that they are the job's.

    Raises:
        ClusterError: the worker has another version of the program, other models, another project than the
            machine that asked, or not what that computes with.
        HnsccQpError: see `run_job`.
    """
    if job.version != __version__:
        raise ClusterError(
            f"a worker has hnscc-qp {__version__}, this machine {job.version}; install the same one on all"
        )
    if job.runtime == "onnxruntime" and not onnx_runtime.is_installed():
        raise ClusterError(
            "a worker has no ONNX Runtime, which this machine computes with; run "
            "pip install 'hnscc-qp[onnxruntime]' there, or score with --runtime torch"
        )
    listener = _Listener()
    context = Context(job.study, progress=listener)
    if not job.study.path.is_file() or context.generation.name != job.generation:
        raise ClusterError(
            f"a worker does not find generation {job.generation} of {job.study.path}; share that folder, at "
            "the same path, with all workers"
        )
    image = next((one for one in context.project.images if one.entry_id == job.image.entry_id), None)
    if image is None or score_key(context, image, dict(job.models), job.runtime) != job.key:
        raise ClusterError(
            f"a worker finds another {job.image.name} in {job.study.project}, or another stain reference, "
            "than this machine; share those folders, at the same path, with all workers"
        )
    result = run_job(job, context, _cascade_of(job.study, job.generation, job.models))
    return SlideResult(
        result.sha256, result.windows, result.unreadable, result.max_score, tuple(listener.warnings)
    )


def _cascade_of(study: Study, generation: str, models: tuple[tuple[str, str], ...]) -> AnyCascade:
    """The models of a job, read once per process; `load_cascade` sees that they are whole."""
    key = (study.path, generation, models)
    if key in _CASCADES:
        return _CASCADES[key]
    cascade, found = load_cascade(Context(study, progress=SILENT))
    if tuple(found.items()) != models:
        raise ClusterError(
            f"a worker finds other models in generation {generation} of {study.path} than this machine; "
            "share that folder, at the same path, with all workers"
        )
    _CASCADES.clear()
    _CASCADES[key] = cascade
    return cascade


def scoring_settings(context: Context, runtime: RuntimeName) -> dict[str, Any]:
    """All settings that bear on scores, with what computes in place of `auto`."""
    settings = context.study.settings("scoring")
    return settings | {"scoring": settings["scoring"] | {"runtime": runtime}, "stain": context.stain}


def score_key(context: Context, image: ImageEntry, models: Mapping[str, str], runtime: RuntimeName) -> str:
    """What identifies the score map of an image: settings, models, runtime, and how the image is placed."""
    return step_key(STEP, scoring_settings(context, runtime), dict(models) | {"image": placement(image)})


def score_map_file(context: Context, image: ImageEntry) -> Path:
    """Where the score map of an image lies."""
    return image_file(context.generation.step(STEP), image, ".ome.tiff")


def probabilities_file(context: Context, image: ImageEntry) -> Path:
    """Where each stage's P(tumor) of an image's windows lies, if it was wanted."""
    return image_file(context.generation.step(STEP), image, ".probabilities.ome.tiff")


def journal_file(context: Context, image: ImageEntry) -> Path:
    """Where finished tiles of an image are kept until its score map is written."""
    return image_file(context.generation.step(STEP), image, ".journal")


def _kept(path: Path, key: str) -> ScoreMap | None:
    try:
        score_map = read_score_map(path)
    except ScoreMapError:  # missing or damaged: made again
        return None
    return score_map if score_map.provenance.get("key") == key else None
