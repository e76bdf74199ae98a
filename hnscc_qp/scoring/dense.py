"""Dense scoring: all windows of a tile in one fully convolutional pass, for models that were trained so.

A tile is read with as much around it as the network's answer depends on, so a window's votes are the same
however the slide is cut. The network gives a window every 10 px: for wider strides every so many are kept,
for narrower ones the tile is passed over again, shifted.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnscc_qp.geometry import STEP_PX, Grid
from hnscc_qp.models.dense import DenseCascade

_TILE_PX = {"cpu": 960, "cuda": 1920}
"""Of window starts: larger ones compute less twice, and take more memory."""


class DenseScorer:
    """Scores a tile at once."""

    def __init__(
        self, cascade: DenseCascade, grid: Grid, *, device: torch.device, tile_px: int | None = None
    ) -> None:
        self._cascade = cascade.to(device)
        self._grid = grid
        self.stages = 1 if cascade.secondary is None else 2
        self.halo_px = cascade.halo_px
        self.tile_blocks = (tile_px or _TILE_PX.get(device.type, _TILE_PX["cpu"])) // grid.step_px
        self._phases = max(1, STEP_PX // grid.step_px)
        self._every = max(1, grid.step_px // STEP_PX)
        assert self.tile_blocks % self._phases == 0, "a tile holds whole rounds of shifted passes"

    def margins(self, pixels: Tensor, wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Logit of tumor less that of nontumor, by stage: (stages, rows, columns); see `ExactScorer.margins`.

        Both stages take the tile as a whole; the secondary only where the primary finds tumor.
        """
        side, step, phases = self.tile_blocks, self._grid.step_px, self._phases
        found = np.full((self.stages, side, side), np.nan, np.float32)
        extent = pixels.shape[1] - (phases - 1) * step
        for down in range(phases):
            for right in range(phases):
                top, left = down * step, right * step
                part = pixels[None, :, top : top + extent, left : left + extent]
                logits = self._cascade.stage_logits(part, margin_px=self.halo_px)
                for number, stage in enumerate(logits):
                    if stage is not None:
                        margins = (stage[0, 1] - stage[0, 0])[:: self._every, :: self._every]
                        found[number, down::phases, right::phases] = margins.float().cpu().numpy()
        rows, columns = wanted.shape
        kept: NDArray[np.float32] = found[:, :rows, :columns].copy()
        kept[:, ~wanted] = np.nan
        # The secondary was computed for all, but its say counts for the primary's positives.
        kept[1:, ~(kept[0] > 0)] = np.nan
        return kept
