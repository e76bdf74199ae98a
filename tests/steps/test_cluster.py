"""Scoring on a real Dask scheduler and workers, each a process of its own on the loopback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from steps.scoring_studies import FOLDER, command, environment, give_models, maps
from studies import write_study

from hnscc_qp.cluster import on_cluster
from hnscc_qp.errors import ClusterError
from hnscc_qp.progress import SILENT

pytest.importorskip("distributed", reason="needs hnscc-qp[cluster]")


class Cluster:
    """A scheduler and its workers."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start("scheduler", "--port", 0, "--scheduler-file", self.file, "--no-dashboard")
        wait_for(lambda: self.file.is_file() and self.file.stat().st_size > 0)
        self.address = json.loads(self.file.read_text())["address"]

    def start(self, what: str, *arguments: object) -> subprocess.Popen[bytes]:
        module = f"distributed.cli.dask_{what}"
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--host", "127.0.0.1", *map(str, arguments)],
            env=environment(),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        return self.start("worker", self.address, "--nthreads", 1, "--no-nanny", "--no-dashboard")


def wait_for(happened: Callable[[], bool], *, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return give_models(write_study(tmp_path / "study"))


def ask(study: Path, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("score", study, "--scheduler", address, "--json"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_slide_is_scored_once_though_a_worker_is_killed_and_another_comes_late(
    study: Path, cluster: Cluster
) -> None:
    workers = [cluster.worker() for _ in range(3)]
    asked = ask(study, cluster.address)
    wait_for(lambda: bool(maps(study)) or asked.poll() is not None)
    workers[0].send_signal(signal.SIGKILL)
    cluster.worker()
    out, err = asked.communicate(timeout=250)
    assert asked.returncode == 0, err
    manifest = json.loads(out)
    assert manifest["counts"]["images"] == len(manifest["outputs"]) == 6
    far = maps(study)

    shutil.rmtree(study.parent / FOLDER / "score")
    near = subprocess.run(
        command("score", study, "--json"), env=environment(), capture_output=True, text=True, check=True
    )
    assert maps(study) == far
    assert json.loads(near.stdout)["outputs"] == manifest["outputs"]
    assert list(json.loads(near.stdout)["outputs"]) == list(manifest["outputs"])


def test_a_slide_that_fails_on_a_worker_is_named_and_the_others_are_done(
    study: Path, cluster: Cluster
) -> None:
    cluster.worker()
    (study.parent / "slides" / "S3.tif").unlink()
    asked = ask(study, cluster.address)
    out, err = asked.communicate(timeout=250)
    assert asked.returncode == 2
    assert "S3.tif" in err
    assert list(json.loads(out)["failed"]) == ["S3.tif"]
    assert len(maps(study)) == 5


def test_a_scheduler_that_goes_away_is_one_line_and_what_is_done_stays(study: Path, cluster: Cluster) -> None:
    cluster.worker()
    asked = ask(study, cluster.address)
    wait_for(lambda: bool(maps(study)) or asked.poll() is not None)
    cluster.scheduler.send_signal(signal.SIGKILL)
    _, err = asked.communicate(timeout=250)
    assert asked.returncode == 1
    assert f"the Dask scheduler at {cluster.address} went away after" in err
    assert "Traceback" not in err
    assert maps(study)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://127.0.0.1", "nonsense://"])
def test_an_address_where_nobody_answers_is_one_line(address: str) -> None:
    with pytest.raises(
        ClusterError, match=f"no Dask scheduler answers at {address} .*check the address"
    ) as told:
        list(on_cluster(address, str, [1], one_per="GPU", progress=SILENT))
    assert "\n" not in str(told.value)
