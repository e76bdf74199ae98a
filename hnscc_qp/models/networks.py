"""Convolutional networks behind one function, and the classifier of 40 × 40 px windows around them.

Tang et al. 2022, §2.3: GoogLeNet, MobileNet-v2, ResNet50 and ResNet101, pretrained on ImageNet, their last
layer replaced by one of two classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeVar

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hnscc_qp.errors import WeightsError
from hnscc_qp.files import sha256_file
from hnscc_qp.models.weights import find_weights, read_weights

CLASSES = ("nontumor", "tumor")
"""In the order of the logits."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

M = TypeVar("M", bound=nn.Module)
RGB = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Architecture:
    build: Callable[[], nn.Module]
    """Makes the network with ImageNet's 1000 classes, from scratch."""
    imagenet_url: str
    """The first edition of torchvision's weights, trained as published; the second needs other resizing."""
    head: str
    """Path of the last linear layer."""
    depth: int
    """Convolutions and linear layers on the longest way through, as Table 2 of the paper counts."""
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    """What its ImageNet weights were trained with, of channels in 0..1."""
    unused: tuple[str, ...] = ()
    """Beginnings of names in its ImageNet weights that belong to parts which are not built."""


_MODELS = torchvision.models
_ARCHITECTURES = {
    "googlenet": _Architecture(
        # Without the two auxiliary heads, as the paper's, which was MATLAB's: they were meant to help
        # training from scratch, before batch norms. torchvision's weights come from TensorFlow and want
        # channels in -1..1; it says so by `transform_input`, which would undo ImageNet's normalisation
        # in the network. We normalise that way at once instead, which computes the same.
        partial(_MODELS.googlenet, aux_logits=False, transform_input=False, init_weights=True),
        _MODELS.GoogLeNet_Weights.IMAGENET1K_V1.url,
        "fc",
        depth=22,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        unused=("aux1.", "aux2."),
    ),
    "mobilenet_v2": _Architecture(
        _MODELS.mobilenet_v2, _MODELS.MobileNet_V2_Weights.IMAGENET1K_V1.url, "classifier.1", depth=53
    ),
    "resnet50": _Architecture(_MODELS.resnet50, _MODELS.ResNet50_Weights.IMAGENET1K_V1.url, "fc", depth=50),
    "resnet101": _Architecture(
        _MODELS.resnet101, _MODELS.ResNet101_Weights.IMAGENET1K_V1.url, "fc", depth=101
    ),
}
NETWORKS = tuple(_ARCHITECTURES)
"""In the order of Table 2 of the paper."""


def build_network(name: str, *, weights: str, seed: int = 1) -> nn.Module:
    """Build a network of two classes, `CLASSES`.

    Args:
        name: one of `NETWORKS`.
        weights: `imagenet` (torchvision's, downloaded once), `none` (from scratch), a safetensors file that
            fits torchvision's network of 1000 classes, or a folder of such files (`weights.find_weights`).
        seed: of every weight that is not loaded, the new head's at least.

    Raises:
        WeightsError: the weights can't be had or do not fit.
    """
    architecture = _ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.build()
        if weights != "none":
            url = architecture.imagenet_url
            path = find_weights(name, weights, imagenet_url=url)
            tensors = {
                key: tensor
                for key, tensor in read_weights(path, imagenet_url=url).items()
                if not key.startswith(architecture.unused)
            }
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
    path = find_weights(name, weights, imagenet_url=_ARCHITECTURES[name].imagenet_url)
    return {"name": path.name, "sha256": sha256_file(path)}


def depth_of(name: str) -> int:
    """Convolutions and linear layers on the longest way through, as Table 2 of the paper counts them."""
    return _ARCHITECTURES[name].depth


def normalisation_of(name: str) -> tuple[RGB, RGB]:
    """Mean and standard deviation, of channels in 0..1, that the network's pretrained weights expect."""
    architecture = _ARCHITECTURES[name]
    return architecture.mean, architecture.std


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

    recipe: Literal["window"] = "window"
    temperature: float
    """See `training.probabilities`: of a trained model, as its card says."""
    mean: Tensor
    std: Tensor

    def __init__(self, network_name: str, *, input_px: int, weights: str = "none", seed: int = 1) -> None:
        """Build the network; see `build_network`. Windows are resized to `input_px` for it."""
        super().__init__()
        self.network_name = network_name
        self.input_px = input_px
        self.temperature = 1.0
        self.network = build_network(network_name, weights=weights, seed=seed)
        # The same for every model of a network, so they stand in the model card and not among the weights.
        mean, std = normalisation_of(network_name)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def prepare(self, windows: Tensor) -> Tensor:
        """Turn windows, (n, 3, height, width) uint8 RGB, into the network's input.

        Returns:
            (n, 3, input_px, input_px) float32, normalised as the network's pretrained weights expect.
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

    In each of our networks a norm that follows a convolution is also the next child after it. Computes the
    same within rounding, about 1.6 times as fast on a CPU.
    """
    folded = copy.deepcopy(module).eval().requires_grad_(False)
    for parent in list(folded.modules()):
        for (name, convolution), (norm_name, norm) in pairwise(parent.named_children()):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())
    return folded
