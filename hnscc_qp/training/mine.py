"""Hard negatives: what the primary takes for tumor on negative slides (Tang et al. 2022, §2.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import WINDOW_MPP, WINDOW_PX, Grid
from hnscc_qp.models.networks import WindowClassifier, fold_batch_norms
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.scoring.windows import iter_windows, select_windows
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Mining, Scoring


@dataclass(frozen=True, slots=True)
class MinedWindows:
    """The false positives of one slide, in the order of the scan."""

    origins: NDArray[np.int64]
    """(n, 2): x and y of the upper left corner, in grid px."""
    pixels: NDArray[np.uint8]
    """(n, 40, 40, 3)"""
    probabilities: NDArray[np.float32]
    """(n,) P(tumor), above 0.5."""
    scanned: int
    """Windows that the primary looked at."""

    def __len__(self) -> int:
        return len(self.origins)


def mine_slide(
    slide: Slide,
    *,
    primary: WindowClassifier,
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
    wanted = select_windows(grid, tissue, min_tissue=scoring.min_tissue, stride_blocks=stride_blocks).sum()
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
    origins = [np.empty((0, 2), np.int64)]
    pixels = [np.empty((0, WINDOW_PX, WINDOW_PX, 3), np.uint8)]
    probabilities = [np.empty(0, np.float32)]
    scanned = 0
    network = fold_batch_norms(primary).to(device)
    with progress.task(slide.name, int(wanted), unit="windows") as task, torch.inference_mode():
        for batch in batches:
            logits = network(torch.from_numpy(batch.pixels).to(device)).float().cpu()
            tumor = (logits[:, 1] > logits[:, 0]).numpy()
            corners = np.stack([batch.columns, batch.rows], axis=1)[tumor] * grid.step_px
            origins.append(corners.astype(np.int64))
            pixels.append(batch.pixels[tumor].transpose(0, 2, 3, 1))
            probabilities.append(logits.softmax(dim=1)[:, 1].numpy()[tumor])
            scanned += len(batch)
            task.advance(len(batch))
    if unreadable:
        lost, reason = sum(count for count, _ in unreadable), unreadable[0][1]
        if not scanned:
            raise SlideReadError(f"{slide.name}: none of its {lost} windows can be decoded: {reason}")
        progress.warn(
            f"{slide.name}: {lost} of {int(wanted)} windows can't be decoded and are not mined ({reason}); "
            "scan the slide again"
        )
    return MinedWindows(
        np.concatenate(origins), np.concatenate(pixels), np.concatenate(probabilities), scanned
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
