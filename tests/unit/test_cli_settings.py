"""Where the command line takes its settings from: the nearest place wins, and a wrong one is never passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from casstore.errors import ConfigurationError
from casstore_client.config import DEFAULT_URL, Settings, config_dir, load_settings, state_dir


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config" / "casstore").mkdir(parents=True)
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}


def write(environ: dict[str, str], text: str) -> Path:
    path = config_dir(environ) / "config.toml"
    path.write_text(text)
    return path


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(environ: dict[str, str]) -> None:
    """Who says it nearer to the command means it more."""
    assert load_settings({}, environ).url == DEFAULT_URL
    path = write(environ, 'url = "http://file"\n')
    found = load_settings({}, environ)
    assert (found.url, found.source) == ("http://file", path)
    nearer = {**environ, "CASSTORE_URL": "http://environment"}
    assert load_settings({"url": None}, nearer).url == "http://environment"
    assert load_settings({"url": "http://flag"}, nearer).url == "http://flag"


def test_a_nearer_token_beats_a_farther_one_whichever_way_it_is_given(environ: dict[str, str], tmp_path: Path) -> None:
    """The operator's token in the file must not go out where a job's own token was named."""
    path = write(environ, 'token = "of the file"\ntrust_file = "trust.json"\n')
    (tmp_path / "job").write_text("of the job\n")
    assert load_settings({}, environ).read_token() == "of the file"
    assert load_settings({"token_file": str(tmp_path / "job")}, environ).read_token() == "of the job"
    named = {**environ, "CASSTORE_TOKEN": "of the environment"}
    assert load_settings({}, named).read_token() == "of the environment"
    assert load_settings({}, environ).trust_file == path.parent / "trust.json"


def test_a_file_that_is_named_must_be_there_and_right(environ: dict[str, str], tmp_path: Path) -> None:
    """A misspelt setting would otherwise be a silence."""
    named = {**environ, "CASSTORE_CONFIG": str(tmp_path / "missing.toml")}
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_settings({}, named)
    for text in ("url = 7\n", 'uri = "http://x"\n', "not toml", '[url]\nx = "y"\n'):
        write(environ, text)
        with pytest.raises(ConfigurationError):
            load_settings({}, environ)


def test_secrets_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """`version` works without a key; a command that signs says what is missing."""
    settings = Settings(token_file=tmp_path / "token", key_file=tmp_path / "key")
    with pytest.raises(ConfigurationError, match="token"):
        settings.read_token()
    with pytest.raises(ConfigurationError, match="signing key"):
        settings.read_key()
    with pytest.raises(ConfigurationError, match="no signing key"):
        Settings().read_key()
    assert Settings().read_token() is None


def test_the_state_lies_apart_from_the_configuration(environ: dict[str, str]) -> None:
    """Configuration is copied between machines; what this machine has verified is not."""
    assert state_dir(environ) != config_dir(environ)
    assert state_dir({}).parts[-3:] == (".local", "state", "casstore")
