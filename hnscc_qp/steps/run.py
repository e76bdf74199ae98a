"""`run`: every step of a study that is not done yet, in order."""

from __future__ import annotations

from collections.abc import Callable

from hnscc_qp.errors import StepError
from hnscc_qp.steps.calibrate import calibrate_study
from hnscc_qp.steps.compare import compare_study
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.mine import mine_negatives
from hnscc_qp.steps.patches import make_patches
from hnscc_qp.steps.push import push_detections
from hnscc_qp.steps.regions import draw_regions
from hnscc_qp.steps.score import score_images
from hnscc_qp.steps.tiles import make_tiles
from hnscc_qp.steps.train import train_primary, train_secondary
from hnscc_qp.study import Study
from hnscc_qp.training.compute import processes

STEPS: tuple[tuple[str, Callable[[Context], Manifest]], ...] = (
    ("labelled patches", make_patches),
    ("labelled tiles", make_tiles),
    ("primary model", train_primary),
    ("hard negatives", mine_negatives),
    ("secondary model", train_secondary),
    ("score maps", score_images),
    ("threshold", calibrate_study),
    ("regions", draw_regions),
    ("detections for QuPath", push_detections),
    ("comparison with manual review", compare_study),
)


def steps_of(study: Study) -> list[tuple[str, Callable[[Context], Manifest]]]:
    """The steps that a study of this recipe takes, with what each makes, in order."""
    dense = study.training.recipe == "dense"
    return [(title, step) for title, step in STEPS if dense or step is not make_tiles]


def run_study(context: Context) -> list[Manifest]:
    """Do what is not done, and say so of what is; the manifests in order of the steps."""
    if processes() > 1:
        raise StepError("torchrun shares out a training, not a whole study; run: torchrun ... hnscc-qp train")
    wanted = steps_of(context.study)
    manifests = []
    for number, (title, step) in enumerate(wanted, start=1):
        context.progress.say(f"[{number}/{len(wanted)}] {title}")
        manifests.append(step(context))
    return manifests
