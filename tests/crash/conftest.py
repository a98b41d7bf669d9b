"""Fixtures: a place for stores that are broken on purpose."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where the machine has such a place: a power cut is simulated, and a killed process leaves the system's
    memory as it is, so a real disk would only be waited for.
    """
    if not os.path.isdir("/dev/shm"):
        yield tmp_path_factory.mktemp("scratch")
        return
    with tempfile.TemporaryDirectory(prefix="casstore-test-", dir="/dev/shm") as directory:
        yield Path(directory)
