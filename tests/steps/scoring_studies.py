"""Studies with models from scratch, and processes that score them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hnscc_qp.files import write_json
from hnscc_qp.models.checkpoint import save_model
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.progress import SILENT
from hnscc_qp.steps.context import Context
from hnscc_qp.study import Training
from hnscc_qp.studyfile import load_study

FOLDER = "generations/001"


def give_models(study: Path, *, dense: bool = False) -> Path:
    """Put a primary from scratch, and no secondary, where training would."""
    generation = Context(load_study(study), progress=SILENT).generation
    make = DenseClassifier if dense else WindowClassifier
    save_model(
        generation.step("primary"),
        make("mobilenet_v2", input_px=128 if dense else 32),
        stage="primary",
        training=Training(weights="none"),
        weights_origin={"name": "none", "sha256": None},
        data_sha256="0" * 64,
        patients={},
        figures={},
        device="cpu",
        seconds=0,
    )
    manifest: dict[str, Any] = {
        "step": "",
        "key": "",
        "failed": {},
        "outputs": {},
        "notes": [],
        "settings": {},
    }
    for step in ("primary", "secondary"):
        write_json(
            generation.step(step) / "manifest.json", manifest | {"counts": {"trained": step == "primary"}}
        )
    return study


def maps(study: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (study.parent / FOLDER / "score").glob("*.ome.tiff")}


def command(*arguments: object) -> list[str]:
    code = "from hnscc_qp.cli.main import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])} | more
