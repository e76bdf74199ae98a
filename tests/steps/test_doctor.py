"""The doctor finds nothing wrong where all is right, in every frame, and names what is wrong where it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawnframes import Shown, half, make_context, write_scn, write_tiff
from PIL import Image
from scipy import ndimage

from hnscc_qp.cli.main import main
from hnscc_qp.qupath import jvm
from hnscc_qp.steps.doctor import check_study

ORIGIN = (130, 90)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """(760, 900, 3): blotches of all sizes, so that every place differs from those around it."""
    rng = np.random.default_rng(5)
    noise = sum(ndimage.gaussian_filter(rng.normal(size=(760, 900)), sigma) * sigma for sigma in (2, 8, 40))
    pink = 170 + 25 * noise / noise.std()
    return np.stack([pink + 40, pink - 20, pink + 15], axis=-1).clip(0, 255).astype(np.uint8)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def turned(quarters: int) -> dict[str, str]:
    return {"builderType": "rotated", "rotation": f"ROTATE_{90 * quarters}"}


def cropped(x: int, y: int, width: int, height: int) -> dict[str, object]:
    region = {"x": x, "y": y, "width": width, "height": height, "z": 0, "t": 0}
    return {"builderType": "cropped", "region": region}


@pytest.mark.parametrize(
    "shown",
    [
        Shown((900, 760)),
        Shown((1160, 940), args=("--no-crop",)),
        Shown((900, 760), calibration=(0.46, 0.4)),
        Shown((900, 760), calibration=(0.3428, 0.3428)),
        Shown((760, 900), wrappers=(turned(1),)),
        Shown((760, 900), calibration=(0.4, 0.46), wrappers=(turned(3),)),
        Shown((700, 611), wrappers=(cropped(31, 55, 700, 611), turned(2))),
        Shown((940, 1160), args=("--no-crop",), wrappers=(turned(1),)),
        Shown((600, 640), wrappers=(turned(1), cropped(101, 17, 600, 640))),
    ],
)
def test_nothing_is_wrong_in_any_frame_and_nothing_is_changed(tmp_path, tissue, shown):
    slide = write_scn(tmp_path / "drawn.scn", [tissue, half(tissue)], 0.5, ORIGIN)
    context = make_context(tmp_path, slide, shown)
    before = tree(tmp_path)
    found = check_study(context)
    assert found["failed"] == {}
    (image,) = found["images"]
    assert image["marks"] >= 1
    assert image["size_px"] == shown.size
    assert image["slide_size_px"] == (1160, 940)
    assert image["mpp"] == (shown.calibration or (0.5, 0.5))
    assert image["mpp_source"] == ("QuPath" if shown.calibration else "slide")
    assert image["levels"][0] == 1
    if not shown.wrappers:
        assert image["bounds_origin_px"] == ((0, 0) if shown.args else ORIGIN)
    assert tree(tmp_path) == before


def test_a_level_that_lies_askew_is_found(tmp_path, tissue):
    shifted = np.roll(half(tissue), 3, axis=1)
    slide = write_tiff(tmp_path / "drawn.tif", [tissue, shifted], 0.5)
    found = check_study(make_context(tmp_path, slide, Shown((900, 760))))
    # What the level shows 3 px too far right lies 3 px to the left in level 0.
    assert "is off by -3, 0 µm in the pixels" in found["failed"]["drawn.tif"]


def test_a_reader_that_forgets_the_bounds_is_found(tmp_path, tissue, monkeypatch):
    slide = write_scn(tmp_path / "drawn.scn", [tissue, half(tissue)], 0.5, ORIGIN)
    context = make_context(tmp_path, slide, Shown((900, 760)))
    opened = context.open_image(context.project.images[0])
    opened.bounds = (0, 0)
    monkeypatch.setattr(type(context), "open_as_scanned", lambda *_: opened)
    assert "shows something else" in check_study(context)["failed"]["drawn.scn"]


def test_labels_that_are_shifted_are_found(tmp_path, tissue, monkeypatch):
    from hnscc_qp.steps import doctor

    def shifted(*args, **kwargs):
        labels = real(*args, **kwargs)
        labels.x_px[:] += 40
        return labels

    real = doctor.label_windows
    monkeypatch.setattr(doctor, "label_windows", shifted)
    slide = write_tiff(tmp_path / "drawn.tif", [tissue], 0.5)
    found = check_study(make_context(tmp_path, slide, Shown((900, 760))))
    assert "labels 9 windows, 3 of its own not" in found["failed"]["drawn.tif"]


def test_a_slide_of_the_wrong_size_is_named(tmp_path, tissue):
    slide = write_scn(tmp_path / "drawn.scn", [tissue], 0.5, ORIGIN)
    found = check_study(make_context(tmp_path, slide, Shown((1160, 940))))
    assert "1160 × 940 px in QuPath" in found["failed"]["drawn.scn"]
    assert "correct the slide's path" in found["failed"]["drawn.scn"]


def test_a_slide_that_does_not_look_like_qupaths_thumbnail_is_named(tmp_path, tissue):
    slide = write_tiff(tmp_path / "drawn.tif", [tissue], 0.5)
    context = make_context(tmp_path, slide, Shown((900, 760)))
    thumbnail = context.project.path.parent / "data" / "1" / "thumbnail.jpg"
    right = Image.fromarray(tissue).resize((450, 380))
    right.save(thumbnail)
    assert check_study(context)["failed"] == {}
    right.rotate(180).save(thumbnail)
    assert "does not look like QuPath's thumbnail" in check_study(context)["failed"]["drawn.tif"]


def test_what_was_not_scanned_does_not_make_another_slide(tmp_path, tissue):
    """It is black in QuPath's thumbnails."""
    slide = write_scn(tmp_path / "drawn.scn", [tissue], 0.5, ORIGIN)
    context = make_context(tmp_path, slide, Shown((1160, 940), args=("--no-crop",)))
    thumbnail = Image.new("RGB", (1160, 940))
    thumbnail.paste(Image.fromarray(tissue), ORIGIN)
    thumbnail.save(context.project.path.parent / "data" / "1" / "thumbnail.jpg")
    assert check_study(context)["failed"] == {}


def test_glass_and_small_images_are_not_called_wrong(tmp_path):
    slide = write_tiff(tmp_path / "glass.tif", [np.full((800, 800, 3), 240, np.uint8)], 0.5)
    glass = check_study(make_context(tmp_path, slide, Shown((800, 800))))
    assert glass["failed"] == {}
    assert glass["images"][0]["remarks"] == ["places not checked: nothing with contrast was found"]
    (tmp_path / "small").mkdir()
    slide = write_tiff(tmp_path / "small.tif", [np.full((300, 300, 3), 240, np.uint8)], 0.5)
    small = check_study(make_context(tmp_path / "small", slide, Shown((300, 300))))
    assert small["images"][0]["remarks"] == ["places not checked: the image is too small"]


def test_a_calibration_that_contradicts_the_slide_is_remarked(tmp_path, tissue):
    slide = write_tiff(tmp_path / "drawn.tif", [tissue], 0.5)
    found = check_study(make_context(tmp_path, slide, Shown((900, 760), calibration=(0.25, 0.25))))
    assert found["images"][0]["remarks"][0].startswith(
        "QuPath says 0.25 × 0.25 µm/px and the slide 0.5 × 0.5"
    )


@pytest.mark.parametrize(
    ("mpp", "problem"),
    [(None, "has no pixel size; set it in QuPath"), (2.0, "coarser than the 1.0 µm/px")],
)
def test_a_pixel_size_that_can_not_be_used_is_named(tmp_path, tissue, mpp, problem):
    slide = write_tiff(tmp_path / "drawn.tif", [tissue], mpp)
    assert problem in check_study(make_context(tmp_path, slide, Shown((900, 760))))["failed"]["drawn.tif"]


def test_a_damaged_level_is_named(tmp_path, tissue):
    slide = write_tiff(tmp_path / "drawn.tif", [tissue, half(tissue)], 0.5)
    context = make_context(tmp_path, slide, Shown((900, 760)))
    with tifffile.TiffFile(slide) as tiff:
        offsets = tiff.pages[0].dataoffsets
    data = bytearray(slide.read_bytes())
    for offset in offsets:
        data[offset : offset + 64] = bytes(64)
    slide.write_bytes(data)
    assert "copy the slide again" in check_study(context)["failed"]["drawn.tif"]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    output = capsys.readouterr()
    return int(ended.value.code or 0), output.out, output.err


def write_study_file(folder: Path) -> Path:
    path = folder / "study.toml"
    path.write_text('project = "project"\nbackend = "embedded"\n', encoding="utf-8")
    return path


def test_the_command_says_what_is_installed(capsys, monkeypatch):
    monkeypatch.setattr(jvm.importlib.util, "find_spec", lambda _: None)
    code, out, _ = call(capsys, "doctor", "--json")
    assert code == 0
    parts = {part["part"]: part for part in json.loads(out)["installed"]}
    assert set(parts) == {"hnscc-qp", "Python", "PyTorch", "OpenSlide", "QuPath"}
    assert parts["OpenSlide"]["version"].startswith("4.")
    assert parts["QuPath"]["version"] is None
    assert "detections go to files: paquo is not installed" in parts["QuPath"]["meaning"]
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert "PyTorch" in out


def test_the_exit_code_tells_some_problems_from_all(tmp_path, tissue, capsys):
    slide = write_tiff(tmp_path / "drawn.tif", [tissue], 0.5)
    project = make_context(tmp_path, slide, Shown((900, 760))).project.path
    study = write_study_file(tmp_path)
    code, out, _ = call(capsys, "doctor", study)
    assert code == 0
    assert "exact" in out

    value = json.loads(project.read_text(encoding="utf-8"))
    lost = json.loads(json.dumps(value["images"][0]).replace("drawn.tif", "lost.tif"))
    value["images"].append(lost | {"entryID": 2})
    project.write_text(json.dumps(value), encoding="utf-8")
    code, out, _ = call(capsys, "doctor", study)
    assert code == 2
    assert "problem: the slide lost.tif of lost.tif is not there" in out

    slide.unlink()
    code, out, _ = call(capsys, "doctor", study, "--json")
    assert code == 1
    assert set(json.loads(out)["failed"]) == {"drawn.tif", "lost.tif"}


def test_a_study_that_is_not_there_is_one_line(tmp_path, capsys):
    code, _, err = call(capsys, "doctor", tmp_path / "none.toml")
    assert code == 1
    assert err.startswith("error: there is no study file")


@pytest.mark.parametrize("version", ["0.3.2", "0.5.1", "0.6.0"])
def test_qupaths_own_projects_pass(shared, tmp_path, version, capsys):
    samples = shared / "qupath" / "samples"
    study = tmp_path / "study.toml"
    lines = [
        f"project = {json.dumps(str(samples / f'qupath-{version}'))}",
        f"slides = [{json.dumps(str(samples / 'slides'))}]",
        'backend = "embedded"',
    ]
    study.write_text("\n".join(lines), encoding="utf-8")
    code, out, _ = call(capsys, "doctor", study, "--json")
    assert code == 0
    assert all(image["marks"] for image in json.loads(out)["images"])
