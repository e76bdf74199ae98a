from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hnscc_qp.training.augment import draw_orientations, draw_stains, orient, refocus, restain, zoom


def orbit_of(image: np.ndarray) -> set[bytes]:
    """By numpy: four rotations of the image (channels, side, side) and of its mirror image."""
    both = (image, image[..., ::-1])
    return {np.rot90(one, turns, axes=(1, 2)).tobytes() for one in both for turns in range(4)}


def test_eight_orientations_are_all_rotations_and_mirror_images() -> None:
    image = np.random.default_rng(1).integers(0, 256, (3, 40, 40), np.uint8)
    windows = torch.from_numpy(image).expand(8, -1, -1, -1)
    turned = orient(windows, torch.arange(8)).numpy()
    assert turned.dtype == np.uint8
    assert turned[0].tobytes() == image.tobytes()
    found = {one.tobytes() for one in turned}
    assert len(found) == 8
    assert found == orbit_of(image)


def test_epoch_of_eight_shows_every_patch_in_every_orientation() -> None:
    patches, orientations = draw_orientations(50, 8, torch.Generator().manual_seed(1))
    pairs = sorted(zip(patches.tolist(), orientations.tolist(), strict=True))
    assert pairs == [(patch, orientation) for patch in range(50) for orientation in range(8)]


def test_shorter_epoch_shows_every_patch_in_different_random_orientations() -> None:
    patches, orientations = draw_orientations(400, 3, torch.Generator().manual_seed(1))
    assert torch.bincount(patches).tolist() == [3] * 400
    assert len(set(zip(patches.tolist(), orientations.tolist(), strict=True))) == 1200
    assert (torch.bincount(orientations, minlength=8) - 150).abs().max() < 45  # as often as each other
    assert patches.tolist() != sorted(patches.tolist())


def test_same_generator_state_gives_the_same_orientations() -> None:
    one, same, other = (draw_orientations(64, 1, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))


def test_no_jitter_changes_no_pixel() -> None:
    pixels = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (3, 3, 20, 20), np.uint8))
    stains = draw_stains(3, 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(restain(pixels, stains), pixels)


def test_each_stain_is_changed_by_itself() -> None:
    # Ruifrok and Johnston's vectors, their amounts solved for pixel by pixel.
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)

    def amounts(rgb: np.ndarray) -> np.ndarray:
        density = -np.log10((rgb.astype(float) + 1) / 256)
        return np.stack([np.linalg.solve(stains.T, pixel) for pixel in density])

    before = np.random.default_rng(4).integers(60, 200, (400, 3)).astype(np.uint8)
    picture = torch.from_numpy(before.T.reshape(1, 3, 20, 20).copy())
    drawn = draw_stains(1, 0.4, torch.Generator().manual_seed(3))
    after = restain(picture, drawn)[0].reshape(3, 400).T.numpy()
    inside = ((after > 0) & (after < 255)).all(axis=1)
    known = np.column_stack([amounts(before)[inside], np.ones(inside.sum())])
    fitted, *_ = np.linalg.lstsq(known, amounts(after)[inside], rcond=None)
    own = np.diag(fitted[:3])
    assert ((own > 0.55) & (own < 1.45) & (abs(own - 1) > 0.02)).all()
    np.testing.assert_allclose(fitted[:3], np.diag(own), atol=0.03)  # of the others nothing but rounding


def test_jitter_is_as_strong_as_asked_and_differs_from_picture_to_picture() -> None:
    stained = torch.tensor([150, 90, 160], dtype=torch.uint8).view(1, 3, 1, 1).expand(200, 3, 2, 2)
    spread = []
    for strength in (0.1, 0.5):
        stains = draw_stains(200, strength, torch.Generator().manual_seed(1))
        spread.append(float(restain(stained, stains).float().std(dim=0).mean()))
    assert 3 < spread[0] < spread[1] / 2


def test_white_stays_nearly_white() -> None:
    white = torch.full((64, 3, 2, 2), 255, dtype=torch.uint8)
    changed = restain(white, draw_stains(64, 0.2, torch.Generator().manual_seed(1)))
    assert changed.float().mean() > 235


def test_least_sharp_picture_is_blurred_by_one_px_and_the_sharpest_is_as_far_from_it() -> None:
    pixels = torch.randint(60, 190, (400, 3, 24, 24), generator=torch.Generator().manual_seed(1)).byte()
    shown = refocus(pixels, 1.0, 0.0, torch.Generator().manual_seed(2)).double()
    blurred = gaussian_filter(pixels.double().numpy(), (0, 0, 1, 1), truncate=2, mode="nearest")
    away = pixels.double() - torch.from_numpy(blurred)
    # Each picture as the original and so many times its detail.
    amount = ((shown - pixels) * away).sum((1, 2, 3)) / (away**2).sum((1, 2, 3))
    assert amount.min() == pytest.approx(-1, abs=0.02)
    assert 0.9 < amount.max() < 1.001
    assert abs(amount.mean()) < 0.1
    least = amount.argmin()
    assert (shown[least] - torch.from_numpy(blurred)[least]).abs().max() < 3


def test_noise_is_of_up_to_so_many_levels_and_each_pixels_own() -> None:
    pixels = torch.full((200, 3, 24, 24), 128, dtype=torch.uint8)
    noise = refocus(pixels, 0.0, 6.0, torch.Generator().manual_seed(1)).double() - 128
    deviation = noise.std(dim=(1, 2, 3))
    assert 5.5 < deviation.max() < 6.3 and deviation.min() < 0.5
    assert deviation.mean() == pytest.approx(3, abs=0.4)
    loud = noise[deviation.argmax()].flatten(1)
    assert torch.corrcoef(loud).fill_diagonal_(0).abs().max() < 0.15


def test_nothing_to_vary_leaves_the_picture() -> None:
    pixels = torch.randint(0, 256, (3, 3, 20, 20), generator=torch.Generator().manual_seed(1)).byte()
    assert torch.equal(refocus(pixels, 0.0, 0.0, torch.Generator().manual_seed(2)), pixels)
    target = torch.arange(9).view(3, 3)
    same, labels = zoom(pixels[:1].repeat(1, 1, 3, 3), target, side_px=60)
    assert torch.equal(same, pixels[:1].repeat(1, 1, 3, 3)) and torch.equal(labels, target)
