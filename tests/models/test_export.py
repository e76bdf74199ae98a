from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hnscc_qp.errors import CheckpointError
from hnscc_qp.models.checkpoint import Classifier, ModelCard, Stage, save_model
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.models.export import TOLERANCE, PatchModel, Stages, export_onnx, export_wsinfer
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.study import DenseRecipe, Training


@torch.no_grad()
def made_up(*, dense: bool, seed: int) -> Classifier:
    """A network from scratch that calls about half of the patches tumor."""
    make = DenseClassifier if dense else WindowClassifier
    classifier = make("mobilenet_v2", input_px=32, seed=seed)
    pixels = patches(160 if dense else 40, n=24)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    classifier.train()(pixels)
    logits = classifier.eval()(pixels)
    # A tile is tumor if one window is, to both stages.
    surplus = (logits[:, 1] - logits[:, 0]).flatten().quantile(0.9 if dense else 0.5)
    head = [module for module in classifier.modules() if isinstance(module, nn.Linear)][-1]
    head.bias[0] += surplus
    classifier.temperature = 0.2  # so that a difference of logits is one of probabilities
    return classifier


def patches(side: int, *, n: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 256, (n, 3, side // 10, side // 10), generator=generator, dtype=torch.uint8)
        .repeat_interleave(10, 2)
        .repeat_interleave(10, 3)
    )


def card(
    folder: Path, classifier: Classifier, stage: Stage, *, stain: dict[str, str] | None = None
) -> ModelCard:
    return save_model(
        folder / stage,
        classifier,
        stage=stage,
        training=Training(
            recipe=classifier.recipe, weights="none", input_px=32, dense=DenseRecipe(tile_px=120)
        ),
        weights_origin={"name": "none", "sha256": None},
        data_sha256="0" * 64,
        patients={},
        figures={},
        device="cpu",
        seconds=0,
        temperature=classifier.temperature,
        stain=stain,
    )


def stages(folder: Path, *, dense: bool, secondary: bool = True) -> Stages:
    first = made_up(dense=dense, seed=1)
    second = made_up(dense=dense, seed=2) if secondary else None
    cards = [card(folder, first, "primary")]
    if second is not None:
        cards.append(card(folder, second, "secondary"))
    return Stages(first, second, tuple(cards))


@pytest.mark.parametrize("dense", [False, True], ids=["window", "dense"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_torchscript_file_calls_what_the_cascade_calls(tmp_path: Path, *, dense: bool) -> None:
    both = stages(tmp_path, dense=dense)
    told = export_wsinfer(tmp_path / "out", both)
    assert told["largest difference"] <= TOLERANCE
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    side = config["patch_size_pixels"]
    assert side == (120 if dense else 40) and config["spacing_um_px"] == 1.0
    assert config["class_names"] == ["Other", "Tumor"] and config["num_classes"] == 2
    pixels = patches(side, n=24, seed=8)
    # As WSInfer does: `ToTensor` scales to 0..1, a softmax follows.
    script = torch.jit.load(tmp_path / "out" / "torchscript_model.pt")
    found = torch.softmax(script(pixels.float() / 255), 1)[:, 1] > 0.5
    with torch.no_grad():
        logits = [stage(pixels) for stage in both.all]
    wanted = (logits[0][:, 1] > logits[0][:, 0]) & (logits[1][:, 1] > logits[1][:, 0])
    if dense:
        wanted = wanted.flatten(1).any(dim=1)
    assert 0 < int(wanted.sum()) < 24
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dense", [False, True], ids=["window", "dense"])
def test_the_onnx_file_says_of_every_window_what_each_stage_says(tmp_path: Path, *, dense: bool) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    both = stages(tmp_path, dense=dense)
    told = export_onnx(tmp_path / "out", both)
    assert told["largest difference"] <= TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    for height, width in [(120, 120), (90, 170)] if dense else [(40, 40)]:
        pixels = patches(200, n=5, seed=8)[:, :, :height, :width].contiguous()
        found = session.run(["primary", "secondary"], {"pixels": pixels.numpy()})
        for classifier, probability in zip(both.all, found, strict=True):
            with torch.no_grad():
                wanted = torch.softmax(classifier(pixels) / classifier.temperature, 1)[:, 1].numpy()
            assert probability.shape == wanted.shape
            assert np.allclose(probability, wanted, atol=TOLERANCE)
            assert wanted.min() < 0.5 < wanted.max()
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert set(facts["output"]) == {"primary", "secondary"}
    assert [model["stage"] for model in facts["models"]] == ["primary", "secondary"]


def test_a_primary_alone_is_exported_as_it_is(tmp_path: Path) -> None:
    alone = stages(tmp_path, dense=False, secondary=False)
    pixels = patches(40, n=12)
    with torch.no_grad():
        found = torch.softmax(PatchModel(alone)(pixels.float() / 255), 1)[:, 1]
        wanted = torch.softmax(alone.primary(pixels) / alone.primary.temperature, 1)[:, 1]
    assert torch.allclose(found, wanted, atol=TOLERANCE)


def test_a_model_of_normalised_slides_is_refused_for_wsinfer(tmp_path: Path) -> None:
    first = made_up(dense=False, seed=1)
    stained = card(tmp_path, first, "primary", stain={"normalisation": "macenko"})
    with pytest.raises(CheckpointError, match=r"WSInfer does not normalise; train with"):
        export_wsinfer(tmp_path / "out", Stages(first, None, (stained,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = stages(tmp_path, dense=False)
    answers_otherwise = torch.jit.trace(lambda x: x.mean(dim=(2, 3))[:, :2], torch.rand(1, 3, 40, 40))
    monkeypatch.setattr("torch.jit.load", lambda _path: answers_otherwise)
    with pytest.raises(CheckpointError, match="would answer otherwise"):
        export_wsinfer(tmp_path / "out", other)
    assert not list((tmp_path / "out").glob("*"))
