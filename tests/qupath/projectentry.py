"""An image as `project.qpproj` describes it."""

from __future__ import annotations

from typing import Any


def entry(number: int = 1, name: str = "case-01.svs", **builder: Any) -> dict[str, Any]:
    """One image of a `.qpproj`, as QuPath writes it."""
    server = {
        "builderType": "uri",
        "providerClassName": "qupath.lib.images.servers.openslide.OpenslideServerBuilder",
        "uri": f"file:/old/slides/{name}",
        "args": [],
    }
    return {
        "serverBuilder": server | builder,
        "entryID": number,
        "imageName": name,
        "metadata": {"patient": "HN-001"},
    }
