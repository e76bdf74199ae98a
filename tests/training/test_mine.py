from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.slides.reader import Slide, open_slide
from hnscc_qp.study import Mining, Scoring
from hnscc_qp.training.mine import mine_slide, pair_with_tumor, thin, why_no_secondary

CPU = torch.device("cpu")
PINK, PURPLE = (225, 140, 190), (120, 60, 140)


class DarkClassifier(torch.nn.Module):
    """Says tumor where the mean is below 130; the logits' margin is the distance to that."""

    temperature = 2.0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        margin = (130 - windows.float().mean(dim=(1, 2, 3))) / 10
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[Slide, np.ndarray]:
    """400 × 320 px at 1.0 µm/px: pink tissue with a purple disc, glass at the right."""
    pixels = np.full((320, 400, 3), 245, np.uint8)
    pixels[:, :300] = PINK
    y, x = np.mgrid[:320, :400]
    pixels[(x - 130) ** 2 + (y - 150) ** 2 < 60**2] = PURPLE
    path = tmp_path / "negative.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb")
    return open_slide(path, pixel_size=PixelSize(Mpp(1.0), Mpp(1.0))), pixels


def mine(slide: Slide, batch_size: int = 16):
    return mine_slide(
        slide,
        primary=DarkClassifier(),
        device=CPU,
        settings=Mining(),
        scoring=Scoring(batch_size=batch_size),
    )


def test_false_positives_are_the_windows_called_tumor_every_twenty_px(
    drawn: tuple[Slide, np.ndarray],
) -> None:
    slide, pixels = drawn
    mined = mine(slide)
    wanted = {
        (x, y)
        for y in range(0, 281, 20)
        for x in range(0, 361, 20)
        if pixels[y : y + 40, x : x + 40].mean() < 130
    }
    assert len(wanted) > 5
    assert {tuple(origin) for origin in mined.origins.tolist()} == wanted
    assert len(mined) == len(wanted)
    assert mined.scanned > len(mined)
    for (x, y), cut in zip(mined.origins, mined.pixels, strict=True):
        np.testing.assert_array_equal(cut, pixels[y : y + 40, x : x + 40])


def test_probabilities_are_the_primarys_at_its_temperature(drawn: tuple[Slide, np.ndarray]) -> None:
    mined = mine(drawn[0])
    margin = (130 - mined.pixels.mean(axis=(1, 2, 3))) / 10
    np.testing.assert_allclose(mined.probabilities, 1 / (1 + np.exp(-margin / 2)), rtol=1e-4)
    assert (mined.probabilities > 0.5).all()


def test_batches_do_not_change_what_is_mined(drawn: tuple[Slide, np.ndarray]) -> None:
    one, other = mine(drawn[0], batch_size=1), mine(drawn[0], batch_size=1000)
    np.testing.assert_array_equal(one.origins, other.origins)
    np.testing.assert_array_equal(one.pixels, other.pixels)


def test_slide_without_false_positives_gives_none(tmp_path: Path) -> None:
    path = tmp_path / "clean.tif"
    tifffile.imwrite(path, np.full((160, 160, 3), PINK, np.uint8), tile=(64, 64), photometric="rgb")
    mined = mine(open_slide(path, pixel_size=PixelSize(Mpp(1.0), Mpp(1.0))))
    assert len(mined) == 0
    assert mined.pixels.shape == (0, 40, 40, 3)
    assert mined.scanned > 0


def test_too_few_false_positives_leave_the_primary_alone_and_say_so() -> None:
    settings = Mining(min_false_positives=10)
    assert why_no_secondary({"training": 8, "validation": 2}, settings) is None
    sentence = why_no_secondary({"training": 8, "validation": 1}, settings)
    assert sentence is not None and "9 false positives" in sentence and "primary alone" in sentence
    sentence = why_no_secondary({"training": 12, "validation": 0}, settings)
    assert sentence is not None and "for validation" in sentence


def test_as_many_tumor_patches_are_drawn_as_there_are_false_positives() -> None:
    false_positives, tumor = np.arange(100, 110), np.arange(0, 100, 2)
    some, drawn = pair_with_tumor(false_positives, tumor, seed=1)
    np.testing.assert_array_equal(some, false_positives)
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(tumor)
    np.testing.assert_array_equal(drawn, pair_with_tumor(false_positives, tumor, seed=1)[1])
    assert not np.array_equal(drawn, pair_with_tumor(false_positives, tumor, seed=2)[1])


def test_false_positives_are_thinned_where_tumor_patches_are_fewer() -> None:
    some, drawn = pair_with_tumor(np.arange(50), np.arange(100, 105), seed=1)
    np.testing.assert_array_equal(drawn, np.arange(100, 105))
    assert len(set(some)) == 5


def test_thinned_windows_keep_their_distance_and_the_surest() -> None:
    generator = np.random.default_rng(3)
    origins = generator.choice(40, (150, 2)) * 10
    probabilities = generator.uniform(0.5, 1, 150).astype(np.float32)
    kept = thin(origins, probabilities, min_distance_px=60)
    between = np.linalg.norm(origins[kept][:, None] - origins[kept][None], axis=2)
    np.fill_diagonal(between, np.inf)
    assert between.min() >= 60
    assert probabilities.argmax() in kept
    for index in set(range(150)) - set(kept.tolist()):
        near = kept[np.linalg.norm(origins[kept] - origins[index], axis=1) < 60]
        assert (probabilities[near] >= probabilities[index]).any()  # a surer one stands for it
    np.testing.assert_array_equal(thin(origins, probabilities, min_distance_px=0), np.arange(150))


def test_dense_primary_is_asked_as_it_would_answer_on_the_whole_slide(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    blocks = generator.integers(-60, 30, (24, 30, 3)).repeat(10, axis=0).repeat(10, axis=1)
    pixels = (np.array(PINK) + blocks).clip(0, 255).astype(np.uint8)
    path = tmp_path / "speckled.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb")
    slide = open_slide(path, pixel_size=PixelSize(Mpp(1.0), Mpp(1.0)))
    primary = DenseClassifier("mobilenet_v2", input_px=128, seed=2)
    for module in primary.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the running statistics become those of this one slide
    halo = primary.halo_px
    whole = np.pad(pixels, ((halo, halo), (halo, halo), (0, 0)), constant_values=255)
    with torch.no_grad():
        tile = torch.from_numpy(whole).permute(2, 0, 1)[None]
        primary.train()(tile)
        logits = primary.eval()(tile)[0].numpy()
        margin = (logits[1] - logits[0])[halo // 10 :, halo // 10 :][:21, :27]
        middle = float(np.median(margin))
        primary.network.get_submodule("classifier.1").bias[0] += middle
    mined = mine_slide(slide, primary=primary, device=CPU, settings=Mining(), scoring=Scoring())
    found = {tuple(origin) for origin in mined.origins.tolist()}
    slack = 0.01 * float(margin.std())  # batch norms are folded, and round
    places = [(x, y) for y in range(0, 201, 20) for x in range(0, 261, 20)]
    sure = {(x, y) for x, y in places if margin[y // 10, x // 10] > middle + slack}
    sure_not = {(x, y) for x, y in places if margin[y // 10, x // 10] < middle - slack}
    assert len(sure) > 20 and len(sure_not) > 20
    assert sure <= found and not sure_not & found
    for (x, y), cut in zip(mined.origins, mined.pixels, strict=True):
        np.testing.assert_array_equal(cut, pixels[y : y + 40, x : x + 40])
