"""Detections as we push them, and projects as bytes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import shapely

from hnscc_qp.qupath.objects import ObjectType, PathObject, RoiKind
from hnscc_qp.qupath.ownership import AI_TUMOR, detection_id
from hnscc_qp.qupath.shapes import settle


def copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def make_detection(
    number: int, *, model: str = "model-1", score: float = 0.875, with_hole: bool = False
) -> PathObject:
    """One of ours: blocks' outlines at odd, but round coordinates, as `push` reads them from GeoJSON."""
    x, y = 20.13 + 45.71 * (number % 12), 15.07 + 45.71 * (number // 12)
    roi = shapely.box(x, y, x + 39.57, y + 19.79).union(shapely.box(x, y, x + 19.79, y + 39.57))
    if with_hole:
        roi = roi.difference(shapely.box(x + 4, y + 4, x + 8.5, y + 8.5))
    roi = settle(roi)
    return PathObject(
        ObjectType.DETECTION,
        roi,
        RoiKind.GEOMETRY if with_hole else RoiKind.POLYGON,
        roi.area,
        detection_id(roi, slide_name="case", model_hash=model),
        path_class=AI_TUMOR,
        measurements={"Area µm^2": roi.area * 0.25, "AI: Max score": score},
        metadata={"AI model": model, "AI generation": "001", "AI note": "Research use only"},
    )


def tree_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a project, our own backups aside."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".hnscc-qp" not in path.parts
    }
