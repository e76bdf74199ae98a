"""How the cost of scoring grows: with slides, with workers, and with the area of tissue.

    python benchmarks/growth.py SLIDE DENSE [--slides 1 4 16 64] [--workers 0 1 2 4] [--area-mm2 10 100 400]
        [--side-mm 1] [--runtime torch|onnxruntime]

SLIDE gives the pixels, DENSE is the folder of a trained dense primary (`generations/001/primary`).

Slides and workers: a QuPath project of drawn slides of `--side-mm` (one file under many names) and a study of
it with that primary. What is timed is the whole command, `hnscc-qp score STUDY`, start and end of the
process included: on its own (0 workers), and with `--scheduler` on a Dask scheduler with so many workers on
this machine, which share its cores evenly and have been started before.

Area: a slide of 0.5 µm/px with a square of tissue of that area, scored by a process of its own; the most
memory that it held is said too. `--slides` or `--area-mm2` with nothing after it leaves that part out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patches import make_slide

from hnscc_qp.cli import render
from hnscc_qp.files import write_json
from hnscc_qp.steps.context import available_cpus

_COMMAND = [sys.executable, "-c", "from hnscc_qp.cli.main import main; main()"]


def main() -> None:
    """Ask for what to do, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("dense", type=Path)
    parser.add_argument("--slides", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2, 4])
    parser.add_argument("--area-mm2", type=float, nargs="*", default=[10, 100, 400])
    parser.add_argument("--side-mm", type=float, default=1, help="of each of the many slides")
    parser.add_argument("--runtime", default="auto")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.slides:
            by_slides(Path(folder), asked)
        if asked.area_mm2:
            by_area(asked)


def by_slides(folder: Path, asked: argparse.Namespace) -> None:
    """Time the command for every count of slides and workers, and print the table."""
    drawn = folder / "drawn.tif"
    make_slide(drawn, asked.slide, side_mm=asked.side_mm, shift=0)
    rows: list[tuple[object, ...]] = []
    for count in asked.slides:
        study = make_study(folder / f"study-{count}", drawn, asked.dense, count)
        for workers in asked.workers:
            if not workers:
                seconds, told = score(study, "--runtime", asked.runtime)
            else:
                with cluster(folder, workers) as address:
                    seconds, told = score(study, "--runtime", asked.runtime, "--scheduler", address)
            windows = told["counts"]["windows"]
            assert told["counts"]["images"] == count and not told["failed"]
            rows.append(
                (
                    count,
                    workers or "-",
                    windows,
                    f"{seconds:.1f}",
                    f"{seconds / count:.2f}",
                    f"{windows / seconds:.0f}",
                )
            )
            render.print_line(f"{count} slides, {workers} workers: {seconds:.1f} s")
    runtime = told["counts"]["runtime"]
    render.print_table(
        f"hnscc-qp score, slides of {asked.side_mm:g} mm, {available_cpus()} cores, {runtime}",
        ["slides", "workers", "windows", "seconds", "seconds a slide", "windows/s"],
        rows,
    )


def make_study(folder: Path, drawn: Path, dense: Path, count: int) -> Path:
    """A project of so many slides, and a study of it with a primary and no secondary."""
    slides = [folder / "slides" / f"N{number:03d}.tif" for number in range(count)]
    slides[0].parent.mkdir(parents=True)
    for slide in slides:
        os.link(drawn, slide)
    subprocess.run(
        [*_COMMAND, "new", folder / "study", *slides, "--json"], check=True, stdout=subprocess.DEVNULL
    )
    study = folder / "study" / "study.toml"
    generation = study.parent / "generations" / "001"
    shutil.copytree(dense, generation / "primary")
    (generation.parent / "current").write_text("001\n", encoding="utf-8")
    record = {"step": "secondary", "key": "", "failed": {}, "outputs": {}, "notes": [], "settings": {}}
    write_json(generation / "secondary" / "manifest.json", record | {"counts": {"trained": False}})
    return study


def score(study: Path, *more: str) -> tuple[float, dict[str, dict[str, int]]]:
    """Seconds of the whole command, from nothing, and its manifest."""
    shutil.rmtree(study.parent / "generations" / "001" / "score", ignore_errors=True)
    began = time.perf_counter()
    done = subprocess.run(
        [*_COMMAND, "score", study, "--json", *more], stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - began, json.loads(done.stdout)


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """A scheduler and workers, which have begun; its address."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    threads = str(max(1, available_cpus() // workers))
    processes: list[subprocess.Popen[bytes]] = []

    def start(what: str, *arguments: object) -> None:
        command = [
            sys.executable,
            "-m",
            f"distributed.cli.dask_{what}",
            "--host",
            "127.0.0.1",
            *map(str, arguments),
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        processes.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": threads}, **quiet))

    try:
        start("scheduler", "--port", 0, "--scheduler-file", file, "--no-dashboard")
        while not (file.is_file() and file.stat().st_size):
            time.sleep(0.1)
        address = json.loads(file.read_text(encoding="utf-8"))["address"]
        for _ in range(workers):
            start("worker", address, "--nthreads", 1, "--no-nanny", "--no-dashboard")
        wait_for_workers(address, workers)
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_workers(address: str, count: int) -> None:
    """In a process of its own, which leaves no client's threads behind here."""
    code = (
        "import distributed as d, sys; d.Client(sys.argv[1]).wait_for_workers(int(sys.argv[2]), timeout=120)"
    )
    subprocess.run([sys.executable, "-c", code, address, str(count)], check=True)


def by_area(asked: argparse.Namespace) -> None:
    """Score one slide of each area, and print the table."""
    rows = []
    script = Path(__file__).with_name("large_slide.py")
    for area in asked.area_mm2:
        side_mm = area**0.5
        side_px = int((side_mm + 2) * 2000)
        options = {"--side-px": side_px, "--dense-mm": side_mm, "--sparse": 0, "--runtime": asked.runtime}
        command = [sys.executable, script, asked.slide, "--primary", asked.dense, "--json"]
        command += [str(value) for option in options.items() for value in option]
        told = json.loads(subprocess.check_output(list(map(str, command)), text=True).splitlines()[-1])
        rows.append(
            (
                f"{area:g}",
                told["windows"],
                f"{told['seconds']:.1f}",
                f"{told['windows'] / told['seconds']:.0f}",
                f"{told['before_mib']:.0f}",
                f"{told['peak_mib']:.0f}",
            )
        )
        render.print_line(f"{area:g} mm²: {told['seconds']:.1f} s, {told['peak_mib']:.0f} MiB")
    render.print_table(
        f"one slide, {available_cpus()} cores, {told['runtime']}",
        ["mm² of tissue", "windows", "seconds", "windows/s", "MiB before", "MiB at most"],
        rows,
    )


if __name__ == "__main__":
    main()
