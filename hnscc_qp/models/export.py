"""The cascade as files for other programs: TorchScript for WSInfer and QuPath's extension of it, and ONNX.

Both hold both stages as one network and are read back and compared with it before they are kept. Each
stage gives P(tumor) at the temperature of its card; a window is tumor if both are above 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hnscc_qp import RESEARCH_USE_ONLY
from hnscc_qp.errors import BackendError, CheckpointError
from hnscc_qp.files import atomic_path, sha256_file, write_json
from hnscc_qp.geometry import STEP_PX, WINDOW_MPP, WINDOW_PX
from hnscc_qp.models.checkpoint import Classifier, ModelCard
from hnscc_qp.models.dense import DenseClassifier, windows_of_cells
from hnscc_qp.models.networks import CLASSES, fold_batch_norms
from hnscc_qp.models.tracing import traced, write_onnx

TORCHSCRIPT_FILE = "torchscript_model.pt"
WSINFER_CONFIG_FILE = "config.json"
"""The names that WSInfer and QuPath's extension look for in a model's folder."""
ONNX_FILE = "model.onnx"
ONNX_CARD_FILE = "model.json"
TOLERANCE = 1e-4
"""Largest difference of a probability between the network and its file: kernels add in other orders."""
_PROBES = 3


@dataclass(frozen=True, slots=True)
class Stages:
    """What is exported: the stages in use, and their cards."""

    primary: Classifier
    secondary: Classifier | None
    cards: tuple[ModelCard, ...]

    @property
    def recipe(self) -> str:
        """Of both stages."""
        return self.primary.recipe

    @property
    def all(self) -> tuple[Classifier, ...]:
        """One or two."""
        return (self.primary,) if self.secondary is None else (self.primary, self.secondary)

    @property
    def patch_px(self) -> int:
        """Side of what is shown at once: a window, or for a dense model a tile as it learnt from."""
        if self.recipe == "window":
            return WINDOW_PX
        return int(self.cards[0].training.get("dense", {}).get("tile_px", 240))


class _Stage(nn.Module):
    """Logits of P(tumor) of one stage, (n,) or (n, rows, columns), of pixels in 0..1."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = fold_batch_norms(classifier)
        self.temperature = float(classifier.temperature)
        self.per_step = classifier.input_px / WINDOW_PX
        self.register_buffer("mean", classifier.mean.clone())
        self.register_buffer("std", classifier.std.clone())

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels: (n, 3, height, width) float32 RGB in 0..1 at 1.0 µm/px."""
        scaled = (pixels - self.mean) / self.std
        classifier = self.classifier
        if isinstance(classifier, DenseClassifier):
            stride = classifier.output_stride
            size = [scaled.shape[2] // STEP_PX * stride, scaled.shape[3] // STEP_PX * stride]
            logits = windows_of_cells(classifier.cells(_enlarge(scaled, size)))
        else:
            logits = classifier.network(_enlarge(scaled, [classifier.input_px] * 2))
        return (logits[:, 1] - logits[:, 0]) / self.temperature


class PatchModel(nn.Module):
    """What WSInfer runs: patches in, one answer for each out.

    P(tumor) of a window is the lower one of the stages': above 0.5 where both call it. A patch
    of the dense recipe holds many windows and is as much tumor as the one that is most.
    """

    def __init__(self, stages: Stages) -> None:
        """Copy the stages for inference."""
        super().__init__()
        self.stages = nn.ModuleList(_Stage(classifier) for classifier in stages.all)
        self.eval()

    def forward(self, patches: Tensor) -> Tensor:
        """Patches, (n, 3, side, side) float32 RGB in 0..1; logits (n, 2), to go through a softmax."""
        answers = torch.stack([stage(patches) for stage in self.stages])
        tumor = answers.amin(dim=0).flatten(1) if answers.ndim > 2 else answers.amin(dim=0).unsqueeze(1)
        half = tumor.amax(dim=1) / 2
        return torch.stack([-half, half], dim=1)


class PixelModel(nn.Module):
    """What the ONNX file holds: pixels as they are read, P(tumor) of every window and stage out."""

    def __init__(self, stages: Stages) -> None:
        """Copy the stages for inference."""
        super().__init__()
        self.stages = nn.ModuleList(_Stage(classifier) for classifier in stages.all)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels, (n, 3, height, width) uint8 RGB; of each stage (n,) or (n, rows, columns) in 0..1."""
        shares = pixels.float() / 255
        return tuple(torch.sigmoid(stage(shares)) for stage in self.stages)


def export_wsinfer(folder: Path, stages: Stages) -> dict[str, Any]:
    """Write the folder of a WSInfer model: `torchscript_model.pt` and `config.json`.

    Returns:
        The largest difference of a probability between the file and the network, and the files' hashes.

    Raises:
        CheckpointError: the models want stain-normalised slides, which WSInfer can't give them.
        StorageError: it can't be written.
    """
    if stages.cards[0].stain is not None:
        raise CheckpointError(
            "the models were trained on stain-normalised slides, and WSInfer does not normalise; train "
            'with stain.normalisation = "none", or export to ONNX and normalise before'
        )
    model, side = PatchModel(stages), stages.patch_px
    probe = _probe(_PROBES, side).float() / 255
    path = folder / TORCHSCRIPT_FILE
    with traced(), atomic_path(path) as partial:
        script = torch.jit.trace(model, (probe[:1],))  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(script), str(partial))
        found = torch.jit.load(str(partial))(probe)  # type: ignore[no-untyped-call]
        difference = _largest_difference([torch.softmax(model(probe), 1)], [torch.softmax(found, 1)])
        _check(difference, path)
    write_json(
        folder / WSINFER_CONFIG_FILE,
        {
            "spec_version": "1.0",
            "architecture": stages.primary.network_name,
            "num_classes": len(CLASSES),
            "class_names": ["Other", "Tumor"],
            "patch_size_pixels": side,
            "spacing_um_px": float(WINDOW_MPP),
            # The network enlarges and normalises by itself, each stage in its own way.
            "transform": [{"name": "ToTensor"}],
        },
    )
    return {"largest difference": difference, "sha256": sha256_file(path), "patch px": side}


def export_onnx(folder: Path, stages: Stages) -> dict[str, Any]:
    """Write `model.onnx` and `model.json`, which says what goes in and what comes out.

    Returns:
        The largest difference of a probability between the file and the network (None where there is no ONNX
        Runtime to run it), and the hash.

    Raises:
        BackendError: onnx is not installed.
        StorageError: it can't be written.
    """
    try:
        import onnx  # noqa: PLC0415
    except ImportError as error:
        raise BackendError(
            "onnx is not installed; run: pip install 'hnscc-qp[onnx]', then export again"
        ) from error
    model, side = PixelModel(stages), stages.patch_px
    dense = stages.recipe == "dense"
    outputs = ["primary", "secondary"][: len(stages.all)]
    axes = {"pixels": {0: "patches"} | ({2: "height", 3: "width"} if dense else {})}
    axes |= {name: {0: "patches"} | ({1: "rows", 2: "columns"} if dense else {}) for name in outputs}
    path = folder / ONNX_FILE
    with traced(), atomic_path(path) as partial:
        write_onnx(str(partial), model, _probe(1, side), takes="pixels", gives=outputs, free=axes)
        onnx.checker.check_model(str(partial))
        difference = _compare_onnx(partial, model, side, dense=dense)
        if difference is not None:
            _check(difference, path)
    write_json(folder / ONNX_CARD_FILE, _onnx_card(stages, outputs, dense=dense))
    return {"largest difference": difference, "sha256": sha256_file(path)}


def _onnx_card(stages: Stages, outputs: Sequence[str], *, dense: bool) -> dict[str, Any]:
    windows = (
        "[patch, row, column] is the window of 40 × 40 px whose corner is (10 · column, 10 · row) px"
        if dense
        else "[patch] is the window"
    )
    return {
        "intended use": RESEARCH_USE_ONLY,
        "input": {
            "pixels": "uint8 RGB, (patches, 3, height, width), at 1.0 µm/px as read: the network normalises",
            "height and width": f"multiples of 10 px, {stages.patch_px} in training"
            if dense
            else f"{WINDOW_PX} px",
            "margin": (
                f"a window's answer is independent of the tile's edges {stages.primary.halo_px} px away "
                "from them (primary)"
                if isinstance(stages.primary, DenseClassifier)
                else "none"
            ),
            "stain normalisation": stages.cards[0].stain or "none",
        },
        "output": {name: f"P(tumor) in 0..1 of the {name}; {windows}" for name in outputs},
        "call": "a window is tumor where every output is above 0.5",
        "models": [card.model_dump(mode="json") for card in stages.cards],
    }


def _compare_onnx(path: Path, model: PixelModel, side: int, *, dense: bool) -> float | None:
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    # Another size than the one it was traced with, for tiles.
    for height, width in [(side, side), *([(side + 30, side - 40)] if dense else [])]:
        pixels = _probe(_PROBES, height, width)
        found = [torch.from_numpy(one) for one in session.run(None, {"pixels": pixels.numpy()})]
        largest = max(largest, _largest_difference(model(pixels), found))
    return largest


def _enlarge(pixels: Tensor, size: list[int]) -> Tensor:
    """As the classifiers' `prepare`."""
    return nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=False)


def _probe(n: int, height: int, width: int | None = None) -> Tensor:
    """Blotches of colour, so that the network has something to answer to; (n, 3, height, width) uint8."""
    width = height if width is None else width
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 256, (n, 3, -(-height // 10), -(-width // 10)), dtype=np.uint8)
    whole = coarse.repeat(10, axis=2).repeat(10, axis=3)[:, :, :height, :width]
    return torch.from_numpy(np.ascontiguousarray(whole))


def _largest_difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(wanted, found, strict=True))


def _check(difference: float, path: Path) -> None:
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{path} would answer otherwise than the model it was made of (P(tumor) differs by "
            f"{difference:.2g}); it was not written. Export with the torch version that trained the model"
        )
