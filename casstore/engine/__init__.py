"""The services: what casstore does, on top of the three storage roles.

Synchronous and thread-friendly; knows no HTTP, no command line and no disk.  Every service takes the storage roles, a
clock and whatever randomness it needs as arguments of its constructor, so a test hands in the in-memory roles and a
clock that stands still.

Content, bottom up:

* :mod:`casstore.engine.packs` reads verified objects out of packs and writes small objects into them
* :mod:`casstore.engine.ingest` takes a pack that a push sends, verifying every frame as it arrives
* :mod:`casstore.engine.presence` says what is there, :mod:`casstore.engine.proving` that files reassemble to their
  digests
* :mod:`casstore.engine.sessions` and :mod:`casstore.engine.pushes` lead a push from *missing* to an artifact
* :mod:`casstore.engine.trees`, :mod:`casstore.engine.blobs`, :mod:`casstore.engine.snapshots`,
  :mod:`casstore.engine.diff`, :mod:`casstore.engine.artifacts` read it all back
* :mod:`casstore.engine.fsck` judges a store

Threads: a method whose docstring says ``Threads: index writer`` or ``Threads: ledger writer`` is called from that one
thread; every other method may be called from any thread.
"""
