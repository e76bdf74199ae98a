"""How long the paper's whole primary training takes on this machine's GPU, and at what share of its peak.

    python benchmarks/gpu_training.py [--iterations 42000] [--batch-size 128] [--input-px 64]

Times the training loop itself on noise: the time doesn't depend on what the pixels show. Prints iterations/s,
the time for 42,000 iterations (target on one H100: under 3 minutes), and the floating point operations per
second against the card's peak, if you name it (`--peak-tflops 989` is an H100's, bfloat16 without sparsity).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.device import choose_device
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.study import DenseRecipe, Training, WindowRecipe
from hnscc_qp.training.compute import chosen_precision
from hnscc_qp.training.fit import fit
from hnscc_qp.training.material import DenseMaterial, Material, WindowMaterial

PAPER_ITERATIONS = 42_000


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=("window", "dense"), default="window")
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--iterations", type=int, default=PAPER_ITERATIONS)
    parser.add_argument("--batch-size", type=int, default=128, help="patches, or tiles if dense")
    parser.add_argument("--input-px", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peak-tflops", type=float)
    asked = parser.parse_args()
    device = choose_device(asked.device)
    settings = Training.model_validate(
        {
            "recipe": asked.recipe,
            "network": asked.network,
            "weights": "none",
            "input_px": asked.input_px,
            "window": WindowRecipe(batch_size=asked.batch_size, epochs=1, orientations=1),
            "dense": DenseRecipe(
                batch_size=asked.batch_size, epochs=1, epoch_tiles=asked.iterations * asked.batch_size
            ),
        }
    )
    kind = DenseClassifier if asked.recipe == "dense" else WindowClassifier
    classifier = kind(asked.network, input_px=asked.input_px)
    flops = flops_per_iteration(classifier, asked.recipe, asked.batch_size)
    warm = noise(settings, iterations=20, device=device)
    fit(classifier, warm, settings=settings, device=device)  # kernels are chosen and memory is taken
    material = noise(settings, iterations=asked.iterations, device=device)
    began = time.perf_counter()
    result = fit(classifier, material, settings=settings, device=device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    speed = result.history[0].iterations_per_second
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{name}, {chosen_precision(device, settings)}, {asked.network}, {asked.recipe}")  # noqa: T201
    print(f"{material.batches} iterations in {time.perf_counter() - began:.1f} s, judging included")  # noqa: T201
    print(f"{speed:.1f} iterations/s: {PAPER_ITERATIONS / speed / 60:.2f} min for {PAPER_ITERATIONS}")  # noqa: T201
    reached = speed * flops / 1e12
    share = f", {reached / asked.peak_tflops:.1%} of the peak" if asked.peak_tflops else ""
    print(f"{flops / 1e9:.1f} GFLOP per iteration, {reached:.2f} TFLOP/s{share}")  # noqa: T201


def noise(settings: Training, *, iterations: int, device: torch.device) -> Material:
    """Random pixels for so many batches in one epoch, and a few to judge by."""
    rng = np.random.default_rng(1)
    if settings.recipe == "window":
        # As many patches as the paper trained on, at most; more iterations show them in more orientations.
        batch = settings.window.batch_size
        orientations = min(8, max(1, -(-iterations * batch // 22_400)))
        count = max(batch, iterations * batch // orientations)
        stored = min(count, 22_400)
        pixels = rng.integers(0, 256, (stored + 128, 40, 40, 3), np.uint8)
        labels = np.arange(stored + 128) % 2
        idx = np.resize(np.arange(stored), count)
        recipe = settings.window.model_copy(update={"orientations": orientations})
        judged = np.arange(stored, stored + 128)
        return WindowMaterial(
            pixels, labels, train_idx=idx, validation_idx=judged, settings=recipe, seed=1, device=device
        )
    pixels = rng.integers(0, 256, (34, 480, 480, 3), np.uint8)
    labels = rng.integers(0, 2, (34, 45, 45)).astype(np.uint8)
    recipe = settings.dense.model_copy(update={"epoch_tiles": iterations * settings.dense.batch_size})
    return DenseMaterial(
        pixels,
        labels,
        np.array(["A", "B"] * 17),
        train_idx=np.arange(32),
        validation_idx=np.arange(32, 34),
        settings=recipe,
        seed=1,
        device=device,
    )


def flops_per_iteration(classifier: torch.nn.Module, recipe: str, batch_size: int) -> float:
    """Of a forward and a backward pass: three times a forward pass, multiplications and additions counted."""
    side = 240 if recipe == "dense" else 40
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        classifier.eval()(torch.zeros((1, 3, side, side), dtype=torch.uint8))
    return float(3 * batch_size * counter.get_total_flops())


if __name__ == "__main__":
    main()
