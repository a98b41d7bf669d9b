"""One push or pull in a process of its own: prints seconds, bytes on the wire, requests by step and peak memory as JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time

from casstore_client import Client
from casstore_client.config import load_settings


def main() -> None:
    """``push PATH`` or ``pull DIGEST DEST [--no-sync]``."""
    words = sys.argv[1:]
    settings = load_settings()
    digest = ""
    with Client(os.environ["CASSTORE_URL"], token=settings.read_token()) as client:
        began = time.perf_counter()
        if words[0] == "push":
            digest = client.push(words[1]).artifact.digest
        else:
            client.pull(words[1], words[2], sync="--no-sync" not in words)
        seconds = time.perf_counter() - began
        stats = client.stats
    requests = ", ".join(f"{count} {step}" for step, count in stats.requests.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "seconds": seconds,
                "wire_bytes": stats.transferred,
                "requests": requests,
                "peak_bytes": peak,
                "digest": digest,
            }
        )
    )


if __name__ == "__main__":
    main()
