"""A project made without QuPath: its files here, and what a real QuPath makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import tifffile
from PIL import Image
from shapely import box

from hnscc_qp.errors import GeoJsonError, ProjectError
from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.qupath.create import NewImage, create_project
from hnscc_qp.qupath.geojson import read_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind

TUMOR = PathClass(("Tumor",), (200, 0, 0))
ANNOTATION = PathObject(
    ObjectType.ANNOTATION,
    box(10, 20, 110, 70),
    RoiKind.RECTANGLE,
    5000.0,
    UUID(int=5, version=4),
    path_class=TUMOR,
)


def draw_slide(path: Path) -> None:
    """A tiled pyramidal TIFF of 600 × 400 and 300 × 200 px, red on the left half."""
    pixels = np.full((400, 600, 3), 255, np.uint8)
    pixels[:, :300] = (200, 0, 0)
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
        writer.write(pixels, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **options)
        writer.write(pixels[::2, ::2], subfiletype=1, **options)


def new_image(slide: Path, **fields: Any) -> NewImage:
    return NewImage(
        slide, **{"name": slide.name, "size": (600, 400), "levels": [(1, 600, 400), (2, 300, 200)]} | fields
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    slide = tmp_path / "slides" / "case 1 (ä).tif"
    slide.parent.mkdir()
    draw_slide(slide)
    first = new_image(
        slide,
        name="case/1: ä",
        pixel_size=PixelSize(Mpp(0.5), Mpp(0.25)),
        metadata={"patient": "HN-1"},
        description="two\nlines",
        annotations=[ANNOTATION],
        thumbnail=Image.new("RGBA", (60, 40), "pink"),
    )
    classes = [TUMOR, PathClass(("AI", "Tumor"), (255, 127, 14))]
    return create_project(tmp_path / "pro ject.1", [first, new_image(slide)], path_classes=classes)


def test_a_project_holds_each_image_as_qupath_would_store_it(project: Path, tmp_path: Path) -> None:
    value = json.loads(project.read_text(encoding="utf-8"))
    assert value["uri"] == project.as_uri()
    assert value["lastID"] == 2
    first, second = value["images"]
    assert (first["entryID"], first["imageName"], first["description"]) == (1, "case/1: ä", "two\nlines")
    assert first["metadata"] == {"patient": "HN-1"}
    builder = first["serverBuilder"]
    assert builder["uri"] == (tmp_path / "slides" / "case 1 (ä).tif").as_uri()
    calibration = builder["metadata"]["pixelCalibration"]
    assert calibration["pixelWidth"] == {"value": 0.5, "unit": "µm"}
    assert calibration["pixelHeight"] == {"value": 0.25, "unit": "µm"}
    assert json.loads((project.parent / "data/1/server.json").read_text(encoding="utf-8")) == builder
    assert second["serverBuilder"]["metadata"]["pixelCalibration"]["pixelWidth"] == {
        "value": 1.0,
        "unit": "px",
    }
    assert "description" not in second


def test_the_builder_has_the_members_of_one_that_qupath_wrote(project: Path, shared: Path) -> None:
    sample = json.loads((shared / "qupath/samples/qupath-0.6.0/project.qpproj").read_text(encoding="utf-8"))
    ours = json.loads(project.read_text(encoding="utf-8"))["images"][0]["serverBuilder"]
    theirs = sample["images"][0]["serverBuilder"]
    assert ours.keys() == theirs.keys()
    assert ours["metadata"].keys() == theirs["metadata"].keys()
    for constant in ("channels", "channelType", "pixelType", "isRGB", "sizeZ", "sizeT"):
        assert ours["metadata"][constant] == theirs["metadata"][constant]
    assert ours["providerClassName"] == theirs["providerClassName"]


def test_classes_have_javas_colours(project: Path) -> None:
    value = json.loads((project.parent / "classifiers/classes.json").read_text(encoding="utf-8"))
    # -3670016 is what QuPath writes for its own Tumor, (200, 0, 0).
    assert value == {
        "pathClasses": [{"name": "Tumor", "color": -3670016}, {"name": "AI: Tumor", "color": -33010}]
    }


def test_annotations_lie_beside_the_project_and_qupaths_own_file_is_never_written(project: Path) -> None:
    (path,) = (project.parent / "annotations").iterdir()
    assert path.name == "1 case_1_ ä.geojson"
    (item,) = read_geojson(path).objects
    assert (item.id, item.path_class) == (ANNOTATION.id, TUMOR)
    assert item.roi.equals(ANNOTATION.roi)
    assert not [*project.parent.rglob("*.qpdata")]


def test_a_thumbnail_is_a_jpeg(project: Path) -> None:
    with Image.open(project.parent / "data/1/thumbnail.jpg") as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (60, 40))
    assert not (project.parent / "data/2/thumbnail.jpg").exists()


def test_a_folder_with_a_project_or_its_objects_is_refused(project: Path) -> None:
    before = project.read_bytes()
    with pytest.raises(ProjectError, match="another folder"):
        create_project(project.parent, [], path_classes=[])
    assert project.read_bytes() == before
    project.unlink()
    (project.parent / "data/1/data.qpdata").touch()
    with pytest.raises(ProjectError, match="another folder"):
        create_project(project.parent, [], path_classes=[])


def test_a_project_that_could_not_be_finished_is_no_project_and_can_be_made_again(tmp_path: Path) -> None:
    bad = PathObject(ObjectType.ANNOTATION, box(0, 0, 0.001, 0.001), RoiKind.RECTANGLE, 0.0)
    with pytest.raises(GeoJsonError):
        create_project(tmp_path, [new_image(tmp_path / "a.tif", annotations=[bad])], path_classes=[])
    assert not [*tmp_path.glob("*.qpproj")]
    assert create_project(tmp_path, [new_image(tmp_path / "a.tif")], path_classes=[]).is_file()


def test_an_image_whose_first_level_is_not_its_size_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first level"):
        new_image(tmp_path / "a.tif", size=(601, 400))


@pytest.mark.qupath
def test_a_real_qupath_opens_the_project_and_reads_its_pixels(project: Path) -> None:
    if "PAQUO_QUPATH_DIR" not in os.environ:
        pytest.skip("no QuPath: set PAQUO_QUPATH_DIR")
    projects = pytest.importorskip("paquo.projects")
    import jpype

    with projects.QuPathProject(project, mode="r") as opened:
        first, second = opened.images
        assert (first.image_name, first.entry_id, first.description) == ("case/1: ä", "1", "two\nlines")
        assert dict(first.metadata) == {"patient": "HN-1"}
        assert [(image.width, image.height) for image in opened.images] == [(600, 400), (600, 400)]
        assert [str(path_class.java_object.toString()) for path_class in opened.path_classes] == [
            "Tumor",
            "AI: Tumor",
        ]
        assert [path_class.color.to_rgb() for path_class in opened.path_classes] == [
            (200, 0, 0),
            (255, 127, 14),
        ]
        server = first.java_object.readImageData().getServer()
        assert float(server.getPixelCalibration().getPixelWidthMicrons()) == 0.5
        assert float(server.getPixelCalibration().getPixelHeightMicrons()) == 0.25
        assert int(server.nResolutions()) == 2
        assert not second.java_object.readImageData().getServer().getPixelCalibration().hasPixelSizeMicrons()
        request = jpype.JClass("qupath.lib.regions.RegionRequest").createInstance(
            server.getPath(), 2.0, 0, 0, 600, 400
        )
        pixels = server.readRegion(request)
        assert [pixels.getRGB(x, 100) & 0xFFFFFF for x in (50, 250)] == [0xC80000, 0xFFFFFF]
        assert int(first.java_object.getThumbnail().getWidth()) == 60
    assert not [*project.parent.rglob("*.qpdata")]
