from __future__ import annotations

import pytest
import torch

from hnscc_qp.models.cascade import Cascade
from hnscc_qp.models.networks import WindowClassifier


@torch.no_grad()
def balanced_classifier(seed: int, windows: torch.Tensor) -> WindowClassifier:
    """A network from scratch whose bias is such that it calls half of the windows tumor."""
    classifier = WindowClassifier("mobilenet_v2", input_px=32, seed=seed)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the running statistics become those of this one batch
    classifier.train()(windows)
    logits = classifier.eval()(windows)
    margin = logits[:, 1] - logits[:, 0]
    head = classifier.network.get_submodule("classifier.1")
    head.bias[0] += margin.quantile(0.5)  # between two windows
    return classifier


@pytest.fixture
def stages(windows: torch.Tensor) -> tuple[WindowClassifier, WindowClassifier]:
    return balanced_classifier(1, windows), balanced_classifier(2, windows)


def test_window_is_tumor_if_both_stages_say_so(
    stages: tuple[WindowClassifier, WindowClassifier], windows: torch.Tensor
) -> None:
    with torch.inference_mode():
        primary, secondary = (stage(windows).argmax(dim=1) == 1 for stage in stages)
    assert (primary & ~secondary).any() and (~primary & secondary).any() and (primary & secondary).any()
    called = Cascade(*stages).call_tumor(windows)
    assert called.dtype == torch.bool
    assert torch.equal(called, primary & secondary)


def test_secondary_sees_only_what_the_primary_calls_tumor(
    stages: tuple[WindowClassifier, WindowClassifier], windows: torch.Tensor
) -> None:
    cascade = Cascade(*stages)
    seen: list[torch.Tensor] = []
    assert cascade.secondary is not None
    cascade.secondary.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    cascade.call_tumor(windows)
    with torch.inference_mode():
        wanted = windows[stages[0](windows).argmax(dim=1) == 1]
    assert len(seen) == 1
    assert torch.equal(seen[0], wanted)


def test_secondary_rests_where_the_primary_finds_nothing(
    stages: tuple[WindowClassifier, WindowClassifier], windows: torch.Tensor
) -> None:
    with torch.no_grad():
        stages[0].network.get_submodule("classifier.1").bias[0] += 1000
    cascade = Cascade(*stages)
    assert cascade.secondary is not None
    cascade.secondary.register_forward_pre_hook(lambda *_: pytest.fail("the secondary was asked"))
    assert not cascade.call_tumor(windows).any()


def test_primary_alone_decides_without_a_secondary(
    stages: tuple[WindowClassifier, WindowClassifier], windows: torch.Tensor
) -> None:
    with torch.inference_mode():
        wanted = stages[0](windows).argmax(dim=1) == 1
    assert torch.equal(Cascade(stages[0], None).call_tumor(windows), wanted)
