"""What each storage role promises, as tests that every implementation passes.

A suite is a class of plain ``test_*`` methods with one method to fill in, ``make``; it needs no test framework.  Derive
from it in the tests of an implementation::

    class TestMyPacks(PackStoreContract):
        def make(self) -> PackStore:
            return MyPackStore(...)

The ``Durable…`` suites add what must hold across closing and opening again; they need ``reopen`` as well.
"""

from casstore.storage.contracts.index import ChunkIndexContract, DurableChunkIndexContract
from casstore.storage.contracts.ledger import DurableLedgerContract, LedgerContract
from casstore.storage.contracts.packs import DurablePackStoreContract, PackStoreContract

__all__ = [
    "ChunkIndexContract",
    "DurableChunkIndexContract",
    "DurableLedgerContract",
    "DurablePackStoreContract",
    "LedgerContract",
    "PackStoreContract",
]
