"""Drawn annotations."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from shapely.geometry.base import BaseGeometry

from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind

Annotate = Callable[..., PathObject]


@pytest.fixture
def annotate() -> Annotate:
    """Make an annotation; its id follows from its number so that tests can name it."""
    made = 0

    def make(
        shape: BaseGeometry,
        path_class: str | None,
        *,
        type: ObjectType = ObjectType.ANNOTATION,
        children: tuple[PathObject, ...] = (),
        number: int | None = None,
    ) -> PathObject:
        nonlocal made
        made += 1
        return PathObject(
            type=type,
            roi=shape,
            roi_kind=RoiKind.POLYGON,
            area_px=shape.area,
            id=uuid.UUID(int=made if number is None else number),
            path_class=PathClass(tuple(path_class.split(": "))) if path_class else None,
            children=children,
        )

    return make
