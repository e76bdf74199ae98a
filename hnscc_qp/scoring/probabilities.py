"""What each stage said of every window, as an OME-TIFF beside the score map.

One pixel per window, at the window's first block, with the channels `primary` and `secondary`. float16
resolves P(tumor) to 0.0005 and better. The OME schema has no such type, so the file says `float` and holds
float32 that were rounded to it; deflated, they take little more room than float16. Tiled, with a pyramid of
maxima, as the score map.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from hnscc_qp.errors import ScoreMapError
from hnscc_qp.files import atomic_path
from hnscc_qp.scoring.score_map import TILE_PX, ScoreMap, pyramid, uuid_of

_CHANNELS = ("primary", "secondary")


def write_probabilities(path: Path, probabilities: NDArray[np.float16], score_map: ScoreMap) -> None:
    """Write (stages, window_rows, window_columns) P(tumor); NaN where a stage was not asked."""
    grid = score_map.grid
    block_um = float(grid.mpp * grid.step_px)
    stages = len(probabilities)
    levels = pyramid(probabilities.astype(np.float32))
    content = json.dumps(dict(score_map.provenance), sort_keys=True).encode() + levels[0].tobytes()
    layout: dict[str, Any] = {
        "photometric": "minisblack",
        "tile": (TILE_PX, TILE_PX),
        "compression": "zlib",
        "predictor": 3,
        "software": "hnscc-qp",
        "resolutionunit": "CENTIMETER",
    }
    with atomic_path(path) as partial, tifffile.TiffWriter(partial, ome=True) as tiff:
        tiff.write(
            levels[0],
            subifds=len(levels) - 1,
            resolution=(1e4 / block_um, 1e4 / block_um),
            metadata={
                "axes": "CYX",
                "Name": "hnscc-qp P(tumor) of windows",
                "Creator": "hnscc-qp",
                "UUID": uuid_of(content),
                "Channel": {"Name": list(_CHANNELS[:stages])},
                "PhysicalSizeX": block_um,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": block_um,
                "PhysicalSizeYUnit": "µm",
            },
            **layout,
        )
        for number, level in enumerate(levels[1:], start=1):
            per_cm = 1e4 / (block_um * 2**number)
            tiff.write(level, subfiletype=1, resolution=(per_cm, per_cm), metadata=None, **layout)


def read_probabilities(path: Path) -> NDArray[np.float16]:
    """Read what `write_probabilities` wrote: (stages, window_rows, window_columns).

    Raises:
        ScoreMapError: the file is missing or damaged.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            return np.stack([page.asarray() for page in tiff.pages]).astype(np.float16)
    except FileNotFoundError as error:
        raise ScoreMapError(
            f"there is no {path}; set probabilities = true under [scoring] and score again"
        ) from error
    except Exception as error:
        raise ScoreMapError(f"{path} is damaged ({error}); score the slide again") from error
