"""One server from start to stop: open the store, listen, drain, close.

Owns the order of both.  Starting: store, threads, listeners, *then* it says where it listens.  Stopping: stop accepting, let
running requests end (bounded), run what the lanes accepted, close the store, *then* the process ends.

CRASH: nothing here matters for durability.  A kill at any moment leaves what the engine made durable; opening heals the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import math
import os
import resource
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import structlog
from aiohttp import web

from casstore.clock import Clock
from casstore.config import Address, ServerSettings
from casstore.engine.pointers import Submission
from casstore.errors import CasstoreError, ConfigurationError, LogUnavailable, OutcomeUnknown
from casstore.formats.canonical import decode_b64
from casstore.formats.checkpoint import open_checkpoint
from casstore.limits import MIB
from casstore.store import Store
from casstore.wire import Submitted
from casstore_server.app import build_app
from casstore_server.bridge import Bridge
from casstore_server.collecting import Collector
from casstore_server.context import Context
from casstore_server.descriptors import Descriptors
from casstore_server.disk import Disk
from casstore_server.gate import Gate, open_listeners
from casstore_server.logs import ForwardHandler, LineWriter, open_log
from casstore_server.metrics import LogGauge, Metrics
from casstore_server.settings import (
    BACKLOG,
    CONNECTIONS_SPARE,
    DESCRIPTORS_KEPT,
    METRICS_CONNECTIONS_MAX,
    UPLOADS_SHARE,
    Bounds,
)
from casstore_server.shares import Shares
from casstore_server.turnstile import Turnstile
from casstore_server.upkeep import Upkeep

READ_BUFFER_BYTES = (
    256 * 1024
)  # of a connection: with the default of 64 KiB an upload wakes the loop four times as often
KEEPALIVE_S = 75.0  # longer than the 60 s of common proxies, so that the proxy is the one who closes
DESCRIPTORS_WANTED = 65_536
KEPT_BLOCK_MAX_BYTES = 4 * MIB  # above the pieces in which packs come and go, which are allocated all the time
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
STOP_MAX_S = 60.0  # below the 90 s after which systemd kills
_FOREIGN_LOGGERS = ("aiohttp", "asyncio")


class Server:
    """A running server.  Made by :func:`open_server`.

    Attributes:
        url: where the API listens, such as ``http://127.0.0.1:7433``.
        metrics_url: where ``/metrics`` is, or None.
        context: its parts.
    """

    def __init__(self, context: Context, url: str, metrics_url: str | None) -> None:
        self.context = context
        self.url = url
        self.metrics_url = metrics_url

    @property
    def sealed(self) -> asyncio.Event:
        """Set when a commit or fsync failed: then only opening the store again helps, so the server should be stopped."""
        return self.context.bridge.sealed


@contextlib.asynccontextmanager
async def open_server(
    directory: Path,
    settings: ServerSettings,
    *,
    bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
    clock: Clock | None = None,
    confirm_clock: bool = False,
    log_to: TextIO | None = None,
) -> AsyncIterator[Server]:
    """Open the store and serve it until the block ends.

    Args:
        directory: the store's directory.
        settings: where to listen, and how.
        bounds: how patient to be.
        clock: for tests.
        confirm_clock: an operator has looked at the clock, and it is right as it is.
        log_to: where log lines go; stderr by default.

    Raises:
        ConfigurationError: the address cannot be had, or certificate and key cannot be read.
        CasstoreError: the store does not open (``StoreBusy``, ``StoreTooNew``, ``NotInitialised``…).
    """
    settings.check()
    tls = await asyncio.to_thread(_open_tls, settings)
    async with contextlib.AsyncExitStack() as stack:
        log, writer = open_log(log_to or sys.stderr)
        stack.push_async_callback(asyncio.to_thread, writer.close)
        stack.enter_context(_foreign_logs(writer))
        store = await asyncio.to_thread(Store.open, directory, clock=clock, reserve_bytes=settings.disk_reserve_bytes)
        # ORDER: closed last of all that touches it; callbacks run in reverse.
        stack.push_async_callback(asyncio.to_thread, store.close)
        if confirm_clock:
            await asyncio.to_thread(store.confirm_clock)  # nobody else writes yet
        limits = settings.limits

        def store_documents(documents: Sequence[bytes]) -> Sequence[None]:
            store.snapshots.put(documents)
            return [None] * len(documents)

        bridge = Bridge(
            store.pointers.submit,
            store_documents,
            worker_threads=bounds.worker_threads,
            reader_threads=limits.reader_threads,
            reader_queue_max=limits.reader_queue,
            writer_queue_max=limits.writer_queue,
            group_commit_max=limits.group_commit,
        )
        stack.push_async_callback(bridge.close)
        disk = Disk(store.room, log)
        await disk.look()
        genesis = await asyncio.to_thread(_read_genesis, store)
        context = _put_together(store, bridge, settings, bounds, disk=disk, log=log, genesis_sha256=genesis)
        stack.push_async_callback(context.upkeep.close)
        stack.callback(context.descriptors.close)
        gate, metrics = context.gate, context.metrics
        stack.push_async_callback(context.collector.close)
        context.collector.start()
        stack.push_async_callback(_cancel, asyncio.create_task(_refresh_clock(context)))
        stack.push_async_callback(_cancel, asyncio.create_task(disk.watch(bounds.disk_look_s)))
        url = await _listen(stack, build_app(context), settings.address, bounds, gate=gate, tls=tls)
        metrics_url: str | None = None
        if settings.metrics_address is not None:
            few = Gate(limit=METRICS_CONNECTIONS_MAX, spare=0, first_request_s=bounds.first_request_s)
            metrics_url = await _listen(
                stack, metrics.build_app(few), settings.metrics_address, bounds, gate=few, tls=None
            )
        stack.callback(_begin_drain, context)
        log.info("listening", url=url, metrics=metrics_url, store=str(directory))
        if store.read_only is not None:
            log.error("the store is read-only", why=store.read_only)
        yield Server(context, url, metrics_url)


def _put_together(
    store: Store,
    bridge: Bridge[Submission, Submitted],
    settings: ServerSettings,
    bounds: Bounds,
    *,
    disk: Disk,
    log: structlog.typing.FilteringBoundLogger,
    genesis_sha256: str,
) -> Context:
    """The parts of a server, and what its metrics see of them."""
    limits = settings.limits
    gate = _make_gate(limits.connections, bounds, log)
    # LIMIT: half of what the readers take, so that what is let in finds room with them.
    turnstile = Turnstile(lambda: bridge.readers.depth <= limits.reader_queue // 2, bounds.turn_max_s)
    upload_shares = Shares(bounds.uploads_max, "packs", UPLOADS_SHARE)
    upkeep = Upkeep(store, bridge, settings.scrub, log, pool=bridge.provers.executor, width=bounds.worker_threads)
    metrics = Metrics(
        depths=lambda: {**bridge.depths, "turnstile": turnstile.depth},
        log=lambda: _read_log_gauge(store),
        gate=gate,
        disk=lambda: disk,
        refused=lambda: {
            **gate.refused,
            "share": bridge.refused + upload_shares.refused,
            "turnstile": turnstile.refused,
        },
        health=lambda: upkeep.health,
    )
    descriptors = Descriptors()
    return Context(
        store=store,
        bridge=bridge,
        settings=settings,
        bounds=bounds,
        metrics=metrics,
        descriptors=descriptors,
        collector=Collector(store, bridge, settings, descriptors=descriptors, metrics=metrics, log=log),
        gate=gate,
        disk=disk,
        turnstile=turnstile,
        upload_shares=upload_shares,
        upkeep=upkeep,
        log=log,
        genesis_sha256=genesis_sha256,
    )


def _make_gate(wanted: int, bounds: Bounds, log: structlog.typing.FilteringBoundLogger) -> Gate:
    """The gate, with no more connections than there are descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit, spare = wanted, CONNECTIONS_SPARE
    if soft != resource.RLIM_INFINITY:
        room = soft - min(DESCRIPTORS_KEPT, soft // 2)
        spare = min(spare, room // 8)
        limit = max(1, min(wanted, room - spare))
    if limit < wanted:
        log.warning("fewer connections than wanted", connections=limit, wanted=wanted, descriptors=soft)
    return Gate(limit=limit, spare=spare, first_request_s=bounds.first_request_s)


def _begin_drain(context: Context) -> None:
    context.ready = False
    context.log.info("stopping")


async def _listen(
    stack: contextlib.AsyncExitStack,
    app: web.Application,
    address: Address,
    bounds: Bounds,
    *,
    gate: Gate,
    tls: ssl.SSLContext | None,
) -> str:
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        read_bufsize=READ_BUFFER_BYTES,
        keepalive_timeout=KEEPALIVE_S,
        # LIMIT: after an error the middleware lingers itself, bounded in bytes as well as in time.
        lingering_time=0,
        shutdown_timeout=bounds.drain_s,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        for listener in await open_listeners(gate, address.host, address.port):
            await web.SockSite(runner, listener, ssl_context=tls, backlog=BACKLOG).start()
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {address}: {error.strerror or error}") from error
    stack.push_async_callback(_cancel, asyncio.create_task(gate.sweep()))
    host, port = runner.addresses[0][:2]
    return f"{'https' if tls else 'http'}://{Address(host, port)}"


def _open_tls(settings: ServerSettings) -> ssl.SSLContext | None:
    if settings.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls.cert, settings.tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"certificate {settings.tls.cert} and key {settings.tls.key} cannot be used: {error}"
        ) from error
    return context


async def _refresh_clock(context: Context) -> None:
    """Have the published checkpoint cosigned with the time, so that readers see that the log is alive."""
    while True:
        await asyncio.sleep(context.settings.clock_refresh_s)
        try:
            await context.bridge.write_ledger(context.store.refresh_clock)
        except CasstoreError as error:
            context.log.error("the checkpoint was not given the time", code=error.code, error=error.detail)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _read_genesis(store: Store) -> str:
    try:
        entry = store.log_reader.entry(0).entries[0].entry
    except LogUnavailable:
        return ""  # the store is read-only and shows nothing of its log
    return hashlib.sha256(decode_b64(entry)).hexdigest()


def _read_log_gauge(store: Store) -> LogGauge:
    """Size and age of the published checkpoint; one that carries no time is infinitely old."""
    log = store.log
    try:
        note = log.checkpoint
    except LogUnavailable:
        return LogGauge(0, math.inf)
    opened = open_checkpoint(note, log.verifier, log.origin, [log.clock_verifier])
    newest_ms = max(opened.cosigned_at_ms.values(), default=None)
    age_s = math.inf if newest_ms is None else max(0.0, (store.clock.now_ms() - newest_ms) / 1000)
    return LogGauge(opened.checkpoint.size, age_s)


@contextlib.contextmanager
def _foreign_logs(writer: LineWriter) -> Iterator[None]:
    """Lines of the libraries become lines of ours while the server runs."""
    handler = ForwardHandler(writer)
    for name in _FOREIGN_LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in _FOREIGN_LOGGERS:
            logging.getLogger(name).removeHandler(handler)


async def run_server(
    directory: Path, settings: ServerSettings, *, port_file: Path | None = None, confirm_clock: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT; what ``casstore serve`` does.

    Prints ``listening on <url>`` to stderr once requests are answered.  A stop takes at most ``STOP_MAX_S``, and a second
    signal ends it at once.

    Args:
        directory: the store's directory.
        settings: where to listen, and how.
        port_file: where to write the URL, for scripts.
        confirm_clock: see :func:`open_server`.

    Raises:
        OutcomeUnknown: a commit failed, so the server stopped itself; start it again, and opening settles what happened.
        CasstoreError: see :func:`open_server`.
    """
    _raise_descriptor_limit()
    _return_freed_memory()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_server(directory, settings, confirm_clock=confirm_clock) as server:
        if port_file is not None:
            await asyncio.to_thread(_write_port_file, port_file, server.url)
        print(f"listening on {server.url}", file=sys.stderr, flush=True)
        _notify("READY=1")
        ends = [asyncio.create_task(event.wait()) for event in (stop, server.sealed)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        _notify("STOPPING=1")
        _bound_stop()
    if server.sealed.is_set():
        raise OutcomeUnknown(
            "a commit or fsync failed, and only opening the store again shows what happened: the server has stopped",
            hint="look at the disk, then start the server again; it needs no repair step",
        )


def _bound_stop() -> None:
    """From here on the process ends soon, whatever still runs: an fsck of a large store, a proof of a large tree."""
    # CRASH: ending in the middle is what a kill does, and a kill loses nothing that was acknowledged.
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    last = threading.Timer(STOP_MAX_S, os._exit, args=(1,))
    last.daemon = True
    last.start()


def _raise_descriptor_limit() -> None:
    """As many connections as the machine allows, instead of the 1024 that shells hand out."""
    # LIMIT: of connections, see casstore_server.gate.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _return_freed_memory() -> None:
    """Have what was freed go back to the system, where the C library is glibc."""
    # LIMIT: left to itself it raises the size from which memory is mapped, and unmapped when freed, to the largest that was
    # ever freed; each thread then keeps tens of MiB of an arena of its own for good.
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_MAX_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BLOCK_MAX_BYTES)


def _write_port_file(path: Path, url: str) -> None:
    # A script that waits for the file must never read half of it.
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(url + "\n", "utf-8")
    temporary.replace(path)


def _notify(state: str) -> None:
    """Tell systemd, where it asked (``sd_notify(3)``)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier,
        contextlib.suppress(OSError),
    ):
        notifier.connect(address)
        notifier.send(state.encode())
