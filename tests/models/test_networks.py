from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from hnscc_qp.models import networks
from hnscc_qp.models.networks import (
    NETWORKS,
    WindowClassifier,
    build_network,
    fold_batch_norms,
    has_folded_batch_norms,
    unfold_batch_norms,
)


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def folded_network(seed: int = 5, name: str = "mobilenet_v2") -> nn.Module:
    """A network whose batch norms only add a bias, as after folding."""
    network = build_network(name, weights="none")
    generator = torch.Generator().manual_seed(seed)
    for norm in norms_of(network):
        norm.weight.fill_((1 + norm.eps) ** 0.5)
        norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator))
    return network.eval()


def test_window_gives_one_logit_per_class(windows: torch.Tensor) -> None:
    logits = WindowClassifier("mobilenet_v2", input_px=32).eval()(windows)
    assert logits.shape == (24, 2)
    assert logits.dtype == torch.float32


def test_windows_are_normalised_and_resized_bilinearly(windows: torch.Tensor) -> None:
    found = WindowClassifier("mobilenet_v2", input_px=64).prepare(windows).numpy()
    # Pixel centres: output i lies at (i + ½)·40/64 − ½; np.interp repeats the border.
    where = (np.arange(64) + 0.5) * 40 / 64 - 0.5
    image = windows[5].numpy().astype(np.float64)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        rows = np.array([np.interp(where, np.arange(40), row) for row in image[channel]])
        both = np.array([np.interp(where, np.arange(40), column) for column in rows.T]).T
        np.testing.assert_allclose(found[5, channel], (both / 255 - mean) / std, atol=1e-5)


def test_memory_layout_of_the_windows_does_not_matter(windows: torch.Tensor) -> None:
    classifier = WindowClassifier("mobilenet_v2", input_px=32).eval()
    other = windows.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(classifier(windows), classifier(other))


def test_seed_decides_fresh_weights_and_leaves_torch_alone() -> None:
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    one, same, other = (build_network("mobilenet_v2", weights="none", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    states = [network.state_dict() for network in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["classifier.1.weight"], states[2]["classifier.1.weight"])


@pytest.mark.parametrize("name", NETWORKS)
def test_imagenet_weights_of_every_network_load_but_for_the_head(name: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    source = torchvision.models.get_model(name, weights=None, **ORIGINAL.get(name, {}))
    safetensors.torch.save_file(source.state_dict(), tmp_path / "weights.safetensors")
    network = build_network(name, weights=str(tmp_path / "weights.safetensors")).eval()
    # With torchvision's own head put back, it must compute what torchvision's network computes.
    head = "classifier.1" if name == "mobilenet_v2" else "fc"
    assert network.get_submodule(head).out_features == 2
    network.set_submodule(head, source.get_submodule(head))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), source.eval()(images))


# As torchvision's own weights are: with auxiliary heads.
ORIGINAL: dict[str, dict[str, Any]] = {"googlenet": {"aux_logits": True, "init_weights": True}}


def test_googlenet_sees_what_torchvision_would_show_it(windows: torch.Tensor, tmp_path: Path) -> None:
    source = torchvision.models.googlenet(weights=None, transform_input=True, **ORIGINAL["googlenet"]).eval()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "weights.safetensors")
    classifier = WindowClassifier("googlenet", input_px=64, weights=str(tmp_path / "weights.safetensors"))
    classifier.network.set_submodule("fc", source.fc)
    scaled = windows.float() / 255
    usual = (scaled - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    larger = nn.functional.interpolate(usual, (64, 64), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        torch.testing.assert_close(classifier.eval()(windows), source(larger), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_depth_is_that_of_the_longest_way_through(name: str) -> None:
    """Counted on the traced graph, as Table 2 of the paper counts: convolutions and linear layers."""
    traced = torch.fx.symbolic_trace(build_network(name, weights="none"))
    modules = dict(traced.named_modules())
    longest: dict[torch.fx.Node, int] = {}
    for node in traced.graph.nodes:
        counts = node.op == "call_module" and isinstance(modules[node.target], nn.Conv2d | nn.Linear)
        longest[node] = counts + max((longest[one] for one in node.all_input_nodes), default=0)
    assert max(longest.values()) == networks.depth_of(name)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("input_px", [32, 224])
def test_every_network_trains_and_classifies_at_the_smallest_and_the_papers_size(
    name: str, input_px: int, windows: torch.Tensor
) -> None:
    classifier = WindowClassifier(name, input_px=input_px)
    some = windows[:2]
    logits = classifier.train()(some)
    assert logits.shape == (2, 2)
    logits.sum().backward()
    assert all(one.grad is not None for one in classifier.parameters())
    with torch.inference_mode():
        assert torch.isfinite(classifier.eval()(some)).all()


def test_only_folded_batch_norms_are_taken_for_folded() -> None:
    assert has_folded_batch_norms(folded_network())
    assert not has_folded_batch_norms(build_network("mobilenet_v2", weights="none"))
    trained = folded_network()
    norms_of(trained)[0].running_mean[0] = 0.1
    assert not has_folded_batch_norms(trained)


def test_unfolded_network_in_train_mode_starts_from_the_same_features() -> None:
    network = folded_network().features
    images = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = network(images)
        spoilt = network.train()(images)
    network = folded_network().features
    unfold_batch_norms(network, images)
    with torch.inference_mode():
        found = network.train()(images)
    scale = wanted.std()
    assert (found - wanted).abs().mean() < 0.02 * scale
    assert (spoilt - wanted).abs().mean() > 0.5 * scale


def test_shared_weights_are_folded_and_unfold_without_change(shared: Path) -> None:
    path = shared / "weights" / "mobilenet_v2-imagenet.safetensors"
    classifier = WindowClassifier("mobilenet_v2", input_px=64, weights=str(path)).eval()
    assert has_folded_batch_norms(classifier.network)
    noise = torch.randint(
        0, 256, (32, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    windows = noise.repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.inference_mode():
        before = classifier(windows)
    unfold_batch_norms(classifier.network, classifier.prepare(windows[:16]))
    with torch.inference_mode():
        torch.testing.assert_close(classifier(windows), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_for_inference_changes_nothing_but_speed(name: str, windows: torch.Tensor) -> None:
    classifier = WindowClassifier(name, input_px=32)
    with torch.no_grad():
        for _ in range(2):
            classifier.train()(windows[:8])  # running statistics that are not trivial
    classifier.eval()
    folded = fold_batch_norms(classifier)
    assert not norms_of(folded)
    assert norms_of(classifier)
    with torch.inference_mode():
        wanted = classifier(windows)
        assert wanted.std() > 0
        torch.testing.assert_close(folded(windows), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_weights_of_every_network_unfold_without_change(name: str) -> None:
    network = folded_network(name=name)
    images, others = torch.randn(2, 16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = network(images), network(others)
    assert has_folded_batch_norms(network)
    unfold_batch_norms(network, images)
    assert not has_folded_batch_norms(network)
    with torch.inference_mode():
        for found, wanted in zip((network(images), network(others)), before, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))
