"""What a person reads of a comparison with manual review."""

from __future__ import annotations

from typing import Any

from hnscc_qp.cli import render

Counts = dict[str, Any]
_SETS = ("development", "test")


def print_comparison(manifest: dict[str, Any]) -> None:
    """Headline figures of both sets side by side, then lesions, then readers."""
    counts = manifest["counts"]
    sets = [name for name in _SETS if name in counts]
    render.print_table(
        f"comparison with manual review: {counts['slides']} slides, {counts['left out']} left out "
        "(95 % intervals)",
        ["", *sets],
        [(title, *(text(counts[name]) for name in sets)) for title, text in _ROWS],
    )
    render.print_line(
        f"{counts['regions']} regions; {counts['lesions missed']} of {counts['lesions']} outlined lesions "
        f"missed; {counts['disagreements']} disagreements, in disagreements.csv"
    )
    if readers := counts.get("readers"):
        render.print_table(
            "readers beside the AI",
            ["reader", "slides", "kappa", "95 % interval", "only AI right", "only reader right", "McNemar p"],
            [
                (
                    one["reader"],
                    one["slides"],
                    _number(one["kappa"]),
                    _interval(one["kappa_interval"]),
                    one["only_ai_right"],
                    one["only_reader_right"],
                    _number(one["mcnemar_p"]),
                )
                for one in readers
            ],
        )
        if counts["fleiss"] is not None:
            render.print_line(
                f"Fleiss' kappa of the readers, on the {counts['fleiss slides']} slides that all called: "
                f"{counts['fleiss']:.3f}"
            )
        if counts["fleiss with ai"] is not None:
            render.print_line(f"Fleiss' kappa of the readers and the AI: {counts['fleiss with ai']:.3f}")
    render.print_line(f"to open: {', '.join(manifest['to open'])}")


def _share(name: str) -> Any:
    def text(figures: Counts) -> str | None:
        share = figures[name]
        if share is None:
            return None
        low, high = share["clopper_pearson"]
        shown = f"{100 * share['count'] / share['of']:.1f} %"
        return f"{shown} ({share['count']}/{share['of']}; {100 * low:.1f} to {100 * high:.1f})"

    return text


def _estimate(name: str) -> Any:
    def text(figures: Counts) -> str | None:
        estimate = figures[name]
        if estimate is None:
            return None
        interval = _interval(estimate["interval"])
        return f"{estimate['value']:.3f}" + (f" ({interval})" if interval else " (too few patients)")

    return text


def _lesions(figures: Counts) -> str:
    found = [one for one in figures["lesions"] if one["found"]]
    return ", ".join(f"{one['found']['count']}/{one['found']['of']} of {one['stratum']}" for one in found)


def _boundary(figures: Counts) -> str | None:
    mean, high = figures["boundary_mean_um"], figures["boundary_95_um"]
    return None if mean is None else f"{mean:.0f} µm, 95 % within {high:.0f} µm"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{round(value, 3) + 0.0:.3f}"


def _interval(interval: list[float] | None) -> str | None:
    # Without a minus before zero.
    return None if interval is None else " to ".join(f"{round(end, 3) + 0.0:.3f}" for end in interval)


_ROWS = (
    ("slides of patients", lambda figures: f"{figures['slides']} of {figures['patients']}"),
    ("sensitivity", _share("sensitivity")),
    ("specificity", _share("specificity")),
    ("accuracy", _share("accuracy")),
    ("AUC of slides", _estimate("auc")),
    ("lesions found", _share("lesion_sensitivity")),
    ("  by longest diameter", _lesions),
    ("false regions", lambda figures: str(figures["false_regions"])),
    ("FROC score", _estimate("froc")),
    ("Dice, pooled", _estimate("dice")),
    ("IoU, pooled", _estimate("iou")),
    ("area, AI by manual", lambda figures: _number(figures["area_ratio"])),
    ("distance of outlines", _boundary),
)
