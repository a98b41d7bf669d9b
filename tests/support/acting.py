"""Pushes and signs over HTTP for tests of the server: the shortest honest client, without the client's code."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from casstore.formats.acts import FlipArgs, HoldArgs, MarkArgs, Member, ReleaseArgs, args_of, flip_args
from casstore.formats.canonical import encode_canonical
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.snapshot import snapshot_digest
from casstore.ids import PointerName, PushId, SnapshotDigest
from casstore.merkle import EMPTY_ROOT
from casstore.signing import SigningKey
from casstore.wire import MEDIA_IDS, MEDIA_PACK
from tests.support.server import Http, Reply
from tests.support.treebuild import BuiltBlob, BuiltTree, Files, build_tree, encode_packs


def push(http: Http, built: BuiltTree | BuiltBlob, name: str | None = None) -> dict[str, Any]:
    """The three steps of a push; returns the artifact."""
    push_id = PushId(os.urandom(16))
    chunks = b"".join(built.chunks)
    if chunks:
        assert http.post(f"/v1/pushes/{push_id}/missing?kind=chunk", chunks, MEDIA_IDS).status == 200
    for pack, data in encode_packs(built.objects()):
        reply = http.post(f"/v1/pushes/{push_id}/packs?pack={pack}", data, MEDIA_PACK)
        assert reply.status == 201, reply.body
    reply = http.post(f"/v1/pushes/{push_id}/commit", msgspec.json.encode(built.request(name)))
    assert reply.status == 201, reply.body
    return dict(reply.json)


class Signer:
    """Signs intents with one key and sends them.

    Args:
        http: the server, with a token that may do everything.
        key: of a principal of the policy.
        origin: the log's.
    """

    def __init__(self, http: Http, key: SigningKey, origin: str) -> None:
        self.http = http
        self.key = key
        self.origin = origin

    def intent(self, act: str, args: Any, **changes: Any) -> dict[str, Any]:
        """A signed intent as JSON; ``changes`` replace fields of it before it is signed."""
        now = time.time_ns() // 1_000_000
        policy = self.http.get("/v1/policy").json["version"]
        fields: dict[str, Any] = {
            "act": act,
            "args": args_of(args),
            "exp": now + 60_000,
            "iat": now,
            "log": self.origin,
            "nonce": os.urandom(16).hex(),
            "policy": policy,
            "seen_root": EMPTY_ROOT,
            "seen_size": 0,
            "why": "test",
            **self._seen(),
            **changes,
        }
        envelope = sign_intent(encode_intent(Intent(**fields)), [self.key])
        return dict(msgspec.to_builtins(envelope))

    def _seen(self) -> dict[str, Any]:
        lines = self.http.get("/log/checkpoint").body.split(b"\n")
        return {"seen_size": int(lines[1]), "seen_root": base64.b64decode(lines[2])}

    def flip_intent(
        self,
        pointer: str,
        to: SnapshotDigest | None,
        expect: int | None,
        kind: str | None = None,
        *,
        clear: tuple[bool, bool] = (False, False),
        left: tuple[bool, bool] = (False, False),
        **changes: Any,
    ) -> dict[str, Any]:
        member = Member(expect=expect, pointer=PointerName(pointer), to=to)
        kind = kind or ("init" if expect is None else "deploy")
        args: FlipArgs = flip_args(kind, [member], clear=clear, left=left)  # type: ignore[arg-type]
        return self.intent("flip", args, **changes)

    def flip(self, pointer: str, to: SnapshotDigest | None, expect: int | None, **more: Any) -> Reply:
        return self.http.post_json("/v1/flips", {"intent": self.flip_intent(pointer, to, expect, **more)})

    def mark(self, pointer: str, snapshot: SnapshotDigest, verdict: str) -> Reply:
        args = MarkArgs(pointer=PointerName(pointer), snapshot=snapshot, verdict=verdict)  # type: ignore[arg-type]
        return self.http.post_json(f"/v1/pointers/{pointer}/marks", {"intent": self.intent("mark", args)})

    def hold(self, pointer: str) -> Reply:
        args = HoldArgs(pointer=PointerName(pointer), until=None)
        return self.http.post_json(f"/v1/pointers/{pointer}/hold", {"intent": self.intent("hold", args)})

    def release(self, pointer: str) -> Reply:
        args = ReleaseArgs(pointer=PointerName(pointer))
        return self.http.post_json(f"/v1/pointers/{pointer}/release", {"intent": self.intent("release", args)})

    def publish(self, document: bytes, **changes: Any) -> Reply:
        """Publish a snapshot document."""
        from casstore.formats.acts import SnapshotArgs

        args = SnapshotArgs(digest=snapshot_digest(document), parents=[], size=len(document))
        body = {"document": base64.b64encode(document).decode(), "intent": self.intent("snapshot", args, **changes)}
        return self.http.post_json("/v1/snapshots", body)

    def release_of(self, files: Files, *, name: str = "app") -> SnapshotDigest:
        """Push a tree, publish a snapshot of it."""
        built = build_tree(files)
        push(self.http, built)
        document = snapshot_document({name: str(built.digest)})
        reply = self.publish(document)
        assert reply.status == 201, reply.body
        return snapshot_digest(document)


def snapshot_document(components: Mapping[str, str]) -> bytes:
    """The canonical bytes of a snapshot of trees."""
    listed = [{"digest": digest, "kind": "tree", "name": name} for name, digest in sorted(components.items())]
    return encode_canonical({"components": listed, "labels": [], "metadata": {}, "mutable": [], "parents": [], "v": 1})
