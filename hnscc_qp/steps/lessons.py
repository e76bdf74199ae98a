"""What each stage learns from and is judged by, in either recipe: from a generation's files to `Material`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.patches.dataset import DevelopmentSet, open_development, open_test
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.tiles import (
    PIECE_PX,
    DevelopmentTiles,
    TestTiles,
    open_development_tiles,
    open_test_tiles,
)
from hnscc_qp.steps import mine, patches, tiles
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context
from hnscc_qp.study import DenseRecipe
from hnscc_qp.training.evaluate import predict
from hnscc_qp.training.material import (
    NO_LABEL,
    DenseMaterial,
    Material,
    WindowMaterial,
    iter_pieces,
    predict_windows,
    targets_of,
)
from hnscc_qp.training.mine import pair_with_tumor
from hnscc_qp.training.report import Predictions

_DEVELOPMENT = (Side.TRAIN, Side.VALIDATION)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One stage's training, before it begins."""

    material: Callable[[torch.device], Material]
    predict: Callable[[Classifier, torch.device], dict[str, Predictions]]
    """By side: of the validation set, and of the test set where the stage has one."""
    patients: dict[str, int]
    """On each side."""
    counts: dict[str, Any]
    """For the manifest."""


@dataclass(frozen=True, slots=True)
class _Windows:
    """Patches with what is known of each."""

    pixels: NDArray[np.uint8]
    """(n, 40, 40, 3)"""
    labels: NDArray[np.uint8]
    sides: NDArray[np.str_]
    patients: NDArray[np.str_]

    def on(self, side: Side) -> NDArray[np.intp]:
        return np.flatnonzero(self.sides == side)


def patches_lesson(context: Context) -> Lesson:
    """The primary of the window recipe: all labelled patches."""
    return _window_lesson(context, _Windows(*_columns(_patches(context, patches.STEP))), tested=True)


def hard_patches_lesson(context: Context) -> Lesson:
    """The secondary of the window recipe: mined patches, and as many tumor patches of the primary's."""
    hard, easy = _patches(context, mine.STEP), _patches(context, patches.STEP)
    seed = context.study.training.seed
    chosen_hard, chosen_tumor = [], []
    for side in _DEVELOPMENT:
        tumor = easy.on(side)
        tumor = tumor[easy.label[tumor] == Label.TUMOR]
        hard_idx, tumor_idx = pair_with_tumor(hard.on(side), tumor, seed=seed)
        chosen_hard.append(hard_idx)
        chosen_tumor.append(tumor_idx)
    of_hard, of_easy = np.concatenate(chosen_hard), np.concatenate(chosen_tumor)
    joined = (
        np.concatenate([one[of_hard], other[of_easy]])
        for one, other in zip(_columns(hard), _columns(easy), strict=True)
    )
    return _window_lesson(context, _Windows(*joined), tested=False)


def tiles_lesson(context: Context) -> Lesson:
    """The primary of the dense recipe: all tiles."""
    split = read_members(context.generation.step(patches.STEP))
    folder = context.generation.step(tiles.STEP)
    return _dense_lesson(
        context, open_development_tiles(folder, split), test=lambda: open_test_tiles(folder, split)
    )


def hard_tiles_lesson(context: Context) -> Lesson:
    """The secondary of the dense recipe: the tiles of `mine`, where only windows that count have labels.

    Its epochs are as long as its material is large: some hundred windows, shown for as long as the primary's
    tens of thousands, cost more time than the primary.
    """
    split = read_members(context.generation.step(patches.STEP))
    cut = open_development_tiles(context.generation.step(mine.STEP), split)
    return _dense_lesson(
        context, cut, test=None, settings=as_long_as(context.study.training.dense, len(cut.on(Side.TRAIN)))
    )


def as_long_as(settings: DenseRecipe, pieces: int) -> DenseRecipe:
    """The recipe with epochs that show no more tiles than cover so many pieces."""
    enough = pieces * math.ceil(PIECE_PX / settings.tile_px) ** 2
    tiles = min(settings.epoch_tiles, max(settings.batch_size, enough))
    return settings.model_copy(update={"epoch_tiles": tiles})


def _window_lesson(context: Context, windows: _Windows, *, tested: bool) -> Lesson:
    training = context.study.training

    def material(device: torch.device) -> Material:
        return WindowMaterial(
            windows.pixels,
            windows.labels,
            train_idx=windows.on(Side.TRAIN),
            validation_idx=windows.on(Side.VALIDATION),
            settings=training.window,
            seed=training.seed,
            device=device,
        )

    def judge(classifier: Classifier, device: torch.device) -> dict[str, Predictions]:
        assert isinstance(classifier, WindowClassifier)

        def of(pixels: NDArray[np.uint8], labels: NDArray[Any], patients: NDArray[np.str_]) -> Predictions:
            return Predictions(predict(classifier, pixels, device=device), labels, patients)

        idx = windows.on(Side.VALIDATION)
        found = {str(Side.VALIDATION): of(windows.pixels[idx], windows.labels[idx], windows.patients[idx])}
        # Opened for the figures alone, once training is over.
        if tested and len((held_out := _test_patches(context))[0]):
            found[str(Side.TEST)] = of(*held_out)
        return found

    patients = {str(side): len(set(windows.patients[windows.on(side)])) for side in _DEVELOPMENT}
    patients[str(Side.TEST)] = len(set(_test_patches(context)[2])) if tested else 0
    counts = {
        f"{side} {label.name.lower()}": int((windows.labels[windows.on(side)] == label).sum())
        for side in _DEVELOPMENT
        for label in (Label.TUMOR, Label.NONTUMOR)
    }
    return Lesson(material, judge, patients, counts)


def _dense_lesson(
    context: Context,
    cut: DevelopmentTiles,
    *,
    test: Callable[[], TestTiles] | None,
    settings: DenseRecipe | None = None,
) -> Lesson:
    training = context.study.training

    def material(device: torch.device) -> Material:
        return DenseMaterial(
            cut.pixels,
            cut.labels,
            cut.slide,
            train_idx=cut.on(Side.TRAIN),
            validation_idx=cut.on(Side.VALIDATION),
            settings=settings or training.dense,
            seed=training.seed,
            device=device,
        )

    def judge(classifier: Classifier, device: torch.device) -> dict[str, Predictions]:
        classifier.to(device)
        found = {str(Side.VALIDATION): _judge_pieces(classifier, cut, cut.on(Side.VALIDATION), device)}
        if test is not None and len(held_out := test()):
            found[str(Side.TEST)] = _judge_pieces(classifier, held_out, held_out.on(Side.TEST), device)
        return found

    patients = {str(side): len(set(cut.patient[cut.on(side)])) for side in _DEVELOPMENT}
    patients[str(Side.TEST)] = len(set(test().patient)) if test else 0
    counts: Mapping[str, Any] = {f"{side} tiles": len(cut.on(side)) for side in _DEVELOPMENT} | {
        f"{side} {label.name.lower()}": int((cut.labels[cut.on(side)] == label).sum())
        for side in _DEVELOPMENT
        for label in (Label.TUMOR, Label.NONTUMOR)
    }
    return Lesson(material, judge, patients, dict(counts))


def _judge_pieces(
    classifier: Classifier, cut: DevelopmentTiles | TestTiles, idx: NDArray[np.intp], device: torch.device
) -> Predictions:
    targets = targets_of(cut.labels[idx])
    batches = iter_pieces(cut.pixels, idx, device=device)
    logits = predict_windows(classifier, batches, count=targets.size).astype(np.float64)
    patients = np.repeat(cut.patient[idx], targets[0].size if len(targets) else 0)
    counted = targets.reshape(-1) != NO_LABEL
    probabilities = expit((logits[:, 1] - logits[:, 0]) / classifier.temperature)
    return Predictions(probabilities[counted], targets.reshape(-1)[counted], patients[counted])


def _patches(context: Context, step: str) -> DevelopmentSet:
    """What a step cut for learning; there is no other way from patches to `fit`."""
    split = read_members(context.generation.step(patches.STEP))
    return open_development(context.generation.step(step), split)


def _columns(data: DevelopmentSet) -> tuple[NDArray[Any], ...]:
    return data.pixels, data.label, data.side, data.patient


def _test_patches(context: Context) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.str_]]:
    folder = context.generation.step(patches.STEP)
    data = open_test(folder, read_members(folder))
    return data.pixels, data.label, data.patient
