"""``casstore completion``"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from casstore_client.cli.commands import casstore


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  eval "$(casstore completion bash)"
    zsh:   eval "$(casstore completion zsh)"
    fish:  casstore completion fish | source
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(casstore, {}, "casstore", "_CASSTORE_COMPLETE").source())
