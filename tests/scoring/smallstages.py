"""Dense stages of few convolutions, a slide for them, and what one pass over all of it says."""

from __future__ import annotations

import copy

import numpy as np
import torch
from runtimes import threads
from scoring.conftest import ArraySlide

from hnscc_qp.geometry import Grid
from hnscc_qp.models.dense import DenseCascade, windows_of_cells
from hnscc_qp.models.parts import Layer, Parts, take_apart
from hnscc_qp.scoring.dense import DenseScorer
from hnscc_qp.scoring.pipeline import score_tiles
from hnscc_qp.study import Scoring

CPU = torch.device("cpu")


def drawn_slide() -> ArraySlide:
    """Blotches and noise, 163 × 237 px."""
    rng = np.random.default_rng(7)
    pixels = np.kron(rng.integers(0, 256, (9, 12, 3)), np.ones((20, 20, 1)))
    pixels = pixels + rng.integers(-40, 40, pixels.shape)
    return ArraySlide(pixels.clip(0, 255).astype(np.uint8)[:163, :237])


def two_stages(slide: ArraySlide) -> DenseCascade:
    """That call half of its windows each."""
    with threads(1):
        return DenseCascade(small_stage(slide, seed=1), small_stage(slide, seed=2))


def grid_of(slide, step_px: int = 10) -> Grid:
    return Grid.of_method(slide.size, slide.pixel_size, step_px=step_px)


def white_around(slide, px: int) -> torch.Tensor:
    """The whole slide up to full blocks and `px` of white on each side: (1, 3, height, width)."""
    width, height = (-(-side // 10) * 10 for side in slide.size)
    pixels = np.full((height + 2 * px, width + 2 * px, 3), 255, np.uint8)
    pixels[px : px + slide.size[1], px : px + slide.size[0]] = slide.pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]


class SmallStage(torch.nn.Module):
    """A stage of few convolutions: cells of 10 px that depend on 42 px around them, or on 72."""

    input_px, temperature = 40, 1.0

    def __init__(self, *, seed: int, wider: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fine = torch.nn.Conv2d(3, 6, 5, padding=2)
        self.pool = torch.nn.Sequential(torch.nn.AvgPool2d(10), torch.nn.Conv2d(6, 5, 1))
        self.coarse = torch.nn.Conv2d(5, 5, 3, padding=2, dilation=2)
        self.wide = torch.nn.Conv2d(5, 4, 3, padding=2, dilation=2)
        self.wider = torch.nn.Conv2d(4, 4, 3, padding=3, dilation=3) if wider else None
        if self.wider is not None:
            self.wider.weight.data.mul_(4)  # so that windows differ
        self.halo_px = 80 if wider else 50
        self.head = torch.nn.Linear(4, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        cells = self.wide(self.coarse(self.pool(self.fine(pixels.float() / 255).relu())))
        cells = cells if self.wider is None else self.wider(cells)
        return windows_of_cells(self.head(cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def in_parts(self) -> Parts:
        fine = torch.nn.Sequential(self.fine, torch.nn.ReLU())
        layers = [Layer(fine, 1, 2), Layer(self.pool, 10, 0), Layer(self.coarse, 10, 20)]
        layers.append(Layer(self.wide, 10, 20))
        layers += [] if self.wider is None else [Layer(self.wider, 10, 30)]
        return take_apart(layers, self.head, mean=torch.zeros(1), std=torch.ones(1), input_px=40)


def no_narrow_calls(classifier: torch.nn.Module, bias: torch.nn.Parameter, slide) -> None:
    """Move the last bias so that the classifier calls half of the slide's windows tumor, none narrowly."""
    halo = classifier.halo_px // 10
    inner = np.s_[..., halo:-halo, halo:-halo]
    with torch.no_grad():
        logits = classifier.eval()(white_around(slide, classifier.halo_px))[inner]
        values = (logits[0, 1] - logits[0, 0]).flatten().sort().values
        middle = values[len(values) // 3 : 2 * len(values) // 3]
        widest = int(middle.diff().argmax())
        assert middle.diff()[widest] > 1e-4
        bias[1] -= (middle[widest] + middle[widest + 1]) / 2


def small_stage(slide, *, seed: int, wider: bool = False) -> SmallStage:
    stage = SmallStage(seed=seed, wider=wider)
    no_narrow_calls(stage, stage.head.bias, slide)
    return stage


def called(
    slide,
    cascade,
    *,
    piece_cells: int,
    step_px: int = 10,
    settings: Scoring | None = None,
    selected=None,
    crop_cells: int = 8,
    most_waiting_bytes: int | None = None,
    tile_pieces: int = 2,
    runtime: str = "torch",
):
    grid = grid_of(slide, step_px)
    settings = settings or Scoring()
    low = settings.precision == "bfloat16" and not settings.exact
    stages = [copy.copy(stage) for stage in cascade.stages(runtime=runtime, device=CPU, bfloat16=low)]
    for stage in stages:
        stage.crop_cells, stage.tile_pieces = crop_cells, tile_pieces
        stage.most_waiting_bytes = most_waiting_bytes or stage.most_waiting_bytes
    if selected is None:
        selected = np.ones((grid.window_rows, grid.window_columns), bool)
    return score_tiles(
        slide,
        grid,
        selected,
        scorer=DenseScorer(stages, grid, piece_cells=piece_cells),
        temperatures=(1.0, 1.0),
        settings=settings,
        device=CPU,
    ).called


def in_one_pass(slide, cascade: DenseCascade) -> np.ndarray:
    """Both stages over the whole slide, with more white around it than they need."""
    more = max(stage.halo_px for stage in (cascade.primary, cascade.secondary)) // 10 * 10 + 40
    pixels = white_around(slide, more)
    with torch.inference_mode():
        first, second = (stage(pixels)[0] for stage in (cascade.primary, cascade.secondary))
    tumor = ((first[1] > first[0]) & (second[1] > second[0])).numpy()[more // 10 :, more // 10 :]
    grid = grid_of(slide)
    return tumor[: grid.window_rows, : grid.window_columns]
