"""``casstore demo``: the whole story on real files, told as it happens.

Runs the real server and the real command line as other processes, on a temporary folder, with the interpreter's own library and the
installed packages as input.  Every step checks itself; the exit code is 0 only if all of them held.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from casstore_client.cli.commands import speaking
from casstore_client.cli.demo_damage import flip_bit_in_entry, flip_bit_in_pack
from casstore_client.cli.demo_input import change_release, compare_trees, copy_release, measure_tree
from casstore_client.cli.output import Output, colours, human_bytes, short

_START_TIMEOUT_S: Final = 20.0
_STOP_TIMEOUT_S: Final = 20.0


class DemoFailedError(click.ClickException):
    """A step did not hold."""


class Cast:
    """The command line as a person uses it: each call is a process of its own."""

    def __init__(self, home: Path, out: Output) -> None:
        self.out = out
        self._home = home
        self.steps: list[dict[str, Any]] = []
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("CASSTORE_")}
        self._environ |= {"XDG_CONFIG_HOME": str(home / "config"), "XDG_STATE_HOME": str(home / "state")}

    def environ(self, **more: str) -> dict[str, str]:
        """The environment of a call: this demo's own configuration, nothing of the user's."""
        return {**self._environ, **more}

    def call(self, *words: str, expect: int = 0, show: bool = True, url: str | None = None) -> dict[str, Any]:
        """Run ``casstore WORDS --json`` and give what it printed.

        Raises:
            DemoFailedError: it ended with another exit code than ``expect``.
        """
        if show:
            self.tell_command(words)
        environ = self.environ(CASSTORE_URL=url) if url else self.environ()
        command = [sys.executable, "-m", "casstore_client.cli", *words, "--json"]
        done = subprocess.run(command, env=environ, cwd=self._home, capture_output=True, check=False)  # noqa: S603 our own program
        if done.returncode != expect:
            said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            raise DemoFailedError(f"casstore {' '.join(words)}: exit code {done.returncode}, expected {expect}\n{said}")
        found = msgspec.json.decode(done.stdout)
        assert isinstance(found, dict)
        return found

    def tell_command(self, words: Sequence[str]) -> None:
        """Show a command as one would type it."""
        shown = " ".join(f"'{word}'" if " " in word else word for word in words)
        self.say(click.style(f"    $ casstore {shown}", fg="cyan") if colours() else f"    $ casstore {shown}")

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        self.say("")
        self.say(click.style(title, bold=True) if colours() else title)

    def say(self, sentence: str) -> None:
        """Tell a person."""
        if not self.out.json and not self.out.quiet:
            click.echo(sentence)

    def check(self, held: bool, what: str, **facts: Any) -> None:
        """Record a step and go on if it held.

        Raises:
            DemoFailedError: it did not.
        """
        self.steps.append({"what": what, "ok": held, **facts})
        if not held:
            raise DemoFailedError(f"this did not hold: {what}")
        self.say(f"    {click.style('ok', fg='green') if colours() else 'ok'}  {what}")


class Server:
    """``casstore serve`` on a free loopback port, stopped when the block ends."""

    def __init__(self, cast: Cast, store: Path, work: Path) -> None:
        self._port_file = work / f"{store.name}.url"
        self._log = (work / f"{store.name}.log").open("wb")
        command = [
            sys.executable,
            "-m",
            "casstore_client.cli",
            "serve",
            "--store",
            str(store),
            "--listen",
            "127.0.0.1:0",
        ]
        command += ["--port-file", str(self._port_file), "--metrics-listen", "off"]
        self._process = subprocess.Popen(command, env=cast.environ(), stdout=self._log, stderr=self._log)  # noqa: S603
        self.url = ""

    def __enter__(self) -> Server:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._port_file.exists() or not self._port_file.read_text().strip():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise DemoFailedError(f"the server did not start: {Path(self._log.name).read_text('utf-8', 'replace')}")
            time.sleep(0.02)
        self.url = self._port_file.read_text().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to stop, wait; it drains and closes the store."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()


@click.command()
@click.option("--keep", is_flag=True, help="Keep the temporary folder, to look around in it.")
@speaking
def demo(keep: bool, out: Output) -> None:
    """Run the whole story on real files, in a temporary folder: push, flip, roll back, audit, and find damage."""
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="casstore-demo-"))
    cast = Cast(work, out)
    try:
        facts = _tell(cast, work)
    finally:
        if keep:
            cast.say(f"\nEverything is kept in {work}")
        else:
            _remove(work)
    seconds = time.monotonic() - began
    document = {"ok": True, "seconds": round(seconds, 1), **facts, "steps": cast.steps}
    out.emit(document, lambda: click.echo(f"\nAll {len(cast.steps)} checks held, in {seconds:.1f} s."))


def _tell(cast: Cast, work: Path) -> dict[str, Any]:
    release_1, release_2, store = work / "release-1", work / "release-2", work / "store"
    _gather(cast, release_1, release_2)
    cast.chapter("2. A store and its server")
    cast.say(
        "    `init` makes the store, its signing keys, the first policy, and the trust file that clients verify against."
    )
    cast.call("init", store.name)
    with Server(cast, store, work) as server:
        cast.say(f"    serving on {server.url}")
        first, second = _push_both(cast, release_1, release_2, server.url)
        snapshots = _snapshots(cast, first, second, server.url)
        flips = _flip_and_roll_back(cast, snapshots, work, (release_1, release_2), server.url)
        _audit_clean(cast, server.url)
        entry = cast.call("log", "show", str(flips[1]), show=False, url=server.url)
    _damage(cast, work, store, entry, flips[1])
    return {
        "release_1": {"digest": first["digest"], "files": first["files"], "size_bytes": first["size_bytes"]},
        "release_2": {"digest": second["digest"], "files": second["files"], "sent_bytes": second["sent_bytes"]},
    }


def _gather(cast: Cast, release_1: Path, release_2: Path) -> None:
    cast.chapter("1. Two releases of something real")
    sources = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platlib"))]
    cast.say("    Release 1 is this machine's Python library and its installed packages.")
    copy_release(sources, release_1)
    files, size = measure_tree(release_1)
    cast.check(
        files >= 1000 and size >= 50_000_000,
        f"release 1 has {files:,} files, {human_bytes(size)}",
        files=files,
        size_bytes=size,
    )
    shutil.copytree(release_1, release_2, symlinks=True)
    changes = change_release(release_2)
    cast.say(f"    Release 2 is the same with {changes}.")


def _push_both(cast: Cast, release_1: Path, release_2: Path, url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    cast.chapter("3. A build agent pushes both")
    first = cast.call("push", release_1.name, "--name", "demo", "--label", "release=1", url=url)
    _tell_push(cast, "release 1", first)
    second = cast.call("push", release_2.name, "--name", "demo", "--label", "release=2", url=url)
    _tell_push(cast, "release 2", second)
    saved = 100 - 100 * second["sent_bytes"] / max(second["size_bytes"], 1)
    cast.check(
        second["sent_bytes"] * 10 < second["size_bytes"],
        f"release 2 sent {human_bytes(second['sent_bytes'])} of its {human_bytes(second['size_bytes'])}: deduplication saved {saved:.1f} %",
        saved_percent=round(saved, 1),
    )
    again = cast.call("push", release_2.name, "--name", "demo", "--label", "release=2-again", url=url)
    cast.check(
        again["digest"] == second["digest"] and again["new_chunks"] == 0,
        "pushing it again sends no content and gives the same digest",
    )
    found = cast.call("diff", short(first["digest"]), short(second["digest"]), url=url)
    changed = [file for component in found["components"] for file in component["files"]]
    for file in changed[:12]:
        cast.say(f"       {file['change']:8} {file.get('path')}")
    cast.check(bool(changed), f"diff names the {len(changed)} paths that differ")
    return first, second


def _tell_push(cast: Cast, what: str, pushed: dict[str, Any]) -> None:
    rate = pushed["size_bytes"] / max(pushed["seconds"], 1e-9)
    sentence = (
        f"{what} is {short(pushed['digest'])}: {pushed['files']:,} files, {human_bytes(pushed['size_bytes'])}, "
        f"{human_bytes(pushed['sent_bytes'])} sent in {pushed['seconds']:.2f} s ({human_bytes(int(rate))}/s), durable and proven"
    )
    cast.check(pushed["digest"].startswith("blake3:"), sentence, seconds=pushed["seconds"])


def _snapshots(cast: Cast, first: dict[str, Any], second: dict[str, Any], url: str) -> tuple[str, str]:
    cast.chapter("4. Snapshots describe an environment")
    made: list[str] = []
    for number, pushed in ((1, first), (2, second)):
        words = [
            "snapshot",
            "create",
            f"app={short(pushed['digest'])}",
            "--label",
            f"release={number}",
            "-m",
            f"release {number}",
        ]
        if made:
            words += ["--parent", short(made[0])]
        made.append(cast.call(*words, url=url)["digest"])
    cast.check(made[0] != made[1], f"snapshots {short(made[0])} and {short(made[1])} are published in the log")
    return made[0], made[1]


def _flip_and_roll_back(
    cast: Cast, snapshots: tuple[str, str], work: Path, releases: tuple[Path, Path], url: str
) -> tuple[int, int, int]:
    cast.chapter("5. Flip the pointer: release 1, then release 2")
    flips: list[int] = []
    times: list[str] = []
    for number, (snapshot, origin) in enumerate(zip(snapshots, releases, strict=True), 1):
        expect = f"f{flips[-1]}" if flips else "none"
        answer = cast.call(
            "flip", "prod/demo", short(snapshot), "--expect", expect, "-m", f"CHG-{number}: release {number}", url=url
        )
        (pointer,) = answer["pointers"]
        flips.append(pointer["flip"])
        times.append(pointer["since"])
        cast.check(
            pointer["snapshot"] == snapshot,
            f"prod/demo is at f{flips[-1]}: {short(snapshot)}, logged, signed and proven",
        )
        _pull_and_compare(cast, snapshot, work / f"pulled-{number}", origin, url)
    lost = cast.call("flip", "prod/demo", short(snapshots[0]), "--expect", f"f{flips[0]}", expect=4, url=url)
    cast.check(
        lost["error"]["code"] == "precondition-failed",
        f"a deployer who saw f{flips[0]} is refused: {lost['error']['detail']}",
    )

    cast.chapter("6. 2 AM: roll back")
    began = time.monotonic()
    answer = cast.call("rollback", "prod/demo", "--expect", f"f{flips[1]}", "-m", "error rate is up", url=url)
    seconds = time.monotonic() - began
    (pointer,) = answer["pointers"]
    flips.append(pointer["flip"])
    cast.check(
        pointer["snapshot"] == snapshots[0] and bool(pointer["hold"]),
        f"prod/demo is back at {short(snapshots[0])} (f{flips[2]}) after {1000 * seconds:.0f} ms, the command's start included",
        milliseconds=round(1000 * seconds),
    )
    held = cast.call("flip", "prod/demo", short(snapshots[1]), "--expect", f"f{flips[2]}", expect=4, url=url)
    cast.check(
        held["error"]["code"] == "snapshot-bad",
        "automation can not put release 2 back: it is marked bad and the pointer is held",
    )
    _tell_history(cast, snapshots, times, url)
    return flips[0], flips[1], flips[2]


def _pull_and_compare(cast: Cast, snapshot: str, dest: Path, origin: Path, url: str) -> None:
    shown = cast.call("snapshot", "show", snapshot, show=False, url=url)
    pulled = cast.call("pull", short(shown["components"][0]["digest"]), dest.name, url=url)
    difference = compare_trees(origin, dest)
    rate = pulled["size_bytes"] / max(pulled["seconds"], 1e-9)
    told = f"pulled {pulled['files']:,} files in {pulled['seconds']:.2f} s ({human_bytes(int(rate))}/s)"
    cast.check(
        difference is None,
        f"{told}; bytes, modes and links equal the origin's" + (f": {difference}" if difference else ""),
    )
    shutil.rmtree(dest)


def _tell_history(cast: Cast, snapshots: tuple[str, str], times: list[str], url: str) -> None:
    cast.chapter("7. What happened, and what was live when")
    history = cast.call("history", "prod/demo", url=url)["items"]
    for item in history:
        what = f"{item['kind']:9} {short(item['to'])}  {item['status']:9}"
        cast.say(f"       f{item['flip']:<3} {item['at']}  {what} {item['by']}: {item['reason']}")
    cast.check(
        [item["to"] for item in history] == [snapshots[0], snapshots[1], snapshots[0]],
        "history tells all three flips, newest first",
    )
    for moment, snapshot in zip(times, snapshots, strict=True):
        found = cast.call("at", "prod/demo", moment, url=url)
        cast.check(found["snapshot"] == snapshot, f"at {moment} {short(snapshot)} was live; the proof was verified")


def _audit_clean(cast: Cast, url: str) -> None:
    cast.chapter("8. An auditor verifies everything, without trusting the server")
    report = cast.call("audit", "--full", url=url)
    for level in report["levels"]:
        cast.say(f"       level {level['level']}: {level['name']}: {level['detail']}")
    cast.check(report["ok"], f"the log of {report['size']} entries and all content hold")


def _damage(cast: Cast, work: Path, store: Path, entry: dict[str, Any], index: int) -> None:
    cast.chapter("9. Damage a copy: one bit in a pack, one bit in the ledger")
    copy = work / "damaged"
    shutil.copytree(store, copy)
    pack = flip_bit_in_pack(copy)
    flip_bit_in_entry(copy, entry["entry_b64"])
    cast.say(
        f"    flipped a bit in pack {pack.pack} at offset {pack.offset}, and one in log entry {index} (the flip to release 2)"
    )
    with Server(cast, copy, work) as server:
        report = cast.call("audit", "--full", expect=6, url=server.url)
    found = report["findings"]
    for finding in found:
        cast.say(f"       level {finding['level']}: {finding['object']} {finding['where']}")
        cast.say(f"         expected {finding['expected']}, found {finding['found']}")
    in_pack = [f for f in found if pack.pack in f"{f['object']} {f['where']}" and pack.object in f["object"]]
    in_log = [level for level in report["levels"] if level["first_bad_index"] == index]
    cast.check(bool(in_pack), f"audit names the damaged chunk {pack.object[:12]} and its pack")
    cast.check(bool(in_log), f"audit names the damaged log entry {index}")


def _remove(work: Path) -> None:
    for directory, _, _ in os.walk(work):
        Path(directory).chmod(0o700)
    shutil.rmtree(work)
