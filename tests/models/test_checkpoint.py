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
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.study import Training


def save(folder: Path, classifier: WindowClassifier) -> ModelCard:
    return save_model(
        folder,
        classifier,
        stage="primary",
        training=Training(weights="none", input_px=32, seed=4),
        weights_origin={"name": "none", "sha256": None},
        data_sha256="ab" * 32,
        patients={"training": 7, "validation": 3},
        figures={"accuracy": 0.98, "auc": None},
        device="cpu",
        seconds=1.5,
    )


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
    card = save_model(
        tmp_path,
        classifier,
        stage="secondary",
        training=Training(weights=str(tmp_path / "start.safetensors"), input_px=32),
        weights_origin={"name": "start.safetensors", "sha256": "cd" * 32},
        data_sha256="ab" * 32,
        patients={},
        figures={},
        device="cpu",
        seconds=1,
    )
    assert card.training["weights"] == "start.safetensors"
    assert str(tmp_path) not in (tmp_path / "model.json").read_text()


def test_weights_are_plain_tensors_under_a_json_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header["network.classifier.1.bias"]["shape"] == [2]
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json"}


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
        ({"network": "resnet50"}, "unknown network 'resnet50', known are mobilenet_v2"),
        ({"format_version": 2}, "has format 2, this program reads 1"),
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
