"""A later generation's training: from the models of the generation before, for a shorter time."""

from __future__ import annotations

from dataclasses import replace

from hnscc_qp.errors import CheckpointError, StepError
from hnscc_qp.generation import Generation
from hnscc_qp.models.checkpoint import PRIMARY, Stage, load_card
from hnscc_qp.steps.choice import STEP, with_network
from hnscc_qp.steps.context import Context


def tuned_from(context: Context) -> Generation | None:
    """The generation whose weights this one starts from; None if it starts as a first one does."""
    record = context.generation.record
    return context.generation.parent if record and record.fine_tuned else None


def weights_before(context: Context, stage: Stage) -> dict[str, str]:
    """What a stage's fine-tuning starts from, as an input of the step; nothing if it starts otherwise.

    A parent without a secondary has nothing to hand on, and its child's starts as a first one does.

    Raises:
        StepError: the parent's model is of another network or recipe than the study now asks for.
    """
    parent = tuned_from(context)
    manifest = parent.manifest(stage) if parent else None
    if parent is None or manifest is None or not manifest["counts"].get("trained"):
        return {}
    try:
        card = load_card(parent.step(stage))
    except CheckpointError as error:
        raise StepError(f"generation {parent.name} can't be fine-tuned: {error}") from error
    training = context.study.training
    wanted = (training.recipe, training.network, training.input_px)
    if (card.recipe, card.network, card.input_px) != wanted:
        raise StepError(
            f"the {stage} model of generation {parent.name} is a {card.network} ({card.recipe}, "
            f"{card.input_px} px), the study asks for {training.network} ({training.recipe}, "
            f"{training.input_px} px); set [training] back, or retrain with --from-scratch"
        )
    return {f"{stage} model of generation {parent.name}": card.sha256}


def for_generation(context: Context, stage: Stage) -> Context:
    """The study with its training shortened, where the generation is fine-tuned (`[retraining]`).

    A primary that was chosen among several networks stays of that network.
    """
    parent = tuned_from(context)
    if parent is None:
        return context
    if stage == PRIMARY and parent.manifest(STEP) is not None:
        context = with_network(context, load_card(parent.step(PRIMARY)).network)
    if not weights_before(context, stage):
        return context
    training, tuning = context.study.training, context.study.retraining
    window, dense = training.window, training.dense
    shorter = training.model_copy(
        update={
            "window": window.model_copy(
                update={
                    "epochs": _share(window.epochs, tuning.epochs),
                    "decay_epochs": _share(window.decay_epochs, tuning.epochs),
                    "learning_rate": window.learning_rate * tuning.learning_rate,
                }
            ),
            "dense": dense.model_copy(
                update={
                    "epochs": _share(dense.epochs, tuning.epochs),
                    "learning_rate": dense.learning_rate * tuning.learning_rate,
                }
            ),
        }
    )
    return replace(context, study=context.study.model_copy(update={"training": shorter}))


def _share(epochs: int, share: float) -> int:
    return max(1, round(epochs * share))
