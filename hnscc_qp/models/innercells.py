"""The inner cells of a tile, as `DenseClassifier.cells` gives them, in less time and memory.

Two things cost a plain pass over a large tile most of its time. The first layers make maps of hundreds of
MB, which travel to memory and back: here the tile goes through them in pieces that stay in the processor's
cache. And the margin is carried to the last layer although nothing there depends on all of it: here it is cut
off layer by layer, as far as the layers that follow don't reach. Neither changes what is computed for the
inner cells, but for rounding: kernels are chosen by shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

_PIECE_PX = {"cpu": 384, "cuda": 2048}
"""Side of a piece without what it shares with its neighbours, in network px: a multiple of all strides."""
_MOST_REACH_PX = 32
"""Of the layers that take pieces: what is computed twice between them."""
_MOST_STRIDE = 8


@dataclass(frozen=True, slots=True)
class Layer:
    """One of the modules that make the feature map, in order."""

    module: nn.Module
    stride: int
    """Of its output, to the network's input."""
    reach: int
    """How many network px beyond itself a cell of its output depends on, this layer alone."""


class InnerCells:
    """Layers and head of a dense network, for inference on the inside of tiles."""

    def __init__(self, layers: Sequence[Layer], head: nn.Module) -> None:
        """Take over modules that are folded and in eval mode; they may be moved to another device later."""
        self._layers = tuple(layers)
        self._head = head
        self._low: tuple[torch.device, tuple[Layer, ...]] | None = None
        count = reach = 0
        for layer in layers:
            reach += layer.reach
            if layer.stride > _MOST_STRIDE or reach > _MOST_REACH_PX:
                break
            count += 1
        self._early = count

    def __call__(self, prepared: Tensor, *, margin: int) -> Tensor:
        """Logits of cells, (n, 2, rows - 2 · margin, columns - 2 · margin).

        Within `torch.autocast` the layers work in bfloat16, but for the last one.

        Args:
            prepared: (n, 3, height, width), as `DenseClassifier.prepare` made it.
            margin: cells on each side that are not wanted.
        """
        layers = self._layers
        if torch.is_autocast_enabled(prepared.device.type):
            layers, prepared = self._in_low_precision(prepared.device), prepared.bfloat16()
        stride = layers[-1].stride
        left_px = margin * stride
        features = self._in_pieces(layers[: self._early], prepared)
        for number in range(self._early, len(layers)):
            layer = layers[number]
            features = layer.module(features)
            ahead = sum(later.reach for later in layers[number + 1 :])
            # Whole cells of the last layer, so that strides to come start where they would have.
            spare_px = max(0, left_px - ahead) // stride * stride
            if spare_px:
                inner = _cut(features, spare_px // layer.stride)
                features = inner.contiguous(memory_format=torch.channels_last)
                left_px -= spare_px
        # In 32 bits: a call hangs on the margin between two logits.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self._head(features.permute(0, 2, 3, 1).float()).permute(0, 3, 1, 2)
        return _cut(logits, left_px // stride)

    def _in_low_precision(self, device: torch.device) -> tuple[Layer, ...]:
        """The layers with weights in bfloat16; autocast would convert them anew for every piece."""
        if self._low is None or self._low[0] != device:
            low = (replace(layer, module=copy.deepcopy(layer.module).bfloat16()) for layer in self._layers)
            self._low = device, tuple(low)
        return self._low[1]

    @staticmethod
    def _in_pieces(early: Sequence[Layer], prepared: Tensor) -> Tensor:
        """What the early layers make of the tile, piece by piece; at the tile's edges as of the whole."""
        height, width = prepared.shape[-2:]
        size = _PIECE_PX.get(prepared.device.type, _PIECE_PX["cpu"])
        if not early or max(height, width) <= size:
            return _through(early, prepared)
        stride = early[-1].stride
        shared = -(-sum(layer.reach for layer in early) // stride) * stride
        low = torch.is_autocast_enabled(prepared.device.type)

        def make(place: tuple[int, int]) -> Tensor:
            top, left = place
            up, back = min(shared, top), min(shared, left)
            piece = prepared[..., top - up : top + size + shared, left - back : left + size + shared]
            # Both modes are of a thread.
            with torch.inference_mode(), torch.autocast(prepared.device.type, torch.bfloat16, enabled=low):
                made = _through(early, piece.contiguous(memory_format=torch.channels_last))
            row, column = up // stride, back // stride
            return made[..., row : row + size // stride, column : column + size // stride]

        places = [(top, left) for top in range(0, height, size) for left in range(0, width, size)]
        across = -(-width // size)
        made = _on_each_core(make, places) if prepared.device.type == "cpu" else list(map(make, places))
        rows = [torch.cat(made[start : start + across], dim=3) for start in range(0, len(made), across)]
        return torch.cat(rows, dim=2).contiguous(memory_format=torch.channels_last)


def _on_each_core(
    make: Callable[[tuple[int, int]], Tensor], places: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Make pieces side by side, each on one core: cores that share a small one wait for each other."""
    threads = torch.get_num_threads()
    if threads == 1:
        return list(map(make, places))
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(make, places))
    finally:
        torch.set_num_threads(threads)


def _through(layers: Sequence[Layer], features: Tensor) -> Tensor:
    for layer in layers:
        features = layer.module(features)
    return features


def _cut(values: Tensor, cells: int) -> Tensor:
    """Without so many cells on each side."""
    return values[..., cells : values.shape[-2] - cells, cells : values.shape[-1] - cells]
