"""A new QuPath project, written without QuPath, in the one form that QuPath 0.4 to 0.7 all open.

`data.qpdata` is QuPath's alone. So annotations are laid beside it as GeoJSON, for
`import_annotations.groovy` to take in, and the image type is left for QuPath to set.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from hnscc_qp.errors import ProjectError
from hnscc_qp.files import atomic_path, write_json
from hnscc_qp.geometry import PixelSize
from hnscc_qp.qupath.embedded import ANNOTATIONS_FOLDER
from hnscc_qp.qupath.geojson import default_color, pack_rgb, sidecar_name, write_geojson
from hnscc_qp.qupath.objects import PathClass, PathObject

_OPENSLIDE = "qupath.lib.images.servers.openslide.OpenslideServerBuilder"


@dataclass(frozen=True, slots=True)
class NewImage:
    """A slide for a new project, as QuPath will see it: cropped to the slide's bounds."""

    slide: Path
    name: str
    size: tuple[int, int]
    """(width, height) in QuPath px."""
    levels: Sequence[tuple[float, int, int]]
    """(downsample, width, height) of each, the full resolution first."""
    pixel_size: PixelSize | None = None
    """None leaves the image without a calibration."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    annotations: Sequence[PathObject] = ()
    thumbnail: Image.Image | None = None
    """RGB, shown in QuPath's list of images."""

    def __post_init__(self) -> None:
        if not self.levels or tuple(self.levels[0][1:]) != tuple(self.size):
            raise ValueError(f"the first level of {self.name} must have the image's size {self.size}")


def create_project(folder: Path, images: Sequence[NewImage], *, path_classes: Sequence[PathClass]) -> Path:
    """Write a project over `images`; returns its `.qpproj` file, which is written last.

    Images get the entry ids 1, 2, ... in their order. Annotations go to
    `annotations/<entry id> <image name>.geojson`. Slides are named by absolute URI.

    Raises:
        ProjectError: the folder already holds a project, or the objects of one.
        GeoJsonError: an annotation can't be written without loss.
    """
    if any(folder.glob("*.qpproj")) or any(folder.glob("data/*/data.qpdata")):
        raise ProjectError(f"{folder} already holds a QuPath project; choose another folder")
    project_file = folder.resolve() / "project.qpproj"
    entries = []
    for number, image in enumerate(images, start=1):
        builder = _server_builder(image)
        data = folder / "data" / str(number)
        # QuPath reads the builder in project.qpproj; this copy lets it mend a lost one.
        write_json(data / "server.json", builder)
        if image.thumbnail is not None:
            with atomic_path(data / "thumbnail.jpg") as partial:
                image.thumbnail.convert("RGB").save(partial, format="JPEG", quality=90)
        if image.annotations:
            name = sidecar_name(str(number), image.name)
            write_geojson(folder / ANNOTATIONS_FOLDER / name, image.annotations)
        entries.append(_entry(number, image, builder))
    if path_classes:
        write_json(folder / "classifiers" / "classes.json", {"pathClasses": [*map(_class, path_classes)]})
    now_ms = time.time_ns() // 1_000_000
    # "version" would be that of the QuPath that wrote the project: none did.
    project = {
        "createTimestamp": now_ms,
        "modifyTimestamp": now_ms,
        "uri": project_file.as_uri(),
        "lastID": len(entries),
        "images": entries,
    }
    write_json(project_file, project)
    return project_file


def _entry(number: int, image: NewImage, builder: Mapping[str, Any]) -> dict[str, Any]:
    entry = {
        "serverBuilder": builder,
        "entryID": number,
        "randomizedName": str(uuid.uuid4()),
        "imageName": image.name,
        "metadata": dict(image.metadata),
    }
    return entry if image.description is None else entry | {"description": image.description}


def _class(path_class: PathClass) -> dict[str, Any]:
    return {"name": str(path_class), "color": pack_rgb(default_color(path_class))}


def _server_builder(image: NewImage) -> dict[str, Any]:
    width, height = image.size
    return {
        "builderType": "uri",
        "providerClassName": _OPENSLIDE,
        "uri": image.slide.resolve().as_uri(),
        "args": [],
        "metadata": {
            "name": image.name,
            "width": width,
            "height": height,
            "sizeZ": 1,
            "sizeT": 1,
            "channelType": "DEFAULT",
            "isRGB": True,
            "pixelType": "UINT8",
            "levels": [
                {"downsample": float(downsample), "width": level_width, "height": level_height}
                for downsample, level_width, level_height in image.levels
            ],
            "channels": [
                {"name": "Red", "color": -65536},
                {"name": "Green", "color": -16711936},
                {"name": "Blue", "color": -16776961},
            ],
            "pixelCalibration": _calibration(image.pixel_size),
            # OpenSlide itself decides on tiles; these are QuPath's defaults.
            "preferredTileWidth": 256,
            "preferredTileHeight": 256,
        },
    }


def _calibration(pixel_size: PixelSize | None) -> dict[str, Any]:
    sides = (1.0, 1.0) if pixel_size is None else (float(pixel_size.x), float(pixel_size.y))
    unit = "px" if pixel_size is None else "µm"
    return {
        "pixelWidth": {"value": sides[0], "unit": unit},
        "pixelHeight": {"value": sides[1], "unit": unit},
        "zSpacing": {"value": 1.0, "unit": "z-slice"},
        "timeUnit": "SECONDS",
        "timepoints": [],
    }
