"""Where doors open: what all the connections to one address share, and how they are told to end."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from understudy.policies.service import Hop
from understudy.proxy.dialects.base import BadRequest, Dialect
from understudy.proxy.http.behind import Behind
from understudy.proxy.http.exchange import Entry, Exchange
from understudy.proxy.http.forwarding import IN_CIRCLES, Peer, address_of, goes_in_circles
from understudy.proxy.http.greeter import subject_of
from understudy.proxy.http.request_head import HeadMemory, RequestHead
from understudy.proxy.http.stepping import Steps
from understudy.proxy.settings.settings import Limits

Claim = tuple[Entry | None, bytes]
"""Who claims a request, if anybody does, and the path to go on with."""
Find = Callable[[bytes | None, int, bytes], tuple[Entry, bytes] | None]
"""Host, port and path of a request -> who claims it, and the path to go on with."""


SWEEP_S_MAX = 0.0003
"""For how long doors' clocks are looked at before the loop may see to somebody else: closing one takes 0.06 ms."""


class Logged(Protocol):
    """Where a finished exchange is written down, while that is `enabled`."""

    enabled: bool

    def __call__(self, exchange: Exchange, end: str) -> None: ...


class Guest(Protocol):
    """What is asked of a door from outside."""

    @property
    def unsent_bytes(self) -> int: ...
    def abort(self) -> None: ...
    def check_clocks(self, now: float) -> None: ...
    def drain(self) -> None: ...
    def cut_off(self) -> None: ...


class Hall:
    """What the doors of one address share. `serve` swaps routes and limits on a reload.

    `clock` is what everything is measured by; uvloop's own stands still within a turn of the loop and counts in
    milliseconds, so that the sidecar brings a finer one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        port: int,
        find: Find,
        fallback: Dialect,
        limits: Limits,
        *,
        clock: Callable[[], float] | None = None,
        logged: Logged | None = None,
        route_names: Callable[[], list[str]] = list,
        pseudonym: bytes = b"",
        steps: Steps | None = None,
    ) -> None:
        self.loop = loop
        self.steps = steps or Steps(loop)
        self.pseudonym = pseudonym
        self.clock = clock or loop.time
        self.port = port
        self.fallback = fallback
        self.serve(find, limits)
        self.logged = logged
        self.route_names = route_names
        self.doors: set[Guest] = set()
        self.shells: set[Guest] = set()
        """What is round the doors of those who speak TLS."""
        self.behind = Behind()
        self.leaving = False
        self.draining = False
        self.refused_connections = 0
        self.tls: ssl.SSLContext | None = None
        """For who connects from now on; those who are in stay as they are."""
        self.tls_failures: Counter[str] = Counter()
        self.unrouted = 0
        self._sweeping = False
        self.bad_requests = 0
        self._boot = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def serve(self, find: Find, limits: Limits) -> None:
        """Go by these routes and limits from now on. What was remembered of heads followed from the old ones."""
        self.find = find
        self.limits = limits
        self.heads = HeadMemory(limits)

    def claimed(self, head: RequestHead) -> tuple[Entry | None, bytes]:
        """Who claims a request with this head, and the path to go on with. Raises BadRequest for one of our own."""
        if head.claim is None:
            if self.pseudonym and goes_in_circles(head.headers, self.pseudonym):
                raise BadRequest(IN_CIRCLES, status=508)
            # `*` asks about the server as a whole, which no route is
            found = self.find(head.host, self.port, head.path) if head.path != b"*" else None
            head.claim = found or (None, head.path)
        return head.claim

    @staticmethod
    def hop(transport: asyncio.Transport) -> Hop:
        """What is known of a connection and of who is at its other end."""
        address = address_of(cast("Peer", transport.get_extra_info("peername")))
        if transport.get_extra_info("ssl_object") is None:
            return Hop(address, b"http")
        return Hop(address, b"https", subject_of(transport))

    def new_id(self) -> str:
        """An id for a request that brings none: unique, and short enough to read out over the phone."""
        return f"{self._boot}-{next(self._numbers):x}"

    def sweep(self, now: float) -> None:
        """Look at every door's clocks; called about once a second, so that no door needs a timer."""
        self.behind.sweep(now, self.limits)
        if not self._sweeping:
            self._sweep_on(iter([*self.doors, *self.shells]), now)

    def _sweep_on(self, doors: Iterator[Guest], now: float) -> None:
        """Some doors a turn: closing a thousand slow ones at once would have everybody else wait for 60 ms."""
        began = self.clock()
        for door in doors:
            if door in self.doors or door in self.shells:
                door.check_clocks(now)
            if self.clock() - began > SWEEP_S_MAX:
                self._sweeping = True
                self.loop.call_soon(self._sweep_on, doors, now)
                return
        self._sweeping = False

    def fell_behind(self, door: Guest) -> None:
        """A caller has let more than a stretch pile up."""
        self.behind.note(door, self.clock(), self.limits)

    def last_call(self) -> None:
        """Every answer closes its connection from now on; the idle may stay until `drain`, and who came comes in."""
        self.leaving = True

    def drain(self) -> None:
        """Answer what is in hand and nothing more: idle connections are closed now, busy ones after their answer."""
        self.leaving = self.draining = True
        for door in list(self.doors):
            door.drain()

    def cut(self) -> None:
        """The time for draining is over: streams are told so in band, everything is closed."""
        for door in list(self.doors):
            door.cut_off()
