"""Where pretrained weights come from: torchvision through a real server on loopback, files, folders."""

from __future__ import annotations

import hashlib
import shutil
import socket
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from models.downloads import BreakingServer, publish, serve, use_url
from torch import nn

from hnscc_qp.errors import WeightsError
from hnscc_qp.models import weights
from hnscc_qp.models.networks import build_network, weights_origin


@pytest.fixture
def imagenet_file(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(11)
    network = torchvision.models.mobilenet_v2()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return path, network


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
        weights_origin("mobilenet_v2", str(tmp_path / "nowhere.safetensors"))


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


def test_failed_download_is_one_line_with_the_remedy(
    empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError) as caught:
        build_network("mobilenet_v2", weights="imagenet")
    assert str(caught.value) == (
        "ImageNet weights can't be downloaded from "
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth (Name or service not known); run it "
        'again, pass --weights FILE or DIR (safetensors, or that file), or weights = "none" to train from '
        "scratch"
    )


def test_server_that_never_answers_does_not_hang(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_DOWNLOAD_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        use_url(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/network-0123abcd.pth")
        started = time.monotonic()
        with pytest.raises(WeightsError, match=r"can't be downloaded .* \(timed out\)"):
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


def test_damaged_file_in_the_cache_is_downloaded_again(
    empty_hub: Path, tmp_path: Path, imagenet_file: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = publish(tmp_path / "server", imagenet_file[1])
    use_url(monkeypatch, saved.as_uri())
    cached = empty_hub / "checkpoints" / saved.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(saved.read_bytes()[:1000])
    network = build_network("mobilenet_v2", weights="imagenet")
    wanted = imagenet_file[1].state_dict()["features.0.0.weight"]
    assert torch.equal(network.state_dict()["features.0.0.weight"], wanted)
    assert cached.read_bytes() == saved.read_bytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[type[BreakingServer], str]]:
    with serve(tmp_path / "server") as served:
        yield served


def test_interrupted_download_is_done_again(
    empty_hub: Path,
    tmp_path: Path,
    imagenet_file: tuple[Path, nn.Module],
    server: tuple[type[BreakingServer], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler, address = server
    saved = publish(tmp_path / "server", imagenet_file[1])
    use_url(monkeypatch, f"{address}/{saved.name}")
    handler.breaks = 2
    build_network("mobilenet_v2", weights="imagenet")
    assert handler.asked == 3
    assert [path.name for path in (empty_hub / "checkpoints").iterdir()] == [saved.name]
    assert weights_origin("mobilenet_v2", "imagenet")["name"] == saved.name

    shutil.rmtree(empty_hub)
    handler.breaks, handler.asked = 100, 0
    with pytest.raises(WeightsError, match=r"can't be downloaded from http.*hash.*; run it again") as caught:
        build_network("mobilenet_v2", weights="imagenet")
    assert "\n" not in str(caught.value)
    assert not list((empty_hub / "checkpoints").iterdir())


def test_folder_of_weights_has_one_file_for_each_network(
    tmp_path: Path, imagenet_file: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    with pytest.raises(
        WeightsError, match=r"no weights of resnet50; put resnet50\.safetensors or .*\.pth there"
    ):
        build_network("resnet50", weights=str(folder))

    torchvisions = publish(folder, imagenet_file[1])
    use_url(monkeypatch, f"http://127.0.0.1:9/{torchvisions.name}")
    assert weights_origin("mobilenet_v2", str(folder))["name"] == torchvisions.name
    build_network("mobilenet_v2", weights=str(folder))
    torchvisions.write_bytes(torchvisions.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="is damaged"):
        build_network("mobilenet_v2", weights=str(folder))

    (folder / "mobilenet_v2-imagenet.safetensors").write_bytes(imagenet_file[0].read_bytes())
    assert weights_origin("mobilenet_v2", str(folder))["name"] == "mobilenet_v2-imagenet.safetensors"
    (folder / "mobilenet_v2.safetensors").write_bytes(imagenet_file[0].read_bytes())
    with pytest.raises(WeightsError, match="holds several weights of mobilenet_v2"):
        build_network("mobilenet_v2", weights=str(folder))
