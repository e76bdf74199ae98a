from __future__ import annotations

import numpy as np
import pytest
import torch

from hnscc_qp.errors import TrainingError
from hnscc_qp.study import DenseRecipe, WindowRecipe
from hnscc_qp.training.material import NO_LABEL, DenseMaterial, WindowMaterial

CPU = torch.device("cpu")
Tiles = tuple[np.ndarray, np.ndarray, np.ndarray]


def dense(tiles: Tiles, *, seed: int = 1, train: int = 4, **values: object) -> DenseMaterial:
    plain = {"stain_jitter": 0.0, "scale_jitter": 0.0, "sharpness_jitter": 0.0, "noise_levels": 0.0}
    settings = DenseRecipe(**{"tile_px": 80, "epoch_tiles": 24} | plain | values)
    return DenseMaterial(
        *tiles,
        train_idx=np.arange(train),
        validation_idx=np.arange(train, 6),
        settings=settings,
        seed=seed,
        device=CPU,
    )


def holds_purple(window: np.ndarray) -> bool:
    """Purple has less green than pink, whatever the noise."""
    return bool((window[:, :, 1] < 105).any())


def test_label_of_a_window_turns_and_moves_with_its_pixels(tiles: Tiles) -> None:
    checked = 0
    for batch in dense(tiles).epoch(1):
        assert batch.pixels.shape == (4, 3, 80, 80)
        assert batch.target.shape == (4, 5, 5)
        for pixels, target in zip(batch.pixels.permute(0, 2, 3, 1).numpy(), batch.target, strict=True):
            for row in range(5):
                for column in range(5):
                    if target[row, column] != NO_LABEL:
                        window = pixels[row * 10 : row * 10 + 40, column * 10 : column * 10 + 40]
                        assert bool(target[row, column]) == holds_purple(window)
                        checked += 1
    assert checked > 400


def test_enlarged_and_shrunk_tiles_have_the_labels_of_what_they_show(tiles: Tiles) -> None:
    """But at a tumor's edge, as labels stand on a grid of 10 px and are of windows of one size."""
    checked = {0: 0, 1: 0}
    for batch in dense(tiles, tile_px=120, scale_jitter=0.25, epoch_tiles=80).epoch(1):
        assert batch.pixels.shape == (4, 3, 120, 120)
        assert batch.target.shape == (4, 9, 9)
        for pixels, target in zip(batch.pixels.permute(0, 2, 3, 1).numpy(), batch.target, strict=True):
            for row, column in np.argwhere(target.numpy() != NO_LABEL) * 10:
                around = pixels[max(0, row - 11) : row + 51, max(0, column - 11) : column + 51]
                inner = pixels[row + 10 : row + 30, column + 10 : column + 30]
                tumor = int(target[row // 10, column // 10])
                assert holds_purple(around) if tumor else not holds_purple(inner)
                checked[tumor] += 1
    assert min(checked.values()) > 1000


def test_tiles_are_shown_at_every_scale_that_was_asked_for(tiles: Tiles) -> None:
    pixels, labels, slides = tiles
    ramp = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, None, :, None], pixels.shape).copy()
    slopes = []
    for batch in dense((ramp, labels, slides), scale_jitter=0.5, epoch_tiles=200).epoch(1):
        across = batch.pixels[:, 0].float()
        slopes += [
            max((one[0] - one[-1]).abs().max(), (one[:, 0] - one[:, -1]).abs().max()) for one in across
        ]
    spans = np.array(slopes) + 1
    assert spans.min() == pytest.approx(80 / 1.5, abs=5) and spans.max() == pytest.approx(80 * 1.5, abs=5)
    assert 70 < np.median(spans) < 95


def test_sharpness_and_noise_are_varied_where_asked_for(tiles: Tiles) -> None:
    plain, varied, again = (
        next(iter(dense(tiles, **values).epoch(1)))
        for values in (
            {},
            {"sharpness_jitter": 1.0, "noise_levels": 5.0},
            {"sharpness_jitter": 1.0, "noise_levels": 5.0},
        )
    )
    assert torch.equal(plain.target, varied.target)
    assert not torch.equal(plain.pixels, varied.pixels)
    assert torch.equal(again.pixels, varied.pixels)


def test_tiles_are_drawn_at_tumor_windows_as_often_as_at_others(tiles: Tiles) -> None:
    pixels, labels, slides = tiles
    rare = np.full_like(labels, 2)
    rare[:, 0, :] = 0
    rare[0, 6, 6] = rare[5, 6, 6] = 1  # one tumor window to learn from, far from the others
    material = dense((pixels, rare, slides), epoch_tiles=400, tile_px=80)
    with_tumor = sum(int((batch.target == 1).any(dim=(1, 2)).sum()) for batch in material.epoch(1))
    assert 150 < with_tumor < 250


def test_slides_are_drawn_as_often_whatever_they_hold(tiles: Tiles) -> None:
    pixels, labels, slides = tiles
    labels = labels.copy()
    labels[2:4] = 2
    labels[2, 0, 0], labels[2, 12, 12] = 0, 1  # slide B has two windows, slide A hundreds
    marked = pixels.copy()
    marked[2:4, :, :, 2] = 255
    material = dense((marked, labels, slides), epoch_tiles=400)
    of_b = sum(int((batch.pixels[:, 2] == 255).all(dim=(1, 2)).sum()) for batch in material.epoch(1))
    assert 150 < of_b < 250


def test_epoch_can_be_taken_up_at_any_batch(tiles: Tiles, patches: tuple[np.ndarray, np.ndarray]) -> None:
    window = WindowMaterial(
        *patches,
        train_idx=np.arange(64),
        validation_idx=np.arange(64, 96),
        settings=WindowRecipe(batch_size=16, stain_jitter=0.3),
        seed=1,
        device=CPU,
    )
    for material in (window, dense(tiles, stain_jitter=0.5)):
        whole = list(material.epoch(2))
        rest = list(material.epoch(2, first=3))
        assert len(rest) == len(whole) - 3
        for one, same in zip(whole[3:], rest, strict=True):
            assert torch.equal(one.pixels, same.pixels) and torch.equal(one.target, same.target)
        other = next(iter(material.epoch(3)))
        assert not torch.equal(other.pixels, whole[0].pixels)


def test_validation_parts_hold_each_window_once(tiles: Tiles) -> None:
    material = dense(tiles, train=3)
    for parts in (1, 2, 4):
        covered = np.zeros(len(material.targets), int)
        for number in range(parts):
            for where, _ in material.validation(number, parts):
                covered[where] += 1
        assert (covered == 1).all()
    wanted = np.where(tiles[1][3:] == 2, NO_LABEL, tiles[1][3:].astype(int)).reshape(-1)
    np.testing.assert_array_equal(material.targets, wanted)


def test_missing_class_of_windows_is_named(tiles: Tiles) -> None:
    pixels, labels, slides = tiles
    with pytest.raises(TrainingError, match="there is no tumor window for training"):
        dense((pixels, np.zeros_like(labels), slides))
