"""The three roles in memory: strict, deterministic, gone when the process ends.

For tests and for trying things out.  Where a role leaves an implementation free, these refuse: a second writer, a view
used after its block or from another thread, anything after ``close``.  What passes here passes on a disk too.
"""

from casstore.storage.memory.index import MemoryChunkIndex
from casstore.storage.memory.ledger import MemoryLedger
from casstore.storage.memory.packs import MemoryPackStore

__all__ = ["MemoryChunkIndex", "MemoryLedger", "MemoryPackStore"]
