"""Commands that compare with manual review and hand results on."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from hnscc_qp.cli.options import Force, Json, StudyArg
from hnscc_qp.cli.running import make_context, run_step


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(compare)


def compare(
    study: StudyArg,
    *,
    readers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]CSV",
            help="calls of readers or of another model: columns image, reader, call; or image and one for "
            "each reader; repeat",
        ),
    ] = None,
    reader_project: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PROJECT",
            help="a reader's copy of the QuPath project: slides with a tumor annotation are positive; repeat",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare with manual review: slides, lesions, areas, readers."""
    from hnscc_qp.steps.compare import compare_study, parse_reader

    sources = [parse_reader(text, is_project=False) for text in readers or ()]
    sources += [parse_reader(text, is_project=True) for text in reader_project or ()]
    context = make_context(study, as_json=as_json, force=force)
    run_step(context, partial(compare_study, readers=sources), as_json=as_json)
