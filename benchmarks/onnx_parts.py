"""The parts of a dense network by ONNX Runtime, to hold it against PyTorch and OpenVINO in `scoring.py`.

Not part of the program, which takes OpenVINO. 32 bits only: on a CPU its convolutions have no bfloat16.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from hnscc_qp.models.dense import DenseCascade
from hnscc_qp.models.parts import MOST_WAITING_BYTES, WINDOW_CELLS, Parts, cut, prepare

_OPSET = 17
_PIECE_CELLS = 64
_CROP_CELLS = 8


class OnnxCascade(DenseCascade):
    """Both stages by ONNX Runtime, whatever runtime is asked for."""

    _made: list[OnnxRuntime]

    def stages(self, **_: Any) -> list[OnnxRuntime]:  # type: ignore[override]
        """See `DenseCascade.stages`."""
        if not hasattr(self, "_made"):
            both = (stage for stage in (self.primary, self.secondary) if stage is not None)
            self._made = [OnnxRuntime(stage.in_parts()) for stage in both]
        return self._made


class OnnxRuntime:
    """ONNX Runtime on the CPU: pieces side by side, each on one thread, as the other runtimes have it."""

    def __init__(self, network: Parts) -> None:
        self.network = network
        self.piece_cells = _PIECE_CELLS
        self.most_waiting_bytes = MOST_WAITING_BYTES["cpu"]
        self.crop_cells = _CROP_CELLS
        self._threads = torch.get_num_threads()
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}

    def run(self, number: int, pieces: Sequence[Tensor]) -> list[Tensor]:
        """See `models.parts.Runtime.run`."""
        inputs = [piece.numpy() if number else piece.numpy()[None] for piece in pieces]
        if number not in self._sessions:
            self._sessions[number] = self._session(number, torch.from_numpy(inputs[0]))
        session = self._sessions[number]

        def of(values: np.ndarray) -> Tensor:
            return torch.from_numpy(session.run(None, {"values": np.ascontiguousarray(values)})[0])

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(of, inputs))

    def _session(self, number: int, probe: Tensor) -> onnxruntime.InferenceSession:
        file = io.BytesIO()
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing: sizes are taken from the input, not fixed
            torch.onnx.export(
                _Part(self.network, number).eval(),
                (probe.clone(),),
                file,
                dynamo=False,
                opset_version=_OPSET,
                input_names=["values"],
                output_names=["made"],
                dynamic_axes={"values": {1: "a", 2: "b"} if number == 0 else {2: "a", 3: "b"}},
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(file.getvalue(), options, ["CPUExecutionProvider"])


class _Part(nn.Module):
    """As `TorchRuntime._run_one`."""

    def __init__(self, network: Parts, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number
        self.layers = nn.ModuleList(layer.module for layer in network.parts[number].layers)

    def forward(self, values: Tensor) -> Tensor:
        network, part = self.network, self.network.parts[self.number]
        if self.number == 0:
            values = prepare(
                values.permute(0, 3, 1, 2), mean=network.mean, std=network.std, stride=network.stride
            )
        for layer, module, count in zip(part.layers, self.layers, part.cuts, strict=True):
            values = module(values)
            if count:
                values = cut(values, count * (network.stride // layer.stride))
        if part is not network.parts[-1]:
            return values
        cells = values.permute(0, 2, 3, 1) @ network.head_weight + network.head_bias
        return nn.functional.avg_pool2d(cells[:, None], WINDOW_CELLS, stride=1)[0, 0]
