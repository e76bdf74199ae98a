"""Slides in memory with the label of every window, for benchmarks that hold slides out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from hnscc_qp.errors import MissingMppError
from hnscc_qp.geometry import STEP_PX, WINDOW_MPP, WINDOW_PX, Grid, Mpp, PixelSize
from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.patches.labels import Label, label_windows
from hnscc_qp.patches.tiles import PIECE_PX, PIECE_WINDOWS, label_map, piece_labels
from hnscc_qp.qupath.project import open_project
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Classes, Patches
from hnscc_qp.training.evaluate import predict_logits

CPU = torch.device("cpu")
STRIDE_CELLS = 2
"""Every second window in each direction is tested on, and learnt from where windows are cut."""


@dataclass(frozen=True)
class Slide:
    """A slide in memory."""

    name: str
    pixels: NDArray[np.uint8]
    """Of whole steps of 10 px."""
    labels: NDArray[np.uint8]
    """(rows, columns) of windows every 10 px, `Label`."""

    @property
    def positive(self) -> bool:
        """Whether any window is tumor."""
        return bool((self.labels == Label.TUMOR).any())


def folds_of(slides: Sequence[Slide], folds: int) -> list[list[Slide]]:
    """Share slides among folds in the order of their names, positive and negative ones each."""
    shares: list[list[Slide]] = [[] for _ in range(folds)]
    for flag in (True, False):
        some = [one for one in slides if one.positive is flag]
        for share, part in zip(shares, np.array_split(np.arange(len(some)), folds), strict=True):
            share += [some[at] for at in part]
    return shares


def choosing(slides: Sequence[Slide]) -> set[str]:
    """The slides learnt from that choose the epoch: the last positive and the last negative one."""
    return {[one.name for one in slides if one.positive is flag][-1] for flag in (True, False)}


def load(project_file: Path, folder: Path) -> list[Slide]:
    """Every slide of the project with the labels that its annotations give."""
    project = open_project(project_file, backend="embedded", slide_folders=(folder,))
    found = []
    for image in sorted(project.images, key=lambda one: one.name):
        slide = open_slide(project.slide_path(image), pixel_size=image.pixel_size)
        grid = Grid.of_method(slide.size, slide.pixel_size)
        objects = project.objects(image)
        windows = label_windows(
            objects,
            name=image.name,
            size=slide.size,
            grid=grid,
            tissue=find_tissue(slide, grid),
            classes=Classes(),
            positive=image.metadata.get("status") == "positive",
            settings=Patches(stride_px=STEP_PX),
        )
        pixels = slide.read(grid.region(0, 0, rows=grid.rows, columns=grid.columns), WINDOW_MPP)
        found.append(Slide(image.name, pixels, label_map(windows, grid)))
    return found


def cut(
    slides: list[Slide], labels: dict[str, NDArray[np.uint8]] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.str_]]:
    """Pieces of slides, with the slides' own labels or others."""
    pixels, found, names = [], [], []
    for slide in slides:
        pieces = piece_labels(slide.labels if labels is None else labels[slide.name])
        wide = [(0, PIECE_PX)] * 2 + [(0, 0)]
        padded = np.pad(slide.pixels, wide, constant_values=255)
        for row, column in np.argwhere((pieces != Label.IGNORED).any(axis=(2, 3))):
            y, x = row * PIECE_WINDOWS * STEP_PX, column * PIECE_WINDOWS * STEP_PX
            pixels.append(padded[y : y + PIECE_PX, x : x + PIECE_PX])
            found.append(pieces[row, column])
            names.append(slide.name)
    return np.stack(pixels), np.stack(found), np.array(names)


def answer(
    classifier: Classifier, pixels: NDArray[np.uint8], slide: Slide
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """P(tumor) and label of every second labelled window."""
    labels = slide.labels[::STRIDE_CELLS, ::STRIDE_CELLS]
    rows, columns = np.nonzero(labels != Label.IGNORED)
    if isinstance(classifier, DenseClassifier):
        logits = dense_logits(classifier, pixels)[:, ::STRIDE_CELLS, ::STRIDE_CELLS][:, rows, columns].T
    else:
        step = STRIDE_CELLS * STEP_PX
        views = np.lib.stride_tricks.sliding_window_view(pixels, (WINDOW_PX, WINDOW_PX), axis=(0, 1))
        windows = views[::step, ::step][rows, columns].transpose(0, 2, 3, 1)
        logits = predict_logits(classifier, windows, device=CPU)
    wide = logits.astype(np.float64)
    return expit(wide[:, 1] - wide[:, 0]), labels[rows, columns]


def dense_logits(classifier: DenseClassifier, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """All windows' logits, (2, rows, columns), of a whole slide in one pass."""
    with torch.inference_mode():
        found: NDArray[np.float32] = classifier(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].numpy()
    return found


def density_of(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of the tissue's optical density, by channel, on 200 blocks of a slide."""
    slide = open_slide(path)
    try:
        pixel_size = slide.pixel_size
    except MissingMppError:  # a guess will do for colours
        pixel_size = PixelSize(Mpp(0.5), Mpp(0.5))
        slide = open_slide(path, pixel_size=pixel_size)
    grid = Grid.of_method(slide.size, pixel_size)
    blocks = np.argwhere(find_tissue(slide, grid))
    some = np.random.default_rng(1).choice(len(blocks), min(200, len(blocks)), replace=False)
    pixels = [slide.read(grid.region(int(r), int(c), rows=1, columns=1), grid.mpp) for r, c in blocks[some]]
    density = -np.log10((np.concatenate(pixels).reshape(-1, 3) + 1.0) / 256)
    return density.mean(axis=0), density.std(axis=0)


def restain(
    pixels: NDArray[np.uint8], target: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> NDArray[np.uint8]:
    """The slide with its tissue's mean and deviation of density made those of `target`."""
    density = -np.log10((pixels.astype(np.float32) + 1) / 256)
    tissue = density[density[..., 1] - np.minimum(density[..., 0], density[..., 2]) > 0.03]
    changed = (density - tissue.mean(axis=0)) / tissue.std(axis=0) * target[1] + target[0]
    return (10**-changed * 256 - 1).round().clip(0, 255).astype(np.uint8)
