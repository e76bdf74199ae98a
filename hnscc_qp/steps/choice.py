"""Which network the primary is: the study's, or the one that `train --all-networks` found best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hnscc_qp.errors import WeightsError
from hnscc_qp.generation import step_key
from hnscc_qp.models.networks import NETWORKS, weights_origin
from hnscc_qp.steps.context import Context

STEP = "networks"
CHOSEN = "chosen network"


def with_network(context: Context, network: str) -> Context:
    """The same study with another network."""
    training = context.study.training.model_copy(update={"network": network})
    return replace(context, study=context.study.model_copy(update={"training": training}))


def with_chosen_network(context: Context, inputs: Mapping[str, str]) -> Context:
    """The study with the network that was chosen for just this data and recipe; as it is if none was.

    Args:
        context: of the study.
        inputs: of the primary's training, name → hash.
    """
    manifest = context.generation.manifest(STEP)
    if manifest is None:
        return context
    if manifest["key"] != step_key(STEP, choice_settings(context), inputs):
        context.progress.warn(
            f"the choice of {manifest['outputs'][CHOSEN]} among the networks was made with other data or "
            f"settings: the primary is {context.study.training.network}, as the study says; to choose anew, "
            "run train --all-networks"
        )
        return context
    return with_network(context, manifest["outputs"][CHOSEN])


def choice_settings(context: Context) -> dict[str, Any]:
    """What bears on the choice: the recipe for any network, and the content of the weights' files."""
    training = context.study.training.in_use()
    del training["network"]
    weights = context.study.training.weights
    if weights not in ("imagenet", "none"):
        training["weights"] = {network: _sha256(network, weights) for network in NETWORKS}
    return {"training": training}


def _sha256(network: str, weights: str) -> str | None:
    try:
        return weights_origin(network, weights)["sha256"]
    except WeightsError:
        return None  # training this network says so
