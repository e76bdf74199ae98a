"""Studies whose score maps are drawn: what comes after scoring can be tested without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from studies import SIZE, write_study

from hnscc_qp.files import sha256_file, write_json
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.progress import SILENT
from hnscc_qp.scoring.score_map import ScoreMap, write_score_map
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.patches import make_patches
from hnscc_qp.steps.scorejob import score_map_file
from hnscc_qp.studyfile import load_study

GRID = Grid.of_method(SIZE, PixelSize(Mpp(1.0), Mpp(1.0)))
Votes = Mapping[tuple[int, int, int, int], int]
"""(first row, first column, last row + 1, last column + 1) of blocks → votes."""
TUMOR: tuple[int, int, int, int] = (8, 8, 24, 24)
"""The blocks of the tumor of every positive slide."""


def drawn_map(votes: Votes) -> ScoreMap:
    """A score map of rectangles, looked at in the tissue of `studies.write_slide`."""
    array = np.zeros((GRID.rows, GRID.columns), np.uint8)
    for (top, left, bottom, right), number in votes.items():
        array[top:bottom, left:right] = number
    coverage = np.zeros_like(array)
    coverage[2:-2, 2:-2] = 16
    return ScoreMap(array, coverage, GRID, SIZE, windows=100, provenance={"primary model": "0" * 64})


def write_scored(folder: Path, maps: Mapping[str, Votes], *, study: Path | None = None) -> Path:
    """A study with the given score maps, of six slides if none is given; the others are scored as nothing."""
    study = study or write_study(folder)
    context = Context(load_study(study), progress=SILENT)
    make_patches(context)
    outputs = {}
    for image in context.project.images:
        path = score_map_file(context, image)
        write_score_map(path, drawn_map(maps.get(image.name, {})))
        outputs[image.entry_id] = sha256_file(path)
    manifest = {"step": "score", "key": "", "failed": {}, "outputs": outputs, "notes": [], "counts": {}}
    write_json(context.generation.step("score") / "manifest.json", manifest)
    return study
