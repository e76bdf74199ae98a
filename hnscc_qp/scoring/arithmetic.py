"""How exactly the networks compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hnscc_qp.study import Scoring


@contextmanager
def arithmetic(settings: Scoring, device: torch.device) -> Iterator[None]:
    """Set the precision, and with `exact` kernels that always add in one order; put back at the end.

    With `precision = "bfloat16"` convolutions and the last layer work on 8 bits of mantissa: votes near 0.5
    may flip: docs/benchmarks.md. `exact` takes back both that and what CUDA does of itself (TF32,
    kernels chosen by timing).
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    strict = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if settings.exact:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False, False
        # Interpolation has a deterministic backward only; warnings of it would be about what isn't done.
        torch.use_deterministic_algorithms(True, warn_only=True)
    low = settings.precision == "bfloat16" and not settings.exact
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=low):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
