"""Where benches write, and how what they wrote goes away without weighing on the next step.

On ext4 **without a journal** the kernel does not reuse an inode for minutes after its file was removed (``recently_deleted`` in
fs/ext4/ialloc.c), and looks through all of them each time a file is made: a copy of 58,000 files took 20 s of system time after one
such tree had been removed nearby, and 2 s elsewhere.  So there nothing is removed while a round runs; it is moved aside, and removed at
the round's end, with a pause.  On file systems with a journal it is removed at once.

Corpora are read from the bench folder; :func:`scratch_dir` may be another file system.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path

from bench.corpora import bench_dir

_SETTLE_S = 65  # RECENTLY_DELETED is 60 s there, once the inodes' blocks have been written
_numbers = itertools.count()


def scratch_dir() -> Path:
    """Where stores and pulled trees go: ``$CASSTORE_BENCH_SCRATCH``, by default ``scratch/`` in the bench folder."""
    path = Path(os.environ.get("CASSTORE_BENCH_SCRATCH") or bench_dir() / "scratch")
    path.mkdir(parents=True, exist_ok=True)
    return path


def lacks_journal(path: Path) -> bool:
    """Whether ``path`` lies on an ext4 that has no journal."""
    device = os.stat(path).st_dev
    try:
        name = Path(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")).name
        return Path(f"/sys/fs/ext4/{name}/journal_task").read_text().strip() == "<none>"
    except OSError:
        return False  # not ext4, or none that is told about


def discard(path: Path) -> None:
    """Make ``path`` go away, outside of every measurement; now, or at the end of the round."""
    if not path.exists():
        return
    if not lacks_journal(path.parent):
        _remove(path)
        return
    trash = scratch_dir() / "trash"
    trash.mkdir(exist_ok=True)
    path.rename(trash / f"{os.getpid()}-{next(_numbers)}")


def settle() -> None:
    """At the end of a round: remove what was moved aside, and wait until the file system has forgotten it."""
    trash = scratch_dir() / "trash"
    if trash.exists():
        _remove(trash)
        os.sync()
        time.sleep(_SETTLE_S)


def _remove(path: Path) -> None:
    subprocess.run(["rm", "-rf", str(path)], check=True)
