"""`export`: results and models for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hnscc_qp import RESEARCH_USE_ONLY
from hnscc_qp.cli import render
from hnscc_qp.cli.options import Json, StudyArg
from hnscc_qp.cli.running import make_context


class To(StrEnum):
    """Kinds of files."""

    CSV = "csv"
    PARQUET = "parquet"
    GEOJSON = "geojson"
    WSINFER = "wsinfer"
    ONNX = "onnx"


def add_commands(app: typer.Typer) -> None:
    """Add it to the program."""
    app.command()(export)


def export(
    study: StudyArg,
    *,
    to: Annotated[
        To,
        typer.Option(help="tables (csv, parquet), detections (geojson), or the models (wsinfer, onnx)"),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="instead of the generation's export/")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write slides, lesions and patches as tables, detections, or the models for other programs."""
    from hnscc_qp.steps.export import Target, export_study

    manifest = export_study(make_context(study, as_json=as_json), Target(to.value), out=out)
    if as_json:
        render.print_json(manifest)
    else:
        _print(manifest)


def _print(manifest: dict[str, Any]) -> None:
    counts = {name: number for name, number in manifest["counts"].items() if name != "files"}
    difference = counts.pop("largest difference", None)
    said = [f"{number} {name}" for name, number in counts.items()]
    if difference is not None:
        said.append(f"P(tumor) as the network's to within {difference:.1e}")
    render.print_line(f"export to {manifest['settings']['to']}" + (f": {', '.join(said)}" if said else ""))
    for note in manifest["notes"]:
        render.print_line(f"  {note}")
    render.print_line(f"files are in {manifest['folder']}")
    render.print_line(RESEARCH_USE_ONLY)
