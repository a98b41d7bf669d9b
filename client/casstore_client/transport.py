"""HTTP, as the rest of the client sees it: a request goes out, a checked answer or a typed error comes back.

Owns the one aiohttp session, the bearer token, retries, timeouts and the counting of requests.  Knows no route.

Invariants:

* A body is read with a bound, its media type is checked before it is read, and one that is shorter or longer than its
  ``Content-Length`` is an error: a caller never sees part of a body as a whole one.
* A problem document becomes the error that the server raised.  No answer at all is a ``TransportError``; an answer that no
  casstore server gives is a ``ProtocolError``.
* Only what may be repeated is repeated: requests marked ``repeatable``, on a broken connection or where the server says
  that it is overloaded, a bounded number of times, with a random pause that grows.

Redirects are not followed: the token belongs to one host.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from casstore import __version__
from casstore.errors import (
    CasstoreError,
    ConfigurationError,
    InvalidInput,
    MalformedDocument,
    RequestInProgress,
    TooLarge,
    Unavailable,
    from_code,
)
from casstore.limits import JSON_BODY_MAX_BYTES, MIB
from casstore.wire import HEADER_REQUEST_ID, MEDIA_JSON, MEDIA_PROBLEM, decode_json, encode_json
from casstore_client.errors import ProtocolError, TransportError

ATTEMPTS_MAX: Final = 5
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 10.0  # LIMIT: also of a Retry-After that the server names
CONNECT_TIMEOUT_S: Final = 10.0
PROBLEM_MAX_BYTES: Final = MIB
ANSWER_MAX_BYTES: Final = 4 * JSON_BODY_MAX_BYTES
_READ_BYTES: Final = 512 * 1024
_GATEWAY_STATUSES: Final = frozenset({502, 503, 504})
_PROBLEM_MEMBERS: Final = frozenset({"type", "title", "status", "detail", "code", "hint", "request_id", "instance"})

_T = TypeVar("_T")
Body: TypeAlias = bytes | Sequence[bytes] | None
"""A request's body; a sequence is sent piece by piece."""


class Stats:
    """What a client has exchanged since it was made.

    ``requests`` counts by step, as the SDK's methods name them; ``bytes_sent`` and ``bytes_received`` count bodies, as they
    were on the wire.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.retries = 0
        self.bytes_sent = 0
        self.bytes_received = 0

    @property
    def transferred(self) -> int:
        """Bytes of bodies in both directions."""
        return self.bytes_sent + self.bytes_received


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """One server, one session.

    Args:
        url: ``http://`` or ``https://`` and host; a path is kept as a prefix.
        token: bearer token, or None.
        ca: file with the certificates to trust for ``https``, or None for the system's.
        timeout_s: longest silence in the middle of an answer, in seconds.

    Raises:
        ConfigurationError: not such a URL, or ``ca`` cannot be read.
    """

    def __init__(self, url: str, *, token: str | None = None, ca: str | None = None, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(f"{url!r} is not a URL such as http://127.0.0.1:7433")
        if token is not None and (not token.isascii() or not token.isprintable()):
            raise ConfigurationError("the token has characters that no token has")
        self.url = url.rstrip("/")
        self.stats = Stats()
        self._token = token
        self._timeout_s = timeout_s
        self._ssl = _trust(ca) if parts.scheme == "https" else None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- whole answers -----------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        step: str,
        media: str = MEDIA_JSON,
        params: Mapping[str, str] | None = None,
        body: Body = None,
        body_media: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = ANSWER_MAX_BYTES,
        repeatable: bool | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """Ask, and read the whole answer.

        Args:
            method: GET, POST, ….
            path: begins with a slash, quoted as it must be (see :func:`quote_segment`).
            step: the name under which it is counted.
            media: the media type that the answer must have.
            params: the query.
            body: what to send.
            body_media: its media type.
            headers: more headers.
            max_bytes: bound of the answer.
            repeatable: whether it may be sent again when nothing is known of its outcome; None: if it is a GET.
            timeout_s: longest silence, where the default is too short.

        Raises:
            TransportError: no answer, after retries.
            ProtocolError: an answer of another media type, size or form.
            CasstoreError: what the server refused, as the class that it raised.
        """

        async def once() -> Reply:
            async with self._open(
                method,
                path,
                step=step,
                params=params,
                body=body,
                body_media=body_media,
                headers=headers,
                timeout_s=timeout_s,
            ) as answer:
                _check_media(answer, media)
                return Reply(answer.status, answer.headers, await self._read(answer, max_bytes))

        return await self.repeat(once, method == "GET" if repeatable is None else repeatable)

    async def get_json(
        self,
        path: str,
        kind: type[_T],
        *,
        step: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _T:
        """GET a JSON document as ``kind``.

        Raises:
            As :meth:`request`.
        """
        return decode_answer(await self.request("GET", path, step=step, params=params, headers=headers), kind)

    async def send_json(
        self,
        method: str,
        path: str,
        document: Any,
        kind: type[_T],
        *,
        step: str,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
        timeout_s: float | None = None,
    ) -> _T:
        """Send a JSON document, read the answer as ``kind``.

        Raises:
            As :meth:`request`.
        """
        reply = await self.request(
            method,
            path,
            step=step,
            body=encode_json(document),
            body_media=MEDIA_JSON,
            headers=headers,
            repeatable=repeatable,
            timeout_s=timeout_s,
        )
        return decode_answer(reply, kind)

    # --- parts and streams -------------------------------------------------------------------------------------------

    async def read_range(self, path: str, start: int, end: int, *, step: str, media: str) -> bytes:
        """GET bytes ``start`` to ``end`` (exclusive) of an immutable object.

        Raises:
            As :meth:`request`; also ProtocolError if other bytes come than those asked for.
        """

        async def once() -> bytes:
            headers = {"Range": f"bytes={start}-{end - 1}"}
            async with self._open("GET", path, step=step, headers=headers) as answer:
                _check_media(answer, media)
                found = answer.headers.get("Content-Range", "")
                if answer.status != 206 or found.partition("/")[0] != f"bytes {start}-{end - 1}":
                    raise ProtocolError(
                        f"asked for bytes {start}-{end - 1} of {path}, got {answer.status} {found[:60]!r}"
                    )
                data = await self._read(answer, end - start)
                if len(data) != end - start:
                    raise ProtocolError(f"asked for {end - start} bytes of {path}, got {len(data)}")
                return data

        return await self.repeat(once, True)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, step: str, media: str, body: Body = None, body_media: str | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Ask, and read the answer piece by piece; not retried here.

        Raises:
            As :meth:`request`; errors of the connection also while iterating.
        """
        async with self._open(method, path, step=step, body=body, body_media=body_media) as answer:
            _check_media(answer, media)
            yield self._pieces(answer)

    async def repeat(self, once: Callable[[], Awaitable[_T]], repeatable: bool) -> _T:
        """Call ``once``; where that may be, again after a broken connection or where the server asks for patience.

        Args:
            once: does it all, from the request to the checked answer.
            repeatable: whether doing it twice is as good as once.

        Raises:
            What ``once`` raised last.
        """
        for attempt in range(ATTEMPTS_MAX):
            try:
                return await once()
            except (TransportError, Unavailable, RequestInProgress) as error:
                # An Unavailable has changed nothing, so even what is not repeatable may be asked again.  A request in
                # progress is our own, on a connection of which the server has not seen yet that it is broken.
                may = error.retryable and (repeatable or isinstance(error, Unavailable))
                if not may or attempt == ATTEMPTS_MAX - 1:
                    raise
                self.stats.retries += 1
                asked = getattr(error, "retry_after_s", None) or 0
                pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 4**attempt)
            await asyncio.sleep(min(PAUSE_MAX_S, asked) + random.uniform(0, pause_s))  # noqa: S311 (spreads load, no secret)
        raise AssertionError("the last attempt returns or raises")

    # --- inside ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        step: str,
        params: Mapping[str, str] | None = None,
        body: Body = None,
        body_media: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; gives the answer with its body unread, if it is a success."""
        session = self._session
        if session is None:
            session = self._session = self._make_session()
        query = f"?{urlencode(params)}" if params else ""
        sent = dict(headers or {})
        if body_media is not None:
            sent["Content-Type"] = body_media
        size = 0 if body is None else len(body) if isinstance(body, bytes) else sum(map(len, body))
        if body is not None:
            sent["Content-Length"] = str(size)
        self.stats.requests[step] += 1
        try:
            async with session.request(
                method,
                URL(f"{self.url}{path}{query}", encoded=True),
                data=None if body is None else _send(body),
                headers=sent,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s or self._timeout_s
                ),
            ) as answer:
                self.stats.bytes_sent += size
                if answer.status not in (200, 201, 204, 206, 304):
                    raise await self._problem(answer)
                yield answer
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, TimeoutError, ConnectionError) as error:
            raise TransportError(f"{method} {self.url}{path}: {_say(error)}") from error
        except aiohttp.ClientError as error:
            raise ProtocolError(f"{method} {self.url}{path}: not an answer that can be read: {_say(error)}") from error

    def _make_session(self) -> aiohttp.ClientSession:
        headers = {"User-Agent": f"casstore/{__version__}", "Accept-Encoding": "identity"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=32, ssl=self._ssl if self._ssl is not None else True),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
        )

    async def _problem(self, answer: aiohttp.ClientResponse) -> CasstoreError:
        """The error that a refusal stands for."""
        what = f"{answer.method} {answer.url.path}"
        retry_after = answer.headers.get("Retry-After", "")
        retry_after_s = int(retry_after) if retry_after.isdecimal() and len(retry_after) < 7 else None
        if answer.content_type != MEDIA_PROBLEM:
            if answer.status in _GATEWAY_STATUSES:
                return Unavailable(
                    f"{what}: {answer.status} from something in front of the server", retry_after_s=retry_after_s
                )
            return ProtocolError(
                f"{what}: {answer.status} {answer.content_type}, which no casstore server answers",
                hint="is the URL right?",
            )
        body = await self._read(answer, PROBLEM_MAX_BYTES)
        try:
            document = msgspec.json.decode(body, type=dict[str, Any])
            code, detail, hint = document["code"], document["detail"], document.get("hint")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError) as error:
            return ProtocolError(f"{what}: {answer.status} with a problem document that cannot be read: {error}")
        if not isinstance(code, str) or not isinstance(detail, str) or not isinstance(hint, str | None):
            return ProtocolError(f"{what}: {answer.status} with a problem document that is none")
        fields = {name: value for name, value in document.items() if name not in _PROBLEM_MEMBERS}
        if retry_after_s is not None:
            fields.setdefault("retry_after_s", retry_after_s)
        refusal = from_code(code, detail, hint=hint, fields=fields)
        request_id = document.get("request_id") or answer.headers.get(HEADER_REQUEST_ID)
        if request_id:
            refusal.add_note(f"request {str(request_id)[:80]}")
        return refusal

    async def _read(self, answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        if answer.content_length is not None and answer.content_length > max_bytes:
            raise ProtocolError(
                f"{answer.url.path}: an answer of {answer.content_length} bytes, expected at most {max_bytes}"
            )
        pieces: list[bytes] = []
        size = 0
        async for piece in self._pieces(answer):
            size += len(piece)
            if size > max_bytes:
                raise ProtocolError(f"{answer.url.path}: an answer of more than {max_bytes} bytes")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _pieces(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body as it comes.  TRUST: aiohttp raises ClientPayloadError for one that ends early; held here once more."""
        size = 0
        async for piece in answer.content.iter_any():
            size += len(piece)
            self.stats.bytes_received += len(piece)
            yield piece
        declared = answer.content_length
        if declared is not None and declared != size:
            raise TransportError(f"{answer.url.path}: the body has {size} bytes, {declared} were declared")


async def _send(body: bytes | Sequence[bytes]) -> AsyncIterator[bytes]:
    """The body in pieces that do not keep the loop for long."""
    for piece in (body,) if isinstance(body, bytes) else body:
        if len(piece) <= MIB:
            yield piece
        else:
            for at in range(0, len(piece), MIB):
                yield piece[at : at + MIB]


def decode_answer(reply: Reply, kind: type[_T]) -> _T:
    """Read a JSON answer as ``kind``.

    Raises:
        ProtocolError: it is not one.
    """
    try:
        return decode_json(reply.body, kind)
    except (InvalidInput, MalformedDocument, TooLarge) as error:
        raise ProtocolError(f"the server's answer cannot be read: {error.detail}") from error


def quote_segment(text: str) -> str:
    """One segment of a path, quoted; the colon of a digest stays."""
    return quote(text, safe=":")


def _check_media(answer: aiohttp.ClientResponse, media: str) -> None:
    if answer.status in (204, 304):
        return
    if answer.content_type != media or "Content-Encoding" in answer.headers:
        encoding = answer.headers.get("Content-Encoding", "identity")
        raise ProtocolError(
            f"{answer.url.path}: expected {media}, got {answer.content_type} ({encoding[:40]})",
            hint="is the URL right?",
        )


def _trust(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"the certificates in {ca} cannot be read: {error}") from error


def _say(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the certificate of {error.host}:{error.port} is not trusted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"{error.host}:{error.port} does not speak TLS as it should: {error.os_error.strerror or error.os_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        code = error.os_error.errno
        # What the event loop says of a refused connection repeats the address; the number says it in words.
        why = os.strerror(code) if code is not None and code > 0 else error.os_error.strerror or str(error.os_error)
        return f"no connection to {error.host}:{error.port}: {why}"
    return str(error) or type(error).__name__
