from __future__ import annotations

import time
import uuid

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.patches.labels import Label, label_windows, meaning_of
from hnscc_qp.patches.territories import Windows, find_overlaps, polygons_only
from hnscc_qp.qupath.objects import ObjectType, PathClass
from hnscc_qp.qupath.project import open_project
from hnscc_qp.slides.reader import open_slide

CLASSES = study.Classes(tumor=("Tumor",), nontumor=("Necrosis", "Tumor: Necrotic"), ignored=("Artefact",))
PIXEL = PixelSize(Mpp(0.5), Mpp(0.25))
SIZE = (800, 1200)  # 400 × 300 µm


def label(objects, *, size=SIZE, pixel_size=PIXEL, positive=True, tissue=None, **settings):
    grid = Grid.over(size, pixel_size, mpp=Mpp(1.0), step_px=10, window_px=40)
    return label_windows(
        objects,
        name="a.tif",
        size=size,
        grid=grid,
        tissue=np.ones((grid.rows, grid.columns), bool) if tissue is None else tissue,
        classes=CLASSES,
        positive=positive,
        settings=study.Patches(**settings),
    )


def at(labels, x_px: int, y_px: int) -> tuple[Label, str, tuple[str, ...]]:
    index = int(np.flatnonzero((labels.x_px == x_px) & (labels.y_px == y_px))[0])
    return Label(labels.label[index]), labels.reason[index], labels.annotation_ids[index]


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(str(uuid.UUID(int=number)) for number in numbers)


def overlaps_slowly(shapes, windows: Windows) -> set[tuple[int, int]]:
    """Every window against every shape without the smaller ones, by plain shapely."""
    order = sorted(range(len(shapes)), key=lambda n: (shapes[n].area, -n))
    pairs = set()
    for rank, number in enumerate(order):
        territory = shapes[number]
        for above in order[:rank]:
            territory = territory.difference(shapes[above])
        for row, y in enumerate(windows.y):
            for column, x in enumerate(windows.x):
                window = box(x, y, x + windows.size[0], y + windows.size[1])
                if window.intersection(territory).area > 1e-6:
                    pairs.add((row * len(windows.x) + column, number))
    return pairs


def overlaps(shapes, windows: Windows) -> set[tuple[int, int]]:
    array = np.empty(len(shapes), object)
    array[:] = shapes
    return set(zip(*(part.tolist() for part in find_overlaps(array, windows)), strict=True))


def blob(rng, x, y, radius, vertices):
    angle = np.sort(rng.random(vertices)) * 2 * np.pi
    reach = radius * rng.uniform(0.3, 1, vertices)
    return polygons_only(Polygon(np.c_[x + reach * np.cos(angle), y + reach * np.sin(angle)]))


@given(st.integers(0, 10**6), st.sampled_from([10, 20, 40]))
@hypothesis_settings(max_examples=15, deadline=None)
def test_overlaps_equal_those_found_window_by_window(seed, stride):
    rng = np.random.default_rng(seed)
    shapes = [
        blob(rng, *rng.uniform(-20, 220, 2), 10 ** rng.uniform(0, 2.3), int(rng.choice([3, 5, 30, 400])))
        for _ in range(rng.integers(1, 9))
    ]
    shapes += [box(0, 0, 300, 300)] * int(rng.integers(0, 3))
    starts = np.arange(0, 161, stride).astype(float)
    windows = Windows(starts * 1.5, starts[: len(starts) // 2], (60.0, 40.0))
    shapes = [shape for shape in shapes if shape.area > 0]
    assert overlaps(shapes, windows) == overlaps_slowly(shapes, windows)


def test_overlaps_with_many_small_outlines_on_a_large_one_are_exact():
    shapes = [Point(110, 110).buffer(105, 200)]
    shapes += [Point(x + 5, y + 5).buffer(4.9, 4) for x in range(60, 160, 10) for y in range(60, 160, 10)]
    shapes += [box(100, 100, 130, 140)]
    starts = np.arange(0, 181, 15).astype(float)
    windows = Windows(starts, starts, (40.0, 40.0))
    assert overlaps(shapes, windows) == overlaps_slowly(shapes, windows)


def test_a_window_that_holds_any_tumor_is_tumor(annotate):
    # In QuPath px (0.5 × 0.25 µm); the tumor reaches 0.5 µm into the window at x = 80.
    labels = label([annotate(box(100, 500, 161, 700), "Tumor")])
    assert at(labels, 80, 120) == (Label.TUMOR, "annotation", ids(1))
    assert at(labels, 40, 120)[0] is Label.TUMOR
    assert at(labels, 120, 120) == (Label.NONTUMOR, "outside annotations", ())
    assert at(labels, 0, 120)[0] is Label.NONTUMOR


def test_windows_that_only_touch_a_tumor_are_nontumor(annotate):
    labels = label([annotate(box(80, 160, 160, 320), "Tumor")])
    assert labels.count(Label.TUMOR) == 1
    assert at(labels, 40, 40)[0] is Label.TUMOR


def test_windows_lie_wholly_within_the_image(annotate):
    tumor = [annotate(box(0, 0, 1, 1), "Tumor")]
    labels = label(tumor, size=(799, 1201))
    assert labels.x_px.max() == 320 and labels.y_px.max() == 240
    assert len(labels.label) == 9 * 7
    labels = label(tumor, size=(800, 1200), stride_px=10)
    assert (labels.x_px.max(), labels.y_px.max()) == (360, 260)
    assert len(label(tumor, size=(79, 1200)).label) == 0


def test_necrosis_in_a_tumor_is_carved_out_and_tumor_in_necrosis_counts_again(annotate):
    nest = annotate(box(330, 660, 340, 670), "Tumor", number=3)
    necrosis = annotate(box(160, 320, 480, 960), "Necrosis", children=(nest,), number=2)
    labels = label([annotate(box(0, 0, 800, 1200), "Tumor", children=(necrosis,), number=1)])
    assert at(labels, 80, 80) == (Label.NONTUMOR, "annotation", ids(2))
    assert at(labels, 160, 160) == (Label.TUMOR, "annotation", ids(3))
    assert at(labels, 0, 0) == (Label.TUMOR, "annotation", ids(1))
    flat = label([nest, necrosis, annotate(box(0, 0, 800, 1200), "Tumor", number=1)])
    assert (flat.label == labels.label).all()


def test_of_equal_outlines_the_later_lies_on_top(annotate):
    shape = box(0, 0, 160, 320)
    elsewhere = annotate(box(700, 1000, 720, 1020), "Tumor")
    first = label([annotate(shape, "Tumor"), annotate(shape, "Necrosis"), elsewhere])
    assert at(first, 0, 0)[0] is Label.NONTUMOR
    second = label([annotate(shape, "Necrosis"), annotate(shape, "Tumor"), elsewhere])
    assert at(second, 0, 0)[0] is Label.TUMOR


def test_ignored_outlines_take_windows_out_unless_they_hold_tumor(annotate):
    labels = label(
        [annotate(box(0, 0, 100, 100), "Artefact"), annotate(box(70, 10, 75, 20), "Tumor", number=9)]
    )
    assert at(labels, 0, 0) == (Label.TUMOR, "annotation", ids(9))
    assert at(labels, 40, 0) == (Label.IGNORED, "ignored annotation", ids(1))
    assert at(labels, 80, 0)[0] is Label.NONTUMOR


def test_windows_with_little_tissue_are_background_unless_annotated_as_tumor(annotate):
    tissue = np.zeros((30, 40), bool)
    tissue[:4, 2:6] = True  # half of two windows
    tumor = annotate(box(600, 1000, 620, 1020), "Tumor")
    labels = label([tumor, annotate(box(160, 0, 320, 320), "Necrosis")], tissue=tissue)
    assert at(labels, 0, 0) == (Label.NONTUMOR, "outside annotations", ())
    assert at(labels, 40, 0)[0] is Label.NONTUMOR
    assert at(labels, 120, 0) == (Label.IGNORED, "background", ())
    assert at(labels, 280, 240)[0] is Label.TUMOR
    tissue[0, 5] = False
    assert at(label([tumor], tissue=tissue), 40, 0)[:2] == (Label.IGNORED, "background")


def test_a_negative_slide_is_nontumor_and_may_not_have_tumor(annotate):
    labels = label([annotate(box(0, 0, 100, 100), "Necrosis")], positive=False)
    assert set(labels.label) == {Label.NONTUMOR}
    assert at(labels, 200, 200)[1] == "negative slide" and at(labels, 0, 0)[1] == "annotation"
    with pytest.raises(CohortError, match=r"a\.tif is negative but has a tumor annotation"):
        label([annotate(box(0, 0, 100, 100), "Tumor")], positive=False)


def test_a_positive_slide_without_an_outlined_tumor_gives_no_windows(annotate):
    labels = label([annotate(LineString([(0, 0), (50, 50)]), "Tumor")])
    assert set(labels.label) == {Label.IGNORED} and set(labels.reason) == {"tumor not drawn"}
    assert len(labels.skipped) == 1 and "has no area" in labels.skipped[0]


def test_only_annotations_with_a_known_class_decide(annotate):
    labels = label(
        [
            annotate(box(0, 0, 800, 1200), "Tumor", type=ObjectType.DETECTION),
            annotate(box(0, 0, 800, 1200), None, children=(annotate(box(4, 4, 8, 8), "Tumor", number=8),)),
            annotate(box(0, 0, 2, 2), "Stroma"),
            annotate(box(0, 0, 2, 2), "Stroma"),
        ]
    )
    assert labels.count(Label.TUMOR) == 1 and at(labels, 0, 0)[2] == ids(8)
    assert labels.unmapped == {"unclassified": 1, "Stroma": 2}


@pytest.mark.parametrize(
    ("names", "meaning"),
    [
        (("Tumor",), Label.TUMOR),
        (("Tumor", "Positive"), Label.TUMOR),
        (("Tumor", "Necrotic"), Label.NONTUMOR),
        (("Tumor", "Necrotic", "Old"), Label.NONTUMOR),
        (("Artefact",), Label.IGNORED),
        (("tumor",), None),
        (("AI", "Tumor"), None),
    ],
)
def test_a_derived_class_means_what_its_base_means(names, meaning):
    assert meaning_of(PathClass(names), CLASSES) is meaning


def test_a_self_crossing_outline_is_repaired(annotate):
    bow = Polygon([(0, 0), (160, 320), (160, 0), (0, 320)])
    assert not bow.is_valid
    labels = label([annotate(bow, "Tumor")])
    assert at(labels, 0, 0)[0] is Label.TUMOR and labels.count(Label.TUMOR) == 4
    spike = Polygon([(0, 0), (10, 0), (10, 10), (10, 500), (10, 10), (0, 10)])
    assert polygons_only(spike).equals(box(0, 0, 10, 10))


def test_holes_and_parts_of_a_multipolygon_are_kept(annotate):
    ring = box(0, 0, 480, 960).difference(box(160, 320, 320, 640))
    labels = label([annotate(MultiPolygon([ring, box(700, 1100, 704, 1104)]), "Tumor")])
    assert at(labels, 80, 80)[0] is Label.NONTUMOR
    assert labels.count(Label.TUMOR) == 36 - 4 + 1


def test_a_hand_drawn_outline_of_100_000_vertices_takes_seconds_at_most():
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    reach = 4000 * (1 + 0.05 * np.sin(40 * angle))
    outline = Polygon(np.c_[5000 + reach * np.cos(angle), 5000 + reach * np.sin(angle)])
    starts = np.arange(0, 9961, 40).astype(float)
    started = time.perf_counter()
    windows, _ = find_overlaps(np.array([outline]), Windows(starts, starts, (40.0, 40.0)))
    assert time.perf_counter() - started < 30
    # Every window whose centre is inside must be found, and no window away from the outline.
    x, y = np.meshgrid(starts + 20, starts + 20)
    shapely.prepare(outline)
    inside = shapely.contains_xy(outline, x.ravel(), y.ravel())
    assert np.isin(np.flatnonzero(inside), windows).all()
    near = shapely.intersects(outline, shapely.box(x - 20, y - 20, x + 20, y + 20).ravel())
    assert near[windows].all()


def test_a_sliver_left_by_rounding_is_no_tumor(annotate):
    labels = label([annotate(box(80 - 1e-10, 160, 160, 320), "Tumor")])
    assert labels.count(Label.TUMOR) == 1


def test_real_annotations_label_windows_as_the_pixel_masks_do(shared):
    folder = shared / "camelyon"
    project = open_project(folder, backend="embedded", slide_folders=[folder / "slides"])
    tumor = 0
    for image in project.images:
        slide = open_slide(project.slide_path(image), pixel_size=image.pixel_size)
        positive = image.metadata["status"] == "positive"
        labels = label(
            project.objects(image), size=slide.size, pixel_size=slide.pixel_size, positive=positive
        )
        if not positive:
            assert labels.count(Label.TUMOR) == 0
            continue
        mask = np.asarray(Image.open(folder / "slides" / f"{slide.path.stem}.mask.png")) > 0
        scale = mask.shape[1] / slide.size[0]
        for x, y, got in zip(labels.x_px, labels.y_px, labels.label, strict=True):
            top, bottom, left, right = (int(edge * scale) for edge in (y, y + 40, x, x + 40))
            assert (got == Label.TUMOR) == mask[top:bottom, left:right].any()
        tumor += labels.count(Label.TUMOR)
    assert tumor == 2675
