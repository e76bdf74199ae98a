"""Hard negatives: what the primary takes for tumor on negative slides (Tang et al. 2022, §2.4)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import WINDOW_MPP, WINDOW_PX, Grid
from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.models.dense import DenseCascade, DenseClassifier
from hnscc_qp.models.networks import fold_batch_norms
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.scoring.dense import DenseScorer
from hnscc_qp.scoring.pipeline import score_tiles
from hnscc_qp.scoring.tiles import select_windows
from hnscc_qp.scoring.windows import WindowBatch, iter_windows
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Mining, Scoring


@dataclass(frozen=True, slots=True)
class MinedWindows:
    """The false positives of one slide, row by row of the scan."""

    origins: NDArray[np.int64]
    """(n, 2): x and y of the upper left corner, in grid px."""
    pixels: NDArray[np.uint8]
    """(n, 40, 40, 3)"""
    probabilities: NDArray[np.float32]
    """(n,) P(tumor), above 0.5."""
    scanned: int
    """Windows that the primary looked at."""

    @classmethod
    def none(cls) -> MinedWindows:
        """Of a slide that the primary did not look at."""
        pixels = np.empty((0, WINDOW_PX, WINDOW_PX, 3), np.uint8)
        return cls(np.empty((0, 2), np.int64), pixels, np.empty(0, np.float32), scanned=0)

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, idx: NDArray[np.intp]) -> MinedWindows:
        return MinedWindows(self.origins[idx], self.pixels[idx], self.probabilities[idx], self.scanned)


def mine_slide(
    slide: Slide,
    *,
    primary: Classifier,
    device: torch.device,
    settings: Mining,
    scoring: Scoring,
    progress: Progress = SILENT,
) -> MinedWindows:
    """Collect the windows of a negative slide that the primary calls tumor.

    The windows lie on the grid of scoring, only sparser, and need as much tissue.

    Raises:
        MissingMppError: its pixel size is not known.
        UnusableSlideError: it is too coarse.
        SlideReadError: it can't be decoded.
    """
    require_mpp(slide, WINDOW_MPP)
    grid = Grid.of_method(slide.size, slide.pixel_size)
    tissue = find_tissue(slide, grid)
    stride_blocks = settings.stride_px // grid.step_px
    selected = select_windows(grid, tissue, min_tissue=scoring.min_tissue, stride_blocks=stride_blocks)
    if isinstance(primary, DenseClassifier):
        mined, lost, reason = _mine_densely(slide, grid, selected, primary, device=device, progress=progress)
    else:
        unreadable: list[tuple[int, SlideReadError]] = []
        batches = iter_windows(
            slide,
            grid,
            tissue=tissue,
            min_tissue=scoring.min_tissue,
            batch_size=scoring.batch_size,
            on_unreadable=lambda count, error: unreadable.append((count, error)),
            stride_blocks=stride_blocks,
        )
        with progress.task(slide.name, int(selected.sum()), unit="windows") as task:
            mined = _mine_windows(batches, grid, primary, device=device, advance=task.advance)
        lost = sum(count for count, _ in unreadable)
        reason = str(unreadable[0][1]) if unreadable else None
    if lost:
        if not mined.scanned:
            raise SlideReadError(f"{slide.name}: none of its {lost} windows can be decoded: {reason}")
        progress.warn(
            f"{slide.name}: {lost} of {lost + mined.scanned} windows can't be decoded and are not mined "
            f"({reason}); scan the slide again"
        )
    return mined[thin(mined.origins, mined.probabilities, min_distance_px=settings.min_distance_px)]


def thin(
    origins: NDArray[np.int64], probabilities: NDArray[np.float32], *, min_distance_px: int
) -> NDArray[np.intp]:
    """Choose windows of which no two are nearer than so much; the surest first, of equals the first.

    Returns:
        Indices, rising.
    """
    if not min_distance_px or not len(origins):
        return np.arange(len(origins))
    tree = cKDTree(origins)
    kept = np.ones(len(origins), np.bool_)
    for index in np.argsort(-probabilities, kind="stable"):
        if kept[index]:
            # Those at just this distance stay; positions are whole numbers.
            near = tree.query_ball_point(origins[index], min_distance_px - 1e-6)
            kept[near] = False
            kept[index] = True
    return np.flatnonzero(kept)


def _mine_windows(
    batches: Generator[WindowBatch, None, None],
    grid: Grid,
    primary: Classifier,
    *,
    device: torch.device,
    advance: Callable[[float], None],
) -> MinedWindows:
    """All windows of the batches, each seen by itself."""
    network = fold_batch_norms(primary).to(device)
    found, scanned = [MinedWindows.none()], 0
    with closing(batches), torch.inference_mode():
        for batch in batches:
            logits = network(torch.from_numpy(batch.pixels).to(device)).float().cpu()
            tumor = (logits[:, 1] > logits[:, 0]).numpy()
            corners = np.stack([batch.columns, batch.rows], axis=1)[tumor] * grid.step_px
            likely = (logits / primary.temperature).softmax(dim=1)[:, 1].numpy()[tumor]
            pixels = batch.pixels.transpose(0, 2, 3, 1)[tumor]
            found.append(MinedWindows(corners.astype(np.int64), pixels, likely, len(batch)))
            scanned += len(batch)
            advance(len(batch))
    return MinedWindows(
        np.concatenate([one.origins for one in found]),
        np.concatenate([one.pixels for one in found]),
        np.concatenate([one.probabilities for one in found]),
        scanned,
    )


def _mine_densely(
    slide: Slide,
    grid: Grid,
    selected: NDArray[np.bool_],
    primary: DenseClassifier,
    *,
    device: torch.device,
    progress: Progress,
) -> tuple[MinedWindows, int, str | None]:
    """All selected windows as scoring sees them; how many can't be decoded, and why.

    By PyTorch in 32 bits: what is mined does not depend on what else is installed.
    """
    stages = DenseCascade(primary, None).stages(runtime="torch", device=device, bfloat16=False)
    scored = score_tiles(
        slide,
        grid,
        selected,
        scorer=DenseScorer(stages, grid),
        temperatures=(primary.temperature,),
        settings=Scoring(probabilities=True),
        device=device,
        progress=progress,
        as_type=np.float32,
    )
    assert scored.probabilities is not None
    rows, columns = np.nonzero(scored.called)
    origins = np.stack([columns, rows], axis=1).astype(np.int64) * grid.step_px
    pixels = cut_windows(slide, grid, origins[:, 0], origins[:, 1])
    likely = scored.probabilities[0, rows, columns].astype(np.float32)
    return (
        MinedWindows(origins, pixels, likely, int(scored.evaluated.sum())),
        int(scored.lost.sum()),
        scored.reason,
    )


def why_no_secondary(false_positives: Mapping[str, int], settings: Mining) -> str | None:
    """Say why the cascade must be the primary alone; None if there is enough for a secondary.

    Args:
        false_positives: how many on each side, training and validation.
        settings: how many are enough.
    """
    total = sum(false_positives.values())
    if total < settings.min_false_positives:
        return (
            f"the primary has {total} false positives on the negative slides, fewer than the "
            f"{settings.min_false_positives} a secondary needs: the cascade is the primary alone"
        )
    for side, count in false_positives.items():
        if not count:
            return (
                f"the primary has no false positives on the negative slides for {side}: "
                "the cascade is the primary alone"
            )
    return None


def pair_with_tumor(
    false_positive_idx: NDArray[np.integer[Any]], tumor_idx: NDArray[np.integer[Any]], *, seed: int
) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
    """Draw as many tumor patches as there are false positives, on one side of the split.

    Where there are fewer tumor patches, as many false positives are drawn as there are of them.

    Returns:
        False positives and tumor patches, equally many, in their given order; the same for the same seed.
    """
    count = min(len(false_positive_idx), len(tumor_idx))
    generator = np.random.default_rng(seed)

    def draw(idx: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        return idx[np.sort(generator.choice(len(idx), count, replace=False))]

    return draw(false_positive_idx), draw(tumor_idx)
