"""How fast slides are scored, each way beside the naive one, in one run.

    python benchmarks/scoring.py SLIDE DENSE [--weights FILE] [--window FILE] [--naive 256] [--repeats 2]
        [--side-mm 3] [--tiatoolbox PYTHON] [--ways tiatoolbox exact dense network]

DENSE is the folder of a trained dense primary (`generations/001/primary`). Naive is the paper's way: one
`read` a window, enlarged to 224 px, in batches of 64, by the network as torchvision gives it, of windows
drawn at random from the same slide; then the same with batch norms folded and channels last. Exact is a
window model at 64 px, once; its weights do not bear on its speed, and which windows it calls is said if they
were trained: `--window` is a state that `recipes.py` kept. Dense is the given model. With `--side-mm` the
slide is one of that size made of SLIDE's pixels, mirrored again and again. All of these read the slide,
find its tissue and make the score map; the best of all repeats counts. `--tiatoolbox` is the Python of an
environment with tiatoolbox, whose PatchPredictor does the naive work on a part of the slide. ONNX Runtime
takes part where it is installed.

Also said: how many windows a way calls otherwise than PyTorch in 32 bits, where the time goes, and the speed
of the network alone on tissue without gaps, beside the machine's matrix product.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import openslide
import safetensors.torch
import torch
from patches import make_slide

from hnscc_qp.cli import render
from hnscc_qp.geometry import WINDOW_MPP, Grid
from hnscc_qp.models import onnx_runtime
from hnscc_qp.models.cascade import AnyCascade, Cascade, make_cascade
from hnscc_qp.models.checkpoint import load_model
from hnscc_qp.models.dense import DenseCascade, DenseClassifier
from hnscc_qp.models.device import choose_device
from hnscc_qp.models.memory import held_memory
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.models.parts import WINDOW_CELLS, Runtime, TorchRuntime
from hnscc_qp.scoring import pipeline
from hnscc_qp.scoring import slide as scoring_slide
from hnscc_qp.scoring.score_map import write_score_map
from hnscc_qp.scoring.slide import SlideScores, score_slide
from hnscc_qp.scoring.tiles import select_windows
from hnscc_qp.slides.reader import Slide, open_slide
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.study import Scoring

Call = Callable[[torch.Tensor], torch.Tensor]
TIATOOLBOX_BLOCKS = 20
WAYS = ("tiatoolbox", "exact", "dense", "network")


def naive(slide: Slide, call: Call, count: int) -> int:
    """Score `count` windows one read at a time; how many there were."""
    grid = Grid.of_method(slide.size, slide.pixel_size)
    rows, columns = np.nonzero(select_windows(grid, find_tissue(slide, grid), min_tissue=0.0625))
    chosen = np.random.default_rng(1).choice(len(rows), min(count, len(rows)), replace=False)
    for start in range(0, len(chosen), 64):
        some = chosen[start : start + 64]
        windows = np.stack(
            [
                slide.read(grid.region(int(rows[i]), int(columns[i]), rows=4, columns=4), WINDOW_MPP)
                for i in some
            ]
        )
        call(torch.from_numpy(windows).permute(0, 3, 1, 2)).cpu()
    return len(chosen)


def as_usual(classifier: WindowClassifier, device: torch.device) -> Call:
    """The network as torchvision gives it: batch norms on their own, channels first."""
    classifier = classifier.eval().to(device)

    @torch.inference_mode()
    def call(windows: torch.Tensor) -> torch.Tensor:
        return classifier.network(classifier.prepare(windows.to(device)).contiguous()).argmax(1)

    return call


def best_of(repeats: int, work: Callable[[], object]) -> tuple[float, float, object]:
    """Fewest seconds and processor seconds of all repeats, and what the last one gave."""
    walls, cpus, given = [], [], None
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        given = work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus), given


def main() -> None:
    """Ask for what to do, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("dense", type=Path)
    parser.add_argument("--weights", default="none", help="ImageNet weights of the window models")
    parser.add_argument("--window", type=Path, help="trained weights of the window model at 64 px")
    parser.add_argument("--naive", type=int, default=256, help="windows of the naive way")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side-mm", type=float)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiatoolbox", type=Path, help="Python of an environment with tiatoolbox")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="besides naive; default: all")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = asked.slide
        if asked.side_mm:
            path = Path(folder, "slide.tif")
            make_slide(path, asked.slide, side_mm=asked.side_mm, shift=0)
        compare(path, asked, choose_device(asked.device))


def compare(path: Path, asked: argparse.Namespace, device: torch.device) -> None:  # noqa: PLR0915
    """Time every way on a slide, and print the tables."""
    slide = open_slide(path)
    dense, _ = load_model(asked.dense, recipe="dense")
    rows: list[tuple[object, ...]] = []
    base: list[tuple[float, float]] = []

    def add(way: str, count: int, wall: float, cpu: float) -> None:
        base.append((count / wall, count / cpu))
        row: list[object] = [way, count]
        for found, naive, folded in zip(base[-1], base[0], base[min(1, len(base) - 1)], strict=True):
            row += [f"{found:.0f}", f"{found / naive:.1f}", f"{found / folded:.1f}"]
        rows.append(tuple(row))
        # A table comes at the end only, and a run may be stopped before.
        render.print_line(f"{way}: {row[2]} windows/s, {row[5]} windows/CPU s")

    def windows_at(input_px: int) -> WindowClassifier:
        return WindowClassifier("mobilenet_v2", input_px=input_px, weights=asked.weights)

    folded = Cascade(windows_at(224), None).to(device)
    for way, call in (
        ("naive, 224 px", as_usual(windows_at(224), device)),
        ("naive, folded, channels last", lambda windows: folded.call_tumor(windows.to(device))),
    ):
        # The plain way is as it is usually run; all others keep freed memory, as scoring does.
        with nullcontext() if not base else held_memory(device):
            wall, cpu, count = best_of(asked.repeats, lambda call=call: naive(slide, call, asked.naive))
        assert isinstance(count, int)
        add(way, count, wall, cpu)
    if asked.tiatoolbox and "tiatoolbox" in asked.ways:
        script = Path(__file__).with_name("tiatoolbox_scoring.py")
        command = [asked.tiatoolbox, script, path, TIATOOLBOX_BLOCKS, torch.get_num_threads()]
        told = json.loads(subprocess.check_output(list(map(str, command)), text=True).splitlines()[-1])
        way = f"tiatoolbox {told['version']} PatchPredictor, 224 px"
        add(way, told["windows"], told["seconds"], told["cpu"])
        render.print_line(f"{way}: {told['start']:.1f} s to start are left out")
    else:
        render.print_line("tiatoolbox is left out: name the Python that has it with --tiatoolbox")

    window_model = windows_at(64)
    if asked.window:
        window_model.load_state_dict(safetensors.torch.load_file(asked.window))
    exact, whole = Cascade(window_model, None), make_cascade(dense, None)
    assert isinstance(whole, DenseCascade)
    has_onnx = onnx_runtime.is_installed() and device.type == "cpu"
    ways: list[tuple[str, AnyCascade, str, str]] = []
    if "exact" in asked.ways:
        ways += [(f"exact, {precision}", exact, precision, "torch") for precision in ("float32", "bfloat16")]
    dense_ways = [
        (f"dense, {precision}, torch", whole, precision, "torch") for precision in ("float32", "bfloat16")
    ]
    if has_onnx:
        dense_ways.append(("dense, float32, ONNX Runtime", whole, "float32", "onnxruntime"))
    ways += dense_ways if "dense" in asked.ways else []
    calls: dict[str, np.ndarray] = {}
    spent: list[tuple[object, ...]] = []
    for way, cascade, precision, runtime in ways:
        settings = Scoring.model_validate({"precision": precision, "runtime": runtime, "probabilities": True})
        watch = Watch()

        def score(
            cascade: AnyCascade = cascade, settings: Scoring = settings, watch: Watch = watch
        ) -> SlideScores:
            with watch:
                found = score_slide(slide, cascade=cascade, settings=settings, device=device)
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                write_score_map(Path(folder, "map.ome.tiff"), found.score_map)
            watch.seconds["write"] = time.perf_counter() - began
            return found

        wall, cpu, found = best_of(1 if cascade is exact else asked.repeats, score)
        assert isinstance(found, SlideScores) and found.probabilities is not None
        add(way, found.score_map.windows, wall, cpu)
        spent.append((way, *(f"{watch.seconds[part]:.2f}" for part in Watch.PARTS)))
        calls[way] = found.probabilities[0][~np.isnan(found.probabilities[0])] > 0.5
    threads = f"{torch.get_num_threads()} threads"
    render.print_table(
        f"{asked.slide.name} on {device}, {threads}; times naive by the clock and by processor time",
        ["way", "windows", "windows/s", "naive", "folded", "windows/CPU s", "naive", "folded"],
        rows,
    )
    render.print_table(
        "seconds of the last repeat; reading, and in it OpenSlide's decoding, by threads beside the network; "
        "in the network, enlarging (PyTorch), of all threads",
        ["way", *Watch.PARTS],
        spent,
    )
    for way, found in calls.items():
        if way.startswith("exact") and not asked.window:
            continue
        reference = calls["exact, float32" if way.startswith("exact") else "dense, float32, torch"]
        flips = found != reference
        render.print_line(
            f"{way}: {flips.sum()} of {flips.size} windows called otherwise ({flips.mean():.3%})"
        )
    if "network" in asked.ways:
        network_alone(dense, whole, device, has_onnx=has_onnx)


class Watch:
    """Where the time of `score_slide` goes."""

    PARTS = ("tissue", "read", "decode", "network", "enlarge", "write")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(self.PARTS, 0.0)
        self._kept: list[tuple[object, str, Callable[..., object]]] = []

    def __enter__(self) -> Watch:
        self.seconds = dict.fromkeys(self.PARTS, 0.0)
        for owner, name, part in (
            (scoring_slide, "find_tissue", "tissue"),
            (pipeline, "read_around_holes", "read"),
            (openslide.OpenSlide, "read_region", "decode"),
            (pipeline, "_score", "network"),
            (TorchRuntime, "_prepare", "enlarge"),
        ):
            self._kept.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._timed(getattr(owner, name), part))
        return self

    def __exit__(self, *_: object) -> None:
        while self._kept:
            setattr(*self._kept.pop())

    def _timed(self, work: Callable[..., object], part: str) -> Callable[..., object]:
        def timed(*arguments: object, **named: object) -> object:
            began = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return timed


def network_alone(
    dense: DenseClassifier, whole: DenseCascade, device: torch.device, *, has_onnx: bool
) -> None:
    """Windows per second where all is tissue, and what the machine's matrix product would allow."""
    rows = []
    per_window = products_per_window(whole)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        low = dtype == torch.bfloat16
        square = torch.ones(2048, 2048, dtype=dtype, device=device)
        wall, _, _ = best_of(4, lambda square=square: float((square @ square)[0, 0]))
        peak = 2048**3 / wall
        stages: dict[str, Runtime] = {
            "torch, batch norms apart": TorchRuntime(dense.eval().in_parts(), device=device, bfloat16=low)
        }
        (stages["torch"],) = whole.stages(runtime="torch", device=device, bfloat16=low)
        if has_onnx and not low:
            (stages["ONNX Runtime"],) = whole.stages(runtime="onnxruntime", device=device, bfloat16=low)
        for runtime, stage in stages.items():
            with held_memory(device):
                rate = stage.piece_cells**2 / seconds_per_piece(stage)
            share = rate * per_window / peak
            rows.append((f"{runtime}, {precision}", f"{rate:.0f}", f"{peak / 1e9:.0f}", f"{share:.0%}"))
    render.print_table(
        f"the network alone, all windows wanted: {per_window / 1e6:.2f} million products a window",
        ["way", "windows/s", "matrix product, 10⁹/s", "share of it"],
        rows,
    )


def seconds_per_piece(stage: Runtime) -> float:
    """Of all parts, for one piece; several at a time, as in scoring."""
    parts, side, seconds = stage.network.parts, stage.piece_cells, 0.0
    made = None
    for number, part in enumerate(parts):
        if number == 0:
            inputs = [torch.randint(0, 255, ((side + 2 * part.margin) * 10,) * 2 + (3,), dtype=torch.uint8)]
        else:
            assert made is not None
            more = 2 * part.margin + (WINDOW_CELLS - 1 if number == len(parts) - 1 else 0)
            extent = (side + more) * parts[number - 1].side
            whole = made.repeat(1, 1, 2, 2)[..., :extent, :extent]
            layout = torch.channels_last if made.is_contiguous(memory_format=torch.channels_last) else None
            inputs = [whole.contiguous(memory_format=layout or torch.contiguous_format)]
        made = stage.run(number, inputs * 2)[0]
        seconds += best_of(3, lambda number=number, inputs=inputs: stage.run(number, inputs * 4))[0] / 4
    return seconds


def products_per_window(cascade: DenseCascade) -> float:
    """Multiplications of the convolutions for one cell, without any margin."""
    found = 0.0
    cells = 16

    def count(module: torch.nn.Conv2d, _: object, made: torch.Tensor) -> None:
        nonlocal found
        found += made.numel() * module.weight[0].numel() / cells**2

    network = cascade.primary
    hooks = [
        one.register_forward_hook(count) for one in network.modules() if isinstance(one, torch.nn.Conv2d)
    ]
    with torch.inference_mode():
        network.cell_logits(torch.zeros(1, 3, cells * 10, cells * 10, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return found


if __name__ == "__main__":
    main()
