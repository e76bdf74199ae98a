"""`objects`: what is annotated in a project, as a table or as GeoJSON."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from hnscc_qp.errors import HnsccQpError
from hnscc_qp.progress import Progress
from hnscc_qp.qupath.geojson import Dialect, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathObject, walk
from hnscc_qp.qupath.project import ImageEntry, open_project
from hnscc_qp.steps.context import image_file


def list_objects(
    project_path: Path, *, out: Path | None, progress: Progress, dialect: Dialect = "0.4"
) -> dict[str, Any]:
    """Count the objects of every image by type and class; write them to `out` if given.

    Returns:
        `project`, `qupath_version`, `backend`, `images` (one row per image, type and class),
        `files` written and `failed`: image name → reason.

    Raises:
        ProjectNotFoundError, ProjectError: as `open_project`.
    """
    project = open_project(project_path)
    rows: list[dict[str, Any]] = []
    files: list[str] = []
    failed: dict[str, str] = {}
    with progress.task("reading objects", total=len(project.images), unit="images") as task:
        for image in project.images:
            objects: tuple[PathObject, ...] = ()
            try:
                objects = project.objects(image)
                rows += _rows(image, objects)
                if out is not None and objects:
                    file = image_file(out, image, ".geojson")
                    write_geojson(file, map(_with_numbers_only, objects), dialect=dialect)
                    files.append(str(file))
            except HnsccQpError as error:
                failed[image.name] = str(error)
                rows.append(_row(image, remark=str(error)))
                progress.warn(str(error))
            task.advance(note=image.name)
    return {
        "project": str(project.path),
        "qupath_version": project.qupath_version,
        "backend": project.backend,
        "notes": list(project.notes),
        "rows": rows,
        "files": files,
        "failed": failed,
    }


def _with_numbers_only(item: PathObject) -> PathObject:
    """Without NaN and infinite measurements: QuPath's way to say there is none, which JSON lacks."""
    return replace(
        item,
        measurements={name: value for name, value in item.measurements.items() if math.isfinite(value)},
        children=tuple(map(_with_numbers_only, item.children)),
    )


def _rows(image: ImageEntry, objects: tuple[PathObject, ...]) -> list[dict[str, Any]]:
    groups: dict[tuple[ObjectType, str | None], list[PathObject]] = defaultdict(list)
    for _, item in walk(objects):
        groups[item.type, str(item.path_class) if item.path_class else None].append(item)
    if not groups:
        return [_row(image, remark="no objects" if image.saved else "never saved in QuPath")]
    return [
        _row(
            image, type=str(kind), path_class=path_class, objects=len(items), area_mm2=_area_mm2(image, items)
        )
        for (kind, path_class), items in sorted(
            groups.items(), key=lambda group: (group[0][0], group[0][1] or "")
        )
    ]


def _row(image: ImageEntry, *, remark: str | None = None, **values: Any) -> dict[str, Any]:
    remarks = [text for text in (image.unsupported, remark) if text]
    return {
        "image": image.name,
        "size_px": list(image.size) if image.size else None,
        "mpp": [image.pixel_size.x, image.pixel_size.y] if image.pixel_size else None,
        "type": None,
        "path_class": None,
        "objects": 0,
        "area_mm2": None,
        "remark": "; ".join(remarks) or None,
    } | values


def _area_mm2(image: ImageEntry, items: list[PathObject]) -> float | None:
    if image.pixel_size is None:
        return None
    return image.pixel_size.area_um2(sum(item.area_px for item in items)) / 1e6
