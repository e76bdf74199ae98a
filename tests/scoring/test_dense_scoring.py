"""Dense scoring: the same votes however the slide is cut, and the same as one tile of everything."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from runtimes import RUNTIMES
from scoring.conftest import ArraySlide
from scoring.smallstages import (
    CPU,
    called,
    grid_of,
    in_one_pass,
    no_narrow_calls,
    small_stage,
    white_around,
)

from hnscc_qp.errors import StudyError
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.models.dense import DenseCascade, DenseClassifier
from hnscc_qp.scoring import pipeline
from hnscc_qp.scoring import slide as slide_module
from hnscc_qp.scoring.dense import DenseScorer
from hnscc_qp.scoring.journal import Journal
from hnscc_qp.scoring.pipeline import score_tiles
from hnscc_qp.scoring.slide import choose_mode, score_slide
from hnscc_qp.study import Scoring


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_real_network_votes_alike_on_two_tilings(runtime):
    rng = np.random.default_rng(3)
    slide = ArraySlide(np.kron(rng.integers(0, 256, (6, 5, 3)), np.ones((17, 17, 1))).astype(np.uint8))
    classifier = DenseClassifier("mobilenet_v2", input_px=128, seed=1)
    with torch.no_grad():
        for module in classifier.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        classifier.train()(white_around(slide, classifier.halo_px))
    no_narrow_calls(classifier, classifier.network.classifier[1].bias, slide)
    cascade = DenseCascade(classifier, None)
    # The first by PyTorch in any case.
    votes = [
        called(slide, cascade, piece_cells=cells, runtime=what)
        for cells, what in ((3, "torch"), (8, runtime))
    ]
    assert 0 < votes[0].sum() < votes[0].size
    assert np.array_equal(*votes)


@pytest.mark.parametrize("piece_cells", [2, 3, 5, 12])
def test_votes_do_not_depend_on_how_the_slide_is_cut(slide, cascade, expected, piece_cells):
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(called(slide, cascade, piece_cells=piece_cells), expected)


@pytest.mark.parametrize(
    ("step_px", "piece_cells", "crop_cells"), [(5, 2, 1), (10, 12, 1), (10, 8, 4), (10, 2, 8)]
)
def test_what_is_skipped_around_a_window_changes_no_vote(slide, cascade, step_px, piece_cells, crop_cells):
    everywhere = called(slide, cascade, piece_cells=4, step_px=step_px)
    for seed in range(6):
        share = 0.05 if seed % 2 else 0.01
        selected = np.random.default_rng(seed).random(everywhere.shape) < share
        some = called(
            slide, cascade, piece_cells=piece_cells, step_px=step_px, selected=selected, crop_cells=crop_cells
        )
        assert np.array_equal(some.astype(bool), everywhere.astype(bool) & selected)


@pytest.mark.parametrize("wider", [(False, True), (True, False)])
@pytest.mark.parametrize("piece_cells", [4, 8, 12])
def test_two_stages_of_different_reach_vote_as_in_one_pass(slide, monkeypatch, wider, piece_cells):
    monkeypatch.setattr(pipeline, "_readers", lambda: 4)
    cascade = DenseCascade(*(small_stage(slide, seed=seed + 1, wider=far) for seed, far in enumerate(wider)))
    expected = in_one_pass(slide, cascade)
    assert 0 < expected.sum() < expected.size
    for seed in range(30):
        share = 1.0 if seed == 0 else (0.05, 0.02, 0.01, 0.005)[seed % 4]
        selected = np.random.default_rng(seed).random(expected.shape) < share
        found = called(slide, cascade, piece_cells=piece_cells, selected=selected)
        assert np.array_equal(found.astype(bool), expected & selected)


def test_a_stride_of_twenty_is_every_second_window(slide, cascade, expected):
    found = called(slide, cascade, piece_cells=6, step_px=20)
    rows, columns = (min(a, b) for a, b in zip(found.shape, expected[::2, ::2].shape, strict=True))
    assert np.array_equal(found[:rows, :columns], expected[::2, ::2][:rows, :columns])


def test_a_stride_of_five_holds_the_windows_of_ten_and_those_of_a_shifted_slide(slide, cascade, expected):
    found = called(slide, cascade, piece_cells=5, step_px=5)
    even = found[::2, ::2]  # its last row of blocks ends before that of 10 px
    assert np.array_equal(even, expected[: even.shape[0], : even.shape[1]])
    # White above and to the left takes the place of the halo beyond the border, which is white too.
    padded = np.pad(slide.pixels, ((5, 0), (5, 0), (0, 0)), constant_values=255)
    moved = called(ArraySlide(padded), cascade, piece_cells=5)
    odd = found[1::2, 1::2]
    rows, columns = (min(a - 1, b) for a, b in zip(moved.shape, odd.shape, strict=True))
    assert np.array_equal(odd[:rows, :columns], moved[1 : rows + 1, 1 : columns + 1])


def test_window_models_are_refused_densely_and_dense_ones_exactly(slide, cascade, dark_cascade):
    with pytest.raises(StudyError, match=r'recipe "window".*mode "exact"'):
        choose_mode(dark_cascade, Scoring(mode="dense"))
    with pytest.raises(StudyError, match=r'recipe "dense".*mode "dense"'):
        choose_mode(cascade, Scoring(mode="exact"))
    assert choose_mode(cascade, Scoring()) == "dense"
    assert choose_mode(dark_cascade, Scoring()) == "exact"
    assert isinstance(dark_cascade, Cascade)


def test_bfloat16_is_close_and_exact_arithmetic_takes_it_back(slide, cascade, expected):
    low = called(slide, cascade, piece_cells=6, settings=Scoring(precision="bfloat16"))
    strict = called(slide, cascade, piece_cells=6, settings=Scoring(precision="bfloat16", exact=True))
    assert np.array_equal(strict, expected)
    assert (low == expected).mean() > 0.8
    assert not torch.are_deterministic_algorithms_enabled()


def test_probabilities_are_those_of_the_stages_and_nan_where_none_was_asked(slide, cascade, monkeypatch):
    monkeypatch.setattr(slide_module, "find_tissue", lambda _, grid: np.ones((grid.rows, grid.columns), bool))
    cascade.primary.temperature = 2.0
    try:
        scores = score_slide(
            slide, cascade=cascade, settings=Scoring(probabilities=True, runtime="torch"), device=CPU
        )
    finally:
        cascade.primary.temperature = 1.0
    first, second = scores.probabilities.astype(np.float32)
    halo = cascade.primary.halo_px
    with torch.inference_mode():
        logits = cascade.primary(white_around(slide, halo))[0, :, halo // 10 :, halo // 10 :] / 2.0
    wanted = logits.softmax(0)[1].numpy()[: first.shape[0], : first.shape[1]]
    assert np.abs(first - wanted).max() < 1e-3
    assert np.array_equal(np.isnan(second), wanted <= 0.5)


def test_what_tiles_of_another_size_have_left_is_not_taken_for_theirs(slide, cascade, tmp_path, monkeypatch):
    monkeypatch.setattr(slide_module, "find_tissue", lambda _, grid: np.ones((grid.rows, grid.columns), bool))

    def score(journal, tile_pieces: int):
        fresh = DenseCascade(cascade.primary, cascade.secondary)
        for stage in fresh.stages(runtime="torch", device=CPU, bfloat16=False):
            stage.piece_cells, stage.tile_pieces = 3, tile_pieces
        return score_slide(
            slide, cascade=fresh, settings=Scoring(runtime="torch"), device=CPU, journal=journal
        ).score_map.votes

    journal = tmp_path / "of.journal"
    small = score(journal, 2)
    assert b"TILE" in journal.read_bytes()
    assert np.array_equal(score(journal, 4), small)
    assert small.any()


def test_stopped_after_any_tile_it_goes_on_to_the_same_bits(slide, cascade, tmp_path, monkeypatch):
    computed = []
    margins = DenseScorer.margins
    monkeypatch.setattr(DenseScorer, "margins", lambda *given: computed.append(1) or margins(*given))

    def score(path) -> tuple[bytes, bytes]:
        computed.clear()
        book = Journal(path, key="of this slide")
        selected = np.ones((grid_of(slide).window_rows, grid_of(slide).window_columns), bool)
        scored = score_tiles(
            slide,
            grid_of(slide),
            selected,
            scorer=DenseScorer(
                cascade.stages(runtime="torch", device=CPU, bfloat16=False), grid_of(slide), piece_cells=4
            ),
            temperatures=(1.0, 1.0),
            settings=Scoring(probabilities=True),
            device=CPU,
            journal=book,
        )
        book.close()
        return scored.called.tobytes(), scored.probabilities.astype(np.float16).tobytes()

    whole = tmp_path / "whole.journal"
    expected = score(whole)
    tiles = len(computed)
    starts = [match.start() for match in re.finditer(b"TILE", whole.read_bytes())]
    assert len(starts) == tiles > 4
    for kept, start in enumerate(starts):
        stopped = tmp_path / f"{kept}.journal"
        stopped.write_bytes(whole.read_bytes()[: start + 10])  # in the middle of the next record
        assert score(stopped) == expected
        assert len(computed) == tiles - kept
        assert stopped.read_bytes() == whole.read_bytes()
    # Tiles in the middle that are done already are gone around.
    records = [whole.read_bytes()[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    for seed in range(6):
        gaps = tmp_path / "gaps.journal"
        kept = np.random.default_rng(seed).random(tiles) < 0.5
        some = [record for record, is_kept in zip(records, kept, strict=True) if is_kept]
        gaps.write_bytes(whole.read_bytes()[: starts[0]] + b"".join(some))
        assert score(gaps) == expected
        assert len(computed) == tiles - kept.sum()
