"""The review log: a chain that shows every change, and writes that may be killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hnscc_qp.errors import ReviewLogError
from hnscc_qp.review import log as log_module
from hnscc_qp.review.log import ReviewLog


@pytest.fixture
def log(tmp_path: Path) -> ReviewLog:
    made = ReviewLog(tmp_path / "review")
    made.append("verdict", [{"kind": "accepted", "number": number} for number in range(5)])
    made.append("promotion", [{"to": "002", "by": "Jürgen"}])
    return made


def lines_of(log: ReviewLog) -> list[str]:
    return log.path.read_text(encoding="utf-8").splitlines()


def rewrite(log: ReviewLog, change: Callable[[list[str]], list[str]]) -> None:
    log.path.write_text("".join(line + "\n" for line in change(lines_of(log))), encoding="utf-8")


def test_every_line_hashes_the_one_before_as_an_independent_reading_finds(log: ReviewLog) -> None:
    previous = "0" * 64
    for number, line in enumerate(lines_of(log), start=1):
        values = json.loads(line)
        stated = values.pop("hash")
        assert (values["n"], values["previous"]) == (number, previous)
        text = json.dumps(values, sort_keys=True, ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == stated
        previous = stated
    assert json.loads((log.folder / "head.json").read_text()) == {"n": 6, "hash": previous}
    assert [entry.event for entry in log.read()] == ["verdict"] * 5 + ["promotion"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda lines: [*lines[:2], lines[2].replace("accepted", "rejected"), *lines[3:]],
            "line 3 was changed",
        ),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3 says that it is number 4"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1 says that it is number 2"),
        (lambda lines: [*lines[:3], "{", *lines[4:]], "line 4 is no entry"),
        (lambda lines: lines[:4], "after line 4: 2 lines are missing at the end"),
        (lambda lines: [], "after line 0: 6 lines are missing at the end"),
        (lambda lines: [*lines, lines[-1]], "line 7 says that it is number 6"),
    ],
)
def test_a_change_is_found_at_its_line(
    log: ReviewLog, change: Callable[[list[str]], list[str]], said: str
) -> None:
    before = log.path.read_bytes()
    rewrite(log, change)
    assert log.path.read_bytes() != before
    assert log.check().breaks[0].startswith(said)
    with pytest.raises(ReviewLogError, match="is broken"):
        log.append("verdict", [{"kind": "accepted"}])


def test_one_changed_line_is_one_break_and_the_lines_before_it_are_good(log: ReviewLog) -> None:
    rewrite(log, lambda lines: [*lines[:2], lines[2].replace("accepted", "rejected"), *lines[3:]])
    check = log.check()
    assert (len(check.breaks), len(check.entries)) == (1, 2)


def test_a_line_changed_with_its_hash_breaks_the_chain_at_the_next(log: ReviewLog) -> None:
    def forge(lines: list[str]) -> list[str]:
        values = json.loads(lines[2])
        values["body"]["kind"] = "rejected"
        del values["hash"]
        text = json.dumps(values, sort_keys=True, ensure_ascii=False)
        values["hash"] = hashlib.sha256(text.encode()).hexdigest()
        return [*lines[:2], json.dumps(values), *lines[3:]]

    rewrite(log, forge)
    assert log.check().breaks == ("line 4 does not follow line 3: the line before it was another one",)


def test_a_torn_last_line_is_told_set_aside_and_written_anew(log: ReviewLog) -> None:
    whole = log.path.read_bytes()
    with log.path.open("ab") as stream:
        stream.write(b'{"n": 7, "prev')
    check = log.check()
    assert not check.breaks and "line 7 is torn (14 bytes" in check.warnings[0]
    assert len(log.read()) == 6
    log.append("verdict", [{"kind": "missed"}])
    assert log.path.read_bytes().startswith(whole)
    assert [entry.n for entry in log.read()] == list(range(1, 8))
    (aside,) = log.folder.glob("torn-*")
    assert aside.read_bytes() == b'{"n": 7, "prev'


def test_a_clock_that_runs_backwards_is_told_and_breaks_nothing(
    log: ReviewLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "now", lambda: "1999-12-31T23:59:59Z")
    log.append("verdict", [{"kind": "late"}])
    check = log.check()
    assert not check.breaks
    assert check.warnings[0].startswith("line 7 was written at 1999-12-31T23:59:59Z, before the line above")
    assert [entry.body for entry in log.read()][-1] == {"kind": "late"}


def test_a_lost_head_is_told(log: ReviewLog) -> None:
    (log.folder / "head.json").unlink()
    assert not log.check().breaks
    assert "nothing tells whether lines are missing" in log.check().warnings[0]


def test_a_log_ahead_of_its_head_is_good(log: ReviewLog) -> None:
    """Whoever wrote the line was killed before the head."""
    head = (log.folder / "head.json").read_bytes()
    log.append("verdict", [{"kind": "accepted"}])
    (log.folder / "head.json").write_bytes(head)
    assert not log.check().breaks and len(log.read()) == 7


KILLED = """
import sys
from pathlib import Path
from hnscc_qp.review.log import ReviewLog
log = ReviewLog(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    log.append("verdict", [{"text": "x" * 2000, "number": n} for n in range(20)])
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_writer_leaves_a_chain_that_goes_on(tmp_path: Path) -> None:
    log = ReviewLog(tmp_path / "review")
    for wait_s in (0.05, 0.11, 0.23):
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(log.folder)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout and writer.stdout.readline() == "ready\n"
        time.sleep(wait_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert not log.check().breaks
    before = len(log.read())
    assert before > 0
    log.append("verdict", [{"kind": "accepted"}])
    assert len(log.read()) == before + 1 and not log.check().breaks
