"""Request bodies, read within bounds.

Owns everything between the socket and a decoded body: size before reading and while reading, the pace of the sender, media
types, encodings, and what happens to a connection whose body was refused.

Invariants: at most the stated number of bytes is ever held; a body that is refused is not read to its end; nothing is
decompressed (a compressed body is refused, so that no body grows behind the bounds).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from aiohttp import ClientPayloadError, web

from casstore.errors import InvalidInput, TooLarge, UnsupportedMediaType
from casstore.limits import JSON_BODY_MAX_BYTES, MIB
from casstore.wire import MEDIA_JSON, decode_json
from casstore_server.context import context_of
from casstore_server.errors import TooSlow

T = TypeVar("T")

PIECE_BYTES: Final = MIB  # what is handed to a worker at once: fewer hops between threads
LINGER_BYTES: Final = MIB
LINGERING_MAX: Final = 64  # LIMIT: at once, some 256 KiB each


class ClientGone(Exception):
    """The connection ended before the body did."""


def demand_media_type(request: web.Request, *accepted: str) -> None:
    """Refuse a body of another type, or a compressed one.

    Raises:
        UnsupportedMediaType: it is.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:60]!r} is not taken: send the body as it is")
    if request.content_type not in accepted:
        raise UnsupportedMediaType(f"this resource takes {' or '.join(accepted)}, not {request.content_type[:100]}")


def demand_size(request: web.Request, limit: int) -> None:
    """Refuse a body that says that it is too large, before a byte of it is read.

    Raises:
        TooLarge: it does.
    """
    declared = request.content_length
    if declared is not None and declared > limit:
        raise TooLarge(f"the body has {declared} bytes, this resource takes at most {limit}", limit=limit)


async def stream_body(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    """The body in pieces of about ``PIECE_BYTES``.

    Args:
        request: its body must not have been read.
        limit: in bytes.

    Raises:
        TooLarge: the body is longer.
        TooSlow: a piece took longer than ``body_timeout_s``, or the average rate is below the minimum.
        ClientGone: the connection ended, or the body is shorter than it said.
    """
    demand_size(request, limit)
    context = context_of(request)
    context.bodies.want(request)
    bounds = context.bounds
    loop = asyncio.get_running_loop()
    began = loop.time()
    received = 0
    pieces: list[bytes] = []
    held = 0
    while True:
        try:
            async with asyncio.timeout(bounds.body_timeout_s):
                piece = await request.content.readany()
        except TimeoutError:
            raise TooSlow(f"no byte of the body came for {bounds.body_timeout_s:g} s") from None
        except (ClientPayloadError, web.RequestPayloadError, ConnectionError) as error:
            raise ClientGone(str(error)) from error
        if not piece:
            break
        received += len(piece)
        context.metrics.received.inc(len(piece))
        if received > limit:
            raise TooLarge(f"the body is longer than the {limit} bytes that this resource takes", limit=limit)
        elapsed = loop.time() - began
        if elapsed > bounds.body_timeout_s and received < elapsed * bounds.body_rate_min_bytes_s:
            raise TooSlow(f"{received} bytes came in {elapsed:.0f} s: too slow")
        pieces.append(piece)
        held += len(piece)
        if held >= PIECE_BYTES:
            yield b"".join(pieces)
            pieces, held = [], 0
    if pieces:
        yield b"".join(pieces)


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        Overloaded, RateLimited: too many bytes of requests are held.
        TooSlow: it took longer than ``whole_body_timeout_s``.
        TooLarge, TooSlow, ClientGone: see :func:`stream_body`.
    """
    context = context_of(request)
    pieces: list[bytes] = []
    try:
        # LIMIT: what is held whole must not be held for an hour, however evenly it comes.
        async with asyncio.timeout(context.bounds.whole_body_timeout_s):
            async for piece in stream_body(request, limit):
                context.bodies.take(request, len(piece))
                pieces.append(piece)
    except TimeoutError:
        raise TooSlow(f"the body did not come within {context.bounds.whole_body_timeout_s:g} s") from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_json(request: web.Request, kind: type[T]) -> T:
    """The body as ``kind``.

    Raises:
        UnsupportedMediaType: not JSON.
        InvalidInput: not a ``kind``; an unknown field.
        TooLarge, TooSlow, ClientGone: see :func:`stream_body`.
    """
    demand_media_type(request, MEDIA_JSON)
    limit = min(JSON_BODY_MAX_BYTES, context_of(request).settings.limits.json_body_bytes)
    return decode_json(await read_body(request, limit), kind)


async def read_ids(request: web.Request, media: str, *, count_max: int, id_bytes: int = 32) -> bytes:
    """A body of 1 to ``count_max`` ids of ``id_bytes`` bytes each.

    Raises:
        UnsupportedMediaType: not ``media``.
        InvalidInput: no id, or not a whole number of them.
        TooLarge, TooSlow, ClientGone: see :func:`stream_body`.
    """
    demand_media_type(request, media)
    body = await read_body(request, count_max * id_bytes)
    if not body or len(body) % id_bytes:
        raise InvalidInput(f"expected a whole number of ids of {id_bytes} bytes, found {len(body)} bytes")
    return body


async def linger(request: web.Request) -> None:
    """After a refusal was sent: give the client a moment to read it, then let the connection be closed.

    Closing at once would make the kernel answer the bytes under way with a reset, and the client would lose the sentence
    that says what was wrong.  Draining everything would let it send gigabytes for nothing: so both are bounded.
    """
    drained = 0
    context = context_of(request)
    if context.lingering >= LINGERING_MAX:
        return  # in a crowd some see a broken connection instead of the sentence
    context.lingering += 1
    context.bodies.want(request)
    try:
        async with asyncio.timeout(context.bounds.linger_s):
            while drained < LINGER_BYTES and (piece := await request.content.readany()):
                drained += len(piece)
    except (TimeoutError, ClientPayloadError, web.RequestPayloadError, ConnectionError):
        pass
    finally:
        context.lingering -= 1
        # LIMIT: an error that refers to its request keeps it until the garbage collector comes by; not what it was sent, too.
        if request.transport is not None:
            request.transport.pause_reading()
        with contextlib.suppress(ClientPayloadError, web.RequestPayloadError, ConnectionError):
            request.content.read_nowait()
