"""Masks as files: kinds of PNG and TIFF, other resolutions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from hnscc_qp.errors import TruthError
from hnscc_qp.patches.sources.mask import read_mask

SIZE = (120, 80)
TUMOR = shapely.box(30, 20, 90, 60) - shapely.box(50, 30, 70, 50)


@pytest.fixture
def drawn():
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 30:90] = 255
    mask[30:50, 50:70] = 0
    return mask


def write_png(mask, path):
    Image.fromarray(mask).save(path)


def write_one_bit(mask, path):
    Image.fromarray(mask).convert("1").save(path)


def write_rgb(mask, path):
    Image.fromarray(mask).convert("RGB").save(path)


def write_palette(mask, path):
    Image.fromarray(mask // 255).convert("P").save(path)


def write_strips(mask, path):
    tifffile.imwrite(path, mask, rowsperstrip=7)


def write_tiles(mask, path):
    tifffile.imwrite(path, mask, tile=(32, 48), compression="deflate")


@pytest.mark.parametrize(
    ("write", "ending", "value"),
    [
        (write_png, ".png", 255),
        (write_one_bit, ".png", 1),
        (write_rgb, ".png", 255),
        (write_palette, ".png", 1),
        (write_strips, ".tif", 255),
        (write_tiles, ".tif", 255),
    ],
)
def test_every_kind_of_file_gives_the_same_outline_with_its_hole(drawn, tmp_path, write, ending, value):
    path = tmp_path / f"mask{ending}"
    write(drawn, path)
    [(name, polygon)] = read_mask(path, size=SIZE, classes={value: "Tumor"})
    assert name == "Tumor"
    assert polygon.equals(TUMOR)


@pytest.mark.parametrize("factor", [0.5, 4])
def test_a_mask_of_another_resolution_is_placed_on_the_image(drawn, tmp_path, factor):
    path = tmp_path / "mask.png"
    write_png(drawn, path)
    size = round(SIZE[0] * factor), round(SIZE[1] * factor)
    [(_, polygon)] = read_mask(path, size=size, classes={255: "Tumor"})
    assert polygon.equals(shapely.affinity.scale(TUMOR, factor, factor, origin=(0, 0)))


def test_several_values_are_several_classes_and_an_empty_class_is_none(drawn, tmp_path):
    drawn[30:50, 50:70] = 128
    drawn[:5] = 7
    write_png(drawn, tmp_path / "mask.png")
    found = dict(read_mask(tmp_path / "mask.png", size=SIZE, classes={255: "Tumor", 128: "Necrosis", 7: ""}))
    assert found["Necrosis"].equals(shapely.box(50, 30, 70, 50))
    assert found["Tumor"].equals(TUMOR)
    assert len(found) == 2


def test_other_proportions_are_refused_with_both_sizes(drawn, tmp_path):
    write_png(drawn, tmp_path / "mask.png")
    with pytest.raises(TruthError, match=r"120 × 80 px.*proportions.*400 × 320"):
        read_mask(tmp_path / "mask.png", size=(400, 320), classes={255: "Tumor"})


def test_a_value_that_nobody_named_is_refused_with_its_count(drawn, tmp_path):
    drawn[0, :3] = 254
    write_png(drawn, tmp_path / "mask.png")
    with pytest.raises(TruthError, match=r"does not name: 254 \(3 px\)"):
        read_mask(tmp_path / "mask.png", size=SIZE, classes={255: "Tumor"})


@pytest.mark.parametrize(
    ("name", "content"),
    [("mask.png", b"no picture"), ("mask.tif", b"II*\0 no picture"), ("mask.tif", b"")],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TruthError, match=rf"{name} can't be read"):
        read_mask(tmp_path / name, size=SIZE, classes={255: "Tumor"})


def test_a_truncated_tiff_is_named(drawn, tmp_path):
    write_tiles(drawn, tmp_path / "mask.tif")
    data = (tmp_path / "mask.tif").read_bytes()
    (tmp_path / "mask.tif").write_bytes(data[: len(data) - 150])
    with pytest.raises(TruthError, match=r"mask.tif can't be read"):
        read_mask(tmp_path / "mask.tif", size=SIZE, classes={255: "Tumor"})


def test_a_colour_picture_is_no_mask(tmp_path):
    picture = np.random.default_rng(1).integers(0, 255, (80, 120, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "mask.png")
    with pytest.raises(TruthError, match="colour picture"):
        read_mask(tmp_path / "mask.png", size=SIZE, classes={255: "Tumor"})
