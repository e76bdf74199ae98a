"""What computes dense models, and with how many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from hnscc_qp.models import onnx_runtime

RUNTIMES = [
    "torch",
    pytest.param(
        "onnxruntime",
        marks=pytest.mark.skipif(not onnx_runtime.is_installed(), reason="needs hnscc-qp[onnxruntime]"),
    ),
]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch on so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
