"""One machine: packs as plain files, index and ledger as two LMDB environments, all below one store directory.

======================================= ========================================================================
module                                  owns
======================================= ========================================================================
:mod:`casstore.storage.local.files`     every system call that changes the disk, so that a test can fail each one
:mod:`casstore.storage.local.packs`     ``packs/`` and ``tmp/``
:mod:`casstore.storage.local.lmdb_env`  what index and ledger share: commit, seal, errors
:mod:`casstore.storage.local.index`     ``index/``
:mod:`casstore.storage.local.ledger`    ``ledger/``
:mod:`casstore.storage.local.heads`     ``signed-heads``
:mod:`casstore.storage.local.home`      the directory as a whole: ``format``, ``lock``, ``keys/``
:mod:`casstore.storage.local.upgrade`   the steps from one format to the next
:mod:`casstore.storage.local.backup`    a backup directory: packs, parts, manifest
======================================= ========================================================================
"""
