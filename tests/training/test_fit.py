from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from hnscc_qp.errors import TrainingError
from hnscc_qp.models.networks import WindowClassifier, has_folded_batch_norms
from hnscc_qp.study import Training, WindowRecipe
from hnscc_qp.training import fit as module
from hnscc_qp.training.evaluate import predict
from hnscc_qp.training.fit import fit
from hnscc_qp.training.history import FitResult
from hnscc_qp.training.material import WindowMaterial

CPU = torch.device("cpu")
TRAIN, VALIDATION = np.arange(64), np.arange(64, 96)
Patches = tuple[np.ndarray, np.ndarray]


def recipe(*, seed: int = 1, **values: Any) -> Training:
    small = {"epochs": 1, "batch_size": 16, "orientations": 1}
    window = WindowRecipe(**small | values)
    return Training(recipe="window", weights="none", input_px=32, seed=seed, window=window)


def train(
    patches: Patches, *, classifier: WindowClassifier | None = None, **values: Any
) -> tuple[WindowClassifier, FitResult]:
    classifier = classifier or WindowClassifier("mobilenet_v2", input_px=32)
    sides = {"train_idx": TRAIN, "validation_idx": VALIDATION}
    sides |= {key: values.pop(key) for key in list(values) if key.endswith("_idx")}
    passed = {key: values.pop(key) for key in ("progress", "keeping", "max_minutes") if key in values}
    settings = recipe(**values)
    material = WindowMaterial(*patches, **sides, settings=settings.window, seed=settings.seed, device=CPU)
    return classifier, fit(classifier, material, settings=settings, device=CPU, **passed)


def judged(result: FitResult) -> list[tuple[Any, ...]]:
    return [epoch.judged() for epoch in result.history]


def script_validation(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[dict[str, torch.Tensor]]:
    """Let the validation losses be these; returns the weights at each, as they come."""
    seen: list[dict[str, torch.Tensor]] = []

    def logits(classifier: nn.Module, batches: object, *, count: int) -> np.ndarray:
        seen.append({name: tensor.clone() for name, tensor in classifier.state_dict().items()})
        margin = np.log(np.expm1(losses[len(seen) - 1]))  # cross-entropy log(1 + e^margin), labels alternate
        right = np.arange(count) % 2
        return np.where(np.eye(2)[right] == 1, 0, margin).astype(np.float32)

    monkeypatch.setattr(module, "predict_windows", logits)
    return seen


def test_training_learns_to_tell_the_classes(patches: Patches) -> None:
    _, result = train(patches, epochs=4)
    assert result.history[-1].training_loss < 0.7 * result.history[0].training_loss
    assert [epoch.number for epoch in result.history] == [1, 2, 3, 4]
    assert result.seconds > 0


def test_same_seed_gives_the_same_weights(patches: Patches) -> None:
    torch.manual_seed(1)
    first, result = train(patches)
    torch.manual_seed(2)
    second, again = train(patches)
    other, _ = train(patches, seed=2)
    assert judged(result) == judged(again)
    states = [model.state_dict() for model in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["network.classifier.1.weight"], states[2]["network.classifier.1.weight"])


def test_training_leaves_torchs_own_generator_alone(patches: Patches) -> None:
    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    train(patches)
    assert torch.equal(torch.rand(2), expected)


def test_validation_figures_are_those_of_the_weights_kept(patches: Patches) -> None:
    classifier, result = train(patches)
    probabilities = predict(classifier, patches[0][VALIDATION], device=CPU).astype(float)
    epoch = result.history[0]
    assert epoch.validation_loss == pytest.approx(log_loss(patches[1][VALIDATION], probabilities), rel=1e-4)
    assert epoch.validation_accuracy == accuracy_score(patches[1][VALIDATION], probabilities > 0.5)


def test_best_weights_come_back_when_training_stops_early(
    patches: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = script_validation(monkeypatch, [0.6, 0.4, 0.5, 0.45, 0.1])
    classifier, result = train(patches, epochs=5, patience=2, batch_size=64)
    assert [epoch.validation_loss for epoch in result.history] == pytest.approx([0.6, 0.4, 0.5, 0.45])
    assert (result.best_epoch, result.stopped_early) == (2, True)
    kept = classifier.state_dict()
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    assert not torch.equal(kept["network.classifier.1.weight"], seen[3]["network.classifier.1.weight"])
    assert not classifier.training


def test_training_that_ends_by_its_epochs_did_not_stop_early(
    patches: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.4, 0.5])
    _, result = train(patches, epochs=2, patience=1, batch_size=64)
    assert (result.best_epoch, result.stopped_early) == (1, False)


def test_learning_rate_falls_in_steps(patches: Patches, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.5, 0.4, 0.3])
    _, result = train(patches, epochs=3, decay_epochs=2, batch_size=64)
    assert [epoch.learning_rate for epoch in result.history] == pytest.approx([1e-3, 1e-3, 1e-4])


def batch_sizes(patches: Patches, monkeypatch: pytest.MonkeyPatch, n: int, batch_size: int) -> list[int]:
    sizes: list[int] = []
    script_validation(monkeypatch, [0.5])
    classifier = WindowClassifier("mobilenet_v2", input_px=32)
    classifier.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    train(patches, classifier=classifier, train_idx=np.arange(n), batch_size=batch_size)
    return sizes


@pytest.mark.parametrize(("n", "batch_size"), [(64, 16), (3, 128), (3, 2), (17, 8), (33, 16)])
def test_every_patch_is_seen_once_in_batches_that_are_not_too_small(
    patches: Patches, monkeypatch: pytest.MonkeyPatch, n: int, batch_size: int
) -> None:
    sizes = batch_sizes(patches, monkeypatch, n, batch_size)
    assert sum(sizes) == n
    assert min(sizes) >= min(n, batch_size)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("side", "key"), [("training", "train_idx"), ("validation", "validation_idx")])
@pytest.mark.parametrize(("missing", "label"), [("tumor", 0), ("nontumor", 1)])
def test_missing_class_is_named_with_its_side(
    patches: Patches, side: str, key: str, missing: str, label: int
) -> None:
    only = np.flatnonzero(patches[1] == label)[:8]
    with pytest.raises(TrainingError, match=f"there is no {missing} patch for {side}"):
        train(patches, **{key: only})


def test_empty_side_is_an_error_of_ours(patches: Patches) -> None:
    with pytest.raises(TrainingError, match="for validation"):
        train(patches, validation_idx=np.empty(0, np.intp))


def test_loss_that_is_not_a_number_names_epoch_and_batch(patches: Patches) -> None:
    classifier = WindowClassifier("mobilenet_v2", input_px=32)
    calls = 0

    def spoil(_: nn.Module, __: Any, logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return logits * float("nan") if calls == 3 else logits

    classifier.register_forward_hook(spoil)
    with pytest.raises(TrainingError, match=r"not a number in epoch 1, batch 3 of 4; use a smaller learning"):
        train(patches, classifier=classifier)


@pytest.mark.parametrize(("patches_shown", "processes"), [(6, 4), (64, 9)])
def test_batch_that_leaves_a_process_less_than_batch_norms_need_is_refused(
    patches: Patches, monkeypatch: pytest.MonkeyPatch, patches_shown: int, processes: int
) -> None:
    shared = SimpleNamespace(global_rank=0, world_size=processes, device=CPU)
    monkeypatch.setattr(module, "make_fabric", lambda *_: shared)
    batch = min(patches_shown, 16)
    with pytest.raises(
        TrainingError,
        match=f"a batch of {batch} can't be shared by {processes} processes; start fewer, or set batch_size "
        f"to {2 * processes} or more",
    ):
        train(patches, train_idx=np.arange(patches_shown))


def test_patches_may_be_a_read_only_memory_map(patches: Patches, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", patches[0])
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    _, result = train((mapped, patches[1].astype(bool)))
    assert judged(result) == judged(train(patches)[1])


def test_folded_batch_norms_are_unfolded_before_training(
    patches: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = WindowClassifier("mobilenet_v2", input_px=32)
    with torch.no_grad():
        for norm in classifier.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.bias.fill_(0.3)
    assert has_folded_batch_norms(classifier.network)
    unfolded: list[int] = []
    original = module.unfold_batch_norms

    def spy(network: nn.Module, images: torch.Tensor) -> None:
        unfolded.append(len(images))
        original(network, images)

    monkeypatch.setattr(module, "unfold_batch_norms", spy)
    train(patches, classifier=classifier)
    train(patches)
    assert unfolded == [64]


class Recorder:
    def __init__(self) -> None:
        self.done = 0.0
        self.notes: list[str] = []
        self.described = ()

    def task(self, description: str, total: float | None = None, *, unit: str = "") -> Recorder:
        self.described = (description, total, unit)
        return self

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        self.done += amount
        if note:
            self.notes.append(note)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_progress_counts_epochs_and_tells_the_losses(patches: Patches) -> None:
    recorder = Recorder()
    train(patches, epochs=2, progress=recorder)
    assert recorder.described == ("training the primary", 2, "epochs")
    assert recorder.done == pytest.approx(2)
    assert all(word in recorder.notes[-1] for word in ("loss", "validation", "AUC", "it/s", "min left"))
