"""What a command needs before it can talk: settings, a connected client, and the options that say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from casstore_client.config import Settings, load_settings

if TYPE_CHECKING:
    from casstore_client.blocking import Client


def connecting(command: Any) -> Any:
    """Decorate a command: adds ``--url``, ``--token-file`` and ``--ca-file``, and hands :class:`Settings` as ``settings``."""

    @click.option("--url", metavar="URL", help="The server [env: CASSTORE_URL].")
    @click.option("--token-file", metavar="FILE", help="File with the bearer token [env: CASSTORE_TOKEN_FILE].")
    @click.option("--ca-file", metavar="FILE", help="Trust this certificate authority [env: CASSTORE_CA_FILE].")
    def wrapped(*args: Any, url: str | None, token_file: str | None, ca_file: str | None, **kwargs: Any) -> Any:
        flags = {"url": url, "token_file": token_file, "ca_file": ca_file}
        return command(*args, settings=load_settings(flags), **kwargs)

    return _as_command(wrapped, command)


def signing(command: Any) -> Any:
    """Decorate a command: adds what :func:`connecting` adds and ``--key``, the file of the signing key."""

    @click.option("--key", "key_file", metavar="FILE", help="The signing key [env: CASSTORE_KEY_FILE].")
    @click.option("--url", metavar="URL", help="The server [env: CASSTORE_URL].")
    @click.option("--token-file", metavar="FILE", help="File with the bearer token [env: CASSTORE_TOKEN_FILE].")
    @click.option("--ca-file", metavar="FILE", help="Trust this certificate authority [env: CASSTORE_CA_FILE].")
    def wrapped(
        *args: Any, url: str | None, token_file: str | None, ca_file: str | None, key_file: str | None, **kwargs: Any
    ) -> Any:
        flags = {"url": url, "token_file": token_file, "ca_file": ca_file, "key_file": key_file}
        return command(*args, settings=load_settings(flags), **kwargs)

    return _as_command(wrapped, command)


def _as_command(wrapped: Any, command: Any) -> Any:
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__click_params__ = wrapped.__click_params__ + getattr(command, "__click_params__", [])
    return wrapped


@contextmanager
def open_client(settings: Settings) -> Iterator[Client]:
    """A blocking client for the configured server, closed when the block ends."""
    from casstore_client.blocking import Client

    ca = str(settings.ca_file) if settings.ca_file else None
    with Client(settings.url, token=settings.read_token(), ca=ca) as client:
        yield client


def parse_labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("k=v", …)`` → ``{"k": "v"}``.

    Raises:
        click.UsageError: a pair without ``=``, or a key twice.
    """
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"a label is written KEY=VALUE, not {pair!r}")
        if key in labels:
            raise click.UsageError(f"the label {key!r} is given twice")
        labels[key] = value
    return labels
