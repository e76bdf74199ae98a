"""Trained models as files: `model.safetensors` and its model card, `model.json` and, for people, `model.md`.

Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from hnscc_qp.errors import CheckpointError, StudyError
from hnscc_qp.files import atomic_path, sha256_file, storing, write_json, write_text
from hnscc_qp.generation import versions
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.modelcard import FORMAT_VERSION, PRIMARY, SECONDARY, ModelCard, Recipe, Stage
from hnscc_qp.models.networks import (
    CLASSES,
    NETWORKS,
    WindowClassifier,
    find_misfit,
    normalisation_of,
)
from hnscc_qp.study import Training

__all__ = [
    "CARD_FILE",
    "MARKDOWN_FILE",
    "PRIMARY",
    "SECONDARY",
    "WEIGHTS_FILE",
    "ModelCard",
    "Recipe",
    "Stage",
    "load_card",
    "load_model",
    "save_model",
    "write_tensors",
]

Classifier = WindowClassifier | DenseClassifier
"""A stage of the cascade, of either recipe."""

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
MARKDOWN_FILE = "model.md"


def save_model(
    folder: Path,
    classifier: Classifier,
    *,
    stage: Stage,
    training: Training,
    weights_origin: Mapping[str, str | None],
    data_sha256: str,
    patients: Mapping[str, int],
    figures: Mapping[str, Any],
    device: str,
    seconds: float,
    temperature: float = 1.0,
    temperature_reason: str = "not fitted",
    stain: Mapping[str, Any] | None = None,
    use: str | None = None,
) -> ModelCard:
    """Write weights, then the card, which holds the weights' hash: a card never describes other weights.

    Args:
        folder: is made if need be; a model in it is replaced.
        classifier: the trained network.
        stage: of the cascade.
        training: the settings it was trained with.
        weights_origin: what training started from, see `networks.weights_origin`.
        data_sha256: identifies the patches.
        patients: number on each side of the split.
        figures: JSON values by side, validation and test.
        device: it was trained on.
        seconds: that training took.
        temperature: see `training.probabilities`.
        temperature_reason: where it comes from.
        stain: how the slides were normalised, if they were.
        use: of a secondary, whether it is part of the cascade, and why.

    Raises:
        StorageError: it can't be written.
    """
    path = folder / WEIGHTS_FILE
    write_tensors(path, classifier.state_dict())
    mean, std = normalisation_of(classifier.network_name)
    card = ModelCard(
        stage=stage,
        recipe=classifier.recipe,
        network=classifier.network_name,
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        input_px=classifier.input_px,
        output_stride_px=classifier.output_stride if isinstance(classifier, DenseClassifier) else None,
        mean=mean,
        std=std,
        sha256=sha256_file(path),
        # The weights by name: where they lay on this machine is nobody's business.
        training=training.in_use() | {"weights": weights_origin["name"]},
        weights_origin=dict(weights_origin),
        data_sha256=data_sha256,
        patients=dict(patients),
        figures=dict(figures),
        temperature=temperature,
        temperature_reason=temperature_reason,
        stain=None if stain is None else dict(stain),
        use=use,
        device=device,
        seconds=round(seconds, 2),
        versions=versions(),
    )
    with storing(folder / CARD_FILE):
        write_text(folder / MARKDOWN_FILE, card.as_markdown())
        write_json(folder / CARD_FILE, card.model_dump(mode="json"))
    return card


def write_tensors(
    final: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file in place of the one before, which stays whole until the new one is.

    Raises:
        StorageError: it can't be written.
    """
    # A copy each: safetensors refuses tensors that share memory.
    held = {name: one.detach().cpu().clone().contiguous() for name, one in tensors.items()}
    with storing(final), atomic_path(final) as partial:
        try:
            safetensors.torch.save_file(held, partial, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:  # its own name for whatever the system says
            raise OSError(_reason(error)) from error


def _reason(error: SafetensorError) -> str:
    """What the system said, of safetensors' `I/O error: File too large (os error 27)`."""
    return str(error).rpartition("I/O error: ")[2]


def load_model(
    folder: Path,
    *,
    recipe: Recipe | None = None,
    network: str | None = None,
    stain: Mapping[str, Any] | Literal["any"] | None = "any",
) -> tuple[Classifier, ModelCard]:
    """Read a model, in eval mode, on the CPU, with the temperature of its card.

    Args:
        folder: of the model.
        recipe: the only one that will do; any if None.
        network: the only one that will do; any if None.
        stain: how the slides that it is to see are normalised, None if they are not; not checked if "any".

    Raises:
        CheckpointError: it is missing, damaged, not ours, newer, or not what is asked for; the message
            names what.
    """
    card = load_card(folder)
    for key, wanted, found in (("recipe", recipe, card.recipe), ("network", network, card.network)):
        if wanted is not None and wanted != found:
            raise CheckpointError(
                f"the model in {folder} has the {key} '{found}', '{wanted}' is needed; "
                f'train it again with {key} = "{wanted}", or name another folder'
            )
    if stain != "any" and card.stain != (None if stain is None else dict(stain)):
        raise CheckpointError(_other_stain(folder, card.stain, stain))
    path = folder / WEIGHTS_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}); train the model again") from error
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise CheckpointError(
            f"{path} is not the file that {CARD_FILE} describes (its hash differs); "
            "put the right file back or train the model again"
        )
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not safetensors ({error}); train the model again") from error
    classifier = _build(card)
    if misfit := find_misfit(classifier.state_dict(), tensors):
        raise CheckpointError(f"{path} is not a {card.network}: {misfit}; train the model again")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds weights that are not numbers; train the model again")
    classifier.load_state_dict(tensors, strict=True)
    classifier.temperature = card.temperature
    return classifier.eval(), card


def _other_stain(folder: Path, trained: Mapping[str, Any] | None, wanted: Any) -> str:
    of_model, of_study = (
        "none" if stain is None else str(stain.get("normalisation")) for stain in (trained, wanted)
    )
    if of_model == of_study:
        return (
            f"the model in {folder} was trained with the stain normalisation '{of_model}' to another "
            "reference than this study's; set stain.reference back, or train the model again"
        )
    return (
        f"the model in {folder} was trained with the stain normalisation '{of_model}', this study has "
        f"'{of_study}'; set stain.normalisation = \"{of_model}\", or train the model again"
    )


def _build(card: ModelCard) -> Classifier:
    if card.recipe == "window":
        return WindowClassifier(card.network, input_px=card.input_px)
    try:
        classifier = DenseClassifier(card.network, input_px=card.input_px)
    except StudyError as error:
        raise CheckpointError(f"the model card contradicts itself: {error}") from error
    if card.output_stride_px not in (None, classifier.output_stride):
        raise CheckpointError(
            f"the model card has an output stride of {card.output_stride_px} px, this program knows only "
            f"{classifier.output_stride} px for an input of {card.input_px} px; train the model again"
        )
    return classifier


def load_card(folder: Path) -> ModelCard:
    """Read the card of a model, and not its weights.

    Raises:
        CheckpointError: it is missing, damaged, not ours or newer; the message names what.
    """
    path = folder / CARD_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no model in {path.parent}; train one first") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON; train the model again") from error
    if not isinstance(values, dict) or "format_version" not in values:
        raise CheckpointError(f"{path} is not a model card of this program; name another folder")
    if values["format_version"] == 1:
        # What version 1 did not say is what the defaults say: windows, no temperature, no stain.
        values = values | {"format_version": FORMAT_VERSION}
    if values["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {values['format_version']}, this program reads up to {FORMAT_VERSION}; "
            "use the version of hnscc-qp that wrote it, or train the model again"
        )
    try:
        card = ModelCard.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{path}: '{key}': {problem['msg']}; train the model again") from error
    if card.network not in NETWORKS:
        raise CheckpointError(
            f"{path}: unknown network '{card.network}', known are {', '.join(NETWORKS)}; "
            "use the version of hnscc-qp that wrote it"
        )
    # What the program itself fixes; another value would be silently ignored.
    mean, std = normalisation_of(card.network)
    fixed = {"window_mpp": 1.0, "classes": CLASSES, "mean": mean, "std": std}
    for key, wanted in fixed.items():
        if getattr(card, key) != wanted:
            raise CheckpointError(
                f"{path}: '{key}' is {getattr(card, key)}, this program knows only {wanted}; "
                "train the model again"
            )
    return card
