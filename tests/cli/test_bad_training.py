"""What is too little, too large, torn or of something else to train with gets one line, in either recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from models.downloads import publish, serve, use_url
from studies import STUDY, call, new_image, write_slide, write_study

from hnscc_qp.models.checkpoint import load_card
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import WindowClassifier, build_network
from hnscc_qp.qupath.create import create_project
from hnscc_qp.qupath.objects import PathClass

BEFORE, _, AFTER = STUDY.replace("per_class = 600", "per_class = 48").partition("[training]")
STUDIES = {
    "window": f"{BEFORE}[training]{AFTER}".replace("epochs = 5", "epochs = 1"),
    "dense": BEFORE
    + """\
[training]
recipe = "dense"
weights = "none"
input_px = 32

[training.dense]
tile_px = 80
epochs = 1
epoch_tiles = 8
averaging = 0
"""
    + AFTER[AFTER.index("[mining]") :],
}
KINDS = {"window": WindowClassifier, "dense": DenseClassifier}
RECIPES = tuple(STUDIES)

pytestmark = pytest.mark.usefixtures("one_thread")


def cut(study: Path, recipe: str) -> None:
    """Make what the recipe learns from."""
    assert call("patches", study) == 0
    if recipe == "dense":
        assert call("tiles", study) == 0


@pytest.fixture(scope="module", params=RECIPES)
def cut_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a study whose patches, and tiles, are cut. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp(request.param)
    cut(write_study(folder, text=STUDIES[request.param]), request.param)
    return folder, request.param


@pytest.fixture
def study(cut_once: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """The study file of a copy that a test may change, and its recipe."""
    shutil.copytree(cut_once[0], tmp_path / "copy")
    return tmp_path / "copy" / "study.toml", cut_once[1]


def change(study: Path, before: str, after: str) -> None:
    text = study.read_text()
    assert before in text
    study.write_text(text.replace(before, after))


def primary(study: Path) -> Path:
    return study.parent / "generations" / "001" / "primary"


def the_error(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line."""
    told = capfd.readouterr().err
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("recipe", RECIPES)
def test_side_without_a_class_is_named_when_patches_are_cut_and_when_they_are_missed(
    tmp_path: Path, recipe: str, capfd: pytest.CaptureFixture[str]
) -> None:
    images = []
    for number, tumor in enumerate((True, False, False, False), 1):
        slide = write_slide(tmp_path / "slides" / f"S{number}.tif", tumor=tumor, seed=number)
        images.append(new_image(slide, number=number, tumor=tumor))
    create_project(tmp_path / "project", images, path_classes=[PathClass(("Tumor",), (200, 0, 0))])
    study = tmp_path / "study.toml"
    study.write_text(STUDIES[recipe])
    cut(study, recipe)
    said = "validation gives no patches: its 1 patients have no tumor window; annotate"
    assert said in capfd.readouterr().err
    notes = json.loads((study.parent / "generations/001/patches/manifest.json").read_text())["notes"]
    assert any(said in note for note in notes)
    assert call("train", study) == 1
    missing = {"window": "no nontumor and no tumor patch", "dense": "no tumor window"}[recipe]
    assert f"error: there is {missing} for validation; annotate slides of more patients" in the_error(capfd)
    assert not (primary(study) / "manifest.json").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_ten_patches_make_a_model_whose_figures_are_said_to_be_chance(
    tmp_path: Path, recipe: str, capfd: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, text=STUDIES[recipe])
    change(study, "per_class = 48", "per_class = 5")
    if recipe == "dense":
        change(study, "tile_px = 80", "tile_px = 80\nmax_tiles = 2")
    cut(study, recipe)
    assert call("train", study) == 0
    said = "its figures have no interval and may be chance; annotate slides of more patients"
    assert said in capfd.readouterr().err
    assert said in json.loads((primary(study) / "manifest.json").read_text())["notes"][0]
    assert load_card(primary(study)).figures["validation"]["auc_interval"] is None


def test_loss_that_is_not_a_number_names_its_batch_and_the_remedy(
    study: tuple[Path, str], capfd: pytest.CaptureFixture[str]
) -> None:
    file, recipe = study
    change(file, f"[training.{recipe}]", f"[training.{recipe}]\nlearning_rate = 1e30")
    assert call("train", file) == 1
    error = the_error(capfd)
    assert "the loss is not a number in epoch 1, batch 2 of " in error
    assert "use a smaller learning_rate than " in error
    assert not (primary(file) / "manifest.json").exists()


def limit_memory(monkeypatch: pytest.MonkeyPatch, recipe: str, *, training: int, judging: int) -> None:
    """Let the device hold so many pictures at once in training, and in judging."""
    kind = KINDS[recipe]
    forward = kind.forward

    def limited(classifier: Any, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > (training if classifier.training else judging):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        result: torch.Tensor = forward(classifier, pixels)
        return result

    monkeypatch.setattr(kind, "forward", limited)


def test_batch_that_memory_does_not_hold_is_halved_and_that_is_said(
    study: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file, recipe = study
    limit_memory(monkeypatch, recipe, training={"window": 9, "dense": 2}[recipe], judging=64)
    assert call("train", file) == 0
    told = capfd.readouterr().err
    assert told.count("a batch does not fit into the memory of cpu: it is computed in 2 pieces of ") == 1
    assert (primary(file) / "model.safetensors").exists()


@pytest.mark.parametrize(("training", "judging"), [(0, 64), (64, 0)])
def test_memory_that_is_too_small_for_anything_is_one_line_with_a_remedy(
    study: tuple[Path, str],
    training: int,
    judging: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file, recipe = study
    limit_memory(monkeypatch, recipe, training=training, judging=judging)
    assert call("train", file) == 1
    error = the_error(capfd)
    assert "memory of cpu" in error
    assert "set a smaller" in error and "input_px in [training]" in error
    assert not (primary(file) / "manifest.json").exists()


def test_checkpoint_and_model_of_another_network_are_refused_by_name(
    study: tuple[Path, str], capfd: pytest.CaptureFixture[str]
) -> None:
    file, recipe = study
    assert call("train", file, "--max-minutes", "0") == 0
    change(file, "input_px = 32", "input_px = 64")
    assert call("train", file, "--max-minutes", "0") == 0
    told = capfd.readouterr().err
    assert f"is a training of mobilenet_v2 ({recipe}, 32 px), not of mobilenet_v2 ({recipe}, 64 px)" in told
    assert "training starts anew" in told
    other = build_network("mobilenet_v2", weights="none", seed=7)
    safetensors.torch.save_file(other.state_dict(), primary(file) / "model.safetensors")
    assert call("mine", file) == 1
    assert "model.safetensors" in the_error(capfd)


def test_download_that_breaks_off_is_one_line_and_the_same_command_goes_on(
    study: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file, _ = study
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    saved = publish(tmp_path / "server", torchvision.models.mobilenet_v2())
    change(file, 'weights = "none"', 'weights = "imagenet"')
    with serve(tmp_path / "server") as (handler, address):
        use_url(monkeypatch, f"{address}/{saved.name}")
        handler.breaks = 100
        assert call("train", file) == 1
        error = the_error(capfd)
        assert "ImageNet weights can't be downloaded from http" in error and "run it again" in error
        assert not (primary(file) / "manifest.json").exists()
        handler.breaks = 0
        assert call("train", file, "--max-minutes", "0") == 0
    assert load_card(primary(file)).weights_origin["name"] == saved.name
