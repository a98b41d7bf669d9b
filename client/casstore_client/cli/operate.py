"""Commands for operators: token, key, policy."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from casstore.errors import ConfigurationError, InvalidInput
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, print_table
from casstore_client.cli.session import connecting, open_client, open_signing_client, signing

if TYPE_CHECKING:
    from casstore_client.config import Settings

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.group()
def token() -> None:
    """Create, list and revoke bearer tokens."""


@token.command("create")
@click.argument("name")
@click.argument("permissions", nargs=-1, required=True, metavar="PERMISSION…")
@click.option(
    "--expires",
    metavar="30d",
    help="How long it lives: a number and s, m, h or d. Without this it lives until revoked.",
)
@connecting
@speaking
def create_token(name: str, permissions: tuple[str, ...], expires: str | None, settings: Settings, out: Output) -> None:
    """Create a token for the principal NAME; its text is shown once.

    PERMISSION is one of content:read, content:push, snapshot:publish, pointer:read:GLOB, flip:GLOB, rollback:GLOB, mark:GLOB, hold:GLOB,
    freeze:GLOB, approve:GLOB, host:report, operate, admin.
    """
    with open_client(settings, content=True) as client:
        made = client.token_create(
            name, list(permissions), expires_in_s=None if expires is None else parse_duration(expires)
        )
        out.emit(made, lambda: click.echo(made.secret or ""))
        expires_text = f"expires {made.expires_at}" if made.expires_at else "never expires"
        out.say(f"token {made.id} for {made.name}, {expires_text}; this is the only time it is shown")


def parse_duration(text: str) -> int:
    """``30d`` → seconds.

    Raises:
        click.UsageError: any other spelling.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text, re.ASCII)
    if not found:
        raise click.UsageError(f"a duration is a number and s, m, h or d, such as 30d, not {text!r}")
    return int(found[1]) * _UNITS_S[found[2]]


@token.command("list")
@connecting
@speaking
def list_tokens(settings: Settings, out: Output) -> None:
    """List tokens; never their secrets."""
    with open_client(settings, content=True) as client:
        found = client.token_list()

    def people() -> None:
        rows = [[t.id, t.name, t.created_at, t.expires_at or "never", " ".join(t.permissions)] for t in found.tokens]
        print_table(["id", "name", "created", "expires", "permissions"], rows)

    out.emit(found, people)


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@connecting
@speaking
def revoke_token(token_id: str, settings: Settings, out: Output) -> None:
    """Revoke a token: the next request that shows it is refused."""
    with open_client(settings, content=True) as client:
        client.token_revoke(token_id)
    out.emit({"id": token_id, "revoked": True}, lambda: click.echo(f"revoked {token_id}"))


@click.group()
def key() -> None:
    """Make and show signing keys."""


@key.command("new")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@speaking
def new_key(name: str, file: Path, out: Output) -> None:
    """Make an Ed25519 key for the principal NAME in FILE, readable by its owner alone; prints the public half.

    The public half (vkey) goes into the policy.
    """
    from casstore.ids import PrincipalName
    from casstore.signing import SigningKey

    made = SigningKey.generate(PrincipalName.parse(name), secrets.token_bytes(32))
    write_secret(file, made.encode())
    vkey = made.verifier.encode()
    out.emit({"name": name, "file": str(file), "vkey": vkey}, lambda: click.echo(vkey))


def write_secret(file: Path, text: str) -> None:
    """Write a secret to a new file, mode 0600, durable.

    Raises:
        ConfigurationError: the file exists or can not be written.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{file} can not be made: {error.strerror}", hint="secrets are never overwritten: name a new file"
        ) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())


@key.command("show")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@signing
@speaking
def show_key(file: Path | None, settings: Settings, out: Output) -> None:
    """Print the public half of the key in FILE, by default of the configured one."""
    from casstore.signing import SigningKey

    text = file.read_text("utf-8").strip() if file else settings.read_key()
    vkey = SigningKey.parse(text).verifier.encode()
    out.emit({"vkey": vkey}, lambda: click.echo(vkey))


@click.group()
def policy() -> None:
    """Show the policy, or replace it: who may do what."""


@policy.command("show")
@connecting
@speaking
def show_policy(settings: Settings, out: Output) -> None:
    """Print the policy in force as JSON."""
    with open_client(settings) as client:
        found = client.policy()
    out.emit(found, lambda: click.echo(json.dumps(found.policy, indent=2, sort_keys=True)))


@policy.command("set")
@click.argument("file", type=click.File("rb"))
@click.option("--reason", "-m", default="", metavar="TEXT", help="Why; stands in the log for ever.")
@signing
@speaking
def set_policy(file: BinaryIO, reason: str, settings: Settings, out: Output) -> None:
    """Replace the policy by the JSON in FILE (- for stdin); its version must be the next one.

    \b
    casstore policy show > policy.json      # edit it, and raise "version" by one
    casstore policy set policy.json -m "add carol"
    """
    try:
        document = json.loads(file.read())
    except ValueError as error:
        raise InvalidInput(f"the policy is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput("the policy is not a JSON object")
    with open_signing_client(settings) as client:
        answer = client.set_policy(document, reason=reason)
        out.emit(
            answer, lambda: click.echo(f"The policy is now version {document.get('version')}: entry {answer.entry}.")
        )
