"""Training of one stage: one visible loop (Tang et al. 2022, §2.3)."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, softmax
from torch import Tensor, nn

from hnscc_qp.errors import TrainingError
from hnscc_qp.models.checkpoint import Stage
from hnscc_qp.models.networks import (
    CLASSES,
    WindowClassifier,
    has_folded_batch_norms,
    unfold_batch_norms,
)
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.study import Training
from hnscc_qp.training.augment import draw_orientations, orient
from hnscc_qp.training.evaluate import evaluate, predict_logits

_UNFOLDING_PATCHES = 512


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the training patches came to."""

    number: int
    """From 1."""
    learning_rate: float
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_auc: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """How training went. The classifier holds the weights of the best epoch."""

    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def fit(
    classifier: WindowClassifier,
    pixels: NDArray[np.uint8],
    labels: ArrayLike,
    *,
    train_idx: NDArray[np.integer[Any]],
    validation_idx: NDArray[np.integer[Any]],
    settings: Training,
    device: torch.device,
    stage: Stage = "primary",
    progress: Progress = SILENT,
) -> FitResult:
    """Train a classifier in place, and leave it in eval mode with the weights of the best epoch.

    Adam, L2, a learning rate that falls in steps, each patch in `settings.orientations` of its eight
    orientations in each epoch, and a stop when the validation loss has not fallen for
    `settings.patience` epochs.
    The same seed gives the same weights on the same CPU and number of threads.

    Args:
        classifier: to train; its network may be pretrained.
        pixels: (n, 40, 40, 3) uint8, an array or a memory map. The patches used are held in memory:
            154 MB for the 32,000 of the paper.
        labels: (n,) 0 nontumor, 1 tumor.
        train_idx: patches to learn from.
        validation_idx: patches of other patients.
        settings: the recipe.
        device: to train on.
        stage: for what is shown.
        progress: told of every batch.

    Raises:
        TrainingError: a class is missing on a side, or the loss is not a number any more.
    """
    started = time.perf_counter()
    target = torch.from_numpy(np.asarray(labels).astype(np.int64))
    for side, idx in (("training", train_idx), ("validation", validation_idx)):
        _need_both_classes(target[torch.from_numpy(idx)], side)
    training = _place(pixels[train_idx], device)
    training_target = target[torch.from_numpy(train_idx)].to(device)
    validation, validation_target = pixels[validation_idx], target.numpy()[validation_idx]

    generator = torch.Generator().manual_seed(settings.seed)
    classifier.to(device)
    if has_folded_batch_norms(classifier.network):
        some = torch.randperm(len(training), generator=generator)[:_UNFOLDING_PATCHES]
        unfold_batch_norms(classifier.network, classifier.prepare(_take(training, some, device)))
    optimizer = torch.optim.Adam(_parameter_groups(classifier, settings), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, settings.decay_epochs, settings.decay)

    history: list[Epoch] = []
    best = 0  # index into history
    best_weights = copy.deepcopy(classifier.state_dict())
    # Whole batches: what does not fill another one is spread over them, so that none is too small
    # for the batch norms and no patch is left out.
    batches = max(1, len(training) * settings.orientations // settings.batch_size)
    # Dropout draws from torch's own generators; they are given back as they were.
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        progress.task(f"training the {stage}", settings.epochs, unit="epochs") as task,
    ):
        torch.manual_seed(settings.seed)
        for number in range(1, settings.epochs + 1):
            classifier.train()
            losses = []
            patch, orientation = draw_orientations(len(training), settings.orientations, generator)
            for some in torch.arange(len(patch)).tensor_split(batches):
                chosen = patch[some]
                windows = orient(_take(training, chosen, device), orientation[some].to(device))
                loss = nn.functional.cross_entropy(classifier(windows), training_target[chosen.to(device)])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
                task.advance(1 / batches)
            learning_rate = float(schedule.get_last_lr()[0])
            schedule.step()
            # Looked at once an epoch: asking a GPU for every loss would make it wait.
            training_loss = _mean_loss(torch.stack(losses), number, settings)
            logits = predict_logits(classifier, validation, device=device)
            epoch = _judge(logits, validation_target, number, learning_rate, training_loss)
            history.append(epoch)
            task.advance(0, note=_note(epoch))
            if number == 1 or epoch.validation_loss < history[best].validation_loss:
                best, best_weights = number - 1, copy.deepcopy(classifier.state_dict())
            stopped_early = number - 1 - best >= settings.patience and number < settings.epochs
            if stopped_early:
                break
    classifier.load_state_dict(best_weights)
    classifier.eval()
    return FitResult(tuple(history), best + 1, stopped_early, time.perf_counter() - started)


def _need_both_classes(target: Tensor, side: str) -> None:
    for value, name in enumerate(CLASSES):
        if not (target == value).any():
            raise TrainingError(
                f"there is no {name} patch for {side}; annotate slides of more patients, "
                "or change the split's seed or shares"
            )


def _place(patches: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Hold all patches on the device if half of its free memory is enough, else in main memory."""
    held = torch.from_numpy(patches)
    if device.type == "cuda" and patches.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return held.to(device)
    return held


def _take(patches: Tensor, idx: Tensor, device: torch.device) -> Tensor:
    """Some patches, (n, height, width, 3), as windows (n, 3, height, width) on the device."""
    return patches[idx.to(patches.device)].to(device).permute(0, 3, 1, 2)


def _parameter_groups(classifier: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """L2 holds for weights, not for biases and batch norms, as in the paper's MATLAB."""
    parameters = list(classifier.parameters())
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]


def _mean_loss(losses: Tensor, epoch: int, settings: Training) -> float:
    wrong = (~torch.isfinite(losses)).nonzero()
    if len(wrong):
        raise TrainingError(
            f"the loss is not a number in epoch {epoch}, batch {int(wrong[0]) + 1} of {len(losses)}; "
            f"use a smaller learning_rate than {settings.learning_rate:g}"
        )
    return float(losses.mean())


def _judge(
    logits: NDArray[np.float32], target: NDArray[np.int64], number: int, learning_rate: float, loss: float
) -> Epoch:
    if not np.isfinite(logits).all():
        raise TrainingError(
            f"the validation loss is not a number in epoch {number}; use a smaller learning_rate than "
            f"{learning_rate:g}"
        )
    wide = logits.astype(np.float64)
    cross_entropy = logsumexp(wide, axis=1) - wide[np.arange(len(target)), target]
    figures = evaluate(softmax(wide, axis=1)[:, 1], target)
    assert figures.accuracy is not None and figures.auc is not None  # both classes are there
    return Epoch(number, learning_rate, loss, float(cross_entropy.mean()), figures.accuracy, figures.auc)


def _note(epoch: Epoch) -> str:
    return (
        f"loss {epoch.training_loss:.3f}, validation {epoch.validation_loss:.3f}, "
        f"AUC {epoch.validation_auc:.3f}"
    )
