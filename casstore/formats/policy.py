"""Policies: who may do what, as one document that the log itself carries.

Owns the policy's schema, everything that makes a document unfit to be a policy, globs, and the counting of principals.
Must not know intents or state: which verb an act needs is said in :mod:`casstore.transitions`.

Counting: every verifying 32-byte key maps to exactly one principal, and principals are counted.  A person with two keys
counts once; a key under two principals makes the document unfit.

Invariants: what users name stands in sorted arrays; every field is always there; the first rule whose glob matches a
pointer decides, and a verb that it does not have is denied.

Source: docs/formats/policy.md
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import msgspec

from casstore.errors import InvalidInput, MalformedDocument, NotPermitted
from casstore.formats.acts import check_sorted, parse_id
from casstore.formats.canonical import INTEGER_MAX, decode_canonical, encode_canonical
from casstore.ids import PointerName, PrincipalName
from casstore.limits import ENTRY_SIZE_MAX_BYTES, INTENT_MAX_MS
from casstore.signing import PUBLIC_KEY_BYTES, SignatureType, Verifier, keyid_hex

Threshold = Annotated[int, msgspec.Meta(ge=1, le=1000)]

MAX_AGE_DAYS_MAX: Final = 36_500
_GATING: Final = re.compile(r"(?:none|mark_good|hosts:(?:[1-9][0-9]?|100))\Z")
_GLOB_PART: Final = re.compile(r"(?:\*\*?|[a-z0-9][a-z0-9._-]{0,62})\Z")
_GLOB_PARTS_MAX: Final = 8


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Part of a policy; no field has a default."""


class Verb(_Fields, frozen=True):
    """``threshold`` different principals of ``who``."""

    threshold: Threshold
    who: list[PrincipalName]


class RollbackVerb(_Fields, frozen=True):
    """As :class:`Verb`, with bounds on where a rollback may go.

    ``max_age_days``: only to what was live within so many days; ``confirmed_good_only``: only to what was marked good.
    """

    confirmed_good_only: bool
    max_age_days: Annotated[int, msgspec.Meta(ge=1, le=MAX_AGE_DAYS_MAX)] | None
    threshold: Threshold
    who: list[PrincipalName]


class Requirement(_Fields, frozen=True):
    """An attestation that a deploy's target needs."""

    predicate: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    threshold: Threshold
    who: list[PrincipalName]


WitnessNeed = Literal["required", "async", "none"]


class WitnessNeeds(_Fields, frozen=True):
    """Whether a flip is live only once witnesses cosigned it; break-glass follows ``rollback``."""

    deploy: WitnessNeed
    rollback: WitnessNeed


class Rule(_Fields, frozen=True):
    """What holds for the pointers that a glob names."""

    pointers: str
    deploy: Verb | None
    rollback: RollbackVerb | None
    breakglass: Verb | None
    mark: Verb | None
    freeze: Verb | None
    require: list[Requirement]
    gating: str
    witness: WitnessNeeds
    unsigned: bool
    """Whether a bearer token may speak for its principal, without a signature."""
    max_intent_ms: Annotated[int, msgspec.Meta(ge=1000, le=31 * 24 * 3600 * 1000)]


class Principal(_Fields, frozen=True):
    """Someone who acts, with the keys that they sign with (none: by token only)."""

    name: PrincipalName
    keys: list[str]


class Host(_Fields, frozen=True):
    """A host whose observations count, with its keys."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,252}\Z")]
    keys: list[str]


class PolicyDocument(_Fields, frozen=True):
    """The whole policy."""

    version: Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)]
    root: Verb
    principals: list[Principal]
    publishers: list[PrincipalName]
    hosts: list[Host]
    log_keys: list[str]
    witnesses: str
    rules: list[Rule]


class Policy:
    """A policy that was found fit.

    Args:
        document: decoded JSON.

    Raises:
        MalformedDocument: a missing, unknown or mistyped field, an unsorted list, an unknown principal, a threshold
        above
            its ``who``, a key that is unfit, known twice or used for two purposes, or a glob that is none.
        InvalidName: a principal's name.

    Threads: any; immutable.
    """

    __slots__ = ("_principal_of", "_rules", "data", "document", "fields", "keys", "log_keys", "sha256")

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        """As it stands in the log."""
        self.data = encode_canonical(document)
        """Its canonical JSON."""
        self.sha256 = hashlib.sha256(self.data).digest()
        try:
            self.fields = msgspec.convert(document, PolicyDocument, dec_hook=parse_id)
        except msgspec.ValidationError as error:
            raise MalformedDocument(f"the policy is not well-formed: {error}") from error
        _check_names(self.fields)
        self.log_keys = [_parse_key(vkey, "log_keys") for vkey in self.fields.log_keys]
        self._principal_of: dict[bytes, str] = {}
        self.keys: dict[str, Verifier] = {}
        """Principals' keys by the ``keyid`` that envelopes name them with."""
        self._take_keys()
        self._rules = [(_compile_glob(rule.pointers), rule) for rule in self.fields.rules]

    @property
    def version(self) -> int:
        """1 for the first, then one more each time."""
        return self.fields.version

    def _take_keys(self) -> None:
        """Map keys to principals; refuse a key that has two meanings."""
        others: dict[bytes, str] = {key.public: "log key" for key in self.log_keys}
        for public in witness_keys(self.fields.witnesses):
            others[public] = "witness key"
        for host in self.fields.hosts:
            for vkey in host.keys:
                public = _parse_key(vkey, f"host {host.name}").public
                if public in others:
                    raise MalformedDocument(f"the key {vkey[:60]!r} of host {host.name} is also a {others[public]}")
                others[public] = "host key"
        for principal in self.fields.principals:
            for vkey in principal.keys:
                key = _parse_key(vkey, f"principal {principal.name}")
                if key.public in self._principal_of:
                    holder = self._principal_of[key.public]
                    raise MalformedDocument(f"a key of principal {principal.name} is also a key of principal {holder}")
                if key.public in others:
                    raise MalformedDocument(f"a key of principal {principal.name} is also a {others[key.public]}")
                self._principal_of[key.public] = principal.name
                self.keys[keyid_hex(key.public)] = key

    def principals_of(self, keys: Iterable[bytes]) -> frozenset[str]:
        """The principals behind 32-byte keys; keys of no one are left out."""
        return frozenset(self._principal_of[key] for key in keys if key in self._principal_of)

    def has_principal(self, name: str) -> bool:
        """Whether the policy names a principal so."""
        return any(principal.name == name for principal in self.fields.principals)

    def rule_for(self, pointer: PointerName) -> Rule | None:
        """The first rule whose glob matches, or None: then everything is denied."""
        for matches, rule in self._rules:
            if matches(pointer):
                return rule
        return None


def decode_policy(data: bytes) -> Policy:
    """Read a policy from its canonical JSON.

    Raises:
        MalformedDocument, InvalidName: as :class:`Policy`, or not canonical.
        TooLarge: more than an entry could hold.
    """
    document = decode_canonical(data, max_bytes=ENTRY_SIZE_MAX_BYTES)
    if not isinstance(document, dict):
        raise MalformedDocument("a policy is a JSON object")
    return Policy(document)


def first_policy(principal: str, vkey: str, log_vkey: str) -> dict[str, Any]:
    """The policy of a new store: one operator, who may do everything, by signature.

    Args:
        principal: the operator's name.
        vkey: the operator's verifier key.
        log_vkey: the log's verifier key.

    Raises:
        MalformedDocument, InvalidName: a name or key that no policy may hold.
    """
    verb = {"threshold": 1, "who": [principal]}
    document: dict[str, Any] = {
        "hosts": [],
        "log_keys": [log_vkey],
        "principals": [{"keys": [vkey], "name": principal}],
        "publishers": [principal],
        "root": verb,
        "rules": [
            {
                "breakglass": verb,
                "deploy": verb,
                "freeze": verb,
                "gating": "none",
                "mark": verb,
                "max_intent_ms": INTENT_MAX_MS,
                "pointers": "**",
                "require": [],
                "rollback": {**verb, "confirmed_good_only": False, "max_age_days": None},
                "unsigned": False,
                "witness": {"deploy": "none", "rollback": "none"},
            }
        ],
        "version": 1,
        "witnesses": "",
    }
    return Policy(document).document


def check_threshold(
    verb: Verb | RollbackVerb | None, principals: frozenset[str], *, name: str, on: str | None = None
) -> None:
    """Refuse unless enough principals of a verb have signed.

    Args:
        verb: from the rule; None denies.
        principals: who signed.
        name: the verb's name, for the sentence.
        on: the pointer, for the sentence.

    Raises:
        NotPermitted: not enough of them; ``permission`` is ``<verb>:<pointer>``.
    """
    permission = name if on is None else f"{name}:{on}"
    what = name if on is None else f"{name} {on}"
    if verb is None:
        raise NotPermitted(f"the policy lets no one {what}", permission=permission)
    allowed = principals.intersection(verb.who)
    if len(allowed) >= verb.threshold:
        return
    signed = ", ".join(sorted(principals)) or "no one"
    if verb.threshold == 1:
        raise NotPermitted(f"the policy does not let {signed} {what}", permission=permission)
    raise NotPermitted(
        f"to {what} takes {verb.threshold} of {', '.join(verb.who)}; signed by {signed}", permission=permission
    )


# --- globs -----------------------------------------------------------------------------------------------------------


def validate_glob(glob: str) -> None:
    """Refuse what is not a glob over pointers: parts joined by ``/``, each literal, ``*`` or ``**``.

    Raises:
        MalformedDocument: it is not.
    """
    parts = glob.split("/")
    if len(parts) > _GLOB_PARTS_MAX or not all(_GLOB_PART.match(part) for part in parts):
        raise MalformedDocument(
            f"{glob[:100]!r} is not a glob over pointers: parts joined by '/', each '*', '**' or [a-z0-9][a-z0-9._-]*"
        )


@lru_cache(maxsize=1024)
def _compile_glob(glob: str) -> Callable[[str], object]:
    """``*`` is one part; ``**`` is any number of parts: none too in front or between, at least one at the end."""
    validate_glob(glob)
    parts = glob.split("/")
    pattern = ""
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if part == "**":
            pattern += r"[^/]+(?:/[^/]+)*" if last else r"(?:[^/]+/)*"
        else:
            pattern += (r"[^/]+" if part == "*" else re.escape(part)) + ("" if last else "/")
    return re.compile(pattern).fullmatch


def glob_matches(glob: str, pointer: str) -> bool:
    """Whether a pointer is one that ``glob`` names.

    >>> [glob_matches("prod/*", name) for name in ("prod", "prod/api", "prod/eu/api")]
    [False, True, False]
    >>> [glob_matches("prod/**", name) for name in ("prod", "prod/api", "prod/eu/api")]
    [False, True, True]
    >>> [glob_matches("**/api", name) for name in ("api", "prod/api", "prod/eu/api", "api/x")]
    [True, True, True, False]

    Raises:
        MalformedDocument: not a glob.
    """
    return _compile_glob(glob)(pointer) is not None


# --- what makes a document unfit
# ---------------------------------------------------------------------------------------


def witness_keys(text: str) -> list[bytes]:
    """The 32-byte keys that a witness policy names; a line is ``log``, ``witness``, ``group`` or ``quorum`` and words.

    Raises:
        MalformedDocument: another line, or a ``witness`` or ``log`` line whose key cannot be read.

    Source: https://c2sp.org/tlog-policy
    """
    keys: list[bytes] = []
    for line in text.split("\n"):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in ("log", "witness", "group", "quorum") or len(words) < 2:
            raise MalformedDocument(f"the line {line[:100]!r} is not one of a witness policy")
        at = {"log": 1, "witness": 2}.get(words[0])
        if at is None:
            continue
        try:
            material = binascii.a2b_base64(words[at].split("+", 2)[2], strict_mode=True)
        except (IndexError, binascii.Error, ValueError) as error:
            raise MalformedDocument(f"the line {line[:100]!r} of the witness policy has no verifier key") from error
        if len(material) == 1 + PUBLIC_KEY_BYTES:
            keys.append(material[1:])
    return keys


def _parse_key(vkey: str, where: str) -> Verifier:
    """An Ed25519 verifier key: on the curve, of large order, in its one spelling."""
    try:
        verifier = Verifier.parse(vkey)
    except (MalformedDocument, InvalidInput) as error:
        raise MalformedDocument(f"a key of {where} is unfit: {error.detail}") from error
    if verifier.type is not SignatureType.ED25519:
        raise MalformedDocument(f"a key of {where} is not an Ed25519 signing key (type 0x01)")
    return verifier


def _check_names(policy: PolicyDocument) -> None:
    """Sorted, distinct, known; thresholds that can be met; globs and gatings that are some."""
    known = [str(principal.name) for principal in policy.principals]
    check_sorted(known, "principals")
    check_sorted([host.name for host in policy.hosts], "hosts")
    if not policy.log_keys:
        raise MalformedDocument("the policy has no log key")
    check_sorted(policy.log_keys, "log_keys")
    owners: list[Principal | Host] = [*policy.principals, *policy.hosts]
    for owner in owners:
        check_sorted(owner.keys, f"keys of {owner.name}")

    def check_who(who: list[PrincipalName], threshold: int, what: str) -> None:
        check_sorted([str(name) for name in who], f"principals of {what}")
        unknown = set(who).difference(known)
        if unknown:
            raise MalformedDocument(f"{what} names {min(unknown)!r}, who is not a principal of the policy")
        if threshold > len(who):
            raise MalformedDocument(f"{what} asks for {threshold} of {len(who)} principals")

    check_who(policy.root.who, policy.root.threshold, "root")
    check_who(policy.publishers, 0, "publishers")
    for rule in policy.rules:
        for name in ("deploy", "rollback", "breakglass", "mark", "freeze"):
            verb: Verb | RollbackVerb | None = getattr(rule, name)
            if verb is not None:
                check_who(verb.who, verb.threshold, f"{name} of rule {rule.pointers!r}")
        for requirement in rule.require:
            check_who(requirement.who, requirement.threshold, f"require of rule {rule.pointers!r}")
        check_sorted([requirement.predicate for requirement in rule.require], f"predicates of rule {rule.pointers!r}")
        if not _GATING.match(rule.gating):
            raise MalformedDocument(f"{rule.gating[:40]!r} is not a gating: none, mark_good or hosts:<percent>")
        validate_glob(rule.pointers)
