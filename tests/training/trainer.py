"""A small training as a program, to be killed, to be run again, and to be shared by processes.

python trainer.py FOLDER RECIPE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.study import DenseRecipe, Training, WindowRecipe
from hnscc_qp.training.compute import is_first_process
from hnscc_qp.training.fit import fit
from hnscc_qp.training.history import FitResult
from hnscc_qp.training.material import DenseMaterial, Material, WindowMaterial
from hnscc_qp.training.state import Keeping

CPU = torch.device("cpu")


def settings(recipe: str) -> Training:
    """Three short epochs with everything on that draws random numbers."""
    return Training.model_validate(
        {
            "recipe": recipe,
            "weights": "none",
            "input_px": 32,
            "window": WindowRecipe(epochs=3, batch_size=8, orientations=1, stain_jitter=0.2),
            "dense": DenseRecipe(epochs=3, tile_px=80, epoch_tiles=16, averaging=0.9),
        }
    )


def material(recipe: str) -> Material:
    """Pink and purple noise."""
    rng = np.random.default_rng(1)
    if recipe == "window":
        labels = np.arange(64) % 2
        colours = np.array([[220, 150, 190], [110, 60, 150]])[labels]
        pixels = (colours[:, None, None] + rng.integers(-60, 30, (64, 40, 40, 3))).clip(0, 255)
        return WindowMaterial(
            pixels.astype(np.uint8),
            labels,
            train_idx=np.arange(40),
            validation_idx=np.arange(40, 64),
            settings=settings(recipe).window,
            seed=1,
            device=CPU,
        )
    purple = np.zeros((6, 120, 120), bool)
    purple[:, 30:80, 20:70] = True
    colours = np.where(purple[..., None], (110, 60, 150), (220, 150, 190))
    pixels = (colours + rng.integers(-60, 30, colours.shape)).clip(0, 255).astype(np.uint8)
    labels = np.lib.stride_tricks.sliding_window_view(purple, (40, 40), axis=(1, 2))[:, ::10, ::10]
    return DenseMaterial(
        pixels,
        labels.any(axis=(3, 4)).astype(np.uint8),
        np.array(list("ABCABC")),
        train_idx=np.arange(4),
        validation_idx=np.arange(4, 6),
        settings=settings(recipe).dense,
        seed=1,
        device=CPU,
    )


def train(folder: Path, recipe: str, **passed: Any) -> tuple[Classifier, FitResult]:
    """Train, with a checkpoint after every batch."""
    kind = DenseClassifier if recipe == "dense" else WindowClassifier
    classifier = kind("mobilenet_v2", input_px=32)
    result = fit(
        classifier,
        material(recipe),
        settings=settings(recipe),
        device=CPU,
        keeping=Keeping(folder, key=recipe, every_seconds=0),
        **passed,
    )
    return classifier, result


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained, found = train(Path(sys.argv[1]), sys.argv[2])
    if is_first_process():
        safetensors.torch.save_file(trained.state_dict(), Path(sys.argv[1]) / "trained.safetensors")
        (Path(sys.argv[1]) / "result.json").write_text(json.dumps(found.as_json()))
