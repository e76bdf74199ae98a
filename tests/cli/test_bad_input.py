"""Bad input gets one line that says what is wrong and what to do, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shapely.geometry import box
from studies import STUDY, annotation, new_image, write_slide, write_study

from hnscc_qp.cli.main import main
from hnscc_qp.qupath.create import create_project
from hnscc_qp.qupath.objects import PathClass

TUMOR = [PathClass(("Tumor",), (200, 0, 0))]


class Ended:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


def test_no_study(call, tmp_path: Path) -> None:
    ended = call("run", tmp_path / "none.toml")
    assert ended.code == 1
    assert "there is no study file" in ended.error


def test_study_that_is_not_toml(call, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("project = ")
    ended = call("run", tmp_path)
    assert ended.code == 1
    assert "is not TOML" in ended.error


def test_unknown_key_is_named_with_the_nearest_known_one(call, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('project = "p"\n[training]\nepoch = 3\n')
    ended = call("run", tmp_path)
    assert ended.code == 1
    assert "did you mean 'epochs' in [training.window] or [training.dense]?" in ended.error


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("[training.window]\nepochs = 0", "training.window.epochs"),
        ('[training.window]\nepochs = "3"', "training.window.epochs"),
        ('[training]\nnetwork = "vgg16"', "training.network"),
        ("[patches]\nstride_px = 15", "patches.stride_px"),
        ('[classes]\ntumor = ["A"]\nnontumor = ["A"]', "named under more than one meaning: A"),
        ("[classes]\ntumor = []", "classes.tumor"),
        ("[split]\ntest = 1.0", "split.test"),
    ],
)
def test_wrong_value_is_named(call, tmp_path: Path, setting: str, said: str) -> None:
    (tmp_path / "study.toml").write_text(f'project = "p"\n{setting}\n')
    ended = call("run", tmp_path)
    assert ended.code == 1
    assert said in ended.error


def test_study_without_a_project(call, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('name = "x"\n')
    ended = call("run", tmp_path)
    assert ended.code == 1
    assert "'project' is missing" in ended.error


def test_no_project(call, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('project = "nowhere"\n')
    for arguments in (("run", tmp_path), ("objects", tmp_path / "nowhere")):
        ended = call(*arguments)
        assert ended.code == 1
        assert "there is no QuPath project" in ended.error


def test_not_a_project(call, tmp_path: Path) -> None:
    (tmp_path / "notes.qpproj").write_text("hello")
    ended = call("objects", tmp_path / "notes.qpproj")
    assert ended.code == 1
    assert "is not a QuPath project" in ended.error


def test_empty_project(call, tmp_path: Path) -> None:
    create_project(tmp_path / "project", [], path_classes=TUMOR)
    ended = call("objects", tmp_path / "project")
    assert ended.code == 1
    assert "holds no images" in ended.error


def test_no_tumor_annotation(call, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", tumor=True, seed=1)
    create_project(tmp_path / "project", [new_image(slide, number=2, tumor=False)], path_classes=TUMOR)
    (tmp_path / "study.toml").write_text(STUDY)
    ended = call("patches", tmp_path)
    assert ended.code == 1
    assert "has a tumor annotation" in ended.error


def test_class_that_no_object_has_is_named_with_those_there(call, tmp_path: Path) -> None:
    write_study(tmp_path, text=STUDY.replace('tumor = ["Tumor"]', 'tumor = ["Tumour"]'))
    ended = call("patches", tmp_path)
    assert ended.code == 1
    assert "Tumour" in ended.error
    assert "Tumor (3)" in ended.error


def test_misspelt_class_of_lesser_meaning_is_an_error_too(call, tmp_path: Path) -> None:
    text = STUDY.replace('tumor = ["Tumor"]', 'tumor = ["Tumor"]\nnontumor = ["Necrosi"]')
    write_study(tmp_path, text=text)
    ended = call("patches", tmp_path)
    assert ended.code == 1
    assert "Necrosi" in ended.error
    assert "classes.nontumor" in ended.error


def test_negative_slide_with_a_tumor_annotation_is_an_error(call, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", tumor=True, seed=1)
    image = new_image(slide, number=1, tumor=True)
    image.metadata["status"] = "negative"  # type: ignore[index]
    create_project(tmp_path / "project", [image], path_classes=TUMOR)
    (tmp_path / "study.toml").write_text(STUDY)
    ended = call("patches", tmp_path)
    assert ended.code == 1
    assert "a.tif" in ended.error
    assert "negative" in ended.error


def test_slide_that_is_missing_is_named_with_where_it_was_looked_for(call, tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "slides" / "S2.tif").unlink()
    ended = call("patches", tmp_path)
    assert ended.code == 2
    assert "S2.tif" in ended.err
    assert str(tmp_path / "slides") in ended.err


def test_slide_that_is_unreadable_is_named(call, tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "slides" / "S2.tif").write_bytes(b"not a slide")
    ended = call("patches", tmp_path)
    assert ended.code == 2
    assert "S2.tif is not a slide that OpenSlide reads" in ended.err


def test_slide_without_pixel_size_is_named_with_the_remedy(call, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", tumor=True, seed=1, mpp=None)
    create_project(
        tmp_path / "project", [new_image(slide, number=1, tumor=True, mpp=None)], path_classes=TUMOR
    )
    (tmp_path / "study.toml").write_text(STUDY)
    ended = call("patches", tmp_path)
    assert ended.code == 1
    assert "a.tif has no pixel size; set it in QuPath" in ended.error


def test_slide_of_another_size_is_never_wrongly_placed(call, tmp_path: Path) -> None:
    write_study(tmp_path)
    project = tmp_path / "project" / "project.qpproj"
    value = json.loads(project.read_text())
    value["images"][1]["serverBuilder"]["metadata"]["width"] = 401
    project.write_text(json.dumps(value))
    ended = call("patches", tmp_path)
    assert ended.code == 2
    assert "not the same image" in ended.err


def test_server_that_cant_be_placed_is_named(call, tmp_path: Path) -> None:
    write_study(tmp_path)
    project = tmp_path / "project" / "project.qpproj"
    value = json.loads(project.read_text())
    value["images"][1]["serverBuilder"]["args"] = ["--series", "2"]
    project.write_text(json.dumps(value))
    ended = call("patches", tmp_path)
    assert ended.code == 2
    assert "S2.tif" in ended.err
    assert "--series" in ended.err
    listed = call("objects", tmp_path / "project")
    assert "S2.tif" in listed.out
    assert "--series" in listed.out


def test_damaged_objects_are_named_and_the_other_images_are_done(call, tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "project" / "data" / "2" / "data.qpdata").write_bytes(b"\xac\xed\x00\x05w")
    ended = call("patches", tmp_path)
    assert ended.code == 2
    assert "S2.tif" in ended.err
    assert call("objects", tmp_path / "project").code == 2


def test_weights_that_are_not_there(call, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert call("patches", study).code == 0
    ended = call("train", study, "--weights", tmp_path / "none.safetensors")
    assert ended.code == 1
    assert "none.safetensors" in ended.error


def test_step_that_comes_too_early_names_the_command(call, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    for command, needed in (("train", "hnscc-qp patches"), ("score", "--stage primary"), ("push", "regions")):
        ended = call(command, study)
        assert ended.code == 1
        assert needed in ended.error


def test_objects_lists_and_writes_what_is_annotated(call, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", tumor=True, seed=1)
    image = new_image(slide, number=1, tumor=True)
    odd = annotation(box(1, 1, 5, 9), "Gewebe äöü 组织")
    image = type(image)(**{name: getattr(image, name) for name in image.__slots__} | {"annotations": [odd]})
    create_project(tmp_path / "project", [image], path_classes=TUMOR)
    ended = call("objects", tmp_path / "project", "-o", tmp_path / "out")
    assert ended.code == 0
    assert "Gewebe äöü 组织" in ended.out
    assert len(list((tmp_path / "out").glob("*.geojson"))) == 1


def test_objects_are_written_in_the_spelling_of_an_old_qupath(call, tmp_path: Path) -> None:
    write_study(tmp_path)
    for asked, there, absent in (("0.3", "object_type", "objectType"), ("0.4", "objectType", "object_type")):
        out = tmp_path / asked
        assert call("objects", tmp_path / "project", "-o", out, "--qupath", asked).code == 0
        (feature,) = json.loads((out / "1 S1.tif.geojson").read_text())["features"]
        assert there in feature["properties"]
        assert absent not in feature["properties"]


def test_help_imports_neither_torch_nor_openslide() -> None:
    code = (
        "import sys; sys.argv = ['hnscc-qp', '--help']\n"
        "from hnscc_qp.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'openslide', 'pydantic', 'shapely', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in (
        "demo",
        "objects",
        "patches",
        "train",
        "mine",
        "score",
        "calibrate",
        "regions",
        "push",
        "run",
    ):
        assert command in done.stdout
