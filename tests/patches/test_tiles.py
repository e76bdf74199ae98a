from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hnscc_qp.errors import SealedSplitError, StepError
from hnscc_qp.patches.seal import Member, SealedSplit
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.stored import Part
from hnscc_qp.patches.tiles import (
    PIECE_PX,
    PIECE_WINDOWS,
    TileRow,
    choose_pieces,
    open_development_tiles,
    open_test_tiles,
    piece_labels,
    write_tiles,
)

SPLIT = SealedSplit(
    {
        "1": Member("P1", True, Side.TRAIN),
        "2": Member("P2", True, Side.VALIDATION),
        "3": Member("P3", False, Side.TEST),
    },
    "0" * 64,
)


def row(entry: str, side: Side) -> TileRow:
    return TileRow(entry, f"S{entry}", f"P{entry}", side, 450, 0, 450.0, 0.0, 3, 4, "abc")


def chunk(rows: list[TileRow], seed: int = 1):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (len(rows), PIECE_PX, PIECE_PX, 3)).astype(np.uint8)
    labels = generator.integers(0, 3, (len(rows), PIECE_WINDOWS, PIECE_WINDOWS)).astype(np.uint8)
    return rows, pixels, labels


def test_each_window_lies_in_just_one_piece() -> None:
    labels = np.arange(100 * 47).reshape(100, 47) % 251
    pieces = piece_labels(labels.astype(np.uint8))
    assert pieces.shape == (3, 2, 45, 45)
    seen = np.zeros(labels.shape, int)
    for row_number in range(100):
        for column in range(47):
            piece = pieces[row_number // 45, column // 45]
            assert piece[row_number % 45, column % 45] == labels[row_number, column]
            seen[row_number, column] += 1
    assert (seen == 1).all()
    assert (pieces == 2).sum() >= 3 * 2 * 45 * 45 - labels.size  # what is left over is ignored


def test_pieces_are_chosen_half_with_tumor_and_evenly_over_slides() -> None:
    slide = ["A"] * 100 + ["B"] * 30 + ["C"] * 10
    tumor = np.arange(140) % 5 == 0  # 20, 6 and 2
    side = [Side.TRAIN] * 140
    chosen = choose_pieces(tumor=tumor, side=side, slide=slide, max_tiles=40, seed=1)
    assert len(chosen) == 40
    assert tumor[chosen].sum() == 20
    names = np.array(slide)[chosen]
    assert [int((names[tumor[chosen]] == name).sum()) for name in "ABC"] == [12, 6, 2]
    without = [int((names[~tumor[chosen]] == name).sum()) for name in "ABC"]
    assert sum(without) == 20 and max(without) - min(without) <= 1
    again = choose_pieces(tumor=tumor, side=side, slide=slide, max_tiles=40, seed=1)
    np.testing.assert_array_equal(chosen, again)
    other = choose_pieces(tumor=tumor, side=side, slide=slide, max_tiles=40, seed=2)
    assert not np.array_equal(chosen, other)


def test_what_there_is_is_taken_where_the_cap_is_higher() -> None:
    side = [Side.TRAIN, Side.VALIDATION, Side.TEST] * 5
    chosen = choose_pieces(tumor=np.zeros(15, bool), side=side, slide=list("ABC") * 5, max_tiles=10, seed=1)
    np.testing.assert_array_equal(chosen, np.arange(15))


def test_tiles_come_back_from_their_files(tmp_path: Path) -> None:
    first, second = chunk([row("1", Side.TRAIN)], 1), chunk([row("2", Side.VALIDATION)], 2)
    hashes = write_tiles(tmp_path, Part.DEVELOPMENT, iter([first, second]), count=2, split=SPLIT)
    assert set(hashes) == {f"development/{name}" for name in ("tiles.npy", "labels.npy", "tiles.parquet")}
    cut = open_development_tiles(tmp_path, SPLIT)
    assert isinstance(cut.pixels, np.memmap)
    np.testing.assert_array_equal(cut.pixels, np.concatenate([first[1], second[1]]))
    np.testing.assert_array_equal(cut.labels, np.concatenate([first[2], second[2]]))
    assert cut.patient.tolist() == ["P1", "P2"]
    assert cut.on(Side.VALIDATION).tolist() == [1]
    assert cut.table.to_pylist()[0]["image_sha256"] == "abc"


def test_tile_of_a_test_patient_can_not_be_among_those_to_learn_from(tmp_path: Path) -> None:
    tested = chunk([row("3", Side.TEST)])
    with pytest.raises(SealedSplitError, match="P3, a test patient"):
        write_tiles(tmp_path, Part.DEVELOPMENT, iter([tested]), count=1, split=SPLIT)
    write_tiles(tmp_path, Part.TEST, iter([tested]), count=1, split=SPLIT)
    assert len(open_test_tiles(tmp_path, SPLIT)) == 1
    # Nor by a rename of the folder, nor by a table that calls it one of training.
    (tmp_path / "test").rename(tmp_path / "development")
    with pytest.raises(SealedSplitError, match="P3, a test patient"):
        open_development_tiles(tmp_path, SPLIT)
    lying = chunk([row("3", Side.TRAIN)])
    with pytest.raises(SealedSplitError):
        write_tiles(tmp_path, Part.DEVELOPMENT, iter([lying]), count=1, split=SPLIT)


def test_missing_and_foreign_tiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="run: hnscc-qp tiles"):
        open_development_tiles(tmp_path, SPLIT)
    write_tiles(tmp_path, Part.DEVELOPMENT, iter([chunk([row("1", Side.TRAIN)])]), count=1, split=SPLIT)
    other = SealedSplit({"1": Member("P1", True, Side.VALIDATION)}, "0" * 64)
    with pytest.raises((StepError, SealedSplitError), match="split"):
        open_development_tiles(tmp_path, other)


def test_no_tiles_at_all_are_files_too(tmp_path: Path) -> None:
    write_tiles(tmp_path, Part.TEST, iter([]), count=0, split=SPLIT)
    assert len(open_test_tiles(tmp_path, SPLIT)) == 0
