from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from hnscc_qp.errors import StepError
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.patches.dataset import PatchRow, cut_windows, read_dataset, write_dataset
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.split import Side
from hnscc_qp.slides.reader import Slide, open_slide


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    pixels = np.random.default_rng(5).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128), compression="deflate")
    return open_slide(tmp_path / "a.tif", pixel_size=PixelSize(Mpp(0.4), Mpp(0.4)))


def rows_of(number: int) -> list[PatchRow]:
    return [
        PatchRow(
            "7", "ä.tif", "P1", Side.TEST, 10 * n, 0, 25.0 * n, 0.0, Label(n % 2), "annotation", ("x",) * n
        )
        for n in range(number)
    ]


@pytest.mark.parametrize("block", [1000, 70])
def test_windows_cut_together_are_those_read_one_by_one(slide, monkeypatch, block):
    monkeypatch.setattr("hnscc_qp.patches.dataset._BLOCK_PX", block)
    grid = Grid.over(slide.size, slide.pixel_size, mpp=Mpp(1.0), step_px=10, window_px=40)
    rng = np.random.default_rng(1)
    rows, columns = rng.integers(0, grid.window_rows, 30), rng.integers(0, grid.window_columns, 30)
    reads = []
    monkeypatch.setattr(Slide, "read", lambda *a, read=Slide.read: (reads.append(1), read(*a))[1])
    pixels = cut_windows(slide, grid, columns * 10, rows * 10)
    assert len(reads) == 1 if block == 1000 else len(reads) < 30
    for n, (row, column) in enumerate(zip(rows, columns, strict=True)):
        assert (pixels[n] == slide.read(grid.window(int(row), int(column)), Mpp(1.0))).all()
    assert cut_windows(slide, grid, [], []).shape == (0, 40, 40, 3)


def test_a_dataset_reads_back_as_it_was_written(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    write_dataset(tmp_path, rows_of(5), pixels)
    patches = read_dataset(tmp_path)
    assert isinstance(patches.pixels, np.memmap) and (patches.pixels == pixels).all()
    assert patches.label.tolist() == [0, 1, 0, 1, 0] and patches.label.dtype == np.uint8
    assert set(patches.side) == {"test"}
    row = patches.table.slice(3, 1).to_pylist()[0]
    assert (row["patch"], row["slide"], row["x_qupath"], row["label"]) == (3, "ä.tif", 75.0, "tumor")
    assert (row["x_px"], row["reason"], row["annotation_ids"]) == (30, "annotation", ["x", "x", "x"])


def test_the_same_patches_give_the_same_bytes(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    for name in ("a", "b"):
        write_dataset(tmp_path / name, rows_of(5), pixels)
    for file in ("patches.npy", "patches.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["patches.npy", "patches.parquet"]


def test_missing_torn_and_mixed_up_patches_are_named(tmp_path):
    with pytest.raises(StepError, match="there are no patches in"):
        read_dataset(tmp_path)
    pixels = np.zeros((5, 40, 40, 3), np.uint8)
    write_dataset(tmp_path, rows_of(5), pixels)
    np.save(tmp_path / "patches.npy", pixels[:3])
    with pytest.raises(StepError, match="do not belong together"):
        read_dataset(tmp_path)
    for file in ("patches.parquet", "patches.npy"):
        (tmp_path / file).write_bytes(b"torn")
        with pytest.raises(StepError, match="are damaged"):
            read_dataset(tmp_path)
