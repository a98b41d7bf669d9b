"""What a person sees of a push: how fast it is now, and how long it will take.

A rate since the beginning says nothing after a pause, and a wrong one makes people interrupt what works.
"""

from __future__ import annotations

import pytest

from casstore.limits import MIB
from casstore_client.cli.output import Output
from casstore_client.cli.progress import RATE_OVER_S, ProgressLine, human_seconds
from casstore_client.progress_events import Phase, ProgressEvent


class Terminal(Output):
    shows_progress = True  # type: ignore[assignment]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.split("\r")[-1].rstrip()


def test_rate_and_remaining_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(Terminal(json=False, quiet=False, verbose=0), clock)
    assert line.callback is not None

    def tell(after_s: float, phase: Phase, done: int, total: int | None) -> str:
        clock.now_s += after_s
        line.update(ProgressEvent(phase, 1000, done, None if total is None else 2000, total, 0))
        return last_line(capsys)

    assert tell(1, Phase.PUSH, MIB, None) == "pushing: 1,000 files, 1.0 MiB, 1.0 MiB/s"
    assert tell(1, Phase.PUSH, 2 * MIB, 10 * MIB) == "pushing: 1,000 files, 2.0 MiB, 1.0 MiB/s, 20 %, 8 s left"
    for _ in range(20):  # a pause, then faster: what was before is forgotten
        tell(1, Phase.PUSH, 2 * MIB, 10 * MIB)
    assert "left" not in tell(0, Phase.PUSH, 2 * MIB, 10 * MIB)
    assert tell(RATE_OVER_S, Phase.PUSH, 7 * MIB, 10 * MIB).endswith("853.3 KiB/s, 70 %, 4 s left")
    assert tell(1, Phase.COMMIT, 10 * MIB, 10 * MIB).startswith("proving: 1,000 files, 10.0 MiB")
    # A file grew meanwhile, or the count came late: never more than everything.
    assert "%" not in tell(1, Phase.PULL, 11 * MIB, 10 * MIB)


def test_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(Output(json=False, quiet=False, verbose=0))
    assert line.callback is None
    line.update(ProgressEvent(Phase.PUSH, 1, 1, 1, 1, 1))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (185, "3:05 min"), (7620, "2:07 h")]
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
