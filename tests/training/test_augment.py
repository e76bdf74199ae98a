from __future__ import annotations

import numpy as np
import torch

from hnscc_qp.training.augment import draw_orientations, orient


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
