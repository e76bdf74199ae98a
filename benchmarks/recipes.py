"""The two recipes of training, on slides that training did not see and in stains that it did not see.

    python benchmarks/recipes.py PROJECT --weights FILE --stains SLIDE... [--iterations N] [--out JSON]

Slides are held out by halves, in the order of their names, as neighbours may be regions of one original
slide: each half is tested on by models that learnt from the other, of which one positive and one negative
slide choose the epoch. All recipes get the same number of iterations over about as many pixels. Held-out
slides are also shown in the colours of other slides: mean and deviation of the tissue's optical density,
channel by channel (Reinhard et al. 2001, in density), which is not how training varies them.
"""

from __future__ import annotations

import argparse
import json
import time
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
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.patches.labels import Label, label_windows
from hnscc_qp.patches.tiles import PIECE_PX, PIECE_WINDOWS, label_map, piece_labels
from hnscc_qp.qupath.project import open_project
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Classes, DenseRecipe, Patches, Training, WindowRecipe
from hnscc_qp.training.evaluate import evaluate, predict_logits
from hnscc_qp.training.fit import fit
from hnscc_qp.training.material import DenseMaterial, Material, WindowMaterial
from hnscc_qp.training.mine import pair_with_tumor

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


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument(
        "--slides", type=Path, help="folder of the slides; default: slides beside the project"
    )
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--stains", type=Path, nargs="*", default=[])
    parser.add_argument("--iterations", type=int, default=240)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--recipes", nargs="+", default=["window", "dense", "dense+jitter"])
    parser.add_argument("--secondary", action="store_true", help="also what a secondary changes, densely")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    slides = load(asked.project, asked.slides or asked.project.parent / "slides")
    stains = {path.stem: density_of(path) for path in asked.stains}
    positive, negative = ([one for one in slides if one.positive is flag] for flag in (True, False))
    halves = [
        positive[: len(positive) // 2] + negative[: len(negative) // 2],
        positive[len(positive) // 2 :] + negative[len(negative) // 2 :],
    ]
    results: dict[str, list[dict[str, object]]] = {}
    for recipe in asked.recipes:
        for seed in asked.seeds:
            answers: dict[str, list[tuple[NDArray[np.float64], NDArray[np.uint8], str]]] = {}
            seconds = 0.0
            for learnt, tested in (halves, halves[::-1]):
                began = time.process_time()
                classifier = train(
                    recipe, learnt, seed=seed, weights=asked.weights, iterations=asked.iterations
                )
                seconds += time.process_time() - began
                for slide in tested:
                    for stain in ("as it is", *stains):
                        shown = slide.pixels if stain == "as it is" else restain(slide.pixels, stains[stain])
                        answers.setdefault(stain, []).append((*answer(classifier, shown, slide), slide.name))
                if asked.secondary and recipe == "dense+jitter":
                    show_secondary(classifier, learnt, tested, seed=seed, iterations=asked.iterations // 2)
            for stain, some in answers.items():
                figures = evaluate(
                    np.concatenate([p for p, _, _ in some]),
                    np.concatenate([y for _, y, _ in some]),
                    np.concatenate([[name] * len(y) for _, y, name in some]),
                )
                row = {"recipe": recipe, "seed": seed, "stain": stain, "training CPU s": round(seconds)}
                row |= {"n": figures.n, "auc": figures.auc, "interval": figures.auc_interval}
                results.setdefault(stain, []).append(row)
                low, high = figures.auc_interval or (float("nan"),) * 2
                print(  # noqa: T201
                    f"{recipe:14} seed {seed}  {stain:28} AUC {figures.auc:.3f} ({low:.3f} to {high:.3f}), "
                    f"n {figures.n}, {seconds:.0f} CPU s",
                    flush=True,
                )
            if asked.out:
                asked.out.write_text(json.dumps(results, indent=2))


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


def train(recipe: str, slides: list[Slide], *, seed: int, weights: str, iterations: int) -> Classifier:
    """Train on all but the last positive and the last negative slide, which choose the epoch."""
    held = {[one.name for one in slides if one.positive is flag][-1] for flag in (True, False)}
    if recipe == "window":
        return train_windows(slides, held, seed=seed, weights=weights, iterations=iterations)
    jitter = DenseRecipe().stain_jitter if recipe == "dense+jitter" else 0.0
    dense = DenseRecipe(stain_jitter=jitter, epochs=4, epoch_tiles=iterations * DenseRecipe().batch_size // 4)
    settings = Training(recipe="dense", weights=weights, seed=seed, dense=dense)
    pixels, labels, names = cut(slides)
    material = DenseMaterial(
        pixels,
        labels,
        names,
        train_idx=np.flatnonzero(~np.isin(names, list(held))),
        validation_idx=np.flatnonzero(np.isin(names, list(held))),
        settings=dense,
        seed=seed,
        device=CPU,
    )
    return fitted(DenseClassifier("mobilenet_v2", weights=weights, seed=seed), material, settings)


def train_windows(
    slides: list[Slide], held: set[str], *, seed: int, weights: str, iterations: int
) -> Classifier:
    """The paper's recipe on balanced windows, its 30 epochs shortened to the iterations."""
    pixels, labels, names = [], [], []
    for slide in slides:
        rows, columns = np.nonzero(slide.labels[::STRIDE_CELLS, ::STRIDE_CELLS] != Label.IGNORED)
        for row, column in zip(rows * STRIDE_CELLS, columns * STRIDE_CELLS, strict=True):
            y, x = row * STEP_PX, column * STEP_PX
            pixels.append(slide.pixels[y : y + WINDOW_PX, x : x + WINDOW_PX])
            labels.append(slide.labels[row, column])
            names.append(slide.name)
    label, judged = np.array(labels), np.isin(names, list(held))
    idx = []
    for side in (~judged, judged):
        nontumor, tumor = (np.flatnonzero(side & (label == one)) for one in (Label.NONTUMOR, Label.TUMOR))
        idx.append(np.sort(np.concatenate(pair_with_tumor(nontumor, tumor, seed=seed))))
    batches = len(idx[0]) // WindowRecipe().batch_size
    epochs = max(1, round(iterations / batches))
    window = WindowRecipe(orientations=1, epochs=epochs, decay_epochs=max(1, -(-epochs // 3)))
    settings = Training(recipe="window", weights=weights, seed=seed, window=window)
    material = WindowMaterial(
        np.stack(pixels),
        label,
        train_idx=idx[0],
        validation_idx=idx[1],
        settings=window,
        seed=seed,
        device=CPU,
    )
    classifier = WindowClassifier("mobilenet_v2", input_px=settings.input_px, weights=weights, seed=seed)
    return fitted(classifier, material, settings)


def fitted(classifier: Classifier, material: Material, settings: Training) -> Classifier:
    """Train and hand back."""
    fit(classifier, material, settings=settings, device=CPU)
    return classifier


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


def show_secondary(
    primary: Classifier, learnt: list[Slide], tested: list[Slide], *, seed: int, iterations: int
) -> None:
    """Train a secondary on the primary's false positives; say what it changes on the other slides."""
    assert isinstance(primary, DenseClassifier)
    generator = np.random.default_rng(seed)
    held = {[one.name for one in learnt if one.positive is flag][-1] for flag in (True, False)}
    masked, hard = {}, {}
    for slide in learnt:
        called = np.subtract(*dense_logits(primary, slide.pixels)[::-1]) > 0
        wanted = (slide.labels == Label.NONTUMOR) & called & (not slide.positive)
        masked[slide.name] = np.where(wanted, Label.NONTUMOR, Label.IGNORED).astype(np.uint8)
        hard[slide.name] = int(wanted.sum())
    for side in (False, True):
        of_side = [slide for slide in learnt if (slide.name in held) is side]
        count = sum(hard[slide.name] for slide in of_side)
        tumor = [(slide, place) for slide in of_side for place in np.argwhere(slide.labels == Label.TUMOR)]
        for index in generator.permutation(len(tumor))[:count]:
            slide, (row, column) = tumor[index]
            masked[slide.name][row, column] = Label.TUMOR
    print(f"  false positives to learn from: {hard}")  # noqa: T201
    if (
        min(sum(hard[one.name] for one in learnt if (one.name in held) is side) for side in (False, True))
        < 10
    ):
        print("  too few on a side: no secondary")  # noqa: T201
        return
    pixels, labels, names = cut(learnt, masked)
    dense = DenseRecipe(epochs=2, epoch_tiles=iterations * DenseRecipe().batch_size // 2)
    settings = Training(recipe="dense", weights="none", seed=seed, dense=dense)
    material = DenseMaterial(
        pixels,
        labels,
        names,
        train_idx=np.flatnonzero(~np.isin(names, list(held))),
        validation_idx=np.flatnonzero(np.isin(names, list(held))),
        settings=dense,
        seed=seed,
        device=CPU,
    )
    secondary = DenseClassifier("mobilenet_v2", seed=seed)
    secondary.load_state_dict(primary.state_dict())
    fitted(secondary, material, settings)
    counts = np.zeros((2, 2, 2))  # primary or both, label, called or not
    for slide in tested:
        first, second = (
            np.subtract(*dense_logits(one, slide.pixels)[::-1]) > 0 for one in (primary, secondary)
        )
        for stage, called in enumerate((first, first & second)):
            for label in (Label.NONTUMOR, Label.TUMOR):
                there = slide.labels == label
                counts[stage, label] += ((called & there).sum(), (~called & there).sum())
    for name, ((false, right), (found, missed)) in zip(("primary alone", "both stages"), counts, strict=True):
        print(  # noqa: T201
            f"  {name}: sensitivity {found / (found + missed):.3f}, "
            f"false positives {false / (false + right):.3f} of nontumor windows",
            flush=True,
        )


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


if __name__ == "__main__":
    main()
