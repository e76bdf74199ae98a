"""ASAP's XML, against files written here and curves computed by another formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely

from hnscc_qp.errors import TruthError
from hnscc_qp.patches.sources.asap import evaluate_spline, read_asap

SQUARE = [(10, 10), (110, 10), (110, 110), (10, 110)]
DIAMOND = [(200, 50), (260, 20), (300, 80), (230, 120), (205, 90)]


def element(name, kind, points, group="Tumor"):
    places = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(points))
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{places}</Coordinates></Annotation>"
    )


@pytest.fixture
def write(tmp_path):
    def written(*elements):
        path = tmp_path / "slide.xml"
        groups = (
            '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#00ff00"/></AnnotationGroups>'
        )
        path.write_text(
            f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(elements)}</Annotations>{groups}'
            "</ASAP_Annotations>"
        )
        return path

    return written


def read(path, classes=(), holes=("_2", "Exclusion")):
    return read_asap(path, classes=dict(classes), holes=holes)


def bezier_outline(points, steps):
    """The closed curve as cubic Béziers with ASAP's control points, stretch by stretch."""
    points = [np.array(point, float) for point in points]
    count, curve = len(points), []
    for n in range(count):
        p1, p2 = points[n], points[(n + 1) % count]
        p0 = points[n - 1] if n < count - 1 else 2 * p1 - p2
        p3 = points[(n + 2) % count] if n != count - 2 else 2 * p2 - p1
        d1, d2, d3 = (math.dist(a, b) for a, b in ((p0, p1), (p1, p2), (p2, p3)))
        r1, r2, r3 = map(math.sqrt, (d1, d2, d3))
        b1 = (d1 * p2 - d2 * p0 + (2 * d1 + 3 * r1 * r2 + d2) * p1) / (3 * r1 * (r1 + r2))
        b2 = (d3 * p1 - d2 * p3 + (2 * d3 + 3 * r3 * r2 + d2) * p2) / (3 * r3 * (r3 + r2))
        for t in np.arange(steps) / steps:
            u = 1 - t
            curve.append(u**3 * p1 + 3 * u * u * t * b1 + 3 * u * t * t * b2 + t**3 * p2)
    return np.array(curve)


def test_areas_dots_and_points_are_read_with_their_groups_as_classes(write):
    path = write(
        element("a", "Polygon", SQUARE),
        element("b", "Rectangle", [(0, 0), (40, 0), (40, 30), (0, 30)], "Necrosis"),
        element("c", "Dot", [(5, 6)]),
        element("d", "PointSet", [(1, 2), (3, 4)]),
        element("Tumor", "Polygon", SQUARE, "None"),
    )
    found = read(path, {"Tumor": "HNSCC", "Necrosis": "Stroma: necrotic"}).shapes
    assert [(kind, name, shape.geom_type) for kind, name, shape in found] == [
        ("HNSCC", "a", "Polygon"),
        ("Stroma: necrotic", "b", "Polygon"),
        ("HNSCC", "c", "Point"),
        ("HNSCC", "d", "MultiPoint"),
        ("HNSCC", "Tumor", "Polygon"),
    ]
    assert found[0][2].equals(shapely.box(10, 10, 110, 110))
    assert found[1][2].equals(shapely.box(0, 0, 40, 30))


def test_the_order_of_points_is_what_the_file_states_not_where_they_stand(write):
    path = write(element("a", "Polygon", SQUARE))
    text = path.read_text()
    first, second = '<Coordinate Order="1" X="110" Y="10"/>', '<Coordinate Order="2" X="110" Y="110"/>'
    path.write_text(text.replace(first + second, second + first))
    assert read(path).shapes[0][2].area == 100 * 100


def test_exclusions_are_cut_out_of_every_group(write):
    path = write(
        element("hole", "Polygon", [(40, 40), (60, 40), (60, 60), (40, 60)], "_2"),
        element("a", "Polygon", SQUARE, "_0"),
        element("inside the hole", "Polygon", [(45, 45), (50, 45), (50, 50)], "_1"),
    )
    [(kind, _, shape)] = read(path, {"_0": "Tumor", "_1": "Tumor"}).shapes
    assert kind == "Tumor"
    assert shape.equals(shapely.box(10, 10, 110, 110) - shapely.box(40, 40, 60, 60))


def test_a_group_may_mean_nothing(write):
    assert read(write(element("a", "Polygon", SQUARE)), {"Tumor": ""}).shapes == ()


@pytest.mark.parametrize("points", [DIAMOND, SQUARE, [(0, 0), (9, 1), (4, 8)]])
def test_a_spline_is_the_curve_that_asap_draws(points):
    expected = bezier_outline(points, 16)
    assert np.allclose(evaluate_spline(np.array(points, float)), expected, atol=1e-6)


def test_a_spline_goes_through_its_points_and_bulges(write):
    [(_, _, shape)] = read(write(element("a", "Spline", DIAMOND))).shapes
    for x, y in DIAMOND:
        assert shape.boundary.distance(shapely.Point(x, y)) < 1e-9
    assert shape.area > shapely.Polygon(DIAMOND).area


def test_a_point_clicked_twice_does_not_break_a_spline(write):
    [(_, _, twice)] = read(write(element("a", "Spline", [DIAMOND[0], *DIAMOND]))).shapes
    [(_, _, once)] = read(write(element("a", "Spline", DIAMOND))).shapes
    assert twice.equals(once)


def test_a_self_crossing_polygon_is_repaired_and_named(write):
    found = read(write(element("bow", "Polygon", [(0, 0), (10, 10), (10, 0), (0, 10)])))
    assert found.shapes[0][2].area == pytest.approx(50)
    assert "bow crosses itself" in found.notes[0]


def test_a_measurement_is_left_out_and_named(write):
    found = read(write(element("m", "Measurement", [(0, 0), (10, 10)])))
    assert found.shapes == ()
    assert "m is a measurement" in found.notes[0]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (element("a", "Blob", SQUARE), "a is of type 'Blob', known are Dot"),
        (element("a", "Polygon", SQUARE[:2]), "open polygon of 2 points"),
        (element("a", "Spline", [(1, 1)] * 5), "open spline of 5 points"),
        (element("a", "Polygon", []), "a has no coordinates"),
        (element("a", "Polygon", [("x", 1), (2, 2), (3, 0)]), "coordinate 1 is no place"),
        (element("a", "Polygon", [(1, 1), ("nan", 2), (3, 0)]), "coordinate 2 is not a finite number"),
    ],
)
def test_what_is_no_shape_is_refused_by_name(write, made, said):
    with pytest.raises(TruthError, match=said):
        read(write(made))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<ASAP_Annotations><Annotations>", "is damaged XML"),
        ("<Annotations MicronsPerPixel='0.25'/>", "not ASAP's"),
        ("", "is damaged XML"),
    ],
)
def test_what_is_not_asap_is_refused(tmp_path, text, said):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(TruthError, match=said):
        read(tmp_path / "a.xml")


def test_a_bomb_of_entities_is_refused_and_not_blown_up(tmp_path):
    layers = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "ha">{layers}]><ASAP_Annotations>&a11;</ASAP_Annotations>'
    (tmp_path / "a.xml").write_text(bomb)
    with pytest.raises(TruthError, match="is damaged XML"):
        read(tmp_path / "a.xml")
