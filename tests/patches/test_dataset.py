from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hnscc_qp.errors import SealedSplitError, StepError
from hnscc_qp.patches.dataset import (
    DevelopmentSet,
    PatchRow,
    TestSet,
    open_development,
    open_test,
    rows_table,
    write_patches,
)
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.seal import Member, SealedSplit
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.stored import Part

SPLIT = SealedSplit(
    {
        "1": Member("P1", True, Side.TRAIN),
        "2": Member("P2", False, Side.VALIDATION),
        "7": Member("P7", True, Side.TEST),
    },
    "0" * 64,
)


def rows_of(number: int, entry_id: str = "7", split: SealedSplit = SPLIT) -> list[PatchRow]:
    member = split.by_entry[entry_id]
    return [
        PatchRow(
            entry_id=entry_id,
            slide="ä.tif",
            patient=member.patient,
            side=member.side,
            x_px=10 * n,
            y_px=0,
            x_qupath=25.0 * n,
            y_qupath=0.0,
            label=Label(n % 2),
            reason="annotation",
            annotation_ids=("x",) * n,
            image_sha256="f" * 64,
        )
        for n in range(number)
    ]


def pixels_of(number: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (number, 40, 40, 3), dtype=np.uint8)


def write(folder: Path, part: Part, rows: list[PatchRow], *, split: SealedSplit = SPLIT) -> dict[str, str]:
    chunks = [(rows_table(rows[:2]), pixels_of(5)[:2]), (rows_table(rows[2:]), pixels_of(5)[2 : len(rows)])]
    return write_patches(folder, part, chunks, count=len(rows), split=split)


def test_patches_read_back_as_they_were_written(tmp_path):
    write(tmp_path, Part.TEST, rows_of(5))
    patches = open_test(tmp_path, SPLIT)
    assert isinstance(patches.pixels, np.memmap) and (patches.pixels == pixels_of(5)).all()
    assert patches.label.tolist() == [0, 1, 0, 1, 0] and patches.label.dtype == np.uint8
    assert set(patches.side) == {"test"} and set(patches.patient) == {"P7"}
    row = patches.table.slice(3, 1).to_pylist()[0]
    assert (row["patch"], row["slide"], row["x_qupath"], row["label"]) == (3, "ä.tif", 75.0, "tumor")
    assert (row["x_px"], row["reason"], row["annotation_ids"]) == (30, "annotation", ["x", "x", "x"])
    assert row["image_sha256"] == "f" * 64


def test_a_part_without_patches_opens_empty(tmp_path):
    write_patches(tmp_path, Part.DEVELOPMENT, [], count=0, split=SPLIT)
    patches = open_development(tmp_path, SPLIT)
    assert patches.pixels.shape == (0, 40, 40, 3) and len(patches.on(Side.TRAIN)) == 0


def test_the_same_patches_give_the_same_bytes(tmp_path):
    outputs = [write(tmp_path / name, Part.TEST, rows_of(5)) for name in ("a", "b")]
    assert outputs[0] == outputs[1]
    assert sorted(outputs[0]) == ["test/patches.npy", "test/patches.parquet"]
    assert {path.name for path in (tmp_path / "a" / "test").iterdir()} == {"patches.npy", "patches.parquet"}


def test_missing_torn_and_mixed_up_patches_are_named(tmp_path):
    with pytest.raises(StepError, match="there are no patches in"):
        open_test(tmp_path, SPLIT)
    write(tmp_path, Part.TEST, rows_of(5))
    np.save(tmp_path / "test" / "patches.npy", pixels_of(3))
    with pytest.raises(StepError, match="do not belong together"):
        open_test(tmp_path, SPLIT)
    for file in ("patches.parquet", "patches.npy"):
        (tmp_path / "test" / file).write_bytes(b"torn")
        with pytest.raises(StepError, match="are damaged"):
            open_test(tmp_path, SPLIT)


def test_patches_open_only_with_the_split_they_were_cut_under(tmp_path):
    write(tmp_path, Part.DEVELOPMENT, rows_of(3, "1"))
    other = SealedSplit({**SPLIT.by_entry, "2": Member("P2", False, Side.TRAIN)}, "0" * 64)
    with pytest.raises(StepError, match="cut under another split"):
        open_development(tmp_path, other)


def test_the_parts_do_not_take_each_others_rows(tmp_path):
    with pytest.raises(SealedSplitError, match="P7, a test patient: it can't be trained on"):
        write(tmp_path, Part.DEVELOPMENT, rows_of(5))
    with pytest.raises(SealedSplitError, match="holds patches of development"):
        write(tmp_path, Part.TEST, rows_of(5, "2"))
    assert not list(tmp_path.rglob("patches.*"))


def test_test_files_moved_into_the_development_folder_are_refused(tmp_path):
    write(tmp_path, Part.TEST, rows_of(5))
    (tmp_path / "test").rename(tmp_path / "development")
    with pytest.raises(SealedSplitError, match="P7, a test patient"):
        open_development(tmp_path, SPLIT)


def test_a_table_that_lies_about_its_side_is_refused(tmp_path):
    table = rows_table([replace(row, side=Side.TRAIN, patient="P1") for row in rows_of(3)])
    with pytest.raises(SealedSplitError, match="P7, a test patient"):
        DevelopmentSet(pixels_of(3), table, SPLIT)
    lies = rows_table([replace(row, side=Side.VALIDATION) for row in rows_of(3, "1")])
    with pytest.raises(SealedSplitError, match="not what the split says"):
        DevelopmentSet(pixels_of(3), lies, SPLIT)


def test_a_split_with_a_patient_on_both_sides_cant_be_made():
    with pytest.raises(SealedSplitError, match="P7 would be both"):
        SealedSplit({**SPLIT.by_entry, "8": Member("P7", True, Side.TRAIN)}, "0" * 64)


@given(
    st.dictionaries(st.integers(0, 9), st.sampled_from(list(Side)), min_size=1),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(list(Side)))),
)
@hypothesis_settings(deadline=None, max_examples=200)
def test_no_development_set_ever_holds_a_test_patient(sides, claims):
    """Rows claim any side for any image; a set either has only what the split lets develop, or is refused."""
    split = SealedSplit({str(n): Member(f"P{n}", True, side) for n, side in sides.items()}, "0" * 64)
    rows = [
        PatchRow(str(n), "a.tif", f"P{n}", side, 0, 0, 0.0, 0.0, Label.TUMOR, "annotation")
        for n, side in claims
    ]
    honest = all(sides.get(n) is side and side is not Side.TEST for n, side in claims)
    table, pixels = rows_table(rows), np.zeros((len(rows), 40, 40, 3), np.uint8)
    try:
        patches = DevelopmentSet(pixels, table, split)
    except SealedSplitError:
        assert not honest
    else:
        assert honest
        assert not {split.by_entry[one].side for one in patches.table["entry_id"].to_pylist()} & {Side.TEST}


def test_the_sets_cant_be_changed_once_made(tmp_path):
    write(tmp_path, Part.DEVELOPMENT, rows_of(4, "1"))
    patches = open_development(tmp_path, SPLIT)
    with pytest.raises(AttributeError):
        patches.table = pa.table({})  # type: ignore[misc]
    for values in (patches.side, patches.label, patches.patient, patches.pixels):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = values[1]
    assert not isinstance(TestSet(patches.pixels[:0], patches.table[:0], SPLIT), DevelopmentSet)


def test_tables_carry_numbers_that_run_through_all_chunks(tmp_path):
    write(tmp_path, Part.TEST, rows_of(5))
    assert pq.read_table(tmp_path / "test" / "patches.parquet")["patch"].to_pylist() == [0, 1, 2, 3, 4]
