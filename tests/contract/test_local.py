"""The implementations on a local disk keep the contracts, so that a store is what the engine believes it to be."""

from pathlib import Path

import pytest

from casstore.storage.contracts import DurableChunkIndexContract, DurableLedgerContract, DurablePackStoreContract
from casstore.storage.local.files import Files
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.local.ledger import LocalLedger
from casstore.storage.local.packs import LocalPackStore
from casstore.storage.roles import ChunkIndex, Ledger, PackStore


class _InDirectory:
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = str(tmp_path)


class TestLocalPackStore(_InDirectory, DurablePackStoreContract):
    def make(self) -> LocalPackStore:
        LocalPackStore.lay_out(self.directory, Files())
        return LocalPackStore(self.directory, Files())

    def reopen(self, store: PackStore) -> LocalPackStore:
        store.close()
        return LocalPackStore(self.directory, Files())


class TestLocalChunkIndex(_InDirectory, DurableChunkIndexContract):
    def make(self) -> LocalChunkIndex:
        LocalChunkIndex.lay_out(self.directory, Files())
        return LocalChunkIndex(self.directory, Files())

    def reopen(self, index: ChunkIndex) -> LocalChunkIndex:
        index.close()
        return LocalChunkIndex(self.directory, Files())


class TestLocalLedger(_InDirectory, DurableLedgerContract):
    def make(self) -> LocalLedger:
        LocalLedger.lay_out(self.directory, Files())
        return LocalLedger(self.directory, Files())

    def reopen(self, ledger: Ledger) -> LocalLedger:
        ledger.close()
        return LocalLedger(self.directory, Files())
