"""The two recipes of training, on slides that training did not see and in stains that it did not see.

    python benchmarks/recipes.py PROJECT FOLDER --weights FILE --stains SLIDE... [--recipes NAME=N...]

Slides are held out by folds, in the order of their names, as neighbours may be regions of one original
slide: each fold is tested on by models that learnt from the others, of which one positive and one negative
slide choose the epoch. The iterations are such that each recipe gets about 240 seconds of one core.
Held-out slides are also shown in the colours of other slides: mean and deviation of the tissue's optical
density, channel by channel (Reinhard et al. 2001, in density), which is not how training varies them.

A recipe is `dense32`, `dense64` or `window64`, the number being `input_px`; settings of its table may
follow, as in `dense32:stain_jitter=0:batch_size=8=310`. What every model answers is kept in FOLDER,
and is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from heldout import (
    CPU,
    STRIDE_CELLS,
    Slide,
    answer,
    choosing,
    cut,
    density_of,
    folds_of,
    load,
    restain,
)
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from hnscc_qp.files import atomic_path
from hnscc_qp.geometry import STEP_PX, WINDOW_PX
from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.patches.labels import Label
from hnscc_qp.study import DenseRecipe, Training, WindowRecipe
from hnscc_qp.training.evaluate import evaluate
from hnscc_qp.training.fit import fit
from hnscc_qp.training.history import FitResult
from hnscc_qp.training.material import DenseMaterial, WindowMaterial
from hnscc_qp.training.mine import pair_with_tumor

AS_IT_IS = "as it is"
DENSE_EPOCHS = 4
"""That many times a dense training is judged; its learning rate falls over all of them."""


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("folder", type=Path, help="for answers and weights; what is there is not done again")
    parser.add_argument(
        "--slides", type=Path, help="folder of the slides; default: slides beside the project"
    )
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--stains", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=["dense32=310", "dense64=230", "window64=400"],
        metavar="NAME=N",
    )
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--only-folds", type=int, nargs="+", help="of 1, 2, ...; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    slides = load(asked.project, asked.slides or asked.project.parent / "slides")
    stains = {path.stem: density_of(path) for path in asked.stains}
    folds = folds_of(slides, asked.folds)
    wanted = [
        (seed, fold, recipe)
        for seed in asked.seeds
        for fold in asked.only_folds or range(1, asked.folds + 1)
        for recipe in asked.recipes
    ]
    for seed, fold, recipe in wanted:
        path = path_of(asked.folder, recipe, seed, fold)
        if not path.exists():
            learnt = [one for number, some in enumerate(folds, 1) if number != fold for one in some]
            _try(path, recipe, learnt, folds[fold - 1], stains, seed=seed, weights=asked.weights)
            show(asked.folder, [recipe], [seed], [fold])
    show(asked.folder, asked.recipes, asked.seeds, asked.only_folds or range(1, asked.folds + 1))


def path_of(folder: Path, recipe: str, seed: int, fold: int) -> Path:
    """The file of one model's answers; its weights lie beside it."""
    name = recipe.replace(":", "-").replace("=", "_")
    return folder / f"{name}-seed{seed}-fold{fold}.npz"


def _try(
    path: Path,
    recipe: str,
    learnt: Sequence[Slide],
    tested: Sequence[Slide],
    stains: dict[str, Any],
    *,
    seed: int,
    weights: str,
) -> None:
    """Train one model, ask it about the fold's slides, and keep all that."""
    began = time.process_time()
    classifier, result = train(recipe, learnt, seed=seed, weights=weights)
    found: dict[str, Any] = {"training CPU s": time.process_time() - began}
    found["history"] = json.dumps(result.as_json())
    for stain in (AS_IT_IS, *stains):
        some = []
        for slide in tested:
            shown = slide.pixels if stain == AS_IT_IS else restain(slide.pixels, stains[stain])
            some.append((*answer(classifier, shown, slide), slide.name))
        found[f"{stain}/probability"] = np.concatenate([p for p, _, _ in some])
        found[f"{stain}/label"] = np.concatenate([y for _, y, _ in some])
        found[f"{stain}/slide"] = np.concatenate([[name] * len(y) for _, y, name in some])
    safetensors.torch.save_file(classifier.state_dict(), path.with_suffix(".safetensors"))
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **found)


def show(folder: Path, recipes: Sequence[str], seeds: Sequence[int], folds: Sequence[int]) -> None:
    """Print the AUC of what is there: of all folds' windows together, and the mean of each fold's own."""
    for recipe in recipes:
        for seed in seeds:
            paths = [path for fold in folds if (path := path_of(folder, recipe, seed, fold)).exists()]
            if not paths:
                continue
            kept = [np.load(path) for path in paths]
            seconds = np.mean([float(one["training CPU s"]) for one in kept])
            for stain in sorted({name.rpartition("/")[0] for name in kept[0] if "/" in name}):
                p, y, names = (
                    np.concatenate([one[f"{stain}/{what}"] for one in kept])
                    for what in ("probability", "label", "slide")
                )
                figures = evaluate(p, y, names)
                each = [roc_auc_score(one[f"{stain}/label"], one[f"{stain}/probability"]) for one in kept]
                low, high = figures.auc_interval or (float("nan"),) * 2
                print(  # noqa: T201
                    f"{recipe:34} seed {seed} {len(kept)} folds  {stain:28} AUC {figures.auc:.3f} "
                    f"({low:.3f} to {high:.3f}), by fold {np.mean(each):.3f} "
                    f"({', '.join(f'{one:.3f}' for one in each)}), accuracy {figures.accuracy:.3f}, "
                    f"n {figures.n}, {seconds:.0f} CPU s",
                    flush=True,
                )


def settings_of(recipe: str, *, seed: int, weights: str) -> tuple[Training, int]:
    """Settings of a recipe as it is spelt on the command line, and its iterations."""
    spelt, _, iterations = recipe.rpartition("=")
    name, *changes = spelt.split(":")
    kind = "dense" if name.startswith("dense") else "window"
    table = {key: json.loads(value) for key, value in (one.split("=") for one in changes)}
    settings = Training(
        recipe=kind, weights=weights, seed=seed, input_px=int(name.removeprefix(kind)), **{kind: table}
    )
    return settings, int(iterations)


def train(recipe: str, slides: Sequence[Slide], *, seed: int, weights: str) -> tuple[Classifier, FitResult]:
    """Train on all but the slides that choose the epoch."""
    settings, iterations = settings_of(recipe, seed=seed, weights=weights)
    if settings.recipe == "window":
        return _train_windows(slides, settings, iterations)
    classifier = DenseClassifier("mobilenet_v2", input_px=settings.input_px, weights=weights, seed=seed)
    result = fit_dense(
        classifier, cut(slides), settings, held=choosing(slides), iterations=iterations, epochs=DENSE_EPOCHS
    )
    return classifier, result


def fit_dense(
    classifier: DenseClassifier,
    pieces: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.str_]],
    settings: Training,
    *,
    held: Iterable[str],
    iterations: int,
    epochs: int,
) -> FitResult:
    """Train on what `cut` gives, for so many iterations; pieces of the slides in `held` choose the epoch."""
    dense = DenseRecipe(
        **settings.dense.model_dump()
        | {"epochs": epochs, "epoch_tiles": iterations * settings.dense.batch_size // epochs}
    )
    pixels, labels, names = pieces
    judged = np.isin(names, list(held))
    material = DenseMaterial(
        pixels,
        labels,
        names,
        train_idx=np.flatnonzero(~judged),
        validation_idx=np.flatnonzero(judged),
        settings=dense,
        seed=settings.seed,
        device=CPU,
    )
    return fit(classifier, material, settings=settings.model_copy(update={"dense": dense}), device=CPU)


def _train_windows(
    slides: Sequence[Slide], settings: Training, iterations: int
) -> tuple[Classifier, FitResult]:
    """The paper's recipe on balanced windows, its 30 epochs shortened to the iterations."""
    pixels, labels, names = [], [], []
    for slide in slides:
        rows, columns = np.nonzero(slide.labels[::STRIDE_CELLS, ::STRIDE_CELLS] != Label.IGNORED)
        for row, column in zip(rows * STRIDE_CELLS, columns * STRIDE_CELLS, strict=True):
            y, x = row * STEP_PX, column * STEP_PX
            pixels.append(slide.pixels[y : y + WINDOW_PX, x : x + WINDOW_PX])
            labels.append(slide.labels[row, column])
            names.append(slide.name)
    label, judged = np.array(labels), np.isin(names, list(choosing(slides)))
    idx = []
    for side in (~judged, judged):
        nontumor, tumor = (np.flatnonzero(side & (label == one)) for one in (Label.NONTUMOR, Label.TUMOR))
        idx.append(np.sort(np.concatenate(pair_with_tumor(nontumor, tumor, seed=settings.seed))))
    batches = len(idx[0]) // settings.window.batch_size
    epochs = max(1, round(iterations / batches))
    window = WindowRecipe(
        **settings.window.model_dump()
        | {"orientations": 1, "epochs": epochs, "decay_epochs": max(1, -(-epochs // 3))}
    )
    settings = settings.model_copy(update={"window": window})
    material = WindowMaterial(
        np.stack(pixels),
        label,
        train_idx=idx[0],
        validation_idx=idx[1],
        settings=window,
        seed=settings.seed,
        device=CPU,
    )
    classifier = WindowClassifier(
        "mobilenet_v2", input_px=settings.input_px, weights=settings.weights, seed=settings.seed
    )
    return classifier, fit(classifier, material, settings=settings, device=CPU)


if __name__ == "__main__":
    main()
