"""Stain normalisation, against torchstain and the papers' formulas written out pixel by pixel."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from hnscc_qp.errors import SlideReadError, StudyError
from hnscc_qp.geometry import Mpp, Region
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.slides.stain import (
    NormalisedSlide,
    fit_pixels,
    fit_slide,
    measure_macenko,
    read_fit,
    stain_target,
    write_fit,
)

STAINS = np.array([[0.60, 0.15], [0.70, 0.85], [0.38, 0.50]])


def draw_tissue(shape, *, strength=1.0, seed=3):
    """H&E by Beer and Lambert: nuclei of haematoxylin on eosin, no pixel paler than Macenko's β."""
    rng = np.random.default_rng(seed)
    nuclei = rng.random(shape) < 0.3
    amounts = np.stack(
        [np.where(nuclei, rng.uniform(0.9, 1.7, shape), 0.25), rng.uniform(0.45, 0.9, shape)], axis=-1
    )
    return (240 * np.exp(-strength * amounts @ STAINS.T)).clip(0, 255).astype(np.uint8)


def weaken(pixels, share):
    """The same tissue with `share` of its optical density."""
    return (240 * (np.maximum(pixels, 1) / 240) ** share).clip(0, 255).astype(np.uint8)


@pytest.fixture
def slide(write_slide):
    pixels = np.full((400, 500, 3), 243, np.uint8)
    pixels[40:360, 40:460] = draw_tissue((320, 420))
    return open_slide(write_slide(pixels, mpp=(1.0, 1.0)))


def test_macenko_is_what_torchstain_makes_of_the_same_pixels():
    torchstain = pytest.importorskip("torchstain.numpy.normalizers")
    pixels = draw_tissue((200, 200))
    ours = fit_pixels(pixels.reshape(-1, 3), stain_target("macenko")).apply(pixels)
    theirs, _, _ = torchstain.NumpyMacenkoNormalizer().normalize(pixels, stains=False)
    # Theirs cuts fractions off, ours rounds.
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_macenko_finds_the_stains_that_were_mixed():
    found, _ = measure_macenko(draw_tissue((300, 300)).reshape(-1, 3))
    wanted = STAINS / np.linalg.norm(STAINS, axis=0)
    # Its robust extremes lie between the purest pixels, so the stains come out a little mixed.
    assert (np.einsum("cs,cs->s", found, wanted) > 0.97).all()


def test_reinhard_is_the_papers_formula_pixel_by_pixel():
    pixels = draw_tissue((120, 100))
    ours = fit_pixels(pixels.reshape(-1, 3), stain_target("reinhard")).apply(pixels)

    def lab(colour):
        red, green, blue = (value + 1 for value in map(int, colour))
        long = math.log(0.3811 * red + 0.5783 * green + 0.0402 * blue)
        middle = math.log(0.1967 * red + 0.7244 * green + 0.0782 * blue)
        short = math.log(0.0241 * red + 0.1288 * green + 0.8444 * blue)
        return (
            (long + middle + short) / math.sqrt(3),
            (long + middle - 2 * short) / math.sqrt(6),
            (long - middle) / math.sqrt(2),
        )

    before = np.array([lab(colour) for colour in pixels.reshape(-1, 3)])
    after = np.array([lab(colour) for colour in ours.reshape(-1, 3)])
    target = stain_target("reinhard")
    wanted = (before - before.mean(axis=0)) / before.std(axis=0) * target.second + target.first[0]
    seen = ((ours > 0) & (ours < 255)).all(axis=-1).ravel()
    assert seen.mean() > 0.9
    assert np.abs(after - wanted)[seen].mean() < 0.01


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_a_weakly_stained_slide_comes_out_like_a_strong_one(method):
    strong = draw_tissue((200, 200))
    weak = weaken(strong, 0.6)
    target = stain_target(method)
    one, other = (fit_pixels(some.reshape(-1, 3), target).apply(some) for some in (strong, weak))
    apart = np.abs(strong.astype(int) - weak).mean()
    assert apart > 25
    assert np.abs(one.astype(int) - other).mean() < apart / 5


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_tiles_and_threads_agree_with_one_large_read(slide, method):
    normalised = NormalisedSlide(slide, fit_slide(slide, stain_target(method)))
    mpp = Mpp(1.0)
    whole = normalised.read(Region(0, 0, 500, 400), mpp)
    assert (whole != slide.read(Region(0, 0, 500, 400), mpp)).any()
    places = [(x, y) for y in range(0, 400, 37) for x in range(0, 500, 41)]
    with ThreadPoolExecutor(4) as pool:
        tiles = pool.map(lambda at: normalised.read(Region(*at, 30, 17), mpp), places)
    for (x, y), tile in zip(places, tiles, strict=True):
        cut = whole[y : y + 17, x : x + 30]
        assert (tile[: cut.shape[0], : cut.shape[1]] == cut).all()


def test_glass_stays_light_and_tissue_is_found_as_it_was_scanned(slide):
    normalised = NormalisedSlide(slide, fit_slide(slide, stain_target("macenko")))
    assert normalised.read(Region(0, 0, 30, 30), Mpp(1.0)).min() > 225
    assert normalised.as_scanned is slide
    assert normalised.size == slide.size


def test_a_normalised_slide_goes_to_another_process_with_its_fit(slide):
    normalised = NormalisedSlide(slide, fit_slide(slide, stain_target("macenko")))
    again = pickle.loads(pickle.dumps(normalised))
    region = Region(50, 50, 100, 80)
    assert (again.read(region, Mpp(1.0)) == normalised.read(region, Mpp(1.0))).all()


def test_a_kept_fit_is_read_back_exactly_and_only_under_its_key(slide, tmp_path):
    fit = fit_slide(slide, stain_target("reinhard"))
    write_fit(tmp_path / "fit.json", fit, key="a", image="S1")
    assert read_fit(tmp_path / "fit.json", "a") == fit
    assert read_fit(tmp_path / "fit.json", "b") is None
    (tmp_path / "fit.json").write_text("{")
    assert read_fit(tmp_path / "fit.json", "a") is None


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_too_little_tissue_or_one_colour_leaves_the_slide_as_it_is_and_says_why(write_slide, method):
    blank = open_slide(write_slide(np.full((200, 200, 3), 243, np.uint8), mpp=(1.0, 1.0), name="blank.tif"))
    fit = fit_slide(blank, stain_target(method))
    assert "0 pixels of stained tissue" in fit.fallback
    pixels = draw_tissue((20, 20))
    assert (fit.apply(pixels) == pixels).all()
    plain = np.full((20_000, 3), (200, 120, 170), np.uint8)
    assert fit_pixels(plain, stain_target(method)).fallback == "its tissue shows one colour only"


def test_a_damaged_tile_does_not_keep_a_slide_from_being_fitted(slide, monkeypatch):
    whole = fit_slide(slide, stain_target("macenko"))
    read = slide.read

    def read_with_hole(region, mpp):
        if mpp == 1.0 and region.y < 120:
            raise SlideReadError("a.tif can't be read")
        return read(region, mpp)

    monkeypatch.setattr(slide, "read", read_with_hole)
    fit = fit_slide(slide, stain_target("macenko"))
    assert fit.pixels < whole.pixels
    assert np.allclose(fit.matrix, whole.matrix, atol=0.05)


def test_a_reference_picture_sets_the_target(tmp_path):
    Image.fromarray(draw_tissue((150, 150), strength=1.3)).save(tmp_path / "reference.png")
    target = stain_target("macenko", tmp_path / "reference.png")
    weak = draw_tissue((150, 150), strength=0.7)
    moved = fit_pixels(weak.reshape(-1, 3), target).apply(weak)
    assert np.abs(moved.astype(int) - draw_tissue((150, 150), strength=1.3)).mean() < 8
    assert target.as_json() != stain_target("macenko").as_json()


def test_a_bad_reference_is_one_clear_line(tmp_path):
    Image.new("RGB", (300, 300), "white").save(tmp_path / "white.png")
    with pytest.raises(StudyError, match=r"white\.png: 0 pixels of stained tissue"):
        stain_target("macenko", tmp_path / "white.png")
    with pytest.raises(StudyError, match=r"gone\.png can't be read"):
        stain_target("macenko", tmp_path / "gone.png")
