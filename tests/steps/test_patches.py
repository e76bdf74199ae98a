"""`hnscc-qp patches` on a drawn cohort: splits that hold, and what happens when they are to change."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from studies import STUDY, write_study

from hnscc_qp.cli.main import main
from hnscc_qp.patches.cases import ImageCase
from hnscc_qp.patches.split import Side, split_patients
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
