"""The table from code to status: a code without a status would answer 500 to what is the client's fault, or hide ours."""

from __future__ import annotations

import json

import pytest

from casstore import errors
from casstore.errors import CasstoreError, NotPermitted, Overloaded, PreconditionFailed, Unauthenticated
from casstore_server.errors import STATUS, respond_problem

OWN = {code: cls for code, cls in errors.codes().items() if cls.__module__ == errors.__name__}


def test_the_table_is_total_and_has_nothing_else() -> None:
    assert set(STATUS) == set(OWN)


@pytest.mark.parametrize(("code", "cls"), sorted(OWN.items()))
def test_every_error_becomes_a_problem(code: str, cls: type[CasstoreError]) -> None:
    error = cls("what happened", hint="what to do")
    response = respond_problem(error, request_id="abc")
    assert isinstance(response.body, bytes)
    problem = json.loads(response.body)
    assert response.status == problem["status"] == STATUS[code]
    assert response.content_type == "application/problem+json"
    assert (problem["code"], problem["detail"], problem["hint"]) == (code, "what happened", "what to do")
    assert problem["request_id"] == "abc"
    assert problem["type"].endswith(code)
    if response.status in (429, 503, 507):
        assert 1 <= int(response.headers["Retry-After"]) <= (120 if response.status == 507 else 2)


def test_an_error_is_the_same_on_the_other_side() -> None:
    error = PreconditionFailed("prod/api is at f7", expected="f6", current={"flip": 7})
    body = respond_problem(error).body
    assert isinstance(body, bytes)
    problem = json.loads(body)
    again = errors.from_code(problem["code"], problem["detail"], fields=problem)
    assert isinstance(again, PreconditionFailed)
    assert again.fields == error.fields


def test_headers_say_what_the_client_can_do() -> None:
    assert 7 <= int(respond_problem(Overloaded("busy", retry_after_s=7)).headers["Retry-After"]) <= 14
    assert respond_problem(Unauthenticated("who?")).headers["WWW-Authenticate"].startswith("Bearer")
    body = respond_problem(NotPermitted("no", permission="flip:prod/api")).body
    assert isinstance(body, bytes)
    assert json.loads(body)["permission"] == "flip:prod/api"
