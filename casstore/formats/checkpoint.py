"""Checkpoints: the signed statement that a log of this origin has this size and this root.

Owns the three lines of a checkpoint's text and what makes a note a good checkpoint of one log.  It must not know when a
checkpoint is too old or how many witnesses are enough: it reports the times, the caller has the policy.

Invariants: ``encode_checkpoint(decode_checkpoint(t)) == t``; an opened checkpoint was signed by the *log's* key,
whoever else signed it.

Source: https://c2sp.org/tlog-checkpoint, https://c2sp.org/tlog-cosignature
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from casstore.errors import MalformedDocument, VerificationError
from casstore.formats.canonical import encode_b64
from casstore.formats.lines import HASH_BYTES, UINT63_MAX, parse_head
from casstore.formats.note import cosignature_time, open_note
from casstore.limits import ORIGIN_SIZE_MAX_BYTES
from casstore.merkle import EMPTY_ROOT
from casstore.signing import Verifier

_ORIGIN = re.compile(r"[!-*,-~]+\Z")  # visible ASCII but '+'


class Checkpoint(NamedTuple):
    """A log's size and root."""

    origin: str
    size: int
    """Leaves in the tree, from 0 to 2^63 − 1."""
    root: bytes
    """32 bytes."""


class Cosignature(NamedTuple):
    """That a cosigner saw a checkpoint, and when."""

    verifier: Verifier
    time_ms: int
    """POSIX time in milliseconds; cosigners state whole seconds."""


class OpenedCheckpoint(NamedTuple):
    """A checkpoint that its log signed."""

    checkpoint: Checkpoint
    note: bytes
    """The note as it came: evidence, to be kept and shown."""
    cosignatures: list[Cosignature]
    """The verified cosignatures of those cosigners that were asked about."""

    @property
    def cosigned_at_ms(self) -> dict[str, int]:
        """The newest verified time of each cosigner, by name."""
        times: dict[str, int] = {}
        for verifier, time_ms in self.cosignatures:
            times[verifier.name] = max(time_ms, times.get(verifier.name, 0))
        return times


def check_origin(origin: str) -> None:
    """Refuse what cannot name a log.

    Args:
        origin: 1 to 255 visible ASCII characters, none of them ``+``.

    Raises:
        MalformedDocument: anything else.
    """
    if not _ORIGIN.match(origin) or len(origin) > ORIGIN_SIZE_MAX_BYTES:
        raise MalformedDocument(
            f"{origin[:100]!r} is not an origin: 1 to {ORIGIN_SIZE_MAX_BYTES} visible ASCII characters without '+'"
        )


def encode_checkpoint(checkpoint: Checkpoint) -> str:
    """The text that a log signs.

    Raises:
        MalformedDocument: an origin, size or root that no checkpoint has.

    >>> print(encode_checkpoint(Checkpoint("example.com/log", 0, EMPTY_ROOT)), end="")
    example.com/log
    0
    47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=
    """
    check_origin(checkpoint.origin)
    if not 0 <= checkpoint.size <= UINT63_MAX or len(checkpoint.root) != HASH_BYTES:
        raise MalformedDocument("a checkpoint has a size from 0 to 2^63 - 1 and a root of 32 bytes")
    return f"{checkpoint.origin}\n{checkpoint.size}\n{encode_b64(checkpoint.root)}\n"


def decode_checkpoint(text: str) -> Checkpoint:
    """Read a checkpoint's text.

    Args:
        text: three lines; extension lines are refused, for no one audits them.

    Raises:
        MalformedDocument: any other spelling.
    """
    head = parse_head(text)
    check_origin(head.origin)
    if head.extensions:
        raise MalformedDocument("the checkpoint has extension lines")
    return Checkpoint(head.origin, head.size, head.root)


def open_checkpoint(note: bytes, log: Verifier, origin: str, clocks: Sequence[Verifier] = ()) -> OpenedCheckpoint:
    """Verify a checkpoint.

    Args:
        note: the bytes.
        log: the log's key; it must have signed, and a cosignature does not stand in for it.
        origin: the log's origin.
        clocks: cosigners whose times matter: witnesses, and the server's clock key.  A bad line by one refuses the
            note.

    Raises:
        MalformedDocument: no note, or its text is no checkpoint.
        TooLarge: more lines or bytes than a note may have.
        VerificationError: a bad signature, none by the log, another origin, or an empty tree with a root of its own.
        ConfigurationError: two different keys share name and key id.
    """
    opened = open_note(note, [log, *clocks])
    cosignatures, signed = [], False
    for verifier, line in opened.signatures:
        signed = signed or verifier == log
        if verifier.is_cosigner:
            cosignatures.append(Cosignature(verifier, cosignature_time(line) * 1000))
    if not signed:
        raise VerificationError(f"the log's key {log.name!r} did not sign the checkpoint")
    checkpoint = decode_checkpoint(opened.text)
    if checkpoint.origin != origin:
        raise VerificationError(f"the checkpoint is of the log {checkpoint.origin!r}, not of {origin!r}")
    if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
        raise VerificationError("the checkpoint gives an empty tree a root that is not the empty tree's")
    return OpenedCheckpoint(checkpoint, note, cosignatures)
