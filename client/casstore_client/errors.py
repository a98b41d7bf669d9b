"""What can go wrong between a client and a server, beside what the server says in so many words.

::

    CasstoreError
    ├── TransportError   no answer came, or the connection broke: try again
    └── ProtocolError    an answer came that no casstore server gives

Everything that the server refuses arrives as the same class of :mod:`casstore.errors` that it raised.
"""

from __future__ import annotations

import errno

from casstore.errors import CapacityError, CasstoreError, InvalidInput


class TransportError(CasstoreError):
    """The server can not be reached, or the connection broke; nothing is known about what it did."""

    code = "transport-error"
    retryable = True


class ProtocolError(CasstoreError):
    """An answer that breaks the protocol: another program answers, a proxy meddles, or the server is broken or hostile."""

    code = "protocol-error"


def show_path(path: bytes) -> str:
    """A path of bytes for a person's eyes: never a control character, never more than 300 characters."""
    text = path.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= 300 else f"{text[:150]}…{text[-149:]}"


def local_fault(doing: str, path: bytes, error: OSError) -> CasstoreError:
    """What the local file system refused, as an error of ours, for ``raise … from error``.

    Args:
        doing: what was tried, such as ``read``.
        path: the file that it was about.
        error: what the system said.

    Returns:
        CapacityError where space ran out, InvalidInput for everything else.
    """
    sentence = f"cannot {doing} {show_path(path)}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CapacityError(sentence)
    return InvalidInput(sentence)
