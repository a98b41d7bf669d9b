"""``casstore version``"""

from __future__ import annotations

import click

from casstore import __version__
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output


@click.command()
@speaking
def version(out: Output) -> None:
    """Show the version."""
    out.emit({"version": __version__}, lambda: click.echo(f"casstore {__version__}"))
