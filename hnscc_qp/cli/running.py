"""What every command of a study does: make the context, run the step, show its manifest, exit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hnscc_qp.cli import render
from hnscc_qp.errors import ExitCode

if TYPE_CHECKING:
    from hnscc_qp.steps.context import Context


def make_context(study: Path, *, as_json: bool, force: bool = False, weights: str | None = None) -> Context:
    """Read a study, for a step to work with."""
    from hnscc_qp.steps.context import Context
    from hnscc_qp.studyfile import load_study

    progress = render.make_progress(quiet=as_json)
    return Context(load_study(study, weights=weights), progress=progress, force=force)


def run_step(context: Context, step: Callable[[Context], dict[str, Any]], *, as_json: bool) -> None:
    """Run a step, show its manifest, and end with the exit code that it deserves."""
    manifest = step(context)
    if os.environ.get("RANK", "0") != "0":  # of several processes that torchrun started the first one tells
        return
    if as_json:
        render.print_json(manifest)
    else:
        from hnscc_qp.cli.summary import print_summary

        print_summary([manifest], generation=context.generation.path)
    exit_with(manifest)


def exit_with(*manifests: dict[str, Any]) -> None:
    """End with the code for "some images failed" if any did, else go on."""
    if any(manifest["failed"] for manifest in manifests):
        raise typer.Exit(ExitCode.SOME_IMAGES_FAILED)
