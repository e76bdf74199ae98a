"""A study that was run once, for all tests of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import call, write_study


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was run from end to end. Tests leave it as it is, and work on copies."""
    folder = tmp_path_factory.mktemp("done")
    assert call("run", write_study(folder)) == 0
    return folder
