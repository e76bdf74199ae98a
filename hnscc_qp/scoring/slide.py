"""One slide: tissue → windows → votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hnscc_qp.errors import SlideReadError, StudyError, UnusableSlideError
from hnscc_qp.files import sha256_json
from hnscc_qp.generation import versions
from hnscc_qp.geometry import STEP_PX, WINDOW_MPP, WINDOW_PX, Grid
from hnscc_qp.models import onnx_runtime
from hnscc_qp.models.cascade import AnyCascade, Cascade
from hnscc_qp.models.dense import DenseCascade, RuntimeName
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.scoring.dense import DenseScorer
from hnscc_qp.scoring.exact import ExactScorer
from hnscc_qp.scoring.journal import Journal
from hnscc_qp.scoring.pipeline import TileScorer, score_tiles
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.scoring.tiles import select_windows, spread
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Scoring

Mode = Literal["exact", "dense"]


@dataclass(frozen=True, slots=True, eq=False)
class SlideScores:
    """A slide's score map, and if wanted what each stage said of every window."""

    score_map: ScoreMap
    probabilities: NDArray[np.float16] | None
    """(stages, window_rows, window_columns) P(tumor), NaN where a stage was not asked."""


def choose_mode(cascade: AnyCascade, settings: Scoring) -> Mode:
    """Say how models are to be scored with.

    Raises:
        StudyError: they were trained for another mode than the study asks for.
    """
    dense = isinstance(cascade, DenseCascade)
    if settings.mode == "dense" and not dense:
        raise StudyError(
            'the models have the recipe "window", so mode "dense" would give other answers than they were '
            'trained for; use mode "exact", or train them with recipe = "dense"'
        )
    if settings.mode == "exact" and dense:
        raise StudyError(
            'the models have the recipe "dense" and need what lies around a window, so mode "exact" would '
            'give other answers than they were trained for; use mode "dense", or train them with '
            'recipe = "window"'
        )
    return "dense" if dense else "exact"


def score_slide(
    slide: Slide,
    *,
    cascade: AnyCascade,
    settings: Scoring,
    device: torch.device,
    progress: Progress = SILENT,
    provenance: Mapping[str, str] | None = None,
    journal: Path | None = None,
    runtime: RuntimeName | None = None,
) -> SlideScores:
    """Score every block of a slide: 40 px windows at 1.0 µm/px, every 10 px (Tang et al. 2022, §2.5).

    A window that the cascade calls tumor adds one vote to each of its blocks. Windows that can't be read
    don't vote and don't count as coverage; a warning says how many there are. A slide without tissue gives
    a score map without coverage, and a warning: it was looked at, and there was nothing to score. `windows`
    of the score map is then 0.

    Args:
        slide: to score.
        cascade: both stages.
        settings: of the study.
        device: where the network works.
        progress: told of every tile.
        provenance: what else the score map should say of its making, such as the models' hashes; what is
            kept in a journal counts for the same provenance only.
        journal: a file that keeps finished tiles, to go on with after a kill. The caller deletes it.
        runtime: what computes; None: as `choose_runtime` says.

    Raises:
        MissingMppError: its pixel size is not known.
        UnusableSlideError: it is smaller than a window, or too coarse.
        SlideReadError: nothing of it can be decoded.
        StudyError: the models are for another mode, or the runtime is not to be had.
        StorageError: the journal can't be written.
    """
    mode = choose_mode(cascade, settings)
    if runtime is None:
        runtime = choose_runtime(cascade, settings, device)
    require_mpp(slide, WINDOW_MPP)
    grid = Grid.of_method(slide.size, slide.pixel_size, step_px=settings.stride_px)
    if not (grid.window_rows and grid.window_columns):
        width, height = slide.size
        raise UnusableSlideError(
            f"{slide.name} ({width} × {height} px) is smaller than one window of {WINDOW_PX} µm; "
            "check its pixel size in QuPath, or leave it out"
        )
    of_method = Grid.of_method(slide.size, slide.pixel_size)
    tissue = find_tissue(slide, of_method)
    if not tissue.any():
        progress.warn(f"{slide.name}: no tissue was found, so nothing is scored; review it by eye")
    selected = _select(grid, of_method, tissue, min_tissue=settings.min_tissue)
    wanted = int(selected.sum())
    scorer: TileScorer[Any] = _make_scorer(cascade, grid, settings, device, runtime)
    book = None
    if journal is not None and wanted:
        machine = [str(device), scorer.tiling, versions()]
        key = sha256_json([dict(provenance or {}), settings.model_dump(mode="json"), mode, runtime, *machine])
        book = Journal(journal, key=key)
    try:
        scored = score_tiles(
            slide,
            grid,
            selected,
            scorer=scorer,
            temperatures=_temperatures(cascade),
            settings=settings,
            device=device,
            journal=book,
            progress=progress,
        )
    finally:
        if book is not None:
            book.close()
    lost = int(scored.lost.sum())
    if lost:
        if lost == wanted:
            raise SlideReadError(
                f"{slide.name}: none of its {wanted} windows can be decoded: {scored.reason}"
            )
        progress.warn(
            f"{slide.name}: {lost} of {wanted} windows can't be decoded and are not scored "
            f"({scored.reason}); review that part by eye or scan the slide again"
        )
    score_map = ScoreMap(
        votes=spread(scored.called, grid),
        coverage=spread(scored.evaluated, grid),
        grid=grid,
        image_size_px=slide.size,
        windows=wanted - lost,
        unreadable=lost,
        lost=spread(scored.lost, grid) if lost else None,
        provenance={"slide": slide.name, "mode": mode, "runtime": runtime} | dict(provenance or {}),
    )
    likely = scored.probabilities
    return SlideScores(score_map, None if likely is None else likely.astype(np.float16, copy=False))


def _select(
    grid: Grid, of_method: Grid, tissue: NDArray[np.bool_], *, min_tissue: float
) -> NDArray[np.bool_]:
    """The windows with enough tissue, which is known by blocks of the method's grid, whatever the stride."""
    if grid.step_px <= STEP_PX:
        times = STEP_PX // grid.step_px
        finer = tissue.repeat(times, axis=0).repeat(times, axis=1)[: grid.rows, : grid.columns]
        return select_windows(grid, finer, min_tissue=min_tissue)
    times = grid.step_px // STEP_PX
    whole = replace(of_method, rows=grid.rows * times, columns=grid.columns * times)
    padded = np.zeros((whole.rows, whole.columns), bool)
    padded[: of_method.rows, : of_method.columns] = tissue
    return select_windows(whole, padded, min_tissue=min_tissue, stride_blocks=times)[::times, ::times]


def choose_runtime(cascade: AnyCascade, settings: Scoring, device: torch.device) -> RuntimeName:
    """What computes: ONNX Runtime for dense models in float32 on a CPU where it is installed, else PyTorch.

    Raises:
        StudyError: the study asks for ONNX Runtime, and it can't be had; the message says why.
    """
    why_not = None
    if not isinstance(cascade, DenseCascade):
        why_not = 'works with dense models only; set recipe = "dense" and train them'
    elif settings.exact:
        why_not = "does not promise exact arithmetic; leave --exact-arithmetic (scoring.exact) out"
    elif settings.precision != "float32":
        why_not = f'does not work in {settings.precision}; set precision = "float32"'
    elif device.type != "cpu":
        why_not = f'works on the CPU only here, not on {device}; set device = "cpu"'
    elif not onnx_runtime.is_installed():
        why_not = "is not installed; run: pip install 'hnscc-qp[onnxruntime]'"
    if settings.runtime == "onnxruntime" and why_not:
        raise StudyError(f'ONNX Runtime {why_not}, or set runtime = "torch"')
    return "torch" if why_not or settings.runtime == "torch" else "onnxruntime"


def _make_scorer(
    cascade: AnyCascade, grid: Grid, settings: Scoring, device: torch.device, runtime: RuntimeName
) -> DenseScorer | ExactScorer:
    if isinstance(cascade, Cascade):
        return ExactScorer(cascade, grid, batch_size=settings.batch_size, device=device)
    low = settings.precision == "bfloat16" and not settings.exact
    return DenseScorer(cascade.stages(runtime=runtime, device=device, bfloat16=low), grid)


def _temperatures(cascade: AnyCascade) -> tuple[float, ...]:
    stages = (cascade.primary, cascade.secondary)
    return tuple(float(stage.temperature) for stage in stages if stage is not None)
