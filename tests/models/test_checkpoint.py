from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hnscc_qp.errors import CheckpointError
from hnscc_qp.models import checkpoint
from hnscc_qp.models.checkpoint import ModelCard, load_model, save_model
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.networks import NETWORKS, WindowClassifier
from hnscc_qp.study import Training


def save(folder: Path, classifier: WindowClassifier | DenseClassifier, **values: Any) -> ModelCard:
    made: dict[str, Any] = {
        "stage": "primary",
        "training": Training(recipe="window", weights="none", input_px=32, seed=4),
        "weights_origin": {"name": "none", "sha256": None},
        "data_sha256": "ab" * 32,
        "patients": {"training": 7, "validation": 3},
        "figures": {},
        "device": "cpu",
        "seconds": 1.5,
    }
    return save_model(folder, classifier, **made | values)


@pytest.fixture
def classifier(windows: torch.Tensor) -> WindowClassifier:
    made = WindowClassifier("mobilenet_v2", input_px=32, seed=4)
    with torch.no_grad():
        made.train()(windows)
    return made.eval()


@pytest.fixture
def folder(tmp_path: Path, classifier: WindowClassifier) -> Path:
    save(tmp_path / "model", classifier)
    return tmp_path / "model"


def change_card(folder: Path, **values: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def replace_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights, under their right hash."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    change_card(folder, sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def test_model_comes_back_as_it_was_saved(
    folder: Path, classifier: WindowClassifier, windows: torch.Tensor
) -> None:
    loaded, card = load_model(folder)
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(windows), classifier(windows))
    assert card == save(folder, classifier)
    assert card.training["seed"] == 4
    assert "window" in card.training and "dense" not in card.training  # the recipe that was not used
    assert card.patients == {"training": 7, "validation": 3}


def test_same_weights_give_the_same_file(folder: Path, classifier: WindowClassifier) -> None:
    before = (folder / "model.safetensors").read_bytes()
    save(folder, classifier)
    assert (folder / "model.safetensors").read_bytes() == before


def test_card_tells_what_the_model_is_and_what_it_is_for(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    assert card["classes"] == ["nontumor", "tumor"]
    assert card["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert "Research use only" in card["intended_use"]
    assert card["versions"]["torch"] and card["weights_origin"] == {"name": "none", "sha256": None}


def test_card_names_the_weights_but_not_where_they_lay(tmp_path: Path, classifier: WindowClassifier) -> None:
    card = save(
        tmp_path,
        classifier,
        training=Training(recipe="window", weights=str(tmp_path / "start.safetensors"), input_px=32),
        weights_origin={"name": "start.safetensors", "sha256": "cd" * 32},
    )
    assert card.training["weights"] == "start.safetensors"
    assert str(tmp_path) not in (tmp_path / "model.json").read_text()


def test_weights_are_plain_tensors_under_a_json_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header["network.classifier.1.bias"]["shape"] == [2]
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json", "model.md"}


def test_changed_byte_of_the_weights_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is not the file that model\.json describes"):
        load_model(folder)


def test_stop_between_weights_and_card_leaves_nothing_that_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        save(folder, WindowClassifier("mobilenet_v2", input_px=32, seed=5))
    with pytest.raises(CheckpointError, match="its hash differs"):
        load_model(folder)


def test_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model in"):
        load_model(tmp_path)


def test_missing_weights_are_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be read"):
        load_model(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": "vgg16"}, "unknown network 'vgg16', known are googlenet, mobilenet_v2"),
        ({"format_version": 3}, "has format 3, this program reads up to 2"),
        ({"window_px": 80}, "'window_px'"),
        ({"window_mpp": 0.5}, "'window_mpp' is 0.5, this program knows only 1.0"),
        ({"recipe": "whole slide"}, "'recipe'"),
        ({"temperature": 0}, "'temperature'"),
        ({"network": "googlenet"}, "'mean' is"),
        ({"classes": ["tumor", "nontumor"]}, "'classes' is"),
        ({"mean": [0, 0, 0]}, "'mean' is"),
        ({"input_px": 4}, "'input_px'"),
        ({"stage": "tertiary"}, "'stage'"),
    ],
)
def test_card_that_does_not_fit_is_refused_by_key(folder: Path, values: dict[str, Any], message: str) -> None:
    change_card(folder, **values)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"recipe": "dense"}, "has the recipe 'window', 'dense' is needed"),
        ({"network": "resnet50"}, "has the network 'mobilenet_v2', 'resnet50' is needed"),
    ],
)
def test_model_that_is_not_asked_for_is_refused_by_name(
    folder: Path, wanted: dict[str, Any], message: str
) -> None:
    load_model(folder, recipe="window", network="mobilenet_v2")
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, **wanted)


def test_weights_of_another_network_under_this_card_are_named(folder: Path) -> None:
    other = WindowClassifier("googlenet", input_px=32)
    replace_weights(folder, {name: tensor.contiguous() for name, tensor in other.state_dict().items()})
    with pytest.raises(CheckpointError, match=r"is not a mobilenet_v2: network\.features\S+ is missing"):
        load_model(folder)


def test_weights_cut_short_are_noticed_with_and_without_their_hash(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="its hash differs"):
        load_model(folder)
    change_card(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="is not safetensors"):
        load_model(folder)


def test_model_of_format_1_still_loads(folder: Path, windows: torch.Tensor) -> None:
    # The keys that version 0.1.0 wrote, no more.
    card = json.loads((folder / "model.json").read_text())
    new = ("recipe", "parameters", "output_stride_px", "stain", "temperature", "temperature_reason")
    old = {key: value for key, value in card.items() if key not in new} | {"format_version": 1}
    before = load_model(folder)[0](windows)
    (folder / "model.json").write_text(json.dumps(old))
    loaded, read = load_model(folder)
    assert torch.equal(loaded(windows), before)
    assert (read.recipe, read.temperature, read.stain) == ("window", 1.0, None)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_comes_back_with_its_normalisation_and_temperature(
    tmp_path: Path, network: str, windows: torch.Tensor
) -> None:
    made = WindowClassifier(network, input_px=32, seed=3).eval()
    card = save(tmp_path, made, temperature=1.7, temperature_reason="on validation")
    loaded, _ = load_model(tmp_path)
    assert loaded.temperature == 1.7
    assert card.parameters == sum(one.numel() for one in made.network.parameters())
    with torch.inference_mode():
        assert torch.equal(loaded(windows[:2]), made(windows[:2]))


def test_dense_model_comes_back_dense_and_a_card_of_another_stride_is_refused(
    tmp_path: Path, windows: torch.Tensor
) -> None:
    made = DenseClassifier("mobilenet_v2", input_px=32, seed=3).eval()
    card = save(tmp_path, made)
    assert (card.recipe, card.output_stride_px) == ("dense", 8)
    assert "| output stride | 8 px |" in (tmp_path / "model.md").read_text(encoding="utf-8")
    loaded, _ = load_model(tmp_path, recipe="dense")
    with torch.inference_mode():
        assert torch.equal(loaded(windows[:2]), made(windows[:2]))
    with pytest.raises(CheckpointError, match="has the recipe 'dense', 'window' is needed"):
        load_model(tmp_path, recipe="window")
    change_card(tmp_path, output_stride_px=16)
    with pytest.raises(CheckpointError, match="has an output stride of 16 px, this program knows only 8 px"):
        load_model(tmp_path)
    change_card(tmp_path, output_stride_px=8, network="googlenet", mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(CheckpointError, match="the model card contradicts itself"):
        load_model(tmp_path)


def test_card_for_people_says_what_the_one_for_programs_says(
    folder: Path, classifier: WindowClassifier
) -> None:
    figures = {
        "n": 1200,
        "accuracy": 0.975,
        "accuracy_interval": [0.95, 0.99],
        "auc": 0.9957,
        "auc_interval": None,
    }
    card = save(folder, classifier, figures={"validation": figures}, temperature=1.25)
    text = (folder / "model.md").read_text(encoding="utf-8")
    assert "Research use only" in text
    assert card.intended_use in text and card.limits in text
    assert "| validation | 1,200 | 97.5 % (95.0 % to 99.0 %) | none | none | 0.996 | none |" in text
    assert "Temperature: 1.25" in text
    for value in (card.sha256, card.data_sha256, f"| patients, training | {card.patients['training']} |"):
        assert value in text
    assert f"| seed | {card.training['seed']} |" in text
    # Every row of a table has as many cells as its head: a value with a bar does not break it.
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({line.replace("\\|", "").count("|") for line in block}) == 1 for block in blocks)


def test_card_of_something_else_is_refused(folder: Path) -> None:
    for text in ("{", "[]", '{"name": "other"}'):
        (folder / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"model\.json"):
            load_model(folder)


def test_tensors_that_do_not_fit_are_named(folder: Path, classifier: WindowClassifier) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    replace_weights(folder, {**tensors, "network.classifier.1.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"network\.classifier\.1\.bias is \(3,\), not \(2,\)"):
        load_model(folder)
    replace_weights(folder, {k: v for k, v in tensors.items() if k != "network.features.0.0.weight"})
    with pytest.raises(CheckpointError, match=r"network\.features\.0\.0\.weight is missing"):
        load_model(folder)
    replace_weights(folder, {**tensors, "network.classifier.1.bias": torch.tensor([0.0, torch.nan])})
    with pytest.raises(CheckpointError, match="not numbers"):
        load_model(folder)


def test_hash_of_what_is_not_safetensors_does_not_make_it_a_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"something else")
    change_card(folder, sha256=hashlib.sha256(b"something else").hexdigest())
    with pytest.raises(CheckpointError, match="is not safetensors"):
        load_model(folder)
