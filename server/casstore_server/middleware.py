"""Around every request: an id, a log line, metrics, and errors turned into problem documents.

One of the two places where every exception is caught (the other is the command line's main): whatever happens, the client
gets a problem document or a cut connection, never a traceback and never a short answer that looks whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
import traceback
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from casstore.errors import CasstoreError, InvalidInput, MethodNotAllowed, RouteNotFound, TooLarge
from casstore.wire import HEADER_REQUEST_ID
from casstore_server.bodies import ClientGone, linger
from casstore_server.context import PRINCIPAL, REQUEST_ID, context_of
from casstore_server.errors import TooSlow, respond_problem, status_of
from casstore_server.gate import CONNECTION, LIVE
from casstore_server.responses import abort, send_whole

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_URGENT: Final = ("/v1/flips", "/v1/pointers/")
"""What moves a pointer: before all who only look."""
STARTED: Final = web.RequestKey("casstore.started", bool)
STATUS_CUT: Final = 499
"""What logs and metrics show for a request whose connection was cut or lost before its answer was whole."""


@web.middleware
async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
    """See the module."""
    context = context_of(request)
    began = time.perf_counter()
    asked_id = request.headers.get(HEADER_REQUEST_ID, "")
    request[REQUEST_ID] = asked_id if _REQUEST_ID.match(asked_id) else os.urandom(8).hex()
    outcome = _Outcome()
    try:
        return await _answer(request, handler, outcome)
    finally:
        context.bodies.give_back(request)
        seconds = time.perf_counter() - began
        route, method = _route_of(request), request.method if request.method in _METHODS else "OTHER"
        context.metrics.requests.labels(method, route, str(outcome.status)).inc()
        context.metrics.seconds.labels(method, route).observe(seconds)
        line = {
            "method": method,
            "route": route,
            "path": request.path,
            "status": outcome.status,
            "duration_ms": round(seconds * 1000, 2),
            "request_id": request[REQUEST_ID],
            "traceparent": _traceparent_of(request),
            "principal": request.get(PRINCIPAL),
            "code": outcome.code,
            "error": outcome.error,
            "exception": outcome.fault,
        }
        write = context.log.error if outcome.fault else context.log.info
        write("request", **{name: value for name, value in line.items() if value is not None})


@dataclass(slots=True)
class _Outcome:
    """What the log will say."""

    status: int = STATUS_CUT
    code: str | None = None
    error: str | None = None
    fault: str | None = None
    """A traceback: something that must not happen did."""


async def _answer(request: web.Request, handler: Handler, outcome: _Outcome) -> web.StreamResponse:
    context = context_of(request)
    try:
        if request.path != LIVE:
            if context.gate.must_refuse(request.get(CONNECTION)):
                raise context.gate.refuse()
            context.bodies.arrive(request)
            await context.turnstile.enter(urgent=request.method in ("POST", "PUT") and request.path.startswith(_URGENT))
        response = await handler(request)
        if isinstance(response, web.Response):
            response = await send_whole(request, response)
    except (ConnectionError, ClientGone) as error:
        outcome.error = f"the client is gone: {error}"
        return _cut(request)
    except asyncio.CancelledError:
        outcome.error = "cancelled"
        raise
    except web.HTTPException as error:
        response = _refuse(request, _translate(error), error.status, outcome)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except CasstoreError as error:
        if status_of(error) == 500:  # the others are states of the store or of the disk, which have an end
            outcome.fault = traceback.format_exc()
        response = _refuse(request, error, None, outcome)
    except TooSlow as error:
        response = _refuse(request, InvalidInput(str(error), hint="try again"), 408, outcome)
    except Exception as error:  # noqa: BLE001  (the last line of defence: a sentence for the client, the traceback for us)
        outcome.fault = traceback.format_exc()
        internal = CasstoreError(
            "the server failed at this request; the reason is in its log under the request id",
            hint=f"request id {request[REQUEST_ID]}",
        )
        response = _refuse(request, internal, 500, outcome)
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.status = response.status
    if isinstance(response, web.Response) and isinstance(response.body, bytes):
        context_of(request).metrics.sent.inc(len(response.body))
    return await _finish_upload(request, response)


def _cut(request: web.Request) -> web.Response:
    """End the connection without an answer.  What is returned is never sent: aiohttp finds the transport closed."""
    abort(request)
    response = web.Response(status=STATUS_CUT)
    response.force_close()
    return response


def _refuse(request: web.Request, error: CasstoreError, status: int | None, outcome: _Outcome) -> web.Response:
    """A problem document, or a cut connection if the answer had begun."""
    outcome.code, outcome.error = error.code, error.detail
    if request.get(STARTED):
        # CRASH: the client has a head that promises bytes that will not come; only a broken connection says so.
        return _cut(request)
    return respond_problem(error, request_id=request[REQUEST_ID], status=status)


async def _finish_upload(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """If the body was not read to its end, answer, linger a moment and close: gigabytes are not drained."""
    if request.content.is_eof() or response.prepared or response.status == STATUS_CUT:
        return response
    response.force_close()
    # Who is gone cannot read why; its connection has ended by itself.
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write_eof()
        await linger(request)
    return response


def _translate(error: web.HTTPException) -> CasstoreError:
    if error.status == 404:
        return RouteNotFound("there is no such resource", hint="docs/openapi.yaml lists them all")
    if error.status == 405:
        return MethodNotAllowed(
            f"this resource does not know that method; it knows {error.headers.get('Allow', 'none')}"
        )
    if error.status == 413:
        return TooLarge("the request is too large")
    return InvalidInput(error.text or error.reason)


def _route_of(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical


def _traceparent_of(request: web.Request) -> str | None:
    value = request.headers.get("traceparent", "")
    return value if _TRACEPARENT.match(value) else None


async def mark_response(request: web.Request, response: web.StreamResponse) -> None:
    """Runs when the head of an answer is about to be sent."""
    request[STARTED] = True
    if REQUEST_ID in request:
        response.headers[HEADER_REQUEST_ID] = request[REQUEST_ID]
    traceparent = _traceparent_of(request)
    if traceparent is not None:
        response.headers["traceparent"] = traceparent
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "casstore"
