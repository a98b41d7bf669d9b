"""Logs: a reader of stderr that has stopped must not stop the server, and lost lines must not be lost silently."""

from __future__ import annotations

import errno
import io
import json
import os
import threading

from casstore_server.logs import LINES_WAITING_MAX, LineWriter, open_log


class StoppedPipe(io.StringIO):
    """A stream whose reader has stopped: the first write waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.waiting.set()
        assert self.go_on.wait(10)
        return super().write(text)


class FullDisk(io.StringIO):
    """A log file on a disk that is full for a while."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_a_log_on_a_full_disk_goes_on_when_there_is_space() -> None:
    """The writer ended at the first line that found no space, and the server was silent from then on."""
    stream = FullDisk()
    log, writer = open_log(stream)
    for number in range(3):
        log.info("lost", number=number)
    while writer._lost < 3:
        threading.Event().wait(0.001)
    stream.full = False
    log.info("kept")
    writer.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["log lines lost", "kept"]
    assert lines[0]["lost"] == 3


def test_lines_are_json_objects() -> None:
    stream = io.StringIO()
    log, writer = open_log(stream)
    log.info("request", path="/v1/x\n", status=200)
    log.debug("not shown")
    writer.close()
    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert (line["event"], line["path"], line["status"], line["level"]) == ("request", "/v1/x\n", 200, "info")
    assert line["timestamp"].endswith("Z")


def test_a_stopped_reader_blocks_nobody_and_the_loss_is_told() -> None:
    stream = StoppedPipe()
    writer = LineWriter(stream)
    writer.msg("first")
    assert stream.waiting.wait(10)
    for number in range(LINES_WAITING_MAX + 7):
        writer.msg(str(number))
    stream.go_on.set()
    while not stream.getvalue().endswith(f"{LINES_WAITING_MAX - 1}\n"):
        threading.Event().wait(0.005)
    writer.msg("after")
    writer.close()
    last = stream.getvalue().splitlines()[-2:]
    assert json.loads(last[0])["lost"] == 7
    assert last[1] == "after"


def test_a_closed_stream_ends_the_thread_quietly() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)
    stream.close()
    writer.msg("to no one")
    writer.close()
