"""How patient a server is: bounds that have nothing to do with what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# LIMIT: thousands of watchers may connect in one instant after a restart; the kernel's default of 128 would drop them.
BACKLOG: Final = 4096
# LIMIT: descriptors that are no connections: packs that are read and written, databases, the log; see CONNECTIONS_MAX.
DESCRIPTORS_KEPT: Final = 768
# LIMIT: of connections beyond the setting, which are told to come again.
CONNECTIONS_SPARE: Final = 256
# LIMIT: of the packs that are taken in at a time, one principal has at most three quarters.
UPLOADS_SHARE: Final = 0.75
# LIMIT: Prometheus and a person who looks; each answer of theirs costs some milliseconds.
METRICS_CONNECTIONS_MAX: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How patient a server is, and how much it does at once.

    Args:
        body_timeout_s: longest wait for the next piece of a request body, in seconds.
        body_rate_min_bytes_s: slowest average rate of a request body, in bytes a second, after ``body_timeout_s``.
        whole_body_timeout_s: how long a body may take that is read whole, such as JSON, in seconds.
        linger_s: how long a client may go on sending after its body was refused, so that it can read why, in seconds.
        first_request_s: how long a new connection may take until its first request is there, in seconds.
        turn_max_s: how long a request may wait for its turn when thousands ask at once, in seconds.
        disk_look_s: how often the free space is looked at for the log and the metrics, in seconds.
        write_timeout_s: longest wait until a reader takes the next piece of an answer, in seconds.
        uploads_max: packs that are taken in at once; one holds at most about 4 MiB of memory beside its largest object.
        worker_threads: threads that decompress and hash packs.
        drain_s: how long a stop waits for running requests, in seconds.
    """

    body_timeout_s: float = 30.0
    body_rate_min_bytes_s: int = 1024
    whole_body_timeout_s: float = 120.0
    linger_s: float = 1.0
    first_request_s: float = 20.0
    turn_max_s: float = 5.0
    disk_look_s: float = 5.0
    write_timeout_s: float = 60.0
    uploads_max: int = 32
    worker_threads: int = 3
    drain_s: float = 10.0
