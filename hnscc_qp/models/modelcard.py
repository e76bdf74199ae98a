"""The model card: what a trained model is, what it was made of, and what it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hnscc_qp import RESEARCH_USE_ONLY
from hnscc_qp.models.networks import CLASSES, IMAGENET_MEAN, IMAGENET_STD

FORMAT_VERSION = 2
"""Version 1 knew the window recipe only, and no temperature."""

Stage = Literal["primary", "secondary"]
PRIMARY: Stage = "primary"
SECONDARY: Stage = "secondary"
Recipe = Literal["window", "dense"]
RGBValues = tuple[float, float, float]


class ModelCard(BaseModel):
    """What a model is, what it was made of, and what it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = 2
    stage: Stage
    recipe: Recipe = "window"
    """`window`: each window on its own. `dense`: all windows of a tile at once."""
    network: str
    parameters: int | None = None
    """How many numbers were trained; None if an older version did not count them."""
    input_px: int = Field(ge=32, le=512)
    """Side of the network's input for one window."""
    output_stride_px: int | None = None
    """Dense only: network px from one feature cell to the next."""
    window_px: Literal[40] = 40
    window_mpp: float = 1.0
    classes: tuple[str, ...] = CLASSES
    mean: RGBValues = IMAGENET_MEAN
    std: RGBValues = IMAGENET_STD
    sha256: str
    """Of `model.safetensors`; this is the model's identity."""
    training: dict[str, Any]
    """The settings, the seed included."""
    weights_origin: dict[str, str | None]
    """Name and SHA-256 of the weights that training started from."""
    data_sha256: str
    """Of the patches or tiles."""
    stain: dict[str, Any] | None = None
    """How slides were normalised before the model saw them; None if they were not."""
    patients: dict[str, int]
    """How many on each side of the split."""
    figures: dict[str, Any]
    """By side: validation, which chose the epoch and the temperature, and test, which chose nothing."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it before they are shown as a probability; no call changes by that."""
    temperature_reason: str = "not fitted"
    use: str | None = None
    """Of a secondary: whether it is part of the cascade, and why; None if an older version did not ask."""
    device: str
    seconds: float
    versions: dict[str, str]
    method: str = "Tang et al. 2022, Laryngoscope Investig Otolaryngol 7:161-169"
    intended_use: str = (
        "Research use only. Not a medical device. Marks windows of 40 × 40 µm that may hold squamous cell "
        "carcinoma in H&E slides of head and neck lymph nodes, for a pathologist to review."
    )
    limits: str = (
        "Not validated beyond the patients it was trained on: other scanners, stains, centres, primaries, "
        "treated nodes and frozen sections may mislead it, and small lesions may be missed. Each stage "
        "is meant to be used with the other and with a calibrated threshold."
    )

    def as_markdown(self) -> str:
        """The card for people."""
        return "\n".join(_lines(self)) + "\n"


def _lines(card: ModelCard) -> Iterator[str]:
    yield f"# {card.stage.capitalize()} model: {card.network}, {card.recipe} recipe"
    yield from ("", f"**{RESEARCH_USE_ONLY}**", "")
    yield from ("## What it is for", "", card.intended_use, "")
    if card.use:
        yield from (f"{card.use[0].upper()}{card.use[1:]}.", "")
    yield from ("## Limits", "", card.limits, "")
    yield from ("## Figures", "")
    yield from _figures(card.figures)
    yield from (
        "",
        "Validation chose the epoch that was kept, so it flatters. Intervals are 95 %. They come from "
        "patients drawn with replacement, and need two or more with what is counted; those of shares are "
        "never narrower than Wilson's, for as many windows.",
        "",
        f"Temperature: {card.temperature:.3g} ({card.temperature_reason}). What is shown as a probability is "
        "divided by it first; what is called tumor does not change.",
        "",
    )
    yield from ("## What it is", "")
    yield from _table(
        ("", ""),
        (
            ("network", card.network),
            ("recipe", card.recipe),
            ("parameters", f"{card.parameters:,}" if card.parameters else "not counted"),
            ("window", f"{card.window_px} × {card.window_px} px at {card.window_mpp:g} µm/px"),
            ("network's input for a window", f"{card.input_px} × {card.input_px} px"),
            *([("output stride", f"{card.output_stride_px} px")] if card.output_stride_px else []),
            ("classes", ", ".join(card.classes)),
            ("stain normalisation", _settings_text(card.stain) if card.stain else "none"),
            ("SHA-256 of the weights", f"`{card.sha256}`"),
        ),
    )
    yield from ("", "## What it was made of", "")
    origin = card.weights_origin
    yield from _table(
        ("", ""),
        (
            ("started from", "random weights" if origin["name"] == "none" else str(origin["name"])),
            ("SHA-256 of that", f"`{origin['sha256']}`" if origin["sha256"] else "none"),
            ("SHA-256 of the data", f"`{card.data_sha256}`"),
            *((f"patients, {side}", str(count)) for side, count in card.patients.items()),
            ("seed", str(card.training.get("seed", "not known"))),
            ("device", card.device),
            ("time", f"{card.seconds:,.0f} s"),
            ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
        ),
    )
    yield from ("", "## Settings of the training", "")
    yield from _table(("setting", "value"), _flat(card.training))
    yield from ("", f"Method: {card.method}.")


def _figures(figures: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for side, found in figures.items():
        if isinstance(found, Mapping) and "n" in found:
            rows.append(
                (
                    side,
                    f"{found['n']:,}",
                    _with_interval(found, "accuracy", percent=True),
                    _with_interval(found, "sensitivity", percent=True),
                    _with_interval(found, "specificity", percent=True),
                    _with_interval(found, "auc", percent=False),
                    _number(found.get("calibration_error"), percent=False),
                )
            )
    if not rows:
        yield "None were recorded."
        return
    yield from _table(
        ("side", "windows", "accuracy", "sensitivity", "specificity", "AUC", "calibration error"), rows
    )


def _with_interval(figures: Mapping[str, Any], key: str, *, percent: bool) -> str:
    text = _number(figures.get(key), percent=percent)
    if interval := figures.get(f"{key}_interval"):
        low, high = (_number(end, percent=percent) for end in interval)
        text += f" ({low} to {high})"
    return text


def _number(value: float | None, *, percent: bool) -> str:
    if value is None:
        return "none"
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings of settings, by dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def _settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in _flat(settings))


def _table(
    columns: Sequence[str], rows: Iterator[tuple[str, str]] | Sequence[Sequence[str]]
) -> Iterator[str]:
    yield _row(columns)
    yield _row(["---"] * len(columns))
    for row in rows:
        yield _row(row)


def _row(cells: Sequence[str]) -> str:
    # A bar or a line break in a value would end the cell.
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
