"""Masks, ASAP's XML and GeoJSON instead of QuPath's annotations, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from shapely.geometry import box
from studies import SIZE, STUDY, TUMOR_BOX, annotation, write_study

from hnscc_qp.cli.main import main
from hnscc_qp.patches.stored import Part
from hnscc_qp.progress import SILENT
from hnscc_qp.qupath.geojson import write_geojson
from hnscc_qp.steps.context import Context
from hnscc_qp.studyfile import load_study

LABEL = ["x_px", "y_px", "slide", "label", "reason", "side"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study whose tumors lie in the project and, beside the slides, as mask, XML and GeoJSON."""
    folder = tmp_path / "study"
    path = write_study(folder)
    left, top, right, bottom = TUMOR_BOX
    mask = np.zeros((SIZE[1] // 2, SIZE[0] // 2), np.uint8)
    mask[top // 2 : bottom // 2, left // 2 : right // 2] = 255
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    places = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(corners))
    for number in (1, 3, 5):
        stem = folder / "slides" / f"S{number}"
        Image.fromarray(mask).save(f"{stem}.mask.png")
        Path(f"{stem}.xml").write_text(
            '<ASAP_Annotations><Annotations><Annotation Name="1" Type="Polygon" PartOfGroup="_0">'
            f"<Coordinates>{places}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
        )
        write_geojson(Path(f"{stem}.geojson"), [annotation(box(*TUMOR_BOX), "Cancer")])
    return path


def patches(study: Path, truth: str, *options: str) -> int:
    study.write_text(STUDY + truth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", "patches", str(study), *options])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def rows(study: Path) -> list[dict[str, object]]:
    folder = study.parent / "generations" / "001" / "patches"
    return [row for part in Part for row in pq.read_table(folder / part / "patches.parquet").to_pylist()]


SOURCES = {
    "mask": '[truth]\nsource = "mask"\nclasses = { 255 = "Tumor" }\n',
    "asap": '[truth]\nsource = "asap"\nclasses = { _0 = "Tumor" }\n',
    "geojson": '[truth]\nsource = "geojson"\npattern = "slides/{slide}.geojson"\n'
    'classes = { Cancer = "Tumor" }\n',
}


@pytest.mark.parametrize("source", SOURCES)
def test_patches_are_the_same_whatever_says_where_the_tumor_is(study: Path, source: str) -> None:
    assert patches(study, "") == 0
    by_qupath = rows(study)
    assert patches(study, SOURCES[source]) == 0
    assert [[row[key] for key in LABEL] for row in rows(study)] == [
        [row[key] for key in LABEL] for row in by_qupath
    ]
    assert {row["label"] for row in by_qupath} == {"tumor", "nontumor"}


def test_a_mask_that_changed_makes_the_patches_again(study: Path) -> None:
    assert patches(study, SOURCES["mask"]) == 0
    before = {row["slide"]: row["image_sha256"] for row in rows(study)}
    path = study.parent / "slides" / "S1.mask.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[125:140, 90:120] = 255
    Image.fromarray(pixels).save(path)
    assert patches(study, SOURCES["mask"]) == 0
    after = {row["slide"]: row["image_sha256"] for row in rows(study)}
    assert [name for name in before if before[name] != after[name]] == ["S1.tif"]


def test_a_positive_slide_without_its_file_is_named_and_the_others_are_done(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.parent / "slides" / "S3.mask.png").unlink()
    assert patches(study, SOURCES["mask"], "--json") == 2
    failed = json.loads(capsys.readouterr().out)["failed"]
    assert list(failed) == ["S3.tif"]
    assert "has no mask file" in failed["S3.tif"]
    assert "S3.mask.png" in failed["S3.tif"]


def test_doctor_says_beforehand_that_a_mask_is_missing(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY + SOURCES["mask"])
    (study.parent / "slides" / "S5.mask.png").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", "doctor", str(study), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    found = json.loads(capsys.readouterr().out)
    assert list(found["failed"]) == ["S5.tif"]
    assert "S5.mask.png" in found["failed"]["S5.tif"]


def test_without_any_file_nothing_is_usable(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patches(study, SOURCES["asap"].replace('"asap"', '"asap"\npattern = "xml/{slide}.xml"')) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: no image of")


def test_two_sources_add_up(study: Path) -> None:
    truth = SOURCES["mask"].replace("[truth]", '[[truth]]\nsource = "qupath"\n[[truth]]')
    study.write_text(STUDY + truth)
    context = Context(load_study(study), progress=SILENT)
    first = context.project.images[0]
    assert len(context.objects(first)) == 2
    ids = [item.id for item in context.objects(first)]
    assert ids == [item.id for item in context.objects(first)]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ('[truth]\nsource = "mask"\n', "a mask needs classes"),
        ('[truth]\nsource = "mask"\nclasses = { white = "Tumor" }\n', "whole numbers, not white"),
        ('[truth]\nsource = "asap"\npattern = "{case}.xml"\n', "{slide} and {folder} only"),
        ('[[truth]]\nsorce = "asap"\n', "did you mean 'source'?"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(
    study: Path, capsys: pytest.CaptureFixture[str], truth: str, said: str
) -> None:
    assert patches(study, truth) == 1
    assert said in capsys.readouterr().err


def test_masks_and_qupath_agree_on_real_slides(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "camelyon", tmp_path / "camelyon", symlinks=True)
    found = []
    for number, truth in enumerate(("", '[truth]\nsource = "mask"\nclasses = { 255 = "Tumor" }\n')):
        study = tmp_path / f"study{number}.toml"
        study.write_text('project = "camelyon"\nslides = ["camelyon/slides"]\nbackend = "embedded"\n' + truth)
        context = Context(load_study(study), progress=SILENT)
        image = next(one for one in context.project.images if one.name.startswith("CAM-03"))
        found.append(sum(item.roi.area for item in context.objects(image)))
    by_qupath, by_mask = found
    assert by_mask == 465429  # truth.json
    assert by_qupath == by_mask
