"""What a dense secondary does to false positives and to sensitivity, beside a stricter primary alone.

    python benchmarks/secondary.py PROJECT FOLDER [--recipe dense32=300] [--fold N] [--positive-slides]

FOLDER holds the primaries of `recipes.py`, which were trained on the other folds. The secondary learns
from the primary's false positives on the negative ones of those slides and from as many of their tumor
windows. Both are tried on the fold's slides: of blocks of 10 µm, whose 16 windows all have one label, those
with a score of 11/16 or more count as found. The primary alone is shown at P > 0.5, and at the P for which it
finds as much tumor as both stages do: a secondary helps only if it leaves less false area than that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
from heldout import Slide, choosing, cut, dense_logits, folds_of, load
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from recipes import fit_dense, path_of, settings_of

from hnscc_qp.models.dense import WINDOW_CELLS, DenseClassifier
from hnscc_qp.patches.labels import Label

VOTES = 11
MM2_OF_BLOCK = 1e-4


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=Path)
    parser.add_argument("--recipe", default="dense32=300")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument(
        "--positive-slides", action="store_true", help="false positives of positive slides' nontumor, too"
    )
    asked = parser.parse_args()
    slides = load(asked.project, asked.slides or asked.project.parent / "slides")
    tested = folds_of(slides, asked.folds)[asked.fold - 1]
    learnt = [one for one in slides if one.name not in {other.name for other in tested}]
    settings, _ = settings_of(asked.recipe, seed=asked.seed, weights="none")
    primary = DenseClassifier("mobilenet_v2", input_px=settings.input_px)
    weights = path_of(asked.folder, asked.recipe, asked.seed, asked.fold).with_suffix(".safetensors")
    primary.load_state_dict(safetensors.torch.load_file(weights))
    primary.eval()
    for slide in tested:
        margin = margins(primary, slide)
        score = scores(margin > 0)
        print(f"{slide.name}: highest score of the primary {score.max()}/16, P above ", end="")  # noqa: T201
        print(", ".join(f"{at}: {(margin > np.log(at / (1 - at))).mean():.4f}" for at in (0.5, 0.9, 0.99)))  # noqa: T201
    began = time.process_time()
    secondary = train(
        primary,
        learnt,
        asked.recipe,
        seed=asked.seed,
        iterations=asked.iterations,
        positive_slides=asked.positive_slides,
    )
    if secondary is None:
        return
    print(f"secondary: {time.process_time() - began:.0f} CPU s")  # noqa: T201
    firsts = [margins(primary, slide) for slide in tested]
    seconds = [margins(secondary, slide) for slide in tested]
    both = [(first > 0) & (second > 0) for first, second in zip(firsts, seconds, strict=True)]
    wanted = show("both stages", both, tested)
    show("primary, P > 0.5", [first > 0 for first in firsts], tested)
    low, high = 0.0, 20.0
    for _ in range(25):
        middle = (low + high) / 2
        found = measure([first > middle for first in firsts], tested)[0]
        low, high = (middle, high) if found > wanted else (low, middle)
    show(f"primary, P > {1 / (1 + np.exp(-high)):.4f}", [first > high for first in firsts], tested)


def margins(classifier: DenseClassifier, slide: Slide) -> NDArray[np.float32]:
    """(rows, columns): how much every window is rather tumor than nontumor."""
    logits = dense_logits(classifier, slide.pixels)
    return logits[1] - logits[0]


def scores(called: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Votes, 0 to 16, of every block that lies in 16 windows."""
    return sliding_window_view(called, (WINDOW_CELLS, WINDOW_CELLS)).sum(axis=(2, 3))


def measure(called: Sequence[NDArray[np.bool_]], slides: Sequence[Slide]) -> tuple[float, float, float]:
    """Share of the tumor's area found; false area per mm² of nontumor, and of negative slides' alone."""
    there = {Label.TUMOR: [0, 0], Label.NONTUMOR: [0, 0]}
    negative = [0, 0]
    for some, slide in zip(called, slides, strict=True):
        hit = scores(some) >= VOTES
        for label, counts in there.items():
            of_label = sliding_window_view(slide.labels == label, (WINDOW_CELLS,) * 2).all(axis=(2, 3))
            counts[0] += int((hit & of_label).sum())
            counts[1] += int(of_label.sum())
            if label == Label.NONTUMOR and not slide.positive:
                negative[0] += int((hit & of_label).sum())
                negative[1] += int(of_label.sum())
    (found, tumor), (false, nontumor) = there[Label.TUMOR], there[Label.NONTUMOR]
    return found / tumor, false / nontumor, negative[0] / negative[1]


def show(name: str, called: Sequence[NDArray[np.bool_]], slides: Sequence[Slide]) -> float:
    """Print what was found, and hand back the sensitivity."""
    found, false, on_negative = measure(called, slides)
    print(  # noqa: T201
        f"{name:22} sensitivity {found:.3f}, false positive {false:.4f} mm² per mm² of nontumor tissue, "
        f"{on_negative:.4f} on negative slides",
        flush=True,
    )
    return found


def train(
    primary: DenseClassifier,
    learnt: Sequence[Slide],
    recipe: str,
    *,
    seed: int,
    iterations: int,
    positive_slides: bool,
) -> DenseClassifier | None:
    """Train the secondary, from the primary's weights; None if a side has too little to learn from."""
    generator = np.random.default_rng(seed)
    held = choosing(learnt)
    masked, hard = {}, {}
    for slide in learnt:
        wanted = (slide.labels == Label.NONTUMOR) & (margins(primary, slide) > 0)
        wanted &= positive_slides or not slide.positive
        masked[slide.name] = np.where(wanted, Label.NONTUMOR, Label.IGNORED).astype(np.uint8)
        hard[slide.name] = int(wanted.sum())
    print(f"false positives to learn from: { ({k: v for k, v in hard.items() if v}) }")  # noqa: T201
    for side in (False, True):
        of_side = [slide for slide in learnt if (slide.name in held) is side]
        count = sum(hard[slide.name] for slide in of_side)
        if count < 10:
            print("too few on a side: no secondary")  # noqa: T201
            return None
        tumor = [(slide, place) for slide in of_side for place in np.argwhere(slide.labels == Label.TUMOR)]
        for index in generator.permutation(len(tumor))[:count]:
            slide, (row, column) = tumor[index]
            masked[slide.name][row, column] = Label.TUMOR
    settings, _ = settings_of(recipe, seed=seed, weights="none")
    secondary = DenseClassifier("mobilenet_v2", input_px=settings.input_px)
    secondary.load_state_dict(primary.state_dict())
    fit_dense(secondary, cut(learnt, masked), settings, held=held, iterations=iterations, epochs=3)
    return secondary


if __name__ == "__main__":
    main()
