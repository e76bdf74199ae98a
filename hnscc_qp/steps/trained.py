"""The trained models of a generation, for steps that use them: these start without what trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnscc_qp.files import sha256_json
from hnscc_qp.models.cascade import AnyCascade, make_cascade
from hnscc_qp.models.checkpoint import PRIMARY, SECONDARY, load_model
from hnscc_qp.steps.context import Context


def load_cascade(context: Context) -> tuple[AnyCascade, dict[str, str]]:
    """Both models as one, and the SHA-256 of each by name.

    Raises:
        StepError: they are not trained yet.
        CheckpointError: a file is damaged.
    """
    command = f"hnscc-qp train {context.study.path} --stage"
    context.generation.need(PRIMARY, command=f"{command} {PRIMARY}")
    second = context.generation.need(SECONDARY, command=f"{command} {SECONDARY}")
    primary, card = load_model(context.generation.step(PRIMARY), stain=context.stain)
    hashes = {"primary model": card.sha256}
    if not is_used(second):
        return make_cascade(primary, None), hashes
    secondary, card = load_model(context.generation.step(SECONDARY), stain=context.stain)
    return make_cascade(primary, secondary), hashes | {"secondary model": card.sha256}


def cascade_hash(models: Mapping[str, str]) -> str:
    """One hash for the models among the values of `models`, as `load_cascade` names them."""
    return sha256_json({name: value for name, value in models.items() if name.endswith(" model")})


def is_used(manifest: Mapping[str, Any]) -> bool:
    """Whether the model of a stage's manifest takes part in scoring: it was trained, and kept."""
    counts = manifest["counts"]
    return bool(counts.get("trained", True) and counts.get("kept", True))
