"""Convolutional networks behind one function, and the classifier of 40 × 40 px windows around them.

Tang et al. 2022, §2.3: networks pretrained on ImageNet, their last layer replaced by one of two classes.
"""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hnscc_qp.errors import WeightsError
from hnscc_qp.files import sha256_file

CLASSES = ("nontumor", "tumor")
"""In the order of the logits."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_DOWNLOAD_TIMEOUT_S = 10.0
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class _Architecture:
    build: Callable[[], nn.Module]
    """Makes the network with ImageNet's 1000 classes, from scratch."""
    imagenet_url: str
    head: str
    """Path of the last linear layer."""


_ARCHITECTURES = {
    "mobilenet_v2": _Architecture(
        torchvision.models.mobilenet_v2,
        torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url,
        "classifier.1",
    ),
}
NETWORKS = tuple(_ARCHITECTURES)


def build_network(name: str, *, weights: str, seed: int = 1) -> nn.Module:
    """Build a network of two classes, `CLASSES`.

    Args:
        name: `mobilenet_v2`.
        weights: `imagenet` (torchvision's, downloaded once), `none` (from scratch), or a safetensors
            file that fits torchvision's network of 1000 classes.
        seed: of every weight that is not loaded, the new head's at least.

    Raises:
        WeightsError: the weights can't be had or do not fit.
    """
    architecture = _ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.build()
        if weights != "none":
            path = _weights_file(architecture, weights)
            tensors = (
                torch.load(path, map_location="cpu", weights_only=True)
                if weights == "imagenet"
                else _read_safetensors(path)
            )
            if misfit := find_misfit(network.state_dict(), tensors):
                raise WeightsError(f"{path} does not hold torchvision's {name} of 1000 classes: {misfit}")
            network.load_state_dict(tensors, strict=True)
        in_features = network.get_submodule(architecture.head).in_features
        assert isinstance(in_features, int)
        network.set_submodule(architecture.head, nn.Linear(in_features, len(CLASSES)))
    return network


def weights_origin(name: str, weights: str) -> dict[str, str | None]:
    """Name and SHA-256 of the file that `build_network` loads, for the model card.

    Raises:
        WeightsError: there is no such file.
    """
    if weights == "none":
        return {"name": "none", "sha256": None}
    path = _weights_file(_ARCHITECTURES[name], weights)
    return {"name": path.name, "sha256": sha256_file(path)}


def find_misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that is missing, too many, or of another shape; None if all fit."""
    for name, tensor in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if found[name].shape != tensor.shape:
            return f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
    extra = sorted(set(found) - set(wanted))
    return f"{extra[0]} is none of its tensors" if extra else None


class WindowClassifier(nn.Module):
    """A network that tells tumor from nontumor in windows of the method's size and resolution."""

    mean: Tensor
    std: Tensor

    def __init__(self, network_name: str, *, input_px: int, weights: str = "none", seed: int = 1) -> None:
        """Build the network; see `build_network`. Windows are resized to `input_px` for it."""
        super().__init__()
        self.network_name = network_name
        self.input_px = input_px
        self.network = build_network(network_name, weights=weights, seed=seed)
        # The same for every model, so they stand in the model card and not among the weights.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def prepare(self, windows: Tensor) -> Tensor:
        """Turn windows, (n, 3, height, width) uint8 RGB, into the network's input.

        Returns:
            (n, 3, input_px, input_px) float32, in ImageNet's normalisation.
        """
        # On a CPU, networks of depthwise convolutions are 1.5 times as fast with channels last.
        on_cpu = windows.device.type == "cpu"
        layout = torch.channels_last if on_cpu else torch.contiguous_format
        scaled = (windows.contiguous(memory_format=layout).float() / 255 - self.mean) / self.std
        size = (self.input_px, self.input_px)
        return nn.functional.interpolate(scaled, size, mode="bilinear", align_corners=False, antialias=False)

    def forward(self, windows: Tensor) -> Tensor:
        """Classify windows, (n, 3, 40, 40) uint8 RGB at 1.0 µm/px; logits (n, 2) as `CLASSES`."""
        logits: Tensor = self.network(self.prepare(windows))
        return logits


def has_folded_batch_norms(network: nn.Module) -> bool:
    """Tell weights whose batch norms were folded into the convolutions.

    Their running statistics are those of a fresh network (mean 0, variance 1), but the biases are
    not. Trained as they are, the first batch would normalise what was never normalised and spoil
    the pretrained features.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    fresh = all(
        norm.running_mean is not None
        and norm.running_var is not None
        and not norm.running_mean.any()
        and bool((norm.running_var == 1).all())
        for norm in norms
    )
    return fresh and any(bool(norm.bias.any()) for norm in norms)


@torch.no_grad()
def unfold_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Give folded batch norms the statistics of real images and keep what the network computes.

    Each norm's running mean and variance become those of its input; its weight and bias take them
    back. In eval mode the network's output stays the same; in train mode it is nearly so for a
    batch like this one, so that training starts from the pretrained features.

    Args:
        network: changed in place.
        images: (n, 3, height, width) float32, prepared as in training; a few hundred.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(_unfold_one) for norm in norms]
    was_training = network.training
    network.eval()
    try:
        network(images)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()


def _unfold_one(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    norm.bias.add_(scale * (mean - norm.running_mean))
    norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def fold_batch_norms(module: M) -> M:
    """Copy a module for inference, with batch norms folded into the convolutions before them.

    Computes the same within rounding, about 1.6 times as fast on a CPU.
    """
    folded = copy.deepcopy(module).eval().requires_grad_(False)
    for sequence in folded.modules():
        if isinstance(sequence, nn.Sequential):
            for index, (convolution, norm) in enumerate(pairwise(sequence)):
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    sequence[index] = fuse_conv_bn_eval(convolution, norm)
                    sequence[index + 1] = nn.Identity()
    return folded


def _weights_file(architecture: _Architecture, weights: str) -> Path:
    """Find the file; torchvision's is downloaded to torch's own cache unless it is there."""
    if weights != "imagenet":
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(
                f'there are no weights at {path}; correct the path, or set weights = "imagenet" or "none"'
            )
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(architecture.imagenet_url).path).name
    # torchvision's names end in the first digits of the hash.
    digits = path.stem.rpartition("-")[2]
    if not path.exists():
        _download(architecture.imagenet_url, path, digits)
    if not sha256_file(path).startswith(digits):
        raise WeightsError(f"{path} is damaged; delete it, and it is downloaded again")
    return path


def _download(url: str, path: Path, hash_digits: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
            torch.hub.download_url_to_file(url, str(path), hash_digits, progress=False)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"ImageNet weights can't be downloaded ({reason}); pass --weights FILE (safetensors) "
            'or weights = "none" to train from scratch'
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let no connection hang; torch's download knows no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} can't be read as safetensors ({error}); convert the weights to safetensors, "
            'or set weights = "imagenet" or "none"'
        ) from error
