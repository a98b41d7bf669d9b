"""The implementations in memory keep the contracts, so that engine tests on them mean something."""

from casstore.storage.contracts import ChunkIndexContract, LedgerContract, PackStoreContract
from casstore.storage.memory import MemoryChunkIndex, MemoryLedger, MemoryPackStore


class TestMemoryPackStore(PackStoreContract):
    def make(self) -> MemoryPackStore:
        return MemoryPackStore()


class TestMemoryChunkIndex(ChunkIndexContract):
    def make(self) -> MemoryChunkIndex:
        return MemoryChunkIndex()


class TestMemoryLedger(LedgerContract):
    def make(self) -> MemoryLedger:
        return MemoryLedger()
