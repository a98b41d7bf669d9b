"""The tree of commands: names, groups and global flags; each command itself is imported when it is called."""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

from casstore_client.cli.output import Output

COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    # name: (group in the help, "module:attribute", one line)
    "demo": ("run", "casstore_client.cli.demo:demo", "Run the whole story on real files, in a temporary folder."),
    "init": ("run", "casstore_server.commands:init", "Create a store, its keys, its first policy and its trust file."),
    "serve": ("run", "casstore_server.commands:serve", "Serve a store over HTTP."),
    "trust": ("run", "casstore_client.cli.trust:trust", "Say which log this user trusts."),
    "status": ("run", "casstore_client.cli.pointers:status", "Show the server, or what a pointer names now."),
    "version": ("run", "casstore_client.cli.version:version", "Show the version."),
    "completion": ("run", "casstore_client.cli.completion:completion", "Print the completion script of a shell."),
    "push": ("content", "casstore_client.cli.content:push", "Push a directory, a file or stdin."),
    "pull": ("content", "casstore_client.cli.content:pull", "Restore a tree or blob, bit for bit."),
    "cat": ("content", "casstore_client.cli.content:cat", "Print a blob, or a file of a tree."),
    "ls": ("content", "casstore_client.cli.content:ls", "List a tree."),
    "diff": ("content", "casstore_client.cli.content:diff", "Compare two trees or two snapshots."),
    "artifacts": ("content", "casstore_client.cli.artifacts:artifacts", "List what was pushed, or remove it."),
    "snapshot": ("snapshots", "casstore_client.cli.snapshots:snapshot", "Create, show and list snapshots."),
    "export": (
        "content",
        "casstore_client.cli.exchange:export",
        "Write snapshots to a file, for a site without network.",
    ),
    "import": ("content", "casstore_client.cli.exchange:import_", "Bring such a file into this server."),
    "flip": ("pointers", "casstore_client.cli.pointers:flip", "Make a pointer name another snapshot."),
    "rollback": ("pointers", "casstore_client.cli.pointers:rollback", "Go back to an earlier snapshot."),
    "promote": ("pointers", "casstore_client.cli.pointers:promote", "Flip one pointer to what another names."),
    "retire": ("pointers", "casstore_client.cli.pointers:retire", "Make a pointer name nothing."),
    "hold": ("pointers", "casstore_client.cli.pointers:hold", "Block flips of a pointer, rollbacks excepted."),
    "release": ("pointers", "casstore_client.cli.pointers:release", "End a hold."),
    "mark": ("pointers", "casstore_client.cli.pointers:mark", "Mark a pointer's snapshot good or bad."),
    "history": ("pointers", "casstore_client.cli.pointers:history", "List a pointer's flips."),
    "at": ("pointers", "casstore_client.cli.pointers:at", "Show what was live at a time."),
    "audit": ("audit", "casstore_client.cli.audit:audit", "Verify the whole log, and with --full all content."),
    "log": ("audit", "casstore_client.cli.log:log", "Show entries and prove them."),
    "gc": ("operate", "casstore_server.gc_commands:gc", "Collect what nothing needs any more."),
    "pin": ("operate", "casstore_client.cli.pins:pin", "Keep something whatever its age, or list what is kept."),
    "unpin": ("operate", "casstore_client.cli.pins:unpin", "Take a pin away."),
    "fsck": ("operate", "casstore_server.commands:fsck", "Check a store's structure and references."),
    "backup": ("operate", "casstore_server.care_commands:backup", "Copy a store, also one that is being served."),
    "restore": ("operate", "casstore_server.care_commands:restore", "Make a store out of a backup."),
    "upgrade": ("operate", "casstore_server.care_commands:upgrade", "Convert a store to this version's format."),
    "scrub": ("operate", "casstore_server.health_commands:scrub", "Read everything again, and hash it."),
    "quarantine": ("operate", "casstore_server.health_commands:quarantine", "Show damaged objects, or release one."),
    "repair": ("operate", "casstore_server.repair_commands:repair", "Get back what is damaged from who has it."),
    "affected": ("operate", "casstore_server.repair_commands:affected", "Say what needs a damaged object."),
    "token": ("operate", "casstore_client.cli.operate:token", "Create, list and revoke bearer tokens."),
    "key": ("operate", "casstore_client.cli.operate:key", "Make and show signing keys."),
    "policy": ("operate", "casstore_client.cli.operate:policy", "Show the policy, or replace it."),
}
GROUPS: Final = {
    "run": "Run",
    "content": "Content",
    "snapshots": "Snapshots",
    "pointers": "Pointers",
    "audit": "Audit",
    "operate": "Operate",
}


class ReaderGone(Exception):
    """Nobody reads our output any more."""


class LazyGroup(click.Group):
    """Finds commands in :data:`COMMANDS` and imports them when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][1].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error  # click would end with 1, and fail a script with pipefail

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The one-liners stand in the table, so that help imports no command.
        for group, title in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (where, _, line) in COMMANDS.items() if where == group])


def speaking(command: Any) -> Any:
    """Decorate a command: adds ``--json``, ``--quiet`` and ``-v``, and hands an :class:`Output` as ``out``."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    @click.option("-v", "--verbose", count=True, help="Say more.")
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbose: int, **kwargs: Any) -> Any:
        return command(*args, out=Output(json=as_json, quiet=quiet, verbose=verbose), **kwargs)

    wrapped.__name__ = command.__name__
    wrapped.__doc__ = command.__doc__
    wrapped.__click_params__ = wrapped.__click_params__ + getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return wrapped


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def casstore() -> None:
    """A content-addressed artifact store and rollback engine.

    Push what a build made, flip a pointer to it, roll back at once, and prove afterwards what was live and who allowed it.
    """
