"""``casstore trust add|show``"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import ConfigurationError
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output
from casstore_client.cli.session import open_trust
from casstore_client.config import config_path, load_settings, read_file

if TYPE_CHECKING:
    from casstore.formats.trust import TrustFile


@click.group()
def trust() -> None:
    """Say which log this user trusts: whose key, and which first entry."""


@trust.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Trust this log in the place of another one.")
@speaking
def add(file: Path, replace: bool, out: Output) -> None:
    """Check the trust file FILE (`casstore init` wrote it) and use it from now on.

    Take it over a way that you trust: whoever gives you another one decides what you believe.
    """
    from casstore_client.trust_store import read_trust

    wanted = read_trust(file)
    path = config_path()
    values = read_file(path, must_exist=False) or {}
    target = Path(values.get("trust_file", path.parent / "trust.json"))
    if target.exists() and not replace:
        _refuse_another_log(target, read_trust(target), wanted)
    data = file.read_bytes()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(target, data)
        if "trust_file" not in values:
            text = path.read_text("utf-8") if path.exists() else ""
            _write(path, f'{text.rstrip()}\ntrust_file = "{target.name}"\n'.lstrip().encode())
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be written: {error.strerror}") from error
    document = {"trust_file": str(target), "config": str(path), **trust_document(wanted)}
    out.emit(document, lambda: click.echo(f"Trusting the log {wanted.origin}, as {target} says."))
    if "CASSTORE_TRUST_FILE" in os.environ:
        out.say("CASSTORE_TRUST_FILE is set and names another file: it goes before this one")


def _refuse_another_log(path: Path, held: TrustFile, wanted: TrustFile) -> None:
    if (held.genesis_sha256, held.log_vkey, held.origin) != (wanted.genesis_sha256, wanted.log_vkey, wanted.origin):
        raise ConfigurationError(
            f"{path} trusts another log: {held.origin}, not {wanted.origin}",
            hint="with --replace it is replaced; then nothing that the other log ever said counts any more",
        )


def _write(path: Path, data: bytes) -> None:
    """Replace a file whole, durable, readable by its owner alone."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def trust_document(found: TrustFile) -> dict[str, Any]:
    """A trust file for ``--json``."""
    return {
        "origin": found.origin,
        "log_vkey": found.log_vkey,
        "clock_vkey": found.clock_vkey,
        "genesis_sha256": found.genesis_sha256.hex(),
        "minimum": {"size": found.minimum_size, "root": found.minimum_root.hex()},
        "max_age_s": found.max_age_s,
    }


@trust.command()
@speaking
def show(out: Output) -> None:
    """Show what is trusted, and what has been verified since."""
    settings = load_settings()
    store = open_trust(settings)
    if store is None:
        raise ConfigurationError("no trust file is configured", hint="casstore trust add FILE")
    state = store.load()
    verified: dict[str, Any] | None = None
    if state is not None:
        verified = {
            "note": state.note.decode(),
            "policy_entry": state.policy_idx,
            "policy_version": state.policy["version"],
            "pointers": len(state.flips),
        }
    alarms = sorted(str(path) for path in store.directory.glob("contradiction-*"))
    document = {
        "trust_file": str(settings.trust_file),
        **trust_document(store.trust),
        "state": str(store.directory),
        "verified": verified,
        "contradictions": alarms,
    }

    def people() -> None:
        click.echo(f"log      {store.trust.origin}")
        click.echo(f"key      {store.trust.log_vkey}")
        click.echo(f"genesis  {store.trust.genesis_sha256.hex()}")
        click.echo(f"file     {settings.trust_file}")
        if state is None:
            click.echo("nothing has been verified yet")
        else:
            size = state.note.split(b"\n")[1].decode()
            click.echo(f"verified {size} entries, policy version {state.policy['version']}, in {store.directory}")
        for alarm in alarms:
            click.echo(f"CONTRADICTION kept in {alarm}")

    out.emit(document, people)
