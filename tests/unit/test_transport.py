"""HTTP from the client's side: whatever a server, a proxy or a cable does, there is a whole answer or a typed error.

The servers here are scripts over real sockets: they say byte for byte what they are told to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from casstore.errors import CasstoreError, ConfigurationError, Overloaded, PreconditionFailed, TreeNotFound, Unavailable
from casstore.wire import MEDIA_PACK, Answer
from casstore_client import transport as transport_module
from casstore_client.errors import ProtocolError, TransportError
from casstore_client.transport import ATTEMPTS_MAX, Transport, quote_segment

OCTETS = "application/octet-stream"


class Greeting(Answer, frozen=True, kw_only=True):
    hello: str


class Script:
    """A server that answers each request with the next line of its script, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.asked: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
            )
            self.asked.append(head + await reader.readexactly(size))
            writer.write(self.answers.pop(0) if self.answers else b"")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    script = Script()
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield script
    server.close()
    await server.wait_closed()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "PAUSE_FIRST_S", 0.001)


def answer(status: str, body: bytes, media: str = "application/json", **headers: str) -> bytes:
    fields = {"Content-Type": media, "Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return head.encode() + b"\r\n" + body


def problem(status: str, code: str, **members: Any) -> bytes:
    retry_after = str(members.pop("retry_after", ""))
    body = {
        "type": "about:blank",
        "title": "t",
        "status": int(status[:3]),
        "detail": "a sentence",
        "code": code,
        **members,
    }
    return answer(status, json.dumps(body).encode(), "application/problem+json", Retry_After=retry_after)


async def ask(script: Script, **options: Any) -> bytes:
    async with Transport(script.url, token="secret-token") as transport:
        return (await transport.request("GET", "/x", step="x", **options)).body


async def test_a_whole_answer(script: Script) -> None:
    script.answers = [answer("200 OK", b'{"hello": "you", "new": 1}')]
    async with Transport(script.url, token="secret-token") as transport:
        assert (await transport.get_json("/v1/x", Greeting, step="greet", params={"a": "b c"})).hello == "you"
        assert transport.stats.requests == {"greet": 1}
        assert transport.stats.bytes_received == 26
    assert script.asked[0].startswith(b"GET /v1/x?a=b+c HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret-token\r\n" in script.asked[0]


async def test_a_problem_is_the_error_that_the_server_raised(script: Script) -> None:
    current = {"flip": 7}
    script.answers = [
        problem(
            "412 Precondition Failed",
            "precondition-failed",
            expected="f6",
            current=current,
            hint="look",
            request_id="r1",
            x=1,
        )
    ]
    with pytest.raises(PreconditionFailed, match="a sentence") as caught:
        await ask(script)
    assert (caught.value.expected, caught.value.current, caught.value.hint) == ("f6", current, "look")
    assert caught.value.__notes__ == ["request r1"]


async def test_an_unknown_code_is_still_an_error_of_ours(script: Script) -> None:
    script.answers = [problem("418 Teapot", "from-the-future")]
    with pytest.raises(CasstoreError, match="a sentence") as caught:
        await ask(script)
    assert type(caught.value) is CasstoreError


@pytest.mark.parametrize(
    "said",
    [
        answer("200 OK", b"<html>", "text/html"),
        answer("200 OK", b"{}", Content_Encoding="gzip"),
        answer("404 Not Found", b"<html>", "text/html"),
        answer("302 Found", b"", Location="http://127.0.0.1:1/"),
        answer("500 Oops", b"{", "application/problem+json"),
        answer("500 Oops", b'{"code": 1, "detail": "x"}', "application/problem+json"),
        answer("500 Oops", b"[" * 100_000, "application/problem+json"),
        answer("200 OK", b"x" * 5000),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n"
        + b"x" * 5000
        + b"\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    ],
)
async def test_an_answer_that_no_casstore_server_gives(script: Script, said: bytes) -> None:
    script.answers = [said] * ATTEMPTS_MAX
    with pytest.raises(ProtocolError):
        await ask(script, max_bytes=4096)
    assert len(script.asked) == 1, "asking again would change nothing"


async def test_an_answer_that_is_not_the_document(script: Script) -> None:
    script.answers = [answer("200 OK", b'{"hello": 5}')]
    async with Transport(script.url) as transport:
        with pytest.raises(ProtocolError, match="cannot be read"):
            await transport.get_json("/x", Greeting, step="x")


CUT_SHORT = answer("200 OK", b"1234567890", OCTETS).replace(b"Content-Length: 10", b"Content-Length: 11")


@pytest.mark.parametrize("broken", [b"", CUT_SHORT, b"HTTP/1.1 200 OK\r\nContent-Type: app"])
async def test_a_broken_connection_is_tried_again_where_that_is_safe(script: Script, broken: bytes) -> None:
    """Never a short body in place of a whole one."""
    script.answers = [broken, broken, answer("200 OK", b"whole", OCTETS)]
    assert await ask(script, media=OCTETS) == b"whole"
    assert len(script.asked) == 3


@pytest.mark.parametrize("broken", [b"", CUT_SHORT])
async def test_a_broken_connection_is_not_tried_again_where_it_is_not(script: Script, broken: bytes) -> None:
    script.answers = [broken, answer("200 OK", b"whole", OCTETS)]
    async with Transport(script.url) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.request("POST", "/x", step="x", media=OCTETS, body=b"once", body_media=OCTETS)
    assert len(script.asked) == 1
    assert caught.value.retryable


async def test_it_gives_up(script: Script) -> None:
    with pytest.raises(TransportError):
        await ask(script)
    # aiohttp repeats a GET once by itself when the connection closes without an answer.
    assert ATTEMPTS_MAX <= len(script.asked) <= 2 * ATTEMPTS_MAX


async def test_nobody_listens() -> None:
    async with Transport("http://127.0.0.1:1") as transport:
        with pytest.raises(TransportError, match=r": no connection to 127\.0\.0\.1:1: Connection refused$"):
            await transport.request("GET", "/x", step="x")
        assert transport.stats.retries == ATTEMPTS_MAX - 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_overloaded_server_is_asked_again(script: Script, method: str) -> None:
    """It has done nothing yet, so even what must not be repeated blindly may be."""
    busy = problem("503 Service Unavailable", "overloaded", retry_after=0)
    proxy = answer("502 Bad Gateway", b"<html>", "text/html", Retry_After="0")
    script.answers = [busy, proxy, problem("429 Slow Down", "rate-limited"), answer("200 OK", b"whole", OCTETS)]
    async with Transport(script.url) as transport:
        assert (await transport.request(method, "/x", step="x", media=OCTETS)).body == b"whole"
        assert transport.stats.retries == 3


async def test_patience_ends(script: Script) -> None:
    script.answers = [problem("503 Service Unavailable", "overloaded", retry_after=0)] * ATTEMPTS_MAX
    with pytest.raises(Overloaded) as caught:
        await ask(script)
    assert isinstance(caught.value, Unavailable)
    assert len(script.asked) == ATTEMPTS_MAX


async def test_what_is_refused_is_not_asked_again(script: Script) -> None:
    script.answers = [problem("404 Not Found", "tree-not-found")]
    with pytest.raises(TreeNotFound):
        await ask(script)
    assert len(script.asked) == 1


async def test_silence_ends(script: Script) -> None:
    silent = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Transport(url, timeout_s=0.05) as transport:
        with pytest.raises(TransportError, match="no answer in time"):
            await transport.request("POST", "/x", step="x")
    silent.set()
    server.close()
    await server.wait_closed()


# --- ranges, bodies --------------------------------------------------------------------------------------------------


def partial(body: bytes, said: str) -> bytes:
    return answer("206 Partial Content", body, MEDIA_PACK, Content_Range=said)


async def read_range(script: Script) -> bytes:
    async with Transport(script.url) as transport:
        return await transport.read_range("/p", 10, 14, step="ranges", media=MEDIA_PACK)


async def test_a_range(script: Script) -> None:
    script.answers = [partial(b"abcd", "bytes 10-13/100")]
    assert await read_range(script) == b"abcd"
    assert b"Range: bytes=10-13\r\n" in script.asked[0]


@pytest.mark.parametrize(
    "said",
    [
        answer("200 OK", b"abcd", MEDIA_PACK),
        partial(b"abcd", "bytes 10-14/100"),
        partial(b"abcd", "bytes 0-3/100"),
        partial(b"abc", "bytes 10-13/100"),
        partial(b"abcde", "bytes 10-13/100"),
        partial(b"abcd", ""),
    ],
)
async def test_other_bytes_than_those_asked_for(script: Script, said: bytes) -> None:
    script.answers = [said]
    with pytest.raises(ProtocolError):
        await read_range(script)


async def test_a_body_in_pieces_has_a_length(script: Script) -> None:
    """With a length the server sees at once when a body is cut short."""
    script.answers = [b"", answer("200 OK", b"", OCTETS)]
    pieces = [b"one", b"x" * 3_000_000, b"three"]
    async with Transport(script.url) as transport:
        await transport.request(
            "POST", "/x", step="x", media=OCTETS, body=pieces, body_media=MEDIA_PACK, repeatable=True
        )
        assert transport.stats.bytes_sent >= 3_000_008
    for asked in script.asked:
        head, _, body = asked.partition(b"\r\n\r\n")
        assert b"Content-Length: 3000008" in head
        assert b"chunked" not in head
        assert body == b"".join(pieces)


async def test_a_stream_that_breaks_is_an_error(script: Script) -> None:
    script.answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    ]
    got: list[bytes] = []

    async def read() -> None:
        async with Transport(script.url) as transport, transport.stream("POST", "/x", step="x", media=OCTETS) as pieces:
            async for piece in pieces:
                got.append(piece)

    with pytest.raises(TransportError):
        await read()
    assert got == [b"first"]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "127.0.0.1:7433", "ftp://host", "http://", "http://host?x=1", "http://host#x"])
async def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Transport(url)


async def test_a_token_that_would_break_the_header() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Transport("http://host", token="a\r\nEvil: 1")
    assert "Evil" not in str(caught.value)


async def test_certificates_that_are_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"/no/such\.pem"):
        Transport("https://host", ca="/no/such.pem")


def test_a_segment_is_quoted() -> None:
    assert quote_segment("a/b c?") == "a%2Fb%20c%3F"
    assert quote_segment("blake3:00") == "blake3:00"


async def test_closing_twice() -> None:
    transport = Transport("http://127.0.0.1:1")
    await transport.close()
    await transport.close()
