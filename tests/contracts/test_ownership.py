"""Whatever a pathologist does between pushes, what she made or touched is hers, and the rest is ours."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4, uuid5

import pytest
import shapely
from contract_helpers import make_detection
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from shapely.affinity import translate

from hnscc_qp.qupath.embedded import ANNOTATIONS_FOLDER, EmbeddedProject
from hnscc_qp.qupath.geojson import write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind, walk
from hnscc_qp.qupath.ownership import (
    AI_TUMOR,
    WritePlan,
    detection_id,
    is_ours,
    is_sealed,
    plan_write,
    remember,
)
from hnscc_qp.qupath.safewrite import undo_last_write
from hnscc_qp.qupath.shapes import settle

NUMBERS = st.lists(st.integers(0, 5), unique=True, max_size=5)
MODELS = st.sampled_from(["model-1", "model-2"])


def given_detections(numbers: list[int], model: str, score: float = 0.875) -> list[PathObject]:
    return [make_detection(number, model=model, score=score, with_hole=number % 3 == 0) for number in numbers]


# --- the id ------------------------------------------------------------------------------------

CORNERS = st.tuples(st.floats(0, 250_000), st.floats(0, 250_000))


@settings(deadline=None)
@given(corner=CORNERS, size=st.tuples(st.floats(1, 5000), st.floats(1, 5000)))
def test_an_id_seals_its_shape_however_qupath_stores_it(corner, size):
    x, y = corner
    width, height = size
    roi = settle(
        shapely.box(x, y, x + width, y + height).difference(shapely.box(x, y, x + width / 3, y + height / 2))
    )
    identifier = detection_id(roi, slide_name="a", model_hash="b")
    assert (identifier.version, identifier.variant) == (5, "specified in RFC 4122")
    assert is_sealed(identifier, roi)
    single = shapely.transform(roi, lambda points: points.astype("f4").astype("f8"))
    assert is_sealed(identifier, single)
    rounded_by_jts = shapely.transform(
        single, lambda points: ((points / 0.01 + 0.5) // 1 * 0.01).astype("f4")
    )
    assert is_sealed(identifier, rounded_by_jts)
    assert is_sealed(identifier, roi.reverse())
    assert is_sealed(identifier, shapely.MultiPolygon([roi]))
    assert not is_sealed(identifier, translate(roi, 0.1, 0))
    assert not is_sealed(identifier, shapely.convex_hull(roi))


def test_corners_on_a_straight_side_do_not_matter_in_any_part_of_a_region():
    # Before 0.6 QuPath drops them, of regions in several parts, too.
    plain = shapely.MultiPolygon([shapely.box(0, 0, 30, 10), shapely.box(50, 0, 60, 10)])
    cornered = shapely.MultiPolygon(
        [shapely.Polygon([(0, 0), (10, 0), (30, 0), (30, 10), (0, 10)]), shapely.box(50, 0, 60, 10)]
    )
    identifier = detection_id(cornered, slide_name="a", model_hash="b")
    assert identifier == detection_id(plain, slide_name="a", model_hash="b")
    assert is_sealed(identifier, plain)
    moved = shapely.MultiPolygon([shapely.box(0, 0, 30, 10), shapely.box(50, 0, 61, 10)])
    assert not is_sealed(identifier, moved)


def test_no_other_id_is_ours():
    (ours,) = given_detections([1], "model-1")
    assert is_ours(ours)
    for other in (
        None,
        uuid4(),
        uuid5(UUID(int=0), "x"),
        UUID(int=ours.id.int ^ 1),
        UUID(int=ours.id.int ^ 1 << 127),
    ):
        assert not is_ours(replace(ours, id=other))


def test_the_same_region_of_another_slide_or_model_has_another_id():
    roi = make_detection(1).roi
    ids = {detection_id(roi, slide_name=slide, model_hash=model) for slide in "ab" for model in "cd"}
    assert len(ids) == 4


# --- any edit, on objects that went through the GeoJSON that QuPath imports and exports -------------

HERS = PathObject(ObjectType.ANNOTATION, shapely.box(0, 0, 9, 9), RoiKind.RECTANGLE, 81.0, uuid4())
EDITS: dict[str, Callable[[PathObject], PathObject | None]] = {
    "lock": lambda item: replace(item, locked=True),
    "name": lambda item: replace(item, name="see this"),
    "reclassify": lambda item: replace(item, path_class=PathClass(("Necrosis",))),
    "reject": lambda item: replace(item, path_class=PathClass(("AI", "Tumor", "wrong"))),
    "declassify": lambda item: replace(item, path_class=None),
    "colour": lambda item: replace(item, color=(0, 255, 0)),
    "move": lambda item: replace(item, roi=translate(item.roi, 3, 0)),
    "reshape": lambda item: replace(
        item, roi=item.roi.difference(shapely.box(*item.roi.centroid.coords[0], 1e4, 1e4))
    ),
    "accept": lambda item: replace(item, type=ObjectType.ANNOTATION),
    "accept anew": lambda item: replace(
        item, type=ObjectType.ANNOTATION, id=uuid4(), path_class=PathClass(("Tumor",))
    ),
    "note": lambda item: replace(item, metadata={**item.metadata, "ask": "Ann"}),
    "nest": lambda item: replace(item, children=(replace(HERS, id=uuid4()),)),
}
NOT_EDITS: dict[str, Callable[[PathObject], PathObject]] = {
    "look": lambda item: item,
    "measure": lambda item: replace(item, measurements={**item.measurements, "Distance to Tumor µm": 2.5}),
    "lose metadata": lambda item: replace(item, metadata={}),  # as QuPath before 0.6 does
}
HANDS = st.lists(st.sampled_from([*EDITS, *NOT_EDITS, "delete"]), max_size=6)


def carry_out(plan: WritePlan, existing: list[PathObject]) -> list[PathObject]:
    """What QuPath would hold afterwards."""
    gone = {id(item) for item in plan.remove}

    def rest(items) -> Iterator[PathObject]:
        for item in items:
            below = tuple(rest(item.children))
            if id(item) not in gone:
                yield replace(item, children=below)

    return [*rest(existing), *plan.add]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(st.tuples(NUMBERS, MODELS, HANDS, st.booleans()), min_size=1, max_size=4))
def test_whatever_is_edited_between_pushes_stays_and_the_rest_is_replaced(rounds, new_project):
    project = EmbeddedProject(new_project)
    (image,) = project.images
    exchange = new_project / ANNOTATIONS_FOLDER / "1 image.geojson"
    exchange.parent.mkdir(exist_ok=True)
    there: list[PathObject] = [HERS]
    hers = {HERS.id}
    for numbers, model, hands, nested in rounds:
        incoming = given_detections(numbers, model)
        write_geojson(exchange, there)
        plan = project.plan_detections(image, incoming)
        present = project.objects(image)
        assert not {item.id for item in plan.remove} & hers
        there = carry_out(plan_write(present, incoming), list(present))
        after = {item.id: item for _, item in walk(there)}
        assert hers <= after.keys()
        assert {item.id for item in plan.held_back} <= {item.id for item in incoming}
        unwritten = {item.id for item in plan.held_back}
        assert {key for key, item in after.items() if is_ours(item)} == {
            one.id for one in incoming
        } - unwritten
        assert not plan_write(there, incoming).changes
        for item in plan.held_back:
            assert item.id in hers or any(
                there.roi.equals(item.roi) for key, there in after.items() if key in hers
            )
        there, made = edit(there, hands)
        hers |= made
        if nested:  # as QuPath's "Resolve hierarchy" does
            ours = tuple(item for item in there if is_ours(item))
            there = [
                replace(HERS, children=ours),
                *(item for item in there if not is_ours(item) and item is not HERS),
            ]
            there = [item for number, item in enumerate(there) if number == 0 or item.id != HERS.id]


def edit(there: list[PathObject], hands: list[str]) -> tuple[list[PathObject], set[UUID | None]]:
    """Let a hand on each of our objects that are left, in turn."""
    made: set[UUID | None] = set()
    edited: list[PathObject] = []
    waiting = list(hands)
    for item in there:
        if not is_ours(item) or not waiting:
            edited.append(item)
            continue
        hand = waiting.pop()
        if hand in EDITS:
            changed = EDITS[hand](item)
            assert changed is not None
            edited.append(changed)
            made |= {one.id for _, one in walk([changed])}
        elif hand in NOT_EDITS:
            edited.append(NOT_EDITS[hand](item))
    return edited, made


@pytest.mark.parametrize("hand", EDITS)
def test_each_edit_makes_an_object_hers(hand):
    (ours,) = given_detections([1], "model-1")
    edited = EDITS[hand](ours)
    assert not is_ours(edited)
    plan = plan_write([edited], [ours])
    # Moved or reshaped it is hers, too, and we have that id no more.
    assert (plan.remove, plan.add) == ((), ())
    assert (plan.held_back, plan.left) == ((ours,), 1)


@pytest.mark.parametrize("hand", NOT_EDITS)
def test_what_qupath_computes_or_loses_is_no_edit(hand):
    (ours,) = given_detections([1], "model-1")
    there = NOT_EDITS[hand](ours)
    assert is_ours(there)
    assert not plan_write([there], [ours]).changes
    assert plan_write([there], []).remove == (there,)


def test_a_file_imported_twice_is_cleared_up():
    ours = given_detections([1, 2], "model-1")
    plan = plan_write([*ours, *ours], ours)
    assert (len(plan.keep), len(plan.remove), plan.add) == (2, 2, ())
    # A copy that she touched stays, and ours goes.
    locked = replace(ours[0], locked=True)
    plan = plan_write([ours[0], locked], ours[:1])
    assert (plan.keep, plan.remove, plan.add, plan.theirs) == ((), (ours[0],), (), (locked,))


def test_what_she_deleted_is_held_back_until_another_is_found():
    first, second = given_detections([1, 2], "model-1")
    memory = remember("", plan_write([], [first, second]))
    plan = plan_write([second], [first, second], memory=memory)
    assert (plan.held_back, plan.left, plan.keep, plan.changes) == ((first,), 1, (second,), False)
    # Taken away by a newer model, it is not deleted.
    memory = remember(memory, plan_write([first, second], [], memory=memory))
    assert plan_write([], [first, second], memory=memory).add == (first, second)
    assert plan_write([], [first], memory="no id at all").add == (first,)


def test_detections_of_other_tools_are_never_ours():
    roi = shapely.box(0, 0, 10, 10)
    cell = PathObject(
        ObjectType.DETECTION, roi, RoiKind.RECTANGLE, 100.0, uuid5(UUID(int=0), "cell"), path_class=AI_TUMOR
    )
    plan = plan_write([cell], [])
    assert (plan.remove, plan.theirs, plan.left) == ((), (cell,), 1)


# --- the same, with QuPath's own hands ----------------------------------------------------------

EDIT_STEPS = ["lock", "name", "reclassify", "declassify", "derive_class", "color", "move", "accept", "delete"]
STEPS = st.sampled_from(
    [
        *EDIT_STEPS,
        "put_below",
        "measure",
        "annotate",
        "draw",
        "import",
        "import foreign",
        "resolve",
        "nothing",
    ]
)
ROUNDS = st.lists(
    st.tuples(
        NUMBERS,
        MODELS,
        st.sampled_from([0.875, 0.75]),
        st.lists(st.tuples(STEPS, st.integers(0, 99)), max_size=4),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def saved_project(qupath_dir, tmp_path_factory) -> Path:
    """A project with two annotations, saved by the QuPath at hand."""
    import numpy as np
    import tifffile
    from human import Pathologist

    from hnscc_qp.qupath.create import NewImage, create_project

    place = tmp_path_factory.mktemp("saved project")
    slide = place / "Präparat 1.tif"
    tifffile.imwrite(slide, np.full((400, 600, 3), 255, np.uint8), tile=(128, 128), photometric="rgb")
    image = NewImage(slide, "Präparat 1", (600, 400), [(1, 600, 400)])
    project_file = create_project(
        place / "project", [image], path_classes=[PathClass(("Tumor",), (200, 0, 0))]
    )
    hand = Pathologist(project_file)
    hand.annotate(5, 5, 580, 380, path_class="Tumor")
    hand.annotate(300, 100, 20.5, 30.25, path_class=None)
    hand.save()
    return project_file.parent


@pytest.mark.qupath
@pytest.mark.timeout(900)  # some 200 times QuPath opens an image or saves it
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@example(
    rounds=[([0, 1, 2], "model-1", 0.875, [("resolve", 0), ("move", 1)]), ([0, 1, 2], "model-2", 0.875, [])]
)
@example(
    rounds=[
        ([0, 1, 2], "model-1", 0.875, [("accept", 0), ("delete", 1), ("put_below", 2)]),
        ([0, 1, 2], "model-1", 0.875, []),
    ]
)
@example(rounds=[([0, 1, 2], "model-1", 0.875, [("put_below", 2)]), ([0, 1, 2], "model-2", 0.875, [])])
@given(rounds=ROUNDS)
def test_a_pathologist_at_work_in_qupath_loses_nothing(rounds, saved_project):
    from human import Pathologist

    from hnscc_qp.qupath.jvm import PaquoProject

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "project")
        shutil.copytree(saved_project, folder)
        data = folder / "data" / "1" / "data.qpdata"
        untouched: set[str] = set()  # by our own book: what we pushed, and no hand was laid on
        nested: set[str] = set()
        remembered: set[str] = set()  # what the image says was imported, and so deleted if it is gone
        for numbers, model, score, steps in rounds:
            incoming = given_detections(numbers, model, score)
            before = describe(folder)
            bytes_before = data.read_bytes()
            project = PaquoProject(folder)
            project.write_detections(project.images[0], incoming)
            written = data.read_bytes()
            after = describe(folder)
            hers = [one for one in before if one["id"] not in untouched]
            assert hers == [one for one in after if one["id"] not in untouched and one in hers]
            taken = {one["id"] for one in hers} | {one["corners"] for one in hers}
            taken |= remembered - {one["id"] for one in before}
            wanted = {str(one.id) for one in incoming if not {str(one.id), corners_of(one.roi)} & taken}
            hers_ids = {one["id"] for one in hers}
            assert {one["id"] for one in after} - hers_ids == wanted
            again = PaquoProject(folder)
            again.write_detections(again.images[0], incoming)
            assert data.read_bytes() == written
            if written != bytes_before:
                remembered = remembered - (untouched - wanted) | wanted
                undo_last_write(project.path)
                assert data.read_bytes() == bytes_before
                PaquoProject(folder).write_detections(project.images[0], incoming)
                assert describe(folder) == after
            untouched = wanted
            hand = Pathologist(folder / "project.qpproj")
            for step, which in steps:
                let(hand, step, which, untouched=untouched, nested=nested, folder=folder)
            hand.save()


def let(hand, step: str, which: int, *, untouched: set[str], nested: set[str], folder: Path) -> None:
    """Do one thing in QuPath, and keep book of what is left untouched."""
    if step == "annotate":
        hand.annotate(which, 10, 50, 50, path_class="AI: Tumor")
    elif step == "draw":
        hand.draw_detection(which, 10, 50, 50, path_class="AI: Tumor")
    elif step == "resolve":
        hand.hierarchy.resolveHierarchy()
        untouched |= nested  # an annotation that lay in a detection of ours is put beside it
        nested.clear()
    elif step.startswith("import"):
        (item,) = given_detections([which % 12], "model-1")
        if step == "import foreign":
            item = replace(item, id=uuid5(UUID(int=0), str(which)))
        if str(item.id) in {str(one.getID()) for one in hand.objects()}:
            return  # what QuPath does about an id that is there differs
        write_geojson(folder / "import.geojson", [item])
        hand.import_geojson(folder / "import.geojson")
        if step == "import":
            untouched.add(str(item.id))
    elif step != "nothing" and untouched:
        chosen = sorted(untouched)[which % len(untouched)]
        (item,) = (one for one in hand.objects() if str(one.getID()) == chosen)
        getattr(hand, step)(item)
        if step != "measure":
            untouched.remove(chosen)
        if step == "put_below":
            nested.add(chosen)


def describe(folder: Path) -> list[dict[str, str]]:
    """Every object, in words that QuPath itself finds, by id."""
    from human import Pathologist
    from jpype import JClass

    gson = JClass("qupath.lib.io.GsonTools").getInstance()
    found = []
    for item in Pathologist(folder / "project.qpproj").objects():
        about = json.loads(str(gson.toJson(item)))
        about.pop("nucleusGeometry", None)
        about["properties"].pop("childObjects", None)
        found.append(
            {
                "id": str(item.getID()),
                "about": json.dumps(about, sort_keys=True),
                "locked": str(item.isLocked()),
                "wkt": str(item.getROI().getGeometry().toText()),
                "corners": corners_of(shapely.from_wkt(str(item.getROI().getGeometry().toText()))),
                "parent": str(item.getParent().getID()) if item.getParent().hasROI() else "",
            }
        )
    return found


def corners_of(roi) -> str:
    points = shapely.get_coordinates(roi.simplify(0)).round(2)
    return str(sorted({(float(x), float(y)) for x, y in points}))
