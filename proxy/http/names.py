"""Where an upstream's name leads: asked of DNS, remembered for a while, and asked again when it proves wrong.

    UNKNOWN --answer--> FRESH --used after `dns_s`--> STALE --answer, asked for behind the caller's back--> FRESH
       |                  |                             |
       +--no answer:      +--no connection: asked       +--no answer: served on until STALE_S_MAX is over,
          the caller is      again at once                 asked for again at most once a second
          told so

Only the first caller ever waits for DNS, and those after a day without it. `getaddrinfo` tells no time to live, so
that the policy says one. Asked and answered in one flight: a resolver that hangs holds one thread, not one a call.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> all IP addresses in digits, best first. Raises OSError."""

STALE_S_MAX = 86_400.0
"""How long addresses are believed while DNS does not answer (RFC 8767 section 5 proposes one to three days)."""
ASKED_AGAIN_S_MIN = 1.0
"""The least time between two questions about one name, however many connections fail."""
SECOND_OPINION_S_MAX = 0.25
"""How long a call that could not connect waits to hear of other addresses."""
ADDRESSES_MAX = 32


class Names:
    """One host's addresses. An address written out in digits is never asked about."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        *,
        dns_s: float,
        clock: Callable[[], float],
        resolve: Resolve | None = None,
    ) -> None:
        self._loop = loop
        self._host = host
        self._port = port
        self._dns_s = dns_s
        self._clock = clock
        self._resolve = resolve or self._getaddrinfo
        self._asking: asyncio.Task[None] | None = None
        self._error: OSError | None = None
        self._asked_at = float("-inf")
        self._answered_at = float("-inf")
        self.known: tuple[str, ...] = ()
        self.good: str | None = None
        """The address that was last connected to; it is tried first."""
        self.results = {"ok": 0, "failed": 0, "stale": 0}
        """Questions answered and not, and how often addresses older than `dns_s` were used."""
        self._fixed = _is_literal(host)
        if self._fixed:
            self.known = (host,)

    async def addresses(self) -> tuple[str, ...]:
        """Where to connect, in order. Raises OSError when nobody knows."""
        if self._fixed:
            return self.known
        age_s = self._clock() - self._answered_at
        if age_s > STALE_S_MAX:
            self.known, self.good = (), None
        if not self.known:
            await asyncio.wait((self._asked(),))
            if not self.known:
                raise self._error or socket.gaierror(socket.EAI_AGAIN, "asked no more")
        elif age_s > self._dns_s:
            self.results["stale"] += 1
            self._ask_behind()
        return self._in_order()

    async def others(self, tried: Sequence[str]) -> tuple[str, ...]:
        """After no connection came of `tried`: what DNS says now that was not among them, if it says so soon."""
        asking = self._ask_behind()
        if asking is not None:
            await asyncio.wait((asking,), timeout=SECOND_OPINION_S_MAX)
        return tuple(address for address in self._in_order() if address not in tried)

    def led_to(self, address: str) -> None:
        """A connection came of this address."""
        self.good = address

    def led_nowhere(self) -> None:
        """No connection came of what we know: it may be out of date."""
        self.good = None
        self._ask_behind()

    async def renew(self) -> bool:
        """Ask DNS now, however well what we know has served; whether it says something else. Raises OSError when it
        does not answer, and what we know stays."""
        if self._fixed:
            return False
        before, failed = set(self.known), self.results["failed"]
        await asyncio.wait((self._asked(),))
        if self.results["failed"] > failed:
            raise self._error or socket.gaierror(socket.EAI_AGAIN, "no answer")
        return set(self.known) != before

    @property
    def are_fixed(self) -> bool:
        """Whether the host is an address already, so that there is nothing to ask."""
        return self._fixed

    def close(self) -> None:
        """Wait for no answer any more."""
        if self._asking is not None:
            self._asking.cancel()

    def _ask_behind(self) -> asyncio.Task[None] | None:
        """See to it that DNS is being asked, unless it was just now; the question, if one is on its way."""
        if self._fixed:
            return None
        if self._asking is None and self._clock() - self._asked_at < ASKED_AGAIN_S_MIN:
            return None
        return self._asked()

    def _asked(self) -> asyncio.Task[None]:
        if self._asking is None:
            self._asked_at = self._clock()
            self._asking = self._loop.create_task(self._ask())
        return self._asking

    async def _ask(self) -> None:
        try:
            found = tuple(dict.fromkeys(await self._resolve(self._host, self._port)))[:ADDRESSES_MAX]
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "no address")
        except (OSError, UnicodeError) as error:
            # a name that can't even be written as one (UnicodeError) is a name that does not resolve
            self._error = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, str(error))
            self.results["failed"] += 1
        else:
            self.results["ok"] += 1
            self._answered_at = self._clock()
            self.known = interleaved(found)
            if self.good not in self.known:
                self.good = None
        finally:
            self._asking = None

    async def _getaddrinfo(self, host: str, port: int) -> Sequence[str]:
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [_in_digits(address) for _, _, _, _, address in found]

    def _in_order(self) -> tuple[str, ...]:
        good = self.good
        if good is None or good == self.known[0]:
            return self.known
        return (good, *(address for address in self.known if address != good))


def interleaved(addresses: Sequence[str]) -> tuple[str, ...]:
    """The addresses with their families taking turns, the first one's first (RFC 8305 section 4)."""
    by_family: dict[bool, list[str]] = {}
    for address in addresses:
        by_family.setdefault(":" in address, []).append(address)
    rounds = max(map(len, by_family.values()), default=0)
    return tuple(of_one[turn] for turn in range(rounds) for of_one in by_family.values() if turn < len(of_one))


def _in_digits(address: tuple[object, ...]) -> str:
    """A socket address without its port; a link-local one keeps the number of its link."""
    return f"{address[0]}%{address[3]}" if len(address) == 4 and address[3] else str(address[0])


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
