"""zstd, bounded.

Owns how plain bytes are squeezed and how far squeezed bytes may swell again.  Level 3, one zstd frame an object, with
its content size, without checksum (the pack's frame has one) and without dictionary.

Invariant: decompressing never allocates more than the caller said the plain bytes are, and never returns another number
of bytes than that.

Threads: contexts are kept one a thread; both directions release the GIL.

Source: RFC 8878
"""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from casstore.errors import MalformedDocument
from casstore.hashing import Buffer
from casstore.limits import MIB

ZSTD_LEVEL: Final = 3
ZSTD_WINDOW_MAX_BYTES: Final = 8 * MIB  # LIMIT: RFC 8878 asks every decoder to take 8 MiB, so no encoder needs more


class _Contexts(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX_BYTES)


_contexts = _Contexts()


def zstd_compress(data: Buffer) -> bytes:
    """Compress ``data`` into one zstd frame of level 3 that states its content size."""
    return _contexts.compressor.compress(data)


def zstd_decompress(data: Buffer, plain_length: int) -> bytes:
    """Undo :func:`zstd_compress`.

    Args:
        data: one whole zstd frame and nothing behind it.
        plain_length: how many bytes it must give, ≥ 1; the caller has bounded it.

    Returns:
        Exactly ``plain_length`` bytes.

    Raises:
        MalformedDocument: not one zstd frame, a content size that is absent or another one, a window above 8 MiB, a
            dictionary, bytes behind the frame, or content that is shorter or longer than stated.
    """
    try:
        parameters = zstandard.get_frame_parameters(data)
        # LIMIT: the size is compared before anything is allocated: a bomb says how large it is, or is refused for not
        # saying.
        if parameters.content_size != plain_length:
            raise MalformedDocument(f"a zstd frame should state {plain_length} bytes of content, it does not")
        if parameters.window_size > ZSTD_WINDOW_MAX_BYTES or parameters.dict_id:
            raise MalformedDocument("a zstd frame asks for a window above 8 MiB or for a dictionary")
        plain = _contexts.decompressor.decompress(data, max_output_size=plain_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedDocument(f"not one whole zstd frame: {error}") from error
    if len(plain) != plain_length:
        raise MalformedDocument(f"a zstd frame holds {len(plain)} bytes, not {plain_length}")
    return plain
