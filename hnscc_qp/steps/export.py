"""`export`: results as tables and GeoJSON, and the models for other programs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from hnscc_qp import RESEARCH_USE_ONLY
from hnscc_qp.errors import StepError
from hnscc_qp.files import atomic_path, sha256_file, storing, write_text
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.models.checkpoint import PRIMARY, SECONDARY, load_model
from hnscc_qp.models.export import TOLERANCE, Stages, export_onnx, export_wsinfer
from hnscc_qp.patches.dataset import open_development, open_test
from hnscc_qp.patches.stored import Part
from hnscc_qp.review.comparison import read_comparison
from hnscc_qp.review.exports import (
    LESION_COLUMNS,
    PATCH_COLUMNS,
    SLIDE_COLUMNS,
    TRUTH_COLUMNS,
    Column,
    Dataset,
    lesion_rows,
    patch_rows,
    slide_rows,
    truth_rows,
    write_dataset_csv,
    write_dataset_parquet,
    write_dictionary,
)
from hnscc_qp.steps import patches, regions
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.trained import cascade_hash, is_used

STEP = "export"
_COMPARISON = "compare/comparison.json"


class Target(StrEnum):
    """What to export to."""

    CSV = "csv"
    PARQUET = "parquet"
    GEOJSON = "geojson"
    WSINFER = "wsinfer"
    ONNX = "onnx"


def export_study(context: Context, target: Target, *, out: Path | None = None) -> Manifest:
    """Write the wanted files, with what describes them beside; they are made anew each time.

    Args:
        context: of the study.
        target: which files.
        out: a folder; `export/<target>` of the generation if None.

    Returns:
        The manifest, which lies in the folder, too.

    Raises:
        StepError: what is to be exported is not there yet; the message names the command.
        CheckpointError: the models can't be exported so.
        BackendError: a package for it is missing.
        StorageError: it can't be written.
    """
    started = time.time()
    folder = out if out is not None else context.generation.step(STEP) / target.value
    inputs: dict[str, str] = {}
    with storing(folder):
        counts = _WRITERS[target](context, folder, inputs)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name in counts["files"])
    manifest = make_manifest(
        step=STEP,
        settings={"to": target.value, "folder": folder.name},
        inputs=inputs,
        outputs={path.name: sha256_file(path) for path in files},
        counts=counts,
        started=started,
        notes=counts.pop("notes", ()),
    )
    write_manifest(folder, manifest)
    manifest["folder"] = str(folder)
    return manifest


def _write_tables(
    context: Context,
    folder: Path,
    inputs: dict[str, str],
    *,
    suffix: str,
    write: Callable[[Path, Dataset], int],
    notes: tuple[str, ...],
) -> dict[str, Any]:
    path = context.generation.path / _COMPARISON
    context.generation.need("compare", command=f"hnscc-qp compare {context.study.path}")
    comparison = read_comparison(path)
    inputs["comparison"] = sha256_file(path)
    datasets = [
        Dataset("slides", SLIDE_COLUMNS, slide_rows(comparison)),
        Dataset("lesions", LESION_COLUMNS, lesion_rows(comparison.lesions)),
        Dataset("outlined_lesions", TRUTH_COLUMNS, truth_rows(comparison.truth_lesions)),
        Dataset("patches", PATCH_COLUMNS, _patches(context)),
    ]
    counts = {dataset.name: write(folder / f"{dataset.name}{suffix}", dataset) for dataset in datasets}
    write_dictionary(
        folder,
        {f"{dataset.name}{suffix}": dataset.columns for dataset in datasets},
        notes=(
            f"**{RESEARCH_USE_ONLY}**",
            "",
            f"Study {comparison.study}, generation {comparison.generation}, models {comparison.model}. "
            "Places are in pixels of the image as QuPath shows it, from its upper left corner. Areas of "
            "slides are of judged tissue. docs/comparison.md of hnscc-qp defines every figure.",
            *notes,
        ),
    )
    return counts | {
        "files": [
            *(f"{dataset.name}{suffix}" for dataset in datasets),
            "data-dictionary.csv",
            "data-dictionary.md",
        ]
    }


def _patches(context: Context) -> list[Mapping[str, Any]]:
    """Of both sets; none where no patches were cut."""
    folder = context.generation.step(patches.STEP)
    members = read_members(folder)
    rows: list[Mapping[str, Any]] = []
    for part, read in ((Part.DEVELOPMENT, open_development), (Part.TEST, open_test)):
        if (folder / part).is_dir():
            rows += patch_rows(part.value, read(folder, members).table)
    return rows


def _write_csv(context: Context, folder: Path, inputs: dict[str, str]) -> dict[str, Any]:
    notes = (
        "",
        "CSV: UTF-8, comma, one header line; an empty cell is no value. A text that begins with =, +, -, @ "
        "or a tab has a ' before it, so that no spreadsheet runs it as a formula; Parquet has it as it is.",
    )
    return _write_tables(context, folder, inputs, suffix=".csv", write=write_dataset_csv, notes=notes)


def _write_parquet(context: Context, folder: Path, inputs: dict[str, str]) -> dict[str, Any]:
    notes = ("", "Parquet: unit, range and meaning stand in each field's metadata, too.")
    return _write_tables(context, folder, inputs, suffix=".parquet", write=write_dataset_parquet, notes=notes)


GEOJSON_COLUMNS = (
    Column("type", "text", "", "Feature", "GeoJSON's word for an object"),
    Column("id", "text", "", "a UUID", "the object's id in QuPath"),
    Column("geometry", "text", "px", "Polygon", "the region's outline, with holes, in px of the image"),
    Column("properties.objectType", "text", "", "detection", "QuPath's kind of object"),
    Column("properties.classification.names", "text", "", "AI, Tumor", "its class, part by part"),
    Column("properties.classification.color", "text", "", "0 to 255 each", "red, green, blue"),
    Column("properties.measurements.Area µm^2", "number", "µm²", "above 0", "its area"),
    Column(
        "properties.measurements.Longest diameter mm",
        "number",
        "mm",
        "above 0",
        "between its farthest points",
    ),
    Column("properties.measurements.AI: Max score", "number", "", "threshold to 1", "highest score in it"),
    Column("properties.measurements.AI: Mean score", "number", "", "threshold to 1", "mean score over it"),
    Column("properties.measurements.AI: threshold", "number", "", "above 0 to 1", "the score it reaches"),
    Column("properties.metadata.AI model", "text", "", "64 hex digits", "hash of the models"),
    Column("properties.metadata.AI generation", "text", "", "001, 002, ...", "of the study"),
    Column("properties.metadata.AI note", "text", "", "in words", "research use only"),
)


def _write_geojson(context: Context, folder: Path, inputs: dict[str, str]) -> dict[str, Any]:
    drawn = context.generation.need(regions.STEP, command=f"hnscc-qp regions {context.study.path}")
    names: list[str] = []
    objects = 0
    folder.mkdir(parents=True, exist_ok=True)
    for image in context.project.images:
        if image.entry_id not in drawn["outputs"]:
            continue
        source = regions.region_file(context, image)
        try:
            objects += len(json.loads(source.read_text(encoding="utf-8"))["features"])
        except (OSError, ValueError, KeyError) as error:
            raise StepError(f"{source} is missing or damaged; run hnscc-qp regions with --force") from error
        with atomic_path(folder / source.name) as partial:
            shutil.copyfile(source, partial)
        inputs[image.entry_id] = drawn["outputs"][image.entry_id]
        names.append(source.name)
    write_dictionary(
        folder,
        {"*.geojson": GEOJSON_COLUMNS},
        notes=(
            f"**{RESEARCH_USE_ONLY}**",
            "",
            "One file for each image, named after its id in the project and its name; drop it on the image "
            "in QuPath 0.4 or later. Other readers of GeoJSON find outline and properties all the same.",
        ),
    )
    return {
        "images": len(names),
        "objects": objects,
        "files": [*names, "data-dictionary.csv", "data-dictionary.md"],
    }


def _stages(context: Context, inputs: dict[str, str]) -> Stages:
    command = f"hnscc-qp train {context.study.path} --stage"
    context.generation.need(PRIMARY, command=f"{command} {PRIMARY}")
    second = context.generation.need(SECONDARY, command=f"{command} {SECONDARY}")
    primary, card = load_model(context.generation.step(PRIMARY))
    cards = [card]
    secondary = None
    if is_used(second):
        secondary, card = load_model(context.generation.step(SECONDARY))
        cards.append(card)
    inputs |= {f"{card.stage} model": card.sha256 for card in cards}
    return Stages(primary, secondary, tuple(cards))


def _write_wsinfer(context: Context, folder: Path, inputs: dict[str, str]) -> dict[str, Any]:
    stages = _stages(context, inputs)
    told = export_wsinfer(folder, stages)
    side = told["patch px"]
    many = (
        f"A patch of {side} px is a tile as the models learnt from, and is called tumor if any 40 px window "
        "in it is; what lies beyond the tile is not seen, so that calls near its edges differ from those of "
        "hnscc-qp."
        if stages.recipe == "dense"
        else "A patch is a window of 40 px. WSInfer lays them side by side, so there are no votes."
    )
    write_text(
        folder / "README.md",
        f"# WSInfer model of {context.study.name}\n\n**{RESEARCH_USE_ONLY}**\n\n"
        f"Models {cascade_hash(inputs)}. {many} Neither the threshold of the study nor its figures apply to "
        "it.\n\n"
        "- QuPath with the WSInfer extension: put this folder into the extension's folder for user models "
        "(*Preferences → WSInfer*), restart, choose the model.\n"
        "- WSInfer: `wsinfer run --wsi-dir SLIDES --results-dir RESULTS --config config.json --model-path "
        "torchscript_model.pt`\n\n"
        f"P(tumor) of the file differs from the network's by {told['largest difference']:.1e} at most "
        f"(allowed: {TOLERANCE:g}).\n",
    )
    files = ["torchscript_model.pt", "config.json", "README.md"]
    return {"largest difference": told["largest difference"], "files": files, "notes": [many]}


def _write_onnx(context: Context, folder: Path, inputs: dict[str, str]) -> dict[str, Any]:
    told = export_onnx(folder, _stages(context, inputs))
    notes = []
    if told["largest difference"] is None:
        notes.append("not compared with the network, for onnxruntime is not installed")
    return {
        "largest difference": told["largest difference"],
        "files": ["model.onnx", "model.json"],
        "notes": notes,
    }


_WRITERS: dict[Target, Callable[[Context, Path, dict[str, str]], dict[str, Any]]] = {
    Target.CSV: _write_csv,
    Target.PARQUET: _write_parquet,
    Target.GEOJSON: _write_geojson,
    Target.WSINFER: _write_wsinfer,
    Target.ONNX: _write_onnx,
}
