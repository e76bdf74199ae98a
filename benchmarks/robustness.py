"""How models that `recipes.py` trained do on slides of another scale, out of focus, and noisy; side by side.

    python benchmarks/robustness.py PROJECT FOLDER --recipes NAME=N... [--seeds 1] [--only-folds 1 2 3]

FOLDER, NAME=N, folds and seeds are those of `recipes.py`, which was run with them before: its weights are
asked once more, about its held-out slides as they look enlarged, shrunk, blurred or noisy. What they answer
is kept in FOLDER. Then each recipe's window AUC is set beside the first one's in every colouring and
condition that both have, on the same seeds and folds: the difference with its 95 % interval by slide.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
from heldout import Slide, answer, folds_of, load
from numpy.typing import NDArray
from recipes import path_of, settings_of
from scipy.ndimage import gaussian_filter
from torch import from_numpy
from torch.nn.functional import interpolate

from hnscc_qp.files import atomic_path
from hnscc_qp.geometry import STEP_PX, WINDOW_PX
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.training.intervals import paired_bootstrap, weighted_auc

Answers = tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.str_]]
"""P(tumor), label and slide of windows, those of all folds together."""


def main() -> None:
    """Parse, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--recipes", nargs="+", required=True, metavar="NAME=N", help="the first is compared with"
    )
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--only-folds", type=int, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    asked = parser.parse_args()
    numbers = asked.only_folds or range(1, asked.folds + 1)
    slides = load(asked.project, asked.project.parent / "slides")
    folds = folds_of(slides, asked.folds)
    models = [(seed, fold) for seed in asked.seeds for fold in numbers]
    for seed, fold in models:
        for recipe in asked.recipes:
            ask(path_of(asked.folder, recipe, seed, fold), recipe, folds[fold - 1])
    first, *others = ([path_of(asked.folder, one, *model) for model in models] for one in asked.recipes)
    for condition in conditions_of(first[0]):
        for recipe, paths in zip(asked.recipes, [first, *others], strict=True):
            report(recipe, condition, gathered(first, condition), gathered(paths, condition))


def ask(path: Path, recipe: str, tested: Sequence[Slide]) -> None:
    """Ask a model about its fold's slides in every condition, unless that was done."""
    kept = beside(path)
    if kept.exists():
        return
    settings, _ = settings_of(recipe, seed=1, weights="none")
    kind = DenseClassifier if settings.recipe == "dense" else WindowClassifier
    classifier = kind("mobilenet_v2", input_px=settings.input_px)
    classifier.load_state_dict(safetensors.torch.load_file(path.with_suffix(".safetensors")))
    classifier.eval()
    found = {}
    for condition, change in CONDITIONS.items():
        some = [(*answer(classifier, (changed := change(one)).pixels, changed), one.name) for one in tested]
        found[f"{condition}/probability"] = np.concatenate([p for p, _, _ in some])
        found[f"{condition}/label"] = np.concatenate([y for _, y, _ in some])
        found[f"{condition}/slide"] = np.concatenate([[name] * len(y) for _, y, name in some])
    with atomic_path(kept) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **found)


def beside(path: Path) -> Path:
    """The file of a model's answers in these conditions, beside that of `recipes.py`."""
    return path.with_name(path.name.removesuffix(".npz") + ".conditions.npz")


def zoomed(slide: Slide, factor: float) -> Slide:
    """A slide as it looks if its pixel size is wrong by so much; each window has the nearest one's label."""
    before = np.array(slide.pixels.shape[:2])
    height, width = (before * factor / STEP_PX).astype(int) * STEP_PX
    pixels = from_numpy(slide.pixels).permute(2, 0, 1)[None].float()
    shown = interpolate(pixels, (int(height), int(width)), mode="bilinear", antialias=True)
    nearest = []
    for side, old, count in zip((height, width), before, slide.labels.shape, strict=True):
        centre = (
            (np.arange(side // STEP_PX - WINDOW_PX // STEP_PX + 1) * STEP_PX + WINDOW_PX / 2) * old / side
        )
        nearest.append(((centre - WINDOW_PX / 2) / STEP_PX).round().astype(int).clip(0, count - 1))
    seen = shown[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    return Slide(slide.name, seen, slide.labels[np.ix_(*nearest)])


def blurred(slide: Slide, sigma_px: float) -> Slide:
    """A slide out of focus."""
    wide = gaussian_filter(slide.pixels.astype(np.float32), (sigma_px, sigma_px, 0))
    return Slide(slide.name, wide.round().clip(0, 255).astype(np.uint8), slide.labels)


def noisy(slide: Slide, deviation: float) -> Slide:
    """A slide with independent noise in each pixel and channel, of so many grey levels."""
    noise = np.random.default_rng(1).normal(0, deviation, slide.pixels.shape)
    return Slide(slide.name, (slide.pixels + noise).round().clip(0, 255).astype(np.uint8), slide.labels)


CONDITIONS: dict[str, Callable[[Slide], Slide]] = {
    "enlarged by 1.2": lambda slide: zoomed(slide, 1.2),
    "shrunk to 0.8": lambda slide: zoomed(slide, 0.8),
    "blurred by 1 px": lambda slide: blurred(slide, 1.0),
    "noise of 8 levels": lambda slide: noisy(slide, 8.0),
}


def conditions_of(path: Path) -> list[str]:
    """Of both files of a model: `as it is`, colourings, and the conditions here."""
    return [
        name.removesuffix("/label")
        for file in (path, beside(path))
        for name in sorted(np.load(file))
        if name.endswith("/label")
    ]


def gathered(paths: Sequence[Path], condition: str) -> Answers:
    """What all these models answered, each about the slides that it did not see."""
    files = [np.load(beside(path) if condition in CONDITIONS else path) for path in paths]
    p, y, names = (
        np.concatenate([one[f"{condition}/{what}"] for one in files])
        for what in ("probability", "label", "slide")
    )
    return p, y, names


def report(recipe: str, condition: str, first: Answers, second: Answers) -> None:
    """Print the second's AUC and what it is better by."""
    (before, truth, slides), (after, same_truth, same_slides) = first, second
    assert (truth == same_truth).all() and (slides == same_slides).all()
    auc = weighted_auc(truth, after, np.ones(len(truth), int))
    shown = f"{condition:26} {recipe:58} AUC {auc:.3f}, n {len(truth)}"
    if (after == before).all():
        print(shown, flush=True)  # noqa: T201
        return
    found = paired_bootstrap(
        slides.tolist(),
        lambda counts: weighted_auc(truth, before, counts),
        lambda counts: weighted_auc(truth, after, counts),
        resamples=500,
    )
    assert found is not None and found.interval is not None
    low, high = found.interval
    print(f"{shown}, {found.difference:+.3f} ({low:+.3f} to {high:+.3f})", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
