"""What it takes to label every window of a slide of 100 mm², under few and under very many annotations.

    python benchmarks/labels.py

Each case runs in a process of its own; the slide is 40,000 px a side at 0.25 µm/px, all of it tissue.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from uuid import UUID

import numpy as np
from shapely.geometry import Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from hnscc_qp import study
from hnscc_qp.cli import render
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.patches.labels import Label, label_windows
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind

SIZE = (40_000, 40_000)
CLASSES = study.Classes(tumor=("Tumor",), nontumor=("Necrosis",), ignored=("Ignore*",))


def annotation(number: int, shape: BaseGeometry, path_class: str) -> PathObject:
    """One annotation."""
    return PathObject(
        ObjectType.ANNOTATION,
        shape,
        RoiKind.POLYGON,
        shape.area,
        UUID(int=number),
        path_class=PathClass((path_class,)),
    )


def wavy(radius: float, vertices: int) -> Polygon:
    """A wavy outline around the slide's middle."""
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    reach = radius * (1 + 0.05 * np.sin(40 * angle) + 0.02 * np.sin(171 * angle))
    return Polygon(np.c_[20_000 + reach * np.cos(angle), 20_000 + reach * np.sin(angle)])


def many() -> list[PathObject]:
    """50,000 discs of 65 vertices, 1 to 20 µm in radius, of three classes."""
    rng = np.random.default_rng(1)
    return [
        annotation(n, Point(*rng.uniform(0, 40_000, 2)).buffer(rng.uniform(5, 80)), name)
        for n, name in enumerate(["Tumor", "Necrosis", "Ignore*"] * 16_667)
    ][:50_000]


CASES = {
    "a tumor with necrosis": lambda: [
        annotation(1, wavy(17_000, 3000), "Tumor"),
        annotation(2, wavy(5000, 1000), "Necrosis"),
    ],
    "an outline of 1,000,000 vertices": lambda: [annotation(1, wavy(17_000, 1_000_000), "Tumor")],
    "50,000 annotations": many,
    "50,000 on one large": lambda: [annotation(60_000, box(100, 100, 39_900, 39_900), "Tumor"), *many()],
}


def measure(case: str, stride_px: int) -> dict[str, float]:
    """Label the slide once."""
    grid = Grid.of_method(SIZE, PixelSize(Mpp(0.25), Mpp(0.25)))
    objects = CASES[case]()
    started, spent = time.perf_counter(), time.process_time()
    labels = label_windows(
        objects,
        name="slide",
        size=SIZE,
        grid=grid,
        tissue=np.ones((grid.rows, grid.columns), np.bool_),
        classes=CLASSES,
        positive=True,
        settings=study.Patches(stride_px=stride_px),
    )
    return {
        "windows": len(labels.label),
        "tumor": labels.count(Label.TUMOR),
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - spent,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Run every case at the strides of patches and of dense training."""
    rows = []
    for case in CASES:
        for stride_px in (40, 10):
            command = [sys.executable, __file__, case, str(stride_px)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            cells = (f"{found[key]:.1f}" for key in ("seconds", "cpu"))
            rows.append((case, stride_px, found["windows"], found["tumor"], *cells, f"{found['peak']:.0f}"))
    render.print_table(
        "labelling a slide of 100 mm²",
        ["annotations", "stride px", "windows", "tumor", "seconds", "CPU seconds", "peak MB"],
        rows,
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
