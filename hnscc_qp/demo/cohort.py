"""Twelve generated patients, one node each: slides, annotations, a QuPath project and a study."""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from functools import partial
from pathlib import Path

from PIL import Image

from hnscc_qp.demo.anatomy import Metastasis, NodePlan
from hnscc_qp.demo.annotate import PATH_CLASSES, annotate
from hnscc_qp.demo.draw import MPP, draw_node
from hnscc_qp.demo.slides import write_slide
from hnscc_qp.errors import StudyError
from hnscc_qp.files import write_text
from hnscc_qp.geometry import PixelSize
from hnscc_qp.progress import Progress
from hnscc_qp.qupath.create import NewImage, create_project

STUDY_TOML = """\
# The study that `hnscc-qp demo` writes beside its generated cohort and runs from end to end.
# What is left out has the paper's value (Tang et al. 2022); what stands here keeps the loop to
# minutes on two CPU cores. The slides are drawings: no figure of this study says anything of patients.

name = "demo"
project = "project/project.qpproj"
slides = ["slides"]
backend = "embedded"
device = "auto"

[classes]
tumor = ["Tumor"]
nontumor = ["Necrosis", "Stroma"]
ignored = ["Ignore*"]

[cohort]
patient = "patient"
status = "status"

[patches]
stride_px = 10      # the drawn nodes are small: windows overlap to be enough
per_class = 3_000

[training]
recipe = "window"
weights = "none"    # from scratch, so that nothing is fetched
input_px = 40       # a window as it is

[training.window]
orientations = 1    # of a patch in an epoch; the paper shows all 8
epochs = 5
decay_epochs = 3
batch_size = 64

[mining]
stride_px = 10      # few negative slides: look closely
keep_secondary = "always"   # as the paper; so few drawn slides could not prove that it is worth its place
"""
"""The demo's study file; `projects/demo/study.toml` shows the same to readers of the repository."""

_UNFINISHED = ".unfinished-demo"
_THUMBNAIL_PX = 1000
_THREADS = 3
"""Much of drawing is numpy and scipy, which let go of the interpreter."""
_FIRST_SURGERY = date(2019, 2, 4)
_UNCALIBRATED = "DEMO-08"
"""This patient's file says nothing of its pixel size, only the project does, as after a bad export."""

_PLANS: tuple[NodePlan, ...] = (
    NodePlan(4, metastases=(Metastasis((0.40, 0.42), 210, islands=0.3, necrosis=True, pearls=5),)),
    NodePlan(9, sinus_um=14),
    NodePlan(5, metastases=(Metastasis((0.56, 0.55), 190, islands=0.6, pearls=8),)),
    NodePlan(4, sinus_um=34, medulla=0.34),
    NodePlan(
        6, metastases=(Metastasis((0.35, 0.5), 130, islands=0.2), Metastasis((0.7, 0.4), 110, islands=0.6))
    ),
    NodePlan(11, sinus_um=20, fat=False),
    NodePlan(
        2,
        metastases=(Metastasis((0.5, 0.5), 290, islands=0.4, necrosis=True, pearls=6),),
        fold=True,
    ),
    NodePlan(3, sinus_um=12, medulla=0.2),
    NodePlan(7, sinus_um=22, metastases=(Metastasis((0.62, 0.35), 150, islands=0.5, pearls=3),)),
    NodePlan(7, sinus_um=28),
    NodePlan(6, metastases=(Metastasis((0.3, 0.45), 95, islands=0.1),)),
    NodePlan(8, sinus_um=16, medulla=0.32),
)


def draw_cohort(
    folder: Path, *, seed: int, progress: Progress, size_um: tuple[int, int] = (1000, 800)
) -> Path:
    """Draw the cohort and write it: `slides/*.tif`, `project/project.qpproj`, `study.toml`.

    Args:
        folder: new or empty, or that of an earlier demo, which is taken as it is; one that was stopped
            while it was drawn is drawn again.
        seed: another seed draws other slides of the same patients.
        progress: told of each slide.
        size_um: (width, height) of the slides.

    Returns:
        The study file, which is written last.

    Raises:
        StudyError: the folder is not empty.
    """
    study_file = folder / "study.toml"
    if _is_demo(study_file):
        progress.say(f"{folder} holds an earlier demo; going on with it")
        return study_file
    unfinished = folder / _UNFINISHED
    if folder.exists() and not (folder.is_dir() and (unfinished.exists() or not any(folder.iterdir()))):
        raise StudyError(f"{folder} is not an empty folder; choose another with --out")
    write_text(unfinished, "hnscc-qp demo was stopped while it drew; the same command draws again\n")
    draw = partial(_draw_patient, folder / "slides", seed=seed, size_um=size_um)
    images = []
    with (
        progress.task("drawing slides", len(_PLANS), unit="slides") as task,
        ThreadPoolExecutor(_THREADS) as threads,
    ):
        for image in threads.map(draw, range(1, len(_PLANS) + 1), _PLANS):
            images.append(image)
            task.advance(note=image.name)
    if not (folder / "project" / "project.qpproj").exists():
        create_project(folder / "project", images, path_classes=PATH_CLASSES)
    write_text(study_file, STUDY_TOML)
    unfinished.unlink()
    return study_file


def _is_demo(study_file: Path) -> bool:
    try:
        return tomllib.loads(study_file.read_text(encoding="utf-8")).get("name") == "demo"
    except (OSError, ValueError):
        return False


def _draw_patient(
    slides: Path, number: int, plan: NodePlan, *, seed: int, size_um: tuple[int, int]
) -> NewImage:
    patient = f"DEMO-{number:02d}"
    node = draw_node(plan, seed=(seed, number), size_um=size_um)
    path = slides / f"{patient}.tif"
    levels = write_slide(path, node.pixels, mpp=None if patient == _UNCALIBRATED else MPP)
    thumbnail = Image.fromarray(node.pixels)
    thumbnail.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return NewImage(
        slide=path,
        name=path.name,
        size=(levels[0][1], levels[0][2]),
        levels=levels,
        pixel_size=PixelSize(MPP, MPP),
        metadata={
            "patient": patient,
            "status": "positive" if plan.metastases else "negative",
            "surgery date": str(_FIRST_SURGERY + timedelta(days=37 * number)),
        },
        description="Drawn by hnscc-qp demo; not a patient",
        annotations=annotate(node, seed=(seed, number)),
        thumbnail=thumbnail,
    )
