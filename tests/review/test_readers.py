"""Kappas against published worked examples, McNemar against its sum, tables as people write them."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from hnscc_qp.errors import ReadersError
from hnscc_qp.review.readers import cohens_kappa, compare_readers, fleiss_kappa, mcnemar, read_calls

IMAGES = ["a.tif", "b.tif", "c.tif"]


def table(tmp_path, text):
    path = tmp_path / "calls.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_cohens_kappa_of_a_worked_example():
    # 20 both yes, 5 and 10 apart, 15 both no: observed 0.7, by chance 0.5 (a textbook's).
    first = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa([True, True], [True, True]) is None
    assert cohens_kappa([], []) is None


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_cohens_kappa_of_slides_that_count_several_times_is_scikit_learns(slides):
    first, second, counts = map(np.array, zip(*slides, strict=True))
    kappa = cohens_kappa(first, second, counts)
    ones, others = np.repeat(first, counts), np.repeat(second, counts)
    if len({*ones.tolist(), *others.tolist()}) < 2:
        assert kappa is None
    else:
        assert kappa == pytest.approx(cohen_kappa_score(ones, others))


def test_fleiss_kappa_is_its_definition_pair_by_pair():
    rng = np.random.default_rng(5)
    calls = rng.random((12, 4)) < np.linspace(0.1, 0.9, 12)[:, np.newaxis]
    agreed = []
    for slide in calls:
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        agreed.append(sum(slide[i] == slide[j] for i, j in pairs) / len(pairs))
    share = calls.mean()
    chance = share**2 + (1 - share) ** 2
    assert fleiss_kappa(calls) == pytest.approx((np.mean(agreed) - chance) / (1 - chance))


def test_fleiss_kappa_of_two_who_call_equally_many_positive_is_scotts_pi():
    # Scott's pi of 20, 5, 5, 20: observed 0.8, by chance 0.5.
    calls = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 5 + [(0, 0)] * 20
    assert fleiss_kappa(calls) == pytest.approx(0.6)
    assert fleiss_kappa([(1, 1), (1, 1)]) is None
    assert fleiss_kappa(np.empty((0, 3))) is None


def test_mcnemar_is_a_coin_tossed_as_often_as_they_differ():
    assert mcnemar(1, 6) == pytest.approx(2 * sum(comb(7, k) for k in range(2)) / 2**7)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) is None


def test_three_ways_to_write_the_same_calls(tmp_path):
    long = "image,reader,call\na.tif,Dr A,positive\nb.tif,Dr A,neg\na.tif,Dr B,1\n"
    wide = "slide;Dr A;Dr B\na.tif;+;pos\nb.tif;negative;\n"
    expected = {"Dr A": {"a.tif": True, "b.tif": False}, "Dr B": {"a.tif": True}}
    assert read_calls(table(tmp_path, long), IMAGES) == expected
    assert read_calls(table(tmp_path, wide), IMAGES) == expected
    one = (
        "image,patient,side,truth,max_score,call\na.tif,P1,test,positive,1.0,positive\nb.tif,P,,,,no tissue\n"
    )
    assert read_calls(table(tmp_path, one), IMAGES, name="other") == {"other": {"a.tif": True}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,reader,call\n", "no rows"),
        ("image,Dr A\na.tif,\n", "holds no call"),
        ("picture,Dr A\na.tif,1\n", "no column 'image' .it has picture, Dr A."),
        ("image\na.tif\n", "has no calls"),
        ("image,Dr A\na.tiff,1\n", "does not have: a.tiff .did you mean 'a.tif'."),
        ("image,Dr A\na.tif,maybe\n", "line 2: 'maybe' is no call"),
        ("image,Dr A\na.tif,1\na.tif,0\n", "line 3: Dr A calls a.tif both"),
        ("image,Dr A,Dr A\na.tif,1,0\n", "column Dr A twice"),
        ("image,Dr A\na.tif,1,0\n", "line 2: 3 cells for 2 columns"),
    ],
)
def test_a_table_that_can_not_be_used_says_why(tmp_path, text, message):
    with pytest.raises(ReadersError, match=message):
        read_calls(table(tmp_path, text), IMAGES)


def test_a_table_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ReadersError, match="can't be read"):
        read_calls(tmp_path / "none.csv", IMAGES)
    (tmp_path / "calls.csv").write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(ReadersError, match="can't be read"):
        read_calls(tmp_path / "calls.csv", IMAGES)


def test_the_same_call_twice_is_one_call(tmp_path):
    text = "image,Dr A\na.tif,1\na.tif,positive\n"
    assert read_calls(table(tmp_path, text), IMAGES) == {"Dr A": {"a.tif": True}}


def test_readers_who_called_other_slides_are_compared_where_both_called():
    ai = {"a": True, "b": False, "c": True}
    readers = {"A": {"a": True, "b": True}, "B": {"a": True, "c": False, "d": True}}
    truth = {"a": True, "b": False, "c": True}
    result = compare_readers(ai, readers, truth, {"a": "1", "b": "2", "c": "3"})
    first, second = result.readers
    assert (first.slides, first.left_out) == (2, ("c",))
    assert (second.slides, second.left_out) == (2, ("b", "d"))
    assert (first.only_ai_right, first.only_reader_right) == (1, 0)
    assert (first.both_positive, first.only_ai_positive, first.only_reader_positive, first.both_negative) == (
        1,
        0,
        1,
        0,
    )
    assert (str(first.sensitivity.count), first.specificity.count) == ("1", 0)
    assert result.fleiss_slides == 1
    assert result.notes[0].startswith(
        "the readers did not call the same slides: 1 were called by all 2, 3 by"
    )


def test_readers_with_no_slide_in_common_with_the_ai_have_no_figures():
    result = compare_readers({"a": True}, {"A": {"b": True}}, {}, {})
    (one,) = result.readers
    assert (one.slides, one.kappa, one.mcnemar_p, one.sensitivity) == (0, None, None, None)
    assert result.fleiss_with_ai is None
