"""Requests are known again by their bytes, each tenant's apart, within bounds: for the key that their words have."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.caching.desk import Desk, answer
from understudy.policies.service import Answer, Call, Hop
from understudy.proxy.caching.aliases import ALIASES_MAX, LATELY_BYTES_MAX, LATELY_MAX, Aliases
from understudy.proxy.caching.keys import Front

BYTES_MAX = 64 * 1024


def front(prefix: bytes) -> Front:
    return Front(prefix, [], reads=True, writes=True)


def taught(aliases: Aliases, of: Front, body: bytes, key: bytes) -> None:
    assert aliases.key_of(of, body) is None
    aliases.learn(aliases.raw_of(of, body), key)


def test_a_request_is_known_by_its_bytes_and_its_front_however_often_it_comes():
    aliases, one, other = Aliases(), front(b"1"), front(b"2")
    taught(aliases, one, b"body", b"key")
    taught(aliases, other, b"body", b"another")
    for _ in range(3):
        assert aliases.key_of(one, b"body") == b"key"
        assert aliases.key_of(other, b"body") == b"another"
        assert aliases.key_of(one, b"body ") is None
    # the same words in the same order, cut elsewhere in two
    assert aliases.key_of(front(b"1b"), b"ody") in (None, b"key")


def test_the_hash_of_what_was_not_known_is_not_another_requests():
    aliases, one, other = Aliases(), front(b"1"), front(b"2")
    body = b"x"
    assert aliases.key_of(one, body) is None
    assert aliases.raw_of(other, body) != Aliases().raw_of(one, body)
    assert aliases.key_of(one, body) is None
    assert aliases.raw_of(one, body) == Aliases().raw_of(one, body)


def test_no_more_than_so_many_are_known_and_long_ones_by_their_hashes_alone():
    aliases, of = Aliases(), front(b"1")
    for n in range(ALIASES_MAX + 1):
        aliases.learn(aliases.raw_of(of, b"%d" % n), b"key")
    assert aliases.key_of(of, b"0") is None
    long = b"x" * (LATELY_BYTES_MAX + 1)
    taught(aliases, of, long, b"long")
    assert aliases.key_of(of, long) == b"long"
    for n in range(2, LATELY_MAX + 10):
        assert aliases.key_of(of, b"%d" % n) == b"key"
    assert aliases.sizes == (ALIASES_MAX, LATELY_MAX)


async def test_a_quick_look_finds_fresh_whole_answers_of_the_same_tenant_and_nothing_else():
    status = 200

    async def upstream(call: Call) -> Answer:
        return answer({"answer": call.request.body.decode()}, status=status)

    desk = Desk("pinecone", upstream, ttl_s=60.0, negative_s=60.0, settle_s=0.0)
    quick_hit = desk.parts.quick_hit
    assert quick_hit is not None

    def request(key: bytes, remembered: dict[object, object], what: str = "x") -> Any:
        made = desk.request({"vector": [1], "namespace": what}, [(b"api-key", key)])
        made.remembered = remembered
        return made

    mine: dict[object, object] = {}
    theirs: dict[object, object] = {}
    body = request(b"a", mine).body
    # a head that nobody has looked at yet says nothing
    assert quick_hit(mine, body, BYTES_MAX) is None
    assert (await desk.ask_with(request(b"a", mine))).source == "first"
    hits, counted = desk.cache.hits, sum(desk.cache.tally.answers.values())
    for _ in range(3):
        found = quick_hit(mine, body, BYTES_MAX)
        assert found is not None
        assert (found.source, found.body) == ("cache", (await desk.ask_with(request(b"a", mine))).body)
    assert (desk.cache.hits, sum(desk.cache.tally.answers.values())) == (hits + 6, counted + 6)
    assert quick_hit(mine, body, len(found.body) - 1) is None
    assert quick_hit(theirs, body, BYTES_MAX) is None
    assert (await desk.ask_with(request(b"b", theirs, "y"))).source == "first"
    assert quick_hit(theirs, body, BYTES_MAX) is None
    # who is named by a certificate shares heads with others, and nothing is remembered of it
    named = request(b"c", {})
    named.hop = Hop(b"127.0.0.1", b"https", b"CN=a")
    await desk.ask_with(named)
    assert quick_hit(named.remembered, named.body, BYTES_MAX) is None
    status = 404
    missing = request(b"a", mine, "missing")
    await desk.ask_with(missing)
    assert quick_hit(mine, missing.body, BYTES_MAX) is None
    await asyncio.sleep(61.0)
    assert quick_hit(mine, body, BYTES_MAX) is None
    await desk.close()
