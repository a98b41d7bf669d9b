"""Whether the process lives, and whether it can serve.

``/livez`` says that the event loop turns; ``/readyz`` that the store is open, not sealed, and that the server does not drain.
Both are anonymous and say nothing else.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from casstore.errors import Unavailable
from casstore_server.context import context_of


async def live(_: web.Request) -> web.Response:
    """``GET /livez``"""
    return web.Response(text="live\n", headers={"Cache-Control": "no-store"})


async def ready(request: web.Request) -> web.Response:
    """``GET /readyz``

    Raises:
        Unavailable: the server drains, or the store is sealed.
        Overloaded: the readers' queue is full.
    """
    context = context_of(request)
    if not context.ready:
        raise Unavailable("the server is stopping")
    if context.bridge.sealed.is_set():
        raise Unavailable("the store is sealed until it is opened again")
    context.bridge.readers.demand_room()
    return web.Response(text="ready\n", headers={"Cache-Control": "no-store"})


ROUTES: Final = (web.get("/livez", live), web.get("/readyz", ready))
