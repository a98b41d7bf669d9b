"""A store whose log is ahead of the clock: nothing is signed until an operator has looked, and then it goes on.

Without the first, one jump to 2099 would expire every intent for ever; without the second, a machine whose clock was once wrong could
never write again.
"""

from __future__ import annotations

import time
from pathlib import Path

from casstore.clock import ManualClock
from tests.support.acting import Signer
from tests.support.server import ServerProcess, make_store

_HOUR_MS = 3_600_000


def test_a_log_from_the_future_waits_for_an_operator(tmp_path: Path) -> None:
    created = make_store(tmp_path / "store", clock=ManualClock(time.time_ns() // 1_000_000 + _HOUR_MS))
    refusing = ServerProcess(tmp_path / "store", created)
    try:
        status = refusing.http.get("/v1/status").json
        assert "before the newest entry of the log" in status["clock_trouble"]
        asked = Signer(refusing.http, created.operator_key, created.origin).hold("prod/api")
        assert asked.status == 503, asked.body
        assert asked.code == "clock-untrusted"
        assert "--confirm-clock" in asked.json["hint"]
    finally:
        refusing.stop()
    believing = ServerProcess(tmp_path / "store", created, "--confirm-clock")
    try:
        assert believing.http.get("/v1/status").json["clock_trouble"] is None
    finally:
        believing.stop()
