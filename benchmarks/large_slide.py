"""Memory of scoring a slide of 100,000 × 100,000 px, which is drawn: tissue in its middle, sparse around.

    python benchmarks/large_slide.py SLIDE [--side-px 100000] [--dense-mm 3] [--dense-height-mm 3]
        [--sparse 256] [--primary FOLDER] [--two-stages] [--runtime torch|onnxruntime] [--precision bfloat16]
        [--stride 5] [--json]

SLIDE gives the pixels of one tile. Tiles of the dense rectangle in the middle hold it, and one of `--sparse`
elsewhere (0: none); all others are glass. What waits for the next row of tiles grows with the rectangle's
width, so a wide one needs the most memory. The primary is that of the folder, or MobileNet-v2 from scratch:
memory does not depend on its weights. With two stages the secondary is the same network again, and the
primary's last bias is set so that it calls about half of the tissue's windows, which the secondary is
asked for. Probabilities are kept, as they are on demand. Printed: windows, seconds, and the most memory that
the process held, beside what it held before scoring (programs loaded, slide drawn).
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import tifffile
import torch
from PIL import Image

from hnscc_qp.cli import render
from hnscc_qp.geometry import WINDOW_MPP, Mpp, PixelSize, Region
from hnscc_qp.models.cascade import make_cascade
from hnscc_qp.models.checkpoint import load_model
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.device import choose_device
from hnscc_qp.scoring.slide import score_slide
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.study import Scoring

TILE = 512
MPP = 0.5


def draw(path: Path, source: Path, *, side_px: int, dense_mm: tuple[float, float], sparse: int) -> None:
    """Write the pyramid: levels of 0.5, 1, 2, ... µm/px, of few compressed tiles again and again."""
    with openslide.OpenSlide(source) as slide:
        middle = [(side - TILE) // 2 for side in slide.dimensions]
        tissue = slide.read_region((middle[0], middle[1]), 0, (TILE, TILE)).convert("RGB")
    glass = Image.new("RGB", (TILE, TILE), (245, 245, 245))
    count = -(-side_px // TILE)
    rows, columns = np.indices((count, count))
    width, height = (side * 500 / MPP / TILE for side in dense_mm)
    is_tissue = (abs(columns + 0.5 - count / 2) < width) & (abs(rows + 0.5 - count / 2) < height)
    if sparse:
        is_tissue |= (rows * count + columns) % sparse == 7
    packed: dict[bytes, bytes] = {}

    def tiles(level: int) -> Iterator[bytes]:
        """Of a level, each made of 2^level × 2^level of the first one."""
        many, side = 2**level, TILE >> level
        small = tissue.reduce(many)
        for row in range(0, count, many):
            for column in range(0, count, many):
                part = is_tissue[row : row + many, column : column + many]
                key = repr((level, part.shape, part.tobytes())).encode()
                if key not in packed:
                    whole = glass.copy()
                    for down, right in np.argwhere(part):
                        whole.paste(small, (int(right) * side, int(down) * side))
                    packed[key] = imagecodecs.jpeg_encode(np.asarray(whole), level=80)
                yield packed[key]

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


def resident_mib() -> float:
    """The most that this process held until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def calling_half(network: DenseClassifier, path: Path) -> DenseClassifier:
    """A copy whose last bias is such that it calls half of the windows in the slide's middle tumor."""
    slide = open_slide(path, pixel_size=PixelSize(Mpp(MPP), Mpp(MPP)))
    middle = [side / 2 for side in slide.size]
    pixels = slide.read(Region(middle[0], middle[1], 640, 640), WINDOW_MPP)
    network = copy.deepcopy(network).eval()
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    with torch.no_grad():
        last.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return network


def main() -> None:
    """Draw, score, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--side-px", type=int, default=100_000)
    parser.add_argument("--dense-mm", type=float, default=3)
    parser.add_argument("--dense-height-mm", type=float, help="default: a square")
    parser.add_argument("--sparse", type=int, default=256)
    parser.add_argument("--primary", type=Path)
    parser.add_argument("--two-stages", action="store_true")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--stride", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.tif")
        dense_mm = asked.dense_mm, asked.dense_height_mm or asked.dense_mm
        draw(path, asked.slide, side_px=asked.side_px, dense_mm=dense_mm, sparse=asked.sparse)
        slide = open_slide(path, pixel_size=PixelSize(Mpp(MPP), Mpp(MPP)))
        primary: DenseClassifier = DenseClassifier("mobilenet_v2", input_px=64).eval()
        if asked.primary:
            primary, _ = load_model(asked.primary, recipe="dense")
        if asked.two_stages:
            primary = calling_half(primary, path)
        cascade = make_cascade(primary, primary if asked.two_stages else None)
        settings = Scoring.model_validate(
            {
                "runtime": asked.runtime,
                "precision": asked.precision,
                "stride_px": asked.stride,
                "probabilities": True,
            }
        )
        before, began = resident_mib(), time.perf_counter()
        scores = score_slide(slide, cascade=cascade, settings=settings, device=choose_device("cpu"))
        seconds = time.perf_counter() - began
    assert scores.probabilities is not None
    found, peak = scores.score_map, resident_mib()
    told = {
        "size": list(slide.size),
        "windows": found.windows,
        "of both stages": int((~np.isnan(scores.probabilities[-1])).sum()),
        "stages": len(scores.probabilities),
        "runtime": found.provenance["runtime"],
        "seconds": seconds,
        "before_mib": before,
        "peak_mib": peak,
    }
    if asked.json:
        sys.stdout.write(json.dumps(told) + "\n")
        return
    width, height = slide.size
    render.print_line(
        f"{width} × {height} px, {told['stages']} stages, {found.windows} windows ({told['of both stages']} "
        f"seen by all stages) in {seconds:.0f} s ({found.windows / seconds:.0f}/s), {told['runtime']}, "
        f"{asked.precision}: at most {peak:.0f} MiB, {before:.0f} before scoring"
    )


if __name__ == "__main__":
    main()
