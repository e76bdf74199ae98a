"""Memory of scoring a slide of 100,000 × 100,000 px, which is drawn: tissue in its middle, sparse around.

    python benchmarks/large_slide.py SLIDE [--side-px 100000] [--dense-mm 4] [--runtime torch|openvino]

SLIDE gives the pixels of one tile, which is compressed once. Tiles of the dense square in the middle hold it,
and one of 256 elsewhere; all others are glass. The dense primary is MobileNet-v2 from scratch: memory
does not depend on its weights. Printed: windows, seconds, and the most memory that the process held.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import tifffile
import torch

from hnscc_qp.cli import render
from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.models.cascade import make_cascade
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.scoring.slide import score_slide
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.study import Scoring

TILE = 512
MPP = 0.5


def draw(path: Path, source: Path, *, side_px: int, dense_mm: float) -> None:
    """Write the pyramid: levels of 0.5, 1, 2, ... µm/px, each of the same two compressed tiles."""
    with openslide.OpenSlide(source) as slide:
        middle = [(side - TILE) // 2 for side in slide.dimensions]
        tissue = np.asarray(slide.read_region((middle[0], middle[1]), 0, (TILE, TILE)).convert("RGB"))
    glass = np.full_like(tissue, 245)
    packed = [imagecodecs.jpeg_encode(pixels, level=80) for pixels in (glass, tissue)]

    def tiles(level: int) -> Iterator[bytes]:
        count = -(-(side_px >> level) // TILE)
        reach = dense_mm * 500 / MPP / 2**level / TILE
        for row in range(count):
            for column in range(count):
                inside = max(abs(row - count / 2), abs(column - count / 2)) < reach
                yield packed[inside or (row * count + column) % 256 == 7]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(8):
            side = side_px >> level
            per_cm = 1e4 / (MPP * 2**level)
            tiff.write(
                tiles(level),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                subfiletype=1 if level else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def main() -> None:
    """Draw, score, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--side-px", type=int, default=100_000)
    parser.add_argument("--dense-mm", type=float, default=4)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", default="float32")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.tif")
        draw(path, asked.slide, side_px=asked.side_px, dense_mm=asked.dense_mm)
        slide = open_slide(path, pixel_size=PixelSize(Mpp(MPP), Mpp(MPP)))
        cascade = make_cascade(DenseClassifier("mobilenet_v2", input_px=64).eval(), None)
        settings = Scoring.model_validate({"runtime": asked.runtime, "precision": asked.precision})
        began = time.perf_counter()
        found = score_slide(slide, cascade=cascade, settings=settings, device=torch.device("cpu")).score_map
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    render.print_line(
        f"{slide.size[0]} × {slide.size[1]} px, {found.windows} windows in {seconds:.0f} s "
        f"({found.windows / seconds:.0f}/s), {found.provenance['runtime']}: at most {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
