"""`train`: the primary model, and the secondary on the primary's false positives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.files import sha256_json, write_json
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.geometry import WINDOW_PX
from hnscc_qp.models.cascade import AnyCascade, make_cascade
from hnscc_qp.models.checkpoint import (
    PRIMARY,
    SECONDARY,
    WEIGHTS_FILE,
    Stage,
    load_card,
    load_model,
    save_model,
)
from hnscc_qp.models.device import choose_device
from hnscc_qp.models.networks import WindowClassifier, weights_origin
from hnscc_qp.patches.dataset import DevelopmentSet, TestSet, open_development, open_test
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.split import Side
from hnscc_qp.steps import mine, patches
from hnscc_qp.steps.choice import with_chosen_network
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.training.evaluate import predict
from hnscc_qp.training.fit import FitResult, fit
from hnscc_qp.training.mine import pair_with_tumor, why_no_secondary
from hnscc_qp.training.report import FOLDER as FIGURES
from hnscc_qp.training.report import Predictions, make_report, write_report


@dataclass(frozen=True, slots=True)
class _Samples:
    """Patches of one training: from `DevelopmentSet`s, which hold none of a test patient."""

    pixels: NDArray[np.uint8]
    """(n, 40, 40, 3)"""
    labels: NDArray[np.uint8]
    sides: NDArray[np.str_]
    patients: NDArray[np.str_]

    @classmethod
    def of(cls, patches: DevelopmentSet | TestSet) -> _Samples:
        return cls(patches.pixels, patches.label, patches.side, patches.patient)

    @classmethod
    def none(cls) -> _Samples:
        text = np.empty(0, np.str_)
        return cls(np.empty((0, WINDOW_PX, WINDOW_PX, 3), np.uint8), np.empty(0, np.uint8), text, text)

    def on(self, side: Side) -> NDArray[np.intp]:
        return np.flatnonzero(self.sides == side)


def train_primary(context: Context, *, step: str = PRIMARY) -> Manifest:
    """Train the primary on the labelled patches (Tang et al. 2022, §2.3).

    Args:
        context: of the study.
        step: where to write; a candidate for the primary lies elsewhere, see `steps.networks`.

    Raises:
        StepError: there are no patches yet.
        WeightsError: the pretrained weights can't be had.
        TrainingError: a class is missing, or training went astray.
    """
    cut = context.generation.need(patches.STEP, command=f"hnscc-qp patches {context.study.path}")
    if step == PRIMARY:
        context = with_chosen_network(context, cut["outputs"])
    return _train(
        context,
        PRIMARY,
        step=step,
        inputs=cut["outputs"],
        gather=lambda: _Samples.of(_development(context, patches.STEP)),
    )


def train_secondary(context: Context) -> Manifest:
    """Train the secondary on the primary's false positives and as many tumor patches (§2.4).

    With too few false positives nothing is trained, and one that learnt to call nothing tumor is not
    kept: the manifest says so, and the cascade is the primary alone. Where training starts from
    scratch, the secondary starts from the primary: a few hundred patches are not enough for random weights.

    Raises:
        StepError: there are no hard negatives yet.
        WeightsError, TrainingError: as `train_primary`.
    """
    mined = context.generation.need(mine.STEP, command=f"hnscc-qp mine {context.study.path}")
    cut = context.generation.need(patches.STEP, command=f"hnscc-qp patches {context.study.path}")
    inputs = {**cut["outputs"], **mined["outputs"]}
    reason = why_no_secondary(mined["counts"]["false positives"], context.study.mining)
    if reason is None:
        return _train(
            context, SECONDARY, step=SECONDARY, inputs=inputs, gather=lambda: _hard_patches(context)
        )
    settings = _settings(context)
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
    folder = context.generation.step(SECONDARY)
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # of an earlier, better supplied run
    write_manifest(folder, manifest)
    return manifest


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
    if not second["counts"]["trained"]:
        return make_cascade(primary, None), hashes
    secondary, card = load_model(context.generation.step(SECONDARY), stain=context.stain)
    return make_cascade(primary, secondary), hashes | {"secondary model": card.sha256}


def cascade_hash(models: Mapping[str, str]) -> str:
    """One hash for the models among the values of `models`, as `load_cascade` names them."""
    return sha256_json({name: value for name, value in models.items() if name.endswith(" model")})


def _train(
    context: Context, stage: Stage, *, step: str, inputs: Mapping[str, str], gather: Callable[[], _Samples]
) -> Manifest:
    started = time.time()
    settings = _settings(context)
    if done := context.finished(step, settings, inputs):
        return done
    samples = gather()
    training = context.study.training
    device = choose_device(context.study.device)
    classifier = WindowClassifier(
        training.network, input_px=training.input_px, weights=training.weights, seed=training.seed
    )
    origin = weights_origin(training.network, training.weights)
    if stage == SECONDARY and training.weights == "none" and _same_network(context):
        primary, card = load_model(context.generation.step(PRIMARY), stain=context.stain)
        classifier.load_state_dict(primary.state_dict())
        origin = {"name": "the primary model", "sha256": card.sha256}
    result = fit(
        classifier,
        samples.pixels,
        samples.labels,
        train_idx=samples.on(Side.TRAIN),
        validation_idx=samples.on(Side.VALIDATION),
        settings=training,
        device=device,
        stage=stage,
        progress=context.progress,
    )
    held_out = _test_patches(context) if stage == PRIMARY else _Samples.none()
    predictions = {}
    for side, some in ((Side.VALIDATION, samples), (Side.TEST, held_out)):
        idx = some.on(side)
        probabilities = predict(classifier, some.pixels[idx], device=device)
        predictions[str(side)] = Predictions(probabilities, some.labels[idx], some.patients[idx])
    report = make_report(predictions)
    figures = report.figures()
    if stage == SECONDARY and not figures[str(Side.VALIDATION)]["true_tumor"]:
        reason = (
            "the secondary takes no tumor patch of validation for tumor: the cascade is the primary alone"
        )
        return _do_without(context, settings, inputs, reason, started=started)
    folder = context.generation.step(step)
    card = save_model(
        folder,
        classifier,
        stage=stage,
        training=training,
        weights_origin=origin,
        data_sha256=sha256_json(dict(inputs)),
        patients={
            str(side): len(set(some.patients[some.on(side)]))
            for side in Side
            for some in [held_out if side is Side.TEST else samples]
        },
        figures=figures,
        temperature=report.temperature.value,
        temperature_reason=report.temperature.reason,
        device=str(device),
        # As the patches were cut, whatever the study says by now.
        stain=context.generation.need(patches.STEP, command="hnscc-qp patches")["settings"].get("stain"),
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
        counts=_counts(samples, result) | {"figures": figures},
        started=started,
    )
    write_manifest(folder, manifest)
    return manifest


def _same_network(context: Context) -> bool:
    """Whether the primary, which may have been chosen among several, is the study's own network."""
    return load_card(context.generation.step(PRIMARY)).network == context.study.training.network


def _settings(context: Context) -> dict[str, Any]:
    """The recipe; a weights file counts by its content, wherever it lies."""
    settings = context.study.settings("training", "mining")
    weights = context.study.training.weights
    if weights not in ("imagenet", "none"):
        settings["training"]["weights"] = weights_origin(context.study.training.network, weights)
    return settings


def _counts(samples: _Samples, result: FitResult) -> dict[str, Any]:
    counts: dict[str, Any] = {"trained": True, "epochs": len(result.history), "best epoch": result.best_epoch}
    for side in (Side.TRAIN, Side.VALIDATION):
        labels = samples.labels[samples.on(side)]
        counts[f"{side} tumor"] = int((labels == Label.TUMOR).sum())
        counts[f"{side} nontumor"] = int((labels == Label.NONTUMOR).sum())
    return counts


def _development(context: Context, step: str) -> DevelopmentSet:
    """What a step cut for learning; there is no other way from patches to `fit`."""
    split = read_members(context.generation.step(patches.STEP))
    return open_development(context.generation.step(step), split)


def _test_patches(context: Context) -> _Samples:
    """For the figures alone, once training is over."""
    folder = context.generation.step(patches.STEP)
    return _Samples.of(open_test(folder, read_members(folder)))


def _hard_patches(context: Context) -> _Samples:
    """Side by side: mined false positives, as nontumor, and as many tumor patches of the primary's."""
    hard = _Samples.of(_development(context, mine.STEP))
    easy = _Samples.of(_development(context, patches.STEP))
    seed = context.study.training.seed
    chosen_hard, chosen_tumor = [], []
    for side in (Side.TRAIN, Side.VALIDATION):
        tumor = easy.on(side)
        tumor = tumor[easy.labels[tumor] == Label.TUMOR]
        hard_idx, tumor_idx = pair_with_tumor(hard.on(side), tumor, seed=seed)
        chosen_hard.append(hard_idx)
        chosen_tumor.append(tumor_idx)
    of_hard, of_easy = np.concatenate(chosen_hard), np.concatenate(chosen_tumor)
    return _Samples(
        np.concatenate([hard.pixels[of_hard], easy.pixels[of_easy]]),
        np.concatenate([hard.labels[of_hard], easy.labels[of_easy]]),
        np.concatenate([hard.sides[of_hard], easy.sides[of_easy]]),
        np.concatenate([hard.patients[of_hard], easy.patients[of_easy]]),
    )
