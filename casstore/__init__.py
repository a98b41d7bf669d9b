"""casstore: a content-addressed artifact store and rollback engine.

This package is the library under the server and the client.  It is laid out in layers; imports point down only:

* words: :mod:`casstore.ids`, :mod:`casstore.errors`, :mod:`casstore.limits`, :mod:`casstore.clock`
* pure:  :mod:`casstore.formats`, :mod:`casstore.merkle`, :mod:`casstore.tiles`, … (no I/O, no clock, no randomness)
* storage: :mod:`casstore.storage` (three roles, each with an in-memory and a local implementation)
* services: :mod:`casstore.engine`
* façade: :mod:`casstore.store`, :mod:`casstore.admin`, :mod:`casstore.config`

``casstore_client`` may import *words* and *pure* only, which is why this file imports nothing.
"""

__version__ = "0.1.0"
