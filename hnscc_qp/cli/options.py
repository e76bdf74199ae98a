"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyArg = Annotated[Path, typer.Argument(metavar="STUDY", help="study.toml, or the folder that holds it")]
Json = Annotated[bool, typer.Option("--json", help="print the manifest as JSON and nothing else")]
Force = Annotated[bool, typer.Option("--force", help="do it again although it is done")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="pretrained weights (safetensors), a folder with a file for each network, or 'none' to train "
        "from scratch",
    ),
]
