"""What can be seen of a QuPath that runs on the same computer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pretend import pretend_qupath

from hnscc_qp.errors import ProjectError
from hnscc_qp.qupath import running

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system has no /proc")


@needs_proc
def test_an_image_whose_slide_is_open_in_qupath_is_refused(tmp_path):
    slide, other = tmp_path / "Präparat 1.svs", tmp_path / "b.svs"
    slide.write_bytes(b"slide")
    other.write_bytes(b"other")
    (tmp_path / "link.svs").symlink_to(slide)
    running.refuse_while_open([slide, other], image="case 1")
    with pretend_qupath(tmp_path, slide) as pid:
        for path in (slide, tmp_path / "link.svs"):
            with pytest.raises(
                ProjectError, match=rf"case 1 is open in QuPath \(process {pid} reads "
            ) as told:
                running.refuse_while_open([other, path], image="case 1")
            assert "close the image in QuPath, then push again" in str(told.value)
        running.refuse_while_open([other], image="case 2")
        (line,) = running.warn_of_running()
        assert str(pid) in line
    running.refuse_while_open([slide, other], image="case 1")


@needs_proc
def test_another_program_that_reads_the_slide_does_not_matter(tmp_path):
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"slide")
    with slide.open("rb") as stream:
        code = "import sys; print(1, flush=True); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=stream, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            running.refuse_while_open([slide], image="case 1")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/opt/QuPath/bin/QuPath"], True),
        (["C:\\Program Files\\QuPath-0.6.0\\QuPath-0.6.0.exe".replace("\\", "/")], True),
        (["/usr/bin/java", "-cp", "lib/*", "qupath.QuPath", "-p", "a.qpproj"], True),
        (["java", "-jar", "/opt/qupath-app-0.6.0.jar"], True),
        (["/usr/bin/java", "-cp", "/home/ann/qupath/lib.jar:b", "org.eclipse.Main"], False),
        (["python", "-m", "hnscc_qp", "qupath.QuPath"], False),
        (["vim", "qupath.txt"], False),
        ([], False),
    ],
)
def test_qupath_is_told_from_others_by_its_command_line(arguments, expected):
    assert running.is_qupath(arguments) is expected


def test_what_lsof_and_tasklist_say_is_understood():
    # As macOS 14 and Windows 11 print it.
    lsof = "p812\nfcwd\nn/\nf35\nn/Users/ann/F\u00e4lle/a b.svs\nf36\nn192.0.2.1:80\np900\nf4\nn/dev/null\n"
    assert running.parse_lsof(lsof) == [
        running.RunningQuPath(812, frozenset({"/", "/Users/ann/Fälle/a b.svs"})),
        running.RunningQuPath(900, frozenset({"/dev/null"})),
    ]
    tasklist = '"QuPath-0.6.0.exe","4711","Console","1","1,234,567 K"\r\n'
    assert running.parse_tasklist(tasklist) == [running.RunningQuPath(4711, frozenset())]
    nothing = "INFO: No tasks are running which match the specified criteria.\r\n"
    assert running.parse_tasklist(nothing) == []
    assert running.parse_lsof("") == []


def test_a_system_without_proc_and_lsof_shows_no_qupath(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_PROC", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert running.find_running() == ()
    assert running.warn_of_running() == ()
