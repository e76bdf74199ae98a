"""Trained models as files: `model.safetensors` and its model card, `model.json`. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from hnscc_qp.errors import CheckpointError
from hnscc_qp.files import atomic_path, sha256_file, write_json
from hnscc_qp.generation import versions
from hnscc_qp.models.networks import (
    CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NETWORKS,
    WindowClassifier,
    find_misfit,
)
from hnscc_qp.study import Training

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
FORMAT_VERSION = 1

Stage = Literal["primary", "secondary"]
PRIMARY: Stage = "primary"
SECONDARY: Stage = "secondary"
RGBValues = tuple[float, float, float]


class ModelCard(BaseModel):
    """What a model is, what it was made of, and what it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    stage: Stage
    network: str
    input_px: int = Field(ge=32, le=512)
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
    """Of the patches."""
    patients: dict[str, int]
    """How many on each side of the split."""
    figures: dict[str, Any]
    """On the validation patients."""
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


def save_model(
    folder: Path,
    classifier: WindowClassifier,
    *,
    stage: Stage,
    training: Training,
    weights_origin: Mapping[str, str | None],
    data_sha256: str,
    patients: Mapping[str, int],
    figures: Mapping[str, Any],
    device: str,
    seconds: float,
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
        figures: JSON values, on the validation patients.
        device: it was trained on.
        seconds: that training took.
    """
    path = folder / WEIGHTS_FILE
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    with atomic_path(path) as partial:
        safetensors.torch.save_file(tensors, partial)
    card = ModelCard(
        stage=stage,
        network=classifier.network_name,
        input_px=classifier.input_px,
        sha256=sha256_file(path),
        # The weights by name: where they lay on this machine is nobody's business.
        training=training.model_dump(mode="json") | {"weights": weights_origin["name"]},
        weights_origin=dict(weights_origin),
        data_sha256=data_sha256,
        patients=dict(patients),
        figures=dict(figures),
        device=device,
        seconds=round(seconds, 2),
        versions=versions(),
    )
    write_json(folder / CARD_FILE, card.model_dump(mode="json"))
    return card


def load_model(folder: Path) -> tuple[WindowClassifier, ModelCard]:
    """Read a model, in eval mode, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, not ours or of another network; the message names what.
    """
    card = _read_card(folder / CARD_FILE)
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
    classifier = WindowClassifier(card.network, input_px=card.input_px)
    if misfit := find_misfit(classifier.state_dict(), tensors):
        raise CheckpointError(f"{path} is not a {card.network}: {misfit}; train the model again")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds weights that are not numbers; train the model again")
    classifier.load_state_dict(tensors, strict=True)
    return classifier.eval(), card


def _read_card(path: Path) -> ModelCard:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no model in {path.parent}; train one first") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON; train the model again") from error
    if not isinstance(values, dict) or "format_version" not in values:
        raise CheckpointError(f"{path} is not a model card of this program; name another folder")
    if values["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {values['format_version']}, this program reads {FORMAT_VERSION}; "
            "use the version of hnscc-qp that wrote it, or train the model again"
        )
    try:
        card = ModelCard.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{path}: '{key}': {problem['msg']}; train the model again") from error
    # What the program itself fixes; another value would be silently ignored.
    fixed = {"window_mpp": 1.0, "classes": CLASSES, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    for key, wanted in fixed.items():
        if getattr(card, key) != wanted:
            raise CheckpointError(
                f"{path}: '{key}' is {getattr(card, key)}, this program knows only {wanted}; "
                "train the model again"
            )
    if card.network not in NETWORKS:
        raise CheckpointError(
            f"{path}: unknown network '{card.network}', known are {', '.join(NETWORKS)}; "
            "use the version of hnscc-qp that wrote it"
        )
    return card
