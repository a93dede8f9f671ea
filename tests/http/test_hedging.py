"""Hedging through the door, where calls are stepped by hand: the quicker is given, the other leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.http.house import JSON, Caller, House, request, turns, until
from tests.kit import acts

EMBED = request("POST", "/v1/embeddings", JSON, b'{"model": "m", "input": "x"}')
USUAL_S = 0.05


def vector(number: float) -> dict[str, Any]:
    return {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [number]}]}


class Hedging(House):
    """Two endpoints of one tier that answer with their numbers; the first is asked while luck is 0."""

    def __init__(self) -> None:
        self.luck = [0.99]
        super().__init__(
            dialect="openai-embeddings", endpoints=2, dice=lambda: self.luck[0], ticking=False, body_bytes_max=65536
        )

    async def warmed(self) -> Caller:
        """A caller, after so many answers of both endpoints that hedging knows what is usual."""
        for number, up in enumerate(self.ups):
            up.always(acts.answer(body=vector(float(number)), delay_s=USUAL_S))
        caller = await self.caller()
        for luck, times in ((0.99, 128), (0.0, 128)):
            self.luck[0] = luck
            for _ in range(times):
                await self.asks(caller)
        return caller

    async def asks(self, caller: Caller) -> float:
        caller.say(EMBED)
        got = await caller.hears("POST")
        assert (got.status, got.whole) == (200, True)
        return got.json()["data"][0]["embedding"][0]

    @property
    def results(self) -> dict[str, int]:
        hedge = self.parts.tiers["many"].hedge
        assert hedge is not None
        return hedge.results

    @property
    def left_over(self) -> list[object]:
        """Everything that a call could have left behind; nothing but zeros, or it has."""
        many = self.parts.tiers["many"].endpoints.values()
        return [
            self.in_hand,
            self.listener.steps.under_way,
            self.failures,
            *(own.peer.outstanding for own in many if own.peer is not None),
            *(len(own.bulkhead.waiting) for own in many),
            *(pool.size - pool.idle for pool in self.pools),
        ]


async def test_a_call_stepped_by_hand_is_answered_by_the_second_endpoint_while_the_first_is_silent():
    async with Hedging() as house:
        caller = await house.warmed()
        house.up.always(acts.silence())
        began, tasks = house.loop.time(), len(asyncio.all_tasks())
        caller.say(EMBED)
        await asyncio.sleep(USUAL_S / 2)
        # the first attempt has no task, and needs none
        assert len(asyncio.all_tasks()) == tasks
        await asyncio.sleep(USUAL_S)
        assert len(asyncio.all_tasks()) == tasks + 1
        got = await caller.hears("POST")
        assert got.json()["data"][0]["embedding"] == [1.0]
        assert house.loop.time() - began < 4 * USUAL_S
        assert house.results == {"won": 1, "lost": 0, "failed": 0}
        await turns()
        assert house.left_over == [0] * len(house.left_over)
        # the one that was called off was in the middle of something: its connection can't be used again
        assert (house.pools[0].size, house.pools[1].size) == (0, 1)
        assert len(asyncio.all_tasks()) == tasks - 1
        # the caller's connection is as good as before
        house.luck[0] = 0.99
        assert await house.asks(caller) == 1.0


async def test_the_first_may_still_be_quicker_and_the_second_is_called_off():
    async with Hedging() as house:
        caller = await house.warmed()
        house.up.then(acts.answer(body=vector(0.0), delay_s=3 * USUAL_S))
        house.ups[1].always(acts.silence())
        assert await house.asks(caller) == 0.0
        assert house.results == {"won": 0, "lost": 1, "failed": 0}
        await turns()
        assert house.left_over == [0] * len(house.left_over)
        assert (house.pools[0].size, house.pools[1].size) == (1, 0)


async def test_a_caller_who_hangs_up_while_both_are_asked_leaves_nothing_behind():
    async with Hedging() as house:
        caller = await house.warmed()
        for up in house.ups:
            up.always(acts.silence())
        caller.say(EMBED)
        await asyncio.sleep(2 * USUAL_S)
        assert [pool.size - pool.idle for pool in house.pools] == [1, 1]
        caller.hang_up()
        await until(lambda: not any(house.left_over))
        assert [pool.size for pool in house.pools] == [0, 0]
        assert house.results == {"won": 0, "lost": 1, "failed": 0}
        assert house.parts.tally.left == 1
        for own in house.parts.tiers["many"].endpoints.values():
            assert own.breaker is not None
            assert own.breaker.state == "closed"


async def test_a_caller_who_hangs_up_while_the_breakers_probe_gives_both_permits_back():
    async with Hedging() as house:
        caller = await house.warmed()
        hearts = [own.breaker for own in house.parts.tiers["many"].endpoints.values() if own.breaker is not None]
        for heart in hearts:
            heart.force("forced-open", house.loop.time())
            heart.force("auto", house.loop.time())
        await asyncio.sleep(1.5)
        for up in house.ups:
            up.always(acts.silence())
        caller.say(EMBED)
        await asyncio.sleep(4 * USUAL_S)
        assert [pool.size - pool.idle for pool in house.pools] == [1, 1]
        assert [heart.state for heart in hearts] == ["half-open", "half-open"]
        caller.hang_up()
        await until(lambda: not any(house.left_over))
        for heart in hearts:
            # three probes may be made again, as before
            admitted = [heart.admit(house.loop.time()) for _ in range(4)]
            assert [ticket is not None for ticket in admitted] == [True, True, True, False]
