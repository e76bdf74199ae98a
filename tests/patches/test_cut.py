from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.slides.reader import Slide, open_slide


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    pixels = np.random.default_rng(5).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128), compression="deflate")
    return open_slide(tmp_path / "a.tif", pixel_size=PixelSize(Mpp(0.4), Mpp(0.4)))


@pytest.mark.parametrize("block", [1000, 70])
def test_windows_cut_together_are_those_read_one_by_one(slide, monkeypatch, block):
    monkeypatch.setattr("hnscc_qp.patches.cut._BLOCK_PX", block)
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
