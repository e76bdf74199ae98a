"""Fixtures for every room: where the shared real data lies, if it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# As the command line does: OpenMP's threads must not spin while they wait, several times slower where other
# work runs. It is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # One process for each core: more threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and QuPath's oracle; beside the checkout, or where HNSCC_QP_SHARED points."""
    folder = Path(os.environ.get("HNSCC_QP_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "qupath" / "formats.md").is_file():
        pytest.skip(f"the shared real data is not at {folder} (set HNSCC_QP_SHARED)")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: small networks lose by more."""
    from runtimes import threads  # it imports torch: after the lines above

    with threads(1):
        yield
