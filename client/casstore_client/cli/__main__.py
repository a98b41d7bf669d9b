"""``python -m casstore_client.cli``: the same as the ``casstore`` command."""

from casstore_client.cli import main

main()
