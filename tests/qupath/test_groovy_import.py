"""The Groovy scripts that import, run by a real QuPath as its `Run for project` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from groovyrunner import describe, detection, ids, make, offer, project_with, run, script
from shapely import LineString, MultiPoint, MultiPolygon, Point, Polygon, box

from hnscc_qp.qupath.geojson import read_geojson, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, RoiKind
from hnscc_qp.qupath.shapes import ellipse, settle

pytestmark = pytest.mark.qupath


def import_detections(project: Path) -> str:
    (line,) = run(project, script("import_ai_detections"))
    return line


def test_detections_are_imported_once_however_often_the_script_runs(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    offer(project, [detection(1), detection(2)])
    assert import_detections(project).startswith("case: 1: 2 added, 0 replaced, 0 removed, 0 kept")
    before = describe(project)
    assert [(item["type"], item["path_class"]) for item in before] == [
        ("PathDetectionObject", "AI: Tumor")
    ] * 2
    assert import_detections(project).startswith("case: 1: 0 added, 2 replaced, 0 removed, 0 kept")
    assert describe(project) == before


def test_detections_that_are_gone_are_removed_and_new_ones_added(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    offer(project, [detection(1), detection(2)])
    import_detections(project)
    offer(project, [detection(2, measurements={"score": 0.5}), detection(3)])
    assert import_detections(project).startswith("case: 1: 1 added, 1 replaced, 1 removed, 0 kept")
    after = {item["id"]: item for item in describe(project)}
    assert after.keys() == {str(detection(2).id), str(detection(3).id)}
    assert after[str(detection(2).id)]["measurements"] == {"score": 0.5}


def test_what_a_pathologist_touched_or_made_is_never_changed(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    offer(project, [detection(number) for number in range(1, 6)])
    import_detections(project)
    edits = f"""
    import qupath.lib.objects.PathObjects
    import qupath.lib.objects.classes.PathClass
    import qupath.lib.regions.ImagePlane
    import qupath.lib.roi.ROIs
    import static qupath.lib.scripting.QP.*
    def byId = getCurrentHierarchy().getAllObjects(false).collectEntries {{ [it.getID().toString(), it] }}
    byId['{detection(1).id}'].setLocked(true)
    byId['{detection(2).id}'].setName('ask Ann')
    byId['{detection(3).id}'].setPathClass(PathClass.fromString('Necrosis'))
    def roi = ROIs.createRectangleROI(5, 5, 20, 20, ImagePlane.getDefaultPlane())
    def hers = PathObjects.createDetectionObject(roi, PathClass.fromString('AI: Tumor'))
    getCurrentHierarchy().addObjects([hers, PathObjects.createAnnotationObject(roi)])
    """
    run(project, edits)
    edited = describe(project)
    # All five come again, four changed, and a sixth.
    offer(project, [detection(number, measurements={"score": 0.25}) for number in (1, 2, 3, 4, 6)])
    assert import_detections(project).startswith("case: 1: 1 added, 1 replaced, 1 removed, 3 kept")
    after = describe(project)
    assert ids(after) == ids(edited) - {str(detection(5).id)} | {str(detection(6).id)}
    ours = {str(detection(number).id) for number in (4, 5, 6)}
    assert [item for item in after if item["id"] not in ours] == [
        item for item in edited if item["id"] not in ours
    ]
    assert import_detections(project).startswith("case: 1: 0 added, 2 replaced, 0 removed, 3 kept")
    assert describe(project) == after


def test_a_region_whose_outline_was_edited_stays_and_is_told(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    holed = box(300, 100, 340, 130) - box(310, 110, 320, 120)
    offered = [detection(1), detection(2), detection(3), detection(4, roi=holed), detection(5)]
    offer(project, offered)
    import_detections(project)
    # One vertex by 0.05 px; moved as a whole; only the hole; untouched are 2 and 5.
    edits = f"""
    import qupath.lib.regions.ImagePlane
    import qupath.lib.roi.GeometryTools
    import qupath.lib.roi.ROIs
    import static qupath.lib.scripting.QP.*
    def plane = ImagePlane.getDefaultPlane()
    def byId = getCurrentHierarchy().getAllObjects(false).collectEntries {{ [it.getID().toString(), it] }}
    byId['{offered[0].id}'].setROI(ROIs.createPolygonROI(
        [50, 90, 90.05, 50] as double[], [10, 10, 30, 30] as double[], plane))
    byId['{offered[2].id}'].setROI(byId['{offered[2].id}'].getROI().translate(0, 1))
    def filled = GeometryTools.createRectangle(300, 100, 40, 30)
    def hole = GeometryTools.createRectangle(310, 110, 10, 9)
    byId['{offered[3].id}'].setROI(GeometryTools.geometryToROI(filled.difference(hole), plane))
    """
    run(project, edits)
    edited = describe(project)
    line = import_detections(project)
    assert line.startswith("case: 1: 0 added, 2 replaced, 0 removed, 3 kept")
    assert line.endswith("; 3 whose outline was edited stayed")
    assert describe(project) == edited
    # Nor are they taken away with what we find no more.
    offer(project, [])
    assert import_detections(project).startswith("case: 1: 0 added, 0 replaced, 2 removed, 0 kept")
    assert ids(describe(project)) == {str(offered[number].id) for number in (0, 2, 3)}


def test_a_region_accepted_by_hand_does_not_come_back(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    offer(project, [detection(1), detection(2)])
    import_detections(project)
    accept = f"""
    import qupath.lib.objects.PathObjects
    import qupath.lib.objects.classes.PathClass
    import static qupath.lib.scripting.QP.*
    def wanted = '{detection(1).id}'
    def found = getCurrentHierarchy().getAllObjects(false).find {{ it.getID().toString() == wanted }}
    getCurrentHierarchy().addObject(
        PathObjects.createAnnotationObject(found.getROI(), PathClass.fromString('Tumor')))
    """
    run(project, accept)
    assert import_detections(project).startswith("case: 1: 0 added, 1 replaced, 1 removed, 1 kept")
    after = describe(project)
    assert sorted(item["type"] for item in after) == ["PathAnnotationObject", "PathDetectionObject"]
    assert str(detection(1).id) not in ids(after)


def test_every_shape_of_region_is_known_again(tmp_path: Path) -> None:
    """Outlines of random blocks, with holes and several parts, on odd grids: as `regions` draws them."""
    random = np.random.default_rng(7)
    offered = []
    for number in range(60):
        scale = float(random.choice([5, 9.87, 10, 40.16]))
        origin = np.round(random.uniform(0, 90_000, 2), 2)
        blocks = random.random((6, 6)) < random.uniform(0.2, 0.9)
        squares = [box(x, y, x + 1, y + 1) for y, x in np.argwhere(blocks)]
        shape = shapely.union_all(squares)
        roi = settle(shapely.transform(shape, lambda points, s=scale, o=origin: points * s + o))
        offered.append(detection(number, roi=roi))
    project = project_with(tmp_path)
    offer(project, offered)
    assert import_detections(project).startswith("case: 1: 60 added")
    before = describe(project)
    line = import_detections(project)
    assert line.startswith("case: 1: 0 added, 60 replaced, 0 removed, 0 kept") and "edited" not in line
    assert describe(project) == before
    offer(project, [])
    assert import_detections(project).startswith("case: 1: 0 added, 0 replaced, 60 removed")


def test_without_a_file_the_script_says_what_to_run(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    (project.parent / "ai-detections").mkdir()
    write_geojson(project.parent / "ai-detections" / "11 case_ 1.geojson", [detection(1)])
    line = import_detections(project)
    assert line.startswith("case: 1: no AI detections") and "hnscc-qp push" in line
    assert describe(project) == []


def test_an_image_without_a_type_becomes_h_and_e_and_another_type_stays(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    typed = "println qupath.lib.scripting.QP.getCurrentImageData().getImageType()"
    assert run(project, script("set_image_type")) == ["case: 1: now of type Brightfield (H&E)"]
    assert run(project, typed) == ["Brightfield (H&E)"]
    run(project, "qupath.lib.scripting.QP.setImageType('FLUORESCENCE')")
    assert run(project, script("set_image_type")) == [
        "case: 1: is of type Fluorescence already, nothing changed"
    ]
    assert run(project, typed) == ["Fluorescence"]


def test_annotations_are_imported_into_an_image_that_has_none(tmp_path: Path) -> None:
    annotations = [make(box(10, 20, 110, 70), path_class=PathClass(("Tumor",)))]
    project = project_with(tmp_path, annotations)
    assert run(project, script("import_annotations")) == ["case: 1: 1 objects imported"]
    before = describe(project)
    assert ids(before) == {str(annotations[0].id)}
    assert run(project, script("import_annotations")) == [
        "case: 1: has annotations already, nothing imported"
    ]
    assert describe(project) == before


def test_qupath_takes_in_every_kind_of_object_as_we_hold_it(tmp_path: Path) -> None:
    oval, oval_area = ellipse((100, 100, 300, 200))
    objects = [
        make(
            Polygon([(10, 10), (200.123, 20.456), (150, 180), (10, 170)], [[(50, 50), (60, 50), (60, 60)]]),
            name="Größe 组织",
            path_class=PathClass(("Tumor",), (200, 0, 0)),
            locked=True,
            measurements={"m µ": 1.5},
            metadata={"k": "v"},
            color=(1, 2, 3),
            children=(detection(1),),
        ),
        make(oval, roi_kind=RoiKind.ELLIPSE, area_px=oval_area, path_class=PathClass(("Stroma", "äöü*"))),
        make(Polygon([(300, 300), (400, 400), (400, 300), (300, 400)])),
        make(MultiPolygon([box(0, 0, 10, 10), box(10.004, 0, 20, 10)])),
        make(MultiPolygon([box(0, 50, 10, 60), box(30, 50, 40, 60)])),
        make(Polygon([(0, 0), (50, 10), (30, 60)])),
        make(Point(5, 6)),
        make(MultiPoint([(5, 6), (7, 8)])),
        make(LineString([(5, 6), (7, 8)])),
        make(LineString([(5, 6), (7, 8), (9, 20)])),
        make(
            box(500, 300, 520, 320),
            ObjectType.CELL,
            nucleus_roi=Polygon([(505, 305), (510, 305), (510, 310)]),
        ),
        make(box(500, 350, 520, 370.5), ObjectType.TILE),
    ]
    project = project_with(tmp_path, objects)
    run(project, script("import_annotations"))
    theirs = {item["id"]: item for item in describe(project)}
    (sidecar,) = (project.parent / "annotations").iterdir()
    ours = read_geojson(sidecar).objects
    assert theirs.keys() == {str(item.id) for item in (*ours, *ours[0].children)}
    for item in ours:
        seen = theirs[str(item.id)]
        assert seen["type"].lower() == f"path{item.type.value}object"
        assert (seen["roi"], seen.get("name"), seen["locked"]) == (
            item.roi_kind.value,
            item.name,
            item.locked,
        )
        assert seen.get("path_class") == (item.path_class and str(item.path_class))
        assert seen["area"] == pytest.approx(item.area_px, rel=1e-5)
        assert seen["measurements"] == item.measurements
        assert shapely.from_wkt(seen["wkt"]).hausdorff_distance(item.roi) < 0.02
    assert theirs[str(detection(1).id)]["parent"] == str(objects[0].id)
    assert theirs[str(objects[10].id)]["nucleus"] == pytest.approx(12.5)
    assert theirs[str(objects[0].id)]["color"] & 0xFFFFFF == 0x010203
