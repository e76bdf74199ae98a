"""The parts of a dense network by ONNX Runtime, whose convolutions many CPUs run faster than PyTorch's.

It joins an activation to its convolution, and keeps maps in the layout that its kernels read. In 32 bits
only: on a CPU it has no convolution in bfloat16. Installed as `hnscc-qp[onnxruntime]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hnscc_qp.errors import StepError
from hnscc_qp.models.parts import (
    CROP_CELLS,
    MOST_WAITING_BYTES,
    PIECE_CELLS,
    WINDOW_CELLS,
    Parts,
    cut,
    in_small_pieces,
    prepare,
    share_cores,
    side_by_side,
)
from hnscc_qp.models.tracing import write_onnx

_EXPORTING = Lock()
"""Tracing is of a process."""


def is_installed() -> bool:
    """Tell whether ONNX Runtime, and onnx to hand it a network, can be imported here."""
    return find_spec("onnxruntime") is not None and find_spec("onnx") is not None


class OnnxRuntime:
    """ONNX Runtime on the CPU, with as many threads as PyTorch had when this was made."""

    def __init__(self, network: Parts) -> None:
        """Take a network; a part is exported when it is first run."""
        self.network = network
        self.piece_cells = PIECE_CELLS["cpu"]
        self.tile_pieces, self.cores_each = share_cores(network, PIECE_CELLS["cpu"], torch.device("cpu"))
        self._threads = torch.get_num_threads()
        self.most_waiting_bytes = MOST_WAITING_BYTES["cpu"]
        self.crop_cells = CROP_CELLS
        self._sessions: dict[int, Any] = {}

    def run(self, number: int, pieces: Sequence[Tensor]) -> list[Tensor]:
        """See `Runtime.run`."""
        if number:
            return self._run_all(number, pieces)
        return in_small_pieces(pieces, self.network.parts[0], run=lambda cuts: self._run_all(0, cuts))

    def _run_all(self, number: int, pieces: Sequence[Tensor]) -> list[Tensor]:
        with _EXPORTING:
            if number not in self._sessions:
                # Where several cores work on a piece, they are the session's, which lends them to all pieces.
                threads = 1 if self.cores_each == 1 else self._threads
                self._sessions[number] = _session(self.network, number, pieces[0], threads=threads)
        session = self._sessions[number]

        def one(piece: Tensor) -> Tensor:
            values = {"values": np.ascontiguousarray(piece.numpy())}
            try:
                return torch.from_numpy(session.run(None, values)[0])
            except Exception as error:  # its errors have no class of their own in common
                raise StepError(
                    f"ONNX Runtime can't go on ({str(error).splitlines()[0]}); if memory is short close "
                    'other programs, or set runtime = "torch"'
                ) from error

        return side_by_side(one, pieces, self._threads // self.cores_each, cores_each=None)


class _Part(nn.Module):
    """As `TorchRuntime._run_one`."""

    def __init__(self, network: Parts, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number
        self.layers = nn.ModuleList(layer.module for layer in network.parts[number].layers)

    def forward(self, values: Tensor) -> Tensor:
        network, part = self.network, self.network.parts[self.number]
        if self.number == 0:
            pixels = values.permute(2, 0, 1)[None]
            values = prepare(pixels, mean=network.mean, std=network.std, stride=network.stride)
        for layer, module, count in zip(part.layers, self.layers, part.cuts, strict=True):
            values = module(values)
            if count:
                values = cut(values, count * (network.stride // layer.stride))
        if part is not network.parts[-1]:
            return values
        cells = values.permute(0, 2, 3, 1) @ network.head_weight + network.head_bias
        return nn.functional.avg_pool2d(cells[:, None], WINDOW_CELLS, stride=1)[0, 0]


def _session(network: Parts, number: int, probe: Tensor, *, threads: int) -> Any:
    """Hand a part over, for pieces of any size."""
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    # Each part's would keep the most it ever took, by all cores; `held_memory` keeps what is freed already.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "part.onnx"))
        sizes = {0: "rows", 1: "columns"} if number == 0 else {2: "rows", 3: "columns"}
        part = _Part(network, number).eval()
        with torch.inference_mode(False):
            example = probe.clone()
        write_onnx(path, part, example, takes="values", gives=["made"], free={"values": sizes})
        return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
