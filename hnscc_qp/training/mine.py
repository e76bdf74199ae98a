"""Hard negatives: what the primary takes for tumor on negative slides (Tang et al. 2022, §2.4)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import WINDOW_MPP, WINDOW_PX, Grid
from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import fold_batch_norms
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.scoring.tiles import select_windows
from hnscc_qp.scoring.windows import WindowBatch, iter_windows
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Mining, Scoring

_TILE_BLOCKS = 64
"""Window starts along one side of what the dense recipe scans at once."""


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


@dataclass(frozen=True, slots=True)
class _Seen:
    """Windows that the primary has judged."""

    rows: NDArray[np.intp]
    """(n,) block that each starts on."""
    columns: NDArray[np.intp]
    logits: Tensor
    """(n, 2)"""
    pixels: NDArray[np.uint8]
    """(n, 40, 40, 3), a view."""


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
    selected = select_windows(
        grid, tissue, min_tissue=scoring.min_tissue, stride_blocks=settings.stride_px // grid.step_px
    )
    wanted = int(selected.sum())
    unreadable: list[tuple[int, SlideReadError]] = []

    def lose(count: int, error: SlideReadError) -> None:
        unreadable.append((count, error))

    network = fold_batch_norms(primary).to(device)
    if isinstance(network, DenseClassifier):
        scan = _scan_tiles(slide, grid, selected, network, device=device, on_unreadable=lose)
    else:
        batches = iter_windows(
            slide,
            grid,
            tissue=tissue,
            min_tissue=scoring.min_tissue,
            batch_size=scoring.batch_size,
            on_unreadable=lose,
            stride_blocks=settings.stride_px // grid.step_px,
        )
        scan = _scan_windows(batches, network, device=device)
    origins = [np.empty((0, 2), np.int64)]
    pixels = [np.empty((0, WINDOW_PX, WINDOW_PX, 3), np.uint8)]
    probabilities = [np.empty(0, np.float32)]
    scanned = 0
    with progress.task(slide.name, wanted, unit="windows") as task, torch.inference_mode():
        for seen in scan:
            tumor = (seen.logits[:, 1] > seen.logits[:, 0]).numpy()
            corners = np.stack([seen.columns, seen.rows], axis=1)[tumor] * grid.step_px
            origins.append(corners.astype(np.int64))
            pixels.append(seen.pixels[tumor])
            likely = (seen.logits / primary.temperature).softmax(dim=1)[:, 1]
            probabilities.append(likely.numpy()[tumor])
            scanned += len(seen.rows)
            task.advance(len(seen.rows))
    if unreadable:
        lost, reason = sum(count for count, _ in unreadable), unreadable[0][1]
        if not scanned:
            raise SlideReadError(f"{slide.name}: none of its {lost} windows can be decoded: {reason}")
        progress.warn(
            f"{slide.name}: {lost} of {wanted} windows can't be decoded and are not mined ({reason}); "
            "scan the slide again"
        )
    mined = MinedWindows(
        np.concatenate(origins), np.concatenate(pixels), np.concatenate(probabilities), scanned
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


def _scan_windows(
    batches: Generator[WindowBatch, None, None], network: nn.Module, *, device: torch.device
) -> Iterator[_Seen]:
    with closing(batches):
        for batch in batches:
            logits = network(torch.from_numpy(batch.pixels).to(device)).float().cpu()
            yield _Seen(batch.rows, batch.columns, logits, batch.pixels.transpose(0, 2, 3, 1))


def _scan_tiles(
    slide: Slide,
    grid: Grid,
    selected: NDArray[np.bool_],
    network: DenseClassifier,
    *,
    device: torch.device,
    on_unreadable: Callable[[int, SlideReadError], None],
) -> Iterator[_Seen]:
    """All selected windows of a tile at once; tiles of one shape, with the context that they need."""
    halo = network.halo_px // grid.step_px
    length = _TILE_BLOCKS + grid.window_blocks - 1 + 2 * halo
    for top in range(0, selected.shape[0], _TILE_BLOCKS):
        for left in range(0, selected.shape[1], _TILE_BLOCKS):
            rows, columns = np.nonzero(selected[top : top + _TILE_BLOCKS, left : left + _TILE_BLOCKS])
            if not len(rows):
                continue
            region = grid.region(top - halo, left - halo, rows=length, columns=length)
            try:
                pixels = slide.read(region, grid.mpp)
            except SlideReadError as error:
                on_unreadable(len(rows), error)
                continue
            tile = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None]
            logits = network(tile)[0, :, rows + halo, columns + halo].T.float().cpu()
            views = sliding_window_view(pixels, (grid.window_px, grid.window_px), axis=(0, 1))
            cut = views[(rows + halo) * grid.step_px, (columns + halo) * grid.step_px]
            yield _Seen(rows + top, columns + left, logits, cut.transpose(0, 2, 3, 1))


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
