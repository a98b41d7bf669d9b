"""Storage: three small roles (:mod:`casstore.storage.roles`), each implemented in memory and on a local disk."""
