"""Exact scoring: every 40 × 40 px window is seen by the network on its own (Tang et al. 2022, §2.5).

A tile travels to the device once; there its windows are views into it. Batches have one shape, so the
network's kernels are chosen, and round, but once. The secondary sees the primary's positives only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnscc_qp.geometry import Grid
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.scoring.tiles import Reading, Tile, plan_tiles, tile_area

_TILE_PX = 640
_SECONDARY_SHARE = 4
"""The secondary's batches are so much smaller: a tile seldom has more positives."""


class ExactScorer:
    """Scores the windows of a tile one by one."""

    def __init__(self, cascade: Cascade, grid: Grid, *, batch_size: int, device: torch.device) -> None:
        self._networks = [cascade.primary.to(device)]
        if cascade.secondary is not None:
            self._networks.append(cascade.secondary.to(device))
        self._grid = grid
        self._device = device
        self._batch_size = batch_size
        self.stages = len(self._networks)
        self._tile_blocks = _TILE_PX // grid.step_px
        self.tiling: tuple[int, ...] = (self._tile_blocks,)

    def tiles(self, selected: NDArray[np.bool_]) -> Iterator[Tile]:
        """See `TileScorer.tiles`."""
        return plan_tiles(selected, self._tile_blocks)

    def plan(self, tiles: Iterable[Tile]) -> Iterator[Reading[tuple[int, int]]]:
        """See `TileScorer.plan`: each tile on its own."""
        for tile in tiles:
            name = (tile.row, tile.column)
            yield Reading({name: tile_area(tile, self._grid, side=self._tile_blocks)}, [name])

    def margins(
        self, tile: Tile, wanted: NDArray[np.bool_], pixels: Mapping[tuple[int, int], NDArray[np.uint8]]
    ) -> NDArray[np.float32]:
        """See `TileScorer.margins`."""
        window, step = self._grid.window_px, self._grid.step_px
        on_device = torch.from_numpy(pixels[tile.row, tile.column]).to(self._device).permute(2, 0, 1)
        views = on_device.unfold(1, window, step).unfold(2, window, step)
        found = np.full((self.stages, *wanted.shape), np.nan, np.float32)
        rows, columns = np.nonzero(wanted)
        for number, stage in enumerate(self._networks):
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
