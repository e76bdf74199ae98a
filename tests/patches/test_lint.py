"""Every contradiction is found where it is, and a sound slide gives none."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from shapely.geometry import LineString, MultiPolygon, Polygon, box

from hnscc_qp import study
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.patches.labels import label_windows
from hnscc_qp.patches.lint import Severity, lint_annotations, lint_windows

SIZE = (800, 600)
PIXEL = PixelSize(Mpp(1.0), Mpp(1.0))
GRID = Grid.of_method(SIZE, PIXEL)
CLASSES = study.Classes(tumor=("Tumor",), nontumor=("Necrosis",), ignored=("Ignore",))


@pytest.fixture
def tissue():
    found = np.zeros((GRID.rows, GRID.columns), bool)
    found[5:55, 5:60] = True
    return found


@pytest.fixture
def lint(annotate, tissue):
    def check(*drawn):
        objects = [annotate(shape, path_class) for shape, path_class in drawn]
        return lint_annotations(objects, image="S1", size=SIZE, grid=GRID, tissue=tissue, classes=CLASSES)

    return check


def test_nested_annotations_on_tissue_are_sound(lint):
    assert (
        lint(
            (box(100, 100, 400, 400), "Tumor"),
            (box(150, 150, 300, 300), "Necrosis"),
            (box(200, 200, 250, 250), "Tumor"),
            (box(450, 100, 550, 200), "Necrosis"),
        )
        == []
    )


@pytest.mark.parametrize(
    ("shape", "path_class", "rule", "said"),
    [
        (Polygon([(100, 100), (200, 200), (200, 100), (100, 200)]), "Tumor", "self-crossing", "Self-inter"),
        (box(100, 100, 105, 105), "Tumor", "sliver", "sliver of 25 µm²"),
        (box(100, 100, 500, 101), "Tumor", "sliver", "sliver of 400 µm²"),
        (
            MultiPolygon([box(100, 100, 200, 200), box(300, 100, 301, 101)]),
            "Tumor",
            "sliver",
            "slivers among its 2 parts: 1",
        ),
        (LineString([(100, 100), (200, 100)]), "Tumor", "no area", "has no area"),
        (box(900, 100, 950, 200), "Tumor", "off image", "outside the image"),
        (box(500, 500, 580, 700), "Tumor", "off image", "reaches beyond"),
        (box(700, 100, 790, 200), "Tumor", "off tissue", "0 % of it"),
        (box(100, 100, 200, 200), "Stroma", "unmapped class", "class Stroma has no meaning"),
        (box(100, 100, 200, 200), None, "unmapped class", "class unclassified"),
    ],
)
def test_what_is_wrong_with_one_annotation_is_named(lint, shape, path_class, rule, said):
    found = [one for one in lint((shape, path_class)) if one.rule == rule]
    assert len(found) == 1
    assert said in found[0].message
    assert found[0].image == "S1"


def test_the_same_area_under_two_meanings_is_found(lint):
    [found] = lint((box(100, 100, 300, 300), "Tumor"), (box(101, 100, 301, 300), "Necrosis"))
    assert (found.rule, found.severity) == ("two meanings", Severity.WARNING)
    assert len(found.annotation_ids) == 2
    assert (found.x_qupath, found.y_qupath) == (200.5, 200)


def test_tumor_that_partly_overlaps_nontumor_is_found_with_its_area(lint):
    [found] = lint((box(100, 100, 300, 300), "Tumor"), (box(250, 100, 450, 300), "Necrosis"))
    assert found.rule == "partial overlap"
    assert "overlap by 10000 µm²" in found.message


def test_neighbours_that_share_an_edge_do_not_contradict(lint):
    assert lint((box(100, 100, 300, 300), "Tumor"), (box(300, 100, 450, 300), "Necrosis")) == []


def test_an_annotation_drawn_twice_is_only_a_note(lint):
    [found] = lint((box(100, 100, 300, 300), "Tumor"), (box(100, 100, 300, 300), "Tumor"))
    assert (found.rule, found.severity) == ("drawn twice", Severity.NOTE)


def test_tissue_under_an_annotation_is_judged_by_its_own_area_not_by_its_box(lint):
    # A ring around all tissue: its box is full of tissue, it is not.
    ring = box(0, 0, 700, 590) - box(40, 40, 610, 555)
    assert [one.rule for one in lint((ring, "Necrosis"))] == ["off tissue"]


def test_many_annotations_are_checked_pair_by_pair_only_where_they_meet(lint):
    squares = [(box(x, y, x + 15, y + 15), "Tumor") for x in range(50, 590, 20) for y in range(50, 540, 20)]
    overlapping = (shapely.affinity.translate(squares[100][0], 3, 0), "Necrosis")
    assert [one.rule for one in lint(*squares, overlapping)] == ["partial overlap"]


@pytest.mark.parametrize(
    ("shape", "said"), [(None, "no window can be used"), (box(0, 0, 30, 30), "no window is")]
)
def test_a_positive_slide_without_tumor_windows_is_named(annotate, tissue, shape, said):
    objects = [] if shape is None else [annotate(shape, "Tumor")]
    windows = label_windows(
        objects,
        name="S1",
        size=SIZE,
        grid=GRID,
        tissue=tissue,
        classes=CLASSES,
        positive=True,
        settings=study.Patches(min_tumor_um2=1000),
    )
    [found] = lint_windows(windows, image="S1", positive=True)
    assert said in found.message
