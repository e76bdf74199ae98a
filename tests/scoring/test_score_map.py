from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from hnscc_qp.errors import ScoreMapError
from hnscc_qp.scoring.probabilities import read_probabilities, write_probabilities
from hnscc_qp.scoring.score_map import ScoreMap, read_score_map, write_score_map

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


@pytest.fixture
def score_map(make_score_map) -> ScoreMap:
    """Three levels; a coverage of its own; numbers and names that are hard to keep."""
    votes = np.random.default_rng(2).integers(0, 9, (300, 601), dtype=np.uint8)
    votes[299, 600] = 16
    coverage = votes + np.uint8(7)
    coverage[299, 600] = 16
    made = make_score_map(votes, pixel_size=(0.1 + 0.2, 1 / 3), cut=0.4)
    return replace(
        made,
        coverage=coverage,
        provenance={"slide": 'a <b> & "c" µ \x01\n é 🙂.svs', "empty": "", "model": "f00"},
    )


def test_a_score_map_reads_back_exactly(tmp_path, score_map):
    path = tmp_path / "deep" / "map.ome.tif"
    write_score_map(path, score_map)
    back = read_score_map(path)
    assert np.array_equal(back.votes, score_map.votes)
    assert np.array_equal(back.coverage, score_map.coverage)
    assert back.votes.dtype == back.coverage.dtype == np.uint8
    for name in ("grid", "image_size_px", "windows", "unreadable", "provenance"):
        assert getattr(back, name) == getattr(score_map, name)
    assert [item.name for item in path.parent.iterdir()] == ["map.ome.tif"]


@pytest.mark.parametrize("shape", [(4, 4), (1, 256), (257, 1)])
def test_score_maps_of_any_size_read_back(tmp_path, make_score_map, shape):
    made = make_score_map(np.full(shape, 3, np.uint8))
    write_score_map(tmp_path / "map.ome.tif", made)
    assert np.array_equal(read_score_map(tmp_path / "map.ome.tif").votes, made.votes)


def test_the_same_score_map_gives_the_same_bytes_and_another_gives_others(tmp_path, score_map):
    paths = [tmp_path / name for name in ("a.ome.tif", "b.ome.tif", "c.ome.tif")]
    write_score_map(paths[0], score_map)
    write_score_map(paths[1], score_map)
    write_score_map(paths[2], replace(score_map, provenance={"slide": "another"}))
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second
    assert first != third


def test_damage_is_told_from_glass_in_the_file(tmp_path, score_map):
    lost = np.zeros_like(score_map.votes)
    lost[10:20, 30:50] = 16
    coverage = np.where(lost, 0, score_map.coverage).astype(np.uint8)
    votes = np.where(lost, 0, score_map.votes).astype(np.uint8)
    write_score_map(tmp_path / "map.ome.tif", replace(score_map, votes=votes, coverage=coverage, lost=lost))
    assert np.array_equal(read_score_map(tmp_path / "map.ome.tif").lost, lost)
    assert np.array_equal(tifffile.imread(tmp_path / "map.ome.tif")[2], lost)


def test_probabilities_are_tiled_with_a_pyramid_of_maxima_and_read_back(tmp_path, score_map):
    shape = (2, score_map.grid.window_rows, score_map.grid.window_columns)
    values = np.random.default_rng(4).random(shape).astype(np.float16)
    values[1, :, 1:] = np.nan
    path = tmp_path / "side.ome.tif"
    write_probabilities(path, values, score_map)
    assert np.array_equal(read_probabilities(path), values, equal_nan=True)
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        assert [level.shape[0] for level in levels] == [2, 2, 2]
        assert all(level.pages[0].is_tiled for level in levels)
        lowest = levels[2].asarray()
    assert lowest[0, 3, 5] == values[0, 12:16, 20:24].max()
    # Where no stage was asked of some, the others count.
    assert lowest[1, 3, 0] == values[1, 12:16, 0].max()
    assert np.isnan(lowest[1, 3, 1])


def test_other_readers_see_three_channels_and_a_pyramid_of_maxima(tmp_path, score_map):
    path = tmp_path / "map.ome.tif"
    write_score_map(path, score_map)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        series = tiff.series[0]
        assert series.axes == "CYX"
        assert [level.shape for level in series.levels] == [(3, 300, 601), (3, 150, 301), (3, 75, 151)]
        assert all(level.pages[0].is_tiled for level in series.levels)
        lowest = series.levels[2].asarray()
    # The single full block of the last corner is visible from afar.
    assert lowest[0, -1, -1] == 16
    for y, x in ((0, 0), (40, 77), (74, 150)):
        assert lowest[0, y, x] == score_map.votes[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].max()
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), score_map.votes)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (601, 300)
        assert slide.read_region((600, 299), 0, (1, 1)).getpixel((0, 0)) == (16, 16, 16, 255)


def test_the_ome_xml_says_channels_and_ten_micrometres(tmp_path, score_map):
    path = tmp_path / "map.ome.tif"
    write_score_map(path, score_map)
    root = ET.fromstring(tifffile.TiffFile(path).ome_metadata)
    pixels = root.find(f"{OME}Image/{OME}Pixels")
    assert pixels is not None
    assert [channel.get("Name") for channel in pixels.iter(f"{OME}Channel")] == [
        "votes",
        "coverage",
        "unreadable",
    ]
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit")) == ("10.0", "µm")
    assert pixels.get("SizeX") == "601"
    annotation = root.find(f"{OME}StructuredAnnotations/{OME}MapAnnotation")
    reference = root.find(f"{OME}Image/{OME}AnnotationRef")
    assert annotation is not None
    assert reference is not None
    assert annotation.get("ID") == reference.get("ID")


def test_damaged_files_are_named_with_a_remedy(tmp_path, score_map):
    path = tmp_path / "map.ome.tif"
    write_score_map(path, score_map)
    whole = path.read_bytes()
    for name, data in (
        ("empty", b""),
        ("text", b"votes\n"),
        ("half", whole[: len(whole) // 2]),
        ("head", whole[:200]),
        ("pixels", whole[:6000] + bytes(2000) + whole[8000:]),
        ("key", whole.replace(b'K="windows"', b'K="wind0ws"')),
        ("value", whole.replace(b'K="unreadable">', b'K="unreadable">{')),
    ):
        assert data != whole
        damaged = tmp_path / f"{name}.ome.tif"
        damaged.write_bytes(data)
        with pytest.raises(ScoreMapError, match=rf"{name}\.ome\.tif is .*; score the slide again") as caught:
            read_score_map(damaged)
        assert "\n" not in str(caught.value)


def test_a_map_of_an_older_version_is_named_so_and_not_called_damaged(tmp_path, score_map):
    path, old = tmp_path / "map.ome.tif", tmp_path / "old.ome.tif"
    write_score_map(path, score_map)
    with tifffile.TiffFile(path) as tiff, tifffile.TiffWriter(old) as writer:
        told = tiff.ome_metadata.replace('SizeC="3"', 'SizeC="2"').encode()
        for page in tiff.pages[:2]:  # votes and coverage
            writer.write(page.asarray(), description=told, metadata=None, photometric="minisblack")
            told = None
    with pytest.raises(ScoreMapError, match=r"of an older version.*score the slide again \(.*\)$"):
        read_score_map(old)


def test_images_of_others_and_missing_files_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "other.ome.tif", np.zeros((2, 8, 8), np.uint8), metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((8, 8), np.uint8))
    for name in ("other.ome.tif", "plain.tif"):
        with pytest.raises(ScoreMapError, match="is not a score map of hnscc-qp"):
            read_score_map(tmp_path / name)
    with pytest.raises(ScoreMapError, match="there is no score map"):
        read_score_map(tmp_path / "gone.ome.tif")


def test_more_votes_than_windows_are_refused(score_map):
    with pytest.raises(ScoreMapError, match="more votes than windows"):
        replace(score_map, votes=score_map.coverage + np.uint8(1))
    with pytest.raises(ScoreMapError, match="shape"):
        replace(score_map, coverage=score_map.coverage[1:])
