"""What a training learns from, in either recipe: batches on the device, and a validation set.

Which patches or tiles make up a batch, how they are turned and how stained is a function of the seed, the
epoch and the batch alone. So a training that was stopped goes on just as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from hnscc_qp.errors import TrainingError
from hnscc_qp.geometry import STEP_PX
from hnscc_qp.models.networks import CLASSES
from hnscc_qp.models.parts import WINDOW_CELLS
from hnscc_qp.patches.labels import Label
from hnscc_qp.study import DenseRecipe, WindowRecipe
from hnscc_qp.training.augment import draw_orientations, draw_stains, orient, refocus, restain, zoom

NO_LABEL = -1
"""Target of a window that does not count."""
Idx = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures with the label of every window in them, on the device."""

    pixels: Tensor
    """(n, 3, side, side) uint8 RGB at 1.0 µm/px"""
    target: Tensor
    """(n, ...) int64 as the classifier's logits without their classes: 0, 1 or `NO_LABEL`."""

    def part(self, number: int, parts: int) -> Batch:
        """Every `parts`-th picture from `number` on."""
        return Batch(self.pixels[number::parts], self.target[number::parts])


class Material(Protocol):
    """What a training learns from."""

    batches: int
    """Per epoch."""
    batch_size: int
    """Pictures in a batch, at least."""

    def epoch(self, number: int, *, first: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, counted from 1, from the batch `first` on."""

    def examples(self) -> Tensor:
        """Some pictures to learn from, (n, 3, side, side) uint8 on the device."""

    def validation(self, number: int, parts: int) -> Iterator[tuple[slice, Tensor]]:
        """Pictures to judge by, a share of them: where their windows lie in `targets`, and their pixels.

        The shares 0 to `parts` - 1 together hold each picture once.
        """

    @property
    def targets(self) -> NDArray[np.int64]:
        """(windows,) of validation: 0, 1 or `NO_LABEL`."""


class WindowMaterial:
    """Single windows: the paper's recipe (Tang et al. 2022, §2.3)."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: ArrayLike,
        *,
        train_idx: Idx,
        validation_idx: Idx,
        settings: WindowRecipe,
        seed: int,
        device: torch.device,
    ) -> None:
        """Take patches that lie in memory or in a map.

        Args:
            pixels: (n, 40, 40, 3) uint8. Those used are held in memory: 154 MB for the 32,000 of the paper.
            labels: (n,) 0 nontumor, 1 tumor.
            train_idx: patches to learn from.
            validation_idx: patches of other patients.
            settings: the recipe.
            seed: of order, orientations and stains.
            device: where the batches are wanted.

        Raises:
            TrainingError: a class is missing on a side.
        """
        target = torch.from_numpy(np.asarray(labels).astype(np.int64))
        for side, idx in (("training", train_idx), ("validation", validation_idx)):
            need_both_classes(target[torch.from_numpy(idx)], side, what="patch")
        self._settings, self._seed, self._device = settings, seed, device
        self._pixels = _place(pixels[train_idx], device)
        self._target = target[torch.from_numpy(train_idx)].to(device)
        self._validation = torch.from_numpy(pixels[validation_idx])
        self.targets: NDArray[np.int64] = target.numpy()[validation_idx]
        # Whole batches: what does not fill another one is spread over them, so that none is too small
        # for the batch norms and no patch is left out.
        shown = len(train_idx) * settings.orientations
        self.batches = max(1, shown // settings.batch_size)
        self.batch_size = min(settings.batch_size, shown)

    def epoch(self, number: int, *, first: int = 0) -> Iterator[Batch]:
        """Each patch in `orientations` of its eight orientations."""
        generator = generator_of(self._seed, number)
        patch, orientation = draw_orientations(len(self._pixels), self._settings.orientations, generator)
        for at, some in enumerate(torch.arange(len(patch)).tensor_split(self.batches)):
            if at < first:
                continue
            windows = orient(self._take(patch[some]), orientation[some].to(self._device))
            windows = _jitter(windows, self._settings.stain_jitter, generator_of(self._seed, number, at))
            yield Batch(windows, self._target[patch[some].to(self._device)])

    def examples(self) -> Tensor:
        """512 patches, if there are so many."""
        some = torch.randperm(len(self._pixels), generator=generator_of(self._seed, 0))[:512]
        return self._take(some)

    def validation(self, number: int, parts: int, *, batch_size: int = 64) -> Iterator[tuple[slice, Tensor]]:
        """64 patches at a time, of one shape (the last is filled up): a CPU's caches hold so many."""
        filled = torch.zeros((batch_size, *self._validation.shape[1:]), dtype=torch.uint8)
        for start in range(number * batch_size, len(self._validation), parts * batch_size):
            some = self._validation[start : start + batch_size]
            filled[: len(some)] = some
            yield slice(start, start + len(some)), filled.to(self._device).permute(0, 3, 1, 2)

    def _take(self, idx: Tensor) -> Tensor:
        if isinstance(self._pixels, Tensor):
            chosen = self._pixels[idx.to(self._device)]
        else:
            chosen = torch.from_numpy(self._pixels[idx.numpy()]).to(self._device)
        return chosen.permute(0, 3, 1, 2)


class DenseMaterial:
    """Tiles with the label of every window in them: the dense recipe.

    Every tile is cut around a window that was drawn: tumor or nontumor as often, from each slide that has
    such windows as often, anywhere in the tile. So small tumors and small slides count as much as large ones.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        slides: NDArray[np.str_],
        *,
        train_idx: Idx,
        validation_idx: Idx,
        settings: DenseRecipe,
        seed: int,
        device: torch.device,
    ) -> None:
        """Take pieces of slides, as `patches.tiles` cuts them.

        Args:
            pixels: (n, side, side, 3) uint8, in memory or in a map; it is read as batches ask for it, unless
                half of a GPU's free memory holds it.
            labels: (n, windows, windows) of `Label`.
            slides: (n,) which slide each piece is of.
            train_idx: pieces to learn from.
            validation_idx: pieces of other patients.
            settings: the recipe.
            seed: of places, orientations and stains.
            device: where the batches are wanted.

        Raises:
            TrainingError: a class is missing on a side.
        """
        for side, idx in (("training", train_idx), ("validation", validation_idx)):
            need_both_classes(torch.from_numpy(labels[idx]), side, what="window")
        self._settings, self._seed, self._device = settings, seed, device
        self._pixels = _place(pixels, device)
        self._target = torch.from_numpy(targets_of(labels).astype(np.int8))
        self._judged, self._judged_idx = pixels, validation_idx
        self.targets: NDArray[np.int64] = targets_of(labels[validation_idx]).reshape(-1)
        self.batch_size = settings.batch_size
        self.batches = max(1, settings.epoch_tiles // settings.batch_size)
        # Sides that tiles are cut with, in steps, before they are enlarged or shrunk to `tile_px`.
        least, most = (
            round(settings.tile_px * (1 + settings.scale_jitter) ** sign / STEP_PX) for sign in (-1, 1)
        )
        self._steps = range(least, min(most, pixels.shape[1] // STEP_PX) + 1)
        # For each class, the windows of each slide that has any: (windows, 3) of piece, row, column.
        of_slide = {slide: train_idx[slides[train_idx] == slide] for slide in np.unique(slides[train_idx])}
        self._by_slide = [
            [found for pieces in of_slide.values() if len(found := _find(labels, pieces, label))]
            for label in (Label.NONTUMOR, Label.TUMOR)
        ]

    def epoch(self, number: int, *, first: int = 0) -> Iterator[Batch]:
        """As many tiles around tumor windows as around nontumor ones."""
        for at in range(first, self.batches):
            yield self._batch(generator_of(self._seed, number, at))

    def examples(self) -> Tensor:
        """24 tiles."""
        generator = generator_of(self._seed, 0)
        return torch.cat([self._cut(generator)[0] for _ in range(24)]).to(self._device)

    def validation(self, number: int, parts: int) -> Iterator[tuple[slice, Tensor]]:
        """Whole pieces, one at a time: all have one shape."""
        return iter_pieces(self._judged, self._judged_idx, device=self._device, number=number, parts=parts)

    def _batch(self, generator: torch.Generator) -> Batch:
        tiles, targets = zip(*(self._cut(generator) for _ in range(self.batch_size)), strict=True)
        orientation = torch.randint(8, (self.batch_size,), generator=generator)
        pixels = torch.cat(tiles).to(self._device)
        # A label turns with its window: the map of labels is turned like the pixels.
        target = orient(torch.stack(targets)[:, None], orientation)[:, 0]
        pixels = orient(pixels, orientation.to(self._device))
        pixels = _jitter(pixels, self._settings.stain_jitter, generator)
        if self._settings.sharpness_jitter or self._settings.noise_levels:
            pixels = refocus(pixels, self._settings.sharpness_jitter, self._settings.noise_levels, generator)
        return Batch(pixels, target.long().to(self._device))

    def _cut(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def draw(below: int) -> int:
            return int(torch.randint(below, (1,), generator=generator))

        slides = self._by_slide[draw(2)]
        windows = slides[draw(len(slides))]
        piece, row, column = windows[draw(len(windows))].tolist()
        end = self._target.shape[-1]
        steps = self._steps[draw(len(self._steps))]
        count = steps - WINDOW_CELLS + 1
        top, left = (min(max(at - draw(count), 0), end - count) for at in (row, column))
        x, y, side = left * STEP_PX, top * STEP_PX, steps * STEP_PX
        cut = self._pixels[piece, y : y + side, x : x + side]
        pixels = cut if isinstance(cut, Tensor) else torch.from_numpy(np.array(cut))
        target = self._target[piece, top : top + count, left : left + count]
        return zoom(pixels.permute(2, 0, 1)[None], target, side_px=self._settings.tile_px)


def generator_of(*numbers: int) -> torch.Generator:
    """A generator on the CPU that depends on the numbers alone."""
    words = np.random.SeedSequence(numbers).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def targets_of(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`Label` as targets: 0, 1 or `NO_LABEL`, of the same shape."""
    return np.where(labels == Label.IGNORED, NO_LABEL, labels.astype(np.int64))


def iter_pieces(
    pixels: NDArray[np.uint8], idx: Idx, *, device: torch.device, number: int = 0, parts: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Whole pieces, one at a time: where their windows lie in order, and their pixels."""
    windows = ((pixels.shape[1]) // STEP_PX - WINDOW_CELLS + 1) ** 2
    for at in range(number, len(idx), parts):
        piece = torch.from_numpy(np.array(pixels[idx[at]]))
        yield slice(at * windows, (at + 1) * windows), piece.to(device).permute(2, 0, 1)[None]


def predict_windows(
    classifier: nn.Module, batches: Iterable[tuple[slice, Tensor]], *, count: int
) -> NDArray[np.float32]:
    """Logits (count, 2) of every window of the batches, in its place; zero where no batch has one.

    The classifier is left in eval mode.
    """
    classifier.eval()
    logits = np.zeros((count, len(CLASSES)), np.float32)
    with torch.inference_mode():
        for where, pixels in batches:
            found = classifier(pixels).float()
            by_window = found.reshape(*found.shape[:2], -1).movedim(1, 2).reshape(-1, len(CLASSES))
            logits[where] = by_window[: where.stop - where.start].cpu().numpy()
    return logits


def need_both_classes(target: Tensor, side: str, *, what: str) -> None:
    """See that there is something of each class to tell apart.

    Raises:
        TrainingError: one is missing; the message names it and its side.
    """
    lacks = [name for value, name in enumerate(CLASSES) if not (target == value).any()]
    if lacks:
        raise TrainingError(
            f"there is no {' and no '.join(lacks)} {what} for {side}; annotate slides of more patients, "
            "or change the split's seed or shares"
        )


def _find(labels: NDArray[np.uint8], pieces: Idx, label: Label) -> NDArray[np.int32]:
    piece, row, column = np.nonzero(labels[pieces] == label)
    return np.stack([pieces[piece], row, column], axis=1).astype(np.int32)


def _place(pictures: NDArray[np.uint8], device: torch.device) -> Tensor | NDArray[np.uint8]:
    """All pictures on a GPU if half of its free memory is enough for them, else as they are."""
    if device.type == "cuda" and pictures.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return torch.from_numpy(np.array(pictures)).to(device)
    return pictures


def _jitter(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if not strength:
        return pixels
    return restain(pixels, draw_stains(len(pixels), strength, generator).to(pixels.device))
