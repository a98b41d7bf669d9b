"""Settings of a server: what stands in its TOML file, and what the rules about them are.

Owns reading and judging the file; flags of the command line are laid over it by :meth:`ServerSettings.override`.  Nothing
here opens a socket or a store.

Example file::

    store = "/srv/casstore"
    listen = "0.0.0.0:7433"
    private_log = false

    [tls]
    cert = "/etc/casstore/tls.crt"
    key = "/etc/casstore/tls.key"

    [gc]
    interval_s = 3600

    [retention]
    artifact_days = 30
    history = [{ pointers = "prod/**", days = 730 }]

    [limits]
    reader_threads = 8

    [scrub]
    interval_s = 604800
    rate_bytes_s = 33554432

Source: docs/operations/server.md
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from casstore.engine.gc import retention, run
from casstore.errors import ConfigurationError, InvalidInput
from casstore.formats.policy import validate_glob
from casstore.limits import (
    CONNECTIONS_MAX,
    GROUP_COMMIT_MAX,
    JSON_BODY_MAX_BYTES,
    PACK_SIZE_MAX_BYTES,
    READER_QUEUE_MAX,
    READER_THREADS,
    SCRUB_INTERVAL_S,
    SCRUB_RATE_BYTES_S,
    WRITER_QUEUE_MAX,
)

DEFAULT_LISTEN: Final = "127.0.0.1:7433"
DEFAULT_METRICS_LISTEN: Final = "127.0.0.1:7434"
OFF: Final = "off"
_DAYS_MAX: Final = 36_500
_KEEP_MAX: Final = 1000
SETTINGS_SIZE_MAX_BYTES: Final = 64 * 1024  # a page of settings; a larger file is some other file


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the certificate chain and its private key lie (PEM files)."""

    cert: str
    key: str


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds that an operator may move; each is a positive integer, and lower is always safe."""

    connections: int = CONNECTIONS_MAX
    writer_queue: int = WRITER_QUEUE_MAX
    reader_threads: int = READER_THREADS
    reader_queue: int = READER_QUEUE_MAX
    group_commit: int = GROUP_COMMIT_MAX
    pack_size_bytes: int = PACK_SIZE_MAX_BYTES
    json_body_bytes: int = JSON_BODY_MAX_BYTES


class ScrubSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a server reads everything once more by itself, and how fast.

    Attributes:
        interval_s: from the beginning of one pass to that of the next; 0 for never.
        rate_bytes_s: bytes of packs a second, on average; 0 for as fast as it can.
    """

    interval_s: int = SCRUB_INTERVAL_S
    rate_bytes_s: int = SCRUB_RATE_BYTES_S


class HistorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long the pointers that a glob covers keep what they have left."""

    pointers: str
    days: int


class RetentionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept that nothing current needs; see docs/operations/collection.md."""

    history: list[HistorySettings] = []
    history_days: int = retention.HISTORY_DAYS
    snapshot_days: int = retention.SNAPSHOT_DAYS
    artifact_days: int = retention.ARTIFACT_DAYS
    keep_last: int = retention.KEEP_LAST_MIN
    keep_artifacts: int = retention.ARTIFACTS_KEPT

    @property
    def rules(self) -> retention.Retention:
        """The same for the engine."""
        rules = tuple(retention.HistoryRule(rule.pointers, rule.days) for rule in self.history)
        return retention.Retention(
            rules, self.history_days, self.snapshot_days, self.artifact_days, self.keep_last, self.keep_artifacts
        )

    def check(self) -> None:
        """Raises: ConfigurationError."""
        for rule in self.history:
            try:
                validate_glob(rule.pointers)
            except InvalidInput as error:
                raise ConfigurationError(f"retention.history: {error.detail}") from error
        days = {f"history of {rule.pointers}": rule.days for rule in self.history}
        for name in ("history_days", "snapshot_days", "artifact_days"):
            days[name] = getattr(self, name)
        for name, value in days.items():
            if not 0 <= value <= _DAYS_MAX:
                raise ConfigurationError(f"retention: {name} is {value}; it must be between 0 and {_DAYS_MAX}")
        if not retention.KEEP_LAST_MIN <= self.keep_last <= _KEEP_MAX:
            raise ConfigurationError(
                f"retention.keep_last is {self.keep_last}; it must be between {retention.KEEP_LAST_MIN} and {_KEEP_MAX}, "
                "or a rollback could find nothing to go back to"
            )
        if not 0 <= self.keep_artifacts <= _KEEP_MAX:
            raise ConfigurationError(
                f"retention.keep_artifacts is {self.keep_artifacts}; it must be between 0 and {_KEEP_MAX}"
            )


class GcSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a server collects, and how patient it is.

    Attributes:
        interval_s: from the end of one collection to the next, 60 to 2,592,000; 0 for only when it is asked for.
        grace_s: how long what is condemned can still be had.
        reader_grace_s: how long the file of an empty pack stays for those who read it.
        rewrite_max_bytes: how much one run reads in order to rewrite packs.
    """

    interval_s: int = 3600
    grace_s: int = run.GRACE_MS // 1000
    reader_grace_s: int = run.READER_GRACE_MS // 1000
    rewrite_max_bytes: int = run.REWRITE_MAX_BYTES

    @property
    def times(self) -> run.GcTimes:
        """The same for the engine."""
        return run.GcTimes(self.grace_s * 1000, self.reader_grace_s * 1000, self.rewrite_max_bytes)

    def check(self) -> None:
        """Raises: ConfigurationError."""
        if self.interval_s and not 60 <= self.interval_s <= 30 * 86_400:
            raise ConfigurationError(f"gc.interval_s is {self.interval_s}; it must be 0, or between 60 and 2592000")
        if self.reader_grace_s < 60 or self.rewrite_max_bytes < 0:
            raise ConfigurationError("gc.reader_grace_s must be at least 60, gc.rewrite_max_bytes at least 0")
        try:
            self.times.check()
        except InvalidInput as error:
            raise ConfigurationError(f"gc.grace_s: {error.detail}") from error


# LIMIT: what the formats or the engine fix; a setting may only go below.
_CEILINGS: Final = {
    "group_commit": GROUP_COMMIT_MAX,
    "pack_size_bytes": PACK_SIZE_MAX_BYTES,
    "json_body_bytes": JSON_BODY_MAX_BYTES,
    "reader_threads": 256,  # the ledger and the index each have 256 reader slots
}


class Address(NamedTuple):
    """Host and port to listen on."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT`` or ``[IPV6]:PORT``; port 0 asks the system for a free one.

    Raises:
        ConfigurationError: neither.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigurationError(f"{text!r} is not HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:7433")
    return Address(host, int(port))


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that a server can be told.

    Attributes:
        store: the store's directory; None where the command line gives it.
        listen: address of the API.
        insecure_listen: allow an address other than loopback without TLS; it must be asked for by name.
        metrics_listen: address of the metrics, or ``off``.
        tls: certificate and key, or None for plain HTTP.
        private_log: ask for a token on ``/log`` too.
        disk_reserve_bytes: free disk space that pushes leave for flips and rollbacks, bytes; None for the fiftieth part of
            the file system, at most 1 GiB; 0 for none.
        backups: folder below which this server writes backups when it is asked to; None for any, ``off`` for none.
        clock_refresh_s: how often the published checkpoint is cosigned anew, seconds (1 to 300).
        gc: see :class:`GcSettings`.
        retention: see :class:`RetentionSettings`.
        limits: see :class:`LimitSettings`.
        scrub: see :class:`ScrubSettings`.
    """

    store: str | None = None
    listen: str = DEFAULT_LISTEN
    insecure_listen: bool = False
    metrics_listen: str = DEFAULT_METRICS_LISTEN
    tls: TlsSettings | None = None
    private_log: bool = False
    disk_reserve_bytes: int | None = None
    backups: str | None = None
    clock_refresh_s: int = 60
    gc: GcSettings = GcSettings()
    retention: RetentionSettings = RetentionSettings()
    limits: LimitSettings = LimitSettings()
    scrub: ScrubSettings = ScrubSettings()

    @property
    def address(self) -> Address:
        """Where the API listens."""
        return parse_address(self.listen)

    @property
    def metrics_address(self) -> Address | None:
        """Where the metrics listen, or None if they do not."""
        return None if self.metrics_listen == OFF else parse_address(self.metrics_listen)

    def override(self, **values: Any) -> ServerSettings:
        """These settings with those of ``values`` that are not None in their place.

        Raises:
            ConfigurationError: the result breaks a rule.
        """
        changed = msgspec.structs.replace(self, **{name: value for name, value in values.items() if value is not None})
        changed.check()
        return changed

    def check(self) -> None:
        """Hold the settings against the rules that no type can state.

        Raises:
            ConfigurationError: one is broken; the message says which.
        """
        if not self.address.is_loopback and self.tls is None and not self.insecure_listen:
            raise ConfigurationError(
                f"listening on {self.listen} without TLS would send tokens in the clear",
                hint="give tls.cert and tls.key, or ask for it by name with insecure_listen = true",
            )
        _ = self.metrics_address
        if self.backups not in (None, OFF) and not Path(self.backups).is_absolute():
            raise ConfigurationError(f"backups is {self.backups!r}; it is an absolute path, or {OFF}")
        self.gc.check()
        self.retention.check()
        if not 1 <= self.clock_refresh_s <= 300:
            raise ConfigurationError(f"clock_refresh_s is {self.clock_refresh_s}; it must be between 1 and 300")
        if self.disk_reserve_bytes is not None and self.disk_reserve_bytes < 0:
            raise ConfigurationError(f"disk_reserve_bytes is {self.disk_reserve_bytes}; it cannot be less than 0")
        for name in ScrubSettings.__struct_fields__:
            if (value := getattr(self.scrub, name)) < 0:
                raise ConfigurationError(f"scrub.{name} is {value}; it must be 0 or more")
        for name in LimitSettings.__struct_fields__:
            value, ceiling = getattr(self.limits, name), _CEILINGS.get(name)
            if value < 1:
                raise ConfigurationError(f"limits.{name} is {value}; it must be at least 1")
            if ceiling is not None and value > ceiling:
                raise ConfigurationError(f"limits.{name} is {value}; this version allows at most {ceiling}")


def decode_settings(text: str) -> ServerSettings:
    """Read settings from TOML.

    Raises:
        ConfigurationError: not TOML, an unknown or ill-typed field, or a rule is broken; the message names it.
    """
    try:
        settings = msgspec.convert(tomllib.loads(text), ServerSettings)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"the settings are wrong: {error}") from error
    settings.check()
    return settings


def load_settings(path: Path) -> ServerSettings:
    """Read the settings file at ``path``.

    Raises:
        ConfigurationError: it cannot be read, is larger than ``SETTINGS_SIZE_MAX_BYTES``, is not UTF-8, or is wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > SETTINGS_SIZE_MAX_BYTES:
        raise ConfigurationError(f"{path} has {len(data)} bytes; settings have at most {SETTINGS_SIZE_MAX_BYTES}")
    try:
        return decode_settings(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.detail}", hint=error.hint) from error
