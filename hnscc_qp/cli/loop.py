"""Commands of the loop that learns from review: verdicts in, a better model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hnscc_qp.cli import render
from hnscc_qp.cli.options import Json, StudyArg
from hnscc_qp.cli.running import exit_with, make_context
from hnscc_qp.errors import ExitCode, StudyError


def add_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.command()(pull)
    app.command(name="log")(show_log)
    app.command()(queue)
    app.command()(watch)


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


def queue(
    study: StudyArg,
    *,
    length: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="places to ask for, instead of the study's number")
    ] = None,
    seed: Annotated[int, typer.Option(help="another seed draws another random part")] = 1,
    push: Annotated[
        bool, typer.Option("--push", help="put a box (AI: Review) round each place of the last queue")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="take away the boxes that nobody touched")] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="error rates, by the verdicts on the random part of the last queue"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what to review next: places ranked by their value to the model, and some at random."""
    from dataclasses import asdict, replace

    from hnscc_qp.cli.loopsummary import print_boxes, print_error_rates, print_queue
    from hnscc_qp.steps.queue import make_queue
    from hnscc_qp.steps.queueboxes import estimate_from_queue, push_queue, remove_queue

    if push + remove + estimate > 1:
        raise StudyError("--push, --remove and --estimate are different things; give one of them")
    context = make_context(study, as_json=as_json)
    if push or remove:
        boxes = push_queue(context) if push else remove_queue(context)
        if as_json:
            render.print_json({"boxes": boxes})
        else:
            print_boxes(boxes, there=push, backend=context.project.backend)
        return
    if estimate:
        rates = estimate_from_queue(context)
        if as_json:
            render.print_json({"error rates": [asdict(rate) for rate in rates]})
        else:
            print_error_rates(rates)
        return
    if length is not None:
        review = context.study.review.model_copy(update={"queue_length": length})
        context = replace(context, study=context.study.model_copy(update={"review": review}))
    manifest = make_queue(context, seed=seed)
    if as_json:
        render.print_json(manifest)
    else:
        print_queue(manifest, folder=context.study.root / "review" / "queue")
    exit_with(manifest)


def watch(
    study: StudyArg,
    *,
    interval: Annotated[
        float, typer.Option("--interval", metavar="S", min=0.1, help="seconds between two looks")
    ] = 10.0,
    quiet_seconds: Annotated[
        float,
        typer.Option(metavar="S", min=0, help="seconds without a save before the project is read"),
    ] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="end after the first pull")] = False,
) -> None:
    """Pull whenever the project was saved in QuPath; retrain only as the study's rule says."""
    import signal
    from types import FrameType

    from hnscc_qp.cli.loopsummary import print_retrained, print_watched
    from hnscc_qp.steps.watch import watch_study

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        watch_study(
            lambda: make_context(study, as_json=False),
            interval_s=interval,
            quiet_s=quiet_seconds,
            once=once,
            pulled=print_watched,
            retrained=print_retrained,
        )
    except KeyboardInterrupt:
        render.print_line("stopped watching; all that was pulled is in the log")
    finally:
        signal.signal(signal.SIGTERM, before)
