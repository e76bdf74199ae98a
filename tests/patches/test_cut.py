from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from hnscc_qp.errors import SlideReadError
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
    assert (cut_windows(slide, grid, columns * 10, rows * 10, threads=3) == pixels).all()
    assert cut_windows(slide, grid, [], []).shape == (0, 40, 40, 3)


def test_few_windows_far_apart_are_read_in_small_blocks_all_the_same_pixels(slide, monkeypatch):
    monkeypatch.setattr("hnscc_qp.patches.cut._SMALLEST_BLOCK_PX", 40)
    monkeypatch.setattr("hnscc_qp.patches.cut._SPARSE", 0.9)
    grid = Grid.over(slide.size, slide.pixel_size, mpp=Mpp(1.0), step_px=10, window_px=40)
    read = []
    monkeypatch.setattr(Slide, "read", lambda *a, read_=Slide.read: (read.append(a[1]), read_(*a))[1])
    pixels = cut_windows(slide, grid, [0, 300, 310], [0, 190, 200])
    assert len(read) == 2 and max(region.width for region in read) < 200
    for n, (x, y) in enumerate([(0, 0), (300, 190), (310, 200)]):
        assert (pixels[n] == slide.read(grid.window(y // 10, x // 10), Mpp(1.0))).all()


def test_windows_on_a_damaged_tile_are_named_and_the_others_cut(slide, monkeypatch):
    grid = Grid.over(slide.size, slide.pixel_size, mpp=Mpp(1.0), step_px=10, window_px=40)
    places = [(x, y) for y in range(0, 200, 40) for x in range(0, 320, 40)]
    whole = cut_windows(slide, grid, *zip(*places, strict=True))
    damage_tile(slide.path, 3)  # of 128 px, the fourth in the first row: 384 to 512 px, 153.6 to 204.8 µm
    torn = open_slide(slide.path, pixel_size=slide.pixel_size)
    with pytest.raises(SlideReadError):
        cut_windows(torn, grid, *zip(*places, strict=True))
    lost: list = []
    cut = cut_windows(torn, grid, *zip(*places, strict=True), unreadable=lost)
    hit = {n for n, (x, y) in enumerate(places) if x + 40 > 153.6 and x < 204.8 and y < 51.2}
    assert [number for number, _ in lost] == sorted(hit)
    assert all((cut[n] == whole[n]).all() for n in set(range(len(places))) - hit)


def test_several_threads_name_the_same_windows_of_a_damaged_slide(slide, monkeypatch):
    monkeypatch.setattr("hnscc_qp.patches.cut._BLOCK_PX", 70)
    grid = Grid.over(slide.size, slide.pixel_size, mpp=Mpp(1.0), step_px=10, window_px=40)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, 320, 20), np.arange(0, 200, 20)))
    damage_tile(slide.path, 3)
    torn = open_slide(slide.path, pixel_size=slide.pixel_size)
    lost: tuple[list, list] = [], []
    alone, shared = (
        cut_windows(torn, grid, x, y, unreadable=some, threads=threads)
        for some, threads in zip(lost, (1, 3), strict=True)
    )
    assert (alone == shared).all()
    assert [number for number, _ in lost[0]] == [number for number, _ in lost[1]] != []
    with pytest.raises(SlideReadError):
        cut_windows(torn, grid, x, y, threads=3)


def damage_tile(path: Path, number: int) -> None:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)
