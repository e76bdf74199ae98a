"""Figure 2: what the primary alone calls, window by window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from studies import SIZE, write_slide
from torch import nn

from hnscc_qp.geometry import Grid, PixelSize, Region
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.review.figures_slides import call_field, draw_delineations, draw_primary
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.slides.reader import open_slide


@pytest.mark.parametrize("dense", [False, True], ids=["window", "dense"])
@torch.no_grad()
def test_a_field_holds_the_calls_of_windows_side_by_side(tmp_path: Path, *, dense: bool) -> None:
    slide = open_slide(write_slide(tmp_path / "s.tif", tumor=True, seed=1))
    network = (DenseClassifier if dense else WindowClassifier)("mobilenet_v2", input_px=32)
    grid = Grid.of_method(SIZE, PixelSize(slide.pixel_size.x, slide.pixel_size.y))
    coverage = np.full((grid.rows, grid.columns), 16, np.uint8)
    coverage[:, :8] = 0  # the first two columns of windows were not looked at
    score_map = ScoreMap(np.zeros_like(coverage), coverage, grid, SIZE, windows=1)
    # The whole slide at once, each window called by itself.
    margin = network.halo_px if isinstance(network, DenseClassifier) else 0
    area = Region(-margin, -margin, SIZE[0] + 2 * margin, SIZE[1] + 2 * margin)
    pixels = torch.from_numpy(slide.read(area, grid.mpp)).permute(2, 0, 1)
    _see(
        network,
        pixels[None]
        if dense
        else pixels[:, :320, :400]
        .unfold(1, 40, 40)
        .unfold(2, 40, 40)
        .permute(1, 2, 0, 3, 4)
        .reshape(-1, 3, 40, 40),
    )

    def surplus(row: int, column: int) -> float:
        if dense:
            logits = whole[0, :, margin // 10 + 4 * row, margin // 10 + 4 * column]
        else:
            logits = network(pixels[None, :, 40 * row : 40 * row + 40, 40 * column : 40 * column + 40])[0]
        return float(logits[1] - logits[0])

    whole = network(pixels[None]) if dense else None
    found = np.array([[surplus(row, column) for column in range(10)] for row in range(8)])
    middle = (np.sort(found.ravel())[39] + np.sort(found.ravel())[40]) / 2
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    head.bias[1] -= float(middle)
    wanted = found > middle
    wanted[:, :2] = False
    field = call_field(
        slide,
        slide,
        score_map,
        network,
        around=(SIZE[0] / 2, SIZE[1] / 2),
        device=torch.device("cpu"),
        title="s.tif",
    )
    assert field.called.shape == (8, 10) and field.width_um == 400
    assert 0 < wanted.sum() < 64
    # Those that hang by a hair may fall either way.
    clear = np.abs(found - middle) > 0.02 * found.std()
    assert (field.called == wanted)[clear].all() and clear.sum() > 70
    draw_primary(tmp_path / "figure2.png", [field], study="<drawn>")
    assert (tmp_path / "figure2.png").is_file() and (tmp_path / "figure2.svg").is_file()


@torch.no_grad()
def test_a_window_that_scoring_passed_over_is_not_called_though_its_neighbour_was(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "s.tif", tumor=True, seed=1))
    network = WindowClassifier("mobilenet_v2", input_px=32).eval()
    [head] = [module for module in network.modules() if isinstance(module, nn.Linear)]
    head.bias[1] += 1000  # calls everything
    grid = Grid.of_method(SIZE, PixelSize(slide.pixel_size.x, slide.pixel_size.y))
    windows = np.random.default_rng(1).random((grid.rows, grid.columns)) < 0.5
    windows[-3:] = windows[:, -3:] = False  # they would reach beyond the slide
    coverage = np.zeros(windows.shape, np.uint8)
    for row, column in np.argwhere(windows):
        coverage[row : row + 4, column : column + 4] += 1
    score_map = ScoreMap(np.zeros_like(coverage), coverage, grid, SIZE, windows=int(windows.sum()))
    field = call_field(
        slide,
        slide,
        score_map,
        network,
        around=(SIZE[0] / 2, SIZE[1] / 2),
        device=torch.device("cpu"),
        title="s.tif",
    )
    assert (field.called == windows[::4, ::4]).all()


def _see(network: nn.Module, images: torch.Tensor) -> None:
    """Give an untrained network this slide's statistics: with its first ones all windows look alike to it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    network.train()
    network(images)
    network.eval()


def test_a_study_with_nothing_to_show_has_figures_that_say_so(tmp_path: Path) -> None:
    draw_primary(tmp_path / "figure2.png", [], study="none")
    draw_delineations(tmp_path / "figure5.png", [], study="none")
    assert "no slide to show" in (tmp_path / "figure2.svg").read_text(encoding="utf-8")
    assert "tumor is outlined on no slide" in (tmp_path / "figure5.svg").read_text(encoding="utf-8")
