"""Artifacts: what builds pushed, newest first, whatever the filter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.engine.artifacts import ArtifactService, NewArtifact, check_labels
from casstore.errors import ArtifactNotFound, InvalidInput, InvalidName, TooLarge
from casstore.hashing import blake3_256
from casstore.ids import ArtifactName, PushId, TreeDigest
from casstore.wire import Label
from tests.support.treebuild import Content, new_push, open_local


@pytest.fixture(params=["memory", "local"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactService]:
    if request.param == "memory":
        yield Content().artifacts
        return
    opened, close = open_local(tmp_path / "store")
    yield opened.artifacts
    close()


def new(
    number: int, name: str | None = None, labels: tuple[Label, ...] = (), push: PushId | None = None
) -> NewArtifact:
    digest = TreeDigest(blake3_256(str(number).encode()))
    parsed = None if name is None else ArtifactName.parse(name)
    return NewArtifact(push or new_push(), parsed, "tree", digest, labels, 10 * number, number)


def numbers(artifacts: ArtifactService, **filters: str) -> list[int]:
    return [artifact.number for artifact in artifacts.list(**filters).artifacts]  # type: ignore[arg-type]


def test_numbers_follow_arrival(artifacts: ArtifactService) -> None:
    """The order of a listing is the order of pushes."""
    for number in range(1, 6):
        assert artifacts.add(new(number, "a"), by="ci").number == number
    assert numbers(artifacts) == [5, 4, 3, 2, 1]
    got = artifacts.get(3)
    assert (got.size_bytes, got.files, got.by, got.name) == (30, 3, "ci", "a")
    for missing in (0, 6, -1, 1 << 70):
        with pytest.raises(ArtifactNotFound):
            artifacts.get(missing)


def test_listing_by_name_and_label(artifacts: ArtifactService) -> None:
    """A name must not match the names that begin with it."""
    artifacts.add(new(1, "api", (Label("git", "a1"), Label("ci", "1"))), by="ci")
    artifacts.add(new(2, "api/x", (Label("git", "b2"),)), by="ci")
    artifacts.add(new(3, None), by="ci")
    artifacts.add(new(4, "api", (Label("git", "b2"),)), by="ci")
    assert numbers(artifacts, name="api") == [4, 1]
    assert numbers(artifacts, label="git=b2") == [4, 2]
    assert numbers(artifacts, label="git") == [4, 2, 1]
    assert numbers(artifacts, label="git=b2", name="api") == [4]
    assert numbers(artifacts, label="git=") == []
    with pytest.raises(InvalidName):
        artifacts.list(name="")


@pytest.mark.parametrize("name", [None, "a"])
def test_a_cursor_goes_on_where_the_page_ended(artifacts: ArtifactService, name: str | None) -> None:
    """Pages together are the whole list, each artifact once."""
    for number in range(1, 12):
        artifacts.add(new(number, "a"), by="ci")
    seen: list[int] = []
    after: str | None = None
    while True:
        page = artifacts.list(name=name, after=after, limit=4)
        seen += [artifact.number for artifact in page.artifacts]
        if page.next is None:
            break
        after = page.next
    assert seen == list(range(11, 0, -1))


def test_bad_cursors_and_limits(artifacts: ArtifactService) -> None:
    """Nonsense is refused, never guessed at."""
    for after in ("x", "-1", "", "9" * 30, "²"):
        with pytest.raises(InvalidInput):
            artifacts.list(after=after)
    for limit in (0, -1, 1001):
        with pytest.raises(InvalidInput):
            artifacts.list(limit=limit)


def test_one_push_makes_an_artifact_once_for_each_thing_it_asks(artifacts: ArtifactService) -> None:
    """A retry is the same artifact; another name is another one."""
    push = new_push()
    first = artifacts.add(new(1, "a", push=push), by="ci")
    assert artifacts.add(new(1, "a", push=push), by="ci") == first
    assert artifacts.add(new(1, "b", push=push), by="ci").number == 2
    assert artifacts.add(new(1, "a"), by="ci").number == 3


def test_too_many_labels() -> None:
    """Rows stay small."""
    with pytest.raises(TooLarge):
        check_labels([Label(f"k{n}", "") for n in range(65)])


def test_what_is_removed_is_gone_and_its_number_is_not_given_again(artifacts: ArtifactService) -> None:
    """A script that noted number 3 must never find another artifact there."""
    pushes = [new_push() for _ in range(3)]
    for number, push in enumerate(pushes, 1):
        artifacts.add(new(number, "api", push=push), by="ci")
    assert artifacts.remove(2, dry_run=True).number == 2
    assert numbers(artifacts, name="api") == [3, 2, 1]
    assert artifacts.remove(3).name == "api"
    assert artifacts.remove(1).number == 1
    assert numbers(artifacts) == numbers(artifacts, name="api") == [2]
    for gone in (1, 3):
        for ask in (artifacts.get, artifacts.remove):
            with pytest.raises(ArtifactNotFound):
                ask(gone)
    assert artifacts.remove(2).number == 2
    assert artifacts.add(new(4, "api"), by="ci").number == 4
    # A push that is asked again after its artifact was removed is a push like any other.
    assert artifacts.add(new(3, "api", push=pushes[2]), by="ci").number == 5
    assert numbers(artifacts) == [5, 4]
