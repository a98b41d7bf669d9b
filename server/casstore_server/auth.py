"""Who is asking, and whether that one may.

Owns the reading of the ``Authorization`` header; what a token is and what a permission covers belongs to
:mod:`casstore.engine.tokens`.

Source: RFC 6750 (bearer tokens)
"""

from __future__ import annotations

from aiohttp import web

from casstore.engine.tokens import Identity, demand_permission, permits
from casstore.errors import Unauthenticated
from casstore_server.context import PRINCIPAL, context_of
from casstore_server.shares import ANYONE, ASKING

_TOKEN_TEXT_MAX = 256


async def identify(request: web.Request) -> Identity:
    """Find out who is asking.

    Raises:
        Unauthenticated: no token, another scheme, or a token that is unknown, wrong or expired.
    """
    header = request.headers.get("Authorization")
    if header is None:
        raise Unauthenticated(
            "this needs a bearer token", hint="set CASSTORE_TOKEN_FILE, or send Authorization: Bearer cas_…"
        )
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer" or len(text) > _TOKEN_TEXT_MAX:
        raise Unauthenticated("the Authorization header is not of the form: Bearer <token>")
    context = context_of(request)
    identity = await context.bridge.read(context.store.tokens.authenticate, text.strip())
    request[PRINCIPAL] = identity.principal
    ASKING.set(identity.principal)
    return identity


async def demand(request: web.Request, verb: str, pointer: str | None = None) -> Identity:
    """Find out who is asking and refuse those who may not.

    Args:
        request: carries the token.
        verb: the permission's verb, such as ``content:push`` or ``flip``.
        pointer: the pointer that the permission's scope must cover.

    Raises:
        Unauthenticated: see :func:`identify`.
        NotPermitted: the token lacks the permission; the error names it.
    """
    identity = await identify(request)
    demand_permission(identity, verb, pointer)
    return identity


async def demand_log_reader(request: web.Request) -> None:
    """The log is public, so that anyone can audit it, unless the server was started with ``--private-log``.

    Raises:
        Unauthenticated: the log is private and the request carries no valid token.
    """
    if context_of(request).settings.private_log:
        await identify(request)
    else:
        ASKING.set(ANYONE)


__all__ = ["Identity", "demand", "demand_log_reader", "demand_permission", "identify", "permits"]
