"""Copies of QuPath's own projects, to be moved and damaged; a small project of our own for everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import javawriter as java
import pytest
from projectentry import entry


@pytest.fixture(params=["0.3.2", "0.5.1", "0.6.0"])
def sample(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> Path:
    """A writable copy of a project that QuPath wrote, with the slides beside it as they once were."""
    samples = shared / "qupath" / "samples"
    place = tmp_path / "moved"
    project = place / f"qupath-{request.param}"
    shutil.copytree(samples / project.name, project, copy_function=shutil.copyfile)
    for folder in (project, *(path for path in project.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    (place / "slides").symlink_to(samples / "slides")
    return project


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    """Writes a project of given entries, which once lay in /old/project."""

    def make(*entries: dict[str, Any], saved: bool = False, **more: Any) -> Path:
        folder = tmp_path / "new" / "project"
        (folder / "data" / "1").mkdir(parents=True)
        value = {
            "version": "0.6.0",
            "uri": "file:/old/project/project.qpproj",
            "lastID": len(entries),
            "images": entries or (entry(),),
        }
        (folder / "project.qpproj").write_text(json.dumps(value | more), encoding="utf-8")
        if saved:
            roi = java.bounded_roi("RectangleROI", 0, 0, 10, 20)
            data = java.qpdata([java.path_object("PathAnnotationObject", roi=roi)])
            (folder / "data" / "1" / "data.qpdata").write_bytes(data)
        return folder

    return make
