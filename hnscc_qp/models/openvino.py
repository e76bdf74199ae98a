"""The parts of a dense network by OpenVINO, which some CPUs run faster than PyTorch.

OpenVINO joins an activation to its convolution and keeps maps in the layout that its kernels read, so that
they travel to memory less often. The network is built for it layer by layer: reading a traced one takes
seconds. Installed as `hnscc-qp[openvino]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from threading import Semaphore
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import Bottleneck

from hnscc_qp.geometry import STEP_PX
from hnscc_qp.models.parts import MOST_WAITING_BYTES, WINDOW_CELLS, Parts

_PIECE_CELLS = 32
_CROP_CELLS = 16
"""So there are four sizes of piece; to build the parts for one takes 0.5 s of a core."""


def is_installed() -> bool:
    """Tell whether OpenVINO can be imported here."""
    return find_spec("openvino") is not None


class OpenVinoRuntime:
    """OpenVINO on the CPU, with as many threads as PyTorch would take."""

    def __init__(self, network: Parts, *, bfloat16: bool) -> None:
        """Build on demand, for each shape once; with `bfloat16` in that, where the processor has it."""
        import openvino  # noqa: PLC0415

        self.network = network
        self.piece_cells = _PIECE_CELLS
        self.most_waiting_bytes = MOST_WAITING_BYTES["cpu"]
        self.crop_cells = _CROP_CELLS
        self._openvino: Any = openvino
        self._core: Any = openvino.Core()
        self._precision = "bf16" if bfloat16 else "f32"
        self._built: dict[tuple[int, ...], tuple[Any, list[Any]]] = {}

    def run(self, number: int, pieces: Sequence[Tensor]) -> list[Tensor]:
        """See `Runtime.run`; pieces side by side, one for each thread."""
        inputs = [piece.numpy() if number else piece.numpy()[None] for piece in pieces]
        made: list[Tensor] = [torch.empty(0)] * len(pieces)
        threads = torch.get_num_threads()
        room = Semaphore(threads)

        def keep(told: tuple[int, Any, list[Any]]) -> None:
            index, request, idle = told
            # The request's own memory is written again by the next piece.
            made[index] = torch.from_numpy(request.get_output_tensor(0).data.copy())
            idle.append(request)
            room.release()

        # The largest first: then no thread waits long for the last.
        order = sorted(range(len(inputs)), key=lambda index: (-inputs[index].size, inputs[index].shape))
        for shape, indices in groupby(order, key=lambda index: inputs[index].shape):
            model, idle = self._built_for(number, shape, threads)
            running = []
            for index in indices:
                room.acquire()
                request = idle.pop()
                request.wait()  # it has told, and may not have ended
                request.set_callback(keep, (index, request, idle))
                request.start_async({0: inputs[index]})
                running.append(request)
            for request in running:
                request.wait()
            # Each part and size would keep its maps for each thread, gigabytes in all.
            model.release_memory()
        is_last = number == len(self.network.parts) - 1
        return [windows[0, 0] for windows in made] if is_last else made

    def _built_for(self, number: int, shape: tuple[int, ...], threads: int) -> tuple[Any, list[Any]]:
        """A part for a shape, and its requests that wait for work; as many as threads."""
        key = (threads, number, *shape)
        if key not in self._built:
            kind = np.float32 if number else np.uint8
            entry = self._openvino.opset13.parameter(shape, kind)
            settings = {
                "INFERENCE_PRECISION_HINT": self._precision,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": threads,
            }
            graph = self._openvino.Model([self._graph(number, entry)], [entry])
            model = self._core.compile_model(graph, "CPU", settings)
            self._built[key] = (model, [model.create_infer_request() for _ in range(threads)])
        return self._built[key]

    def _graph(self, number: int, values: Any) -> Any:
        """As `TorchRuntime._run_one`."""
        ops, network = self._openvino.opset13, self.network
        if number == 0:
            values = self._prepared(values)
        part = network.parts[number]
        for layer, count in zip(part.layers, part.cuts, strict=True):
            values = _add(ops, layer.module, values)
            if count:
                begin = np.full(2, count * (network.stride // layer.stride))
                values = ops.slice(values, begin, -begin, np.array([1, 1]), np.array([2, 3]))
        if part is not network.parts[-1]:
            return values
        values = ops.convolution(
            values, network.head_weight.numpy()[None, :, None, None], [1, 1], [0, 0], [0, 0], [1, 1]
        )
        values = ops.add(values, network.head_bias.numpy().reshape(1, 1, 1, 1))
        return ops.avg_pool(values, [1, 1], [0, 0], [0, 0], [WINDOW_CELLS, WINDOW_CELLS], True)

    def _prepared(self, pixels: Any) -> Any:
        """As `parts.prepare`, of (1, height, width, 3) uint8."""
        ops, network = self._openvino.opset13, self.network
        values = ops.convert(ops.transpose(pixels, np.array([0, 3, 1, 2])), "f32")
        # Normalised in one step: beyond a piece's edge pixels are repeated, so the order bears on nothing.
        values = ops.multiply(values, 1 / (255 * network.std.numpy()))
        values = ops.add(values, -(network.mean / network.std).numpy())
        size = [side // STEP_PX * network.stride for side in list(pixels.shape)[1:3]]
        return ops.interpolate(
            values,
            np.array(size),
            "linear_onnx",
            "sizes",
            coordinate_transformation_mode="half_pixel",
            axes=np.array([2, 3]),
        )


def _add(ops: Any, module: nn.Module, values: Any) -> Any:  # noqa: PLR0911 - one for each kind
    """Add a module of our networks, folded, to a graph; (1, channels, rows, columns) → the same kind."""
    match module:
        case nn.Conv2d():
            return _add_convolution(ops, module, values)
        case nn.ReLU6():
            return ops.clamp(values, 0.0, 6.0)
        case nn.ReLU():
            return ops.relu(values)
        case nn.MaxPool2d():
            return _add_pooling(ops, module, values)
        case nn.Identity() | nn.Dropout():
            return values
        case InvertedResidual():
            through = _add(ops, module.conv, values)
            return ops.add(values, through) if module.use_res_connect else through
        case Bottleneck():
            through = values
            for child in (module.conv1, module.relu, module.conv2, module.relu, module.conv3):
                through = _add(ops, child, through)
            beside = values if module.downsample is None else _add(ops, module.downsample, values)
            return ops.relu(ops.add(beside, through))
        case nn.Sequential():
            for child in module:
                values = _add(ops, child, values)
            return values
    raise AssertionError(f"{type(module).__name__} is in none of our networks")


def _add_convolution(ops: Any, module: nn.Conv2d, values: Any) -> Any:
    weight = module.weight.detach().float().cpu().numpy()
    stride, dilation = list(module.stride), list(module.dilation)
    assert not isinstance(module.padding, str)
    padding = list(module.padding)
    if module.groups == 1:
        made = ops.convolution(values, weight, stride, padding, padding, dilation)
    else:
        shape = (module.groups, len(weight) // module.groups, *weight.shape[1:])
        made = ops.group_convolution(values, weight.reshape(shape), stride, padding, padding, dilation)
    if module.bias is None:
        return made
    return ops.add(made, module.bias.detach().float().cpu().numpy()[None, :, None, None])


def _add_pooling(ops: Any, module: nn.MaxPool2d, values: Any) -> Any:
    def pair(value: int | tuple[int, ...]) -> list[int]:
        return [value, value] if isinstance(value, int) else list(value)

    padding = pair(module.padding)
    sides = pair(module.kernel_size)
    return ops.max_pool(values, pair(module.stride), pair(module.dilation), padding, padding, sides).output(0)
