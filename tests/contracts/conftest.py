"""Both ways into a project, over copies of QuPath's own samples and a small project of the QuPath at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from contract_helpers import copy_tree

from hnscc_qp.qupath import jvm, project
from hnscc_qp.qupath.create import NewImage, create_project
from hnscc_qp.qupath.objects import PathClass

Open = Callable[..., project.Project]

_BACKENDS = ["embedded", pytest.param("paquo", marks=pytest.mark.qupath)]


@pytest.fixture(scope="session")
def qupath_dir() -> Path:
    """The QuPath that PAQUO_QUPATH_DIR names, started; without it the test is skipped."""
    if "PAQUO_QUPATH_DIR" not in os.environ:
        pytest.skip("no QuPath: set PAQUO_QUPATH_DIR")
    pytest.importorskip("paquo", reason="paquo is not installed")
    jvm._start_qupath()
    return Path(os.environ["PAQUO_QUPATH_DIR"])


@pytest.fixture(params=_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "paquo":
        request.getfixturevalue("qupath_dir")
    return str(request.param)


@pytest.fixture
def open_with(backend: str) -> Open:
    return partial(project.open_project, backend=backend)


@pytest.fixture(params=["0.3.2", "0.5.1", "0.6.0"])
def sample(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> Path:
    """A writable copy of a project that QuPath wrote, moved, with its slides moved likewise."""
    samples = shared / "qupath" / "samples"
    folder = tmp_path / "moved" / f"qupath-{request.param}"
    copy_tree(samples / folder.name, folder)
    (tmp_path / "moved" / "slides").symlink_to(samples / "slides")
    return folder


@pytest.fixture
def expected(sample: Path) -> dict:
    return json.loads((sample / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def new_project(tmp_path: Path) -> Path:
    """A project over a drawn slide, not saved by QuPath yet, in a folder with a dot and umlauts."""
    place = tmp_path / "Fälle 2.0 组织"
    place.mkdir()
    slide = place / "Präparat 1.tif"
    tifffile.imwrite(slide, np.full((400, 600, 3), 255, np.uint8), tile=(128, 128), photometric="rgb")
    image = NewImage(slide, "Präparat 1", (600, 400), [(1, 600, 400)])
    return create_project(
        place / "project", [image], path_classes=[PathClass(("Tumor",), (200, 0, 0))]
    ).parent


@pytest.fixture
def writable(sample: Path, backend: str) -> Path:
    """A sample that the backend may write to: not of a newer QuPath than the one at hand."""
    if backend == "paquo":
        running = jvm._start_qupath().release
        if tuple(map(int, sample.name.removeprefix("qupath-").split(".")[:2])) > running:
            pytest.skip(
                f"{sample.name} is newer than the QuPath at hand: that it is refused is another test's"
            )
    return sample
