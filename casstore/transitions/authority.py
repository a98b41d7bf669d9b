"""Who asks, and may they: the first half of judging an act.

Owns the way from an envelope (or a bearer token's word) to principals, and which verb of which rule each act needs.
Knows the policy in force and the time; must not know the state: what the act would do is judged in :mod:`.machine`.

==================
===================================================================================================== act
   needs ==================
   =====================================================================================================
genesis             the root threshold of its own policy
policy              the root thresholds of the policy in force *and* of the new one
snapshot            one publisher
flip                ``rollback`` for kind rollback, else ``deploy``; with ``clear`` always ``deploy`` as well
mark bad            one principal of ``rollback``, or the threshold of ``mark``
mark good           the threshold of ``deploy``, or of ``mark``
hold                one principal of ``rollback`` or ``deploy``
release             the threshold of ``deploy``
==================
=====================================================================================================

Source: docs/formats/policy.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from casstore.errors import (
    IntentExpired,
    MalformedDocument,
    NotPermitted,
    SignatureInvalid,
    Superseded,
    Unsupported,
    VerificationError,
    WrongLog,
)
from casstore.formats.acts import AnyArgs, FlipArgs, FlipKind, GenesisArgs, HoldArgs, MarkArgs, PolicyArgs, ReleaseArgs
from casstore.formats.entry import Entry, TokenAuth
from casstore.formats.intent import Intent, intent_id, open_envelope, parse_intent
from casstore.formats.policy import Policy, Rule, check_threshold
from casstore.ids import IntentId, PointerName, PrincipalName
from casstore.limits import INTENT_EARLY_MS, INTENT_MAX_MS
from casstore.signing import Verifier
from casstore.wire import Envelope

GENESIS_POLICY_VERSION = 0
"""The version that the genesis intent names: none was in force."""


class SignedAct(NamedTuple):
    """An intent signed by its principals."""

    envelope: Envelope


class UnsignedAct(NamedTuple):
    """An intent that a bearer token vouches for, where the policy's rule says ``unsigned``."""

    payload: bytes
    token: str
    """The token's id."""
    principal: PrincipalName


Act = SignedAct | UnsignedAct


class Judged(NamedTuple):
    """An act whose signatures verified and that the policy allows."""

    auth: Envelope | TokenAuth
    """In the form in which it is logged."""
    payload: bytes
    intent: Intent
    args: AnyArgs
    principals: frozenset[str]
    policy: Policy
    """In force after the act: another than before only for ``genesis`` and ``policy``."""

    @property
    def id(self) -> IntentId:
        """SHA-256 of the payload."""
        return intent_id(self.payload)


def judge(act: Act, policy: Policy | None, *, origin: str | None, ts: int) -> Judged:
    """Verify signatures and find out whether the policy allows the act.

    Args:
        act: what is asked for.
        policy: in force; None for the first entry of a log.
        origin: the log's; None where the genesis decides it.
        ts: the entry's time, ms.

    Raises:
        SignatureInvalid: a signature that does not verify, or by a key that the policy does not know.
        WrongLog: the intent is for another log.
        Superseded: the signer saw another version of the policy.
        IntentExpired: signed too long ago, for too long a time, or in the future.
        NotPermitted: the signers are not those that the rule asks for.
        MalformedDocument, InvalidName, InvalidDigest, TooLarge, Unsupported: the envelope or its payload.
    """
    auth, payload, intent, args, keys = _open(act, policy, origin)
    _check_log(intent, origin)
    after = policy
    if isinstance(args, GenesisArgs | PolicyArgs):
        after = _new_policy(args, policy, intent.log)
    elif policy is None:
        raise MalformedDocument(f"the first entry of a log is its genesis, not a {intent.act}")
    assert after is not None
    version = GENESIS_POLICY_VERSION if policy is None else policy.version
    if intent.policy != version:
        raise Superseded(f"signed under policy version {intent.policy}, version {version} is in force")
    if isinstance(act, UnsignedAct):
        principals = _vouched(act.principal, _pointers(args), after)
    else:
        principals = (policy or after).principals_of(keys)
    _check_times(intent, ts, _max_intent_ms(args, after))
    if isinstance(args, GenesisArgs | PolicyArgs):
        if policy is not None:
            check_threshold(policy.fields.root, principals, name="change the policy")
        check_threshold(after.fields.root, after.principals_of(keys), name="make this the policy")
    elif isinstance(args, FlipArgs):
        _check_flip(args, after, principals)
    elif isinstance(args, MarkArgs):
        _check_mark(args, _rule(after, args.pointer, "mark"), principals)
    elif isinstance(args, HoldArgs):
        rule = _rule(after, args.pointer, "hold")
        _check_any(rule, ("deploy", "rollback"), principals, "hold", args.pointer)
    elif isinstance(args, ReleaseArgs):
        check_threshold(_rule(after, args.pointer, "release").deploy, principals, name="release", on=args.pointer)
    elif not principals.intersection(after.fields.publishers):
        signed = ", ".join(sorted(principals)) or "no one"
        raise NotPermitted(f"the policy does not let {signed} publish snapshots", permission="publish")
    return Judged(auth, payload, intent, args, principals, after)


def act_of(entry: Entry) -> Act:
    """The act that an entry carries out, as it was asked for.

    Raises:
        VerificationError: the entry has none.
    """
    if isinstance(entry.auth, TokenAuth):
        return UnsignedAct(entry.auth.payload, entry.auth.token, PrincipalName.parse(entry.auth.principal))
    if entry.auth is None:
        raise VerificationError(f"entry {entry.idx} ({entry.type}) carries no intent", index=entry.idx)
    return SignedAct(entry.auth)


def judge_entry(entry: Entry, policy: Policy | None) -> Judged:
    """Judge what stands in the log: signatures and policy alone, under the policy in force before the entry.

    Raises:
        VerificationError: the entry's type or log is not its intent's, or it has no intent.
        everything that :func:`judge` raises.
    """
    judged = judge(act_of(entry), policy, origin=entry.log, ts=entry.ts)
    if judged.intent.act != entry.type:
        raise VerificationError(
            f"entry {entry.idx} is a {entry.type}, its intent a {judged.intent.act}", index=entry.idx
        )
    return judged


def next_policy(policy: Policy | None, entry: Entry) -> Policy:
    """One step of the walk over the ``genesis`` and ``policy`` entries.

    Args:
        policy: what the walk has reached; None before the genesis, whose bytes the caller holds against its pin.
        entry: the next of them.

    Raises:
        VerificationError: the entry is of another type.
        everything that :func:`judge` raises.
    """
    if entry.type not in ("genesis", "policy") or (policy is None) != (entry.type == "genesis"):
        raise VerificationError(f"entry {entry.idx} is a {entry.type}: not the next policy", index=entry.idx)
    return judge_entry(entry, policy).policy


def check_supported(policy: Policy) -> None:
    """Refuse a policy that asks for what this version does not do: it would look safer than it is.

    Raises:
        Unsupported: attestations, gating by hosts, or witnesses.
    """
    if policy.fields.witnesses:
        raise Unsupported("a policy with witnesses is not supported by this version")
    for rule in policy.fields.rules:
        if rule.require or rule.gating.startswith("hosts:"):
            raise Unsupported(f"the rule {rule.pointers!r} asks for attestations or hosts, which this version lacks")
        if rule.witness.deploy != "none" or rule.witness.rollback != "none":
            raise Unsupported(f"the rule {rule.pointers!r} asks for witnesses, which this version lacks")


def check_unsigned(principal: PrincipalName, pointer: PointerName, kind: FlipKind, policy: Policy) -> None:
    """Whether the policy lets a token's word flip a pointer: what :func:`judge` will say, before there is a target.

    Raises:
        NotPermitted: it does not.
    """
    verb = verb_of(kind)
    principals = _vouched(principal, [pointer], policy)
    check_threshold(getattr(_rule(policy, pointer, verb), verb), principals, name=verb, on=pointer)


def verb_of(kind: str) -> str:
    """The verb of a rule that a flip of this kind needs."""
    return "rollback" if kind == "rollback" else "deploy"


def _open(
    act: Act, policy: Policy | None, origin: str | None
) -> tuple[Envelope | TokenAuth, bytes, Intent, AnyArgs, frozenset[bytes]]:
    """Verify, then parse the same bytes."""
    if isinstance(act, UnsignedAct):
        intent, args = parse_intent(act.payload)
        return TokenAuth(act.payload, act.token, act.principal), act.payload, intent, args, frozenset()
    keys: Mapping[str, Verifier] = {} if policy is None else policy.keys
    opened = open_envelope(act.envelope, keys)
    if opened.unknown:
        # Keys that a new policy brings may sign it: for these two acts the payload is read first.  It says which keys
        # to try; what it is worth is decided by the thresholds of both policies.
        intent, args = parse_intent(opened.payload)
        _check_log(intent, origin)
        if isinstance(args, GenesisArgs | PolicyArgs):
            opened = open_envelope(act.envelope, {**keys, **Policy(args.policy).keys})
        if opened.unknown:
            unknown = opened.unknown[0][:12]
            raise SignatureInvalid(f"the intent is signed by key {unknown}, which the policy does not know")
    intent, args = parse_intent(opened.payload)
    return opened.envelope, opened.payload, intent, args, opened.keys


def _check_log(intent: Intent, origin: str | None) -> None:
    if origin is not None and intent.log != origin:
        raise WrongLog(f"the intent is for the log {intent.log}, this is {origin}")


def _new_policy(args: GenesisArgs | PolicyArgs, policy: Policy | None, log: str) -> Policy:
    """The policy that the act brings, its version held against the one in force, its log keys against the log."""
    if isinstance(args, GenesisArgs) != (policy is None):
        raise MalformedDocument("a log has one genesis, and it is its first entry")
    if isinstance(args, GenesisArgs) and args.prev is not None and args.prev.origin == log:
        raise MalformedDocument("a log does not continue itself: one that continues another has an origin of its own")
    after = Policy(args.policy)
    if any(key.name != log for key in after.log_keys):
        raise MalformedDocument(f"a log key of the policy is not named as the log is, {log}")
    if policy is not None and after.log_keys != policy.log_keys:
        # A log that goes on under a key that its policy does not name is wrong to every auditor from there on.
        raise Unsupported(
            "a policy with other keys for the log is not supported: this version cannot change the log's keys"
        )
    if isinstance(args, PolicyArgs) and args.version != after.version:
        raise MalformedDocument(f"the act speaks of policy version {args.version}, the policy says {after.version}")
    expected = 1 if policy is None else policy.version + 1
    if after.version != expected:
        raise Superseded(f"the next policy has version {expected}, this has {after.version}")
    check_supported(after)
    return after


def _pointers(args: AnyArgs) -> list[PointerName]:
    if isinstance(args, FlipArgs):
        return [member.pointer for member in args.members]
    return [args.pointer] if isinstance(args, MarkArgs | HoldArgs | ReleaseArgs) else []


def _vouched(principal: PrincipalName, pointers: list[PointerName], policy: Policy) -> frozenset[str]:
    """The one principal of an unsigned act, if every rule concerned takes unsigned acts."""
    if not pointers:
        raise NotPermitted("only acts on pointers may be unsigned", permission="sign")
    for pointer in pointers:
        rule = policy.rule_for(pointer)
        if rule is None or not rule.unsigned:
            raise NotPermitted(f"the policy asks for signed acts on {pointer}", permission=f"sign:{pointer}")
    if not policy.has_principal(principal):
        raise NotPermitted(f"{principal} is not a principal of the policy", permission=f"sign:{pointers[0]}")
    return frozenset((principal,))


def _max_intent_ms(args: AnyArgs, policy: Policy) -> int:
    """How long an intent may be valid: the strictest rule of its pointers, or the default."""
    rules = [rule for pointer in _pointers(args) if (rule := policy.rule_for(pointer)) is not None]
    return min((rule.max_intent_ms for rule in rules), default=INTENT_MAX_MS)


def _check_times(intent: Intent, ts: int, max_intent_ms: int) -> None:
    if intent.exp - intent.iat > max_intent_ms:
        raise IntentExpired(f"the intent is valid for {intent.exp - intent.iat} ms, the policy allows {max_intent_ms}")
    if ts > intent.exp:
        raise IntentExpired(f"the intent expired {ts - intent.exp} ms ago: sign again")
    if ts < intent.iat - INTENT_EARLY_MS:
        raise IntentExpired(f"the intent was signed {intent.iat - ts} ms in the future: check the signer's clock")


def _rule(policy: Policy, pointer: PointerName, verb: str) -> Rule:
    rule = policy.rule_for(pointer)
    if rule is None:
        raise NotPermitted(f"the policy has no rule for {pointer}", permission=f"{verb}:{pointer}")
    return rule


def _check_flip(args: FlipArgs, policy: Policy, principals: frozenset[str]) -> None:
    verb = verb_of(args.kind)
    for member in args.members:
        rule = _rule(policy, member.pointer, verb)
        check_threshold(getattr(rule, verb), principals, name=verb, on=member.pointer)
        if args.clear.bad or args.clear.hold:
            # TRUST: a rollback takes one key; ending a hold or a bad mark takes as many as a release or a good mark,
            # else one key could do by rollback what it may not do by name.
            check_threshold(rule.deploy, principals, name="deploy", on=member.pointer)


def _check_any(rule: Rule, verbs: tuple[str, ...], principals: frozenset[str], name: str, pointer: str) -> None:
    """One principal of any of these verbs."""
    who = {principal for verb in verbs if (held := getattr(rule, verb)) is not None for principal in held.who}
    if not principals.intersection(who):
        signed = ", ".join(sorted(principals)) or "no one"
        raise NotPermitted(f"the policy does not let {signed} {name} {pointer}", permission=f"{name}:{pointer}")


def _check_mark(args: MarkArgs, rule: Rule, principals: frozenset[str]) -> None:
    if rule.mark is not None and len(principals.intersection(rule.mark.who)) >= rule.mark.threshold:
        return
    if args.verdict == "bad":
        _check_any(rule, ("rollback",), principals, "mark", args.pointer)
    else:
        check_threshold(rule.deploy, principals, name="mark", on=args.pointer)
