"""Whether the process lives, and whether it can serve.

``/livez`` says that the event loop turns; ``/readyz`` that the store is open, not sealed, and that the server does not drain.
Both are anonymous and say nothing else, but that the disk is full.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from casstore.errors import Unavailable
from casstore_server.context import context_of

_NEVER: Final = {"Cache-Control": "no-store"}


async def live(_: web.Request) -> web.Response:
    """``GET /livez``"""
    return web.Response(text="live\n", headers=_NEVER)


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
    if context.disk.trouble is not None:
        # Ready all the same: pulls, flips and rollbacks go on, and a server that is taken out of service helps nobody.
        return web.Response(text=f"ready, but pushes are refused: {context.disk.trouble}\n", headers=_NEVER)
    return web.Response(text="ready\n", headers=_NEVER)


ROUTES: Final = (web.get("/livez", live), web.get("/readyz", ready))
