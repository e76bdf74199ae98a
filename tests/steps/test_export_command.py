"""`export`, used through the command line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scoring_studies import give_models
from studies import write_study
from typer.testing import CliRunner

from hnscc_qp.cli.main import app
from hnscc_qp.errors import StepError
from hnscc_qp.files import write_json
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.progress import SILENT
from hnscc_qp.qupath.geojson import write_geojson
from hnscc_qp.review.comparison import write_comparison
from hnscc_qp.scoring.regions import to_detection, vectorize
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.export import Target, export_study
from hnscc_qp.steps.patches import make_patches
from hnscc_qp.steps.regions import region_file
from hnscc_qp.studyfile import load_study

sys.path.insert(0, str(Path(__file__).parents[1] / "review"))
from drawncomparison import drawn_comparison

FORMULA = '=HYPERLINK("x")'


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with patches, models, a comparison and regions, as if each step had been run."""
    file = give_models(write_study(tmp_path_factory.mktemp("export")))
    context = Context(load_study(file), progress=SILENT)
    make_patches(context)
    generation = context.generation
    drawn = drawn_comparison()
    slides = (replace(drawn.slides[0], image=FORMULA, patient="-1"), *drawn.slides[1:])
    write_comparison(generation.step("compare") / "comparison.json", replace(drawn, slides=slides))
    done: dict[str, Any] = {"step": "", "key": "", "failed": {}, "counts": {}, "notes": []}
    write_json(generation.step("compare") / "manifest.json", done)
    image = context.project.images[0]
    grid = Grid.of_method((400, 320), PixelSize(Mpp(1.0), Mpp(1.0)))
    votes = np.zeros((grid.rows, grid.columns), np.uint8)
    votes[5:9, 5:9] = 16
    votes[20:22, 3:9] = 12
    score_map = ScoreMap(votes, np.full_like(votes, 16), grid, (400, 320), windows=1)
    write_geojson(
        region_file(context, image),
        [
            to_detection(region, slide_name=image.name, model_hash="0" * 64, generation="001")
            for region in vectorize(score_map, threshold_votes=11)
        ],
    )
    write_json(generation.step("regions") / "manifest.json", done | {"outputs": {image.entry_id: "0" * 64}})
    return file


def run(study: Path, to: str, *more: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["export", str(study), "--to", to, "--json", *more])
    assert result.exit_code == 0, (result.output, result.exception)
    manifest: dict[str, Any] = json.loads(result.stdout)
    assert set(manifest["outputs"]) == set(manifest["counts"]["files"])
    return manifest


def dictionary(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """File → column → what is said of it."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    with (folder / "data-dictionary.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            found.setdefault(row["file"], {})[row["column"]] = row
    return found


def test_csv_has_a_dictionary_that_names_every_column(study: Path) -> None:
    folder = Path(run(study, "csv")["folder"])
    said = dictionary(folder)
    tables = {"slides.csv", "lesions.csv", "outlined_lesions.csv", "patches.csv"}
    assert set(said) == tables
    prose = (folder / "data-dictionary.md").read_text(encoding="utf-8")
    for name in tables:
        with (folder / name).open(encoding="utf-8", newline="") as stream:
            header = next(csv.reader(stream))
        assert header == list(said[name]), name
        assert all(row["meaning"] and row["type"] for row in said[name].values())
        assert all(f"`{column}`" in prose for column in header)


def test_csv_and_parquet_hold_the_same(study: Path, tmp_path: Path) -> None:
    folder = Path(run(study, "csv")["folder"])
    run(study, "parquet", "--out", str(tmp_path / "p"))
    said = dictionary(tmp_path / "p")
    for name in ("slides", "lesions", "outlined_lesions", "patches"):
        table = pq.read_table(tmp_path / "p" / f"{name}.parquet")
        assert table.column_names == list(said[f"{name}.parquet"])
        for field in table.schema:
            assert field.metadata[b"meaning"].decode() == said[f"{name}.parquet"][field.name]["meaning"]
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == len(table) > 0
        for text, value in zip(rows, table.to_pylist(), strict=True):
            for column, cell in value.items():
                assert text[column].removeprefix("'") == as_text(cell), (name, column)


def as_text(cell: object) -> str:
    if cell is None:
        return ""
    return {True: "yes", False: "no"}[cell] if isinstance(cell, bool) else str(cell)


def test_a_spreadsheet_runs_no_name_as_a_formula(study: Path, tmp_path: Path) -> None:
    folder = Path(run(study, "csv")["folder"])
    with (folder / "slides.csv").open(encoding="utf-8", newline="") as stream:
        row = next(csv.DictReader(stream))
    assert row["image"] == f"'{FORMULA}" and row["patient"] == "'-1"
    run(study, "parquet", "--out", str(tmp_path))
    assert pq.read_table(tmp_path / "slides.parquet")["image"][0].as_py() == FORMULA


def test_patches_say_where_their_pixels_are(study: Path) -> None:
    folder = Path(run(study, "csv")["folder"])
    generation = folder.parent.parent
    with (folder / "patches.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for part in ("development", "test"):
        pixels = np.load(generation / "patches" / part / "patches.npy", mmap_mode="r")
        of_part = [row for row in rows if row["set"] == part]
        assert [int(row["patch"]) for row in of_part] == list(range(len(pixels)))
        # Tumor is dark in the drawn slides.
        for row in of_part[:: max(1, len(of_part) // 20)]:
            dark = (pixels[int(row["patch"])].mean(axis=2) < 150).any()
            assert dark == (row["label"] == "tumor")


def test_geojson_has_a_dictionary_that_names_every_property(study: Path) -> None:
    manifest = run(study, "geojson")
    folder = Path(manifest["folder"])
    assert manifest["counts"]["images"] == 1 and manifest["counts"]["objects"] == 2

    def keys(value: dict[str, Any], before: str = "") -> Iterator[str]:
        for key, inner in value.items():
            # An outline is one thing; what it is made of, GeoJSON says.
            if isinstance(inner, dict) and key != "geometry":
                yield from keys(inner, f"{before}{key}.")
            else:
                yield before + key

    found = {
        key
        for path in folder.glob("*.geojson")
        for feature in json.loads(path.read_text(encoding="utf-8"))["features"]
        for key in keys(feature)
    }
    assert found == set(dictionary(folder)["*.geojson"])


def test_wsinfer_and_onnx_are_folders_ready_to_hand_on(study: Path) -> None:
    manifest = run(study, "wsinfer")
    folder = Path(manifest["folder"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "manifest.json",
        "torchscript_model.pt",
    ]
    assert "Research use only" in (folder / "README.md").read_text(encoding="utf-8")
    assert str(study.parent) not in (folder / "manifest.json").read_text(encoding="utf-8")
    pytest.importorskip("onnx", reason="onnx is not installed")
    manifest = run(study, "onnx")
    assert set(manifest["outputs"]) == {"model.onnx", "model.json"}


def test_people_read_what_was_written_and_where(study: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(study), "--to", "csv"])
    assert result.exit_code == 0
    assert "3 slides" in result.stdout and "export/csv" in result.stdout.replace("\n", "")
    assert "Research use only" in result.stdout


@pytest.mark.parametrize(
    ("to", "remedy"),
    [("csv", "hnscc-qp compare"), ("geojson", "hnscc-qp regions"), ("wsinfer", "hnscc-qp train")],
)
def test_what_is_not_there_yet_is_said_with_its_command(tmp_path: Path, to: str, remedy: str) -> None:
    context = Context(load_study(write_study(tmp_path)), progress=SILENT)
    with pytest.raises(StepError, match=remedy):
        export_study(context, Target(to))
    assert not (context.generation.path / "export").exists()
