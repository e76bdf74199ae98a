"""How well the scores of a run study agree with tumor masks, block by block.

    python benchmarks/agreement.py STUDY MASKS

MASKS holds `<slide>.mask.png` at 1 µm/px, white where there is tumor; a slide without one has none. A block
of 10 µm is tumor if most of it is. Printed for each slide: side of the split, truth, and at the study's
threshold and the paper's (11/16) the share of tumor found, the share of what was found that is tumor,
and Dice.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hnscc_qp.cli import render
from hnscc_qp.progress import SILENT
from hnscc_qp.scoring.score_map import ScoreMap, read_score_map
from hnscc_qp.scoring.threshold import votes_for
from hnscc_qp.steps import calibrate, patches, score
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context
from hnscc_qp.studyfile import load_study

PAPER_SCORE = 11 / 16


def read_mask(path: Path, score_map: ScoreMap) -> np.ndarray:
    """Blocks that are mostly tumor: (rows, columns) bool."""
    step = score_map.grid.step_px
    mask = np.zeros((score_map.grid.rows * step, score_map.grid.columns * step))
    if path.is_file():
        drawn = np.asarray(Image.open(path).convert("L")) > 127
        mask[: drawn.shape[0], : drawn.shape[1]] = drawn
    return mask.reshape(score_map.grid.rows, step, -1, step).mean(axis=(1, 3)) > 0.5


def agreement(found: np.ndarray, truth: np.ndarray) -> tuple[str, str, str]:
    """Share of the truth found, share of the found that is true, Dice."""
    both = (found & truth).sum()
    parts = ((both, truth.sum()), (both, found.sum()), (2 * both, found.sum() + truth.sum()))
    return tuple(f"{part / whole:.3f}" if whole else "-" for part, whole in parts)  # type: ignore[return-value]


def main(study: Path, masks: Path) -> None:
    """Print the table."""
    context = Context(load_study(study), progress=SILENT)
    calibrated = context.generation.need(calibrate.STEP, command="hnscc-qp calibrate")
    chosen = float(calibrated["counts"]["threshold score"])
    members = read_members(context.generation.step(patches.STEP)).by_entry
    rows = []
    for image in context.project.images:
        score_map = read_score_map(score.score_map_file(context, image))
        truth = read_mask(masks / f"{Path(image.name).stem}.mask.png", score_map)
        covered = score_map.coverage > 0
        side = members[image.entry_id].side
        at = [
            agreement((score_map.votes >= votes_for(least, score_map.max_level)) & covered, truth)
            for least in (chosen, PAPER_SCORE)
        ]
        rows.append((image.name, side, int(truth.sum()), *at[0], *at[1]))
    render.print_table(
        f"agreement by blocks of 10 µm at a score of {chosen} (chosen) and {PAPER_SCORE} (the paper's)",
        ["image", "side", "tumor blocks", "found", "true", "Dice", "found 11/16", "true 11/16", "Dice 11/16"],
        rows,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
