"""The shared nouns: who asks, copies to be asked beside a call, and headers added to an answer."""

from __future__ import annotations

from tests.kit.weather import call_of
from understudy.policies.service import Answer, Headers, Request, tenant_of


def request(*headers: tuple[bytes, bytes]) -> Request:
    return Request(b"POST", b"/", list(headers), b"", {})


def test_a_tenant_is_told_by_its_credentials_and_never_tells_them():
    one = request((b"Authorization", b"Bearer sk-1"), (b"accept", b"*/*"))
    same = request((b"accept", b"text/html"), (b"authorization", b"Bearer sk-1"))
    other = request((b"authorization", b"Bearer sk-2"))
    assert tenant_of(one) == tenant_of(same) != tenant_of(other)
    assert len(tenant_of(one)) == 16
    assert b"sk-1" not in tenant_of(one)
    assert tenant_of(request((b"accept", b"*/*"))) == b""


def test_headers_that_a_policy_names_set_tenants_apart_and_no_two_spellings_meet():
    one, other = (request((b"x-api-key", b"k"), (b"x-team", team)) for team in (b"a", b"b"))
    assert tenant_of(one) == tenant_of(other)
    assert tenant_of(one, (b"x-team",)) != tenant_of(other, (b"x-team",))
    assert tenant_of(request((b"api-key", b"ab"))) != tenant_of(request((b"x-api-key", b"ab")))


def test_a_fork_shares_the_request_and_the_times_and_keeps_a_trail_of_its_own():
    call = call_of("embed", "x", id="id")
    call.deadline, call.until, call.attempts = 9.0, 8.0, 1
    call.note("first", "failed", "reset")
    fork = call.fork()
    assert (fork.request, fork.id, fork.deadline, fork.until) == (call.request, "id", 9.0, 8.0)
    assert (fork.trail, fork.attempts) == ([], 0)
    fork.note("second", "failed", "reset")
    assert len(call.trail) == 1


def test_a_header_is_added_to_parsed_headers_and_to_a_block_alike():
    shared: Headers = [(b"a", b"1")]
    for answer in (Answer(200, shared), Answer(200, None, block=b"a: 1\r\n")):
        answer.add(b"b", b"2")
        assert answer.lines() == b"a: 1\r\nb: 2\r\n"
    assert shared == [(b"a", b"1")]
