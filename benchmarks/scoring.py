"""How fast slides are scored, each way beside the naive one, in one run.

    python benchmarks/scoring.py SLIDE DENSE [--weights FILE] [--naive 128] [--repeats 2] [--side-mm 3]

DENSE is the folder of a trained dense primary (`generations/001/primary`). Naive is the paper's way: one
`read` a window, enlarged to 224 px, in batches of 64, of windows drawn at random from the same slide.
Exact is a window model at 64 px (its weights do not bear on its speed); dense is the given model, in 32
bits and in bfloat16. With `--side-mm` the slide is one of that size made of SLIDE's pixels, mirrored again
and again: on a small slide most of a dense tile is not wanted. All of these read the slide, find its tissue
and make the score map; the best of all repeats counts. Also said: how many windows bfloat16 calls otherwise
than 32 bits do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from patches import make_slide

from hnscc_qp.cli import render
from hnscc_qp.geometry import WINDOW_MPP, Grid
from hnscc_qp.models.cascade import AnyCascade, Cascade, make_cascade
from hnscc_qp.models.checkpoint import load_model
from hnscc_qp.models.device import choose_device
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.scoring.slide import SlideScores, score_slide
from hnscc_qp.scoring.tiles import select_windows
from hnscc_qp.slides.reader import Slide, open_slide
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Scoring


def naive(slide: Slide, cascade: Cascade, device: torch.device, count: int) -> int:
    """Score `count` windows one read at a time; how many there were."""
    grid = Grid.of_method(slide.size, slide.pixel_size)
    rows, columns = np.nonzero(select_windows(grid, find_tissue(slide, grid), min_tissue=0.0625))
    chosen = np.random.default_rng(1).choice(len(rows), min(count, len(rows)), replace=False)
    cascade.to(device)
    for start in range(0, len(chosen), 64):
        some = chosen[start : start + 64]
        windows = np.stack(
            [
                slide.read(grid.region(int(rows[i]), int(columns[i]), rows=4, columns=4), WINDOW_MPP)
                for i in some
            ]
        )
        cascade.call_tumor(torch.from_numpy(windows).permute(0, 3, 1, 2).to(device)).cpu()
    return len(chosen)


def best_of(repeats: int, work: Callable[[], object]) -> tuple[float, float, object]:
    """Fewest seconds and processor seconds of all repeats, and what the last one gave."""
    walls, cpus, given = [], [], None
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        given = work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus), given


def main() -> None:
    """Ask for what to do, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("dense", type=Path)
    parser.add_argument("--weights", default="none", help="ImageNet weights of the window models")
    parser.add_argument("--naive", type=int, default=200, help="windows of the naive way")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side-mm", type=float)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = asked.slide
        if asked.side_mm:
            path = Path(folder, "slide.tif")
            make_slide(path, asked.slide, side_mm=asked.side_mm, shift=0)
        compare(open_slide(path), asked, choose_device(asked.device))


def compare(slide: Slide, asked: argparse.Namespace, device: torch.device) -> None:
    """Time every way on a slide, and print the table."""
    dense, _ = load_model(asked.dense, recipe="dense")

    def windows_at(input_px: int) -> Cascade:
        return Cascade(WindowClassifier("mobilenet_v2", input_px=input_px, weights=asked.weights), None)

    def scored(cascade: AnyCascade, precision: str) -> Callable[[], SlideScores]:
        settings = Scoring.model_validate({"precision": precision, "probabilities": True})
        return lambda: score_slide(slide, cascade=cascade, settings=settings, device=device)

    slow = windows_at(224)
    wall, cpu, count = best_of(asked.repeats, lambda: naive(slide, slow, device, asked.naive))
    assert isinstance(count, int)
    base = count / wall, count / cpu
    rows: list[tuple[object, ...]] = [("naive, 224 px", count, f"{base[0]:.1f}", "1", f"{base[1]:.1f}", "1")]
    calls: dict[str, np.ndarray] = {}
    exact, whole = windows_at(64), make_cascade(dense, None)
    for way, cascade, precision in (
        ("exact, float32", exact, "float32"),
        ("exact, bfloat16", exact, "bfloat16"),
        ("dense, float32", whole, "float32"),
        ("dense, bfloat16", whole, "bfloat16"),
    ):
        wall, cpu, found = best_of(asked.repeats, scored(cascade, precision))
        assert isinstance(found, SlideScores) and found.probabilities is not None
        rates = found.score_map.windows / wall, found.score_map.windows / cpu
        times = [f"{rate / other:.0f}" for rate, other in zip(rates, base, strict=True)]
        rows.append((way, found.score_map.windows, f"{rates[0]:.0f}", times[0], f"{rates[1]:.0f}", times[1]))
        calls[way] = found.probabilities[0][~np.isnan(found.probabilities[0])] > 0.5
    render.print_table(
        f"{asked.slide.name} on {device}, {torch.get_num_threads()} threads",
        ["way", "windows", "windows/s", "times naive", "windows/CPU s", "times naive"],
        rows,
    )
    for mode in ("exact", "dense"):
        flips = calls[f"{mode}, float32"] != calls[f"{mode}, bfloat16"]
        render.print_line(
            f"{mode}: bfloat16 calls {flips.sum()} of {flips.size} windows otherwise ({flips.mean():.3%})"
        )


if __name__ == "__main__":
    main()
