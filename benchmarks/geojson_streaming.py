"""What it takes to write many regions as GeoJSON.

python benchmarks/geojson_streaming.py 1000000
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import shapely

from hnscc_qp.qupath.geojson import write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathObject, RoiKind
from hnscc_qp.qupath.ownership import AI_TUMOR


def regions(count: int) -> Iterator[PathObject]:
    """Outlines of 8 corners in rows of 1000, each with what `regions` gives its own."""
    for number in range(count):
        x, y = 60.0 * (number % 1000), 60.0 * (number // 1000)
        roi = shapely.Polygon(
            [(x, y), (x + 40, y), (x + 40, y + 20), (x + 20, y + 20), (x + 20, y + 40), (x, y + 40)]
        )
        yield PathObject(
            ObjectType.DETECTION,
            roi,
            RoiKind.POLYGON,
            roi.area,
            UUID(int=number, version=5),
            path_class=AI_TUMOR,
            measurements={"Area µm^2": roi.area, "AI: Max score": 0.875},
            metadata={"AI model": "model"},
        )


def main() -> None:
    """Write, and print one line."""
    count = int(sys.argv[1])
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "regions.geojson")
        write_geojson(path, regions(count))
        size_mib = path.stat().st_size / 2**20
    seconds = time.perf_counter() - started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        f"{count} regions: {size_mib:.0f} MiB in {seconds:.0f} s, peak memory {peak_mib:.0f} MiB "
        f"({before_mib:.0f} MiB before)\n"
    )


if __name__ == "__main__":
    main()
