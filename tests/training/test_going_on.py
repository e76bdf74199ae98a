"""A training that is stopped, however, goes on to the same result; one that is shared comes to the same."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import nn
from training import trainer

from hnscc_qp.errors import TrainingError
from hnscc_qp.training import fit as module
from hnscc_qp.training.history import FitResult
from hnscc_qp.training.state import STATE_FILE

TRAINER = Path(trainer.__file__)


def start(*command: object) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAINER.parents[2])}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE)


def batches_done(state_file: Path) -> int:
    """Batches, five to an epoch, that the checkpoint has behind it; 0 without one."""
    if not state_file.exists():
        return 0
    with safetensors.safe_open(state_file, framework="pt") as file:
        position = json.loads(file.metadata()["training"])["position"]
    return (position["epoch"] - 1) * 5 + position["batch"]


def judged(result: FitResult) -> list[tuple[Any, ...]]:
    return [epoch.judged() for epoch in result.history]


def same(one: nn.Module, other: nn.Module) -> bool:
    wanted, found = one.state_dict(), other.state_dict()
    return all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Limits how large a file may get, in bytes, as a full disk does; 0 lifts the limit again."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or before, hard))

    yield limit
    limit(0)


def test_killed_training_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    recipe = "dense"
    whole, expected = trainer.train(tmp_path / "whole", recipe)
    folder = tmp_path / "killed"
    running = start(sys.executable, TRAINER, folder, recipe)
    while batches_done(folder / STATE_FILE) < 6 and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert batches_done(folder / STATE_FILE) < 12
    again, result = trainer.train(folder, recipe)
    assert judged(result) == judged(expected)
    assert result.best_epoch == expected.best_epoch
    assert same(whole, again)


def test_time_that_is_over_ends_training_and_a_later_run_goes_on(tmp_path: Path) -> None:
    whole, expected = trainer.train(tmp_path / "whole", "window")
    classifier, result = trainer.train(tmp_path / "short", "window", max_minutes=0)
    assert (result.out_of_time, result.stopped_early, len(result.history)) == (True, False, 1)
    assert result.history[0].iterations == 1
    assert not classifier.training and not same(classifier, whole)
    again, rest = trainer.train(tmp_path / "short", "window")
    assert not rest.out_of_time
    assert judged(rest) == judged(expected)
    assert same(whole, again)


def test_log_has_a_line_for_each_epoch(tmp_path: Path) -> None:
    _, result = trainer.train(tmp_path, "window")
    with (tmp_path / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["number"]) for row in rows] == [1, 2, 3]
    assert [float(row["validation_auc"]) for row in rows] == [one.validation_auc for one in result.history]
    assert all(float(row["iterations_per_second"]) > 0 for row in rows)


class Recorder:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.done = 0.0

    def task(self, *_: object, **__: object) -> Recorder:
        return self

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        self.done += amount

    def say(self, line: str) -> None:
        self.warnings.append(line)

    warn = say

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_checkpoint_of_another_recipe_or_network_is_refused_by_name(tmp_path: Path) -> None:
    trainer.train(tmp_path, "window", max_minutes=0)
    recorder = Recorder()
    trainer.train(tmp_path, "dense", max_minutes=0, progress=recorder)
    assert len(recorder.warnings) == 1
    assert (
        "is a training of mobilenet_v2 (window, 32 px), not of mobilenet_v2 (dense, 32 px)"
        in (recorder.warnings[0])
    )
    assert "starts anew" in recorder.warnings[0]


def test_damaged_checkpoint_is_named_and_training_starts_anew(tmp_path: Path) -> None:
    _, expected = trainer.train(tmp_path, "window", max_minutes=0)
    state = tmp_path / STATE_FILE
    state.write_bytes(state.read_bytes()[:5000])
    recorder = Recorder()
    _, result = trainer.train(tmp_path, "window", max_minutes=0, progress=recorder)
    assert f"{state} is damaged" in recorder.warnings[0]
    assert judged(result) == judged(expected)


def test_loss_that_is_not_a_number_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    learn = module._Run._learn

    def spoil(run: Any, batch: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return learn(run, batch) * (float("nan") if steps == 8 else 1)

    monkeypatch.setattr(module._Run, "_learn", spoil)
    with pytest.raises(
        TrainingError, match=r"epoch 2, batch 3 of 5; use a smaller learning_rate.*is kept in"
    ):
        trainer.train(tmp_path, "window")
    assert batches_done(tmp_path / STATE_FILE) == 7


def test_batch_that_memory_does_not_hold_is_computed_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = module._Run._step

    def too_much(run: Any, part: Any, counted: torch.Tensor) -> torch.Tensor:
        if len(part.pixels) / run.position.pieces > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(run, part, counted)

    monkeypatch.setattr(module._Run, "_step", too_much)
    recorder = Recorder()
    _, result = trainer.train(tmp_path, "window", progress=recorder)
    assert [line for line in recorder.warnings if "in 2 pieces of 4" in line] == recorder.warnings
    assert len(recorder.warnings) == 1
    assert len(result.history) == 3


@pytest.mark.parametrize(
    "said",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes",
        "could not create a primitive",
    ],
)
def test_batch_that_can_not_be_halved_any_more_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def never(*_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(module._Run, "_step", never)
    with pytest.raises(TrainingError, match="do not fit into the memory of cpu; set a smaller batch_size"):
        trainer.train(tmp_path, "dense", progress=Recorder())


@torch.no_grad()
def test_halves_add_up_to_the_whole_batchs_gradient(tmp_path: Path) -> None:
    """With batch norms fixed, as they see a piece at a time."""
    gradients = []
    for pieces in (1, 2, 4):
        classifier = trainer.DenseClassifier("mobilenet_v2", input_px=32)
        material = trainer.material("dense")
        run = module._Run(
            classifier,
            material,
            settings=trainer.settings("dense"),
            device=trainer.CPU,
            stage="primary",
            keeping=None,
            progress=Recorder(),
        )
        classifier.eval()
        run.position.pieces = pieces
        with torch.enable_grad():
            run._learn(next(iter(material.epoch(1))))
        gradients.append(torch.cat([one.grad.flatten() for one in classifier.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5)


def test_two_processes_come_to_the_figures_of_one(tmp_path: Path) -> None:
    _, alone = trainer.train(tmp_path / "alone", "dense")
    shared = tmp_path / "shared"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    running = start(*torchrun, TRAINER, shared, "dense")
    _, errors = running.communicate()
    assert running.returncode == 0, errors.decode()
    found = json.loads((shared / "result.json").read_text())
    assert len(found["history"]) == 3
    for epoch, other in zip(alone.history, found["history"], strict=True):
        # Batch norms see half a batch each, and dropout draws otherwise.
        assert other["validation_loss"] == pytest.approx(epoch.validation_loss, abs=0.1)
        assert other["training_loss"] == pytest.approx(epoch.training_loss, abs=0.15)
    assert (shared / STATE_FILE).exists() and (shared / "log.csv").exists()


def test_full_disk_is_said_once_and_training_goes_on_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_size_limit: Callable[[int], None]
) -> None:
    whole, expected = trainer.train(tmp_path / "whole", "window")
    learn, steps = module._Run._learn, 0

    def fill(run: Any, batch: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 8:
            file_size_limit(100_000)
        return learn(run, batch)

    monkeypatch.setattr(module._Run, "_learn", fill)
    recorder = Recorder()
    kept_on, result = trainer.train(tmp_path / "full", "window", progress=recorder)
    assert judged(result) == judged(expected) and same(kept_on, whole)
    (warning,) = recorder.warnings
    assert "training.safetensors can't be written (File too large" in warning
    assert "make room: training goes on and tries again; the state before it is kept in" in warning
    file_size_limit(0)
    assert batches_done(tmp_path / "full" / STATE_FILE) == 7
    assert [path.name for path in (tmp_path / "full").iterdir() if path.name.startswith(".partial")] == []
    again, rest = trainer.train(tmp_path / "full", "window")
    assert judged(rest) == judged(expected) and same(again, whole)


def test_tensorboard_reads_what_training_logged(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, result = trainer.train(tmp_path, "window")
    log = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert set(log.Tags()["scalars"]) >= {"training_loss", "validation_auc", "learning_rate", "seconds"}
    for name in ("training_loss", "validation_auc"):
        seen = [(event.step, event.value) for event in log.Scalars(name)]
        assert seen == [
            (epoch.iterations, pytest.approx(getattr(epoch, name), rel=1e-6)) for epoch in result.history
        ]
