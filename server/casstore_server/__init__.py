"""The server: HTTP in front of :class:`casstore.store.Store`.

The engine is synchronous and knows no HTTP; this package knows HTTP and asks the engine through :mod:`.bridge`, so that
nothing ever blocks the event loop.  It imports nothing of the client but the settings that ``init`` writes
(:mod:`.commands`).
"""
