"""Dense scoring: the same votes however the slide is cut, and the same as one tile of everything."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch

from hnscc_qp.errors import StudyError
from hnscc_qp.geometry import Grid
from hnscc_qp.models import onnx_runtime
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.models.dense import DenseCascade, DenseClassifier, windows_of_cells
from hnscc_qp.models.parts import Layer, Parts, TorchRuntime, take_apart
from hnscc_qp.scoring import pipeline
from hnscc_qp.scoring import slide as slide_module
from hnscc_qp.scoring.dense import DenseScorer
from hnscc_qp.scoring.journal import Journal
from hnscc_qp.scoring.pipeline import score_tiles
from hnscc_qp.scoring.slide import choose_mode, score_slide
from hnscc_qp.study import Scoring

CPU = torch.device("cpu")
RUNTIMES = [
    "torch",
    pytest.param(
        "onnxruntime",
        marks=pytest.mark.skipif(not onnx_runtime.is_installed(), reason="needs hnscc-qp[onnxruntime]"),
    ),
]


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


@pytest.fixture(scope="module")
def slide():
    from scoring.conftest import ArraySlide

    rng = np.random.default_rng(7)
    pixels = np.kron(rng.integers(0, 256, (9, 12, 3)), np.ones((20, 20, 1)))
    pixels = pixels + rng.integers(-40, 40, pixels.shape)
    return ArraySlide(pixels.clip(0, 255).astype(np.uint8)[:163, :237])


@pytest.fixture(scope="module")
def cascade(slide) -> DenseCascade:
    torch.set_num_threads(1)
    return DenseCascade(small_stage(slide, seed=1), small_stage(slide, seed=2))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_real_network_votes_alike_on_two_tilings(runtime):
    from scoring.conftest import ArraySlide

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


@pytest.fixture(scope="module")
def expected(slide, cascade) -> np.ndarray:
    return in_one_pass(slide, cascade)


def in_one_pass(slide, cascade: DenseCascade) -> np.ndarray:
    """Both stages over the whole slide, with more white around it than they need."""
    more = max(stage.halo_px for stage in (cascade.primary, cascade.secondary)) // 10 * 10 + 40
    pixels = white_around(slide, more)
    with torch.inference_mode():
        first, second = (stage(pixels)[0] for stage in (cascade.primary, cascade.secondary))
    tumor = ((first[1] > first[0]) & (second[1] > second[0])).numpy()[more // 10 :, more // 10 :]
    grid = grid_of(slide)
    return tumor[: grid.window_rows, : grid.window_columns]


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


def test_every_piece_is_read_once_and_computed_once(slide, cascade, monkeypatch):
    passed = []
    run = TorchRuntime.run
    monkeypatch.setattr(
        TorchRuntime,
        "run",
        lambda self, number, pieces: passed.append((self, number, pieces)) or run(self, number, pieces),
    )
    slide.reads.clear()
    called(slide, DenseCascade(cascade.primary, None), piece_cells=4)
    assert len({(region.x, region.y) for region in slide.reads}) == len(slide.reads) > 30
    first, second, last = (sum(len(at) for _, number, at in passed if number == part) for part in range(3))
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
    assert sum(len(at) for _, number, at in passed if number == 0) == 2 * 2 + 1


@pytest.mark.parametrize("share", [1.0, 0.3, 0.02])
def test_what_waits_for_tiles_to_come_is_two_rows_of_pieces_whatever_the_height(cascade, monkeypatch, share):
    from scoring.conftest import ArraySlide

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


def test_of_a_few_windows_no_more_is_computed_than_they_depend_on(slide, cascade, monkeypatch):
    passed = []
    run = TorchRuntime.run
    monkeypatch.setattr(
        TorchRuntime,
        "run",
        lambda self, number, pieces: passed.extend(pieces) or run(self, number, pieces),
    )
    selected = np.zeros_like(called(slide, cascade, piece_cells=48))
    whole = sum(piece[..., 0].numel() for piece in passed)
    selected[3:5, 2:4] = True
    passed.clear()
    slide.reads.clear()
    called(slide, DenseCascade(cascade.primary, None), piece_cells=48, selected=selected.astype(bool))
    assert sum(piece[..., 0].numel() for piece in passed) < whole / 4
    assert sum(region.width * region.height for region in slide.reads) < 300 * 300


def test_what_is_left_of_pieces_has_few_sizes(slide, cascade, monkeypatch):
    sizes: dict[int, set[tuple[int, ...]]] = {}
    run = TorchRuntime.run

    def seen(self, number, pieces):
        sizes.setdefault(number, set()).update(tuple(piece.shape) for piece in pieces)
        return run(self, number, pieces)

    monkeypatch.setattr(TorchRuntime, "run", seen)
    selected = np.random.default_rng(3).random(called(slide, cascade, piece_cells=48).shape) < 0.02
    sizes.clear()
    called(slide, cascade, piece_cells=8, selected=selected, crop_cells=4)
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


def test_a_stride_of_twenty_is_every_second_window(slide, cascade, expected):
    found = called(slide, cascade, piece_cells=6, step_px=20)
    rows, columns = (min(a, b) for a, b in zip(found.shape, expected[::2, ::2].shape, strict=True))
    assert np.array_equal(found[:rows, :columns], expected[::2, ::2][:rows, :columns])


def test_a_stride_of_five_holds_the_windows_of_ten_and_those_of_a_shifted_slide(slide, cascade, expected):
    from scoring.conftest import ArraySlide

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
