"""The review queue: its order, its random part, and the error rate that comes of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from reviewing import accepted, drawn, edit, found, judge, pushed_study, rejected, run, run_json
from scipy.stats import hypergeom
from shapely import box

from hnscc_qp.cli.running import make_context
from hnscc_qp.files import write_json
from hnscc_qp.generation import Generation, make_manifest, write_manifest
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.qupath.geojson import read_geojson, sidecar_name
from hnscc_qp.review.queue import (
    Place,
    Stratum,
    draw_queue,
    estimate_errors,
    hypergeometric_interval,
    rank_places,
)
from hnscc_qp.review.queue_novelty import distances
from hnscc_qp.scoring.probabilities import write_probabilities
from hnscc_qp.scoring.score_map import ScoreMap, read_score_map, write_score_map
from hnscc_qp.steps.scorejob import probabilities_file

EVEN = (1.0, 1.0, 1.0, 1.0)


def place(number: int, stratum: Stratum = Stratum.SILENT, **fields: object) -> Place:
    values = {
        "stratum": stratum,
        "entry_id": "1",
        "image": "S1",
        "box_qupath": (float(number), 0.0, number + 1.0, 1.0),
        "object_id": None,
        "max_score": 0.5,
        "disagreement": None,
        "near_threshold": 0.5,
        "novelty": None,
        "size_um2": 1.0,
    }
    return Place(**values | fields)


def frame(detections: int, silent: int) -> list[Place]:
    kinds = [Stratum.DETECTION] * detections + [Stratum.SILENT] * silent
    return [place(number, kind, size_um2=float(number)) for number, kind in enumerate(kinds)]


def test_value_is_the_mean_rank_of_what_was_measured() -> None:
    places = [
        place(0, disagreement=0.1, near_threshold=0.9, novelty=5.0, size_um2=10),
        place(1, disagreement=0.3, near_threshold=0.9, novelty=None, size_um2=30),
        place(2, disagreement=0.2, near_threshold=0.2, novelty=1.0, size_um2=20),
    ]
    # Ranks by hand: disagreement 0, 1, 0.5; nearness 0.75, 0.75, 0; novelty 1, -, 0; size 0, 1, 0.5.
    assert rank_places(places, EVEN) == pytest.approx([1.75 / 4, 2.75 / 3, 1 / 4])
    assert rank_places(places, (0.0, 0.0, 0.0, 1.0)) == pytest.approx([0, 1, 0.5])
    assert rank_places(places, (0.0, 0.0, 0.0, 0.0)) == pytest.approx([0, 0, 0])


def test_queue_holds_the_stated_share_at_random_and_else_the_most_valuable() -> None:
    places = frame(30, 70)
    values = rank_places(places, (0.0, 0.0, 0.0, 1.0))
    items = draw_queue(places, values, length=40, random_share=0.25, seed=1)
    assert [item.rank for item in items] == list(range(1, 41))
    assert len({item.place.box_qupath for item in items}) == 40
    random = [item for item in items if item.drawn is not None]
    assert sorted((item.place.stratum, item.drawn) for item in random) == [
        *((Stratum.DETECTION, number) for number in range(1, 6)),
        *((Stratum.SILENT, number) for number in range(1, 6)),
    ]
    by_value = [item.value for item in items if item.drawn is None]
    left = [value for one, value in zip(places, values, strict=True) if one not in [i.place for i in items]]
    assert by_value == sorted(by_value, reverse=True) and min(by_value) >= max(left)
    assert items == draw_queue(places, values, length=40, random_share=0.25, seed=1)
    assert items != draw_queue(places, values, length=40, random_share=0.25, seed=2)


@pytest.mark.parametrize(
    ("detections", "silent", "length"), [(0, 5, 40), (3, 0, 2), (1, 1, 1), (2, 50, 40), (0, 0, 40)]
)
def test_queue_of_few_places_holds_what_there_is(detections: int, silent: int, length: int) -> None:
    places = frame(detections, silent)
    items = draw_queue(places, rank_places(places, EVEN), length=length, random_share=0.5, seed=1)
    assert len(items) == min(length, len(places))


def test_error_rate_is_unbiased_whatever_the_ranking_favours() -> None:
    """Errors are where the value is highest: the ranked part is full of them, the estimate is not."""
    places = frame(60, 200)
    values = rank_places(places, (0.0, 0.0, 0.0, 1.0))
    wrong = {one.box_qupath: value > 0.8 for one, value in zip(places, values, strict=True)}
    true = {
        kind: np.mean([wrong[one.box_qupath] for one in places if one.stratum is kind]) for kind in Stratum
    }
    rates: dict[Stratum, list[float]] = {kind: [] for kind in Stratum}
    covered: dict[Stratum, list[bool]] = {kind: [] for kind in Stratum}
    for seed in range(1500):
        items = draw_queue(places, values, length=60, random_share=0.5, seed=seed)
        for kind, size in ((Stratum.DETECTION, 60), (Stratum.SILENT, 200)):
            drawn_items = sorted(
                (item for item in items if item.drawn and item.place.stratum is kind), key=lambda i: i.drawn
            )
            answers = [bool(wrong[item.place.box_qupath]) for item in drawn_items]
            # Somebody stops half way.
            rate = estimate_errors([*answers[:9], *[None] * (len(answers) - 9)], stratum=kind, frame=size)
            rates[kind].append(rate.rate)
            covered[kind].append(rate.interval[0] <= true[kind] <= rate.interval[1])
    for kind in Stratum:
        error = np.mean(rates[kind]) - true[kind]
        standard_error = np.std(rates[kind]) / np.sqrt(len(rates[kind]))
        assert abs(error) <= 4 * standard_error, kind
        assert np.mean(covered[kind]) >= 0.95, kind
    naive = [wrong[item.place.box_qupath] for item in items]
    assert np.mean(naive) > 2 * np.mean(list(wrong.values())), "the whole queue would mislead"


def test_interval_covers_in_every_case_as_counting_them_shows() -> None:
    for size, sample in ((12, 5), (20, 7), (9, 9)):
        for errors in range(size + 1):
            chances = hypergeom.pmf(range(sample + 1), size, errors, sample)
            inside = []
            for seen in range(max(0, sample - (size - errors)), min(sample, errors) + 1):
                low, high = hypergeometric_interval(seen, sample, size)
                inside.append(chances[seen] * (low <= errors / size <= high))
            assert sum(inside) >= 0.95 - 1e-9
    assert hypergeometric_interval(3, 9, 9) == (1 / 3, 1 / 3), "who has seen all knows"


def test_an_open_place_ends_what_counts() -> None:
    rate = estimate_errors([True, False, None, True], stratum=Stratum.SILENT, frame=50)
    assert (rate.errors, rate.looked_at, rate.drawn, rate.rate) == (1, 2, 4, 0.5)
    nothing = estimate_errors([None, True], stratum=Stratum.SILENT, frame=50)
    assert (nothing.rate, nothing.interval) == (None, None)


def test_novelty_is_the_distance_that_scipy_gives(tmp_path: Path) -> None:
    from scipy.spatial.distance import mahalanobis

    random = np.random.default_rng(5)
    usual = random.normal(size=(200, 6)) * [1, 2, 3, 1, 1, 5]
    covariance = np.cov(usual, rowvar=False)
    covariance += np.eye(6) * 1e-3 * np.trace(covariance) / 6
    asked = random.normal(size=(3, 4, 6)) * 4
    asked[1, 1] = np.nan
    found_distances = distances(asked, usual)
    for row, column in np.ndindex(3, 4):
        expected = mahalanobis(asked[row, column], usual.mean(axis=0), np.linalg.inv(covariance))
        assert found_distances[row, column] == pytest.approx(expected, nan_ok=True)
    assert distances(asked, usual[:5]) is None


# --- through the command line ----------------------------------------------------------------

ONE, TWO, THREE = found(20, 20), found(100, 20), found(200, 20)


def score_all(study: Path, detections: dict[int, Sequence], *, test: Sequence[int] = ()) -> None:
    """What score, calibrate and patches leave, as far as the queue reads it."""
    generation = Generation(study.parent / "generations" / "001")
    grid = Grid.of_method((400, 320), PixelSize(Mpp(1.0), Mpp(1.0)))
    rows = []
    for number in range(1, 7):
        votes = np.zeros((32, 40), np.uint8)
        for item in detections.get(number, ()):
            left, top, right, bottom = (int(side // 10) for side in item.roi.bounds)
            votes[top:bottom, left:right] = 14
        votes[30, 38] = number
        coverage = np.full_like(votes, 16)
        score_map = ScoreMap(votes, coverage, grid, (400, 320), 1000)
        write_score_map(
            generation.step("score")
            / sidecar_name(str(number), f"S{number}.tif").replace("geojson", "ome.tiff"),
            score_map,
        )
        side = "test" if number in test else "train"
        rows.append(
            {
                "entry_id": str(number),
                "image": f"S{number}.tif",
                "patient": f"P{number}",
                "positive": number % 2 == 1,
                "side": side,
            }
        )
    write_json(generation.step("patches") / "cohort.json", rows)
    outputs = {str(number): "0" for number in range(1, 7)}
    for step in ("score", "calibrate"):
        manifest = make_manifest(
            step=step,
            settings={},
            inputs={},
            outputs=outputs,
            counts={"threshold score": 0.6875},
            started=0.0,
        )
        write_manifest(generation.step(step), manifest)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    regions = {2: [ONE, TWO], 4: [THREE]}
    study = pushed_study(tmp_path, regions, more="\n[review]\nplace_um = 100\nrandom_share = 0.5\n")
    score_all(study, regions, test=[6])
    return study


def boxes_in(study: Path, number: int) -> list:
    file = study.parent / "project" / "ai-review" / sidecar_name(str(number), f"S{number}.tif")
    return list(read_geojson(file).objects) if file.is_file() else []


def take_in_boxes(study: Path) -> None:
    for number in range(1, 7):
        boxes = boxes_in(study, number)
        edit(study, number, lambda there, new=boxes: [*there, *new])


def test_queue_leaves_out_the_test_set_and_what_is_known(study: Path) -> None:
    said = run_json("queue", study, "--length", 500)
    places = [item["place"] for item in said["items"]]
    assert {one["image"] for one in places} == {f"S{number}.tif" for number in range(1, 6)}
    assert sum(one["stratum"] == "detection" for one in places) == 3
    for one in places:
        shape = box(*one["box_qupath"])
        if one["stratum"] == "silent":
            assert one["max_score"] < 0.6875
            assert not any(
                shape.intersects(item.roi.buffer(-10)) for item in (ONE, TWO) if one["entry_id"] == "2"
            )
            if one["entry_id"] in "135":
                assert not shape.intersects(box(80, 80, 240, 240)), "tumor is annotated there"
    with (study.parent / "review" / "queue" / "queue.csv").open(encoding="utf-8") as stream:
        assert [int(row["rank"]) for row in csv.DictReader(stream)] == list(range(1, len(places) + 1))
    slides = [row["image"] for row in said["slides"]]
    assert set(slides) == {f"S{number}.tif" for number in range(1, 6)}
    judge(study, 2, ONE, rejected)
    run("pull", study)
    again = [item["place"]["object_id"] for item in run_json("queue", study, "--length", 500)["items"]]
    assert str(ONE.id) not in again and str(TWO.id) in again, "what has a verdict is not asked for again"


def test_disagreement_is_the_mean_over_windows_that_both_stages_saw(study: Path) -> None:
    probabilities = np.full((2, 29, 37), np.nan, np.float16)
    probabilities[0] = 0.25
    # The box of ONE: blocks 0 to 7 across and down. Two of its windows went on to the secondary.
    probabilities[0, 2, 2], probabilities[1, 2, 2] = 1.0, 0.25
    probabilities[0, 3, 3], probabilities[1, 3, 3] = 0.75, 0.5
    score_map = read_score_map(study.parent / "generations" / "001" / "score" / "2 S2.tif.ome.tiff")
    image = make_context(study, as_json=True).project.images[1]
    write_probabilities(
        probabilities_file(make_context(study, as_json=True), image), probabilities, score_map
    )
    places = [item["place"] for item in run_json("queue", study, "--length", 500)["items"]]
    by_object = {one["object_id"]: one["disagreement"] for one in places}
    assert by_object[str(ONE.id)] == pytest.approx(0.5)
    assert by_object[str(TWO.id)] == 0, "the stages were not asked both, and so do not disagree"
    assert by_object[str(THREE.id)] is None, "S4 was scored without probabilities"


def test_boxes_are_ours_and_go_again(study: Path) -> None:
    run("queue", study, "--length", 500)
    run("queue", study, "--push")
    boxes = boxes_in(study, 2)
    assert boxes and all(str(item.path_class) == "AI: Review" for item in boxes)
    by_rank = {
        int(item.measurements["AI: Review rank"])
        for number in range(1, 7)
        for item in boxes_in(study, number)
    }
    assert by_rank == set(range(1, len(by_rank) + 1))
    take_in_boxes(study)
    counts = run_json("pull", study)["counts"]
    assert (counts["new entries"], counts["untouched"]) == (0, 3), "a box is no verdict"
    run("queue", study, "--remove")
    assert not any(boxes_in(study, number) for number in range(1, 7))


def test_answers_to_the_random_part_give_the_error_rates(study: Path) -> None:
    said = run_json("queue", study, "--length", 500)
    queue = json.loads((study.parent / "review" / "queue" / "queue.json").read_text(encoding="utf-8"))
    drawn_items = [item for item in queue["items"] if item["drawn"] is not None]
    run("queue", study, "--push")
    take_in_boxes(study)
    rates = run_json("queue", study, "--estimate")["error rates"]
    assert [rate["rate"] for rate in rates] == [None, None], "nothing was looked at"
    # Every detection drawn is rejected but one; of the silent places the first holds tumor.
    detections = {str(item.id): (number, item) for number, item in ((2, ONE), (2, TWO), (4, THREE))}
    of_detections = sorted(
        (item for item in drawn_items if item["place"]["stratum"] == "detection"), key=lambda i: i["drawn"]
    )
    for position, item in enumerate(of_detections):
        number, detection = detections[item["place"]["object_id"]]
        judge(study, number, detection, accepted if position == 0 else rejected)
    silent = sorted(
        (item for item in drawn_items if item["place"]["stratum"] == "silent"), key=lambda i: i["drawn"]
    )
    for item in silent:
        number = int(item["place"]["entry_id"])
        edit(study, number, lambda there, gone=item["box_id"]: [o for o in there if str(o.id) != gone])
    left, top, *_ = silent[0]["place"]["box_qupath"]
    tumor = drawn(box(left + 10, top + 10, left + 40, top + 40))
    edit(study, int(silent[0]["place"]["entry_id"]), lambda there: [*there, tumor])
    run("pull", study)
    by_stratum = {rate["stratum"]: rate for rate in run_json("queue", study, "--estimate")["error rates"]}
    rate = by_stratum["detection"]
    assert (rate["errors"], rate["looked_at"], rate["frame"]) == (
        len(of_detections) - 1,
        len(of_detections),
        3,
    )
    rate = by_stratum["silent"]
    assert (rate["errors"], rate["looked_at"]) == (1, len(silent))
    assert rate["frame"] == said["counts"]["silent places"]
    assert "places in all" in run("queue", study, "--estimate")


def test_what_can_not_be_done_is_said_in_one_line(study: Path) -> None:
    for option in ("--push", "--estimate"):
        assert run("queue", study, option, code=1) == ""
    assert run("queue", study, "--push", "--remove", code=1) == ""
    score_all(study, {}, test=range(1, 7))
    assert run("queue", study, code=1) == ""
