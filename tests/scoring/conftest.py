"""Slides that are arrays, networks that are small."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Grid, Mpp, PixelSize, Region
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.scoring.score_map import ScoreMap

MapMaker = Callable[..., ScoreMap]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


class ArraySlide:
    """A slide of 1.0 µm/px that is an array; regions that meet `damaged` can't be read."""

    pixel_size = PixelSize(Mpp(1.0), Mpp(1.0))

    def __init__(self, pixels: NDArray[np.uint8], *, damaged: Region | None = None) -> None:
        self.name = "drawn.svs"
        self.pixels = pixels
        self.size = (pixels.shape[1], pixels.shape[0])
        self.damaged = damaged
        self.reads: list[Region] = []

    def read(self, region: Region, mpp: Mpp) -> NDArray[np.uint8]:
        assert mpp == 1.0
        self.reads.append(region)
        bad = self.damaged
        if (
            bad
            and region.x < bad.x + bad.width
            and bad.x < region.x + region.width
            and region.y < bad.y + bad.height
            and bad.y < region.y + region.height
        ):
            raise SlideReadError(f"{self.name} can't be read there")
        x, y, width, height = (round(v) for v in (region.x, region.y, region.width, region.height))
        out = np.full((height, width, 3), 255, np.uint8)
        part = self.pixels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        top, left = max(-y, 0), max(-x, 0)
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
        return out


class DarkClassifier(torch.nn.Module):
    """Says tumor if a window's mean is below 128; keeps the shapes of its batches."""

    temperature = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        assert windows.dtype == torch.uint8
        self.shapes.append(tuple(windows.shape))
        margin = 128 - windows.float().mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


class DarkCascade(Cascade):
    """The dark classifier alone, not copied."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.primary = DarkClassifier()
        self.secondary = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return self.primary.shapes


@pytest.fixture
def noise_slide() -> ArraySlide:
    """Blotches, 197 × 163 px: neither side is a multiple of a block."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (9, 10, 3))
    pixels = np.kron(coarse, np.ones((20, 20, 1))) + rng.integers(-40, 40, (180, 200, 3))
    return ArraySlide(pixels.clip(0, 255).astype(np.uint8)[:163, :197])


@pytest.fixture
def make_score_map() -> MapMaker:
    """A score map of given votes, on pixels of any size; the image may end within the last blocks."""

    def make(
        votes: NDArray[np.uint8], *, pixel_size: tuple[float, float] = (1.0, 1.0), cut: float = 0.0
    ) -> ScoreMap:
        rows, columns = votes.shape
        size = PixelSize(Mpp(pixel_size[0]), Mpp(pixel_size[1]))
        grid = Grid(rows, columns, 10, 40, Mpp(1.0), size)
        width, height = grid.block_qupath
        image = math.ceil((columns - cut) * width), math.ceil((rows - cut) * height)
        return ScoreMap(votes, np.full_like(votes, 16), grid, image, windows=5, unreadable=2)

    return make


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.tasks: list[tuple[str, float, float]] = []

    def task(self, description: str, total: float = 0, *, unit: str = "") -> Recorder:
        self._task = [description, total, 0.0]
        return self

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        self._task[2] += amount

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.tasks.append(tuple(self._task))

    def say(self, line: str) -> None:
        raise AssertionError(f"unexpected: {line}")

    def warn(self, line: str) -> None:
        self.warnings.append(line)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def dark_cascade() -> DarkCascade:
    return DarkCascade()


@pytest.fixture
def array_slide() -> type[ArraySlide]:
    return ArraySlide


# --- for dense scoring; what makes them imports from here ---------------------------------------


@pytest.fixture(scope="module")
def slide() -> ArraySlide:
    from scoring.smallstages import drawn_slide

    return drawn_slide()


@pytest.fixture(scope="module")
def cascade(slide):
    from scoring.smallstages import two_stages

    return two_stages(slide)


@pytest.fixture(scope="module")
def expected(slide, cascade) -> NDArray[np.bool_]:
    from scoring.smallstages import in_one_pass

    return in_one_pass(slide, cascade)
