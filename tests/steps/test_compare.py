"""Calibrating and comparing through the command line, on score maps that are drawn."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from shapely.geometry import box
from steps.scored_studies import TUMOR, write_scored
from studies import STUDY, annotation, new_image, write_slide, write_study

from hnscc_qp.cli.main import main
from hnscc_qp.qupath.create import create_project
from hnscc_qp.qupath.objects import PathClass
from hnscc_qp.review.comparison import read_comparison

FOLDER = Path("generations/001")
HALF = (8, 8, 16, 24)
FAR = (26, 30, 28, 34)
MAPS = {
    "S1.tif": {HALF: 16},
    "S3.tif": {TUMOR: 14},
    "S5.tif": {FAR: 12},
    "S2.tif": {},
    "S4.tif": {(10, 10, 12, 12): 3},
    "S6.tif": {(10, 10, 16, 16): 9, (20, 20, 21, 21): 13},
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    study = write_study(folder, text=STUDY + '[split]\ntest_patients = ["P2", "P3"]\n')
    return write_scored(folder, MAPS, study=study).parent


@pytest.fixture
def study(scored: Path, tmp_path: Path) -> Path:
    shutil.copytree(scored, tmp_path / "study")
    return tmp_path / "study"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def compared(study: Path):
    return read_comparison(study / FOLDER / "compare" / "comparison.json")


def test_slides_lesions_and_areas_are_what_was_drawn(study: Path, call) -> None:
    assert call("calibrate", study)[0] == 0
    code, out, _ = call("compare", study)
    assert code == 0
    comparison = compared(study)
    slides = {one.image: one for one in comparison.slides}
    assert comparison.threshold.votes == 12  # no level separates; the highest that finds S5, too
    assert {name: one.call for name, one in slides.items()} == {
        "S1.tif": "positive",
        "S2.tif": "negative",
        "S3.tif": "positive",
        "S4.tif": "negative",
        "S5.tif": "positive",
        "S6.tif": "positive",
    }
    assert slides["S1.tif"].exact.dice == pytest.approx(2 / 3)
    assert slides["S1.tif"].grid.dice == pytest.approx(2 / 3)
    assert slides["S3.tif"].exact.iou == pytest.approx(1)
    assert slides["S3.tif"].exact.boundary_95_um == pytest.approx(0, abs=1e-6)
    assert slides["S5.tif"].exact.dice == 0
    assert slides["S1.tif"].truth_um2 == pytest.approx(25_600)
    assert slides["S6.tif"].ai_um2[8:] == pytest.approx((3700, 100, 100, 100, 100, 0, 0, 0))
    assert slides["S6.tif"].false_regions[:13] == (2,) * 9 + (1,) * 4
    assert {one.image: one.found for one in comparison.truth_lesions} == {
        "S1.tif": True,
        "S3.tif": True,
        "S5.tif": False,
    }
    matches = {one.image: (one.match, round(one.area_um2), one.stratum) for one in comparison.lesions}
    assert matches["S5.tif"] == ("false", 800, "<0.2 mm")
    assert matches["S1.tif"] == ("detected", 12_800, "<0.2 mm")
    assert matches["S3.tif"] == ("detected", 25_600, "0.2 to 2 mm")
    (found,) = [one for one in comparison.truth_lesions if one.image == "S1.tif"]
    assert (found.covered, found.max_score) == (pytest.approx(0.5), 1.0)
    # From the tumour's corner to the tissue's frame at 20 µm.
    assert found.edge_distance_mm == pytest.approx(0.06)
    kinds = [(one.kind, one.image, one.reason) for one in comparison.disagreements]
    assert kinds[0] == ("slide false alarm", "S6.tif", "unexplained")
    assert ("lesion missed", "S5.tif", "unexplained") in kinds
    assert ("false region", "S5.tif", "annotation gap") in kinds  # 66 µm from the tumour
    for name in (
        "slides",
        "slide_levels",
        "lesions",
        "truth_lesions",
        "sweep",
        "roc",
        "disagreements",
    ):
        assert rows_of(study / FOLDER / "compare" / f"{name}.csv"), name
    # With 37.5 µm around it the tumour's major axis is 271 µm: isolated cells to CAMELYON16.
    assert all(one.isolated_cells for one in comparison.truth_lesions)
    assert all(one.froc is None for one in comparison.figures)
    assert "sensitivity" in out and "100.0 % (" in out
    assert "to open: compare/report.html" in out
    assert (study / FOLDER / "compare" / "report.html").is_file()


def test_false_area_per_mm2_is_that_of_tissue_outside_the_tumor(study: Path, call) -> None:
    call("calibrate", study)
    call("compare", study)
    comparison = compared(study)
    for name in ("development", "test"):
        level = next(one for one in comparison.sweep if (one.set, one.votes) == (name, 9))
        mine = [one for one in comparison.slides if (one.side == "test") == (name == "test")]
        false = {"S5.tif": 800.0, "S6.tif": 3700.0}
        tissue = sum(360 * 280 - (25_600 if one.truth == "positive" else 0) for one in mine)
        expected = sum(false.get(one.image, 0.0) for one in mine) / tissue * 1e6
        assert level.false_um2_per_mm2 == pytest.approx(expected)


def test_what_is_done_is_not_done_again_and_forced_gives_the_same_bytes(study: Path, call) -> None:
    call("calibrate", study)
    call("compare", study)
    path = study / FOLDER / "compare" / "comparison.json"
    before = path.stat().st_mtime_ns
    assert call("compare", study)[0] == 0
    assert path.stat().st_mtime_ns == before
    first = path.read_bytes()
    assert call("compare", study, "--force")[0] == 0
    assert path.read_bytes() == first


def test_a_smallest_lesion_area_spares_a_slide_with_a_speck(study: Path, call) -> None:
    settings = study / "study.toml"
    settings.write_text(settings.read_text() + "\n[calibration]\nmin_lesion_um2 = 500\n")
    assert "Only regions of at least 500" in call("calibrate", study)[1]
    _, out, _ = call("calibrate", study, "--json")
    manifest = json.loads(out)
    calls = {slide["image"]: slide["call"] for slide in manifest["slides"]}
    # S6 reaches 13 with one block only, 9 with a region of 3600 µm².
    assert manifest["counts"]["threshold votes"] == 10
    assert calls["S6.tif"] == "negative" and calls["S5.tif"] == "positive"
    assert "Only regions of at least 500 µm² count." in manifest["notes"][0]
    call("compare", study)
    assert {one.image: one.call for one in compared(study).slides}["S6.tif"] == "negative"


def test_levels_that_do_alike_are_one_row_for_people(study: Path, call) -> None:
    out = call("calibrate", study)[1]
    table = out[out.index("every threshold") :]
    # S5 reaches 12 votes, S4 3, S6 13, the latter with 3700 µm² up to 9.
    for row in ("1 to 3 ", "4 to 9 ", "10 to 12 ", "13 ", "14 to 16 "):
        assert any(line.strip().startswith(row) for line in table.splitlines()), table


def test_the_sweep_of_calibrate_has_every_level_of_both_sets(study: Path, call) -> None:
    call("calibrate", study)
    rows = rows_of(study / FOLDER / "calibrate" / "sweep.csv")
    for name in {row["set"] for row in rows}:
        assert [int(row["votes"]) for row in rows if row["set"] == name] == list(range(1, 17))
    assert any("positive patients" in note for note in _notes(study))


def _notes(study: Path) -> list[str]:
    return json.loads((study / FOLDER / "calibrate" / "manifest.json").read_text())["notes"]


def test_a_score_map_that_can_not_be_read_is_named_and_the_others_are_compared(study: Path, call) -> None:
    call("calibrate", study)
    (broken,) = (study / FOLDER / "score").glob("*S4.tif*.tiff")
    broken.write_bytes(b"no picture")
    code, out, _ = call("compare", study)
    assert code == 2
    assert "S4.tif" in out and "score the slide again" in out
    comparison = compared(study)
    assert len(comparison.slides) == 5
    assert [(one.image, one.what) for one in comparison.left_out] == [("S4.tif", "everything")]


def test_calibrate_leaves_out_a_score_map_that_can_not_be_read(study: Path, call) -> None:
    (broken,) = (study / FOLDER / "score").glob("*S4.tif*.tiff")
    broken.write_bytes(b"no picture")
    code, out, _ = call("calibrate", study)
    assert code == 2 and "S4.tif" in out


def test_readers_stand_beside_the_ai(study: Path, call, tmp_path: Path) -> None:
    call("calibrate", study)
    table = tmp_path / "readers.csv"
    lines = [f"S{n}.tif,{'1' if n % 2 else '0'},{'1' if n != 2 else '0'}" for n in range(1, 7)]
    table.write_text("image,Dr A,Dr B\n" + "\n".join(lines) + "\n")
    code, out, _ = call("compare", study, "--readers", table)
    assert code == 0 and "Dr A" in out and "Fleiss" in out
    readers = compared(study).readers
    right, generous = readers.readers
    assert (right.only_reader_right, right.only_ai_right) == (1, 0)
    assert generous.only_ai_right == 1  # S4
    assert rows_of(study / FOLDER / "compare" / "readers.csv")[0]["reader"] == "Dr A"
    against = [one for one in compared(study).disagreements if one.kind == "reader"]
    assert {(one.image, one.against) for one in against} == {("S6.tif", "Dr A"), ("S4.tif", "Dr B")}


def test_a_readers_project_is_read_by_its_annotations(study: Path, call) -> None:
    call("calibrate", study)
    code, _, _ = call("compare", study, "--reader-project", f"Dr C={study / 'project'}")
    assert code == 0
    (reader,) = compared(study).readers.readers
    assert (reader.reader, reader.sensitivity.count, reader.specificity.count) == ("Dr C", 3, 3)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--readers", "none.csv"), "there is no none.csv"),
        (("--reader-project", "project"), "whose annotations"),
    ],
)
def test_readers_that_are_not_there_are_one_line(study: Path, call, option, said: str) -> None:
    call("calibrate", study)
    code, _, err = call("compare", study, *option)
    assert code == 1 and said in err and "Traceback" not in err


def test_compare_before_calibrate_names_the_command(study: Path, call) -> None:
    code, _, err = call("compare", study)
    assert code == 1 and "run: hnscc-qp calibrate" in err


def test_slides_scored_again_need_a_threshold_of_their_own(study: Path, call) -> None:
    call("calibrate", study)
    path = study / FOLDER / "score" / "manifest.json"
    manifest = json.loads(path.read_text())
    first = next(iter(manifest["outputs"]))
    manifest["outputs"][first] = "0" * 64
    path.write_text(json.dumps(manifest))
    code, _, err = call("compare", study)
    assert code == 1 and "scored again since the threshold was chosen; run: hnscc-qp calibrate" in err


def test_a_threshold_of_another_cohort_is_not_judged(study: Path, call) -> None:
    call("calibrate", study)
    members = study / FOLDER / "patches" / "cohort.json"
    members.write_text(json.dumps(json.loads(members.read_text())[1:]))
    code, _, err = call("compare", study)
    assert code == 1 and "cohort has changed since the threshold was chosen; run: hnscc-qp calibrate" in err


def test_without_a_positive_development_slide_there_is_nothing_to_calibrate_by(tmp_path: Path, call) -> None:
    study = write_study(tmp_path, text=STUDY + '[split]\ntest_patients = ["P1", "P2"]\n')
    write_scored(tmp_path, {"S1.tif": {TUMOR: 16}}, study=study)
    members = tmp_path / FOLDER / "patches" / "cohort.json"
    rows = [row for row in json.loads(members.read_text()) if row["image"] not in ("S3.tif", "S5.tif")]
    members.write_text(json.dumps(rows))
    code, _, err = call("calibrate", study)
    assert code == 1 and "has no positive slide to choose a threshold by" in err


def test_a_damaged_threshold_says_what_to_do(study: Path, call) -> None:
    call("calibrate", study)
    (study / FOLDER / "calibrate" / "threshold.json").write_text('{"score": 0.5}')
    code, _, err = call("compare", study)
    assert code == 1 and "run hnscc-qp calibrate with --force" in err


@pytest.mark.parametrize("value", ["-1", "inf", "'large'"])
def test_a_smallest_area_that_is_none_is_refused(study: Path, call, value: str) -> None:
    settings = study / "study.toml"
    settings.write_text(settings.read_text() + f"\n[calibration]\nmin_lesion_um2 = {value}\n")
    code, _, err = call("calibrate", study)
    assert code == 1 and "calibration.min_lesion_um2" in err and "Traceback" not in err


def test_slides_without_manual_truth_are_left_out_and_counted(tmp_path: Path, call) -> None:
    images = []
    for number in range(1, 9):
        tumor = number % 2 == 1
        slide = write_slide(tmp_path / "slides" / f"S{number}.tif", tumor=tumor, seed=number)
        image = new_image(slide, number=number, tumor=tumor)
        values = {name: getattr(image, name) for name in image.__slots__}
        if number == 7:  # positive, but nothing is outlined
            values["annotations"] = []
        if number == 8:  # nobody said what it is
            values["metadata"] = {"patient": "P8"}
        images.append(type(image)(**values))
    create_project(tmp_path / "project", images, path_classes=[PathClass(("Tumor",), (200, 0, 0))])
    (tmp_path / "study.toml").write_text(STUDY)
    study = write_scored(
        tmp_path, {"S1.tif": {TUMOR: 16}, "S7.tif": {TUMOR: 15}}, study=tmp_path / "study.toml"
    )
    call("calibrate", study)
    code, out, _ = call("compare", study)
    assert code == 0
    comparison = compared(tmp_path)
    assert [(one.image, one.what) for one in comparison.left_out] == [
        ("S8.tif", "everything"),
        ("S7.tif", "areas and lesions"),
    ]
    (seven,) = [one for one in comparison.slides if one.image == "S7.tif"]
    assert (seven.exact, seven.call) == (None, "positive")
    assert [one.match for one in comparison.lesions if one.image == "S7.tif"] == ["not judged"]
    assert "1 slide left out of everything" in out


def test_without_negative_slides_specificity_is_unknown_not_wrong(tmp_path: Path, call) -> None:
    images = []
    for number in (1, 3, 5):
        slide = write_slide(tmp_path / "slides" / f"S{number}.tif", tumor=True, seed=number)
        images.append(new_image(slide, number=number, tumor=True))
    create_project(tmp_path / "project", images, path_classes=[PathClass(("Tumor",), (200, 0, 0))])
    (tmp_path / "study.toml").write_text(STUDY)
    votes = {f"S{n}.tif": {TUMOR: 16} for n in (1, 3, 5)}
    study = write_scored(tmp_path, votes, study=tmp_path / "study.toml")
    call("calibrate", study)
    code, out, _ = call("compare", study)
    assert code == 0
    comparison = compared(tmp_path)
    assert all(one.specificity is None and one.auc is None and one.roc == () for one in comparison.figures)
    assert "slide is negative" in out


def test_an_ignored_annotation_and_a_necrosis_are_not_judged(tmp_path: Path, call) -> None:
    images = []
    for number in range(1, 7):
        tumor = number % 2 == 1
        slide = write_slide(tmp_path / "slides" / f"S{number}.tif", tumor=tumor, seed=number)
        image = new_image(slide, number=number, tumor=tumor)
        if number == 1:
            more = [
                *image.annotations,
                annotation(box(80, 80, 120, 240), "Necrosis"),
                annotation(box(250, 80, 350, 240), "Ignore*"),
            ]
            image = type(image)(
                **{name: getattr(image, name) for name in image.__slots__} | {"annotations": more}
            )
        images.append(image)
    create_project(tmp_path / "project", images, path_classes=[PathClass(("Tumor",), (200, 0, 0))])
    text = STUDY.replace(
        'tumor = ["Tumor"]', 'tumor = ["Tumor"]\nnontumor = ["Necrosis"]\nignored = ["Ignore*"]'
    )
    (tmp_path / "study.toml").write_text(text)
    ignored = (10, 26, 20, 30)
    votes = {"S1.tif": {(8, 4, 24, 24): 16, ignored: 16}, "S3.tif": {TUMOR: 16}, "S5.tif": {TUMOR: 16}}
    study = write_scored(tmp_path, votes, study=tmp_path / "study.toml")
    call("calibrate", study)
    assert call("compare", study)[0] == 0
    (one,) = [slide for slide in compared(tmp_path).slides if slide.image == "S1.tif"]
    assert one.truth_um2 == pytest.approx(120 * 160)
    # 200 µm wide by 160: 120 of it tumour, 40 necrosis, 40 before the outline.
    assert one.ai_um2[15] == pytest.approx(200 * 160)
    assert one.overlap_um2[15] == pytest.approx(120 * 160)
    assert one.tissue_um2 == pytest.approx(360 * 280 - 100 * 160)
    by_area = {
        round(lesion.area_um2): lesion.match
        for lesion in compared(tmp_path).lesions
        if lesion.image == "S1.tif"
    }
    assert by_area == {32_000: "detected", 4000: "not judged"}
