"""What torch.compile does for a training on this machine: seconds to compile, and seconds an iteration.

    python benchmarks/compiled_training.py [--recipe dense] [--iterations 15] [--threads 1]

An iteration is that of the loop: forward, cross-entropy of every window, backward, AdamW's step, on noise.
The cache of compiled code is empty at the start, as it is on a user's machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time

import numpy as np
import torch
from gpu_training import noise
from torch import nn

from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.memory import held_memory
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.study import Training
from hnscc_qp.training.material import Batch

CPU = torch.device("cpu")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=("window", "dense"), default="dense")
    parser.add_argument("--input-px", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    settings = Training(recipe=asked.recipe, weights="none", input_px=asked.input_px)
    batch = next(iter(noise(settings, iterations=1, device=CPU).epoch(1)))
    kind = DenseClassifier if asked.recipe == "dense" else WindowClassifier
    with tempfile.TemporaryDirectory() as cache, held_memory(CPU):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for name, compiled in (("as it is", False), ("compiled", True)):
            torch.manual_seed(1)
            classifier = kind("mobilenet_v2", input_px=asked.input_px).train()
            network = torch.compile(classifier) if compiled else classifier
            first, each, processor, loss = timed(network, classifier, batch, asked.iterations)
            print(  # noqa: T201
                f"{asked.recipe}, {asked.input_px} px, {asked.threads} thread(s), {name}: first iteration "
                f"{first:.1f} s, then {np.median(each):.3f} s ({min(each):.3f} to {max(each):.3f}), "
                f"{processor / asked.iterations:.3f} processor s each, loss of the first {loss:.4f}",
                flush=True,
            )


def timed(
    network: nn.Module, classifier: nn.Module, batch: Batch, iterations: int
) -> tuple[float, list[float], float, float]:
    """Seconds of the first iteration, of each that follows, and the processor's for all of those; a loss."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    seconds, losses, began_processor = [], [], 0.0
    for number in range(iterations + 1):
        if number == 1:
            began_processor = _processor_seconds()
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(batch.pixels).float(), batch.target)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    return seconds[0], seconds[1:], _processor_seconds() - began_processor, losses[0]


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
