"""Measure casstore beside its peers and beside the limit of this machine.

Without ``--only`` the peers' bench runs over both corpora, then flips and start.  ``--write-docs`` makes docs/performance.md and its chart
from the last run that was kept.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from bench.corpora import bench_dir, corpora
from bench.printed import kept_text
from bench.scratch import lacks_journal, scratch_dir
from bench.steps import TITLES

CORPORA = ("python", "javascript")
SCENARIOS = ("flips", "start", "index", "bigfile", "manyfiles", "hotrange", "gcpush")


def main() -> None:
    """Run what was asked for."""
    wanted = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers end and scratch goes
    kept = wanted.json or bench_dir() / "results.json"
    if wanted.write_docs:
        from bench.document import write_document

        for path in write_document(kept, SCENARIOS):
            print(path)
        return
    if lacks_journal(scratch_dir()):
        print(
            f"{scratch_dir()} is an ext4 without a journal, where making files is slow for minutes after others were removed; "
            "set CASSTORE_BENCH_SCRATCH to a folder on another file system for figures that mean something elsewhere."
        )
    only = wanted.only or [*CORPORA, "flips", "start"]
    if any(name in CORPORA for name in only):
        _peers(wanted, [name for name in only if name in CORPORA], kept)
    for name in only:
        if name not in CORPORA:
            with kept_text(name, shlex.join(["python", "-m", "bench", *sys.argv[1:]])):
                _scenario(name, wanted)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [*CORPORA, *SCENARIOS]
    parser.add_argument("--only", action="append", choices=names, help="this alone; may be given more than once")
    parser.add_argument("--rounds", type=int, default=3, help="of the peers' bench and of hotrange")
    parser.add_argument("--peers", default="", help="competitors that take part, with commas: casstore,restic")
    parser.add_argument("--steps", default="", help=f"steps that are taken, with commas: {','.join(TITLES)}")
    parser.add_argument("--no-limits", action="store_true", help="do not measure the limits of the peers' bench")
    parser.add_argument("--build-peers", action="store_true", help="first build desync and kopia where Go is")
    parser.add_argument(
        "--json", type=Path, help="where raw results are kept (default: results.json in the bench folder)"
    )
    parser.add_argument("--write-docs", action="store_true", help="make docs/performance.md from the results kept")
    parser.add_argument("--count", type=int, help="index: chunks; manyfiles: files")
    parser.add_argument("--size", type=float, help="bigfile: gigabytes (10^9)")
    wanted = parser.parse_args()
    unknown = [step for step in wanted.steps.split(",") if step and step not in TITLES]
    if unknown:
        parser.error(f"there is no step {', '.join(unknown)}")
    return wanted


def _peers(wanted: argparse.Namespace, names: list[str], kept: Path) -> None:
    from bench.rounds import run_rounds
    from bench.tables import text_report

    if wanted.build_peers:
        from bench.go_peers import build

        build()
    run = run_rounds(
        corpora(names),
        rounds=wanted.rounds,
        only=[name for name in wanted.peers.split(",") if name],
        steps=[step for step in wanted.steps.split(",") if step] or list(TITLES),
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        limits=not wanted.no_limits,
    )
    run.write(kept)
    print(text_report(run))
    print(f"raw results: {kept}")


def _scenario(name: str, wanted: argparse.Namespace) -> None:
    if name == "start":
        from bench import start

        start.run()
    elif name == "flips":
        from bench import flips
        from bench.server import BenchServer

        with BenchServer(scratch_dir() / "server-flips") as server:
            flips.run(server)
    elif name == "index":
        from bench import index_size

        index_size.run(wanted.count or 10_000_000)
    elif name == "bigfile":
        from bench import big_file

        big_file.run(int((wanted.size or 20) * 1e9))
    elif name == "manyfiles":
        from bench import many_files

        many_files.run(wanted.count or 1_000_000)
    elif name == "hotrange":
        from bench import hot_range

        hot_range.run(wanted.rounds)
    elif name == "gcpush":
        from bench import gc_push

        gc_push.run()


if __name__ == "__main__":
    main()
