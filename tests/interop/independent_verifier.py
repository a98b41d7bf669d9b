"""A verifier of a casstore log that shares no code with casstore: written from docs/formats alone.

It downloads checkpoint and tiles, and checks the note, every tile, every leaf against the signed root, the one spelling of every
entry and payload, and every DSSE signature under the policy in force.  It knows no thresholds, no state, and not what acts do.

    python independent_verifier.py URL VKEY GENESIS_SHA256
"""

import base64
import hashlib
import json
import re
import sys
import urllib.request
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FIELDS = {"auth", "body", "idx", "log", "state", "ts", "type", "v"}
PAYLOAD_TYPE = "application/vnd.casstore.intent+json"
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


class Wrong(Exception): ...


def demand(holds: object, what: str) -> None:
    if not holds:
        raise Wrong(what)


def unbase64(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    demand(base64.b64encode(raw).decode() == text, "base64 in another spelling")
    return raw


def jcs(value: object) -> str:
    """RFC 8785 for what casstore writes."""
    if value is None or (isinstance(value, bool | int) and abs(value) < 2**53):
        return json.dumps(value)
    if isinstance(value, str):
        return '"' + "".join(ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(map(jcs, value)) + "]"
    demand(isinstance(value, dict), "a fraction, or an integer that not every JSON holds")
    demand(all(k == "payloadType" or re.fullmatch(r"[a-z0-9_]+", k) for k in value), "a key that is not [a-z0-9_]+")
    return "{" + ",".join(f"{jcs(key)}:{jcs(value[key])}" for key in sorted(value)) + "}"


def read_json(data: bytes, what: str) -> dict:
    demand(jcs(json.loads(data)).encode() == data, f"{what} is not in its canonical spelling")
    return json.loads(data)


def read_vkey(vkey: str) -> tuple[str, bytes, bytes]:
    name, key_id, raw = (part if i < 2 else unbase64(part) for i, part in enumerate(vkey.split("+", 2)))
    digest = hashlib.sha256(name.encode() + b"\n" + raw).digest()
    demand(raw[0] == 1 and len(raw) == 33 and digest[:4].hex() == key_id, f"the key {name} is not what it says")
    return name, digest[:4], raw[1:]


def open_checkpoint(note: bytes, vkey: str) -> tuple[str, int, bytes]:
    name, key_id, public = read_vkey(vkey)
    text, lines = note.decode().rsplit("\n\n", 1)
    demand(lines.endswith("\n"), "the note does not end in a newline")
    start = f"\u2014 {name} "
    ours = [unbase64(line.removeprefix(start)) for line in lines[:-1].split("\n") if line.startswith(start)]
    signatures = [line[4:] for line in ours if line[:4] == key_id]
    demand(signatures, "the log did not sign its checkpoint")
    Ed25519PublicKey.from_public_bytes(public).verify(signatures[0], text.encode() + b"\n")
    origin, size, root = text.split("\n")
    demand(origin == name and re.fullmatch("[1-9][0-9]*", size), "another log's checkpoint, or no size")
    return origin, int(size), unbase64(root)


def tree_root(hashes: list[bytes]) -> bytes:
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + tree_root(hashes[:split]) + tree_root(hashes[split:])).digest()


def tile_paths(level: object, width: int) -> list[tuple[str, int]]:
    paths = []
    for n in range((width + 255) // 256):
        count, groups = min(256, width - 256 * n), re.findall("...", f"{n:0{(len(str(n)) + 2) // 3 * 3}d}")
        path = "".join(f"x{group}/" for group in groups[:-1]) + groups[-1] + ("" if count == 256 else f".p/{count}")
        paths.append((f"tile/{level}/{path}", count))
    return paths


def split_entries(data: bytes, count: int) -> list[bytes]:
    entries = []
    for _ in range(count):
        end = 2 + int.from_bytes(data[:2], "big")
        demand(len(data) >= end, "an entries tile that is cut short")
        entries, data = [*entries, data[2:end]], data[end:]
    demand(not data, "an entries tile that is longer than its path says")
    return entries


def verify_intent(auth: dict, policy: dict) -> dict:
    payload = unbase64(auth["payload"])
    intent = read_json(payload, "a payload")
    if set(auth) == {"payload", "token"}:  # the server vouches for whose token it was: nothing is signed
        demand(intent["act"] != "policy" and any(r["unsigned"] for r in policy["rules"]), "an act that no one signed")
        return intent
    demand(set(auth) == {"payload", "payloadType", "signatures"} and auth["payloadType"] == PAYLOAD_TYPE, "no envelope")
    brought = intent["args"]["policy"]["principals"] if intent["act"] in ("genesis", "policy") else []
    keys = [read_vkey(vkey)[2] for principal in policy["principals"] + brought for vkey in principal["keys"]]
    by_id = {hashlib.sha256(key).hexdigest(): key for key in keys}
    ids = [signature["keyid"] for signature in auth["signatures"]]
    demand(ids and ids == sorted(set(ids)) and set(ids) <= set(by_id), "signed by nobody, twice, or by a stranger")
    message = b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    for signature in auth["signatures"]:
        Ed25519PublicKey.from_public_bytes(by_id[signature["keyid"]]).verify(unbase64(signature["sig"]), message)
    return intent


def verify(get: Callable[[str], bytes], vkey: str, genesis_sha256: str) -> int:
    """Verify a whole log; ``get`` fetches a path below ``/log/``.  Returns how many entries it has; raises if it is wrong."""
    origin, size, root = open_checkpoint(get("checkpoint"), vkey)
    entries = [e for path, count in tile_paths("entries", size) for e in split_entries(get(path), count)]
    leaves = hashes = [hashlib.sha256(b"\x00" + entry).digest() for entry in entries]
    demand(tree_root(leaves) == root, "the entries do not hash to the signed root")
    for level in range(8):
        stored = b"".join(get(path) for path, _ in tile_paths(level, len(hashes)))
        demand(stored == b"".join(hashes), f"a tile of level {level} is not the hash of what lies under it")
        hashes = [tree_root(hashes[i : i + 256]) for i in range(0, len(hashes) // 256 * 256, 256)]
    demand(hashlib.sha256(entries[0]).hexdigest() == genesis_sha256, "another log's first entry")
    policy, done, last = {"principals": [], "rules": []}, set(), 0
    for index, data in enumerate(entries):
        entry = read_json(data, f"entry {index}")
        demand(set(entry) == FIELDS and len(data) <= 61440, f"entry {index} is none")
        demand((entry["idx"], entry["log"], entry["v"]) == (index, origin, 1), f"entry {index} is elsewhere")
        intent = verify_intent(entry["auth"], policy)
        demand((intent["act"], intent["log"]) == (entry["type"], entry["log"]), f"entry {index} is not what was signed")
        demand(max(last, intent["iat"] - 60000) <= entry["ts"] <= intent["exp"], f"entry {index} is of another time")
        demand(entry["auth"]["payload"] not in done, f"entry {index} repeats an intent")
        seen, shown = intent["seen"], tree_root(leaves[: intent["seen"]["size"]]).hex()
        demand(seen["size"] <= index and shown == seen["root"], f"entry {index} saw another log")
        last, done = entry["ts"], done | {entry["auth"]["payload"]}
        policy = intent["args"].get("policy", policy)
    return size


if __name__ == "__main__":
    number = verify(lambda path: urllib.request.urlopen(f"{sys.argv[1]}/log/{path}").read(), *sys.argv[2:])
    print(f"{number} entries: note, tiles, leaves, spelling and signatures are right")
