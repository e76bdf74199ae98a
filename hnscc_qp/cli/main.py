"""`hnscc-qp`: every command parses, calls a step and renders what it returns.

Steps are imported inside the commands: `--help` must not wait for torch.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnscc_qp import RESEARCH_USE_ONLY, __version__
from hnscc_qp.cli import evaluate, export, generations, loop, render
from hnscc_qp.cli.options import Force, Json, StudyArg, Weights
from hnscc_qp.cli.running import exit_with, make_context, run_step
from hnscc_qp.errors import ExitCode, HnsccQpError, StudyError

if TYPE_CHECKING:
    from hnscc_qp.steps.context import Context

app = typer.Typer(
    name="hnscc-qp",
    help="Detect head and neck squamous cell carcinoma in lymph node slides, from QuPath annotations "
    f"to QuPath detections. {RESEARCH_USE_ONLY}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


generations.add_commands(app)


class Stage(StrEnum):
    """Which of the two models."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class Mode(StrEnum):
    """How windows are shown to the networks."""

    EXACT = "exact"
    DENSE = "dense"


class Stride(StrEnum):
    """Px between windows."""

    NARROW = "5"
    METHOD = "10"
    WIDE = "20"


class Runtime(StrEnum):
    """What computes."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"


class WindowVotes(StrEnum):
    """Windows over a place."""

    FOUR = "4"
    SIXTEEN = "16"
    SIXTY_FOUR = "64"


class Dialect(StrEnum):
    """Spellings of GeoJSON."""

    QUPATH_0_3 = "0.3"
    QUPATH_0_4 = "0.4"


def main() -> None:
    """Run the command line; a mendable error is one line on stderr."""
    # OpenMP's threads otherwise spin while they wait, and on a busy machine against each other: training
    # was six times slower. OpenMP reads it when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of a damaged file it says more than our own line does, and in its own words.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        app(standalone_mode=True)
    except HnsccQpError as error:
        render.print_error(str(error))
        sys.exit(ExitCode.NOTHING_USABLE)
    except KeyboardInterrupt:
        render.print_error("stopped; finished steps and images are kept, the same command goes on from there")
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hnscc-qp {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="a new folder, or that of an earlier demo to go on with")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="another seed draws another cohort")] = 1,
    as_json: Json = False,
) -> None:
    """Draw a cohort, run the whole loop on it, say what to open."""
    from hnscc_qp.demo import draw_cohort

    study_file = draw_cohort(out, seed=seed, progress=render.make_progress(quiet=as_json))
    _run(make_context(study_file, as_json=as_json), as_json=as_json)


@app.command()
def doctor(
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY]", help="study.toml, or the folder that holds it")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed and, of a study, whether every image is where QuPath has it."""
    from hnscc_qp.cli.summary import print_image_checks, print_installation
    from hnscc_qp.steps.doctor import check_installation, check_study

    installed = check_installation()
    found: dict[str, Any] = {"installed": installed}
    if not as_json:
        print_installation(installed)
    if study is not None:
        found |= check_study(make_context(study, as_json=as_json))
        if not as_json:
            print_image_checks(found)
    if as_json:
        render.print_json(found)
    images, failed = found.get("images", ()), found.get("failed", ())
    if any(part["needed"] and part["version"] is None for part in installed):
        raise typer.Exit(ExitCode.NOTHING_USABLE)
    if failed:
        none_left = len(images) == sum(bool(image["problems"]) for image in images)
        raise typer.Exit(ExitCode.NOTHING_USABLE if none_left else ExitCode.SOME_IMAGES_FAILED)


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new or empty folder")],
    slides: Annotated[
        list[Path], typer.Argument(metavar="SLIDE...", help="slide files; they stay where they are")
    ],
    patients: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="a table with a column 'slide' (file name); patient, status and the others become metadata",
        ),
    ] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="a class to annotate with, besides Tumor; repeat"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a QuPath project and a study file from slides."""
    from hnscc_qp.steps.new import make_study

    made = make_study(
        folder,
        slides,
        patients=patients,
        classes=class_,
        progress=render.make_progress(quiet=as_json),
    )
    if as_json:
        render.print_json(made)
    else:
        from hnscc_qp.cli.summary import print_new

        print_new(made)
    exit_with(made)


@app.command()
def objects(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="a .qpproj file or its folder")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="write one GeoJSON file per image")
    ] = None,
    qupath: Annotated[
        Dialect, typer.Option(help="the oldest QuPath that must read the GeoJSON; 0.3 knows no ids")
    ] = Dialect.QUPATH_0_4,
    as_json: Json = False,
) -> None:
    """Show what a QuPath project holds, or write it as GeoJSON."""
    from hnscc_qp.steps.objects import list_objects

    progress = render.make_progress(quiet=as_json)
    manifest = list_objects(project, out=out, progress=progress, dialect=qupath.value)
    if as_json:
        render.print_json(manifest)
    else:
        from hnscc_qp.cli.summary import print_objects

        print_objects(manifest)
    exit_with(manifest)


@app.command()
def patches(
    study: StudyArg,
    check: Annotated[
        bool, typer.Option("--check", help="cut nothing; report contradictions and make a contact sheet")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="slides to work on at once; the result is the same"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut labelled 40×40 px patches at 1.0 µm/px."""
    from hnscc_qp.steps.patches import make_patches

    context = make_context(study, as_json=as_json, force=force)
    if workers is not None:
        context = replace(context, study=context.study.model_copy(update={"workers": workers}))
    if check:
        _check_labels(context, as_json=as_json)
        return
    run_step(context, make_patches, as_json=as_json)


@app.command()
def tiles(study: StudyArg, force: Force = False, as_json: Json = False) -> None:
    """Cut tiles with the label of every window in them, for the dense recipe."""
    from hnscc_qp.steps.tiles import make_tiles

    run_step(make_context(study, as_json=as_json, force=force), make_tiles, as_json=as_json)


@app.command()
def train(
    study: StudyArg,
    *,
    stage: Annotated[Stage, typer.Option(help="the primary comes first")] = Stage.PRIMARY,
    all_networks: Annotated[
        bool,
        typer.Option(
            "--all-networks",
            help="train each of the paper's networks as primary, compare them (Table 2), keep the best",
        ),
    ] = False,
    weights: Weights = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="stop after so long and keep the best; the same command then goes on"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train the primary or the secondary model."""
    from hnscc_qp.steps.networks import train_networks
    from hnscc_qp.steps.train import train_primary, train_secondary

    context = replace(
        make_context(study, as_json=as_json, force=force, weights=weights), max_minutes=max_minutes
    )
    if all_networks:
        if stage is Stage.SECONDARY:
            raise StudyError("--all-networks chooses the primary; leave --stage secondary out")
        run_step(context, train_networks, as_json=as_json)
        return
    step = train_primary if stage is Stage.PRIMARY else train_secondary
    run_step(context, step, as_json=as_json)


@app.command()
def mine(study: StudyArg, force: Force = False, as_json: Json = False) -> None:
    """Collect the primary's false positives on negative slides."""
    from hnscc_qp.steps.mine import mine_negatives

    run_step(make_context(study, as_json=as_json, force=force), mine_negatives, as_json=as_json)


@app.command()
def score(
    study: StudyArg,
    image: Annotated[list[str] | None, typer.Option(metavar="NAME", help="only this image; repeat")] = None,
    mode: Annotated[
        Mode | None, typer.Option(help="whole tiles at once, or every window by itself; as the models need")
    ] = None,
    stride: Annotated[
        Stride | None, typer.Option(help="px between windows: a place has 64, 16 or 4 votes")
    ] = None,
    window_votes: Annotated[
        WindowVotes | None, typer.Option(help="votes per place, instead of --stride")
    ] = None,
    exact_arithmetic: Annotated[
        bool, typer.Option("--exact-arithmetic", help="32 bits, and kernels that add in one order")
    ] = False,
    runtime: Annotated[
        Runtime | None, typer.Option(help="what computes; auto: ONNX Runtime where it can, else PyTorch")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="of a Dask cluster, such as tcp://10.0.0.5:8786")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score whole slides: votes of 16 windows per 10 µm block."""
    from hnscc_qp.steps.score import score_images

    context = make_context(study, as_json=as_json, force=force)
    changes: dict[str, Any] = {}
    if mode is not None:
        changes["mode"] = mode.value
    if window_votes is not None:
        if stride is not None:
            raise StudyError("--stride and --window-votes say the same; give one of them")
        stride = {"4": Stride.WIDE, "16": Stride.METHOD, "64": Stride.NARROW}[window_votes.value]
    if stride is not None:
        changes["stride_px"] = int(stride.value)
    if exact_arithmetic:
        changes["exact"] = True
    if runtime is not None:
        changes["runtime"] = runtime.value
    scored_so = context.study.scoring.model_copy(update=changes)
    context = replace(context, study=context.study.model_copy(update={"scoring": scored_so}))
    run_step(context, partial(score_images, only=tuple(image or ()), scheduler=scheduler), as_json=as_json)


@app.command()
def calibrate(study: StudyArg, force: Force = False, as_json: Json = False) -> None:
    """Choose the threshold, and call every slide."""
    from hnscc_qp.steps.calibrate import calibrate_study

    run_step(make_context(study, as_json=as_json, force=force), calibrate_study, as_json=as_json)


@app.command()
def regions(study: StudyArg, force: Force = False, as_json: Json = False) -> None:
    """Turn score maps into polygons, a table and pictures."""
    from hnscc_qp.steps.regions import draw_regions

    run_step(make_context(study, as_json=as_json, force=force), draw_regions, as_json=as_json)


@app.command()
def push(
    study: StudyArg,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would change")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="take back the last push, to the last byte")] = False,
    as_json: Json = False,
) -> None:
    """Hand the detections to the QuPath project, for review."""
    from hnscc_qp.steps.push import plan_push, push_detections, undo_push

    context = make_context(study, as_json=as_json)
    if undo:
        images = undo_push(context)
        if as_json:
            render.print_json({"undone": list(images)})
        else:
            render.print_line(f"as before the last push: {', '.join(images)}")
        return
    run_step(context, plan_push if dry_run else push_detections, as_json=as_json)


evaluate.add_commands(app)


@app.command()
def run(study: StudyArg, weights: Weights = None, as_json: Json = False) -> None:
    """Do every step that is not done yet."""
    _run(make_context(study, as_json=as_json, weights=weights), as_json=as_json)


loop.add_commands(app)
export.add_commands(app)


def _check_labels(context: Context, *, as_json: bool) -> None:
    from hnscc_qp.cli.summary import print_label_check
    from hnscc_qp.steps.check import check_labels

    manifest = check_labels(context)
    if as_json:
        render.print_json(manifest)
    else:
        print_label_check(manifest)
    refused = len(manifest["failed"])
    if refused and refused >= manifest["counts"]["images"]:
        raise typer.Exit(ExitCode.NOTHING_USABLE)
    exit_with(manifest)


def _run(context: Context, *, as_json: bool) -> None:
    from hnscc_qp.cli.summary import print_summary, print_what_to_open
    from hnscc_qp.steps.run import run_study

    manifests = run_study(context)
    if as_json:
        render.print_json(manifests)
    else:
        print_summary(manifests, generation=context.generation.path)
        print_what_to_open(context)
    exit_with(*manifests)
