"""A new project and study file from slides: what is in them, and what a real QuPath makes of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from drawnframes import half, write_scn, write_tiff
from PIL import Image

from hnscc_qp.cli.main import main
from hnscc_qp.errors import CohortError, ProjectError, SlideReadError, StudyError
from hnscc_qp.geometry import Mpp, PixelSize, Region
from hnscc_qp.progress import SILENT
from hnscc_qp.qupath import jvm
from hnscc_qp.qupath.project import open_project
from hnscc_qp.slides.reader import open_slide
from hnscc_qp.steps import new
from hnscc_qp.studyfile import load_study

ORIGIN = (96, 64)
PIXELS = np.random.default_rng(2).integers(0, 256, (400, 600, 3), dtype=np.uint8)


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    """A Leica SCN with bounds, a TIFF, and one without a pixel size, in a folder with spaces and umlauts."""
    folder = tmp_path / "Präparate 1"
    folder.mkdir()
    return [
        write_scn(folder / "a.scn", [PIXELS, half(PIXELS)], 0.25, ORIGIN),
        write_tiff(folder / "fall ö.tif", [PIXELS, half(PIXELS)], 0.5),
        write_tiff(folder / "no mpp.tif", [PIXELS], None),
    ]


def make_study(folder: Path, slides: list[Path], patients: Path | None = None, classes=None):
    return new.make_study(folder, slides, patients=patients, classes=classes, progress=SILENT)


def write_table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_the_project_shows_each_slide_as_qupath_would(tmp_path, slides):
    made = make_study(tmp_path / "study", slides)
    assert made["failed"] == {}
    assert made["project"] == str(tmp_path / "study" / "project" / "project.qpproj")
    project = open_project(Path(made["project"]), backend="embedded")
    assert [image.name for image in project.images] == [path.name for path in slides]
    assert [image.size for image in project.images] == [(600, 400)] * 3
    assert [image.pixel_size for image in project.images] == [
        PixelSize(Mpp(0.25), Mpp(0.25)),
        PixelSize(Mpp(0.5), Mpp(0.5)),
        None,
    ]
    assert [project.slide_path(image) for image in project.images] == slides
    for image in project.images:
        with Image.open(Path(made["project"]).parent / "data" / image.entry_id / "thumbnail.jpg") as picture:
            assert picture.size == (600, 400)
    assert "without a pixel size: no mpp.tif; set it in QuPath" in made["notes"][0]


def test_where_there_is_no_qupath_the_image_type_is_left_to_it_and_said_so(tmp_path, slides, monkeypatch):
    find_spec = jvm.importlib.util.find_spec
    monkeypatch.setattr(
        jvm.importlib.util, "find_spec", lambda name: None if name == "paquo" else find_spec(name)
    )
    made = make_study(tmp_path / "study", slides)
    assert [image["image_type"] for image in made["images"]] == [None] * 3
    assert any(
        "image type is left to QuPath" in note and "paquo is not installed" in note for note in made["notes"]
    )
    assert "choose Brightfield (H&E)" in made["next"][1] and "set_image_type.groovy" in made["next"][1]
    assert not list((tmp_path / "study" / "project").rglob("*.qpdata"))


def test_the_study_file_is_ready_to_use(tmp_path, slides):
    made = make_study(tmp_path / "study", slides)
    study = load_study(tmp_path / "study")
    assert study.path == Path(made["study"])
    assert study.name == "study"
    assert study.project == Path(made["project"])
    assert study.slides == (slides[0].parent,)
    assert study.classes.tumor == ("Tumor",)
    # Nothing is drawn yet, and classes that are named must be.
    assert study.classes.nontumor == study.classes.ignored == ()
    text = study.path.read_text(encoding="utf-8")
    study.path.write_text(text.replace("# nontumor", "nontumor").replace("# ignored", "ignored"), "utf-8")
    uncommented = load_study(study.path).classes
    assert (uncommented.nontumor, uncommented.ignored) == (("Necrosis", "Stroma"), ("Ignore*",))


def test_odd_names_of_folders_make_a_study_file_all_the_same(tmp_path, slides):
    folder = tmp_path / 'odd "name" \\ {x} 100%'
    make_study(folder, slides)
    assert load_study(folder).name == folder.name


def test_classes_have_qupaths_colours_and_can_be_chosen(tmp_path, slides):
    made = make_study(tmp_path / "default", slides)
    classes = open_project(Path(made["project"]), backend="embedded").path_classes
    assert [(str(one), one.color) for one in classes] == [
        ("Tumor", (200, 0, 0)),
        ("Necrosis", (50, 50, 50)),
        ("Stroma", (150, 200, 150)),
        ("Ignore*", (180, 180, 180)),
        ("AI: Tumor", (255, 90, 0)),
    ]
    made = make_study(tmp_path / "chosen", slides, classes=["Keratin", "Tumor", "Tumor: Edge"])
    classes = open_project(Path(made["project"]), backend="embedded").path_classes
    assert [str(one) for one in classes] == ["Tumor", "Keratin", "Tumor: Edge", "AI: Tumor"]
    assert classes[2].names == ("Tumor", "Edge")
    with pytest.raises(StudyError, match="can't hold a class named ' '"):
        make_study(tmp_path / "bad", slides, classes=[" "])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_becomes_metadata_by_file_name(tmp_path, slides, delimiter, encoding):
    rows = [
        ["Slide", "Patient", "status", "surgery date", "note"],
        ["D:\\scans\\fall ö.tif", "HN-2", "negative", "2021-03-04", '"two words"'],
        ["a.scn", " HN-1 ", "positive", "", ""],
        ["", "", "", "", ""],
        ["other.tif", "HN-3", "positive", "", ""],
    ]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    made = make_study(tmp_path / "study", slides, write_table(tmp_path / "p.csv", text, encoding))
    images = open_project(Path(made["project"]), backend="embedded").images
    assert [dict(image.metadata) for image in images] == [
        {"patient": "HN-1", "status": "positive"},
        {"patient": "HN-2", "status": "negative", "surgery date": "2021-03-04", "note": "two words"},
        {},
    ]
    assert any("rows about slides that were not given: other.tif" in note for note in made["notes"])
    assert any("no row about no mpp.tif; each is a patient of its own" in note for note in made["notes"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name,patient\na.scn,1\n", "no column 'slide'.*its columns are name, patient"),
        (b"", "no column 'slide'.*its columns are none"),
        (b"slide,patient,Patient\n", "two columns of one name"),
        (b"slide,patient\na.scn,1\nx/a.scn,2\n", "two rows about a.scn"),
        ("slide,patient\na.scn,Müller\n".encode("cp1252"), "CSV UTF-8"),
    ],
)
def test_a_table_that_can_not_be_meant_is_refused_and_nothing_is_written(tmp_path, slides, content, problem):
    table = tmp_path / "p.csv"
    table.write_bytes(content)
    with pytest.raises((StudyError, CohortError), match=problem):
        make_study(tmp_path / "study", slides, table)
    assert not (tmp_path / "study").exists()


def test_a_folder_that_holds_anything_is_refused(tmp_path, slides):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "notes.txt").touch()
    with pytest.raises(StudyError, match="is not an empty folder"):
        make_study(tmp_path / "study", slides)
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["notes.txt"]


def test_slides_of_one_name_are_refused(tmp_path, slides):
    (tmp_path / "x").mkdir()
    twin = write_tiff(tmp_path / "x" / "a.scn", [PIXELS], 0.5)
    with pytest.raises(CohortError, match="have the same name"):
        make_study(tmp_path / "study", [*slides, twin])


def test_a_slide_that_can_not_be_read_is_left_out_by_name(tmp_path, slides, capsys):
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"not a slide")
    with pytest.raises(SlideReadError):
        make_study(tmp_path / "none", [bad])
    assert not (tmp_path / "none").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", "new", str(tmp_path / "some"), str(bad), *map(str, slides)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    out = capsys.readouterr().out
    assert "bad.svs" in out
    assert "What to do next" in out
    assert len(open_project(tmp_path / "some" / "project", backend="embedded").images) == 3


def test_the_command_prints_json_and_nothing_else(tmp_path, slides, capsys):
    table = write_table(tmp_path / "p.csv", "slide,patient\na.scn,1\n")
    arguments = ["new", tmp_path / "study", *slides, "--patients", table, "--class", "Keratin", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    made = json.loads(capsys.readouterr().out)
    assert [image["metadata"] for image in made["images"]] == [{"patient": "1"}, {}, {}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", "doctor", str(tmp_path / "study"), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2  # no mpp.tif has no pixel size
    assert list(json.loads(capsys.readouterr().out)["failed"]) == ["no mpp.tif"]


@pytest.mark.qupath
def test_a_real_qupath_opens_the_project_and_shows_the_same_pixels(tmp_path, slides):
    if "PAQUO_QUPATH_DIR" not in os.environ:
        pytest.skip("no QuPath: set PAQUO_QUPATH_DIR")
    pytest.importorskip("paquo")
    table = write_table(tmp_path / "p.csv", "slide,patient,status\na.scn,HN-1,positive\n")
    made = make_study(tmp_path / "study", slides, table)
    project = open_project(Path(made["project"]), backend="paquo")
    from jpype import JClass

    assert [image["image_type"] for image in made["images"]] == ["Brightfield (H&E)"] * 3
    assert [image.image_type for image in project.images] == ["Brightfield (H&E)"] * 3
    assert not any("image type" in line for line in [*made["notes"], *made["next"]])
    assert project.objects(project.images[0]) == ()
    with pytest.raises(ProjectError, match="saved already"):
        project.set_image_type(project.images[0], "FLUORESCENCE")
    assert [image.name for image in project.images] == [path.name for path in slides]
    assert dict(project.images[0].metadata) == {"patient": "HN-1", "status": "positive"}
    assert str(project.path_classes[0]) == "Tumor"
    opened = JClass("qupath.lib.projects.ProjectIO").loadProject(
        JClass("java.io.File")(made["project"]), JClass("java.awt.image.BufferedImage").class_
    )
    plain_builder = JClass("qupath.lib.images.servers.openslide.OpenslideServerBuilder")()
    for entry, image, path in zip(opened.getImageList(), project.images, slides, strict=True):
        server = entry.readImageData().getServer()
        assert str(entry.readImageData().getImageType()) == "Brightfield (H&E)"
        # What QuPath itself would have stored of the slide.
        theirs = plain_builder.buildServer(JClass("java.net.URI")(path.as_uri()))
        assert (int(server.getWidth()), int(server.getHeight())) == (600, 400)
        assert str(server.getMetadata().getLevels()) == str(theirs.getMetadata().getLevels())
        assert str(server.getPixelCalibration()) == str(theirs.getPixelCalibration())
        slide = open_slide(path, pixel_size=PixelSize(Mpp(1.0), Mpp(1.0)))
        request = JClass("qupath.lib.regions.RegionRequest").createInstance(
            server.getPath(), 1.0, 50, 60, 200, 100
        )
        packed = np.array(server.readRegion(request).getRGB(0, 0, 200, 100, None, 0, 200)[:], np.int64)
        rgb = np.stack([packed >> shift & 0xFF for shift in (16, 8, 0)], axis=-1).reshape(100, 200, 3)
        np.testing.assert_array_equal(rgb, slide.read(Region(50, 60, 200, 100), Mpp(1.0)))
        assert image.unsupported is None
