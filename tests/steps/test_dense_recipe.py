"""The dense recipe through the command line: tiles, training, mining and the secondary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from shapely.geometry import box
from studies import STUDY, TUMOR_BOX, write_study
from test_run import call

import hnscc_qp
from hnscc_qp.geometry import WINDOW_MPP, Mpp, PixelSize, Region
from hnscc_qp.models.checkpoint import load_model, save_model
from hnscc_qp.patches.labels import Label
from hnscc_qp.progress import SILENT
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.lessons import as_long_as
from hnscc_qp.steps.trained import load_cascade
from hnscc_qp.study import DenseRecipe, Training
from hnscc_qp.studyfile import load_study

DENSE = (
    STUDY[: STUDY.index("[training]")]
    + """\
[training]
recipe = "dense"
weights = "none"
input_px = 32

[training.dense]
tile_px = 120
epochs = 2
epoch_tiles = 8
averaging = 0.5

[mining]
min_false_positives = 10
"""
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with tiles and a primary. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("dense")
    study = write_study(folder, text=DENSE)
    for command in ("patches", "tiles", "train"):
        assert call(command, study) == 0
    return folder


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy" / "study.toml"


def step(folder: Path, name: str) -> Path:
    return folder / "generations" / "001" / name


def manifest(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((step(folder, name) / "manifest.json").read_text())


def rows(folder: Path, name: str, part: str) -> list[dict[str, Any]]:
    return pq.read_table(step(folder, name) / part / "tiles.parquet").to_pylist()


def test_tiles_hold_the_slides_pixels_and_the_label_of_every_window(trained: Path) -> None:
    tumor, tissue = box(*TUMOR_BOX), box(20, 20, 380, 300)
    checked = 0
    for part in ("development", "test"):
        pixels = np.load(step(trained, "tiles") / part / "tiles.npy")
        labels = np.load(step(trained, "tiles") / part / "labels.npy")
        for row, tile, label in zip(rows(trained, "tiles", part), pixels, labels, strict=True):
            slide = open_slide(trained / "slides" / row["slide"], pixel_size=PixelSize(Mpp(1.0), Mpp(1.0)))
            seen = slide.read(Region(row["x_qupath"], row["y_qupath"], 480, 480), WINDOW_MPP)
            np.testing.assert_array_equal(tile, seen)
            positive = int(row["slide"][1]) % 2 == 1
            for (top, left), value in np.ndenumerate(label):
                window = box(left * 10, top * 10, left * 10 + 40, top * 10 + 40)
                if left * 10 + 40 > 400 or top * 10 + 40 > 320:
                    assert value == 2
                elif positive and window.intersection(tumor).area > 0:
                    assert value == 1
                elif (
                    window.intersection(tissue).area > 300
                ):  # also at the tissue's edge, as scoring looks there
                    assert value == 0
                elif window.intersection(tissue).area == 0:
                    assert value == 2
                checked += value != 2
    counted = manifest(trained, "tiles")["counts"]["windows"]
    assert checked == sum(sum(side.values()) for side in counted.values())


def test_tiles_of_test_patients_lie_apart(trained: Path) -> None:
    sides = {part: {row["side"] for row in rows(trained, "tiles", part)} for part in ("development", "test")}
    assert sides == {"development": {"train", "validation"}, "test": {"test"}}


def test_dense_primary_is_judged_by_all_windows_of_both_sides(trained: Path) -> None:
    counted = manifest(trained, "tiles")["counts"]["windows"]
    card = json.loads((step(trained, "primary") / "model.json").read_text())
    assert (card["recipe"], card["input_px"]) == ("dense", 32)
    for side in ("validation", "test"):
        assert card["figures"][side]["n"] == sum(counted[side].values())
    assert not (step(trained, "primary") / "training.safetensors").exists()  # it is done
    assert (step(trained, "primary") / "log.csv").read_text().count("\n") == 3


def make_it_call_everything_tumor(folder: Path) -> None:
    """Also say so in the manifest, as later steps read there which model it is."""
    place = step(folder, "primary")
    classifier, card = load_model(place)
    head = classifier.network.get_submodule("classifier.1")
    with torch.no_grad():
        head.bias[1] += 100
    saved = save_model(
        place,
        classifier,
        stage="primary",
        training=Training(),
        weights_origin=card.weights_origin,
        data_sha256=card.data_sha256,
        patients=card.patients,
        figures={},
        device="cpu",
        seconds=1,
    )
    done = manifest(folder, "primary")
    done["outputs"] = {"primary model": saved.sha256}
    (place / "manifest.json").write_text(json.dumps(done))


def test_mined_tiles_count_false_positives_and_as_many_tumor_windows_only(study: Path) -> None:
    make_it_call_everything_tumor(study.parent)
    assert call("mine", study) == 0
    found = manifest(study.parent, "mine")["counts"]["false positives"]
    easy = np.load(step(study.parent, "tiles") / "development" / "labels.npy")
    easy_rows = rows(study.parent, "tiles", "development")
    labels = np.load(step(study.parent, "mine") / "development" / "labels.npy")
    tiles = rows(study.parent, "mine", "development")
    for side in ("train", "validation"):
        counted = sum(
            (one == 1).sum() for one, row in zip(easy, easy_rows, strict=True) if row["side"] == side
        )
        of_side = [one for one, row in zip(labels, tiles, strict=True) if row["side"] == side]
        expected = min(found[side], counted)
        assert expected > 100
        assert [sum(int((one == value).sum()) for one in of_side) for value in (0, 1)] == [expected] * 2
    for row, label in zip(tiles, labels, strict=True):
        positive = int(row["slide"][1]) % 2 == 1
        assert {0, 1} & set(np.unique(label).tolist()) == {int(positive)}
        if not positive:  # every 20 px
            assert (np.argwhere(label == 0) % 2 == 0).all()


def called_tumor(folder: Path, model: Path) -> list[np.ndarray]:
    """Of the validation windows that a secondary is judged on, nontumor and tumor: what a model calls."""
    classifier, _ = load_model(model)
    labels = np.load(step(folder, "mine") / "development" / "labels.npy")
    pixels = np.load(step(folder, "mine") / "development" / "tiles.npy")
    found: list[list[np.ndarray]] = [[], []]
    for one, label, row in zip(pixels, labels, rows(folder, "mine", "development"), strict=True):
        if row["side"] == "validation":
            with torch.inference_mode():
                logits = classifier(torch.from_numpy(one).permute(2, 0, 1)[None])[0].numpy()
            for value in (0, 1):
                found[value].append((logits[1] > logits[0])[label == value])
    return [np.concatenate(some) for some in found]


def test_secondary_is_used_only_where_it_is_worth_it_and_that_is_said(
    study: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_it_call_everything_tumor(study.parent)
    assert call("mine", study) == 0
    assert call("train", study, "--stage", "secondary") == 0
    done = manifest(study.parent, "secondary")
    places = [step(study.parent, name) for name in ("primary", "secondary")]
    if not done["counts"]["trained"]:
        assert "takes no tumor window" in done["notes"][0]
        pytest.fail("the secondary learnt nothing; choose another seed")
    card = json.loads((places[1] / "model.json").read_text())
    assert card["recipe"] == "dense" and card["use"] == done["notes"][0]
    beside = done["counts"]["beside a stricter primary"]
    (false, true), (false_too, true_too) = (called_tumor(study.parent, place) for place in places)
    assert (beside["primary_true"], beside["primary_false"]) == (true.sum(), false.sum())
    assert (beside["cascade_true"], beside["cascade_false"]) == (
        (true & true_too).sum(),
        (false & false_too).sum(),
    )
    assert done["counts"]["kept"] is beside["better"]
    assert done["notes"][0] in " ".join(capfd.readouterr().out.split())
    cascade, models = load_cascade(Context(load_study(study), progress=SILENT))
    assert (cascade.secondary is not None) == ("secondary model" in models) == done["counts"]["kept"]


def test_secondary_is_not_shown_a_few_pieces_for_as_long_as_the_primary_is_shown_many() -> None:
    recipe = DenseRecipe(tile_px=240, epoch_tiles=800, batch_size=4)
    assert as_long_as(recipe, 26) == recipe.model_copy(update={"epoch_tiles": 104})
    assert as_long_as(recipe, 500) == recipe
    assert as_long_as(recipe.model_copy(update={"tile_px": 480}), 1).epoch_tiles == 4  # a whole batch
    assert as_long_as(recipe.model_copy(update={"tile_px": 200}), 2).epoch_tiles == 18


def test_time_that_is_over_is_said_and_the_same_command_goes_on(
    study: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = manifest(study.parent, "primary")["outputs"]
    assert call("train", study, "--force", "--max-minutes", "0") == 0
    assert "stopped by --max-minutes" in capfd.readouterr().err
    assert manifest(study.parent, "primary")["counts"]["out of time"]
    assert call("train", study) == 0
    assert "goes on from epoch 1, batch 2 of 2" in capfd.readouterr().err
    assert manifest(study.parent, "primary")["outputs"] == before  # as if it had not been stopped


def test_tiles_need_patches_and_training_needs_tiles(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, text=DENSE)
    assert call("tiles", study) == 1
    assert "has no patches yet; run: hnscc-qp patches" in capfd.readouterr().err
    assert call("patches", study) == 0
    assert call("train", study) == 1
    assert "has no tiles yet; run: hnscc-qp tiles" in capfd.readouterr().err


def test_windows_on_a_damaged_tile_are_ignored_and_the_rest_of_the_piece_is_learnt_from(
    trained: Path, tmp_path: Path
) -> None:
    study = write_study(tmp_path, text=DENSE)
    with tifffile.TiffFile(tmp_path / "slides" / "S1.tif") as tiff:  # 128 px: rows and columns 128 to 256
        offset, count = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    with (tmp_path / "slides" / "S1.tif").open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)
    assert call("patches", study) == 0
    assert call("tiles", study) == 0
    labels = {}
    for folder in (trained, tmp_path):
        for part in ("development", "test"):
            found = np.load(step(folder, "tiles") / part / "labels.npy")
            for row, label in zip(rows(folder, "tiles", part), found, strict=True):
                if row["entry_id"] == "1" and (row["x_px"], row["y_px"]) == (0, 0):
                    labels[folder] = label
    at = np.arange(45) * 10
    touched = (at + 40 > 128) & (at < 256)
    damaged = np.ix_(touched, touched)
    assert (labels[trained][damaged] == Label.TUMOR).any()
    assert (labels[tmp_path][damaged] == Label.IGNORED).all()
    beside = labels[trained].copy()
    beside[damaged] = Label.IGNORED
    assert (labels[tmp_path] == Label.TUMOR).sum() == (beside == Label.TUMOR).sum() > 0
    (note,) = manifest(tmp_path, "tiles")["notes"]
    assert "S1.tif: " in note and "can't be decoded and are ignored" in note


def test_two_processes_train_one_model_and_the_first_tells(study: Path) -> None:
    shutil.rmtree(step(study.parent, "primary"))
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hnscc_qp", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(hnscc_qp.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *run, study], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("primary model: best of 2 epochs") == 1
    folder = step(study.parent, "primary")
    card = json.loads((folder / "model.json").read_text())
    history = json.loads((folder / "history.json").read_text())
    best = history["history"][history["best_epoch"] - 1]
    # What all judged a share of each is what the first one kept and judged alone.
    assert card["figures"]["validation"]["auc"] == pytest.approx(best["validation_auc"], abs=1e-6)
    assert card["figures"]["validation"]["accuracy"] == pytest.approx(best["validation_accuracy"], abs=1e-6)
