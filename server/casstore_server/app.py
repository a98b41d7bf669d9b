"""The application: every route, and the middleware around them.

The one list of what this server answers; ``docs/openapi.yaml`` says the same for people, and a test holds the two together.
"""

from __future__ import annotations

from aiohttp import web

from casstore_server.context import CONTEXT, Context
from casstore_server.gate import watching
from casstore_server.middleware import around, mark_response
from casstore_server.routes import care, collection, content, health, log, operate, pointers, snapshots, upkeep


def build_app(context: Context) -> web.Application:
    """Put the application together.

    Args:
        context: the parts that routes reach.
    """
    # LIMIT: bodies are read by casstore_server.bodies, which has its own bounds; this one is never met.
    app = web.Application(middlewares=[watching(context.gate), around], client_max_size=0)
    app[CONTEXT] = context
    app.on_response_prepare.append(mark_response)
    for module in (content, snapshots, pointers, log, operate, care, upkeep, collection, health):
        app.add_routes(module.ROUTES)
    return app
