from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Grid, Region
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.scoring import slide as slide_module
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.scoring.slide import score_slide
from hnscc_qp.scoring.tiles import select_windows
from hnscc_qp.scoring.windows import iter_windows
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.study import Scoring

CPU = torch.device("cpu")


def over(slide) -> Grid:
    return Grid.over(slide.size, slide.pixel_size, mpp=1.0, step_px=10, window_px=40)


def everywhere(grid: Grid) -> NDArray[np.bool_]:
    return np.ones((grid.rows, grid.columns), bool)


def run_vote(slide, cascade, *, tissue=None, batch_size=32, min_tissue=0.0625, **more) -> ScoreMap:
    grid = over(slide)
    settings = Scoring(batch_size=batch_size, min_tissue=min_tissue)
    tissue = everywhere(grid) if tissue is None else tissue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slide_module, "find_tissue", lambda *_: tissue)
        return score_slide(slide, cascade=cascade, device=CPU, settings=settings, **more).score_map


def vote_slowly(slide, cascade, tissue) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Window by window, as the paper says it."""
    grid = over(slide)
    votes = np.zeros((grid.rows, grid.columns), int)
    coverage = np.zeros_like(votes)
    for row in range(grid.rows - 3):
        for column in range(grid.columns - 3):
            if not any(tissue[row + y, column + x] for y in range(4) for x in range(4)):
                continue
            pixels = slide.read(Region(column * 10, row * 10, 40, 40), 1.0)
            window = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
            with torch.inference_mode():
                tumor = bool(cascade.call_tumor(window)[0])
            for y in range(4):
                for x in range(4):
                    coverage[row + y, column + x] += 1
                    votes[row + y, column + x] += tumor
    return votes, coverage


def random_classifier(slide, *, seed: int) -> WindowClassifier:
    """A network from scratch that calls about half of the slide's windows tumor, none of them narrowly."""
    grid = over(slide)
    (batch,) = iter_windows(
        slide, grid, tissue=everywhere(grid), min_tissue=0, batch_size=1000, on_unreadable=pytest.fail
    )
    windows = torch.from_numpy(batch.pixels)
    classifier = WindowClassifier("mobilenet_v2", input_px=32, seed=seed)
    with torch.no_grad():
        # Its norms take the windows' statistics: untouched, all windows look nearly alike to it.
        for module in classifier.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        classifier.train()(windows)
        logits = classifier.eval()(windows)
        values = (logits[:, 1] - logits[:, 0]).sort().values
        middle = values[len(values) // 3 : 2 * len(values) // 3]
        gaps = middle.diff()
        widest = int(gaps.argmax())
        assert gaps[widest] > 1e-3
        classifier.network.classifier[1].bias[1] -= (middle[widest] + middle[widest + 1]) / 2
    return classifier


def test_votes_of_two_real_networks_equal_those_of_plain_loops(noise_slide):
    tissue = everywhere(over(noise_slide))
    tissue[5:, 4:] = False
    stages = [random_classifier(noise_slide, seed=seed) for seed in (1, 2)]
    cascade = Cascade(*stages)
    score_map = run_vote(noise_slide, cascade, tissue=tissue)
    votes, coverage = vote_slowly(noise_slide, cascade, tissue)
    assert 0 < votes.sum() < coverage.sum()
    assert np.array_equal(score_map.votes, votes)
    assert np.array_equal(score_map.coverage, coverage)
    assert score_map.image_size_px == (197, 163)


@pytest.mark.parametrize("tile_blocks", [1, 3, 5, 100])
def test_the_size_of_tiles_changes_no_window(noise_slide, tile_blocks):
    grid = over(noise_slide)
    found = np.zeros((grid.window_rows, grid.window_columns), int)
    for batch in iter_windows(
        noise_slide,
        grid,
        tissue=everywhere(grid),
        min_tissue=0,
        batch_size=7,
        on_unreadable=pytest.fail,
        tile_blocks=tile_blocks,
    ):
        for row, column, pixels in zip(batch.rows, batch.columns, batch.pixels, strict=True):
            found[row, column] += 1
            expected = noise_slide.read(grid.window(row, column), grid.mpp)
            assert np.array_equal(pixels, expected.transpose(2, 0, 1))
    assert (found == 1).all()


def test_windows_of_a_real_slide_do_not_depend_on_tiles(shared: Path):
    slide = open_slide(shared / "camelyon" / "slides" / "CAM-11.tif")
    grid = Grid.over(slide.size, slide.pixel_size, mpp=0.97, step_px=10, window_px=40)
    found = [
        {
            (row, column): pixels.tobytes()
            for batch in iter_windows(
                slide,
                grid,
                tissue=everywhere(grid),
                min_tissue=0,
                stride_blocks=3,
                batch_size=100,
                on_unreadable=pytest.fail,
                tile_blocks=tile_blocks,
            )
            for row, column, pixels in zip(batch.rows, batch.columns, batch.pixels, strict=True)
        }
        for tile_blocks in (17, 64)
    ]
    assert len(found[0]) > 100
    assert found[0] == found[1]


def test_every_tissue_block_away_from_the_border_is_covered_by_all_sixteen_windows(noise_slide, dark_cascade):
    grid = over(noise_slide)
    tissue = np.random.default_rng(1).random((grid.rows, grid.columns)) < 0.1
    coverage = run_vote(noise_slide, dark_cascade, tissue=tissue).coverage
    inner = (slice(3, -3), slice(3, -3))
    assert tissue[inner].any()
    assert (coverage[inner][tissue[inner]] == 16).all()
    assert (coverage[tissue] > 0).all()


def test_skipping_glass_changes_no_vote_of_tissue(noise_slide, dark_cascade):
    grid = over(noise_slide)
    tissue = np.zeros((grid.rows, grid.columns), bool)
    tissue[4:9, 5:11] = True
    all_scored = run_vote(noise_slide, dark_cascade)
    some_scored = run_vote(noise_slide, dark_cascade, tissue=tissue)
    assert some_scored.windows < all_scored.windows
    assert np.array_equal(some_scored.votes[tissue], all_scored.votes[tissue])
    assert all_scored.votes[tissue].any()


def test_windows_with_less_tissue_than_wanted_are_left_out(noise_slide):
    grid = over(noise_slide)
    tissue = np.zeros((grid.rows, grid.columns), bool)
    tissue[:8, :8] = True
    selected = select_windows(grid, tissue, min_tissue=0.5)
    assert selected[6, 0]  # two of its four rows are tissue
    assert not selected[7, 0]
    assert not selected[6, 6]  # a quarter


def test_a_stride_takes_every_second_window(noise_slide):
    grid = over(noise_slide)
    selected = select_windows(grid, everywhere(grid), min_tissue=0, stride_blocks=2)
    rows, columns = np.nonzero(selected)
    assert set(rows) == set(range(0, grid.window_rows, 2))
    assert set(columns) == set(range(0, grid.window_columns, 2))


def test_the_last_row_and_column_reach_into_white(noise_slide):
    grid = over(noise_slide)
    assert (grid.rows, grid.columns) == (17, 20)  # 163 × 197 px
    batches = list(
        iter_windows(
            noise_slide,
            grid,
            tissue=everywhere(grid),
            min_tissue=0,
            batch_size=1000,
            on_unreadable=pytest.fail,
        )
    )
    last = batches[-1].pixels[-1]
    assert (batches[-1].rows[-1], batches[-1].columns[-1]) == (13, 16)
    assert (last[:, 33:] == 255).all()
    assert (last[:, :, 37:] == 255).all()
    assert not (last[:, :33, :37] == 255).all()


def test_batches_have_one_shape(noise_slide, dark_cascade):
    score_map = run_vote(noise_slide, dark_cascade, batch_size=100)
    assert score_map.windows == 14 * 17
    assert dark_cascade.shapes == [(100, 3, 40, 40)] * 3


def test_windows_that_can_not_be_decoded_are_reported_and_left_out(noise_slide):
    grid = over(noise_slide)
    noise_slide.damaged = Region(150, 120, 10, 10)
    found, lost = [], []
    for batch in iter_windows(
        noise_slide,
        grid,
        tissue=everywhere(grid),
        min_tissue=0,
        batch_size=50,
        on_unreadable=lambda count, error: lost.append((count, str(error))),
        tile_blocks=6,
    ):
        found += list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
    # The damaged block is row 12 and column 15; tiles start on 0, 6 and 12.
    assert set(found) == {
        (row, column)
        for row in range(14)
        for column in range(17)
        if not (9 <= row <= 12 and 12 <= column <= 15)
    }
    assert lost == [(3 * 4, "drawn.svs can't be read there"), (1 * 4, "drawn.svs can't be read there")]


def test_a_partly_damaged_slide_is_scored_with_a_warning(dark_cascade, recorder, array_slide):
    slide = array_slide(np.full((100, 1500, 3), 20, np.uint8), damaged=Region(1400, 50, 1, 1))
    score_map = run_vote(slide, dark_cascade, progress=recorder)
    # One px can't be read, and so the 16 windows that hold it; the blocks beside it keep the others.
    assert score_map.unreadable == 16
    assert score_map.windows + score_map.unreadable == 7 * 147
    assert score_map.coverage[5, 140] == 0
    assert score_map.coverage[5, 139] == score_map.coverage[5, 20] - 12
    assert (score_map.votes == score_map.coverage).all()
    assert len(recorder.warnings) == 1
    assert f"{score_map.unreadable} of {7 * 147} windows" in recorder.warnings[0]


def test_a_wholly_damaged_slide_is_an_error(noise_slide, dark_cascade):
    noise_slide.damaged = Region(0, 0, 1000, 1000)
    with pytest.raises(SlideReadError, match=r"drawn\.svs: none of its 238 windows"):
        run_vote(noise_slide, dark_cascade)


def test_stopping_early_stops_the_reader(array_slide):
    slide = array_slide(np.zeros((400, 4000, 3), np.uint8))
    grid = over(slide)
    batches = iter_windows(
        slide,
        grid,
        tissue=everywhere(grid),
        min_tissue=0,
        batch_size=4,
        on_unreadable=pytest.fail,
        tile_blocks=8,
    )
    next(batches)
    batches.close()
    assert len(slide.reads) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_an_unexpected_error_of_the_reader_reaches_the_caller(noise_slide, dark_cascade, monkeypatch):
    def fail(region: Region, mpp: float) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(noise_slide, "read", fail)
    with pytest.raises(MemoryError, match="no room"):
        run_vote(noise_slide, dark_cascade)


def test_an_error_of_the_network_stops_the_reader(noise_slide, dark_cascade, monkeypatch):
    def fail(windows: torch.Tensor) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(dark_cascade.primary, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        run_vote(noise_slide, dark_cascade)
    assert caught.tb  # keeps all frames alive, as a debugger would
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_progress_counts_every_window(noise_slide, dark_cascade, recorder):
    run_vote(noise_slide, dark_cascade, progress=recorder)
    assert recorder.tasks == [("drawn.svs", 238, 238)]
