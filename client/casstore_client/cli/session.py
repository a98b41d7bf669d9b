"""What a command needs before it can talk: settings, a connected client, and the options that say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import ConfigurationError, InvalidInput
from casstore_client.config import Settings, load_settings, state_dir

if TYPE_CHECKING:
    from casstore.signing import SigningKey
    from casstore_client.blocking import Client
    from casstore_client.trust_store import TrustStore


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


def open_trust(settings: Settings) -> TrustStore | None:
    """What this user trusts; None if no trust file is configured.

    Raises:
        ConfigurationError: it is configured and cannot be read.
    """
    from casstore_client.trust_store import TrustStore

    return None if settings.trust_file is None else TrustStore.open(settings.trust_file, state_dir())


@contextmanager
def open_client(settings: Settings, *, content: bool = False) -> Iterator[Client]:
    """A blocking client for the configured server, closed when the block ends.

    Args:
        settings: where it is and what is trusted.
        content: only content is asked for, which its own digests prove, or nothing that anything could prove.
    """
    from casstore_client.blocking import Client

    trust = open_trust(settings)
    if trust is None and not content:
        # Also with --quiet: whoever reads an answer must know what it is worth.
        click.echo("casstore: answers are not verified: no trust file", err=True)
    ca = str(settings.ca_file) if settings.ca_file else None
    with Client(settings.url, token=settings.read_token(), ca=ca, trust=trust) as client:
        yield client


@contextmanager
def open_signing_client(settings: Settings) -> Iterator[Client]:
    """As :func:`open_client`, with the user's key and trust file.

    Raises:
        ConfigurationError: there is no key, or no trust file.
    """
    from casstore_client.blocking import Client

    key, trust = read_signing_key(settings), open_trust(settings)
    if trust is None:
        raise ConfigurationError(
            "this command signs over what it has verified, and no trust file is configured",
            hint="casstore trust add FILE, with the file that `casstore init` wrote",
        )
    ca = str(settings.ca_file) if settings.ca_file else None
    with Client(settings.url, token=settings.read_token(), ca=ca, trust=trust, key=key) as client:
        yield client


def read_signing_key(settings: Settings) -> SigningKey:
    """The configured signing key.

    Raises:
        ConfigurationError: none is configured, or it cannot be read or is none.
    """
    from casstore.signing import SigningKey

    text = settings.read_key()
    try:
        return SigningKey.parse(text)
    except InvalidInput as error:
        raise ConfigurationError(f"{settings.key_file} is not a signing key: {error.detail}") from error


def parse_labels(pairs: tuple[str, ...], *, what: str = "label", written: str = "KEY=VALUE") -> dict[str, str]:
    """``("k=v", …)`` → ``{"k": "v"}``; of labels, or ``what`` else is ``written`` so.

    Raises:
        click.UsageError: a pair without ``=``, or a key twice.
    """
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"a {what} is written {written}, not {pair!r}")
        if key in labels:
            raise click.UsageError(f"the {what} {key!r} is given twice")
        labels[key] = value
    return labels
