"""A dense network in parts, by PyTorch and by ONNX Runtime, gives the windows of one plain pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.test_dense import noise, settled
from runtimes import RUNTIMES, threads

from hnscc_qp.models import onnx_runtime
from hnscc_qp.models import parts as parts_module
from hnscc_qp.models.dense import DenseCascade
from hnscc_qp.models.parts import Runtime, share_cores


def stage(cascade: DenseCascade, runtime: Any, *, bfloat16: bool = False) -> Runtime:
    return cascade.stages(runtime=runtime, device=torch.device("cpu"), bfloat16=bfloat16)[0]


def through(runtime: Runtime, pixels: torch.Tensor) -> torch.Tensor:
    """All parts one after the other: (height, width, 3) → margins of the windows within what they reach."""
    values = pixels
    for number in range(len(runtime.network.parts)):
        (values,) = runtime.run(number, [values])
    return values


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("network", "input_px"), [("mobilenet_v2", 128), ("mobilenet_v2", 64), ("resnet50", 32)]
)
def test_parts_give_the_windows_of_one_plain_pass(network: str, input_px: int, runtime: str) -> None:
    classifier = settled(network, input_px=input_px)
    parts = stage(DenseCascade(classifier, None), runtime)
    reach = sum(part.margin for part in parts.network.parts)
    tile = noise(*[(3 + 5 + 2 * reach) * 10] * 2)
    logits = classifier(tile)[0, :, reach:-reach, reach:-reach]
    wanted = logits[1] - logits[0]
    assert wanted.shape == (5, 5)
    assert wanted.std() > 0.001
    pixels = tile[0].permute(1, 2, 0).contiguous()
    # The first is of another size than the second: a part takes all sizes.
    corner = through(parts, pixels[:-20, :-10].contiguous())
    for found, size in ((corner, (3, 4)), (through(parts, pixels), (5, 5))):
        torch.testing.assert_close(found, wanted[: size[0], : size[1]], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("network", "cores", "wanted"),
    [
        ("mobilenet_v2", 1, (2, 1)),
        ("mobilenet_v2", 4, (2, 1)),
        ("mobilenet_v2", 8, (4, 1)),
        ("mobilenet_v2", 32, (4, 2)),
        ("resnet50", 16, (2, 4)),
    ],
)
def test_tiles_grow_with_the_cores_as_far_as_memory_allows(
    network: str, cores: int, wanted: tuple[int, int]
) -> None:
    parts = settled(network, input_px=64).in_parts()
    with threads(cores):
        assert share_cores(parts, 48, torch.device("cpu")) == wanted


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_several_cores_on_a_piece_give_the_same_however_many_pieces_there_are(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (parts_module, onnx_runtime):
        monkeypatch.setattr(module, "share_cores", lambda *_: (2, 2))
    with threads(4):
        parts = stage(DenseCascade(settled(), None), runtime)
        margin = parts.network.parts[0].margin
        tiles = noise(*[(30 + 2 * margin) * 10] * 2, n=3).permute(0, 2, 3, 1).contiguous()
        together = parts.run(0, list(tiles))
        assert torch.get_num_threads() == 4
        alone = [parts.run(0, [tile])[0] for tile in tiles]
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pieces_side_by_side_are_those_one_by_one(runtime: str) -> None:
    classifier = settled()
    parts = stage(DenseCascade(classifier, None), runtime)
    margin = parts.network.parts[0].margin
    tiles = noise(*[(30 + 2 * margin) * 10] * 2, n=3).permute(0, 2, 3, 1).contiguous()
    alone = [parts.run(0, [tile])[0] for tile in tiles]
    with threads(2):
        together = stage(DenseCascade(classifier, None), runtime).run(0, list(tiles))
        assert torch.get_num_threads() == 2
    assert [one.shape for one in together] == [(1, 32, 60, 60)] * 3
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(alone, together, strict=True))
    assert not torch.allclose(together[0], together[1], atol=1e-1)


@torch.no_grad()
def test_bfloat16_is_as_near_as_autocast_comes_and_leaves_the_weights_alone() -> None:
    cascade = DenseCascade(settled(), None)
    reach = sum(part.margin for part in stage(cascade, "torch").network.parts)
    tile = noise(*[(3 + 8 + 2 * reach) * 10] * 2)
    pixels = tile[0].permute(1, 2, 0).contiguous()
    exact, low = (through(stage(cascade, "torch", bfloat16=way), pixels) for way in (False, True))
    with torch.autocast("cpu", torch.bfloat16):
        logits = cascade.primary(tile)[0, :, reach:-reach, reach:-reach].float()
    usual = logits[1] - logits[0]
    assert low.dtype == torch.float32
    assert 0 < (low - exact).abs().mean() < 1.5 * (usual - exact).abs().mean()
    assert torch.equal(through(stage(cascade, "torch"), pixels), exact)


def test_parts_reach_together_as_far_as_the_network_and_hardly_farther() -> None:
    classifier = settled()
    margins = [part.margin for part in classifier.in_parts().parts]
    assert margins[0] * 10 < 40
    # The less a part reaches the less is computed twice; ResNet's wide maps are kept between two parts only.
    assert max(margins) <= 3 and len(margins) > 4
    assert len(settled("resnet50", input_px=64).in_parts().parts) == 3
    # Each is rounded up to whole cells.
    assert 0 <= sum(margins) * 10 - classifier.halo_px < 30
    assert all(sum(part.cuts) == part.margin for part in classifier.in_parts().parts)
