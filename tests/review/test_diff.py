"""What review changed since the last push, in areas and in pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reviewing import accepted, drawn, edit, found, judge, offer, pushed_study, rejected, run, run_json
from shapely import box

from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.qupath.objects import PathClass
from hnscc_qp.review.diff import class_areas, compare_areas

NECROSIS = PathClass(("Necrosis",))


def raster(objects: list) -> dict[str, np.ndarray]:
    """Class → mask, by counting pixels; boxes on whole pixels are exact."""
    masks: dict[str, np.ndarray] = {}
    for item in objects:
        x0, y0, x1, y1 = map(int, item.roi.bounds)
        masks.setdefault(str(item.path_class), np.zeros((100, 100), bool))[y0:y1, x0:x1] = True
    return masks


def test_areas_are_those_that_counting_pixels_gives() -> None:
    random = np.random.default_rng(3)

    def draw() -> list:
        made = []
        for number in range(6):
            x, y = random.integers(0, 60, 2)
            width, height = random.integers(5, 40, 2)
            made.append(
                drawn(box(x, y, x + width, y + height), (PathClass(("Tumor",)), NECROSIS)[number % 2])
            )
        return made

    for _ in range(20):
        before, after = draw(), draw()
        pixel_size = PixelSize(Mpp(0.5), Mpp(0.25))
        rows = compare_areas(class_areas(before), class_areas(after), image="S", pixel_size=pixel_size).rows
        was, now = raster(before), raster(after)
        any_was, any_now = (np.logical_or.reduce(list(masks.values())) for masks in (was, now))
        for row in rows:
            old, new = was[row.path_class], now[row.path_class]
            expected = (
                old.sum(),
                new.sum(),
                (new & ~old & ~any_was).sum(),
                (old & ~new & ~any_now).sum(),
                (new & ~old & any_was).sum(),
                (old & ~new & any_now).sum(),
            )
            areas = (
                row.before_um2,
                row.after_um2,
                row.added_um2,
                row.removed_um2,
                row.changed_in_um2,
                row.changed_out_um2,
            )
            # Less than 1 µm² is taken for rounding.
            assert np.abs(np.array(areas) - np.array(expected) * 0.125).max() <= 1


def test_diff_shows_what_review_did_as_table_and_picture(tmp_path: Path) -> None:
    one, two = found(20, 20), found(250, 250, 40, 30)
    study = pushed_study(tmp_path, {2: [one, two], 4: [found(30, 30)]})
    judge(study, 2, one, accepted)
    judge(study, 2, two, rejected)
    edit(study, 2, lambda there: [*there, drawn(box(300, 40, 380, 120))])
    said = run_json("pull", study, "--diff")["diff"]
    rows = {(row["image"], row["path_class"]): row for row in said["rows"]}
    assert rows["S2.tif", "Tumor"]["added_um2"] == pytest.approx(6400)
    assert rows["S2.tif", "Tumor"]["changed_in_um2"] == pytest.approx(one.roi.area)
    assert rows["S2.tif", "AI: Tumor"]["into"] == {
        "Tumor": pytest.approx(one.roi.area),
        "AI: Rejected": pytest.approx(two.roi.area),
    }
    assert not any(rows["S4.tif", "AI: Tumor"][f"{what}_um2"] for what in ("added", "removed", "changed_out"))
    assert rows["S1.tif", "Tumor"]["added_um2"] == 0
    pictures = [Path(file) for file in said["files"] if file.endswith(".png")]
    assert [path.name for path in pictures] == ["2 S2.tif.png"], "one for each slide that differs"
    with Image.open(pictures[0]) as picture:
        scale = 1400 / 400
        inside = picture.convert("RGB").getpixel((int(340 * scale), int(80 * scale)))
        pink = picture.convert("RGB").getpixel((int(200 * scale), int(80 * scale)))
    assert inside[2] > inside[0] and pink[0] > pink[2], "what was added is blue"
    with (pictures[0].parent / "diff.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == len(said["rows"])


def test_diff_is_since_the_last_push_and_what_was_never_imported_is_not_removed(tmp_path: Path) -> None:
    one = found(20, 20)
    study = pushed_study(tmp_path, {2: [one]})
    judge(study, 2, one, accepted)
    offer(study, {2: [found(100, 100)]}, generation="002")
    run("push", study)
    said = run_json("pull", study, "--diff")["diff"]
    assert said["since"] == "002"
    assert not any(row["added_um2"] or row["removed_um2"] or row["into"] for row in said["rows"])
    assert "nothing differs" in run("pull", study, "--diff")
