"""What holds for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import tally


@pytest.fixture(autouse=True)
def own_cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the cache of the user who runs it, nor that of another test."""
    directory = tmp_path_factory.mktemp("cache")
    # Both: tests that have a configuration of their own clear the variables of this program.
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    monkeypatch.setenv("CASSTORE_CACHE_DIR", str(directory / "casstore"))
    return directory


def pytest_configure() -> None:
    """Draw the seed before the run is shared among processes."""
    tally.seed_of_run()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes hands over what it counted."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tally"] = tally.hand_over()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The process that the others report to adds it up."""
    output = getattr(node, "workeroutput", {})  # a process that died hands over nothing
    if "tally" in output:
        tally.take_over(output["tally"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the fault tests have tried."""
    for line in tally.summary():
        terminalreporter.write_line(line)
