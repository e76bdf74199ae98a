"""Dense scoring: what is read, computed and held, and that none of it changes a vote."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scoring.conftest import ArraySlide
from scoring.smallstages import (
    CPU,
    called,
    grid_of,
)

from hnscc_qp.models.dense import DenseCascade
from hnscc_qp.models.parts import TorchRuntime
from hnscc_qp.scoring.dense import DenseScorer


@pytest.fixture
def passed(monkeypatch) -> list[tuple[int, list[torch.Tensor]]]:
    """Part and pieces of all that PyTorch is asked to run."""
    asked: list[tuple[int, list[torch.Tensor]]] = []
    run = TorchRuntime.run
    monkeypatch.setattr(
        TorchRuntime,
        "run",
        lambda self, number, pieces: asked.append((number, list(pieces))) or run(self, number, pieces),
    )
    return asked


@pytest.mark.parametrize("step_px", [5, 10, 20])
def test_nothing_is_held_when_a_slide_is_done(slide, cascade, monkeypatch, step_px):
    made = []
    init = DenseScorer.__init__
    monkeypatch.setattr(
        DenseScorer,
        "__init__",
        lambda self, *given, **named: made.append(self) or init(self, *given, **named),
    )
    for seed, share in enumerate((1.0, 0.3, 0.02)):
        grid = grid_of(slide, step_px)
        selected = np.random.default_rng(seed).random((grid.window_rows, grid.window_columns)) < share
        called(slide, cascade, piece_cells=3, step_px=step_px, selected=selected, most_waiting_bytes=1)
    assert len(made) == 3
    assert not any(scorer._kept or scorer._areas or scorer._work for scorer in made)


def test_every_piece_is_read_once_and_computed_once(slide, cascade, passed):
    slide.reads.clear()
    called(slide, DenseCascade(cascade.primary, None), piece_cells=4)
    assert len({(region.x, region.y) for region in slide.reads}) == len(slide.reads) > 30
    first, second, last = (sum(len(at) for number, at in passed if number == part) for part in range(3))
    grid = grid_of(slide)
    sides = (grid.window_rows - 1) // 4, (grid.window_columns - 1) // 4
    assert last == (sides[0] + 1) * (sides[1] + 1)
    # The last part's margin is two cells, and three more belong to the windows that start last: its pieces
    # begin within the second ones, which lie five cells farther down and right.
    assert second == (sides[0] + 3) * (sides[1] + 3)
    # The first ones lie two farther, 4 · n + 7 cells from the border, and see one cell around them: five rows
    # of seven meet the slide's 17 × 24 cells. Of those beyond, which are white, one is computed for all.
    assert first == 5 * 7 + 1 < len(slide.reads)

    passed.clear()
    pale = np.full_like(slide.pixels, 255)
    pale[:50, :50] = slide.pixels[:50, :50]
    called(type(slide)(pale), DenseCascade(cascade.primary, None), piece_cells=4)
    # Two rows of two meet the five cells that are not white.
    assert sum(len(at) for number, at in passed if number == 0) == 2 * 2 + 1


@pytest.mark.parametrize("share", [1.0, 0.3, 0.02])
def test_what_waits_for_tiles_to_come_is_two_rows_of_pieces_whatever_the_height(cascade, monkeypatch, share):
    waiting: list[int] = []
    margins = DenseScorer.margins

    def noted(self, *given):
        found = margins(self, *given)
        waiting.append(sum(values.numel() for _, values in self._kept.values()))
        return found

    monkeypatch.setattr(DenseScorer, "margins", noted)
    rng = np.random.default_rng(5)
    tall = ArraySlide(rng.integers(0, 250, (1200, 240, 3), np.uint8))
    grid = grid_of(tall)
    selected = rng.random((grid.window_rows, grid.window_columns)) < share
    called(tall, DenseCascade(cascade.primary, None), piece_cells=4, selected=selected)
    # A row has 9 pieces at most; one waits where all is wanted, and what is beside the tile.
    parts = cascade.primary.in_parts().parts[:-1]
    of_piece = sum(part.channels * part.side**2 * 16 for part in parts)
    rows = 1 if share == 1 else 2
    assert 0 < max(waiting) <= of_piece * (rows * 9 + 3)


def test_of_a_few_windows_no_more_is_computed_than_they_depend_on(slide, cascade, passed):
    selected = np.zeros_like(called(slide, cascade, piece_cells=48))
    whole = sum(piece[..., 0].numel() for _, pieces in passed for piece in pieces)
    selected[3:5, 2:4] = True
    passed.clear()
    slide.reads.clear()
    called(slide, DenseCascade(cascade.primary, None), piece_cells=48, selected=selected.astype(bool))
    assert sum(piece[..., 0].numel() for _, pieces in passed for piece in pieces) < whole / 4
    assert sum(region.width * region.height for region in slide.reads) < 300 * 300


def test_what_is_left_of_pieces_has_few_sizes(slide, cascade, passed):
    selected = np.random.default_rng(3).random(called(slide, cascade, piece_cells=48).shape) < 0.02
    passed.clear()
    called(slide, cascade, piece_cells=8, selected=selected, crop_cells=4)
    sizes: dict[int, set[tuple[int, ...]]] = {}
    for number, pieces in passed:
        sizes.setdefault(number, set()).update(tuple(piece.shape) for piece in pieces)
    assert [1 < len(of_part) <= 4 for of_part in sizes.values()] == [True] * 3


def test_narrow_panels_for_little_memory_change_no_vote(slide, cascade, expected):
    slide.reads.clear()
    assert np.array_equal(called(slide, cascade, piece_cells=3, most_waiting_bytes=1), expected)
    again = len(slide.reads)
    slide.reads.clear()
    called(slide, cascade, piece_cells=3)
    assert len(slide.reads) < again


@pytest.mark.parametrize(("piece_cells", "most_waiting_bytes"), [(2, 1), (2, 30000), (3, None)])
def test_larger_tiles_for_more_cores_change_no_answer(
    slide, cascade, monkeypatch, piece_cells, most_waiting_bytes
):
    tiles, found = [], []
    margins = DenseScorer.margins

    def noted(self, tile, wanted, pixels):
        tiles.append(tile)
        made = margins(self, tile, wanted, pixels)
        whole[:, tile.row : tile.row + made.shape[1], tile.column : tile.column + made.shape[2]] = made
        return made

    monkeypatch.setattr(DenseScorer, "margins", noted)
    counts = []
    for tile_pieces in (2, 4, 8):
        whole = np.full((2, 40, 40), np.nan, np.float32)
        tiles.clear()
        called(
            slide,
            cascade,
            piece_cells=piece_cells,
            most_waiting_bytes=most_waiting_bytes,
            tile_pieces=tile_pieces,
        )
        counts.append(len(tiles))
        found.append(whole)
    assert counts[0] > counts[1] >= counts[2]
    assert np.isfinite(found[0][0]).sum() > 200
    assert all(np.array_equal(one, found[0], equal_nan=True) for one in found)


def test_the_secondary_rests_where_the_primary_finds_nothing(slide, cascade, monkeypatch):
    primary = copy.deepcopy(cascade.primary)
    with torch.no_grad():
        primary.head.bias[0] += 1000
    silent = DenseCascade(primary, cascade.secondary)
    secondary = silent.stages(runtime="torch", device=CPU, bfloat16=False)[1]
    monkeypatch.setattr(secondary, "run", lambda *_: pytest.fail("the secondary was asked"))
    assert not called(slide, silent, piece_cells=5).any()
