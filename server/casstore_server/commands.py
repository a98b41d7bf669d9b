"""The commands that need the engine: ``init``, ``serve``, ``fsck`` on a store directory.

Plugged into the ``casstore`` command by name, and imported when one of them is called.  The only module of the server that
knows the client: ``init`` writes the settings that the client reads, and ``fsck`` asks a running server where there is one.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import ConfigurationError
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, print_table
from casstore_client.cli.session import connecting

if TYPE_CHECKING:
    from casstore.wire import FsckReport
    from casstore_client.config import Settings

_STORE_HELP = "The store's directory [env: CASSTORE_STORE]."


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--operator", default="operator", metavar="NAME", help="The first principal, who may do everything.")
@click.option("--origin", metavar="NAME", help="The log's name; by default casstore/ and 16 random hex digits.")
@click.option("--url", metavar="URL", help="Where the server will be; written to the settings.")
@speaking
def init(directory: Path, operator: str, origin: str | None, url: str | None, out: Output) -> None:
    """Create a store in DIRECTORY, and settings for this user.

    Makes the log's keys, the operator's key, the first policy (one signature, the operator's, for everything), the trust file and an admin
    token.  Key, token and trust file go to the user's configuration, never into the store; they are readable by their owner alone.
    """
    from casstore.admin import create_store
    from casstore.ids import PrincipalName
    from casstore_client.config import DEFAULT_URL, config_path

    PrincipalName.parse(operator)
    target = config_path()
    # Checked before anything is made: a store whose keys could not be written would be lost at once.
    _refuse_to_replace(
        target, target.parent / "token", target.parent / "trust.json", target.parent / "keys" / f"{operator}.key"
    )
    created = create_store(directory, operator=operator, origin=origin)
    files = {
        f"keys/{operator}.key": created.operator_key.encode(),
        "token": created.token.secret or "",
        "trust.json": created.trust_file.decode().rstrip("\n"),
        target.name: "\n".join(
            (
                f'url = "{url or DEFAULT_URL}"',
                'token_file = "token"',
                f'key_file = "keys/{operator}.key"',
                'trust_file = "trust.json"',
            )
        ),
    }
    for name, text in files.items():
        _write_private(target.parent / name, text)
    document = {
        "store": str(directory),
        "origin": created.origin,
        "operator": operator,
        "genesis_sha256": created.trust.genesis_sha256.hex(),
        "log_vkey": created.trust.log_vkey,
        "config": str(target),
        "trust_file": str(target.parent / "trust.json"),
    }

    def people() -> None:
        click.echo(f"Created the store {directory} with the log {created.origin}.")
        rows = [
            [f"keys/{operator}.key", f"signs as {operator}: keep a copy where this machine cannot lose it"],
            ["token", "admin token of this user"],
            ["trust.json", "what clients trust: give it to hosts and auditors (casstore trust add FILE)"],
            [target.name, "settings of the casstore command"],
        ]
        click.echo(f"Written to {target.parent}, readable by you alone:")
        print_table(["file", "for"], rows)
        click.echo(f"Now: casstore serve --store {directory}")

    out.emit(document, people)


def _refuse_to_replace(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise ConfigurationError(
                f"{path} is there already",
                hint="it may be the key to another store: move it away, or name another place with CASSTORE_CONFIG or XDG_CONFIG_HOME",
            )


def _write_private(path: Path, text: str) -> None:
    """Write a new file, mode 0600, durable; directories that are not there yet are made 0700."""
    try:
        # One by one: `mkdir(parents=True)` gives the mode to the last one alone.
        for folder in reversed([path.parent, *path.parent.parents]):
            folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


@click.command()
@click.option("--store", "directory", envvar="CASSTORE_STORE", type=click.Path(path_type=Path), help=_STORE_HELP)
@click.option("--settings", "settings_file", type=click.Path(path_type=Path), help="Settings of the server (TOML).")
@click.option(
    "--listen", metavar="HOST:PORT", help="Where to listen; port 0 picks a free one [default: 127.0.0.1:7433]."
)
@click.option("--metrics-listen", metavar="HOST:PORT", help="Where /metrics is, or 'off' [default: the next port].")
@click.option("--tls-cert", metavar="FILE", help="Certificate chain (PEM).")
@click.option("--tls-key", metavar="FILE", help="Its private key (PEM).")
@click.option(
    "--insecure-listen", is_flag=True, help="Listen elsewhere than on loopback without TLS; tokens travel in the clear."
)
@click.option("--private-log", is_flag=True, help="Ask for a token on /log too.")
@click.option(
    "--confirm-clock", is_flag=True, help="The clock is right as it is now, even where the log says otherwise."
)
@click.option("--port-file", type=click.Path(path_type=Path), help="Write the URL there once requests are answered.")
@speaking
def serve(
    *,
    directory: Path | None,
    settings_file: Path | None,
    listen: str | None,
    metrics_listen: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    insecure_listen: bool,
    private_log: bool,
    confirm_clock: bool,
    port_file: Path | None,
    out: Output,
) -> None:
    """Serve a store over HTTP until it is told to stop (SIGTERM, SIGINT).

    Prints `listening on URL` to stderr once requests are answered; logs go there too, one JSON object a line.
    """
    from casstore.config import ServerSettings, TlsSettings, load_settings
    from casstore_server.fairloop import FairLoop
    from casstore_server.serve import run_server

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    settings = load_settings(settings_file) if settings_file is not None else ServerSettings()
    settings = settings.override(
        listen=listen,
        metrics_listen=metrics_listen or (_next_port(listen) if listen is not None else None),
        tls=TlsSettings(cert=tls_cert, key=tls_key) if tls_cert is not None and tls_key is not None else None,
        insecure_listen=insecure_listen or None,
        private_log=private_log or None,
    )
    found = directory or (Path(settings.store) if settings.store is not None else None)
    if found is None:
        raise click.UsageError("which store? Give --store DIR, or set CASSTORE_STORE")
    with asyncio.Runner(loop_factory=FairLoop) as runner:
        runner.run(run_server(found, settings, port_file=port_file, confirm_clock=confirm_clock))
    out.say("stopped")


def _next_port(listen: str) -> str:
    """Metrics stay on loopback, on the port behind the API's."""
    from casstore.config import parse_address

    port = parse_address(listen).port
    return f"127.0.0.1:{port + 1 if 0 < port < 65_535 else 0}"


@click.command()
@click.option("--store", "directory", envvar="CASSTORE_STORE", type=click.Path(path_type=Path), help=_STORE_HELP)
@click.option("--full", is_flag=True, help="Hash every object and put every file together.")
@click.option(
    "--rebuild-index", is_flag=True, help="Make the index anew from the packs; needs --store, and no server running."
)
@connecting
@speaking
def fsck(directory: Path | None, full: bool, rebuild_index: bool, settings: Settings, out: Output) -> None:
    """Check a store's structure and references, with --full all its bytes.

    With --store the directory is opened, which needs that no server has it open; otherwise the configured server is asked.
    Ends with exit code 6 if anything is wrong; changes nothing, but for --rebuild-index, which works when the index is lost or garbage.
    """
    if rebuild_index:
        if directory is None:
            raise click.UsageError("--rebuild-index works on a directory that no server has open: give --store DIR")
        from casstore_server.health_commands import rebuild

        rebuild(directory, out)
        return
    report = _check_directory(directory, full) if directory is not None else _check_server(settings, full)
    out.emit(report, lambda: show_report(report, "The store"))
    if not report.ok:
        raise click.exceptions.Exit(_verification_failed())


def _check_directory(directory: Path, full: bool) -> FsckReport:
    from concurrent.futures import ThreadPoolExecutor

    from casstore.admin import fsck_directory

    width = os.cpu_count() or 1
    with ThreadPoolExecutor(width) as pool:
        return fsck_directory(directory, full=full, pool=pool, width=width)


def _check_server(settings: Settings, full: bool) -> FsckReport:
    from casstore_client.cli.session import open_client

    with open_client(settings) as client:
        report: Any = client.fsck(full=full)
    return report  # type: ignore[no-any-return]


def _verification_failed() -> int:
    from casstore_client.cli.exit_codes import VERIFICATION_FAILED

    return VERIFICATION_FAILED


def show_report(report: FsckReport, what: str) -> None:
    """Print what a check found, of ``what``."""
    checked = ", ".join(f"{number} {what}" for what, number in sorted(report.checked.items()))
    click.echo(f"Checked {checked}." if checked else "Nothing could be checked.")
    for finding in report.findings:
        click.echo(f"{finding.severity}: {finding.code}: {finding.object} at {finding.where}")
        click.echo(
            f"  expected {finding.expected}, found {finding.found}" if finding.expected else f"  {finding.found}"
        )
        if finding.hint:
            click.echo(f"  {finding.hint}")
    if report.truncated:
        click.echo("There is more; the list was cut.")
    click.echo(f"{what} is whole." if report.ok else f"{what} is DAMAGED.")
