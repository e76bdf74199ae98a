"""Training of one stage: one visible loop for both recipes, through Lightning's Fabric.

What each batch holds, and every random number, follows from seed, epoch and batch (`material`). So a training
that was stopped, however, goes on from its checkpoint to the same weights: bit for bit on a CPU with the same
number of threads, and on a GPU with `deterministic`.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from torch import Tensor, nn

from hnscc_qp.errors import CheckpointError, StorageError, TrainingError
from hnscc_qp.models.checkpoint import Classifier, Stage
from hnscc_qp.models.memory import held_memory, is_out_of_memory, release_memory
from hnscc_qp.models.networks import has_folded_batch_norms, unfold_batch_norms
from hnscc_qp.progress import SILENT, Progress, Task
from hnscc_qp.study import Training
from hnscc_qp.training.compute import deterministic, make_fabric
from hnscc_qp.training.course import Course
from hnscc_qp.training.evaluate import evaluate
from hnscc_qp.training.history import Epoch, FitResult, TensorBoard, write_log
from hnscc_qp.training.material import NO_LABEL, Batch, Material, generator_of, predict_windows
from hnscc_qp.training.state import Keeping, Position, load_state, save_state

_BATCHES_UNSEEN = 50
"""On a GPU, batches between two looks at the loss: each look makes it wait."""


def fit(
    classifier: Classifier,
    material: Material,
    *,
    settings: Training,
    device: torch.device,
    stage: Stage = "primary",
    keeping: Keeping | None = None,
    max_minutes: float | None = None,
    progress: Progress = SILENT,
) -> FitResult:
    """Train a classifier in place, and leave it in eval mode with the weights of the best epoch.

    Args:
        classifier: to train; its network may be pretrained.
        material: what to learn from, in the classifier's recipe.
        settings: the recipe that the classifier is of applies.
        device: to train on.
        stage: for what is shown.
        keeping: where to keep checkpoints; a training goes on from one with the same key.
        max_minutes: stop after so long, judge what there is, and keep the best.
        progress: told of the batches.

    Raises:
        TrainingError: the loss is not a number any more, or a batch does not fit into memory at all.
    """
    # Dropout draws from torch's own generators; they are given back as they were.
    cuda = [device] if device.type == "cuda" else []
    try:
        with (
            held_memory(device),
            deterministic(settings.deterministic),
            torch.random.fork_rng(devices=cuda),
        ):
            run = _Run(
                classifier,
                material,
                settings=settings,
                device=device,
                stage=stage,
                keeping=keeping,
                progress=progress,
            )
            return run.to_the_end(max_minutes)
    except RuntimeError as error:  # while judging, say, where nothing is halved
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"the memory of {device} is too small for this training; set a smaller input_px in [training], "
            "or let nothing else use that memory"
        ) from error


class _Run:
    """One training under way."""

    def __init__(
        self,
        classifier: Classifier,
        material: Material,
        *,
        settings: Training,
        device: torch.device,
        stage: Stage,
        keeping: Keeping | None,
        progress: Progress,
    ) -> None:
        self.classifier, self.material, self.settings, self.stage = classifier, material, settings, stage
        self.keeping, self.progress = keeping, progress
        self.fabric: Fabric = make_fabric(device, settings)
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        self.least = 1 if classifier.recipe == "dense" else 2  # batch norms need two values
        if material.batch_size // self.world < self.least:
            raise TrainingError(
                f"a batch of {material.batch_size} can't be shared by {self.world} processes; start fewer, "
                f"or set batch_size to {self.world * self.least} or more where there are so many pictures"
            )
        self.device = self.fabric.device
        classifier.to(self.device)
        self.course = Course.of(classifier, settings, material.batches)
        self.position = Position()
        self.best: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        if not self._resumed() and has_folded_batch_norms(classifier.network):
            unfold_batch_norms(classifier, material.examples())
        # Fabric wants to know both; the optimizer that we step is its own.
        self.network, self.optimizer = self.fabric.setup(classifier, self.course.optimizer)
        self.board = TensorBoard(keeping.folder if keeping and self.rank == 0 else None)
        self.pending: list[Tensor] = []
        self.unkept = False
        """Whether the last checkpoint could not be written."""
        self.started = self.saved = time.monotonic()
        self.before = self.position.seconds
        self.deadline = math.inf

    def to_the_end(self, max_minutes: float | None) -> FitResult:
        self.deadline = self.started + (math.inf if max_minutes is None else max_minutes * 60)
        out_of_time = False
        with self.progress.task(f"training the {self.stage}", self.course.epochs, unit="epochs") as task:
            task.advance(self.position.epoch - 1 + self.position.batch / self.material.batches)
            while self.position.epoch <= self.course.epochs and not self._worn_out():
                out_of_time = not self._epoch(task)
                if out_of_time:
                    break
        self.board.close()
        history = tuple(self.position.history)
        self.classifier.load_state_dict(self.best)
        self.classifier.eval()
        return FitResult(
            history,
            self.position.best + 1,
            self._worn_out() and len(history) < self.course.epochs,
            out_of_time,
            self._seconds(),
        )

    def _resumed(self) -> bool:
        """Go on from a checkpoint, if there is one of this very training."""
        if self.keeping is None:
            return False
        path = self.keeping.state_file
        try:
            state = load_state(
                path,
                key=self.keeping.key,
                network=self._described(),
                classifier=self.classifier,
                optimizer=self.course.optimizer,
            )
        except CheckpointError as error:
            if self.rank == 0:
                self.progress.warn(f"{error}; training starts anew")
            return False
        if state is None:
            return False
        self.position = state.position
        self.best = {name: one.to(self.device) for name, one in state.best.items()}
        self.average = {name: one.to(self.device) for name, one in state.average.items()}
        if self.rank == 0:
            self.progress.say(
                f"training the {self.stage} goes on from epoch {self.position.epoch}, "
                f"batch {self.position.batch + 1} of {self.material.batches}"
            )
        return True

    def _epoch(self, task: Task) -> bool:
        """One epoch, or the rest of it; False if time ran out."""
        self.classifier.train()
        number, batches = self.position.epoch, self.material.batches
        began, first = time.monotonic(), self.position.batch
        look_every = _BATCHES_UNSEEN if self.device.type == "cuda" else 1
        rate, stop = 0.0, False
        for at, batch in enumerate(self.material.epoch(number, first=first), start=first):
            rate = self.course.learning_rate(number, at)
            for group in self.course.optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(generator_of(self.settings.seed, number, at, self.rank).initial_seed())
            self.pending.append(self._learn(batch))
            self._average(number, at)
            self.position.batch = at + 1
            task.advance(1 / batches)
            if (at + 1) % look_every == 0 or at + 1 == batches:
                task.advance(0, note=self._pace(began, at + 1 - first))
                save, stop = self._look()
                if (save or stop) and at + 1 < batches:
                    self._save()
                if stop and at + 1 < batches:
                    # The half of an epoch is judged but not counted: a later run goes on within it.
                    self._close_epoch(rate, began, at + 1 - first, task)
                    return False
        self._close_epoch(rate, began, batches - first, task)
        self.position.epoch, self.position.batch, self.position.losses = number + 1, 0, []
        self._save()
        return not stop

    def _learn(self, batch: Batch) -> Tensor:
        """One step; returns the loss of our part of the batch. Halves what memory does not hold."""
        counted = (batch.target != NO_LABEL).sum().clamp(min=1)
        part = batch.part(self.rank, self.world)
        while True:
            try:
                return self._step(part, counted)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._halve(len(part.pixels))

    def _step(self, part: Batch, counted: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for number in range(self.position.pieces):
            piece = part.part(number, self.position.pieces)
            logits = self.network(piece.pixels)
            summed = nn.functional.cross_entropy(
                logits.float(), piece.target, ignore_index=NO_LABEL, reduction="sum"
            )
            # The mean over all processes' windows; DDP takes the mean of the processes' gradients.
            loss = summed / counted * self.world
            self.fabric.backward(loss)
            total += loss.detach() / self.world
        self.optimizer.step()
        return total

    def _halve(self, pictures: int) -> None:
        pieces = self.position.pieces * 2
        if self.world > 1 or pictures // pieces < self.least:
            raise TrainingError(
                f"{-(-pictures // self.position.pieces)} pictures at once do not fit into the memory of "
                f"{self.device}; set a smaller batch_size, tile_px or input_px in [training]"
            )
        self.position.pieces = pieces
        self.optimizer.zero_grad()
        release_memory(self.device)
        self.progress.warn(
            f"a batch does not fit into the memory of {self.device}: it is computed in {pieces} pieces of "
            f"{-(-pictures // pieces)} from here on (batch norms see a piece at a time)"
        )

    def _average(self, epoch: int, batch: int) -> None:
        if not self.course.averaging:
            return
        if not self.average:
            self.average = {name: one.clone() for name, one in self.classifier.state_dict().items()}
            return
        done = (epoch - 1) * self.material.batches + batch
        # At first a plain mean: the decay would otherwise hold on to the beginning.
        decay = min(self.course.averaging, (1 + done) / (10 + done))
        for name, one in self.classifier.state_dict().items():
            if one.is_floating_point():
                self.average[name].lerp_(one, 1 - decay)
            else:
                self.average[name].copy_(one)

    def _look(self) -> tuple[bool, bool]:
        """Look at the losses since the last time; whether to save, and whether time is up, for all alike."""
        now = time.monotonic()
        save = self.keeping is not None and now - self.saved >= self.keeping.every_seconds
        mine = torch.tensor([save, now >= self.deadline], device=self.device, dtype=torch.float32)
        seen = torch.cat([torch.stack(self.pending), mine * (self.rank == 0)])
        if self.world > 1:
            seen = torch.as_tensor(self.fabric.all_reduce(seen, reduce_op="sum"))
        losses, flags = seen[:-2], seen[-2:]
        self.pending = []
        if not torch.isfinite(losses).all():
            wrong = int((~torch.isfinite(losses)).nonzero()[0])
            batch = self.position.batch - len(losses) + wrong + 1
            raise TrainingError(
                f"the loss is not a number in epoch {self.position.epoch}, batch {batch} of "
                f"{self.material.batches}; use a smaller learning_rate than "
                f"{self.course.optimizer.param_groups[0]['lr']:g}{self._kept()}"
            )
        self.position.losses += losses.tolist()
        return bool(flags[0] > 0), bool(flags[1] > 0)

    def _close_epoch(self, rate: float, began: float, batches: int, task: Task) -> None:
        """Judge the weights as they are, and keep them if they are the best."""
        learning_seconds = max(time.monotonic() - began, 1e-9)
        judged = copy.deepcopy(self.classifier)
        if self.average:
            judged.load_state_dict(self.average)
        if self.world > 1:
            # Batch norms have seen other pictures in each process: what is judged, and kept, is the first's.
            for tensor in judged.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        logits = predict_windows(
            judged, self.material.validation(self.rank, self.world), count=len(self.material.targets)
        )
        if self.world > 1:
            together = self.fabric.all_reduce(torch.from_numpy(logits).to(self.device), reduce_op="sum")
            logits = torch.as_tensor(together).cpu().numpy()
        epoch = replace(
            self._judge(logits, rate),
            iterations=(self.position.epoch - 1) * self.material.batches + self.position.batch,
            seconds=round(self._seconds(), 2),
            iterations_per_second=round(batches / learning_seconds, 3),
        )
        history = self.position.history
        history.append(epoch)
        if self.position.best < 0 or epoch.validation_loss < history[self.position.best].validation_loss:
            self.position.best = len(history) - 1
            self.best = {name: one.clone() for name, one in judged.state_dict().items()}
        try:
            if self.keeping and self.rank == 0:
                write_log(self.keeping.folder, history)
            self.board.add(epoch)
        except StorageError as error:
            self._go_on_without(error)
        task.advance(0, note=self._pace(began, batches))

    def _judge(self, logits: NDArray[np.float32], rate: float) -> Epoch:
        """Figures of the windows that have a label."""
        counts = self.material.targets != NO_LABEL
        wide, target = logits[counts].astype(np.float64), self.material.targets[counts]
        if not np.isfinite(wide).all():
            raise TrainingError(
                f"the validation loss is not a number in epoch {self.position.epoch}; use a smaller "
                f"learning_rate than {rate:g}{self._kept()}"
            )
        cross_entropy = logsumexp(wide, axis=1) - wide[np.arange(len(target)), target]
        figures = evaluate(softmax(wide, axis=1)[:, 1], target)
        assert figures.accuracy is not None and figures.auc is not None  # both classes are there
        return Epoch(
            number=self.position.epoch,
            learning_rate=rate,
            training_loss=math.fsum(self.position.losses) / len(self.position.losses),
            validation_loss=float(cross_entropy.mean()),
            validation_accuracy=figures.accuracy,
            validation_auc=figures.auc,
        )

    def _worn_out(self) -> bool:
        """Whether the validation loss has not fallen for long."""
        return len(self.position.history) - 1 - self.position.best >= self.course.patience

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.keeping is None or self.rank:
            return
        try:
            save_state(
                self.keeping.state_file,
                key=self.keeping.key,
                network=self._described(),
                position=replace(self.position, seconds=self._seconds()),
                classifier=self.classifier,
                optimizer=self.course.optimizer,
                best=self.best,
                average=self.average,
            )
        except StorageError as error:
            self._go_on_without(error)
        else:
            self.unkept = False

    def _go_on_without(self, error: StorageError) -> None:
        """A full disk is no reason to stop: room may come before the end, and the checkpoint before stays."""
        if not self.unkept:
            fact = str(error).partition(";")[0]
            self.progress.warn(
                f"{fact}; make room: training goes on and tries again"
                f"{self._kept() or ', nothing is kept yet'}"
            )
        self.unkept = True

    def _described(self) -> str:
        return f"{self.classifier.network_name} ({self.classifier.recipe}, {self.classifier.input_px} px)"

    def _kept(self) -> str:
        """What is left when training goes astray, as the end of a sentence."""
        if self.keeping is None or not self.keeping.state_file.exists():
            return ""
        return f"; the state before it is kept in {self.keeping.state_file}"

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def _pace(self, began: float, batches: int) -> str:
        """Loss, judgement, speed and time left, for a person who waits."""
        speed = batches / max(time.monotonic() - began, 1e-9)
        recent = self.position.losses[-_BATCHES_UNSEEN:]
        parts = [f"loss {sum(recent) / len(recent):.3f}"] if recent else []
        if self.position.history:
            last = self.position.history[-1]
            parts.append(f"validation {last.validation_loss:.3f}, AUC {last.validation_auc:.3f}")
        ahead = (self.course.epochs - self.position.epoch + 1) * self.material.batches - self.position.batch
        left = min(ahead / speed, self.deadline - time.monotonic())
        return ", ".join([*parts, f"{speed:.1f} it/s", f"at most {max(1, round(left / 60))} min left"])
