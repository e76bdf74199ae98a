"""`patches --check` as a user runs it: what it finds, what it leaves alone, and the sheet in a browser."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tifffile
from shapely.geometry import box
from studies import SIZE, STUDY, TUMOR_BOX, annotation, new_image, write_slide, write_study

from hnscc_qp.cli.main import main
from hnscc_qp.qupath.create import create_project
from hnscc_qp.qupath.objects import PathClass


def check(study: Path, *options: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", "patches", str(study), "--check", *options])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_troubled_study(folder: Path) -> Path:
    """Six slides; S1 has a sliver and a class nobody mapped, S2 a tumor though negative, and
    S4 is a copy of S3's slide under another patient."""
    images = []
    for number in range(1, 7):
        tumor = number in (1, 3, 4, 5)
        seed = 3 if number == 4 else number
        slide = write_slide(folder / "slides" / f"S{number}.tif", tumor=tumor, seed=seed)
        image = new_image(slide, number=number, tumor=tumor)
        if number == 1:
            image.annotations.extend(
                [
                    annotation(box(300, 200, 303, 203)),
                    annotation(box(250, 250, 300, 290), "Fold"),
                ]
            )
        if number == 2:
            image.annotations.append(annotation(box(*TUMOR_BOX)))
        images.append(image)
    create_project(folder / "project", images, path_classes=[PathClass(("Tumor",), (200, 0, 0))])
    study = folder / "study.toml"
    study.write_text(STUDY + '[split]\ntest_patients = ["P3", "P6"]\n')
    return study


def findings(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    report = json.loads((folder / "check" / "check.json").read_text())
    return {(one["image"], one["rule"]): one for one in report["findings"]}


def test_contradictions_are_named_and_nothing_but_the_report_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_troubled_study(tmp_path)
    before = hashes(tmp_path)
    assert check(study) == 2, "S2 can't be used as it is"
    after = hashes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"check/check.json", "check/contact-sheet.html"}
    found = findings(tmp_path)
    assert found["S1.tif", "sliver"]["message"].endswith("sliver of 9 µm²")
    assert "class Fold" in found["S1.tif", "unmapped class"]["message"]
    assert found["S2.tif", "contradiction"]["severity"] == "error"
    assert "looks like S4.tif" in found["S3.tif", "near duplicate"]["message"]
    assert "for test and the other for" in found["S3.tif", "near duplicate"]["message"]
    said = capsys.readouterr().out
    assert "sliver" in said
    assert "windows by rule" in said
    assert "Research use only" in said


def test_a_sound_study_has_no_findings_and_json_is_all_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path)
    assert check(study, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == []
    assert report["counts"]["windows"]["S1.tif"]["tumor: annotation"] == sum(
        1 for x in range(0, 361, 10) for y in range(0, 281, 10) if 40 < x < 240 and 40 < y < 240
    )
    assert all(report["counts"]["pictures"][kind] == 24 for kind in ("tumor", "nontumor", "borderline"))
    before = (tmp_path / "check" / "contact-sheet.html").read_bytes()
    assert check(study) == 0
    assert (tmp_path / "check" / "contact-sheet.html").read_bytes() == before


def test_a_slide_that_is_gone_is_named_and_the_others_are_checked(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    (tmp_path / "slides" / "S2.tif").unlink()
    assert check(study) == 2
    assert findings(tmp_path)["S2.tif", "can't be read"]["severity"] == "error"


class _Sheet(HTMLParser):
    """Links, ids and what comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        for key in ("href", "src"):
            if value := values.get(key):
                self.links.append(value)
        self.pictures += tag == "svg"


def test_the_sheet_holds_all_it_shows_and_tells_how_to_find_it_in_qupath(tmp_path: Path) -> None:
    assert check(write_study(tmp_path)) == 0
    text = (tmp_path / "check" / "contact-sheet.html").read_text()
    sheet = _Sheet()
    sheet.feed(text)
    assert all(link.startswith(("#", "data:")) for link in sheet.links)
    assert {link[1:] for link in sheet.links if link.startswith("#")} <= set(sheet.ids)
    assert len(sheet.ids) == len(set(sheet.ids))
    assert sheet.pictures >= 72
    assert "Research use only: not for diagnosis." in text
    assert "getCurrentViewer().setCenterPixelLocation(" in text
    assert str(annotation(box(*TUMOR_BOX)).id) in text


def test_names_from_the_project_are_text_in_the_sheet_not_markup(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slides" / "S1.tif", tumor=True, seed=1)
    image = new_image(slide, number=1, tumor=True)
    image.annotations.append(annotation(box(10, 10, SIZE[0] - 10, 60), "<script>alert(1)</script>"))
    create_project(tmp_path / "project", [image], path_classes=[])
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    check(study)
    text = (tmp_path / "check" / "contact-sheet.html").read_text()
    assert "&lt;script&gt;" in text
    assert "<script" not in text


def test_the_sheet_opens_in_a_browser_without_a_complaint(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium to open the sheet in")
    assert check(write_study(tmp_path)) == 0
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'browser'}",
            "--window-size=400,900",
            f"--screenshot={tmp_path / 'sheet.png'}",
            (tmp_path / "check" / "contact-sheet.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 20_000


def test_a_damaged_slide_is_named_and_its_windows_counted_as_patches_will_count_them(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    with tifffile.TiffFile(tmp_path / "slides" / "S1.tif") as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    with (tmp_path / "slides" / "S1.tif").open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)
    assert check(study) == 0
    report = json.loads((tmp_path / "check" / "check.json").read_text())
    (damaged,) = [one for one in report["findings"] if one["rule"] == "damaged"]
    assert damaged["image"] == "S1.tif" and "can't be decoded" in damaged["message"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", "patches", str(study)])
        with pytest.raises(SystemExit):
            main()
    made = json.loads((tmp_path / "generations" / "001" / "patches" / "manifest.json").read_text())
    checked: Counter[str] = Counter()
    for rules in report["counts"]["windows"].values():
        checked.update(rules)
    cut = {
        f"{label}: {rule}": count
        for label, rules in made["counts"]["rules"].items()
        for rule, count in rules.items()
    }
    assert checked == cut
