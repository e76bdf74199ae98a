"""Commands of the loop that learns from review: verdicts in, a better model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hnscc_qp.cli import render
from hnscc_qp.cli.options import Json, StudyArg
from hnscc_qp.cli.running import exit_with, make_context
from hnscc_qp.errors import ExitCode


def add_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.command()(pull)
    app.command(name="log")(show_log)


def pull(
    study: StudyArg,
    project: Annotated[
        Path | None,
        typer.Option(metavar="COPY", help="a copy of the project that somebody reviewed, instead of it"),
    ] = None,
    reviewer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="who drew, edited and deleted: QuPath notes no name for that"),
    ] = None,
    diff: Annotated[
        bool,
        typer.Option("--diff", help="show what was added, removed and changed since the last push, too"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read the pathologist's verdicts into the review log."""
    from hnscc_qp.cli.loopsummary import print_diff, print_pull
    from hnscc_qp.review.verdicts import UNKNOWN_REVIEWER
    from hnscc_qp.steps.pull import pull_verdicts

    context = make_context(study, as_json=as_json)
    manifest = pull_verdicts(context, project=project, reviewer=reviewer or UNKNOWN_REVIEWER)
    if diff:
        from hnscc_qp.steps.pulldiff import diff_review
        from hnscc_qp.steps.pullsource import open_reviewed

        manifest["diff"] = diff_review(context, open_reviewed(context, project))
    if as_json:
        render.print_json(manifest)
    else:
        print_pull(manifest, log=context.study.root / "review")
        if diff:
            print_diff(manifest["diff"])
    exit_with(manifest, *([manifest["diff"]] if diff else []))


def show_log(
    study: StudyArg,
    verify: Annotated[
        bool, typer.Option("--verify", help="only follow the chain, and say where it is broken")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the review log, or verify that nobody changed it."""
    from hnscc_qp.cli.loopsummary import print_log, print_log_check
    from hnscc_qp.steps.pull import review_log

    log = review_log(make_context(study, as_json=as_json))
    check = log.check()
    if as_json:
        render.print_json(check.as_json(with_entries=not verify))
    elif verify:
        print_log_check(log.path, check)
    else:
        print_log(log.path, check)
    if check.breaks:
        raise typer.Exit(ExitCode.NOTHING_USABLE)
