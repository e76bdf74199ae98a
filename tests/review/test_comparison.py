from __future__ import annotations

import json

import pytest
from drawncomparison import drawn_comparison

from hnscc_qp.errors import StepError
from hnscc_qp.review.comparison import Comparison, read_comparison, write_comparison


def test_a_comparison_reads_back_as_it_was_written(tmp_path):
    comparison = drawn_comparison()
    write_comparison(tmp_path / "comparison.json", comparison)
    assert read_comparison(tmp_path / "comparison.json") == comparison
    assert Comparison.from_json(json.loads(json.dumps(comparison.to_json()))) == comparison


def test_a_damaged_comparison_says_what_to_do(tmp_path):
    path = tmp_path / "comparison.json"
    with pytest.raises(StepError, match="no comparison"):
        read_comparison(path)
    path.write_text('{"study": "x"}')
    with pytest.raises(StepError, match="damaged; run hnscc-qp compare"):
        read_comparison(path)
