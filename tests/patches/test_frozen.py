from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hnscc_qp.errors import SealedSplitError, StepError
from hnscc_qp.patches.frozen import Seat, freeze_sides, read_frozen


def seats(*tests: str, develops: str = "") -> list[Seat]:
    return [Seat(name, f"{name} {name}.tif", True) for name in tests] + [
        Seat(name, f"{name} {name}.tif", False) for name in develops.split()
    ]


@pytest.fixture
def frozen(tmp_path: Path):
    path = tmp_path / "sides.json"
    freeze_sides(path, None, seats("P1", develops="P2 P3"), {"seed": 1})
    return read_frozen(path)


def test_a_test_patient_that_would_develop_is_refused_by_name(frozen):
    with pytest.raises(
        SealedSplitError, match=r"^of the sealed test set of this study P1 would be .*start a new study"
    ):
        frozen.check(seats("P4", develops="P1 P2"))


def test_a_patient_that_developed_cant_become_a_test_patient(frozen):
    with pytest.raises(SealedSplitError, match=r"^of those that developed .* P2, P3 would test;"):
        frozen.check(seats("P1", "P2", "P3"))


def test_a_test_slide_that_gets_another_patients_name_is_refused(frozen):
    with pytest.raises(SealedSplitError, match=r"sealed test set of this study P1 P1\.tif would"):
        frozen.check([Seat("P1 renamed", "P1 P1.tif", False)])


def test_new_patients_may_take_either_side_and_are_then_fixed_too(frozen, tmp_path):
    more = seats("P1", "P4", develops="P2 P5")
    frozen.check(more)
    freeze_sides(tmp_path / "sides.json", frozen, more, {"seed": 1})
    grown = read_frozen(tmp_path / "sides.json")
    assert grown.patients == {"P1": True, "P2": False, "P3": False, "P4": True, "P5": False}
    with pytest.raises(SealedSplitError, match="P4"):
        grown.check(seats(develops="P4"))


def test_sides_that_cant_be_read_are_not_taken_for_none(tmp_path):
    assert read_frozen(tmp_path / "sides.json") is None
    (tmp_path / "sides.json").write_text("{}")
    with pytest.raises(StepError, match="is damaged"):
        read_frozen(tmp_path / "sides.json")


@given(st.lists(st.dictionaries(st.integers(0, 6), st.booleans()), max_size=6))
@hypothesis_settings(deadline=None, max_examples=100)
def test_through_any_history_of_splits_nobody_is_ever_on_both_sides(tmp_path_factory, history):
    path = tmp_path_factory.mktemp("study") / "sides.json"
    ever: dict[int, set[bool]] = {}
    for split in history:
        frozen = read_frozen(path)
        wanted = [Seat(f"P{n}", f"{n} {n}.tif", tests) for n, tests in split.items()]
        moves = any(ever.get(n, {tests}) != {tests} for n, tests in split.items())
        try:
            if frozen:
                frozen.check(wanted)
        except SealedSplitError:
            assert moves
            continue
        assert not moves
        freeze_sides(path, frozen, wanted, {})
        for n, tests in split.items():
            ever.setdefault(n, set()).add(tests)
    assert all(len(sides) == 1 for sides in ever.values())
