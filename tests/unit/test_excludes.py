"""What is left out of a push: the patterns mean what they mean to git.

If one matches too little, secrets travel; if it matches too much, a release lacks files.  The table holds what git answers
(``git check-ignore``, 2.39), but for the last part, where git departs from its own manual.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casstore.errors import InvalidInput
from casstore_client.excludes import IGNORE_FILE_MAX_BYTES, Patterns, read_excludes
from casstore_client.listing import Listing, look_again
from casstore_client.scan import walk
from tests.support.filetrees import make_tree


def is_out(patterns: list[bytes], path: bytes) -> bool:
    """Asked as a walk asks: a path is out if it or a directory above it is.  A path with a slash at its end is a directory."""
    compiled = Patterns(patterns)
    parts = path.rstrip(b"/").split(b"/")
    for depth in range(len(parts)):
        prefix = b"".join(part + b"/" for part in parts[:depth])
        directory = depth < len(parts) - 1 or path.endswith(b"/")
        if compiled(prefix, [(parts[depth], directory)])[0]:
            return True
    return False


@pytest.mark.parametrize(
    ("patterns", "out", "kept"),
    [
        ([b"a"], [b"a", b"x/a", b"a/", b"a/below", b"x/a/below"], [b"ab", b"x/b"]),
        ([b"a/"], [b"a/", b"x/a/", b"a/below"], [b"a", b"x/a"]),
        ([b"/a"], [b"a", b"a/"], [b"x/a"]),
        ([b"x/a"], [b"x/a", b"x/a/b"], [b"y/x/a", b"xx/a"]),
        ([b"*.pyc"], [b"m.pyc", b"d/e/m.pyc", b".pyc"], [b"m.py", b"m.pycc"]),
        ([b"a*/z"], [b"a/z", b"ab/z"], [b"z", b"a/b/z", b"x/a/z"]),
        ([b"*/z"], [b"a/z"], [b"z", b"a/b/z"]),
        ([b"?"], [b"a", b"x/y/z"], [b"ab"]),
        ([b"**/a"], [b"a", b"x/a", b"x/y/a"], [b"ab"]),
        ([b"x/**"], [b"x/a", b"x/a/b"], [b"x/", b"x"]),
        ([b"x/**/a"], [b"x/a", b"x/y/a", b"x/y/z/a"], [b"a", b"xa"]),
        ([b"[ab]"], [b"a", b"x/b"], [b"c", b"ab"]),
        ([b"[!ab]"], [b"c"], [b"a", b"b"]),
        ([b"[^ab]"], [b"c"], [b"a"]),
        ([b"[a-c]x"], [b"bx"], [b"dx", b"-x"]),
        ([b"[]-]"], [b"]", b"-"], [b"a"]),
        ([b"[[:digit:]a]"], [b"7", b"a"], [b"b"]),
        ([b"[b-a]"], [b"b"], [b"a"]),
        ([b"[\\]]"], [b"]"], [b"\\"]),
        ([b"d[/]e"], [], [b"d/e", b"d[/]e"]),
        ([b"\\#a", b"\\!b", b"c\\*"], [b"#a", b"!b", b"c*"], [b"a", b"b", b"cx"]),
        ([b"# a comment", b"", b"a"], [b"a"], [b"# a comment"]),
        ([b"a  "], [b"a"], [b"a  "]),
        ([b"a\\ "], [b"a "], [b"a"]),
        ([b"a\\\\  "], [b"a\\"], [b"a\\ "]),
        ([b"a\r"], [b"a"], []),
        ([b"a.c"], [b"a.c"], [b"axc"]),
        ([b"\xff*", b"?\xfe"], [b"\xff\xfe", b"\xffx", b"x\xfe"], [b"\xfex"]),
        ([b"*.log", b"!keep.log"], [b"a.log"], [b"keep.log", b"d/keep.log"]),
        ([b"!keep.log", b"*.log"], [b"keep.log"], []),
        ([b"logs/", b"!logs/keep"], [b"logs/keep"], []),  # what lies in an excluded directory is not looked at
        ([b"logs/*", b"!logs/keep/"], [b"logs/a", b"logs/keep"], [b"logs/keep/", b"logs/keep/x"]),
        ([b"*", b"!*/", b"!*.c"], [b"a.txt", b"d/a.txt"], [b"a.c", b"d/e/a.c", b"d/"]),
        ([b"***/a"], [b"a", b"x/y/a"], []),
        # git takes the asterisks of ``a**/b`` for those of ``**/b``; its manual, and we, for those of ``a*/b``.
        ([b"a**/b"], [b"a/b", b"ax/b"], [b"a/x/b", b"ab"]),
    ],
)
def test_what_a_pattern_leaves_out(patterns: list[bytes], out: list[bytes], kept: list[bytes]) -> None:
    assert [path for path in out if not is_out(patterns, path)] == []
    assert [path for path in kept if is_out(patterns, path)] == []


@pytest.mark.parametrize("pattern", [b"/", b"!", b"!/", b"a\\", b"[a", b"x/[", b"[[:what:]]", b"[a-"])
def test_a_pattern_that_can_match_nothing_is_refused(pattern: bytes) -> None:
    """Taken as if it were not there, it would let through what someone wanted to keep out."""
    with pytest.raises(InvalidInput, match="pattern"):
        Patterns([pattern])


def open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


def test_patterns_come_from_the_file_and_then_from_the_caller(tmp_path: Path) -> None:
    make_tree(
        tmp_path, {b".casstoreignore": b"\xef\xbb\xbf*.log\r\n# no comment\n\n/tmp\n", b"tmp/x": b"", b"a.log": b""}
    )
    make_tree(tmp_path, {b"b.log": b"", b"sub/tmp": b"", b"sub/.casstoreignore": b"sub", b"\xff": b""})
    fd = open_directory(tmp_path)
    patterns = read_excludes(fd, ["!b.log", os.fsdecode(b"\xff")])
    assert patterns is not None
    found = [entry.path for entry in walk(fd, patterns)]
    assert found == [b"", b".casstoreignore", b"b.log", b"sub", b"sub/.casstoreignore", b"sub/tmp"]
    os.close(fd)


def test_an_excluded_directory_is_not_entered(tmp_path: Path) -> None:
    make_tree(tmp_path, {b"in/a": b"", b"out/b": b""})
    os.mkfifo(tmp_path / "out" / "pipe")  # would be refused
    os.mkfifo(tmp_path / "other")
    listed: list[Listing] = []
    fd = open_directory(tmp_path)
    patterns = Patterns([b"out/", b"other"])
    assert [entry.path for entry in walk(fd, patterns, listed.append)] == [b"", b"in", b"in/a"]
    assert [listing.prefix for listing in listed] == [b"", b"in/"]
    os.close(fd)


def test_a_large_directory_is_filtered_too(tmp_path: Path) -> None:
    make_tree(tmp_path, {b"%d.%s" % (n, b"ab"[n % 2 :][:1]): b"" for n in range(9000)})
    fd = open_directory(tmp_path)
    assert len(list(walk(fd, Patterns([b"*.b"])))) == 4501
    assert len(list(walk(fd))) == 9001
    os.close(fd)


def test_an_ignore_file_that_is_none(tmp_path: Path) -> None:
    fd = open_directory(tmp_path)
    assert read_excludes(fd, []) is None
    (tmp_path / ".casstoreignore").write_bytes(b"# nothing\n\n")
    assert read_excludes(fd, []) is None
    (tmp_path / ".casstoreignore").write_bytes(b"a\n" * IGNORE_FILE_MAX_BYTES)
    with pytest.raises(InvalidInput, match="larger than"):
        read_excludes(fd, [])
    (tmp_path / ".casstoreignore").unlink()
    os.symlink("/etc/passwd", tmp_path / ".casstoreignore")
    with pytest.raises(InvalidInput, match=r"cannot read \.casstoreignore"):
        read_excludes(fd, [])
    (tmp_path / ".casstoreignore").unlink()
    (tmp_path / ".casstoreignore").mkdir()
    with pytest.raises(InvalidInput, match=r"casstoreignore"):
        read_excludes(fd, [])
    assert not look_again(fd, b"", b"", None)
    os.close(fd)
