"""What the bench measures of other processes: it must be theirs, all of it, and a failed step no figure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.limit import limit_s
from bench.processes import StepFailed, Watched, run, stored_bytes

BURN = "import time\nt = time.process_time()\nwhile time.process_time() - t < 0.3: pass\n"


def test_processor_time_and_memory_are_those_of_the_child() -> None:
    done = run([sys.executable, "-c", BURN + "x = bytearray(200_000_000); print('out')"])
    assert done.cpu_s >= 0.3
    assert done.peak_bytes >= 200_000_000
    assert done.output == b"out\n"


def test_a_command_that_fails_is_no_figure() -> None:
    with pytest.raises(StepFailed, match=r"exit code 3: it broke"):
        run([sys.executable, "-c", "import sys; print('it broke', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(StepFailed, match="no-such-command"):
        run(["no-such-command"])


def test_a_server_is_watched_with_what_it_started() -> None:
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {BURN!r} + 'x = bytearray(100_000_000)\\nprint(1, flush=True)\\ninput()'], "
        "stdin=subprocess.PIPE)\n"
        "input()\nchild.communicate(b'\\n')\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"  # the grandchild has burnt its time and holds its memory
        watched = Watched(process.pid)
        assert watched.cpu_s() >= 0.25  # in ticks of the kernel
        assert watched.peak_bytes() >= 100_000_000
        process.communicate(b"\n")


def test_stored_bytes_count_each_inode_once_and_links_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(bytes(1000))
    os.link(tmp_path / "below" / "file", tmp_path / "again")
    (tmp_path / "other").write_bytes(bytes(10))
    assert stored_bytes(tmp_path) == 1010


@pytest.mark.parametrize("work", ["push", "push-on", "verify", "write", "link", "walk"])
def test_every_limit_is_measured_on_any_tree(work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASSTORE_BENCH_SCRATCH", str(tmp_path / "elsewhere"))
    source = tmp_path / "source"
    (source / "below" / "deeper").mkdir(parents=True)
    (source / "empty").touch()
    (source / "large").write_bytes(os.urandom(300_000))
    (source / "below" / "deeper" / "small").write_bytes(b"text")
    (source / "below" / "link").symlink_to("nowhere")
    earlier = source if work == "push-on" else None
    seconds, way = limit_s(work, tmp_path / "scratch", source, earlier, sync=False)
    assert seconds > 0
    assert way in {"threads", "processes", "cp"}
    assert not (tmp_path / "scratch").exists()
