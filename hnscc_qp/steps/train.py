"""`train`: the primary model, and the secondary on the primary's false positives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from hnscc_qp.files import sha256_json, write_json
from hnscc_qp.generation import make_manifest, step_key, write_manifest
from hnscc_qp.models.checkpoint import (
    PRIMARY,
    SECONDARY,
    WEIGHTS_FILE,
    Classifier,
    Stage,
    load_card,
    load_model,
    save_model,
)
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.device import choose_device
from hnscc_qp.models.networks import WindowClassifier, weights_origin
from hnscc_qp.patches.split import Side
from hnscc_qp.progress import SILENT
from hnscc_qp.steps import mine, patches, tiles
from hnscc_qp.steps.choice import with_chosen_network
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.finetune import for_generation, tuned_from, weights_before
from hnscc_qp.steps.lessons import (
    Lesson,
    hard_patches_lesson,
    hard_tiles_lesson,
    patches_lesson,
    tiles_lesson,
)
from hnscc_qp.steps.secondaryuse import decide_use
from hnscc_qp.training.compute import is_first_process
from hnscc_qp.training.fit import fit
from hnscc_qp.training.mine import why_no_secondary
from hnscc_qp.training.report import FOLDER as FIGURES
from hnscc_qp.training.report import make_report, write_report
from hnscc_qp.training.state import STATE_FILE, Keeping


def train_primary(context: Context, *, step: str = PRIMARY) -> Manifest:
    """Train the primary: on the labelled patches (Tang et al. 2022, §2.3), or on the tiles if it is dense.

    A training that was stopped goes on from its last checkpoint.

    Args:
        context: of the study.
        step: where to write; a candidate for the primary lies elsewhere, see `steps.networks`.

    Raises:
        StepError: there are no patches, or no tiles, yet.
        WeightsError: the pretrained weights can't be had.
        TrainingError: a class is missing, or training went astray.
    """
    context = for_generation(context, PRIMARY)
    dense = context.study.training.recipe == "dense"
    source, learn = (tiles.STEP, tiles_lesson) if dense else (patches.STEP, patches_lesson)
    cut = context.generation.need(source, command=f"hnscc-qp {source} {context.study.path}")
    if step == PRIMARY:
        context = with_chosen_network(context, cut["outputs"])
    return _train(context, PRIMARY, step=step, inputs=cut["outputs"], learn=lambda: learn(context))


def train_secondary(context: Context) -> Manifest:
    """Train the secondary on the primary's false positives and as many tumor patches (§2.4).

    With too few false positives nothing is trained, and one that learnt to call nothing tumor is thrown
    away. One that is no better than a stricter primary is not used (`mining.keep_secondary`), but the next
    generation's may start from it. The manifest says so, and the cascade is the primary alone. Where
    training starts from scratch, the secondary starts from the primary: a few hundred patches are not enough
    for random weights.

    Raises:
        StepError: there are no hard negatives yet.
        WeightsError, TrainingError: as `train_primary`.
    """
    context = for_generation(context, SECONDARY)
    mined = context.generation.need(mine.STEP, command=f"hnscc-qp mine {context.study.path}")
    cut = context.generation.need(patches.STEP, command=f"hnscc-qp patches {context.study.path}")
    inputs = {**cut["outputs"], **mined["outputs"]}
    reason = why_no_secondary(mined["counts"]["false positives"], context.study.mining)
    if reason is None:
        dense = context.study.training.recipe == "dense"
        lesson = hard_tiles_lesson if dense else hard_patches_lesson
        return _train(context, SECONDARY, step=SECONDARY, inputs=inputs, learn=lambda: lesson(context))
    settings = _settings(context, SECONDARY)
    if done := context.finished(SECONDARY, settings, inputs):
        return done
    return _do_without(context, settings, inputs, reason, started=time.time())


def _do_without(
    context: Context, settings: Mapping[str, Any], inputs: Mapping[str, str], reason: str, *, started: float
) -> Manifest:
    """Say that there is no secondary, and why."""
    context.progress.warn(reason)
    manifest = make_manifest(
        step=SECONDARY,
        settings=settings,
        inputs=inputs,
        counts={"trained": False},
        started=started,
        notes=[reason],
    )
    if not is_first_process():
        return manifest
    folder = context.generation.step(SECONDARY)
    (folder / STATE_FILE).unlink(missing_ok=True)
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # of an earlier, better supplied run
    write_manifest(folder, manifest)
    return manifest


def _train(
    context: Context, stage: Stage, *, step: str, inputs: Mapping[str, str], learn: Callable[[], Lesson]
) -> Manifest:
    started = time.time()
    settings = _settings(context, stage)
    inputs = {**inputs, **weights_before(context, stage)}
    done = context.finished(step, settings, inputs)
    if done and not done["counts"].get("out of time"):
        return done
    lesson = learn()
    training = context.study.training
    device = choose_device(context.study.device)
    classifier, origin = _begin(context, stage)
    folder = context.generation.step(step)
    key = step_key(step, settings, inputs)
    if context.force and is_first_process():
        (folder / STATE_FILE).unlink(missing_ok=True)
    result = fit(
        classifier,
        lesson.material(device),
        settings=training,
        device=device,
        stage=stage,
        keeping=Keeping(folder, key),
        max_minutes=context.max_minutes,
        progress=context.progress if is_first_process() else SILENT,
    )
    predictions = lesson.predict(classifier, device)
    report = make_report(predictions)
    figures = report.figures()
    if stage == SECONDARY and not figures[str(Side.VALIDATION)]["true_tumor"]:
        reason = (
            "the secondary takes no tumor window of validation for tumor: the cascade is the primary alone"
        )
        return _do_without(context, settings, inputs, reason, started=started)
    use, why_used = decide_use(context, lesson, predictions, device) if stage == SECONDARY else ({}, None)
    counts = {
        "trained": True,
        **use,
        "epochs": len(result.history),
        "best epoch": result.best_epoch,
        "out of time": result.out_of_time,
        **lesson.counts,
        "figures": figures,
    }
    notes = []
    if why_used:
        notes.append(why_used)
        (context.progress.say if use["kept"] else context.progress.warn)(why_used)
    if result.out_of_time:
        notes.append(
            f"stopped by --max-minutes after {result.seconds / 60:.1f} min, the best weights so far are "
            "kept; the same command goes on from there"
        )
        context.progress.warn(notes[-1])
    if figures[str(Side.VALIDATION)]["auc_interval"] is None:
        notes.append(
            "fewer than two patients of validation have tumor, or nontumor: its figures have no interval and "
            "may be chance; annotate slides of more patients"
        )
        context.progress.warn(notes[-1])
    if not is_first_process():  # the first one writes
        return make_manifest(step=step, settings=settings, inputs=inputs, counts=counts, started=started)
    card = save_model(
        folder,
        classifier,
        stage=stage,
        training=training,
        weights_origin=origin,
        data_sha256=sha256_json(dict(inputs)),
        patients=lesson.patients,
        figures=figures,
        temperature=report.temperature.value,
        temperature_reason=report.temperature.reason,
        device=str(device),
        stain=_stain_learnt(context),
        use=why_used,
        seconds=result.seconds,
    )
    write_json(folder / "history.json", result.as_json())
    write_report(
        folder / FIGURES,
        report,
        title=f"{stage} model, {training.network}",
        history=result.as_json()["history"],
        best_epoch=result.best_epoch,
        progress=context.progress,
    )
    manifest = make_manifest(
        step=step,
        settings=settings,
        inputs=inputs,
        outputs={f"{stage} model": card.sha256},
        counts=counts,
        started=started,
        notes=notes,
    )
    write_manifest(folder, manifest)
    if not result.out_of_time:
        (folder / STATE_FILE).unlink(missing_ok=True)
    return manifest


def _stain_learnt(context: Context) -> dict[str, Any] | None:
    """The normalisation that patches or tiles were cut with, whatever the study says by now."""
    step = tiles.STEP if context.study.training.recipe == "dense" else patches.STEP
    stain = context.generation.need(step, command=f"hnscc-qp {step} {context.study.path}")["settings"][
        "stain"
    ]
    return None if stain is None else dict(stain)


def _begin(context: Context, stage: Stage) -> tuple[Classifier, dict[str, str | None]]:
    """The classifier to train, and where its weights come from."""
    training = context.study.training
    if (parent := tuned_from(context)) and weights_before(context, stage):
        before, card = load_model(
            parent.step(stage), recipe=training.recipe, network=training.network, stain=context.stain
        )
        return before, {"name": f"the {stage} model of generation {parent.name}", "sha256": card.sha256}
    kind = DenseClassifier if training.recipe == "dense" else WindowClassifier
    classifier = kind(
        training.network, input_px=training.input_px, weights=training.weights, seed=training.seed
    )
    origin = weights_origin(training.network, training.weights)
    if stage == SECONDARY and training.weights == "none" and _same_network(context):
        primary, card = load_model(
            context.generation.step(PRIMARY),
            recipe=training.recipe,
            network=training.network,
            stain=context.stain,
        )
        classifier.load_state_dict(primary.state_dict())
        origin = {"name": "the primary model", "sha256": card.sha256}
    return classifier, origin


def _same_network(context: Context) -> bool:
    """Whether the primary, which may have been chosen among several, is the study's own network."""
    return load_card(context.generation.step(PRIMARY)).network == context.study.training.network


def _settings(context: Context, stage: Stage) -> dict[str, Any]:
    """The recipe, without the table of the other; a weights file counts by its content, wherever it lies."""
    training = context.study.training
    settings = context.study.settings("mining") | {"training": training.in_use()}
    if stage == PRIMARY:
        del settings["mining"]["keep_secondary"]  # it decides nothing here
    if training.weights not in ("imagenet", "none"):
        settings["training"]["weights"] = weights_origin(training.network, training.weights)
    return settings
