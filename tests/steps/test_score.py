"""Scoring through the command line: what is killed goes on, what is damaged is told."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from steps.scoring_studies import FOLDER, command, environment, give_models, maps
from studies import STUDY, new_image, write_slide, write_study

from hnscc_qp.cli.main import main
from hnscc_qp.errors import ClusterError
from hnscc_qp.models import onnx_runtime
from hnscc_qp.progress import SILENT
from hnscc_qp.qupath.create import create_project
from hnscc_qp.scoring.probabilities import read_probabilities
from hnscc_qp.scoring.score_map import read_score_map
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.scorejob import ScoreJob, run_job_remotely
from hnscc_qp.studyfile import load_study

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return give_models(write_study(tmp_path))


def test_a_killed_run_goes_on_with_the_next_tile_and_ends_with_the_same_bytes(tmp_path: Path, call) -> None:
    slide = tmp_path / "slides" / "wide.tif"
    slide.parent.mkdir()
    pixels = (
        np.random.default_rng(1).normal((225, 160, 195), 25, (120, 5000, 3)).clip(0, 255).astype(np.uint8)
    )
    tifffile.imwrite(
        slide,
        pixels,
        photometric="rgb",
        tile=(128, 128),
        metadata=None,
        resolution=(1e4, 1e4),
        resolutionunit=3,
    )
    image = new_image(slide, number=1, tumor=False)
    image = type(image)(
        **{name: getattr(image, name) for name in image.__slots__}
        | {"size": (5000, 120), "levels": [(1.0, 5000, 120)]}
    )
    create_project(tmp_path / "project", [image], path_classes=[])
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    give_models(study)
    journal = tmp_path / FOLDER / "score" / "1 wide.tif.journal"

    running = subprocess.Popen(command("score", study), env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and running.poll() is None:
        if journal.is_file() and journal.stat().st_size > 220:
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert journal.is_file()
    assert not maps(study)
    # As if it had been killed in the middle of a record, too.
    with journal.open("ab") as stream:
        stream.write(b"TILE\x01\x00\x00\x00\xff")
    kept = journal.stat().st_size

    with pytest.MonkeyPatch.context() as patch:
        scored = []
        exact = "hnscc_qp.scoring.exact.ExactScorer.margins"
        from hnscc_qp.scoring.exact import ExactScorer

        margins = ExactScorer.margins
        patch.setattr(exact, lambda *args: scored.append(1) or margins(*args))
        assert call("score", study)[0] == 0
        tiles = 8
        assert 0 < len(scored) < tiles, f"journal of {kept} bytes"
        continued = maps(study)
        assert not journal.exists()
        scored.clear()
        assert call("score", study, "--force")[0] == 0
        assert len(scored) == tiles
    assert maps(study) == continued


def test_a_score_map_that_was_removed_or_damaged_is_made_again(study: Path, call) -> None:
    assert call("score", study)[0] == 0
    first = maps(study)
    gone, damaged = (study.parent / FOLDER / "score" / f"{name}.tif.ome.tiff" for name in ("1 S1", "2 S2"))
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-200])
    # As a process: what libraries log is seen there only.
    done = subprocess.run(
        command("score", study), check=True, env=environment(), capture_output=True, text=True
    )
    assert "Tiff" not in done.stderr
    assert maps(study) == first
    before = gone.stat().st_mtime_ns
    assert call("score", study)[0] == 0
    assert gone.stat().st_mtime_ns == before


def test_a_slide_that_fails_is_named_and_the_others_are_done(study: Path, call) -> None:
    (study.parent / "slides" / "S3.tif").unlink()
    code, told = call("score", study)
    assert code == 2
    assert "S3.tif" in told
    assert len(maps(study)) == 5


def test_a_damaged_tile_is_counted_and_marked_and_the_rest_is_scored(study: Path, call) -> None:
    slide = study.parent / "slides" / "S1.tif"
    with tifffile.TiffFile(slide) as tiff:
        # The third tile of the first row: x 256..383, y 0..127.
        offset, count = tiff.pages[0].dataoffsets[2], tiff.pages[0].databytecounts[2]
    with slide.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)
    code, told = call("score", study, "--image", "S1.tif", "--json")
    assert code == 0
    assert "windows can't be decoded and are not scored" in told
    score_map = read_score_map(study.parent / FOLDER / "score" / "1 S1.tif.ome.tiff")
    # Pieces of 10 px: x 250..389, y 0..129 may be lost, and no window over them is counted.
    assert (score_map.coverage[0:13, 26:38] == 0).all()
    assert score_map.coverage[6, 24] == 4  # of the windows that end there
    assert score_map.coverage[20, 30] == 16
    assert score_map.unreadable > 100
    assert score_map.lost is not None
    assert score_map.lost[6, 30] == 16
    assert (score_map.lost + score_map.coverage)[5:15, 5:35].min() == 16


@pytest.mark.parametrize(
    ("mpp", "code", "told"),
    [(0.05, 1, "smaller than one window"), (0.1, 0, ""), (0.5, 0, ""), (4.0, 1, "coarser than the 1.0")],
)
def test_pixel_sizes_that_are_too_coarse_or_leave_no_window_are_refused(
    tmp_path: Path, call, mpp: float, code: int, told: str
) -> None:
    slide = write_slide(tmp_path / "a.tif", tumor=True, seed=1, mpp=mpp)
    create_project(tmp_path / "project", [new_image(slide, number=1, tumor=True, mpp=mpp)], path_classes=[])
    (tmp_path / "study.toml").write_text(STUDY)
    ended, said = call("score", give_models(tmp_path / "study.toml"))
    assert ended == code
    assert told in said


def test_a_slide_of_glass_is_looked_at_and_said_to_be_empty(tmp_path: Path, call) -> None:
    slide = tmp_path / "glass.tif"
    tifffile.imwrite(slide, np.full((320, 400, 3), 243, np.uint8), photometric="rgb", tile=(128, 128))
    create_project(tmp_path / "project", [new_image(slide, number=1, tumor=False)], path_classes=[])
    (tmp_path / "study.toml").write_text(STUDY)
    code, said = call("score", give_models(tmp_path / "study.toml"))
    assert code == 0
    assert "no tissue was found" in said


def test_a_full_disk_is_one_line_and_the_journal_stays(study: Path) -> None:
    # No file of more than 300 bytes can be written: the journal's head fits, a tile's record does not.
    def small_files_only() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))

    done = subprocess.run(
        command("score", study, "--image", "S1.tif"),
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        preexec_fn=small_files_only,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "can't be written (File too large); make room" in line
    assert "Traceback" not in done.stderr
    assert (study.parent / FOLDER / "score" / "1 S1.tif.journal").is_file()
    assert not maps(study)


def test_dense_models_are_scored_densely_and_window_models_are_not(study: Path, call) -> None:
    code, told = call("score", study, "--mode", "dense")
    assert code == 1
    assert 'the models have the recipe "window"' in told
    give_models(study, dense=True)
    assert call("score", study, "--image", "S1.tif")[0] == 0
    score_map = read_score_map(study.parent / FOLDER / "score" / "1 S1.tif.ome.tiff")
    assert score_map.provenance["mode"] == "dense"
    assert score_map.coverage.max() == 16
    code, told = call("score", study, "--mode", "exact")
    assert code == 1
    assert 'the models have the recipe "dense"' in told


def test_onnx_runtime_where_it_can_not_be_had_is_refused_with_the_reason(
    study: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*options: str) -> str:
        code, told = call("score", study, "--runtime", "onnxruntime", *options)
        assert code == 1
        assert not maps(study)
        return " ".join(told.split())

    assert "works with dense models only" in refused()
    give_models(study, dense=True)
    assert "does not promise exact arithmetic" in refused("--exact-arithmetic")
    text = study.read_text()
    study.write_text(text + '\n[scoring]\nprecision = "bfloat16"\n')
    assert 'does not work in bfloat16; set precision = "float32"' in refused()
    study.write_text(text)
    monkeypatch.setattr(onnx_runtime, "is_installed", lambda: False)
    assert "is not installed; run: pip install 'hnscc-qp[onnxruntime]', or set runtime" in refused()


@pytest.mark.skipif(not onnx_runtime.is_installed(), reason="needs hnscc-qp[onnxruntime]")
def test_a_map_made_by_another_runtime_is_made_again_though_both_were_chosen_by_themselves(
    study: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_models(study, dense=True)
    path = study.parent / FOLDER / "score" / "1 S1.tif.ome.tiff"
    with monkeypatch.context() as patch:
        patch.setattr(onnx_runtime, "is_installed", lambda: False)
        assert call("score", study, "--image", "S1.tif")[0] == 0
    first = read_score_map(path).provenance
    assert call("score", study, "--image", "S1.tif")[0] == 0
    second = read_score_map(path).provenance
    assert (first["runtime"], second["runtime"]) == ("torch", "onnxruntime")
    assert first["key"] != second["key"]
    assert call("score", study, "--image", "S1.tif", "--runtime", "onnxruntime")[0] == 0
    assert read_score_map(path).provenance == second


def test_a_worker_without_what_computes_says_so(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(load_study(study), progress=SILENT)
    job = ScoreJob(
        context.study,
        context.generation.name,
        context.project.images[0],
        (),
        "",
        runtime="onnxruntime",
        force=False,
    )
    monkeypatch.setattr(onnx_runtime, "is_installed", lambda: False)
    with pytest.raises(ClusterError, match=r"a worker has no ONNX Runtime.*--runtime torch"):
        run_job_remotely(job)


def test_a_model_for_another_resolution_is_refused(study: Path, call) -> None:
    card = study.parent / FOLDER / "primary" / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"window_mpp": 0.5}))
    code, told = call("score", study)
    assert code == 1
    assert "'window_mpp' is 0.5, this program knows only 1.0" in " ".join(told.split())


def test_strides_change_the_votes_of_a_place_and_not_their_meaning(study: Path, call) -> None:
    found = {}
    for option, levels in ((("--stride", 20), 4), (("--stride", 10), 16), (("--window-votes", 64), 64)):
        assert call("score", study, "--image", "S1.tif", *option)[0] == 0
        found[levels] = read_score_map(study.parent / FOLDER / "score" / "1 S1.tif.ome.tiff")
        assert found[levels].max_level == found[levels].coverage.max() == levels
    assert found[4].grid.rows * 2 == found[16].grid.rows == found[64].grid.rows / 2
    code, told = call("score", study, "--stride", 20, "--window-votes", 4)
    assert code == 1
    assert "say the same" in told


def test_probabilities_are_written_beside_the_score_map_if_asked_for(study: Path, call) -> None:
    study.write_text(STUDY + "\n[scoring]\nprobabilities = true\n")
    assert call("score", study, "--image", "S1.tif")[0] == 0
    score_map = read_score_map(study.parent / FOLDER / "score" / "1 S1.tif.ome.tiff")
    side = study.parent / FOLDER / "score" / "1 S1.tif.probabilities.ome.tiff"
    (primary,) = read_probabilities(side)
    assert primary.shape == (score_map.grid.window_rows, score_map.grid.window_columns)
    assert (~np.isnan(primary)).sum() == score_map.windows
    with tifffile.TiffFile(side) as tiff:
        assert tiff.is_ome
        assert 'Type="float"' in tiff.ome_metadata
        assert 'PhysicalSizeX="10.0"' in tiff.ome_metadata
    first = side.read_bytes()
    assert call("score", study, "--image", "S1.tif", "--force")[0] == 0
    assert side.read_bytes() == first


def test_manifests_name_the_mode(study: Path, call) -> None:
    assert call("score", study)[0] == 0
    manifest = json.loads((study.parent / FOLDER / "score" / "manifest.json").read_text())
    assert manifest["counts"]["mode"] == "exact"
    assert manifest["settings"]["scoring"]["stride_px"] == 10
    shutil.rmtree(study.parent / FOLDER / "score")
