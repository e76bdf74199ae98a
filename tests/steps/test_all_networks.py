"""`train --all-networks`, as a user runs it, on a drawn cohort that is cut down to some dozens of patches.

Of the four networks the two small ones are trained here; the ResNets would take a minute and a gigabyte.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from sklearn.metrics import roc_auc_score
from studies import STUDY, write_study
from test_run import call

from hnscc_qp.models.checkpoint import load_model
from hnscc_qp.patches.dataset import open_development
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.training.evaluate import predict

SMALL = (
    STUDY.replace("per_class = 600", "per_class = 32")
    .replace("epochs = 5", "epochs = 1")
    .replace("stride_px = 10", "stride_px = 40")
)


SOME = ("googlenet", "mobilenet_v2")


@pytest.fixture(scope="module", autouse=True)
def _small_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hnscc_qp.steps.networks.NETWORKS", SOME)
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study whose networks were compared once. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("compared")
    study = write_study(folder, text=SMALL)
    assert call("patches", study) == 0
    assert call("train", study, "--all-networks") == 0
    return folder


@pytest.fixture
def study(compared: Path, tmp_path: Path) -> Path:
    """The study file of a copy that a test may change."""
    shutil.copytree(compared, tmp_path / "copy")
    return tmp_path / "copy" / "study.toml"


def read(folder: Path, *where: str) -> Any:
    return json.loads(folder.joinpath("generations", "001", *where).read_text(encoding="utf-8"))


def written(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("manifest.json"))
    }


def test_table_2_has_every_network_with_its_depth_size_and_figures(compared: Path) -> None:
    rows = read(compared, "networks", "table2.json")
    assert [(row["network"], row["depth"]) for row in rows] == [("googlenet", 22), ("mobilenet_v2", 53)]
    # torchvision's own sizes, less the 998 classes that fell away.
    features = {"googlenet": 1024, "mobilenet_v2": 1280}
    for row in rows:
        size = torchvision.models.get_model_weights(row["network"]).DEFAULT.meta["num_params"]
        assert row["parameters"] == size - 998 * (features[row["network"]] + 1)
        card = read(compared, "networks", row["network"], "model.json")
        assert row["validation auc"] == card["figures"]["validation"]["auc"]
        assert row["test accuracy"] == card["figures"]["test"]["accuracy"]


def test_csv_and_markdown_say_what_the_json_says(compared: Path) -> None:
    folder = compared / "generations" / "001" / "networks"
    rows = read(compared, "networks", "table2.json")
    with (folder / "table2.csv").open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    for row, line in zip(rows, table, strict=True):
        assert float(line["validation accuracy"]) == row["validation accuracy"]
        low, high = row["validation accuracy wilson"]
        assert (
            float(line["validation accuracy wilson low"]),
            float(line["validation accuracy wilson high"]),
        ) == (low, high)
    text = (folder / "table2.md").read_text(encoding="utf-8")
    assert "Research use only" in text
    for row in rows:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {row['network']} ")]
        assert f"{row['validation auc']:.3f}" in line
        assert ("the primary" in line) == row["chosen"]


def test_the_best_on_validation_is_the_primary_to_the_last_byte(compared: Path) -> None:
    rows = read(compared, "networks", "table2.json")
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["validation auc"] == max(row["validation auc"] for row in rows)
    generation = compared / "generations" / "001"
    source = generation / "networks" / chosen["network"]
    for path in source.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert (generation / "primary" / path.relative_to(source)).read_bytes() == path.read_bytes()
    classifier, card = load_model(generation / "primary")
    assert card.network == chosen["network"]
    # The AUC in the table is that of the model in the folder, on the patches in the folder.
    members = read_members(generation / "patches")
    patches = open_development(generation / "patches", members)
    idx = patches.on("validation")
    probabilities = predict(classifier, patches.pixels[idx], device=torch.device("cpu"))
    auc = roc_auc_score(patches.label[idx], probabilities)
    assert chosen["validation auc"] == pytest.approx(auc)


def test_what_is_done_is_not_done_again(study: Path) -> None:
    before = written(study.parent / "generations" / "001")
    assert call("train", study, "--all-networks") == 0
    assert call("train", study) == 0  # the choice stands
    after = written(study.parent / "generations" / "001")
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"networks/manifest.json"}

    shutil.rmtree(study.parent / "generations" / "001" / "networks" / "mobilenet_v2")
    assert call("train", study, "--all-networks") == 0
    again = written(study.parent / "generations" / "001")
    assert again["networks/googlenet/manifest.json"] == before["networks/googlenet/manifest.json"]
    # Trained once more, from the same seed: the same model.
    first, second = (json.loads(found["networks/mobilenet_v2/manifest.json"][1]) for found in (before, again))
    assert first["outputs"] == second["outputs"]


def test_choice_does_not_hold_for_other_settings(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = read(study.parent, "networks", "manifest.json")["outputs"]["chosen network"]
    study.write_text(study.read_text().replace("batch_size = 16", "batch_size = 8"))
    assert call("train", study) == 0
    assert (
        f"the choice of {chosen} among the networks was made with other data or settings"
        in capfd.readouterr().err
    )
    assert read(study.parent, "primary", "model.json")["network"] == "mobilenet_v2"


def test_network_without_weights_is_named_and_the_others_are_done(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    safetensors.torch.save_file(
        torchvision.models.mobilenet_v2().state_dict(), weights / "mobilenet_v2-made.safetensors"
    )
    assert call("train", study, "--all-networks", "--weights", weights) == 2
    told = capfd.readouterr()
    assert "holds no weights of googlenet; put googlenet.safetensors" in told.err
    manifest = read(study.parent, "networks", "manifest.json")
    assert set(manifest["failed"]) == {"googlenet"}
    assert manifest["outputs"]["chosen network"] == "mobilenet_v2"
    card = read(study.parent, "primary", "model.json")
    assert card["weights_origin"]["name"] == "mobilenet_v2-made.safetensors"
    assert "mobilenet_v2" in told.out


def test_nothing_is_chosen_where_every_network_fails(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = written(study.parent / "generations" / "001" / "primary")
    (tmp_path / "empty").mkdir()
    assert call("train", study, "--all-networks", "--weights", tmp_path / "empty") == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "holds no weights of googlenet" in last
    assert written(study.parent / "generations" / "001" / "primary") == before


def test_dense_recipe_leaves_googlenet_out_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dense = "[training.dense]\nepochs = 1\nepoch_tiles = 8\ntile_px = 80\n\n[mining]"
    study = write_study(
        tmp_path, text=SMALL.replace('recipe = "window"', 'recipe = "dense"').replace("[mining]", dense)
    )
    assert call("patches", study) == 0
    assert call("train", study, "--all-networks") == 1
    assert "has no tiles yet; run: hnscc-qp tiles" in capfd.readouterr().err
    assert call("tiles", study) == 0
    assert call("train", study, "--all-networks") == 0
    assert "googlenet has no dense form and is left out" in capfd.readouterr().out
    (row,) = read(tmp_path, "networks", "table2.json")
    assert (row["network"], row["recipe"], row["chosen"]) == ("mobilenet_v2", "dense", True)
    assert load_model(tmp_path / "generations" / "001" / "primary", recipe="dense")[1].output_stride_px == 8


def test_networks_are_candidates_for_the_primary_only(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("train", study, "--all-networks", "--stage", "secondary") == 1
    assert "--all-networks chooses the primary" in capfd.readouterr().err
