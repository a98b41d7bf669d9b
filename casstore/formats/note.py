"""Signed notes and cosignatures: text, a blank line, and signature lines.

Owns how a note is put together, taken apart and verified, and the message that a cosigner signs.  It must not know what
the text says (:mod:`casstore.formats.checkpoint`), except for the three lines that an ML-DSA-44 cosignature repeats.

Invariants: no text comes out of here unless a known key signed exactly these bytes; one bad signature of a known key
refuses the whole note; every line break is U+000A and nothing else is.

Source: https://c2sp.org/signed-note, https://c2sp.org/tlog-cosignature
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from casstore.errors import (
    ConfigurationError,
    InvalidInput,
    MalformedDocument,
    SignatureInvalid,
    TooLarge,
    VerificationError,
)
from casstore.formats.canonical import encode_b64
from casstore.formats.lines import UINT63_MAX, is_key_name, parse_head
from casstore.limits import NOTE_LINES_MAX, NOTE_SIZE_MAX_BYTES
from casstore.signing import (
    KEY_ID_BYTES,
    SIGNATURE_BYTES,
    SignatureType,
    SigningKey,
    Verifier,
    can_verify_mldsa44,
)

_DASH: Final = "\u2014 "
_TIME: Final = struct.Struct(">Q")


class SignatureLine(NamedTuple):
    """One signature line, taken apart."""

    name: str
    key_id: bytes
    """Four bytes."""
    signature: bytes
    """What follows the key id; for a cosignature, eight bytes of time and then the signature proper."""
    text: str
    """The line as it stands in the note, without its newline."""

    @property
    def is_canonical(self) -> bool:
        """Whether the line is in the one spelling that we write."""
        return self.text == _format_line(self.name, self.key_id, self.signature)


class VerifiedSignature(NamedTuple):
    """A line that a known key verified."""

    verifier: Verifier
    line: SignatureLine


class OpenedNote(NamedTuple):
    """A note whose text at least one known key signed."""

    text: str
    """What was signed; ends in a newline."""
    signatures: list[VerifiedSignature]
    """The verified lines, in the order of the note; at least one."""
    unknown: list[SignatureLine]
    """Lines by keys that were not asked about: they say nothing."""


# --- putting together ------------------------------------------------------------------------------------------------


def _format_line(name: str, key_id: bytes, signature: bytes) -> str:
    return f"{_DASH}{name} {encode_b64(key_id + signature)}"


def _check_text(text: str) -> None:
    """Refuse text that no note can carry."""
    if not text.endswith("\n"):
        raise InvalidInput("the text of a note ends in a newline")
    if any((c < " " and c != "\n") or "\ud800" <= c <= "\udfff" for c in text):
        raise InvalidInput("the text of a note holds no control character but the newline")


def sign_note(text: str, signers: Sequence[SigningKey], lines: Iterable[str] = ()) -> bytes:
    """Sign text.

    Args:
        text: what is signed; not empty, ends in a newline, no other control character.
        signers: keys of type ``ED25519``, one line each, in this order.
        lines: further signature lines (of :func:`cosign`), without newlines.

    Returns:
        the note; at most 128 KiB.

    Raises:
        InvalidInput: text that no note can carry, no signature at all, or a key of another type.
        MalformedDocument: one of ``lines`` is no signature line.
        TooLarge: more lines or bytes than a note may have.
    """
    _check_text(text)
    written = []
    for key in signers:
        if key.verifier.is_cosigner:
            raise InvalidInput(f"the key {key.name!r} signs with a time: use cosign()")
        written.append(_format_line(key.name, key.verifier.key_id, key.sign(text.encode())))
    written.extend(_parse_line(line).text for line in lines)
    if not written:
        raise InvalidInput("a note has at least one signature")
    return _join(text, written)


def _join(text: str, lines: Sequence[str]) -> bytes:
    note = f"{text}\n{''.join(line + chr(10) for line in lines)}".encode()
    if len(lines) > NOTE_LINES_MAX:
        raise TooLarge(f"a note has at most {NOTE_LINES_MAX} signature lines", limit=NOTE_LINES_MAX)
    if len(note) > NOTE_SIZE_MAX_BYTES:
        raise TooLarge(f"a note has at most {NOTE_SIZE_MAX_BYTES} bytes", limit=NOTE_SIZE_MAX_BYTES)
    return note


def cosigned_message(verifier: Verifier, text: str, seconds: int) -> bytes:
    """What a cosigner signs.

    Args:
        verifier: the cosigner: type and, for ML-DSA-44, name are part of the message.
        text: the checkpoint's text.
        seconds: POSIX time, from 0 to 2^63 − 1.

    Raises:
        InvalidInput: a key that signs no time, or a time out of range.
        MalformedDocument: for ML-DSA-44, text that is no checkpoint.
    """
    if not 0 <= seconds <= UINT63_MAX:
        raise InvalidInput(f"{seconds} is not a time that a cosignature can state")
    if verifier.type is SignatureType.COSIGNATURE:
        return f"cosignature/v1\ntime {seconds}\n{text}".encode()
    if verifier.type is SignatureType.MLDSA44_COSIGNATURE:
        head = parse_head(text)
        name, origin = verifier.name.encode(), head.origin.encode()
        if len(name) > 255 or len(origin) > 255:
            raise MalformedDocument("a cosigner's name and an origin have at most 255 bytes each")
        lead = b"subtree/v1\n\x00" + bytes([len(name)]) + name + _TIME.pack(seconds) + bytes([len(origin)]) + origin
        return lead + _TIME.pack(0) + _TIME.pack(head.size) + head.root
    raise InvalidInput(f"the key {verifier.name!r} signs no time")


def cosign(text: str, key: SigningKey, seconds: int) -> str:
    """The line by which a cosigner states that it saw this checkpoint, at this time.

    Args:
        text: the checkpoint's text.
        key: of type ``COSIGNATURE``.
        seconds: POSIX time.

    Returns:
        the line, without its newline.

    Raises:
        InvalidInput: text that no note can carry, a key of another type, or a time out of range.
    """
    _check_text(text)
    signature = key.sign(cosigned_message(key.verifier, text, seconds))
    return _format_line(key.name, key.verifier.key_id, _TIME.pack(seconds) + signature)


def add_signature_line(note: bytes, line: str, verifier: Verifier) -> bytes:
    """Merge a line into a note, in place of any line of the same key.

    Args:
        note: the note; its other lines are kept as they are, and are not verified.
        line: the line to merge, without its newline.
        verifier: whose line it has to be.

    Raises:
        MalformedDocument: the note or the line does not parse.
        VerificationError: the line is not a good line of this key over this text.
        TooLarge: the note would outgrow its bounds.
    """
    text, lines = split_note(note)
    fresh = _parse_line(line)
    if (fresh.name, fresh.key_id) != (verifier.name, verifier.key_id):
        raise VerificationError(f"the line is by {fresh.name!r}, not by {verifier.name!r}")
    # TRUST: one bad line of a key that hosts know would make every host refuse the whole note.
    _verify_line(text, fresh, verifier)
    kept, placed = [], False
    for old in lines:
        if (old.name, old.key_id) != (fresh.name, fresh.key_id):
            kept.append(old.text)
        elif not placed:
            kept.append(fresh.text)
            placed = True
    if not placed:
        kept.append(fresh.text)
    return _join(text, kept)


# --- taking apart ----------------------------------------------------------------------------------------------------


def split_note(note: bytes) -> tuple[str, list[SignatureLine]]:
    """Text and lines of a note, *nothing verified*: to show to a person, or to find out whom to ask.

    Raises:
        MalformedDocument: the bytes are no note.
        TooLarge: more lines or bytes than a note may have.
    """
    if len(note) > NOTE_SIZE_MAX_BYTES:
        raise TooLarge(f"a note has at most {NOTE_SIZE_MAX_BYTES} bytes", limit=NOTE_SIZE_MAX_BYTES)
    if any(byte < 0x20 and byte != 0x0A for byte in note):
        raise MalformedDocument("the note holds a control character")
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise MalformedDocument("the note is not UTF-8") from None
    # The *last* blank line: the text itself may hold some.
    border = whole.rfind("\n\n")
    text, tail = whole[: border + 1], whole[border + 2 :]
    if border < 0 or not tail.endswith("\n"):
        raise MalformedDocument("a note is text, a blank line, and signature lines that end in a newline")
    # TRUST: never str.splitlines, which also splits at U+0085 and U+2028.
    lines = tail[:-1].split("\n")
    if len(lines) > NOTE_LINES_MAX:
        raise TooLarge(f"a note has at most {NOTE_LINES_MAX} signature lines", limit=NOTE_LINES_MAX)
    return text, [_parse_line(line) for line in lines]


def _parse_line(line: str) -> SignatureLine:
    if not line.startswith(_DASH):
        raise MalformedDocument("a signature line begins with an em dash and a space")
    name, space, material = line.removeprefix(_DASH).partition(" ")
    if not space or not is_key_name(name):
        raise MalformedDocument("a signature line is an em dash, a key name and base64, a space between each")
    try:
        # Other spellings pass here, so that a known key's line in one of them is seen to be that key's, and refused.
        raw = base64.b64decode(material, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedDocument(f"the signature by {name!r} is not base64") from None
    if len(raw) <= KEY_ID_BYTES:
        raise MalformedDocument(f"the signature by {name!r} is too short to hold a key id and a signature")
    return SignatureLine(name, raw[:KEY_ID_BYTES], raw[KEY_ID_BYTES:], line)


def cosignature_time(line: SignatureLine) -> int:
    """The POSIX time, in seconds, that a cosignature states.

    Raises:
        MalformedDocument: the line is too short for a time and a signature, or the time is above 2^63 − 1.
    """
    if len(line.signature) < _TIME.size + SIGNATURE_BYTES:
        raise MalformedDocument(f"the cosignature by {line.name!r} is too short")
    seconds: int = _TIME.unpack_from(line.signature)[0]
    if seconds > UINT63_MAX:
        raise MalformedDocument(f"the cosignature by {line.name!r} states a time above 2^63 - 1")
    return seconds


def _verify_line(text: str, line: SignatureLine, verifier: Verifier) -> None:
    if not line.is_canonical:
        raise VerificationError(f"the signature line by {line.name!r} is in another spelling than the one there is")
    try:
        if verifier.is_cosigner:
            message = cosigned_message(verifier, text, cosignature_time(line))
            verifier.verify(message, line.signature[_TIME.size :])
        else:
            verifier.verify(text.encode(), line.signature)
    except (SignatureInvalid, MalformedDocument) as error:
        raise VerificationError(f"the signature line by {line.name!r} is bad: {error.detail}") from error


def _known_keys(known: Sequence[Verifier]) -> dict[tuple[str, bytes], Verifier]:
    table: dict[tuple[str, bytes], Verifier] = {}
    for verifier in known:
        if verifier.type is SignatureType.MLDSA44_COSIGNATURE and not can_verify_mldsa44():
            # Not a refusal: to whom this key is all that counts, nothing verifies below.
            continue
        if table.setdefault((verifier.name, verifier.key_id), verifier) != verifier:
            raise ConfigurationError(f"two known keys share the name {verifier.name!r} and the key id")
    return table


def open_note(note: bytes, known: Sequence[Verifier]) -> OpenedNote:
    """Verify a note.

    Args:
        note: the bytes.
        known: the keys that count.  Lines by others are ignored; of several lines by one key, the first counts.

    Raises:
        MalformedDocument: the bytes are no note.
        TooLarge: more lines or bytes than a note may have.
        VerificationError: a line by a known key is bad, or no known key signed.
        ConfigurationError: two different known keys share name and key id.
    """
    keys = _known_keys(known)
    text, lines = split_note(note)
    verified: list[VerifiedSignature] = []
    unknown: list[SignatureLine] = []
    seen: set[tuple[str, bytes]] = set()
    for line in lines:
        identity = (line.name, line.key_id)
        if identity in seen:
            continue
        seen.add(identity)
        verifier = keys.get(identity)
        if verifier is None:
            unknown.append(line)
        else:
            _verify_line(text, line, verifier)
            verified.append(VerifiedSignature(verifier, line))
    if not verified:
        signers = ", ".join(repr(line.name) for line in unknown[:4])
        raise VerificationError(f"no known key signed the note; it is signed by {signers}")
    return OpenedNote(text, verified, unknown)
