"""The generated cohort: what is drawn, what is annotated, and what others can open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
from PIL import Image

from hnscc_qp.demo import draw_cohort
from hnscc_qp.demo.anatomy import Metastasis, NodePlan, Tissue
from hnscc_qp.demo.annotate import annotate
from hnscc_qp.demo.cohort import STUDY_TOML
from hnscc_qp.demo.draw import MPP, DrawnNode, draw_node
from hnscc_qp.demo.slides import write_slide
from hnscc_qp.errors import StudyError
from hnscc_qp.progress import SILENT
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import Project, open_project
from hnscc_qp.studyfile import load_study

_SIZE_UM = (480, 400)
_PLAN = NodePlan(
    follicles=2,
    fold=True,
    metastases=(Metastasis((0.5, 0.45), 130, islands=0.3, necrosis=True, pearls=2),),
)


@pytest.fixture(scope="module")
def node() -> DrawnNode:
    return draw_node(_PLAN, seed=7, size_um=_SIZE_UM)


@pytest.fixture(scope="module")
def annotations(node: DrawnNode) -> tuple[PathObject, ...]:
    return annotate(node, seed=7)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_cohort(tmp_path_factory.mktemp("demo"), seed=1, progress=SILENT, size_um=(360, 300))


@pytest.fixture(scope="module")
def project(cohort: Path) -> Project:
    return open_project(cohort.parent / "project", backend="embedded")


def _under(annotations: tuple[PathObject, ...], name: str, shape: tuple[int, int]) -> np.ndarray:
    """Which µm² of the truth have their middle under an annotation of the class."""
    outline = shapely.union_all([item.roi for item in annotations if str(item.path_class) == name])
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return shapely.contains_xy(outline, x / MPP, y / MPP)


def test_the_same_seed_draws_the_same_slide(node: DrawnNode) -> None:
    again = draw_node(_PLAN, seed=7, size_um=_SIZE_UM)
    assert np.array_equal(again.pixels, node.pixels)
    assert np.array_equal(again.truth, node.truth)


def test_another_seed_draws_another_slide(node: DrawnNode) -> None:
    other = draw_node(_PLAN, seed=8, size_um=_SIZE_UM)
    assert (other.truth != node.truth).mean() > 0.05


def test_a_slide_has_two_pixels_per_um_of_truth(node: DrawnNode) -> None:
    assert node.truth.shape == (400, 480)
    assert node.pixels.shape == (800, 960, 3)


def test_every_tissue_that_was_planned_is_there(node: DrawnNode) -> None:
    assert set(np.unique(node.truth)) == {int(tissue) for tissue in Tissue} - {Tissue.CORD}


def test_tissue_is_stained_as_in_h_and_e(node: DrawnNode) -> None:
    truth = node.truth.repeat(2, axis=0).repeat(2, axis=1)
    mean = {tissue: node.pixels[truth == tissue].mean(axis=0) for tissue in np.unique(truth)}
    assert (mean[Tissue.GLASS] > 230).all()
    for pink in (Tissue.CAPSULE, Tissue.KERATIN, Tissue.STROMA):
        red, green, blue = mean[pink]
        assert red > blue > green
    red, green, blue = mean[Tissue.MANTLE]
    assert blue > red > green
    # Lymphocytes lie closest in the mantle; germinal centres and tumor are paler.
    assert mean[Tissue.MANTLE].sum() < mean[Tissue.TUMOR].sum() < mean[Tissue.SINUS].sum()
    assert mean[Tissue.MANTLE].sum() < mean[Tissue.GERMINAL].sum()


def test_no_tumor_is_left_outside_the_annotations(
    node: DrawnNode, annotations: tuple[PathObject, ...]
) -> None:
    tumor = np.isin(node.truth, (Tissue.TUMOR, Tissue.KERATIN))
    assert tumor.sum() > 5_000
    assert _under(annotations, "Tumor", tumor.shape)[tumor].all()


def test_tumor_annotations_are_not_much_larger_than_the_tumor(
    node: DrawnNode, annotations: tuple[PathObject, ...]
) -> None:
    deposit = node.truth >= Tissue.STROMA
    assert deposit[_under(annotations, "Tumor", deposit.shape)].mean() > 0.9


@pytest.mark.parametrize(("name", "tissue"), [("Necrosis", Tissue.NECROSIS), ("Stroma", Tissue.STROMA)])
def test_necrosis_and_stroma_are_annotated_where_they_are_pure(
    node: DrawnNode, annotations: tuple[PathObject, ...], name: str, tissue: Tissue
) -> None:
    found = node.truth[_under(annotations, name, node.truth.shape)]
    assert len(found) > 1_000
    assert (found == tissue).mean() > 0.97
    assert not np.isin(found, (Tissue.TUMOR, Tissue.KERATIN)).mean() > 0.01


def test_the_fold_is_to_be_ignored(node: DrawnNode, annotations: tuple[PathObject, ...]) -> None:
    assert node.fold.any()
    assert _under(annotations, "Ignore*", node.fold.shape)[node.fold].all()


def test_openslide_reads_levels_pixels_and_pixel_size(node: DrawnNode, tmp_path: Path) -> None:
    levels = write_slide(tmp_path / "node.tif", node.pixels, mpp=MPP)
    with openslide.OpenSlide(tmp_path / "node.tif") as slide:
        assert slide.level_dimensions == ((960, 800), (480, 400), (240, 200))
        assert levels == ((1.0, 960, 800), (2.0, 480, 400), (4.0, 240, 200))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        for level in range(3):
            read = slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("L")
            wanted = np.asarray(Image.fromarray(node.pixels).reduce(2**level).convert("L"), float)
            lost_to_jpeg = np.abs(np.asarray(read, float) - wanted).mean()
            lost_to_a_shift = np.abs(wanted[1:] - wanted[:-1]).mean()
            assert lost_to_jpeg < lost_to_a_shift / 2


def test_a_slide_may_say_nothing_of_its_pixel_size(node: DrawnNode, tmp_path: Path) -> None:
    write_slide(tmp_path / "node.tif", node.pixels[:300, :300], mpp=None)
    with openslide.OpenSlide(tmp_path / "node.tif") as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert slide.dimensions == (300, 300)


def test_the_cohort_is_a_readable_study(cohort: Path, project: Project) -> None:
    study = load_study(cohort)
    assert study.name == "demo"
    assert study.project == project.path
    assert study.training.weights == "none"


def test_every_slide_opens_and_is_calibrated_in_the_project(project: Project) -> None:
    assert len(project.images) == 12
    without = []
    for image in project.images:
        assert image.unsupported is None
        assert image.pixel_size is not None and image.pixel_size.x == image.pixel_size.y == 0.5
        with openslide.OpenSlide(project.slide_path(image)) as slide:
            assert slide.dimensions == image.size
            if "openslide.mpp-x" not in slide.properties:
                without.append(image.metadata["patient"])
    assert without == ["DEMO-08"]


def test_positive_nodes_and_only_they_are_outlined(project: Project) -> None:
    statuses = []
    for image in project.images:
        classes = {str(item.path_class) for item in project.objects(image)}
        assert ("Tumor" in classes) == (image.metadata["status"] == "positive")
        statuses.append(image.metadata["status"])
    assert statuses.count("positive") == statuses.count("negative") == 6
    assert len({image.metadata["patient"] for image in project.images}) == 12


def test_the_project_knows_every_class_that_is_used(project: Project) -> None:
    known = {str(path_class) for path_class in project.path_classes}
    used = {str(item.path_class) for image in project.images for item in project.objects(image)}
    assert used == {"Tumor", "Necrosis", "Stroma", "Ignore*"}
    assert used | {"AI: Tumor"} == known


def test_the_repository_shows_the_study_that_the_demo_writes(cohort: Path) -> None:
    shown = Path(__file__).parents[2] / "projects" / "demo" / "study.toml"
    assert shown.read_text(encoding="utf-8") == STUDY_TOML == cohort.read_text(encoding="utf-8")


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(StudyError, match="not an empty folder; choose another"):
        draw_cohort(tmp_path, seed=1, progress=SILENT)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_demo_is_taken_as_it_is(cohort: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in cohort.parent.rglob("*")}
    assert draw_cohort(cohort.parent, seed=1, progress=SILENT) == cohort
    assert {file: file.stat().st_mtime_ns for file in cohort.parent.rglob("*")} == before


def test_drawing_that_was_stopped_is_drawn_again(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-demo").touch()
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "DEMO-01.tif").write_bytes(b"half")
    study = draw_cohort(tmp_path, seed=1, progress=SILENT, size_um=(260, 220))
    assert openslide.OpenSlide(tmp_path / "slides" / "DEMO-01.tif").dimensions == (520, 440)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["project", "slides", "study.toml"]
    assert study.name == "study.toml"
