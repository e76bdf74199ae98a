from __future__ import annotations

import dataclasses
import hashlib
import socket
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from hnscc_qp.errors import WeightsError
from hnscc_qp.models import networks
from hnscc_qp.models.networks import (
    WindowClassifier,
    build_network,
    fold_batch_norms,
    has_folded_batch_norms,
    unfold_batch_norms,
    weights_origin,
)


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def folded_network(seed: int = 5) -> nn.Module:
    """A network whose batch norms only add a bias, as after folding."""
    network = build_network("mobilenet_v2", weights="none")
    generator = torch.Generator().manual_seed(seed)
    for norm in norms_of(network):
        norm.weight.fill_((1 + norm.eps) ** 0.5)
        norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator))
    return network.eval()


@pytest.fixture
def imagenet_file(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(11)
    network = torchvision.models.mobilenet_v2()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return path, network


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


def test_weights_file_fills_all_but_the_head(imagenet_file: tuple[Path, nn.Module]) -> None:
    path, source = imagenet_file
    network = build_network("mobilenet_v2", weights=str(path))
    found, wanted = network.state_dict(), source.state_dict()
    assert found.keys() == wanted.keys()
    differ = {name for name in wanted if not torch.equal(found[name], wanted[name])}
    assert differ == {"classifier.1.weight", "classifier.1.bias"}
    origin = weights_origin("mobilenet_v2", str(path))
    assert origin == {"name": "weights.safetensors", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_missing_weights_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"there are no weights at .*nowhere\.safetensors; correct the path"
    ):
        build_network("mobilenet_v2", weights=str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(WeightsError, match="there are no weights at"):
        weights_origin("mobilenet_v2", str(tmp_path))


def test_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"weights\.pth can't be read as safetensors"):
        build_network("mobilenet_v2", weights=str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("features.3.conv.2.weight"), "features.3.conv.2.weight is missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra is none of its tensors"),
        (
            lambda tensors: tensors.update({"classifier.1.bias": torch.zeros(2)}),
            r"classifier.1.bias is \(2,\), not \(1000,\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused(
    imagenet_file: tuple[Path, nn.Module], change, message: str
) -> None:
    path, source = imagenet_file
    tensors = dict(source.state_dict())
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(WeightsError, match=message) as caught:
        build_network("mobilenet_v2", weights=str(path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hub = tmp_path / "hub"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    return hub


def use_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    architecture = dataclasses.replace(networks._ARCHITECTURES["mobilenet_v2"], imagenet_url=url)
    monkeypatch.setitem(networks._ARCHITECTURES, "mobilenet_v2", architecture)


def test_failed_download_is_one_line_with_the_remedy(
    empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError) as caught:
        build_network("mobilenet_v2", weights="imagenet")
    assert str(caught.value) == (
        "ImageNet weights can't be downloaded (Name or service not known); pass --weights FILE "
        '(safetensors) or weights = "none" to train from scratch'
    )


def test_server_that_never_answers_does_not_hang(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_DOWNLOAD_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        use_url(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/network-0123abcd.pth")
        started = time.monotonic()
        with pytest.raises(WeightsError, match=r"can't be downloaded \(timed out\)"):
            build_network("mobilenet_v2", weights="imagenet")
    assert time.monotonic() - started < 5
    assert socket.getdefaulttimeout() is None
    assert not list(empty_hub.rglob("*.pth"))


def test_download_with_a_wrong_hash_is_refused(
    empty_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "network-0123abcd.pth").write_bytes(b"not what was asked for")
    use_url(monkeypatch, (tmp_path / "network-0123abcd.pth").as_uri())
    with pytest.raises(WeightsError, match=r"can't be downloaded .*hash"):
        build_network("mobilenet_v2", weights="imagenet")


def test_imagenet_weights_in_the_cache_need_no_network(
    empty_hub: Path, tmp_path: Path, imagenet_file: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved"
    torch.save(imagenet_file[1].state_dict(), saved)
    name = f"network-{hashlib.sha256(saved.read_bytes()).hexdigest()[:8]}.pth"
    use_url(monkeypatch, f"http://127.0.0.1:9/{name}")
    cached = empty_hub / "checkpoints" / name
    cached.parent.mkdir(parents=True)
    saved.rename(cached)
    network = build_network("mobilenet_v2", weights="imagenet")
    wanted = imagenet_file[1].state_dict()["features.0.0.weight"]
    assert torch.equal(network.state_dict()["features.0.0.weight"], wanted)

    cached.write_bytes(b"half of a file")
    with pytest.raises(WeightsError, match="is damaged; delete it"):
        build_network("mobilenet_v2", weights="imagenet")


def test_only_folded_batch_norms_are_taken_for_folded() -> None:
    assert has_folded_batch_norms(folded_network())
    assert not has_folded_batch_norms(build_network("mobilenet_v2", weights="none"))
    trained = folded_network()
    norms_of(trained)[0].running_mean[0] = 0.1
    assert not has_folded_batch_norms(trained)


def test_unfolding_keeps_what_the_network_computes() -> None:
    network = folded_network()
    generator = torch.Generator().manual_seed(1)
    images, others = torch.randn(2, 32, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        before = network(images), network(others)
    unfold_batch_norms(network, images)
    assert not network.training
    assert not has_folded_batch_norms(network)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), before[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(others), before[1], rtol=1e-4, atol=1e-4)


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


def test_folding_for_inference_changes_nothing_but_speed(windows: torch.Tensor) -> None:
    classifier = WindowClassifier("mobilenet_v2", input_px=32)
    with torch.no_grad():
        for _ in range(3):
            classifier.train()(windows)  # running statistics that are not trivial
    classifier.eval()
    folded = fold_batch_norms(classifier)
    assert not norms_of(folded)
    assert len(norms_of(classifier)) == 52
    with torch.inference_mode():
        torch.testing.assert_close(folded(windows), classifier(windows), rtol=1e-4, atol=1e-5)
