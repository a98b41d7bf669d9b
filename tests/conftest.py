"""What holds for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tally import summary


@pytest.fixture(autouse=True)
def own_cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the cache of the user who runs it, nor that of another test."""
    directory = tmp_path_factory.mktemp("cache")
    # Both: tests that have a configuration of their own clear the variables of this program.
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    monkeypatch.setenv("CASSTORE_CACHE_DIR", str(directory / "casstore"))
    return directory


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the fault tests have tried."""
    for line in summary():
        terminalreporter.write_line(line)
