"""`retrain`, `generations`, `rollback`: from one generation to the next, and back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hnscc_qp.cli import render
from hnscc_qp.cli.options import Json, StudyArg
from hnscc_qp.cli.running import exit_with, make_context

By = Annotated[
    str | None, typer.Option(metavar="NAME", help="who decides, for the log; the login name if left out")
]
_FIGURES = ("sensitivity", "specificity", "froc", "dice")


def add_commands(app: typer.Typer) -> None:
    """Add them to the program."""
    app.command()(retrain)
    app.command()(generations)
    app.command()(rollback)


def retrain(
    study: StudyArg,
    *,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="start as the first generation did, not from its weights")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="use the new generation whatever the gate says; it is logged")
    ] = False,
    by: By = None,
    force: Annotated[bool, typer.Option("--force", help="retrain although nothing is new")] = False,
    as_json: Json = False,
) -> None:
    """Learn from review: build the next generation, and use it if it is better."""
    from hnscc_qp.steps.retrain import Wish, retrain_study

    context = make_context(study, as_json=as_json, force=force)
    manifest = retrain_study(context, Wish(from_scratch=from_scratch, promote=promote, by=by))
    if as_json:
        render.print_json(manifest)
    else:
        _print_retrained(manifest)
    exit_with(manifest)


def generations(study: StudyArg, as_json: Json = False) -> None:
    """List the generations: parents, data, figures, who put them in use."""
    from hnscc_qp.steps.generations import list_generations

    found = list_generations(make_context(study, as_json=as_json))
    if as_json:
        render.print_json(found)
    else:
        _print_generations(found)


def rollback(
    study: StudyArg,
    generation: Annotated[
        str | None, typer.Argument(metavar="[NNN]", help="where to; the parent of the one in use if left out")
    ] = None,
    *,
    why: Annotated[str, typer.Option(metavar="TEXT", help="the reason, for the log")] = "not said",
    by: By = None,
    as_json: Json = False,
) -> None:
    """Use an earlier generation again."""
    from hnscc_qp.steps.generations import roll_back_to

    found = roll_back_to(make_context(study, as_json=as_json), generation, by=by, why=why)
    if as_json:
        render.print_json(found)
        return
    for line in found["notes"]:
        render.print_line(line)


def _print_retrained(manifest: dict[str, Any]) -> None:
    from hnscc_qp.steps.changes import describe

    counts, decision = manifest["counts"], manifest["decision"]
    render.print_line(f"generation {counts['generation']}, from {counts['parent']}")
    for line in describe(manifest["changes"]):
        render.print_line(f"  {line}")
    rows = []
    for name in _FIGURES:
        figure = decision["figures"][name]
        interval = figure["interval"]
        rows.append(
            (
                name + (" (decides)" if name == decision["figure"] else ""),
                _number(figure["current"]),
                _number(figure["candidate"]),
                _number(figure["difference"], sign="+"),
                "" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}",
                figure["patients"],
            )
        )
    render.print_table(
        f"{decision['slides']} {decision['side']} slides of {decision['patients']} patients",
        ["figure", counts["parent"], counts["generation"], "difference", "95 % interval", "patients"],
        rows,
    )
    for note in manifest["notes"]:
        render.print_line(note)


def _print_generations(found: dict[str, Any]) -> None:
    rows = [
        (
            one["generation"],
            one["state"],
            one["parent"],
            one["begun"],
            one["patches"],
            one["regions from review"],
            *(_number(one["figures"].get(name)) for name in _FIGURES),
            "; ".join(
                f"{event['by']}, {event['time'][:16]}" + (", against the gate" if event["overridden"] else "")
                for event in one["promoted"]
            ),
        )
        for one in found["generations"]
    ]
    render.print_table(
        f"{found['study']}: generation {found['current']} is in use",
        ["", "state", "parent", "begun", "patches", "reviewed", *_FIGURES, "put in use by"],
        rows,
    )
    for one in found["generations"]:
        if one["why"]:
            render.print_line(f"{one['generation']}: {one['why']}")
        if one["decision"]:
            render.print_line(f"     {one['decision']['reason']}")
    for event in found["history"]:
        if event["event"] == "generation rolled back":
            render.print_line(
                f"{event['time'][:16]} {event['by']} went back from {event['from']} to {event['to']}: "
                f"{event['reason']}"
            )
    for note in found["notes"]:
        render.print_line(note)


def _number(value: float | None, *, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"
