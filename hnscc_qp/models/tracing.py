"""Writing down what a network does with an example, for programs that run it without us."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_OPSET = 17


@contextmanager
def traced() -> Iterator[None]:
    """Without gradients, and without the warnings that sizes may be fixed and that torch has newer ways."""
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def write_onnx(
    path: str,
    network: nn.Module,
    probe: Tensor,
    *,
    takes: str,
    gives: Sequence[str],
    free: Mapping[str, Mapping[int, str]],
) -> None:
    """Write a network as ONNX.

    Args:
        path: of the file.
        network: in eval mode.
        probe: an input, not of inference mode.
        takes: name of its input.
        gives: names of its outputs.
        free: axes that may have any size, by input or output, with a name for each.
    """
    with traced():
        # The older way of exporting: it takes sizes as they come, and is in every torch that we run with.
        torch.onnx.export(
            network,
            (probe,),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=[takes],
            output_names=list(gives),
            dynamic_axes={name: dict(axes) for name, axes in free.items()},
        )
