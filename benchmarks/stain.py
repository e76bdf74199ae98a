"""What weak staining does to a trained model, and whether normalisation or jitter helps.

    python benchmarks/stain.py CAMELYON OUT --weights FILE [--epochs 3] [--patches 1000] [--seeds 1]

CAMELYON is the folder of a QuPath project with its `slides/`. The same model (MobileNet-v2, single
windows) is trained in four ways: as it is, on slides normalised after Macenko and after Reinhard, and with
stain jitter. Each is judged on the test windows twice: as they are, and with the slides' optical
density × 0.6, which is what a weak stain looks like. Training never sees a weakened slide. All share split,
windows and seed; intervals resample patients. With `--probe` the network stays as ImageNet left it and only a
logistic regression on its features is fitted: a minute instead of many. Printed as a table and written
to OUT/stain.json.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hnscc_qp.cli import render
from hnscc_qp.files import write_json
from hnscc_qp.geometry import Grid
from hnscc_qp.models.checkpoint import PRIMARY, load_model
from hnscc_qp.models.device import choose_device
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.patches.dataset import open_development, open_test
from hnscc_qp.progress import SILENT
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.steps import patches
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.train import train_primary
from hnscc_qp.studyfile import load_study
from hnscc_qp.training.augment import draw_stains, restain
from hnscc_qp.training.evaluate import Figures, evaluate, predict

WEAK = 0.6
ARMS = {
    "as it is": ("none", 0.0),
    "macenko": ("macenko", 0.0),
    "reinhard": ("reinhard", 0.0),
    "jitter 0.5": ("none", 0.5),
}
STUDY = """\
project = "{project}"
backend = "embedded"
device = "cpu"
[split]
test = 0.4
[patches]
stride_px = 20
per_class = {patches}
[stain]
normalisation = "{normalisation}"
[training]
recipe = "window"
weights = "{weights}"
seed = {seed}
[training.window]
epochs = {epochs}
orientations = 1
stain_jitter = {jitter}
"""


def weaken(source: Path, target: Path) -> None:
    """Copy the project, its slides with `WEAK` of their optical density."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("slides"))
    (target / "slides").mkdir()
    for path in sorted((source / "slides").glob("*.tif")):
        slide = open_slide(path)
        pixels = slide.thumbnail(max(slide.size)).astype(np.float64)
        weak = 255 * (pixels / 255) ** WEAK
        tifffile.imwrite(
            target / "slides" / path.name,
            weak.round().astype(np.uint8),
            photometric="rgb",
            tile=(256, 256),
            compression="deflate",
            metadata=None,
            resolution=(1e4 / slide.pixel_size.x, 1e4 / slide.pixel_size.y),
            resolutionunit=3,
        )


def open_context(folder: Path, **values: object) -> Context:
    """A study of its own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(STUDY.format(**values), encoding="utf-8")
    return Context(load_study(folder), progress=SILENT)


def features(pixels: np.ndarray, weights: str) -> np.ndarray:
    """What ImageNet's network sees in windows: (n, 1280)."""
    classifier = WindowClassifier("mobilenet_v2", input_px=64, weights=weights).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 128):
            windows = torch.from_numpy(pixels[start : start + 128].copy()).permute(0, 3, 1, 2)
            found.append(classifier.network.features(classifier.prepare(windows)).mean(dim=(2, 3)).numpy())
    return np.concatenate(found)


def probe(trained: Context, weights: str, jitter: float) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a logistic regression to the patches of development; three stains of each if jittered."""
    folder = trained.generation.step(patches.STEP)
    data = open_development(folder, read_members(folder))
    pixels, labels = np.array(data.pixels), data.label
    if jitter:
        generator = torch.Generator().manual_seed(trained.study.training.seed)
        windows = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        stained = [
            restain(windows, draw_stains(len(windows), jitter, generator)).permute(0, 2, 3, 1).numpy()
            for _ in range(3)
        ]
        pixels, labels = np.concatenate(stained), np.tile(labels, 3)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=2000))
    model.fit(features(pixels, weights), labels)
    return lambda some: model.predict_proba(features(some, weights))[:, 1]


def network(trained: Context, stain: dict[str, Any] | None) -> Callable[[np.ndarray], np.ndarray]:
    """The trained primary, as a study with this normalisation would load it."""
    classifier, _ = load_model(trained.generation.step(PRIMARY), recipe="window", stain=stain)
    return lambda some: predict(classifier, some, device=choose_device("cpu"))


def judge(trained: Context, shown: Context, call: Callable[[np.ndarray], np.ndarray]) -> Figures:
    """Figures on the test windows, read from the slides of `shown`."""
    folder = trained.generation.step(patches.STEP)
    test = open_test(folder, read_members(folder))
    x, y, entry = (np.asarray(test.table[name].to_pylist()) for name in ("x_px", "y_px", "entry_id"))
    pixels = np.empty(test.pixels.shape, np.uint8)
    for image in shown.project.images:
        idx = np.flatnonzero(entry == image.entry_id)
        if len(idx):
            slide = shown.open_image(image)
            pixels[idx] = cut_windows(slide, Grid.of_method(slide.size, slide.pixel_size), x[idx], y[idx])
    assert (pixels == test.pixels).all() is np.bool_(shown is trained)
    return evaluate(call(pixels), test.label, test.patient)


def main() -> None:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camelyon", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--patches", type=int, default=1000, help="of each class, for training and validation"
    )
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    asked = parser.parse_args()
    weak_project = asked.out.resolve() / "weak-project"
    weaken(asked.camelyon, weak_project)
    rows, results = [], []
    for seed in asked.seeds:
        for arm, (normalisation, jitter) in ARMS.items():
            started = time.process_time()
            values = {
                "normalisation": normalisation,
                "jitter": jitter,
                "seed": seed,
                "epochs": asked.epochs,
                "patches": asked.patches,
                "weights": Path(asked.weights).resolve(),
            }
            folder = asked.out / f"{arm.replace(' ', '-')}-{seed}"
            trained = open_context(folder / "normal", project=asked.camelyon.resolve(), **values)
            weak = open_context(folder / "weak", project=weak_project, **values)
            patches.make_patches(trained)
            weights = str(values["weights"])
            if asked.probe:
                call = probe(trained, weights, jitter)
            else:
                train_primary(trained)
                call = network(trained, trained.stain)
            line: list[object] = [arm, seed]
            for name, shown in (("normal", trained), ("weak", weak)):
                figures = judge(trained, shown, call)
                results.append({"arm": arm, "seed": seed, "slides": name, **figures.as_json()})
                low, high = figures.auc_interval or (float("nan"), float("nan"))
                line += [
                    f"{figures.auc:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"{figures.sensitivity:.3f}",
                    f"{figures.specificity:.3f}",
                ]
            rows.append([*line, f"{time.process_time() - started:.0f}"])
            render.print_line(" | ".join(map(str, rows[-1])))
    columns = [f"{what} {name}" for name in ("normal", "weak") for what in ("AUC", "95 %", "sens.", "spec.")]
    render.print_table(
        f"held-out slides, as they are and with {WEAK} of their optical density",
        ["training", "seed", *columns, "CPU s"],
        rows,
    )
    write_json(asked.out / "stain.json", results)


if __name__ == "__main__":
    main()
