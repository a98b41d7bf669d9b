"""A small file system of its own, for tests of a disk that is full: a real mount, which needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from casstore.limits import KIB, MIB

MOUNT_TIMEOUT_S = 30


def run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=MOUNT_TIMEOUT_S, check=False)
    if ended.returncode:
        raise AssertionError(
            f"{' '.join(command)}: {ended.stderr.strip()}. These tests need root and the right to mount: nothing was tested"
        )


@contextlib.contextmanager
def mounted(directory: Path, kind: str, size_bytes: int, *, files: int | None = None) -> Iterator[Path]:
    """Mount a new file system and unmount it at the end.

    Args:
        directory: where things of this file system may lie; must exist.
        kind: ``tmpfs``, or ``ext4`` in a file.
        size_bytes: its size.
        files: how many files it takes; tmpfs only.

    Raises:
        AssertionError: it cannot be mounted; a test that asked for it has failed.
    """
    where = directory / f"{kind}-disk"
    where.mkdir()
    if kind == "tmpfs":
        options = f"size={size_bytes}" + (f",nr_inodes={files}" if files is not None else "")
        run("mount", "-t", "tmpfs", "-o", options, "casstore-test", str(where))
    else:
        image = directory / f"{kind}.image"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        run(f"mkfs.{kind}", "-q", "-m", "0", str(image))  # nothing is kept for root, who runs the test
        run("mount", "-o", "loop", str(image), str(where))
    try:
        yield where
    finally:
        run("umount", str(where))


@contextlib.contextmanager
def filled(disk: Path, *, leave_bytes: int = 0) -> Iterator[None]:
    """Fill the disk with a file of somebody else's; the space is back at the end."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(KIB))
        os.fsync(file.fileno())
        if leave_bytes:
            file.truncate(max(0, file.tell() - leave_bytes))
    try:
        yield
    finally:
        ballast.unlink()
