"""Answers: JSON, immutable objects, streams that end in an abort when something is wrong.

Invariants: an answer with status 200 or 206 carries exactly the bytes that it promised, or its connection is aborted; a
reader that stops reading is given up after ``write_timeout_s``; no thread is held while a slow client is waited for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from casstore.limits import MIB
from casstore.wire import HEADER_NO_OP, HEADER_REPLAYED, MEDIA_JSON, Submitted, encode_json
from casstore_server.answers import COUNTED_MIN_BYTES
from casstore_server.conditional import ByteRange, Unsatisfiable, is_not_modified, select_range
from casstore_server.context import context_of
from casstore_server.descriptors import OpenPack

CACHE_IMMUTABLE: Final = "max-age=31536000, immutable"
CACHE_REVALIDATE: Final = "no-cache"
CACHE_NEVER: Final = "no-store"
_SENDFILE_BLOCK_BYTES: Final = MIB
_TLS_BLOCK_BYTES: Final = 256 * 1024


class ReaderStopped(ConnectionError):
    """The client has stopped to read; as good as gone."""


class Aborted(Exception):
    """The answer had begun when it turned out that it cannot be completed; the connection is closed."""


def respond_json(
    body: Any, *, status: int = 200, cache: str = CACHE_NEVER, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer with a record of :mod:`casstore.wire`."""
    response = web.Response(status=status, body=encode_json(body), content_type=MEDIA_JSON, headers=headers)
    response.headers["Cache-Control"] = cache
    return response


def respond_submitted(submitted: Submitted) -> web.Response:
    """Answer with what a logged act led to."""
    headers = {}
    if submitted.replayed:
        headers[HEADER_REPLAYED] = "true"
    if submitted.no_op:
        headers[HEADER_NO_OP] = "true"
    if len(submitted.pointers) == 1:
        headers["ETag"] = submitted.pointers[0].etag
    return respond_json(submitted, status=200 if submitted.replayed or submitted.no_op else 201, headers=headers)


def respond_bytes(
    request: web.Request, data: bytes, *, media: str, etag: str, cache: str = CACHE_IMMUTABLE
) -> web.Response:
    """Answer with an object that is small enough to be held: 200, 206, 304 or 416."""
    headers = {"ETag": etag, "Cache-Control": cache, "Accept-Ranges": "bytes"}
    if is_not_modified(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    selected = _select(request, len(data), etag)
    if isinstance(selected, Unsatisfiable):
        return _respond_unsatisfiable(len(data), headers)
    if selected is None:
        return web.Response(body=data, content_type=media, headers=headers)
    headers["Content-Range"] = _format_content_range(selected, len(data))
    body = data[selected.offset : selected.offset + selected.length]
    return web.Response(status=206, body=body, content_type=media, headers=headers)


def _select(request: web.Request, size: int, etag: str) -> ByteRange | Unsatisfiable | None:
    return select_range(
        request.headers.get("Range") if request.method in ("GET", "HEAD") else None,
        size=size,
        if_range=request.headers.get("If-Range"),
        etag=etag,
    )


def _format_content_range(selected: ByteRange, size: int) -> str:
    return f"bytes {selected.offset}-{selected.offset + selected.length - 1}/{size}"


def _respond_unsatisfiable(size: int, headers: Mapping[str, str]) -> web.Response:
    answer = {**headers, "Content-Range": f"bytes */{size}", "Cache-Control": CACHE_NEVER}
    return web.Response(status=416, reason=HTTPStatus(416).phrase, headers=answer)


@asynccontextmanager
async def _patience(request: web.Request) -> AsyncIterator[None]:
    """For one step of an answer: a reader that takes nothing of it for ``write_timeout_s`` is given up.

    Raises:
        ReaderStopped: it took nothing.
    """
    timeout_s = context_of(request).bounds.write_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise ReaderStopped(f"it read nothing for {timeout_s:g} s") from None


def abort(request: web.Request) -> None:
    """Cut the connection, so that the client sees a broken answer and not a short one."""
    if request.transport is not None:
        request.transport.abort()


async def prepare_ranged(
    request: web.Request, *, size: int, media: str, etag: str, cache: str = CACHE_IMMUTABLE
) -> tuple[web.StreamResponse, ByteRange | None]:
    """The head of an answer that will be streamed.

    Returns:
        the response, not yet sent, and the range to send; None if the head is the whole answer (304, 416).
    """
    headers = {"ETag": etag, "Cache-Control": cache, "Accept-Ranges": "bytes"}
    if is_not_modified(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers), None
    selected = _select(request, size, etag)
    if isinstance(selected, Unsatisfiable):
        return _respond_unsatisfiable(size, headers), None
    if selected is None:
        response, selected = web.StreamResponse(headers=headers), ByteRange(0, size)
    else:
        response = web.StreamResponse(status=206, headers=headers)
        response.headers["Content-Range"] = _format_content_range(selected, size)
    response.content_type = media
    response.content_length = selected.length
    return response, selected


async def send_whole(request: web.Request, whole: web.Response) -> web.StreamResponse:
    """Send an answer that lies in memory; a large one in pieces, so that a reader that stops is given up.

    Raises:
        Overloaded: too many bytes of answers wait for their readers; nothing was sent.
    """
    body = whole.body
    if not isinstance(body, bytes) or len(body) <= COUNTED_MIN_BYTES or request.method == "HEAD":
        return whole
    context = context_of(request)
    with context.answers.hold(len(body)):
        response = web.StreamResponse(status=whole.status, reason=whole.reason, headers=whole.headers)
        response.content_length = len(body)
        await response.prepare(request)
        for at in range(0, len(body), COUNTED_MIN_BYTES):
            async with _patience(request):
                await response.write(body[at : at + COUNTED_MIN_BYTES])
            context.metrics.sent.inc(min(COUNTED_MIN_BYTES, len(body) - at))
        await response.write_eof()
    return response


async def send_pieces(
    request: web.Request, response: web.StreamResponse, pieces: Iterator[bytes]
) -> web.StreamResponse:
    """Stream what a synchronous iterator gives, each step of it in a reader.

    The next step runs while the one before is being written.  An error before the first byte becomes a problem document;
    an error after it aborts the connection.

    Args:
        request: being answered.
        response: with its headers set; ``Content-Length`` too, where the size is known.
        pieces: the body; holds no transaction between its steps.
    """
    context = context_of(request)
    exhausted = object()

    def step() -> bytes | object:
        return next(pieces, exhausted)

    piece = await context.bridge.read(step)  # raises before the head is sent: a problem, not a broken answer
    if isinstance(piece, bytes):
        context.answers.demand_room(2 * len(piece))
    await response.prepare(request)
    if request.method == "HEAD":
        await response.write_eof()
        return response
    sent = 0
    while isinstance(piece, bytes):
        following = context.bridge.readers.start(step)
        try:
            # Twice: the next piece is being made meanwhile.
            with context.answers.hold(2 * len(piece)):
                async with _patience(request):
                    await response.write(piece)
        finally:
            # ORDER: a generator must not be stepped or closed while another thread is inside it.
            results = await asyncio.gather(following, return_exceptions=True)
        sent += len(piece)
        context.metrics.sent.inc(len(piece))
        if isinstance(results[0], BaseException):
            raise results[0]
        piece = results[0]
    if response.content_length is not None and sent != response.content_length:
        raise Aborted(f"{response.content_length} bytes were promised, {sent} are there")
    await response.write_eof()
    return response


async def send_pack(request: web.Request, opened: OpenPack, *, media: str, etag: str) -> web.StreamResponse:
    """Answer with a pack or a range of it, by ``sendfile`` where the connection is plain."""
    context = context_of(request)
    with opened:
        response, selected = await prepare_ranged(request, size=opened.size, media=media, etag=etag)
        if selected is None:
            return response
        await response.prepare(request)
        if request.method != "HEAD":
            plain = request.transport is not None and request.transport.get_extra_info("sslcontext") is None
            send = _sendfile if plain else _send_blocks
            async for count in send(request, response, opened, selected):
                context.metrics.sent.inc(count)
        await response.write_eof()
    return response


async def _sendfile(
    request: web.Request, response: web.StreamResponse, opened: OpenPack, selected: ByteRange
) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    at, end = selected.offset, selected.offset + selected.length
    # The kernel begins to read what is not in memory, so that sendfile finds it there.
    os.posix_fadvise(opened.file.fileno(), at, selected.length, os.POSIX_FADV_WILLNEED)
    while at < end:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        # LIMIT: in blocks, so that the timeout measures progress and not the whole answer.
        async with _patience(request):
            count = await loop.sendfile(
                transport, opened.file, at, min(_SENDFILE_BLOCK_BYTES, end - at), fallback=False
            )
        if not count:
            raise Aborted(f"the pack ends at {at}, {end} was promised")
        at += count
        yield count


async def _send_blocks(
    request: web.Request, response: web.StreamResponse, opened: OpenPack, selected: ByteRange
) -> AsyncIterator[int]:
    context = context_of(request)
    at, end = selected.offset, selected.offset + selected.length
    while at < end:
        block = await context.bridge.read(os.pread, opened.file.fileno(), min(_TLS_BLOCK_BYTES, end - at), at)
        if not block:
            raise Aborted(f"the pack ends at {at}, {end} was promised")
        async with _patience(request):
            await response.write(block)
        at += len(block)
        yield len(block)
