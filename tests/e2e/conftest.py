"""Fixtures: a real server on a fresh store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server import Running, ServerProcess, make_store, run_in_thread


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server in a thread of this process, on a fresh store in ``tmp_path``."""
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created) as running:
        yield running


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts ``casstore serve`` as a process, on one fresh store; call it again after a kill to start it again."""
    directory = tmp_path / "store"
    created = make_store(directory)
    started: list[ServerProcess] = []

    def start(*arguments: str) -> ServerProcess:
        started.append(ServerProcess(directory, created, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()
