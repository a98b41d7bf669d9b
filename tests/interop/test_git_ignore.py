"""Patterns against git: the same list of patterns leaves the same files of the same tree.

Random lists over a random tree; git is asked by ``ls-files --others`` with the patterns in ``info/exclude``.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from casstore_client.excludes import Patterns
from casstore_client.scan import walk

NAMES = [b"a", b"b", b"ab", b"a.c", b"b.c", b"x y", b"#h", b"!n", b"\xff\xfe", b"a-b", b"[k]", b"build"]
ATOMS = [b"a", b"b", b"ab", b"*", b"**", b"***", b"?", b"[ab]", b"[!a]", b"[^b]", b"[b-a]", b"[a-c]*", b"[]k[]*"]
ATOMS += [b"[[:alpha:]]", b"*.c", b"a*", b"build", b"\\#h", b"\\!n", b"#h", b"x y", b"\xff*", b"z", b"\\[k\\]"]


def grow(top: bytes, depth: int, chance: random.Random) -> None:
    for name in chance.sample(NAMES, 6):
        path = top + b"/" + name
        if depth and chance.random() < 0.5:
            os.mkdir(path)
            grow(path, depth - 1, chance)
            path += b"/z"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))


def draw_pattern(chance: random.Random) -> bytes:
    line = b"/".join(chance.choice(ATOMS) for _ in range(chance.choice((1, 1, 1, 2, 2, 3))))
    line = (b"/" if chance.random() < 0.2 else b"") + line + (b"/" if chance.random() < 0.3 else b"")
    return (b"!" if chance.random() < 0.3 else b"") + line + (b"  " if chance.random() < 0.1 else b"")


@pytest.mark.parametrize("seed", range(5))
def test_git_leaves_out_the_same(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    grow(os.fsencode(tmp_path), 3, chance)
    root_fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(200):
        lines = [draw_pattern(chance) for _ in range(chance.randrange(1, 5))]
        (tmp_path / ".git" / "info" / "exclude").write_bytes(b"\n".join(lines) + b"\n")
        listed = subprocess.run(
            ["git", "-C", str(tmp_path), "ls-files", "--others", "-z", "--exclude-standard"],
            capture_output=True,
            check=True,
        )
        patterns = Patterns(lines)

        def excludes(prefix: bytes, names: Sequence[tuple[bytes, bool]], patterns: Patterns = patterns) -> list[bool]:
            flags = patterns(prefix, names)
            return [out or (not prefix and name == b".git") for out, (name, _) in zip(flags, names, strict=True)]

        kept = {entry.path for entry in walk(root_fd, excludes) if entry.stamp is not None}
        assert kept == set(filter(None, listed.stdout.split(b"\0"))), lines
    os.close(root_fd)
