from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hnscc_qp.errors import CheckpointError, StudyError
from hnscc_qp.models.cascade import make_cascade
from hnscc_qp.models.checkpoint import load_model, save_model
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import WindowClassifier, build_network
from hnscc_qp.study import Training


def noise(height: int, width: int, *, n: int = 1, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 200, (n, 3, height // 10, width // 10), generator=generator)
    grain = torch.randint(0, 56, (n, 3, height, width), generator=generator)
    return (base.repeat_interleave(10, 2).repeat_interleave(10, 3) + grain).to(torch.uint8)


@torch.no_grad()
def settled(network_name: str = "mobilenet_v2", *, input_px: int = 64, seed: int = 1) -> DenseClassifier:
    """A network from scratch with batch statistics of its own, and a bias in the middle of its answers."""
    classifier = DenseClassifier(network_name, input_px=input_px, seed=seed)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    tiles = noise(160, 160, n=2)
    classifier.train()(tiles)
    logits = classifier.eval()(tiles)
    head = [module for module in classifier.modules() if isinstance(module, nn.Linear)][-1]
    head.bias[0] += (logits[:, 1] - logits[:, 0]).median()
    return classifier


@pytest.mark.parametrize(
    ("network", "input_px", "every"),
    [
        ("mobilenet_v2", 128, 1),
        ("mobilenet_v2", 64, 2),
        ("mobilenet_v2", 32, 4),
        ("resnet50", 64, 2),
        ("resnet50", 32, 4),
        ("resnet101", 64, 2),
    ],
)
@torch.no_grad()
def test_cells_are_those_of_the_undilated_network_where_it_has_any(
    network: str, input_px: int, every: int
) -> None:
    # Without strides a network computes all that it computed with them, and what lies between.
    classifier = DenseClassifier(network, input_px=input_px, seed=3).eval()
    tile = noise(40, 80)
    plain = build_network(network, weights="none", seed=3).eval()
    pool = nn.AdaptiveAvgPool2d((1, 1))
    features: list[torch.Tensor] = []
    last = plain.features if network == "mobilenet_v2" else plain.layer4
    last.register_forward_hook(lambda _, __, output: features.append(output))
    plain(classifier.prepare(tile))
    head = plain.classifier if network == "mobilenet_v2" else plain.fc
    wanted = torch.stack(
        [
            head(pool(features[0][:, :, y : y + 1, x : x + 1]).flatten(1))
            for y in range(features[0].shape[2])
            for x in range(features[0].shape[3])
        ],
        dim=2,
    ).reshape(1, 2, *features[0].shape[2:])
    torch.testing.assert_close(
        classifier.cell_logits(tile)[:, :, ::every, ::every], wanted, rtol=1e-3, atol=1e-4
    )


@torch.no_grad()
def test_window_is_the_mean_of_its_sixteen_cells() -> None:
    classifier = settled()
    tile = noise(90, 120)
    cells, windows = classifier.cell_logits(tile), classifier(tile)
    assert cells.shape == (1, 2, 9, 12)
    assert windows.shape == (1, 2, 6, 9)
    for row in range(6):
        for column in range(9):
            mean = cells[0, :, row : row + 4, column : column + 4].mean(dim=(1, 2))
            torch.testing.assert_close(windows[0, :, row, column], mean)


@torch.no_grad()
def test_with_its_halo_a_window_is_the_same_wherever_the_tile_is_cut() -> None:
    classifier = settled(input_px=128)
    halo = classifier.halo_px
    slide = noise(40 + 2 * halo + 60, 40 + 2 * halo + 80)
    whole = classifier(slide)
    for x, y in ((0, 0), (80, 0), (30, 60)):
        tile = slide[:, :, y : y + 40 + 2 * halo, x : x + 40 + 2 * halo]
        row, column = (y + halo) // 10, (x + halo) // 10
        inner = classifier(tile)[0, :, halo // 10, halo // 10]
        torch.testing.assert_close(inner, whole[0, :, row, column], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_halo_is_how_far_a_change_is_felt() -> None:
    classifier = settled(input_px=128)
    halo = classifier.halo_px
    side = 10 + 4 * halo
    tile = noise(side, side)
    changed = tile.clone()
    changed[:, :, 2 * halo : 2 * halo + 10, 2 * halo : 2 * halo + 10] ^= 255
    felt = (classifier.cell_logits(tile) != classifier.cell_logits(changed)).any(dim=1)[0].nonzero()
    reach = (felt - 2 * halo // 10).abs().max().item() * 10
    # What is felt in theory is not always in float32, but the halo must not be generous without reason.
    assert halo / 2 < reach <= halo


def test_stages_of_two_recipes_are_refused() -> None:
    with pytest.raises(CheckpointError, match="primary has the recipe 'dense', the secondary 'window'"):
        make_cascade(settled(), WindowClassifier("mobilenet_v2", input_px=64))
    assert make_cascade(settled(), None).recipe == "dense"


def test_network_that_can_not_be_dense_is_refused_by_name() -> None:
    with pytest.raises(
        StudyError, match=r"googlenet can't be used densely; set network to one of mobilenet_v2"
    ):
        DenseClassifier("googlenet")
    with pytest.raises(StudyError, match=r"input_px = 96 .*one of 32, 64, 128"):
        DenseClassifier("mobilenet_v2", input_px=96)


def test_tile_that_is_not_made_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="45 × 40 px is not made of steps"):
        DenseClassifier("mobilenet_v2")(noise(40, 50)[:, :, :, :45])


def test_dense_model_comes_back_from_its_file(tmp_path: Path) -> None:
    classifier = settled()
    save_model(
        tmp_path,
        classifier,
        stage="primary",
        training=Training(),
        weights_origin={"name": "none", "sha256": None},
        data_sha256="0" * 64,
        patients={"train": 1},
        figures={},
        device="cpu",
        seconds=1,
    )
    loaded, card = load_model(tmp_path, recipe="dense")
    assert (card.recipe, card.input_px, loaded.recipe) == ("dense", 64, "dense")
    tile = noise(80, 80)
    with torch.no_grad():
        assert torch.equal(loaded(tile), classifier(tile))
    with pytest.raises(CheckpointError, match="recipe 'dense', 'window' is needed"):
        load_model(tmp_path, recipe="window")
