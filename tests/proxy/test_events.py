"""What happened is told once to everybody who listens, and to the parent by its workers."""

from __future__ import annotations

import asyncio
import socket

from understudy.policies.events import DETAIL_CHARS_MAX, FACTS_MAX, Event, component_of
from understudy.proxy.control.wire import Channel, Happened
from understudy.proxy.events import EVENTS_MAX, Events

GONE = Event(
    1.8e9, "failure", component_of("llm_service", "api.example:443"), "refused", "it refuses", {"status": "503"}
)


def test_every_listener_is_told_also_when_one_before_it_fails():
    told: list[Event] = []
    events = Events()
    events.subscribe(lambda event: 1 // 0)
    events.subscribe(told.append)
    events.publish(GONE)
    assert told == [GONE]
    assert list(events.recent) == [GONE]


def test_the_last_events_are_kept_and_no_more():
    events = Events()
    for number in range(EVENTS_MAX + 5):
        events.publish(Event(number, "tier", "sidecar:", "secondary"))
    assert [event.at for event in events.recent] == list(range(5, EVENTS_MAX + 5))


def test_what_is_told_at_length_is_cut():
    events = Events()
    events.publish(Event(0, "failure", "network:", "dns", "x" * 2000, {str(n): "" for n in range(99)}))
    (kept,) = events.recent
    assert (len(kept.detail), len(kept.facts)) == (DETAIL_CHARS_MAX, FACTS_MAX)


async def test_an_event_crosses_the_channel_whole():
    ours, theirs = socket.socketpair()
    one, other = await Channel.on(ours), await Channel.on(theirs)
    one.send(Happened([GONE]))
    assert await asyncio.wait_for(other.receive(), 5) == Happened([GONE])
    await one.close()
    await other.close()
