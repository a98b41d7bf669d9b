"""The command line, with what it exchanged written to a file: ``python -m bench.client_step REPORT WORDS...``.

All of the command runs as it does for a user; only each transport's statistics are remembered, and summed up at the end.
"""

from __future__ import annotations

import atexit
import json
import sys
from collections import Counter
from pathlib import Path

from casstore_client import transport
from casstore_client.cli import main as casstore

_made: list[transport.Stats] = []


class _Remembered(transport.Stats):
    def __init__(self) -> None:
        super().__init__()
        _made.append(self)


def main() -> None:
    """Run the command, then report."""
    report = Path(sys.argv[1])
    atexit.register(_write, report)
    transport.Stats = _Remembered  # type: ignore[misc]
    sys.argv = ["casstore", *sys.argv[2:]]
    casstore()


def _write(report: Path) -> None:
    requests: Counter[str] = Counter()
    for stats in _made:
        requests.update(stats.requests)
    document = {
        "sent_bytes": sum(stats.bytes_sent for stats in _made),
        "received_bytes": sum(stats.bytes_received for stats in _made),
        "requests": dict(requests),
    }
    report.write_text(json.dumps(document))


if __name__ == "__main__":
    main()
