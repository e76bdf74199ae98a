"""Exact scoring: every 40 × 40 px window is seen by the network on its own (Tang et al. 2022, §2.5).

A tile travels to the device once; there its windows are views into it. Batches have one shape, so the
network's kernels are chosen, and round, but once. The secondary sees the primary's positives only.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnscc_qp.geometry import Grid
from hnscc_qp.models.cascade import Cascade

_TILE_PX = 640
_SECONDARY_SHARE = 4
"""The secondary's batches are so much smaller: a tile seldom has more positives."""


class ExactScorer:
    """Scores the windows of a tile one by one."""

    halo_px = 0

    def __init__(self, cascade: Cascade, grid: Grid, *, batch_size: int, device: torch.device) -> None:
        self._stages = [cascade.primary.to(device)]
        if cascade.secondary is not None:
            self._stages.append(cascade.secondary.to(device))
        self._grid = grid
        self._batch_size = batch_size
        self.stages = len(self._stages)
        self.tile_blocks = _TILE_PX // grid.step_px

    def margins(self, pixels: Tensor, wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Logit of tumor less that of nontumor, by stage: (stages, rows, columns).

        Args:
            pixels: (3, height, width) uint8 RGB, on the device; `tile_area`.
            wanted: (rows, columns) windows.

        Returns:
            NaN for windows that a stage was not asked for; above 0 is tumor.
        """
        window, step = self._grid.window_px, self._grid.step_px
        views = pixels.unfold(1, window, step).unfold(2, window, step)
        found = np.full((self.stages, *wanted.shape), np.nan, np.float32)
        rows, columns = np.nonzero(wanted)
        for number, stage in enumerate(self._stages):
            size = self._batch_size if number == 0 else max(1, self._batch_size // _SECONDARY_SHARE)
            found[number, rows, columns] = _run(stage, views, rows, columns, size)
            positive = found[number, rows, columns] > 0
            rows, columns = rows[positive], columns[positive]
        return found


def _run(
    stage: nn.Module, views: Tensor, rows: NDArray[np.intp], columns: NDArray[np.intp], size: int
) -> NDArray[np.float32]:
    """Margins of the named windows, (n,), in batches of one size: the last is filled up with windows."""
    count = len(rows)
    if not count:
        return np.empty(0, np.float32)
    padded = -(-count // size) * size
    at = torch.from_numpy(np.stack([np.resize(rows, padded), np.resize(columns, padded)])).to(views.device)
    margins = []
    for start in range(0, padded, size):
        row, column = at[:, start : start + size]
        logits = stage(views[:, row, column].transpose(0, 1)).float()
        margins.append(logits[:, 1] - logits[:, 0])
    return torch.cat(margins)[:count].cpu().numpy()
