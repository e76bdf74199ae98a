"""Votes and coverage of a slide's blocks, and the OME-TIFF that keeps them.

The file is an image of one pixel per block (10 µm) with the channels `votes`, `coverage` and `unreadable`,
tiled and with a pyramid, so that QuPath (through Bio-Formats) shows it beside its slide. Lower levels of the
pyramid hold the LARGEST value of each 2 × 2 pixels: a lesion of one block stays visible from afar.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray

from hnscc_qp.errors import ScoreMapError
from hnscc_qp.files import atomic_path
from hnscc_qp.geometry import Grid, Mpp, PixelSize

_NAMESPACE = "hnscc-qp/score-map/1"
_UUID_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, _NAMESPACE)
TILE_PX = 256
V = TypeVar("V", np.uint8, np.float32)
_CHANNELS = ("votes", "coverage", "unreadable")


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMap:
    """What the windows said of every block of a slide (Tang et al. 2022, §2.5)."""

    votes: NDArray[np.uint8]
    """(rows, columns): windows over the block that were called tumor, 0..16."""
    coverage: NDArray[np.uint8]
    """(rows, columns): windows over the block that were looked at; 16 in tissue, fewer at the border."""
    grid: Grid
    image_size_px: tuple[int, int]
    """Width and height of the image in QuPath px; the last blocks may reach beyond it."""
    windows: int
    """Windows that were looked at."""
    unreadable: int = 0
    """Windows that could not be decoded, and so have no vote."""
    lost: NDArray[np.uint8] | None = None
    """(rows, columns): windows over the block that could not be decoded; it tells damage from glass, where
    coverage is 0 alike. None: none anywhere."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What it was made of: the slide's name, hashes of the models, notes."""

    def __post_init__(self) -> None:
        for values in (self.votes, self.coverage, self.votes if self.lost is None else self.lost):
            if values.dtype != np.uint8 or values.shape != (self.grid.rows, self.grid.columns):
                raise ScoreMapError(
                    f"a score map of {self.grid.rows} × {self.grid.columns} blocks can't hold "
                    f"{values.dtype} values of shape {values.shape}; score the slide again"
                )
        if (self.votes > self.coverage).any() or (self.coverage > self.max_level).any():
            raise ScoreMapError("a score map has more votes than windows; score the slide again")

    @property
    def max_level(self) -> int:
        """Votes of a block that all of its windows call tumor: 16."""
        return self.grid.window_blocks**2

    @property
    def max_votes(self) -> int:
        """The largest number of votes in the slide; 0 if nothing was looked at."""
        return int(self.votes.max(initial=0))


def write_score_map(path: Path, score_map: ScoreMap) -> None:
    """Write an OME-TIFF; the same score map always gives the same bytes."""
    grid = score_map.grid
    facts = {
        "grid": asdict(grid),
        "image_size_px": list(score_map.image_size_px),
        "windows": score_map.windows,
        "unreadable": score_map.unreadable,
        "provenance": dict(score_map.provenance),
    }
    # As JSON every value reads back exactly, names that XML can't hold included.
    values = {key: json.dumps(value, sort_keys=True, allow_nan=False) for key, value in facts.items()}
    lost = np.zeros_like(score_map.votes) if score_map.lost is None else score_map.lost
    levels = pyramid(np.stack([score_map.votes, score_map.coverage, lost]))
    content = json.dumps(values, sort_keys=True).encode() + levels[0].tobytes()
    block_um = float(grid.mpp * grid.step_px)
    layout: dict[str, Any] = {
        "photometric": "minisblack",
        "tile": (TILE_PX, TILE_PX),
        "compression": "zlib",
        "resolutionunit": "CENTIMETER",
        "software": "hnscc-qp",
    }
    with atomic_path(path) as partial, tifffile.TiffWriter(partial, ome=True) as tiff:
        tiff.write(
            levels[0],
            subifds=len(levels) - 1,
            resolution=(1e4 / block_um, 1e4 / block_um),
            metadata={
                "axes": "CYX",
                "Name": "hnscc-qp score map",
                "Creator": "hnscc-qp",
                "UUID": uuid_of(content),
                "Channel": {"Name": list(_CHANNELS)},
                "PhysicalSizeX": block_um,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": block_um,
                "PhysicalSizeYUnit": "µm",
                "MapAnnotation": {"Namespace": _NAMESPACE, **values},
            },
            **layout,
        )
        for level, values_of_level in enumerate(levels[1:], start=1):
            per_cm = 1e4 / (block_um * 2**level)
            tiff.write(values_of_level, subfiletype=1, resolution=(per_cm, per_cm), metadata=None, **layout)


def read_score_map(path: Path) -> ScoreMap:
    """Read what `write_score_map` wrote.

    Raises:
        ScoreMapError: the file is missing, damaged, of an older version, or not a score map of ours.
    """
    remedy = "score the slide again (hnscc-qp score)"
    try:
        with tifffile.TiffFile(path) as tiff:
            facts = _facts(tiff.ome_metadata)
            if facts is None:
                raise ScoreMapError(f"{path} is not a score map of hnscc-qp; {remedy}")
            if len(tiff.pages) < len(_CHANNELS):
                raise ScoreMapError(
                    f"{path} is a score map of an older version, which did not tell damage "
                    f"from glass; {remedy}"
                )
            votes, coverage, lost = (page.asarray() for page in tiff.pages[: len(_CHANNELS)])
        grid = facts["grid"]
        return ScoreMap(
            votes=votes,
            coverage=coverage,
            grid=Grid(
                rows=grid["rows"],
                columns=grid["columns"],
                step_px=grid["step_px"],
                window_px=grid["window_px"],
                mpp=Mpp(grid["mpp"]),
                pixel_size=PixelSize(**grid["pixel_size"]),
            ),
            image_size_px=(facts["image_size_px"][0], facts["image_size_px"][1]),
            windows=facts["windows"],
            unreadable=facts["unreadable"],
            lost=lost if lost.any() else None,
            provenance=facts["provenance"],
        )
    except FileNotFoundError as error:
        raise ScoreMapError(f"there is no score map {path}; {remedy}") from error
    except ScoreMapError:
        raise
    # A damaged TIFF fails in many ways: in tifffile, in the codec, in the XML, in a missing value.
    except Exception as error:
        raise ScoreMapError(f"{path} is damaged ({error}); {remedy}") from error


def uuid_of(content: bytes) -> str:
    """Of an OME-TIFF, by what it holds: a random one would make each file another."""
    return str(uuid.uuid5(_UUID_SPACE, hashlib.sha256(content).hexdigest()))


def pyramid(level: NDArray[V]) -> list[NDArray[V]]:
    """Halve (channels, rows, columns) by the largest of 2 × 2 until it fits one tile; NaN is below all."""
    levels = [level]
    while max(level.shape[1:]) > TILE_PX:
        _, rows, columns = level.shape
        even = np.pad(level, ((0, 0), (0, rows % 2), (0, columns % 2)), mode="edge")
        blocks = even.reshape(len(even), even.shape[1] // 2, 2, even.shape[2] // 2, 2)
        level = np.fmax.reduce(np.fmax.reduce(blocks, axis=4), axis=2)
        levels.append(level)
    return levels


def _facts(ome_xml: str | None) -> dict[str, Any] | None:
    if ome_xml is None:
        return None
    for annotation in ET.fromstring(ome_xml).iterfind(".//{*}MapAnnotation"):
        if annotation.get("Namespace") == _NAMESPACE:
            return {item.attrib["K"]: json.loads(item.text or "") for item in annotation.iterfind(".//{*}M")}
    return None
