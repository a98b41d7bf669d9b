"""Where the command line finds its server, its keys and what it trusts.

Each setting comes from the first place that has it: a flag, the environment, the configuration file, the default.  The file
is TOML; ``casstore init`` writes one::

    url = "http://127.0.0.1:7433"
    token_file = "token"            # relative paths are relative to the file
    key_file = "operator.key"
    trust_file = "trust.json"

Source: docs/operations/configuration.md
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from casstore.errors import ConfigurationError

DEFAULT_URL: Final = "http://127.0.0.1:7433"
SETTINGS: Final = ("url", "token", "token_file", "key_file", "trust_file", "ca_file")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a command needs to know; secrets are read when asked for, not before."""

    url: str = DEFAULT_URL
    token: str | None = None
    token_file: Path | None = None
    key_file: Path | None = None
    trust_file: Path | None = None
    ca_file: Path | None = None
    source: Path | None = None
    """The configuration file that was read, if any."""

    def read_token(self) -> str | None:
        """The bearer token, or None if none is configured.

        Raises:
            ConfigurationError: the token file cannot be read.
        """
        if self.token is not None:
            return self.token
        return _read_secret(self.token_file, "token") if self.token_file else None

    def read_key(self) -> str:
        """The text of the signing key.

        Raises:
            ConfigurationError: no key is configured, or it cannot be read.
        """
        if self.key_file is None:
            raise ConfigurationError(
                "this command signs what it asks for, and no signing key is configured",
                hint="pass --key FILE, set CASSTORE_KEY_FILE, or make a key with `casstore key new`",
            )
        return _read_secret(self.key_file, "signing key")


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_CONFIG_HOME/casstore``, by default ``~/.config/casstore``."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_STATE_HOME/casstore``, by default ``~/.local/state/casstore``: what was verified, and must not be lost."""
    return _xdg(environ, "XDG_STATE_HOME", ".local/state")


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """``$CASSTORE_CACHE_DIR``, else ``$XDG_CACHE_HOME/casstore``, by default ``~/.cache/casstore``: what may be removed at any time."""
    named = environ.get("CASSTORE_CACHE_DIR")
    return Path(named) if named else _xdg(environ, "XDG_CACHE_HOME", ".cache")


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The configuration file: ``$CASSTORE_CONFIG``, else ``config.toml`` in :func:`config_dir`."""
    named = environ.get("CASSTORE_CONFIG")
    return Path(named) if named else config_dir(environ) / "config.toml"


def load_settings(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Gather the settings.

    Args:
        flags: values given on the command line, by setting name; None means not given.
        environ: the environment.

    Raises:
        ConfigurationError: the file is not TOML, has an unknown setting, or ``$CASSTORE_CONFIG`` names none.
    """
    path = config_path(environ)
    values = read_file(path, must_exist="CASSTORE_CONFIG" in environ)
    found = path if values is not None else None
    values = values or {}
    given = {name: environ[f"CASSTORE_{name.upper()}"] for name in SETTINGS if environ.get(f"CASSTORE_{name.upper()}")}
    given |= {name: value for name, value in (flags or {}).items() if value is not None}
    if "token" in given or "token_file" in given:
        # A nearer token beats a farther one, whichever of the two ways it is given.
        values = {name: value for name, value in values.items() if name not in ("token", "token_file")}
    values |= given
    for name in SETTINGS:
        if name.endswith("_file") and name in values:
            values[name] = Path(values[name])
    return Settings(**values, source=found)


def read_file(path: Path, *, must_exist: bool) -> dict[str, Any] | None:
    """The settings of a configuration file, paths made whole; None if it is not there.

    Raises:
        ConfigurationError: it cannot be read, has an unknown setting, or is not there and must be.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise ConfigurationError(f"CASSTORE_CONFIG names {path}, which does not exist") from None
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"the configuration {path} cannot be read: {error}") from error
    for name, value in values.items():
        if name not in SETTINGS or not isinstance(value, str):
            raise ConfigurationError(
                f"the configuration {path} has {name} = {value!r}",
                hint=f"the settings are strings: {', '.join(SETTINGS)}",
            )
        if name.endswith("_file"):
            values[name] = str(path.parent / value)
    return values


def _read_secret(path: Path, what: str) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"the {what} {path} cannot be read: {why}") from error


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    root = environ.get(variable)
    return (Path(root) if root else Path.home() / fallback) / "casstore"
