"""Every path that a file system can hold goes in and comes out; what is no file, directory or link is refused by name."""

from __future__ import annotations

import os
import random
import socket
import stat
from pathlib import Path

import pytest

from casstore.errors import InvalidInput
from casstore_client import AsyncClient
from tests.support.filetrees import Seen, make_tree, read_tree
from tests.support.server import Running


async def round_trip(server: Running, top: Path, copy: Path) -> None:
    """Push, pull, compare; then push the copy: it must be the same tree."""
    async with AsyncClient(server.url, token=server.created.token.secret) as client:
        pushed = await client.push(top)
        await client.pull(pushed.digest, copy, sync=False)
        again = await client.push(copy)
        assert again.digest == pushed.digest
        assert again.sent_bytes == 0


@pytest.mark.parametrize(
    "names",
    [
        [b"\xff\xfe\xfd", b"caf\xe9", b"\x80", "café".encode(), "cafe\u0301".encode()],
        [b"line\nbreak", b"tab\t", b"\r", b"\x01", b"\x1b[2J", b" ", b"  ", b"-rf", b"~", b"*", b"\\", b'"', b"'"],
        [b"a", b"a-b", b"a b", b"a.b", b"a0", b"A", b"aa", b"a\xff"],
        [b"...", b"..a", b".a", b".hidden", b"a.", b"a..", b"...."],
        [b"x" * 255, b"y" * 254, b"\xff" * 255, "é".encode() * 127],
        [b".removing-0", b".copy.casstore-000000000000", b"CON", b"nul.txt"],
    ],
)
async def test_odd_names(server: Running, tmp_path: Path, names: list[bytes]) -> None:
    """As files, as directories, as links and as their targets."""
    top = make_tree(tmp_path / "tree", {name: name for name in names})
    for name in names:
        make_tree(top, {b"as-directory/" + name + b"/" + name: name, b"empty/" + name: None})
        os.makedirs(top / "links", exist_ok=True)
        os.symlink(name, os.path.join(os.fsencode(top), b"links", name))
    await round_trip(server, top, tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == read_tree(top)


async def test_a_tree_deeper_than_a_path_may_be_long(server: Running, tmp_path: Path) -> None:
    """200 levels of 255-byte names: 51,000 bytes of path, twelve times what the kernel takes."""
    (tmp_path / "tree").mkdir()
    fd = os.open(tmp_path / "tree", os.O_RDONLY)
    for level in range(200):
        name = bytes([ord("a") + level % 26]) * 255
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        for extra, data in ((b"file", b"%d" % level), (b"zz-last", b"")):
            file = os.open(extra, os.O_WRONLY | os.O_CREAT, dir_fd=below)
            os.write(file, data)
            os.close(file)
        os.symlink(b"../file", b"up", dir_fd=below)
        os.close(fd)
        fd = below
    os.close(fd)
    await round_trip(server, tmp_path / "tree", tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == read_tree(tmp_path / "tree")


async def test_links_point_where_they_like(server: Running, tmp_path: Path) -> None:
    """Stored as they are, never followed: neither when read nor when written."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    os.chmod(tmp_path / "outside", 0o750)
    top = make_tree(tmp_path / "tree", {b"d/f": b"f"})
    targets = ["/", "/etc/passwd", "..", "../../..", ".", "self", "d", "d/f", "no/where", "x" * 4000, "\udcff", "a\nb"]
    targets += [str(tmp_path / "outside"), str(tmp_path / "outside" / "secret")]
    for number, target in enumerate(targets):
        os.symlink(target, top / f"link-{number:02}")
    os.symlink("self", top / "self")
    os.symlink("d", top / "d-link")
    await round_trip(server, top, tmp_path / "copy")
    found = read_tree(tmp_path / "copy")
    assert found == read_tree(top)
    assert found[b"link-13"] == Seen(stat.S_IFLNK, str(tmp_path / "outside" / "secret"), 0)
    assert read_tree(tmp_path / "outside").keys() == {b"", b"secret"}
    assert stat.S_IMODE(os.stat(tmp_path / "outside").st_mode) == 0o750


async def test_every_mode(server: Running, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    chance = random.Random(7)
    modes = sorted({0, 0o777, 0o7777, 0o4755, 0o2755, 0o1777, 0o444, *chance.sample(range(0o10000), 100)})
    make_tree(
        top, {b"files/%o" % mode: b"x" for mode in modes} | {b"directories/%o/inner" % mode: b"" for mode in modes}
    )
    for mode in modes:
        os.chmod(top / "files" / f"{mode:o}", mode)
        os.chmod(top / "directories" / f"{mode:o}", mode)
    os.chmod(top, 0o511)
    await round_trip(server, top, tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == read_tree(top)


async def test_nothing_but_directories_and_nothing_at_all(server: Running, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    await round_trip(server, tmp_path / "empty", tmp_path / "copy")
    assert os.listdir(tmp_path / "copy") == []
    top = make_tree(tmp_path / "tree", {b"a/b/c": None, b"a-b": None, b"z": b""})
    await round_trip(server, top, tmp_path / "copy-2")
    assert read_tree(tmp_path / "copy-2") == read_tree(top)


def _many(top: Path, count: int) -> None:
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for number in range(count):
        file = os.open(b"file-%06d" % number, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        os.write(file, b"%d" % number)
        os.close(file)
    os.close(fd)


async def test_many_files_in_one_directory(server: Running, tmp_path: Path) -> None:
    _many(tmp_path / "tree", 8_000)
    await round_trip(server, tmp_path / "tree", tmp_path / "copy")
    assert len(os.listdir(tmp_path / "copy")) == 8_000


@pytest.mark.slow
async def test_a_hundred_thousand_files_in_one_directory(server: Running, tmp_path: Path) -> None:
    _many(tmp_path / "tree", 100_000)
    await round_trip(server, tmp_path / "tree", tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == read_tree(tmp_path / "tree")


async def _sparse(server: Running, tmp_path: Path, size: int) -> None:
    (tmp_path / "tree").mkdir()
    with open(tmp_path / "tree" / "image", "wb") as file:
        file.seek(size // 2)
        file.write(b"something in the middle")
        file.truncate(size)
    await round_trip(server, tmp_path / "tree", tmp_path / "copy")
    info = os.stat(tmp_path / "copy" / "image")
    assert info.st_size == size
    assert info.st_blocks * 512 < 10_000_000, "holes come back as holes"
    with open(tmp_path / "copy" / "image", "rb") as file:
        file.seek(size // 2)
        assert file.read(24) == b"something in the middle\0"


async def test_a_sparse_file(server: Running, tmp_path: Path) -> None:
    await _sparse(server, tmp_path, 200_000_000)


@pytest.mark.slow
async def test_a_sparse_file_of_5_gb(server: Running, tmp_path: Path) -> None:
    await _sparse(server, tmp_path, 5_000_000_000)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_special_files_are_refused_by_name(
    server: Running, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe must not hang a build, and nothing is committed."""
    top = make_tree(tmp_path / "tree", {b"d/a": b"", b"z": b""})
    listener = socket.socket(socket.AF_UNIX)
    if kind == "pipe":
        os.mkfifo(top / "d" / "the-special-one")
    else:
        monkeypatch.chdir(top / "d")
        listener.bind("the-special-one")
    async with AsyncClient(server.url, token=server.created.token.secret) as client:
        with pytest.raises(InvalidInput, match=rf"d/the-special-one is a (named )?{kind}"):
            await client.push(top)
        assert (await client.artifacts()).artifacts == []
    listener.close()


async def test_a_name_is_shown_without_its_control_characters(server: Running, tmp_path: Path) -> None:
    """An error message must not be able to rewrite someone's terminal."""
    (tmp_path / "tree").mkdir()
    os.mkfifo(os.path.join(os.fsencode(tmp_path), b"tree", b"\x1b[2J\xff\n"))
    async with AsyncClient(server.url, token=server.created.token.secret) as client:
        with pytest.raises(InvalidInput) as caught:
            await client.push(tmp_path / "tree")
    assert "\\x1b[2J\\xff\\n is a named pipe" in str(caught.value)


async def test_a_link_given_by_name_is_followed(server: Running, tmp_path: Path) -> None:
    top = make_tree(tmp_path / "tree", {b"f": b"x"})
    os.symlink(top, tmp_path / "current")
    async with AsyncClient(server.url, token=server.created.token.secret) as client:
        assert (await client.push(tmp_path / "current")).digest == (await client.push(top)).digest
