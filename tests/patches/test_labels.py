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
from hnscc_qp.errors import AnnotationError, CohortError
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.patches.labels import Label, label_windows, meaning_of
from hnscc_qp.patches.territories import Windows, find_overlaps, polygons_only
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.qupath.project import open_project
from hnscc_qp.slides.reader import open_slide

CLASSES = study.Classes(
    tumor=("Tumor",), nontumor=("Necrosis", "Tumor: Necrotic"), ignored=("Artefact",), region=("Annotated",)
)
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
    return set(zip(*(part.tolist() for part in find_overlaps(array, windows)[:2]), strict=True))


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


def test_a_window_with_less_tumor_than_wanted_is_ignored_not_nontumor(annotate):
    # 10 × 10 µm and 9 × 10 µm: in QuPath px 20 × 40 and 18 × 40.
    objects = [annotate(box(10, 10, 30, 50), "Tumor"), annotate(box(410, 410, 428, 450), "Tumor")]
    labels = label(objects, min_tumor_um2=100.0)
    assert at(labels, 0, 0) == (Label.TUMOR, "annotation", ids(1))
    assert at(labels, 200, 80) == (Label.IGNORED, "too little tumor", ids(2))
    assert at(label(objects), 200, 80)[0] is Label.TUMOR


def test_small_parts_of_tumor_in_one_window_are_added_up(annotate):
    objects = [annotate(box(x, 10, x + 10, 50), "Tumor") for x in (10, 40)]
    assert at(label(objects, min_tumor_um2=100.0), 0, 0) == (Label.TUMOR, "annotation", ids(1, 2))


def test_tumor_may_be_said_to_lie_on_top_of_all_else(annotate):
    tumor, necrosis = annotate(box(0, 0, 800, 1200), "Tumor"), annotate(box(160, 320, 480, 960), "Necrosis")
    assert at(label([tumor, necrosis]), 80, 80)[0] is Label.NONTUMOR
    labels = label([tumor, necrosis], nested="tumor")
    assert set(labels.label) == {Label.TUMOR} and at(labels, 80, 80)[2] == ids(1)


@pytest.mark.parametrize(("share", "ignored"), [(0.0, 2), (0.2, 2), (0.25, 1), (0.9, 1)])
def test_a_window_is_ignored_if_more_than_the_share_of_it_lies_in_an_ignored_region(annotate, share, ignored):
    # One window whole, a quarter of its neighbour.
    tumor = annotate(box(700, 1000, 720, 1020), "Tumor")
    labels = label([annotate(box(0, 0, 100, 160), "Artefact"), tumor], max_ignored=share)
    assert list(labels.reason).count("ignored annotation") == ignored
    assert at(labels, 0, 0)[0] is Label.IGNORED


def test_ignored_regions_may_take_tumor_windows_out_too(annotate):
    objects = [annotate(box(0, 0, 100, 100), "Artefact"), annotate(box(70, 10, 75, 20), "Tumor")]
    assert at(label(objects), 0, 0)[0] is Label.TUMOR
    labels = label(objects, tumor_over_ignored=False)
    assert at(labels, 0, 0) == (Label.IGNORED, "ignored annotation", ids(1))


def test_tumor_off_the_tissue_is_tumor_unless_the_study_wants_tissue(annotate):
    tissue = np.ones((30, 40), bool)
    tissue[:2, :4] = False
    objects = [annotate(box(0, 0, 160, 320), "Tumor")]
    assert at(label(objects, tissue=tissue), 0, 0)[0] is Label.TUMOR
    assert at(label(objects, tissue=tissue, min_tumor_tissue=0.5), 0, 0)[0] is Label.TUMOR
    assert at(label(objects, tissue=tissue, min_tumor_tissue=0.6), 0, 0)[:2] == (Label.IGNORED, "background")


@pytest.mark.parametrize(
    ("roi", "windows"),
    [
        (Point(100, 200), {(40, 40)}),
        (LineString([(100, 200), (170, 200)]), {(40, 40), (80, 40)}),
        # Three sides of a square: what they would enclose is not nontumor.
        (
            LineString([(100, 200), (300, 200), (300, 500), (100, 500)]),
            {(x, y) for x in (40, 80, 120) for y in (40, 80, 120)},
        ),
    ],
)
def test_tumor_that_is_pointed_at_but_not_outlined_is_skipped_by_name_and_never_nontumor(
    annotate, roi, windows
):
    objects = [
        annotate(box(700, 1000, 720, 1020), "Tumor"),
        annotate(roi, "Tumor"),
        annotate(roi, "Necrosis"),
    ]
    labels = label(objects)
    there = np.asarray(list(labels.reason)) == "tumor not outlined"
    assert set(zip(labels.x_px[there].tolist(), labels.y_px[there].tolist(), strict=True)) == windows
    assert at(labels, 40, 40) == (Label.IGNORED, "tumor not outlined", ids(2))
    assert [("has no area" in line, "ignored" in line) for line in labels.skipped] == [(1, 1), (1, 0)]
    with pytest.raises(AnnotationError, match=r"a\.tif: .*\(Tumor, PolygonROI\) has no area; outline it"):
        label(objects, open_shapes="error")


def test_open_outlines_are_closed_if_the_study_says_so(annotate):
    roi = LineString([(90, 200), (300, 200), (300, 500), (90, 500)])
    labels = label([annotate(roi, "Tumor")], open_shapes="close")
    closed = label([annotate(Polygon(roi.coords), "Tumor")])
    assert (labels.label == closed.label).all() and labels.count(Label.TUMOR) == 9 and not labels.skipped
    assert label([annotate(LineString([(0, 0), (9, 9)]), "Tumor")], open_shapes="close").skipped


def test_an_annotation_outside_the_image_decides_nothing_and_is_named(annotate):
    objects = [annotate(box(0, 0, 20, 20), "Tumor"), annotate(box(900, 0, 950, 50), "Tumor")]
    labels = label(objects)
    assert labels.count(Label.TUMOR) == 1 and "lies outside the image" in labels.skipped[0]
    assert set(label(objects[1:]).reason) == {"tumor not drawn"}
    for beyond in (box(900, 0, 950, 50), box(700, 0, 950, 50)):
        assert label([objects[0], annotate(beyond, "Tumor")]).count(Label.TUMOR) > 0
        with pytest.raises(AnnotationError, match=r"a\.tif: .* reaches beyond the image"):
            label([objects[0], annotate(beyond, "Tumor")], outside_image="error")


def test_a_partly_annotated_slide_gives_nontumor_inside_its_region_only(annotate):
    tumor = annotate(box(0, 0, 80, 160), "Tumor")
    region = annotate(box(0, 0, 490, 640), "Annotated")
    necrosis = annotate(box(640, 960, 800, 1200), "Necrosis")
    labels = label([tumor, region, necrosis])
    assert at(labels, 0, 0)[0] is Label.TUMOR
    assert at(labels, 160, 80) == (Label.NONTUMOR, "outside annotations", ())
    assert at(labels, 240, 80) == (Label.IGNORED, "outside annotated region", ())  # cut by its edge
    assert at(labels, 320, 240) == (Label.NONTUMOR, "annotation", ids(3))
    assert at(labels, 360, 0)[1] == "outside annotated region"
    assert not labels.unmapped
    assert labels.count_reasons(Label.IGNORED) == {"outside annotated region": 70 - 24 - 2}
    without = label([tumor, necrosis], nontumor_on_positive="region")
    assert without.count(Label.NONTUMOR) == 2
    drawn = label([tumor, region, necrosis], nontumor_on_positive="annotated")
    assert drawn.count(Label.NONTUMOR) == 2
    negative = label([region], positive=False)
    assert set(negative.label) == {Label.NONTUMOR}


RULES = st.fixed_dictionaries(
    {
        "stride_px": st.sampled_from([10, 20, 40]),
        "min_tumor_um2": st.sampled_from([0.0, 50.0, 800.0]),
        "nested": st.sampled_from(["smaller", "tumor"]),
        "max_ignored": st.sampled_from([0.0, 0.3]),
        "tumor_over_ignored": st.booleans(),
        "min_tissue": st.sampled_from([0.0, 0.5, 1.0]),
        "min_tumor_tissue": st.sampled_from([0.0, 0.5]),
        "nontumor_on_positive": st.sampled_from(["everywhere", "region", "annotated"]),
    }
)


def rules_slowly(shapes, names, tissue, settings: study.Patches, *, x: int, y: int) -> Label:
    """The rules of docs/labels.md for one window at (x, y) µm of a positive slide, by plain shapely."""
    window = box(x * 2, y * 4, x * 2 + 80, y * 4 + 160)
    on_top = [settings.nested == "tumor" and name == "Tumor" for name in names]
    order = sorted(range(len(shapes)), key=lambda n: (not on_top[n], shapes[n].area, -n))
    area = dict.fromkeys(["Tumor", "Necrosis", "Artefact"], 0.0)
    free = window
    for n in order:
        if names[n] in area:
            area[names[n]] += free.intersection(shapes[n]).area
            free = free.difference(shapes[n])
    share = tissue[y // 10 : y // 10 + 4, x // 10 : x // 10 + 4].mean()
    ignored = area["Artefact"] / window.area > settings.max_ignored
    if ignored and not settings.tumor_over_ignored:
        return Label.IGNORED
    if area["Tumor"] > 1e-6:
        enough = area["Tumor"] * 0.125 >= settings.min_tumor_um2 and share >= settings.min_tumor_tissue
        return Label.TUMOR if enough else Label.IGNORED
    if ignored or share < settings.min_tissue:
        return Label.IGNORED
    if area["Necrosis"] > 1e-6:
        return Label.NONTUMOR
    regions = [shape for shape, name in zip(shapes, names, strict=True) if name == "Annotated"]
    anywhere = settings.nontumor_on_positive == "everywhere" and not regions
    inside = settings.nontumor_on_positive != "annotated" and shapely.union_all(regions).covers(window)
    return Label.NONTUMOR if anywhere or inside else Label.IGNORED


@given(st.integers(0, 10**6), RULES)
@hypothesis_settings(max_examples=40, deadline=None)
def test_every_rule_equals_a_slow_reading_of_it_window_by_window(seed, rules):
    rng = np.random.default_rng(seed)
    names = ["Tumor", *rng.choice(["Tumor", "Necrosis", "Artefact", "Annotated"], rng.integers(0, 7))]
    shapes = [blob(rng, *rng.uniform(0, 400, 2), rng.uniform(20, 250), 12) for _ in names]
    if rng.random() < 0.5 and "Annotated" in names:
        shapes[names.index("Annotated")] = box(0, 0, 321, 901)
    tissue = rng.random((20, 30)) < 0.7
    settings = study.Patches(**rules)
    objects = [
        PathObject(ObjectType.ANNOTATION, shape, RoiKind.POLYGON, shape.area, path_class=PathClass((name,)))
        for shape, name in zip(shapes, names, strict=True)
    ]
    labels = label(objects, size=(600, 800), tissue=tissue, **rules)
    for x, y, got in zip(labels.x_px.tolist(), labels.y_px.tolist(), labels.label, strict=True):
        assert got == rules_slowly(shapes, names, tissue, settings, x=x, y=y), (x, y)


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


def test_a_self_crossing_outline_is_repaired_and_named(annotate):
    bow = Polygon([(0, 0), (160, 320), (160, 0), (0, 320)])
    assert not bow.is_valid
    labels = label([annotate(bow, "Tumor")])
    assert "crosses itself; repaired" in labels.repaired[0] and str(uuid.UUID(int=1)) in labels.repaired[0]
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
    windows, _, _ = find_overlaps(np.array([outline]), Windows(starts, starts, (40.0, 40.0)))
    assert time.perf_counter() - started < 30
    # Every window whose centre is inside must be found, and no window away from the outline.
    x, y = np.meshgrid(starts + 20, starts + 20)
    shapely.prepare(outline)
    inside = shapely.contains_xy(outline, x.ravel(), y.ravel())
    assert np.isin(np.flatnonzero(inside), windows).all()
    near = shapely.intersects(outline, shapely.box(x - 20, y - 20, x + 20, y + 20).ravel())
    assert near[windows].all()


@pytest.mark.parametrize(
    "shape", [Polygon(), Polygon([(9, 9), (9, 9), (9, 9)]), Polygon([(0, 0), (50, 50), (0, 0)])]
)
def test_an_outline_without_area_is_skipped_by_name(annotate, shape):
    labels = label([annotate(shape, "Tumor"), annotate(box(400, 400, 410, 410), "Tumor")])
    assert labels.count(Label.TUMOR) == 1 and "has no area" in labels.skipped[0]


def circle(vertices: int, *, noise: float = 0.0) -> Polygon:
    rng = np.random.default_rng(1)
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False) + noise * rng.standard_normal(vertices)
    reach = 4000 * (1 + 0.05 * np.sin(40 * angle)) + 1e3 * noise * rng.standard_normal(vertices)
    return Polygon(np.c_[5000 + reach * np.cos(angle), 5000 + reach * np.sin(angle)])


def test_an_outline_of_a_million_vertices_labels_as_its_coarse_copy_does(annotate):
    fine, coarse = (
        label([annotate(circle(n), "Tumor")], size=(10_000, 10_000), stride_px=40).label == Label.TUMOR
        for n in (1_000_000, 10_000)
    )
    assert fine.sum() > 2000 and (fine != coarse).mean() < 0.001


def test_an_outline_that_crosses_itself_all_over_is_refused_by_name(annotate):
    tangled = annotate(circle(60_000, noise=1e-2), "Tumor")
    with pytest.raises(AnnotationError, match=r"a\.tif: .* 60,001 vertices crosses itself all over"):
        label([tangled], size=(10_000, 10_000))


def test_50_000_annotations_each_make_their_windows_tumor(annotate):
    rng = np.random.default_rng(1)
    places = rng.uniform(0, 19_900, (50_000, 2))
    objects = [annotate(box(x, y, x + 1, y + 1), "Tumor") for x, y in places]
    labels = label(objects, size=(20_000, 20_000))
    held = {
        (int(i), int(j))
        for x, y in places
        for i in {x // 80, (x + 1) // 80}
        for j in {y // 160, (y + 1) // 160}
        if (i + 1) * 80 <= 20_000 and (j + 1) * 160 <= 20_000
    }
    tumor = labels.label == Label.TUMOR
    found = set(zip((labels.x_px[tumor] // 40).tolist(), (labels.y_px[tumor] // 40).tolist(), strict=True))
    assert found == held


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
