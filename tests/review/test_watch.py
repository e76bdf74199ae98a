"""`watch`: pulls when a save is over, retrains as the rule says, and may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from reviewing import deleted, found, judge, pushed_study, rejected, run

from hnscc_qp.cli.running import make_context
from hnscc_qp.errors import StepError
from hnscc_qp.steps import watch
from hnscc_qp.steps.promote import JUDGED
from hnscc_qp.steps.pull import review_log

ONE, TWO, THREE = found(20, 20), found(100, 20), found(200, 20)
AT_ONCE = ("--once", "--quiet-seconds", 0, "--interval", 0.1)


def entries(study: Path) -> list:
    return list(review_log(make_context(study, as_json=True)).read())


def test_once_pulls_and_ends(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO]})
    judge(study, 2, ONE, rejected)
    said = run("watch", study, *AT_ONCE)
    assert "1 new entries; 1 rejected, 1 untouched" in said
    assert "0 new entries" in run("watch", study, *AT_ONCE)
    assert len(entries(study)) == 1


def test_once_says_what_keeps_it_from_pulling(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    log = review_log(make_context(study, as_json=True))
    log.append("verdict", [{}])
    log.path.write_text(log.path.read_text().replace("verdict", "virdect"))
    assert run("watch", study, *AT_ONCE, code=1) == ""


def test_it_waits_while_qupath_saves_and_until_it_is_quiet(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    project = study.parent / "project" / "project.qpproj"
    present = watch.saved_files(project)
    assert "project.qpproj" in present and any(name.startswith("annotations") for name in present)
    just_now = time.monotonic()
    assert not watch.is_quiet(project, present, just_now, 3600)
    assert watch.is_quiet(project, present, just_now - 3601, 3600)
    assert watch.is_quiet(project, present, just_now, 0)
    for trace in (project.parent / "data" / "2" / "data.qpdata.bkp", project.with_suffix(".qpproj.tmp")):
        trace.touch()
        assert not watch.is_quiet(project, present, just_now - 3601, 3600)
        trace.unlink()
    # A file from the future, or a watch begun long after the save: either clock will do.
    old = time.time() - 7200
    for file in project.parent.rglob("*"):
        os.utime(file, (old, old))
    assert watch.is_quiet(project, watch.saved_files(project), just_now, 3600)


@pytest.mark.parametrize(("rule", "times"), [("", 0), ("\n[review]\nretrain_after = 2\n", 1)])
def test_it_retrains_only_when_the_study_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, times: int
) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO, THREE]}, more=rule)
    asked = []

    def retrain(context, wish) -> dict:
        asked.append(wish)
        review_log(context).append(JUDGED, [{"to": "002"}])
        return {"written": "now"}

    monkeypatch.setattr(watch, "retrain_study", retrain)
    judge(study, 2, ONE, rejected)
    run("watch", study, *AT_ONCE)
    assert not asked
    judge(study, 2, TWO, rejected)
    said = run("watch", study, *AT_ONCE)
    assert (len(asked), "retrained" in said) == (times, bool(times))
    judge(study, 2, THREE, deleted)
    run("watch", study, *AT_ONCE)
    assert len(asked) == times, "what was judged on counts no more"


def test_a_retraining_that_fails_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = pushed_study(tmp_path, {2: [ONE]}, more="\n[review]\nretrain_after = 1\n")

    def fail(*_: object) -> dict:
        raise StepError("the generation in use is not finished")

    monkeypatch.setattr(watch, "retrain_study", fail)
    judge(study, 2, ONE, rejected)
    assert "1 new entries" in run("watch", study, *AT_ONCE)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_it_ends_cleanly_when_asked_to(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    handler = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    said = run("watch", study, "--quiet-seconds", 0, "--interval", 0.1)
    timer.join()
    assert said.splitlines()[-1] == "stopped watching; all that was pulled is in the log"
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_it_notices_a_save_and_killed_it_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO]})
    command = [sys.executable, "-m", "hnscc_qp", "watch", str(study)]
    with subprocess.Popen(
        [*command, "--interval", "0.2", "--quiet-seconds", "0.5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        try:
            assert "0 new entries" in process.stdout.readline()
            judge(study, 2, ONE, rejected)
            assert "1 new entries; 1 rejected" in process.stdout.readline()
        finally:
            process.kill()
    judge(study, 2, TWO, rejected)
    assert "1 new entries; 2 rejected" in run("watch", study, *AT_ONCE)
    assert [entry.n for entry in entries(study)] == [1, 2]
