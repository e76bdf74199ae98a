"""What a real QuPath shows of a cropped and turned slide, against what we read of the same project."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from drawnframes import half, write_scn

from hnscc_qp.geometry import Crop, Mpp, PixelSize, Region, Turn
from hnscc_qp.progress import SILENT
from hnscc_qp.steps.context import Context
from hnscc_qp.study import Study

pytestmark = pytest.mark.qupath
ORIGIN = (96, 64)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that QuPath writes: the whole scan, cropped, turned, and cropped again."""
    if "PAQUO_QUPATH_DIR" not in os.environ:
        pytest.skip("no QuPath: set PAQUO_QUPATH_DIR")
    pytest.importorskip("paquo.projects")
    from jpype import JClass

    level = JClass("ch.qos.logback.classic.Level").ERROR
    JClass("org.slf4j.LoggerFactory").getLogger("ROOT").setLevel(level)
    noise = np.random.default_rng(3).integers(1, 256, (180, 260, 3), dtype=np.uint8)
    slide = write_scn(tmp_path / "drawn.scn", [noise, half(noise)], 0.25, ORIGIN)
    servers = "qupath.lib.images.servers."
    open_server = JClass(servers + "openslide.OpenslideServerBuilder")().buildServer
    builders = []
    for args in ((), ("--no-crop",)):
        plain = open_server(JClass("java.net.URI")(slide.as_uri()), *args)
        builders.append(plain.getBuilder())
        region = JClass("qupath.lib.regions.ImageRegion").createInstance(13, 7, 201, 140, 0, 0)
        cropped = JClass(servers + "CroppedImageServer")(plain, region)
        builders.append(cropped.getBuilder())
        rotation = JClass(servers + "RotatedImageServer$Rotation")
        for name in ("ROTATE_90", "ROTATE_180", "ROTATE_270"):
            turned = JClass(servers + "RotatedImageServer")(cropped, rotation.valueOf(name))
            builders.append(turned.getBuilder())
            again = JClass("qupath.lib.regions.ImageRegion").createInstance(20, 30, 90, 81, 0, 0)
            builders.append(JClass(servers + "CroppedImageServer")(turned, again).getBuilder())
        for quarters in range(4):
            width, height = int(cropped.getWidth()), int(cropped.getHeight())
            moves = ((0, 0), (height, 0), (width, height), (0, width))
            affine = JClass("java.awt.geom.AffineTransform").getTranslateInstance(*moves[quarters])
            affine.quadrantRotate(quarters)
            transformed = JClass(servers + "TransformedServerBuilder")(cropped).transform(affine).build()
            builders.append(transformed.getBuilder())
        # As the import dialog does it, which leaves the outer builder without metadata.
        builders.append(
            JClass(servers + "RotatedImageServer").getRotatedBuilder(plain.getBuilder(), rotation.ROTATE_90)
        )
    image = JClass("java.awt.image.BufferedImage").class_
    folder = tmp_path / "project"
    folder.mkdir()
    made = JClass("qupath.lib.projects.Projects").createProject(JClass("java.io.File")(str(folder)), image)
    for builder in builders:
        made.addImage(builder)
    made.syncChanges()
    return folder / "project.qpproj"


def read_in_qupath(project: Path) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """Each image's pixels and calibration, as QuPath has them."""
    from jpype import JClass

    opened = JClass("qupath.lib.projects.ProjectIO").loadProject(
        JClass("java.io.File")(str(project)), JClass("java.awt.image.BufferedImage").class_
    )
    found = []
    for entry in opened.getImageList():
        server = entry.getServerBuilder().build()
        width, height = int(server.getWidth()), int(server.getHeight())
        request = JClass("qupath.lib.regions.RegionRequest").createInstance(
            server.getPath(), 1.0, 0, 0, width, height
        )
        image = server.readRegion(request)
        packed = np.array(image.getRGB(0, 0, width, height, None, 0, width)[:], np.int64)
        rgb = np.stack([packed >> shift & 0xFF for shift in (16, 8, 0)], axis=-1)
        calibration = server.getPixelCalibration()
        mpp = (float(calibration.getPixelWidthMicrons()), float(calibration.getPixelHeightMicrons()))
        found.append((rgb.reshape(height, width, 3).astype(np.uint8), mpp))
        server.close()
    return found


def test_every_view_is_what_qupath_shows(project):
    context = Context(
        Study(path=project.parent / "study.toml", name="views", project=project, backend="embedded"), SILENT
    )
    images = context.project.images
    assert [image.unsupported for image in images] == [None] * 26
    assert images[10].view == (Crop(13, 7, 201, 140), Turn(2))
    assert images[3].view == (Crop(13, 7, 201, 140), Turn(1), Crop(20, 30, 90, 81))
    for image, (expected, mpp) in zip(images, read_in_qupath(project), strict=True):
        slide = context.open_image(image)
        assert slide.size == (expected.shape[1], expected.shape[0])
        assert slide.pixel_size == PixelSize(*map(Mpp, mpp))
        pixels = slide.read(Region(0, 0, *slide.size), slide.pixel_size.x)
        if "--no-crop" in image.args:  # what was not imaged is black in QuPath, white here
            imaged = expected.any(axis=2)
            assert imaged.any()
            np.testing.assert_array_equal(pixels[imaged], expected[imaged])
            assert (pixels[~imaged] == 255).all()
        else:
            np.testing.assert_array_equal(pixels, expected)
