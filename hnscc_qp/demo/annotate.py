"""What a pathologist would have drawn on a generated node, in QuPath px."""

from __future__ import annotations

import uuid

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from hnscc_qp.demo.anatomy import Mask, Tissue
from hnscc_qp.demo.draw import MPP, DrawnNode
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind

TUMOR = PathClass(("Tumor",), (200, 0, 0))
NECROSIS = PathClass(("Necrosis",), (50, 50, 50))
STROMA = PathClass(("Stroma",), (150, 200, 150))
IGNORE = PathClass(("Ignore*",), (180, 180, 180))
AI_TUMOR = PathClass(("AI", "Tumor"), (255, 90, 0))
PATH_CLASSES = (TUMOR, STROMA, NECROSIS, IGNORE, AI_TUMOR)

_BLOCK_UM = 4
"""How finely a hand follows an outline."""
_SMALLEST_UM2 = 900
_SMALLEST_GAP_UM2 = 700
"""Narrower gaps between islands are not cut out of the outline."""


def annotate(node: DrawnNode, *, seed: int | tuple[int, ...]) -> tuple[PathObject, ...]:
    """Outline tumor generously, no tumor cell left outside; necrosis and stroma only where pure.

    Args:
        node: the drawn slide.
        seed: of the annotations' ids.
    """
    tumor_truth = np.isin(node.truth, (Tissue.TUMOR, Tissue.KERATIN, Tissue.NECROSIS))
    tumor = _tidy(_round_off(_blocks(tumor_truth, whole=False).buffer(3)), gap_um2=_SMALLEST_GAP_UM2)
    necrosis = _tidy(_round_off(_blocks(node.truth == Tissue.NECROSIS, whole=True)), island_um2=_SMALLEST_UM2)
    stroma = _round_off(_blocks(node.truth == Tissue.STROMA, whole=True)) - tumor.buffer(1)
    stroma = _tidy(stroma, island_um2=_SMALLEST_UM2)
    fold = _tidy(_round_off(_blocks(node.fold, whole=False).buffer(8)))
    rng = np.random.default_rng(seed)
    drawn = ((TUMOR, tumor), (NECROSIS, necrosis), (STROMA, stroma), (IGNORE, fold))
    return tuple(
        _annotation(polygon, path_class, rng)
        for path_class, outline in drawn
        for polygon in shapely.get_parts(outline)
    )


def _blocks(mask: Mask, *, whole: bool) -> BaseGeometry:
    """Outline, in µm, of the blocks that are of the mask as a whole, or at least in part."""
    height, width = (side // _BLOCK_UM for side in mask.shape)
    blocks = mask[: height * _BLOCK_UM, : width * _BLOCK_UM].reshape(height, _BLOCK_UM, width, _BLOCK_UM)
    rows, columns = np.nonzero(blocks.all(axis=(1, 3)) if whole else blocks.any(axis=(1, 3)))
    squares: npt.NDArray[np.object_] = shapely.box(columns, rows, columns + 1, rows + 1)
    return shapely.transform(shapely.union_all(squares), lambda points: points * _BLOCK_UM)


def _round_off(outline: BaseGeometry) -> BaseGeometry:
    """Take the corners off: outer corners lose less than 2 µm, inner corners are filled a little."""
    return outline.buffer(5).buffer(-8).buffer(3).simplify(0.7)


def _tidy(outline: BaseGeometry, *, island_um2: float = 0.0, gap_um2: float = 0.0) -> MultiPolygon:
    """Leave out islands that nobody would draw, and fill gaps that nobody would cut out."""
    return MultiPolygon(
        [
            Polygon(part.exterior, [gap for gap in part.interiors if Polygon(gap).area >= gap_um2])
            for part in shapely.get_parts(outline)
            if part.area > island_um2
        ]
    )


def _annotation(polygon_um: Polygon, path_class: PathClass, rng: np.random.Generator) -> PathObject:
    polygon = shapely.transform(polygon_um, lambda points: np.round(points / MPP, 2))
    return PathObject(
        type=ObjectType.ANNOTATION,
        roi=polygon,
        roi_kind=RoiKind.GEOMETRY if polygon.interiors else RoiKind.POLYGON,
        area_px=polygon.area,
        id=uuid.UUID(bytes=rng.bytes(16), version=4),
        path_class=path_class,
    )
