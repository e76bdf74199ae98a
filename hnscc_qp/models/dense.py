"""Every window of a tile at once: a fully convolutional pass with one feature cell per 10 px step.

A tile is enlarged so that a 40 px window is S network px wide, and the network's stride is made S/4: then
one feature cell stands on every 10 px step, on the grid of scoring, and a window is the mean of its 4 × 4
cells. The late strides that are too many become dilation (Chen et al. 2017, arXiv:1706.05587, §3.1), so
that pretrained weights keep their meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from hnscc_qp.errors import StudyError
from hnscc_qp.geometry import STEP_PX, WINDOW_PX
from hnscc_qp.models.networks import build_network, fold_batch_norms, normalisation_of
from hnscc_qp.models.onnx_runtime import OnnxRuntime
from hnscc_qp.models.parts import WINDOW_CELLS, Layer, Parts, Runtime, TorchRuntime, prepare, take_apart

DENSE_NETWORKS = ("mobilenet_v2", "resnet50", "resnet101")
DENSE_INPUT_PX = (32, 64, 128)
"""Values of S for which a network with strides of 2 has a stride of S/4."""
RuntimeName = Literal["torch", "onnxruntime"]


class DenseClassifier(nn.Module):
    """A network that tells tumor from nontumor in every window of a tile, one each 10 px.

    Trained densely, on tiles: the context of a window takes part in its answer, so weights that were
    trained on single windows answer differently here and are not to be used.
    """

    recipe: Literal["dense"] = "dense"
    temperature: float
    """See `training.probabilities`: of a trained model, as its card says."""
    mean: Tensor
    std: Tensor

    def __init__(
        self, network_name: str, *, input_px: int = 64, weights: str = "none", seed: int = 1
    ) -> None:
        """Build the network, see `build_network`, and give it the stride input_px / 4.

        Raises:
            StudyError: the network or the size can't be used densely.
            WeightsError: see `build_network`.
        """
        super().__init__()
        check_dense(network_name, input_px)
        self.network_name = network_name
        self.input_px = input_px
        self.output_stride = input_px // WINDOW_CELLS
        self.temperature = 1.0
        self.network = build_network(network_name, weights=weights, seed=seed)
        _limit_stride(_blocks(self.network), self.output_stride)
        self.halo_px = _halo_px(_blocks(self.network), scale=input_px / WINDOW_PX)
        """How far a cell's answer depends on its surroundings, on each side: a multiple of the step, in px.

        With this much of the slide around it, a window's answer is the same wherever the tile's edges lie.
        """
        mean, std = normalisation_of(network_name)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Turn tiles, (n, 3, height, width) uint8 RGB at 1.0 µm/px, into the network's input.

        Height and width are multiples of the step, 10 px.

        Returns:
            (n, 3, height · S/40, width · S/40) float32, channels last.
        """
        return prepare(pixels, mean=self.mean, std=self.std, stride=self.output_stride)

    def cells(self, prepared: Tensor) -> Tensor:
        """Logits of every cell, (n, 2, height/10, width/10), of what `prepare` made."""
        features = prepared
        for block in _blocks(self.network):
            features = block(features)
        head = _head(self.network)
        # The head sees one cell at a time; with channels last this is a view.
        logits: Tensor = head(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return logits

    def in_parts(self) -> Parts:
        """Its layers in parts, for inference; of a copy whose batch norms are folded."""
        head = _head(self.network)
        last = head if isinstance(head, nn.Linear) else [*head.modules()][-1]
        assert isinstance(last, nn.Linear)
        return take_apart(
            _layers(_blocks(self.network)), last, mean=self.mean, std=self.std, input_px=self.input_px
        )

    def cell_logits(self, pixels: Tensor) -> Tensor:
        """Logits of every 10 px cell, (n, 2, height/10, width/10), as `CLASSES`."""
        return self.cells(self.prepare(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify every window of tiles, (n, 3, height, width) uint8 RGB at 1.0 µm/px.

        Returns:
            Logits (n, 2, height/10 - 3, width/10 - 3) as `CLASSES`; [.., row, column] is the window whose
            corner is (10 · column, 10 · row) px.
        """
        return windows_of_cells(self.cell_logits(pixels))


class DenseCascade(nn.Module):
    """Both stages, for inference, on tiles; the primary alone if there is no secondary."""

    recipe: Literal["dense"] = "dense"

    def __init__(self, primary: DenseClassifier, secondary: DenseClassifier | None) -> None:
        """Copy the stages for inference; later changes to them are not seen."""
        super().__init__()
        self.primary = fold_batch_norms(primary)
        self.secondary = None if secondary is None else fold_batch_norms(secondary)
        self._runtimes: dict[tuple[RuntimeName, torch.device, bool], list[Runtime]] = {}
        self.eval()

    def stages(self, *, runtime: RuntimeName, device: torch.device, bfloat16: bool) -> list[Runtime]:
        """What computes the primary, and the secondary if there is one; made once and kept.

        Args:
            runtime: `onnxruntime` works on the CPU and in 32 bits, whatever the others say.
            device: where PyTorch works.
            bfloat16: PyTorch works in that precision, but for the last layer.
        """
        key = runtime, device, bfloat16
        if key not in self._runtimes:
            both = (stage.in_parts() for stage in (self.primary, self.secondary) if stage is not None)
            self._runtimes[key] = [
                OnnxRuntime(network)
                if runtime == "onnxruntime"
                else TorchRuntime(network, device=device, bfloat16=bfloat16)
                for network in both
            ]
        return self._runtimes[key]


def windows_of_cells(cells: Tensor) -> Tensor:
    """Mean of each window's 4 × 4 cells: (n, c, rows, columns) → (n, c, rows - 3, columns - 3)."""
    return nn.functional.avg_pool2d(cells.float(), WINDOW_CELLS, stride=1)


def check_dense(network_name: str, input_px: int) -> None:
    """See that a network and an input size can be used densely.

    Raises:
        StudyError: they can't; the message names the remedy.
    """
    if network_name not in DENSE_NETWORKS:
        raise StudyError(
            f"{network_name} can't be used densely; set network to one of {', '.join(DENSE_NETWORKS)}, "
            'or recipe = "window"'
        )
    if input_px not in DENSE_INPUT_PX:
        raise StudyError(
            f"input_px = {input_px} gives the dense recipe no cell for each step; set it to one of "
            f'{", ".join(map(str, DENSE_INPUT_PX))}, or recipe = "window"'
        )


def _blocks(network: nn.Module) -> tuple[nn.Module, ...]:
    """What makes the feature map, in order."""
    if isinstance(features := getattr(network, "features", None), nn.Sequential):  # MobileNet
        return tuple(features)
    stem = ("conv1", "bn1", "relu", "maxpool")  # ResNet
    stages = (network.get_submodule(f"layer{number}") for number in (1, 2, 3, 4))
    return (
        *(network.get_submodule(name) for name in stem),
        *(block for stage in stages for block in stage.children()),
    )


def _head(network: nn.Module) -> nn.Module:
    return network.get_submodule("classifier" if hasattr(network, "classifier") else "fc")


def _sliding(block: nn.Module) -> list[nn.Conv2d | nn.MaxPool2d]:
    return [module for module in block.modules() if isinstance(module, (nn.Conv2d, nn.MaxPool2d))]


def _limit_stride(blocks: Iterable[nn.Module], output_stride: int) -> None:
    """Take the strides beyond `output_stride` out, and spread the kernels that come after them instead.

    The block that loses its stride keeps the spread of those before it, as its kernel saw the finer map.
    """
    stride = dilation = 1
    for block in blocks:
        strided = [module for module in _sliding(block) if _first(module.stride) > 1]
        spread = dilation
        if strided and stride >= output_stride:
            for module in strided:
                module.stride = (1, 1)
            dilation *= 2
        elif strided:
            stride *= 2
        for module in _sliding(block):
            kernel = _first(module.kernel_size)
            if spread > 1 and kernel > 1:
                assert isinstance(module, nn.Conv2d) and kernel % 2
                module.dilation = (spread, spread)
                module.padding = (spread * (kernel // 2),) * 2
    assert stride == output_stride, f"strides multiply to {stride}, not {output_stride}"


def _layers(blocks: Iterable[nn.Module]) -> list[Layer]:
    """Stride and theoretical reach of each block.

    Of a block's parallel ways the one with the larger kernels reaches farther; its shortcut has a kernel
    of 1.
    """
    layers = []
    stride = 1
    for block in blocks:
        reach, down = 0, 1
        for module in _sliding(block):
            reach += _first(module.dilation) * (_first(module.kernel_size) // 2) * stride * down
            down = max(down, _first(module.stride))
        stride *= down
        layers.append(Layer(block, stride, reach))
    return layers


def _halo_px(blocks: Iterable[nn.Module], *, scale: float) -> int:
    """Theoretical reach of a feature cell beyond itself, rounded up to steps of 10 px.

    Enlarging the tile adds one px.
    """
    reach = sum(layer.reach for layer in _layers(blocks))
    return -(-int(reach / scale + 1) // STEP_PX) * STEP_PX


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
