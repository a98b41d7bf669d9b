"""The client of casstore: push and pull content, move pointers, verify what a server says.

::

    from casstore_client import Client

    with Client("http://127.0.0.1:7433", token=token) as client:
        pushed = client.push("build/", name="api")
        client.pull(pushed.digest, "copy")

:class:`AsyncClient` has the same methods as coroutines.  Names are imported when they are first used, so importing this
package costs next to nothing.  It needs the *words* and *pure* layers of :mod:`casstore` and neither a store nor a server.

Source: docs/client.md
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from casstore_client.audit_report import AuditReport
    from casstore_client.blocking import Client
    from casstore_client.client import AsyncClient
    from casstore_client.errors import ProtocolError, TransportError
    from casstore_client.progress_events import Phase, ProgressEvent
    from casstore_client.pull import Pulled
    from casstore_client.push import Pushed
    from casstore_client.trust_store import TrustStore

__all__ = [
    "AsyncClient",
    "AuditReport",
    "Client",
    "Phase",
    "ProgressEvent",
    "ProtocolError",
    "Pulled",
    "Pushed",
    "TransportError",
    "TrustStore",
]

_HOMES: Final = {
    "AsyncClient": "client",
    "AuditReport": "audit_report",
    "Client": "blocking",
    "Phase": "progress_events",
    "ProgressEvent": "progress_events",
    "ProtocolError": "errors",
    "Pulled": "pull",
    "Pushed": "push",
    "TransportError": "errors",
    "TrustStore": "trust_store",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
