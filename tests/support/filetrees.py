"""Real directories for tests: made from a description, and read back to be compared.

Independent of the client's own walk: reads by ``os.fwalk``, which follows nothing and takes paths of any depth.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

NOBODY = 65534


class Seen(NamedTuple):
    """What a path is: type and permission bits, content's hash or link's target, size."""

    mode: int
    content: str
    size: int


def read_tree(top: Path) -> dict[bytes, Seen]:
    """Everything below ``top``, by relative path; the top itself is ``b""``.

    Directories whose mode forbids it are not listed unless the user is root.
    """
    found: dict[bytes, Seen] = {b"": Seen(os.stat(top).st_mode, "", 0)}
    for directory, names, files, fd in os.fwalk(os.fsencode(top)):
        relative = directory[len(os.fsencode(top)) :].lstrip(b"/")
        for name in names + files:
            path = relative + b"/" + name if relative else name
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            found[path] = _see(name, info, fd)
    return found


def _see(name: bytes, info: os.stat_result, dir_fd: int) -> Seen:
    if stat.S_ISLNK(info.st_mode):
        return Seen(stat.S_IFLNK, os.fsdecode(os.readlink(name, dir_fd=dir_fd)), 0)
    if stat.S_ISDIR(info.st_mode):
        return Seen(info.st_mode, "", 0)
    hasher = hashlib.sha256()
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=dir_fd)
    with os.fdopen(fd, "rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return Seen(info.st_mode, hasher.hexdigest(), info.st_size)


def make_tree(top: Path, files: Mapping[bytes, bytes | None]) -> Path:
    """Make files with these contents (None: a directory) below ``top``; directories above them come into being."""
    os.makedirs(top, exist_ok=True)
    for path, data in files.items():
        full = os.path.join(os.fsencode(top), path)
        if data is None:
            os.makedirs(full, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as file:
            file.write(data)
    return top


def odd_tree(top: Path, seed: int = 1) -> Path:
    """A tree with something of everything: small, large, empty, duplicate, sparse, linked, odd names and modes."""
    chance = random.Random(seed)
    files: dict[bytes, bytes | None] = {
        b"empty": b"",
        b"empty-directory": None,
        b"deep/er/and/deeper": b"bottom",
        b"a": b"first",
        b"a-b": b"between a and what would lie in it",
        b"dir/x": b"x",
        b"dir-y": b"y",
        b"dir/sub/large.bin": chance.randbytes(3_000_000),
        b"dir/sub/same.bin": b"",
        b"huge.bin": chance.randbytes(9_500_000),
        b"sparse.img": b"",
        b"just-below": chance.randbytes(65_535),
        b"just-at": chance.randbytes(65_536),
        b"\xff\xfe not utf-8": b"bytes",
        b"new\nline \t and \x1b[31m": b"control",
        b"n" * 255: b"long name",
    }
    files[b"dir/sub/same.bin"] = files[b"dir/sub/large.bin"]
    for number in range(300):
        files[b"many/%d/file-%d.txt" % (number % 7, number)] = chance.randbytes(chance.randrange(0, 3000))
    make_tree(top, files)
    with open(top / "sparse.img", "wb") as file:
        file.seek(20_000_000)
        file.write(b"end")
    os.symlink(b"/etc/passwd", top / "absolute")
    os.symlink(b"../../outside", top / "dir" / "upwards")
    os.symlink(b"dir", top / "link-to-directory")
    os.symlink(b"nowhere\xff", top / "dangling")
    os.symlink(b"loop", top / "loop")
    os.chmod(top / "a", 0o400)
    os.chmod(top / "a-b", 0o4755)
    os.chmod(top / "dir-y", 0o2711)
    os.chmod(top / "deep" / "er", 0o555)
    os.chmod(top / "empty-directory", 0o1777)
    return top


def run_as_nobody(work: Callable[[], Any]) -> None:
    """Call ``work`` as a user without privileges: in a forked child if this process is root, else right here.

    Raises:
        AssertionError: it failed; the child has printed why.
    """
    if os.geteuid() != 0:
        work()
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 (the child ends here, whatever it is)
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
