"""What a push leaves out: patterns from the command line and from ``.casstoreignore``.

Owns the meaning of a pattern, which is that of gitignore(5): asked level by level from the top, the last pattern that matches a
path decides, and what lies in an excluded directory is not looked at.  Patterns and names are bytes, so a name need not be UTF-8;
``?`` and ``[…]`` stand for one byte.

A library of such patterns works on text and matches everything below a directory along with it, which makes ``*``, ``!*/``,
``!*.c`` a special case; asked level by level it is none, and the whole list becomes a few expressions.

Source: docs/operations/excludes.md
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from casstore.errors import InvalidInput
from casstore.limits import KIB
from casstore_client.errors import local_fault, show_path
from casstore_client.source import read_rest

IGNORE_FILE: Final = b".casstoreignore"
IGNORE_FILE_MAX_BYTES: Final = 256 * KIB  # LIMIT: some thousand patterns; each file is held against all of them

_CLASSES: Final = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": rb"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"!-/:-@\[-`{-~",
    b"space": rb" \t\n\r\f\v",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}


class _Rule(NamedTuple):
    """One pattern: whether it excludes, and an expression that a path must match whole; before a directory's
    stands a NUL, which no path holds."""

    excludes: bool
    expression: bytes


class Patterns:
    """Compiled patterns; called by the walk for each directory.

    Args:
        lines: the patterns, in the order in which they count.

    Raises:
        InvalidInput: one that can match nothing.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        kept = [line for line in map(_strip, lines) if line and not line.startswith(b"#")]
        self.text = b"\n".join(kept)
        """What decides, for whoever must know whether it is the same as before."""
        rules = map(_compile_rule, kept)
        # Neighbours that say the same are one expression; the last that matches decides, so the last comes first.
        self._groups: Sequence[tuple[bool, Callable[[bytes], re.Match[bytes] | None]]] = [
            (excludes, re.compile(b"|".join([rule.expression for rule in group]), re.DOTALL).fullmatch)
            for excludes, group in groupby(rules, key=lambda rule: rule.excludes)
        ][::-1]

    def __call__(self, prefix: bytes, names: Sequence[tuple[bytes, bool]]) -> list[bool]:
        """Which of a directory's names are left out.

        Args:
            prefix: the directory's path with a slash at its end; empty for the top.
            names: name, and whether it is a directory.
        """
        return [self._is_out(b"\0" + prefix + name if directory else prefix + name) for name, directory in names]

    def _is_out(self, path: bytes) -> bool:
        for excludes, matches in self._groups:
            if matches(path) is not None:
                return excludes
        return False


def read_excludes(root_fd: int, patterns: Sequence[str]) -> Patterns | None:
    """The patterns in a directory's ``.casstoreignore``, and behind them those that are given; None if there are none.

    Args:
        root_fd: the directory; stays the caller's.
        patterns: as from the command line.

    Raises:
        InvalidInput: the file is no regular file, too large or cannot be read; or a pattern can match nothing.
    """
    lines = [*_read_ignore_file(root_fd), *map(os.fsencode, patterns)]
    compiled = Patterns(lines) if lines else None
    return compiled if compiled is not None and compiled.text else None


def _read_ignore_file(root_fd: int) -> list[bytes]:
    try:
        fd = os.open(IGNORE_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root_fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidInput(f"{IGNORE_FILE.decode()} is no regular file")
            data = read_rest(fd, b"", IGNORE_FILE_MAX_BYTES + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise local_fault("read", IGNORE_FILE, error) from error
    if len(data) > IGNORE_FILE_MAX_BYTES:
        raise InvalidInput(f"{IGNORE_FILE.decode()} is larger than {IGNORE_FILE_MAX_BYTES} bytes")
    return data.removeprefix(b"\xef\xbb\xbf").split(b"\n")


def _strip(line: bytes) -> bytes:
    """Without a carriage return, and without spaces at the end that no backslash keeps."""
    line = line.removesuffix(b"\r")
    bare = line.rstrip(b" ")
    backslashes = len(bare) - len(bare.rstrip(b"\\"))
    return bare + b" " if len(bare) < len(line) and backslashes % 2 else bare


def _compile_rule(line: bytes) -> _Rule:
    pattern = line
    excludes = not pattern.startswith(b"!")
    if not excludes:
        pattern = pattern[1:]
    directories_only = pattern.endswith(b"/")
    pattern = pattern.removesuffix(b"/")
    anchored = b"/" in pattern
    pattern = pattern.removeprefix(b"/")
    if not pattern:
        raise InvalidInput(f"the pattern {show_path(line)!r} matches nothing")
    body = _translate(pattern, line)
    if not anchored:
        body = rb"(?:.*/)?" + body
    return _Rule(excludes, (rb"\0" if directories_only else rb"\0?") + body)


def _translate(pattern: bytes, line: bytes) -> bytes:
    """A pattern as a regular expression."""
    found: list[bytes] = []
    at = 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        if byte == b"*":
            run = len(pattern) - at - len(pattern[at:].lstrip(b"*"))
            end = at + run
            begins = at == 0 or pattern[at - 1 : at] == b"/"
            if run >= 2 and begins and pattern[end : end + 1] == b"/":
                found.append(rb"(?:.*/)?")
                end += 1
            elif run >= 2 and begins and end == len(pattern):
                found.append(rb".+")
            else:
                found.append(rb"[^/\0]*")
            at = end
        elif byte == b"?":
            found.append(rb"[^/\0]")
            at += 1
        elif byte == b"[":
            expression, at = _translate_set(pattern, at, line)
            found.append(expression)
        else:
            if byte == b"\\":
                at += 1
                byte = pattern[at : at + 1]
                if not byte:
                    raise InvalidInput(f"the pattern {show_path(line)!r} ends with a backslash, so it matches nothing")
            found.append(re.escape(byte))
            at += 1
    return b"".join(found)


def _translate_set(pattern: bytes, start: int, line: bytes) -> tuple[bytes, int]:
    """``[…]`` beginning at ``start``, and where the pattern goes on."""
    at = start + 1
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    members: list[bytes] = []
    first = True
    while first or pattern[at : at + 1] != b"]":
        first = False
        if pattern.startswith(b"[:", at) and (end := pattern.find(b":]", at)) > 0:
            name = pattern[at + 2 : end]
            if name not in _CLASSES:
                raise InvalidInput(f"the pattern {show_path(line)!r} names a class of characters that there is not")
            members.append(_CLASSES[name])
            at = end + 2
            continue
        low, at = _member(pattern, at, line)
        if pattern[at : at + 1] == b"-" and pattern[at + 1 : at + 2] not in (b"]", b""):
            high, at = _member(pattern, at + 1, line)
            # A range that is upside down holds its first byte, as it does in git.
            members.append(re.escape(low) + (b"-" + re.escape(high) if low <= high else b""))
        else:
            members.append(re.escape(low))
    return rb"(?![/\0])[" + (b"^" if negated else b"") + b"".join(members) + b"]", at + 1


def _member(pattern: bytes, at: int, line: bytes) -> tuple[bytes, int]:
    if pattern[at : at + 1] == b"\\":
        at += 1
    byte = pattern[at : at + 1]
    if not byte:
        raise InvalidInput(f"the pattern {show_path(line)!r} has a '[' without its ']', so it matches nothing")
    return byte, at + 1
