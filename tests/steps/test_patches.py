"""`hnscc-qp patches` on a drawn cohort: splits that hold, and what happens when they are to change."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from studies import STUDY, write_study

from hnscc_qp.cli.main import main
from hnscc_qp.patches.cases import ImageCase
from hnscc_qp.patches.split import Side, split_patients
from hnscc_qp.steps import patches
from hnscc_qp.study import Split


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def cohort(folder: Path) -> dict[str, str]:
    rows = json.loads((folder / "generations" / "001" / "patches" / "cohort.json").read_text())
    return {row["patient"]: row["side"] for row in rows}


def set_metadata(folder: Path, number: int, **metadata: str) -> None:
    """As if edited in QuPath."""
    path = folder / "project" / "project.qpproj"
    project = json.loads(path.read_text())
    project["images"][number - 1]["metadata"] |= metadata
    path.write_text(json.dumps(project))


def with_split(lines: str) -> str:
    return f"{STUDY}\n[split]\n{lines}\n"


def test_a_new_seed_does_not_move_who_has_tested(call, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert call("patches", study)[0] == 0
    before = cohort(tmp_path)
    cases = [ImageCase(p, p, p, positive=p in {"P1", "P3", "P5"}) for p in before]
    assert split_patients(cases, Split(seed=1)) == before
    seed = next(
        number
        for number in range(2, 30)
        if any(
            (side is Side.TEST) != (before[patient] == "test")
            for patient, side in split_patients(cases, Split(seed=number)).items()
        )
    )
    study.write_text(with_split(f"seed = {seed}"))
    code, said = call("patches", study)
    assert code == 1
    assert "of the sealed test set of this study P" in said
    assert "start a new study" in said
    assert cohort(tmp_path) == before


def test_a_test_slide_under_a_new_patients_name_still_tests(call, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert call("patches", study)[0] == 0
    before = cohort(tmp_path)
    tester = next(patient for patient, side in before.items() if side == "test")
    trainer = next(patient for patient, side in before.items() if side == "train")
    set_metadata(tmp_path, int(tester[1:]), patient=trainer)
    code, said = call("patches", study)
    assert code == 1
    assert f"{tester[1:]} S{tester[1:]}.tif" in said and "sealed test set" in said


def test_one_file_under_two_patients_cant_be_on_both_sides(call, tmp_path: Path) -> None:
    text = with_split('test_patients = ["P1", "P2"]')
    study = write_study(tmp_path, text=text)
    path = tmp_path / "project" / "project.qpproj"
    project = json.loads(path.read_text())
    project["images"][2]["serverBuilder"]["uri"] = project["images"][0]["serverBuilder"]["uri"]
    path.write_text(json.dumps(project))
    code, said = call("patches", study)
    assert code == 1
    assert "S1.tif and S3.tif are the same file" in said and "give them one patient" in said


def test_a_split_by_date_holds_out_the_later_patients(call, tmp_path: Path) -> None:
    study = write_study(tmp_path, text=with_split('by = "date"\ntest_from = 2020-05-01'))
    for number in range(1, 7):
        set_metadata(tmp_path, number, **{"surgery date": f"2020-0{number}-01"})
    code, said = call("patches", study, "--json")
    assert code == 0, said
    assert {p for p, side in cohort(tmp_path).items() if side == "test"} == {"P5", "P6"}


def test_a_split_from_a_file_is_followed_and_its_change_noticed(call, tmp_path: Path) -> None:
    study = write_study(tmp_path, text=with_split('by = "file"\nfile = "split.csv"'))
    lines = ["slide,side", *(f"S{n}.tif,{'test' if n < 3 else 'development'}" for n in range(1, 7))]
    (tmp_path / "split.csv").write_text("\n".join(lines))
    assert call("patches", study)[0] == 0
    assert {p for p, side in cohort(tmp_path).items() if side == "test"} == {"P1", "P2"}
    table = pq.read_table(tmp_path / "generations/001/patches/development/patches.parquet")
    assert not {"P1", "P2"} & set(table["patient"].to_pylist())
    (tmp_path / "split.csv").write_text("\n".join(lines).replace("S1.tif,test", "S1.tif,tset"))
    code, said = call("patches", study)
    assert code == 1 and "split.csv, line 2: the side is 'tset'" in said
    (tmp_path / "split.csv").write_text("\n".join(lines).replace("S1.tif,test", "S1.tif,train"))
    code, said = call("patches", study)
    assert code == 1 and "sealed test set of this study P1 would be trained on" in said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('by = "file"', "by = 'file' and file"),
        ("fold = 6", "choose 1 to 5"),
        ('by = "fold"\ntest_patients = ["P1"]', "exclude each other"),
        ("test_from = 2020-01-01", "test_from needs by = 'date'"),
        ('by = "date"\ntest_from = "soon"', "split.test_from"),
        ('by = "date"', "no date of surgery of P1"),
        ('by = "fold"', "split.folds = 5, but there are only 3 positive patients"),
    ],
)
def test_a_split_that_cant_be_made_is_one_line(call, tmp_path: Path, lines: str, said: str) -> None:
    code, err = call("patches", write_study(tmp_path, text=with_split(lines)))
    assert code == 1
    assert said in err and "Traceback" not in err


def test_all_contradictions_of_status_are_named_at_once(call, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    for number in (1, 3):
        set_metadata(tmp_path, number, status="negative")
    code, err = call("patches", study)
    assert code == 1
    assert "S1.tif has 'status' = negative but a tumor annotation" in err and "S3.tif has" in err


def written(folder: Path) -> dict[str, bytes]:
    patches = folder / "generations" / "001" / "patches"
    return {
        str(path.relative_to(patches)): path.read_bytes()
        for path in sorted(patches.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_the_same_bytes_come_out_however_many_slides_are_worked_on_at_once(call, tmp_path: Path) -> None:
    write_study(tmp_path)
    project = {name: (tmp_path / name).read_bytes() for name in ("study.toml",)}
    assert call("patches", tmp_path, "--workers", 1)[0] == 0
    one = written(tmp_path)
    assert call("patches", tmp_path, "--workers", 3, "--force")[0] == 0
    assert written(tmp_path) == one
    assert set(one) == {
        "cohort.json",
        *(f"{part}/patches.{kind}" for part in ("development", "test") for kind in ("npy", "parquet")),
    }
    assert (tmp_path / "study.toml").read_bytes() == project["study.toml"]


def test_patches_that_were_killed_go_on_with_the_next_slide_and_come_out_the_same(
    call, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "killed")
    kill_in_the_third_slide = (
        "import os, signal, sys\n"
        "from hnscc_qp.steps import patches\n"
        "from hnscc_qp.cli.main import main\n"
        "cut, calls = patches.cut_windows, []\n"
        "def cut_and_die(*a, out, **k):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        out[:5] = 77\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return cut(*a, out=out, **k)\n"
        "patches.cut_windows = cut_and_die\n"
        f"sys.argv = ['hnscc-qp', 'patches', {str(study)!r}, '--workers', '1']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", kill_in_the_third_slide], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    parts = tmp_path / "killed" / "generations" / "001" / "patches" / "parts"
    assert len(list(parts.glob("*.patches.parquet"))) == 2 and len(list(parts.glob("*.labels.npz"))) == 6
    old = {path: path.stat().st_mtime_ns for path in parts.glob("*.patches.parquet")}
    cut = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            patches, "cut_windows", lambda *a, f=patches.cut_windows, **k: (cut.append(1), f(*a, **k))
        )
        assert call("patches", study)[0] == 0
    assert len(cut) == 6 - len(old)
    shutil.copytree(tmp_path / "killed", tmp_path / "whole", ignore=shutil.ignore_patterns("generations"))
    assert call("patches", tmp_path / "whole")[0] == 0
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "generations" / "001" / "patches" / "manifest.json").read_text())


def test_a_slide_with_a_damaged_tile_loses_only_the_patches_on_it_and_they_are_counted(
    call, tmp_path: Path
) -> None:
    whole = write_study(tmp_path / "whole")
    assert call("patches", whole)[0] == 0
    study = write_study(tmp_path / "torn")
    path = study.parent / "slides" / "S1.tif"
    with tifffile.TiffFile(path) as tiff:  # tiles of 128 px: the second of the second row, within the tumor
        offset, count = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)
    code, err = call("patches", study)
    assert code == 0, err
    tissue, lost = [note for note in manifest(study.parent)["notes"] if "S1.tif" in note]
    assert "places can't be decoded and are taken for no tissue" in tissue
    named = re.match(r"S1\.tif: (\d+) of (\d+) patches can't be decoded and are left out \(", lost)
    before, after = rows_of_s1(whole.parent), rows_of_s1(study.parent)
    assert named and int(named[2]) - int(named[1]) == len(after) > 0
    assert len(before) > len(after)
    assert not [row for row in after if 88 < row["x_px"] < 256 and 88 < row["y_px"] < 256]


def rows_of_s1(folder: Path) -> list[dict[str, Any]]:
    tables = [
        pq.read_table(folder / "generations" / "001" / "patches" / part / "patches.parquet")
        for part in ("development", "test")
    ]
    return [row for table in tables for row in table.to_pylist() if row["entry_id"] == "1"]


def test_a_slide_without_tissue_and_one_that_is_too_coarse_are_named_and_the_others_done(
    call, tmp_path: Path
) -> None:
    study = write_study(tmp_path)
    glass = np.full((320, 400, 3), 244, np.uint8)
    tifffile.imwrite(
        tmp_path / "slides" / "S2.tif",
        glass,
        photometric="rgb",
        tile=(128, 128),
        resolution=(1e4, 1e4),
        resolutionunit=3,
    )
    path = tmp_path / "project" / "project.qpproj"
    project = json.loads(path.read_text())
    metadata = project["images"][3]["serverBuilder"]["metadata"]
    for side in ("pixelWidth", "pixelHeight"):
        metadata["pixelCalibration"][side]["value"] = 1.2
    path.write_text(json.dumps(project))
    code, err = call("patches", study)
    assert code == 2
    assert (
        "S4.tif is 1.2 µm/px, coarser than the 1.0 µm/px the model needs; scan or export it at a finer" in err
    )
    (note,) = [note for note in manifest(tmp_path)["notes"] if "S2.tif" in note]
    assert "no tissue found" in note
    assert set(manifest(tmp_path)["failed"]) == {"S4.tif"}


def test_the_manifest_counts_what_each_rule_did_and_where_nontumor_came_from(call, tmp_path: Path) -> None:
    assert call("patches", write_study(tmp_path))[0] == 0
    counts = manifest(tmp_path)["counts"]
    for label, rules in counts["rules"].items():
        assert sum(rules.values()) == counts["windows"][label]
    assert counts["rules"]["tumor"].keys() == {"annotation"}
    assert counts["rules"]["nontumor"].keys() == {"negative slide", "outside annotations"}
    patches_ = counts["patches"]
    for side, number in counts["nontumor from negative slides"].items():
        assert abs(number - patches_[side]["nontumor"] / 2) <= 0.5
