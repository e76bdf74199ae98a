"""Cutting patches: one read per window, as is usual, against reading in blocks, on the same slides.

    python benchmarks/patches.py SLIDE [--side-mm 3] [--stride-px 40]

Two slides of the given side are made from the pixels of SLIDE (a region of tissue that OpenSlide reads), as
scanners write them: JPEG tiles, 0.25 µm/px, and levels half as large each. Every window on tissue is cut from
both. Each way runs in a process of its own, so its seconds, processor seconds and memory are its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from hnscc_qp.cli import render
from hnscc_qp.demo.slides import write_slide
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.slides.tissue import find_tissue

PIXEL = PixelSize(Mpp(0.25), Mpp(0.25))
FACTOR = 4
WINDOW = 40
Windows = tuple[np.ndarray, np.ndarray]


def make_slide(path: Path, source: Path, *, side_mm: float, shift: int) -> None:
    """A pyramid of the source's middle, mirrored again and again."""
    with openslide.OpenSlide(source) as slide:
        width, height = slide.dimensions
        size = min(width, height, 2048) // 256 * 256
        corner = ((width - size) // 2, (height - size) // 2)
        tile = np.asarray(slide.read_region(corner, 0, (size, size)).convert("RGB"))
    tile = np.roll(tile, shift, axis=(0, 1))
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]], axis=0)
    count = max(1, round(side_mm * 4000 / len(tile)))
    level = np.tile(tile, (count, count, 1))
    write_slide(path, level, mpp=PIXEL.x, levels=5)


def find_windows(path: Path, stride_px: int) -> Windows:
    """Corners, in grid px, of the windows that start on tissue."""
    slide = open_slide(path, pixel_size=PIXEL)
    grid = Grid.of_method(slide.size, PIXEL)
    tissue = find_tissue(slide, grid)
    blocks = stride_px // grid.step_px
    rows, columns = np.nonzero(tissue[: grid.window_rows : blocks, : grid.window_columns : blocks])
    x, y = columns * stride_px, rows * stride_px
    # Beyond the image one way gives white and the other black.
    inside = (x + WINDOW <= slide.size[0] // FACTOR) & (y + WINDOW <= slide.size[1] // FACTOR)
    return x[inside], y[inside]


def cut_one_by_one(path: Path, windows: Windows, out: np.ndarray, *, level: int) -> None:
    """The usual loop: `read_region` and `resize` for each window."""
    down = FACTOR // 2**level
    with openslide.OpenSlide(path) as slide:
        for number, (x, y) in enumerate(zip(*(corner.tolist() for corner in windows), strict=True)):
            place = (x * FACTOR, y * FACTOR)
            pixels = slide.read_region(place, level, (WINDOW * down, WINDOW * down)).convert("RGB")
            out[number] = np.asarray(pixels.resize((WINDOW, WINDOW), Image.Resampling.BILINEAR))


def cut_in_blocks(path: Path, windows: Windows, out: np.ndarray, *, threads: int) -> None:
    """This program's way."""
    slide = open_slide(path, pixel_size=PIXEL)
    cut_windows(slide, Grid.of_method(slide.size, PIXEL), *windows, out=out, threads=threads)


WAYS: dict[str, tuple[Callable[..., None], dict[str, int], int]] = {
    "one by one, level 0": (cut_one_by_one, {"level": 0}, 1),
    "one by one, level of 1 µm/px": (cut_one_by_one, {"level": 2}, 1),
    "in blocks, one at a time": (cut_in_blocks, {"threads": 1}, 1),
    "in blocks, two of a slide at a time": (cut_in_blocks, {"threads": 2}, 1),
    "in blocks, two slides at a time": (cut_in_blocks, {"threads": 1}, 2),
}


def measure(way: str, folder: Path) -> dict[str, float]:
    """Cut all windows of all slides in one way; pixels go to mapped files."""
    cut, options, threads = WAYS[way]
    jobs = []
    for path in sorted(folder.glob("*.tif")):
        windows = tuple(np.load(path.with_suffix(".npz")).values())
        shape = (len(windows[0]), WINDOW, WINDOW, 3)
        name = path.with_suffix(f".{list(WAYS).index(way)}.npy")
        jobs.append((path, windows, np.lib.format.open_memmap(name, mode="w+", dtype=np.uint8, shape=shape)))
    started, spent = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: cut(*job, **options), jobs))
    return {
        "windows": sum(len(out) for _, _, out in jobs),
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - spent,
        "own": _own_memory_mb(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _own_memory_mb() -> float:
    """Memory that is not of mapped files, at the end; Linux only."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def check(folder: Path) -> bool:
    """Whether both ways to read the level of 1 µm/px gave the same pixels."""
    return all(
        np.array_equal(np.load(path.with_suffix(".1.npy")), np.load(path.with_suffix(f".{number}.npy")))
        for path in folder.glob("*.tif")
        for number in range(2, len(WAYS))
    )


def main() -> None:
    """Make the slides, run every way, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--side-mm", type=float, default=3)
    parser.add_argument("--stride-px", type=int, default=40, choices=[10, 20, 40])
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        sys.stdout.write(json.dumps(measure(chosen.way, chosen.slide)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2):
            path = folder / f"{number}.tif"
            make_slide(path, chosen.slide, side_mm=chosen.side_mm, shift=100 * number)
            x, y = find_windows(path, chosen.stride_px)
            np.savez(path.with_suffix(".npz"), x=x, y=y)
        rows, first = [], None
        for way in WAYS:
            command = [sys.executable, __file__, str(folder), "--way", way]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            first = first or found
            rows.append(
                (
                    way,
                    int(found["windows"]),
                    f"{found['seconds']:.2f}",
                    f"{found['cpu']:.2f}",
                    f"{first['seconds'] / found['seconds']:.1f}",
                    f"{first['cpu'] / found['cpu']:.1f}",
                    f"{found['own']:.0f}",
                )
            )
        same = check(folder)
    slides = f"two slides of {chosen.side_mm:g} mm a side"
    render.print_table(
        f"{slides}, windows every {chosen.stride_px} px, {os.cpu_count()} cores",
        ["way", "windows", "seconds", "CPU seconds", "times faster", "by CPU", "MB besides mapped files"],
        rows,
    )
    render.print_line(f"pixels of the last four ways are {'the same' if same else 'NOT the same'}")


if __name__ == "__main__":
    main()
