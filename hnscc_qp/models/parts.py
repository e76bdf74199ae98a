"""A dense network in parts, so that what neighbouring tiles share is computed once.

A window's answer depends on 160 px around it. A plain pass over a tile with that margin computes nearly as
much for the margin as is wanted; most of it is for the last layers, whose dilated kernels reach far, and is
paid for in the first ones, whose maps are large. So the layers are parted. Each part works on
pieces of the slide with the little around them that it reaches itself, and what it makes of a piece serves
all pieces of the next part that need it. Within a part the margin is cut off layer by layer, as far as the
layers that follow don't reach. Neither changes what is computed, but for rounding: kernels are chosen by
shape.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from hnscc_qp.geometry import STEP_PX, WINDOW_PX

WINDOW_CELLS = WINDOW_PX // STEP_PX
"""Cells along one side of a window."""
_FIRST_REACH_PX = 32
_FIRST_STRIDE = 8
"""Of the first part, in network px: its maps are large, so what it computes twice between pieces is dear."""
_LATER_REACH_CELLS = 3
_NARROW = 256
"""Channels between parts of three cells' reach."""
PIECE_CELLS = {"cpu": 48, "cuda": 192}
MOST_WAITING_BYTES = {"cpu": 384 << 20, "cuda": 1 << 30}
"""Of what parts made of pieces, for tiles to come."""
_MOST_OF_TILE_BYTES = 192 << 20
"""Of what parts make of a tile's pieces, on a CPU."""
CROP_CELLS = 8
_SMALL_CELLS = 24
"""Along the side of what the first part takes at once on a CPU."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One of the modules that make the feature map, in order."""

    module: nn.Module
    stride: int
    """Of its output, to the network's input."""
    reach: int
    """How many network px beyond itself a cell of its output depends on, this layer alone."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the layers, which follow each other."""

    layers: tuple[Layer, ...]
    margin: int
    """Cells around a piece that its output depends on, given the input."""
    channels: int
    """Of its output."""
    side: int
    """Output values along one side of a cell."""
    cuts: tuple[int, ...]
    """Cells of margin to cut off on each side after each layer; they add up to the margin."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A dense network, folded and in eval mode, in parts."""

    parts: tuple[Part, ...]
    head_weight: Tensor
    """(channels,): what tells tumor from nontumor of a cell's features."""
    head_bias: Tensor
    """()"""
    mean: Tensor
    std: Tensor
    """(1, 3, 1, 1), of channels in 0..1."""
    input_px: int

    @property
    def stride(self) -> int:
        """Network px between cells."""
        return self.input_px // WINDOW_CELLS


def take_apart(
    layers: Sequence[Layer], head: nn.Linear, *, mean: Tensor, std: Tensor, input_px: int
) -> Parts:
    """Part a network: where its maps have become small, and from there on as often as what waits allows.

    The less a part reaches, the less is computed twice. But what each part makes waits for the pieces around:
    with blocks of few channels, as MobileNet's, there are many parts, with ResNet's two.
    """
    stride = input_px // WINDOW_CELLS
    first = _count_within(layers, _FIRST_REACH_PX, largest_stride=min(_FIRST_STRIDE, stride))
    rest = layers[first:]
    narrow = all(_channels_of(layer) <= _NARROW for layer in rest[:-2])
    reach = _LATER_REACH_CELLS * stride if narrow else sum(layer.reach for layer in rest) // 2
    pieces = [layers[:first]]
    while rest:
        is_last = not narrow and len(pieces) > 1
        count = len(rest) if is_last else max(1, _count_within(rest, reach, largest_stride=stride))
        pieces.append(rest[:count])
        rest = rest[count:]
    weight, bias = head.weight.detach().float().cpu(), head.bias.detach().float().cpu()
    # Enlarging errs at a piece's edge, as far as it looks.
    enlarging = math.ceil(input_px / WINDOW_PX)
    return Parts(
        tuple(
            _part(some, stride, more=enlarging if number == 0 else 0)
            for number, some in enumerate(pieces)
            if some
        ),
        weight[1] - weight[0],
        bias[1] - bias[0],
        mean.cpu(),
        std.cpu(),
        input_px,
    )


def _count_within(layers: Sequence[Layer], most_reach: int, *, largest_stride: int) -> int:
    """How many of the layers, from the first on, reach no farther than that."""
    reach = 0
    for count, layer in enumerate(layers):
        reach += layer.reach
        if reach > most_reach or layer.stride > largest_stride:
            return count
    return len(layers)


def _part(layers: Sequence[Layer], stride: int, *, more: int) -> Part:
    margin = -(-(sum(layer.reach for layer in layers) + more) // stride)
    left, cuts = margin, []
    for number in range(len(layers)):
        ahead = sum(layer.reach for layer in layers[number + 1 :])
        # Whole cells, so that strides to come start where they would have.
        spare = max(0, left * stride - ahead) // stride
        cuts.append(spare)
        left -= spare
    # Early cuts would copy maps that are large for the little they save.
    if more:
        cuts = [0] * (len(layers) - 1) + [margin]
    return Part(
        tuple(layers),
        margin,
        [_channels_of(layer) for layer in layers if _channels_of(layer)][-1],
        stride // layers[-1].stride,
        tuple(cuts),
    )


def _channels_of(layer: Layer) -> int:
    """Of its output; 0 if it keeps those of the layer before."""
    convolutions = [module for module in layer.module.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels if convolutions else 0


class Runtime(Protocol):
    """What computes the parts of one stage."""

    network: Parts
    piece_cells: int
    """Side of the pieces that it works on best."""
    tile_pieces: int
    """Along one side of a tile; see `share_cores`."""
    cores_each: int
    """Cores that work on a piece."""
    most_waiting_bytes: int
    """Of what parts made, that waits for tiles to come, where it is computed."""
    crop_cells: int
    """Pieces are cropped to multiples of so many cells: they have few shapes, by which a network rounds."""

    def run(self, number: int, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Pass pieces through a part.

        Args:
            number: of the part.
            pieces: of any sizes. Of the first part: (height, width, 3) uint8 RGB at 1.0 µm/px. Of another:
                what the part before it makes, (1, channels, rows, columns). Each with the part's margin
                around it; for the last part, with three cells more to the right and below.

        Returns:
            (1, channels, rows, columns) of each piece without what was around it, `side` values to a cell.
            Of the last part: (rows, columns) float32 on the CPU, for the window that starts on each cell its
            logit of tumor less that of nontumor.
        """


class TorchRuntime:
    """PyTorch, on any device."""

    def __init__(self, network: Parts, *, device: torch.device, bfloat16: bool) -> None:
        """Copy the layers to a device; with `bfloat16` they work in that, but for the last one."""
        self.network = network
        self.piece_cells = PIECE_CELLS.get(device.type, PIECE_CELLS["cpu"])
        self.tile_pieces, self.cores_each = share_cores(network, self.piece_cells, device)
        self._workers = torch.get_num_threads() // self.cores_each
        self.most_waiting_bytes = MOST_WAITING_BYTES.get(device.type, MOST_WAITING_BYTES["cpu"])
        self.crop_cells = CROP_CELLS
        self._device = device
        self._dtype = torch.bfloat16 if bfloat16 else torch.float32
        self._parts = [
            [copy.deepcopy(layer.module).to(device, self._dtype) for layer in part.layers]
            for part in network.parts
        ]
        self._weight, self._bias = network.head_weight.to(device), network.head_bias.to(device)
        self._mean, self._std = network.mean.to(device), network.std.to(device)

    def run(self, number: int, pieces: Sequence[Tensor]) -> list[Tensor]:
        """See `Runtime.run`."""
        if number or self._device.type != "cpu":
            return self._run_all(number, pieces)
        return in_small_pieces(pieces, self.network.parts[0], run=lambda cuts: self._run_all(0, cuts))

    def _run_all(self, number: int, pieces: Sequence[Tensor]) -> list[Tensor]:
        if self._device.type != "cpu":
            return [self._run_one(number, piece) for piece in pieces]
        return side_by_side(
            lambda piece: self._run_one(number, piece), pieces, self._workers, cores_each=self.cores_each
        )

    # The mode is of a thread, and `run` has threads of its own.
    @torch.inference_mode()
    def _run_one(self, number: int, values: Tensor) -> Tensor:
        if number == 0:
            values = self._prepare(values)
        part = self.network.parts[number]
        for layer, module, count in zip(part.layers, self._parts[number], part.cuts, strict=True):
            values = module(values)
            if count:
                inner = cut(values, count * (self.network.stride // layer.stride))
                values = inner.contiguous(memory_format=torch.channels_last)
        if part is not self.network.parts[-1]:
            return values
        # In 32 bits: a call hangs on the margin between two logits. With channels last this is a view.
        with torch.autocast(self._device.type, enabled=False):
            cells = values.permute(0, 2, 3, 1).float() @ self._weight + self._bias
        return nn.functional.avg_pool2d(cells, WINDOW_CELLS, stride=1)[0].cpu()

    def _prepare(self, pixels: Tensor) -> Tensor:
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        batch = pixels.to(self._device, non_blocking=True).permute(2, 0, 1)[None]
        return prepare(batch, mean=self._mean, std=self._std, stride=self.network.stride).to(self._dtype)


def share_cores(network: Parts, piece_cells: int, device: torch.device) -> tuple[int, int]:
    """Say how many pieces a tile has along its side, and how many of a CPU's cores work on each of them.

    Pieces side by side on a core each are fastest, but what is made of a tile's pieces must be held.

    Returns:
        Both numbers. On a GPU there is one piece after the other.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    per_piece = sum(4 * part.channels * part.side**2 for part in network.parts[:-1]) * piece_cells**2
    pieces = 2
    while pieces**2 < threads and (2 * pieces) ** 2 * per_piece <= _MOST_OF_TILE_BYTES:
        pieces *= 2
    return pieces, max(1, threads // pieces**2)


def side_by_side(
    run: Callable[[Tensor], Tensor], pieces: Sequence[Tensor], workers: int, *, cores_each: int | None
) -> list[Tensor]:
    """Run pieces on a CPU, so many at once, whatever their number: so they always round alike.

    Args:
        run: takes one.
        pieces: to run.
        workers: how many at once.
        cores_each: threads that PyTorch takes in each; None: it does not work there.
    """
    if workers == 1:
        return [run(piece) for piece in pieces]
    threads = torch.get_num_threads()

    def start() -> None:
        if cores_each is not None:
            torch.set_num_threads(cores_each)

    try:
        with ThreadPoolExecutor(workers, initializer=start) as pool:
            # The largest first: then none waits long for the last.
            order = sorted(range(len(pieces)), key=lambda index: -pieces[index].numel())
            made = dict(zip(order, pool.map(run, (pieces[index] for index in order)), strict=True))
            return [made[index] for index in range(len(pieces))]
    finally:
        torch.set_num_threads(threads)


def in_small_pieces(
    pieces: Sequence[Tensor], part: Part, *, run: Callable[[list[Tensor]], list[Tensor]]
) -> list[Tensor]:
    """Run the first part, whose maps are so large that they leave a CPU's cache, on smaller pieces.

    Args:
        pieces: as `Runtime.run` has them.
        part: the first.
        run: takes smaller pieces.

    Returns:
        (1, channels, rows, columns) of each piece.
    """
    margin, scale = part.margin, part.side
    cuts: list[Tensor] = []
    places: list[list[tuple[int, int]]] = []
    for piece in pieces:
        rows, columns = (
            _edges(length // STEP_PX - 2 * margin, most=_SMALL_CELLS) for length in piece.shape[:2]
        )
        places.append([(top, left) for top, _ in pairwise(rows) for left, _ in pairwise(columns)])
        cuts += [
            piece[
                top * STEP_PX : (bottom + 2 * margin) * STEP_PX,
                left * STEP_PX : (right + 2 * margin) * STEP_PX,
            ]
            for top, bottom in pairwise(rows)
            for left, right in pairwise(columns)
        ]
    made = iter(run(cuts))
    whole = []
    for piece, places_of_one in zip(pieces, places, strict=True):
        height, width = ((length // STEP_PX - 2 * margin) * scale for length in piece.shape[:2])
        placed = [(top * scale, left * scale, next(made)) for top, left in places_of_one]
        whole.append(gather(placed, size=(height, width)))
    return whole


def _edges(length: int, *, most: int) -> list[int]:
    """Where to cut a length into equal parts of `most` at most."""
    count = -(-length // most)
    return [length * number // count for number in range(count + 1)]


def prepare(pixels: Tensor, *, mean: Tensor, std: Tensor, stride: int) -> Tensor:
    """Turn tiles, (n, 3, height, width) uint8 RGB at 1.0 µm/px, into the network's input.

    Height and width are multiples of the step, 10 px, which becomes `stride` network px.

    Returns:
        (n, 3, height · stride/10, width · stride/10) float32, channels last.
    """
    height, width = pixels.shape[-2:]
    if height % STEP_PX or width % STEP_PX:
        raise ValueError(f"a tile of {width} × {height} px is not made of steps of {STEP_PX} px")
    scaled = (pixels.contiguous(memory_format=torch.channels_last).float() / 255 - mean) / std
    size = (height // STEP_PX * stride, width // STEP_PX * stride)
    return nn.functional.interpolate(scaled, size, mode="bilinear", align_corners=False, antialias=False)


def cut(values: Tensor, count: int) -> Tensor:
    """Without so many values on each side of the last two axes."""
    return values[..., count : values.shape[-2] - count, count : values.shape[-1] - count]


def gather(pieces: Sequence[tuple[int, int, Tensor]], *, size: tuple[int, int], fill: int = 0) -> Tensor:
    """Put (row, column, values) together: (1, channels, *size), `fill` where no piece lies.

    Rows and columns may be negative, and pieces may reach beyond.
    """
    first = pieces[0][2]
    last = first.is_contiguous(memory_format=torch.channels_last)
    canvas = torch.full((1, first.shape[1], *size), fill, dtype=first.dtype, device=first.device)
    if last:
        canvas = canvas.contiguous(memory_format=torch.channels_last)
    for top, left, values in pieces:
        rows = slice(max(top, 0), min(top + values.shape[2], size[0]))
        columns = slice(max(left, 0), min(left + values.shape[3], size[1]))
        if rows.start < rows.stop and columns.start < columns.stop:
            canvas[..., rows, columns] = values[
                ..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
    return canvas
