"""Ask a route's own upstream beside its calls: by its URL, headers and trust, patiently, and never on a call's path.

2xx --> the body       404 --> Gone       429, 5xx, cut --> again later, as Retry-After says       else --> SourceFailed
A body that is read as Busy is asked for again as well.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from understudy.policies.pace import Pace
from understudy.proxy.http.heads import seconds_of
from understudy.proxy.mirroring.source import Busy, Gone, SourceFailed
from understudy.proxy.settings.settings import UpstreamTier, at_endpoint, endpoints_of
from understudy.proxy.tiers.upstream import tls_context

ATTEMPTS_MAX = 8
PAUSE_S, PAUSE_S_MAX = 0.5, 60.0
BODY_BYTES_MAX = 64 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
BUSY = frozenset((408, 425, 429, 500, 502, 503, 504, 529))

Query = Mapping[str, str] | Sequence[tuple[str, str]]
_Read = TypeVar("_Read")


class Line:
    """A session with one upstream tier. `pace` is what its pages keep to; `eased` when it says that it has too much."""

    def __init__(
        self,
        tier: UpstreamTier,
        pace: Pace,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        dice: Callable[[], float] = random.random,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> None:
        self.pace = pace
        self._tier = tier
        self._clock = clock
        self._sleep = sleep
        self._dice = dice
        self._attempts_max = attempts_max
        self._places = [at_endpoint(tier, endpoint) for endpoint in endpoints_of(tier)]
        self._place = 0
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        read: Callable[[bytes], _Read] = msgspec.json.decode,
    ) -> _Read:
        """What the upstream answers, as `read` makes of its body, in a thread. `path` is quoted already; `headers` go
        beside those that every call has.

        Raises Gone, or SourceFailed when patience is over, when it says no, or when `read` can't make anything of it.
        """
        data = None if body is None else msgspec.json.encode(body)
        why = ""
        for attempt in range(self._attempts_max):
            told_s = None
            try:
                status, told, raw = await self._once(method, path, data, query, headers)
                if 200 <= status < 300:
                    done = await _in_thread(read, raw, f"{method} {path}")
                    self.pace.went_well()
                    return done
            except Busy as busy:
                why = f"{method} {path}: {busy}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                # another of several endpoints may be well
                self._place = (self._place + 1) % len(self._places)
            else:
                why = f"{method} {path}: {status} {_excerpt(raw)}"
                if status in (404, 410):
                    raise Gone(why)
                if status not in BUSY:
                    raise SourceFailed(why)
                told_s = _retry_after_s(told.get("Retry-After"))
            self.pace.eased()
            if attempt + 1 < self._attempts_max:
                await self._sleep(self._pause_s(attempt, told_s))
        raise SourceFailed(why)

    async def paced(self, count: int) -> None:
        """Wait until `count` more points that were read fit the pace."""
        wait_s = self.pace.take(count, self._clock())
        if wait_s > 0:
            await self._sleep(wait_s)

    async def close(self) -> None:
        """Close the sessions."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    def _pause_s(self, attempt: int, told_s: float | None) -> float:
        if told_s is not None:
            return min(told_s, PAUSE_S_MAX)
        # full jitter, but never none: whoever is busy is given a moment
        return min(PAUSE_S_MAX, PAUSE_S * 2**attempt) * (0.5 + 0.5 * self._dice())

    async def _once(
        self, method: str, path: str, data: bytes | None, query: Query | None, headers: Mapping[str, str] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        place = self._places[self._place]
        session = self._session(self._place)
        url = place.url.rstrip("/") + path
        content = {**(headers or {}), **({"content-type": "application/json"} if data is not None else {})}
        name = place.tls.server_name
        asked = session.request(
            method, _with_query(url, query), data=data, headers=content, allow_redirects=False, server_hostname=name
        )
        async with asked as answer:
            pieces: list[bytes] = []
            held = 0
            async for piece in answer.content.iter_chunked(CHUNK_BYTES):
                pieces.append(piece)
                held += len(piece)
                if held > BODY_BYTES_MAX:
                    raise SourceFailed(f"{method} {path}: an answer of more than {BODY_BYTES_MAX} bytes")
            return answer.status, answer.headers, b"".join(pieces)

    def _session(self, number: int) -> aiohttp.ClientSession:
        if (held := self._sessions.get(number)) is not None:
            return held
        place = self._places[number]
        headers = {name: value.reveal() for name, value in place.headers.items()}
        tls = tls_context(place.tls) if place.url.startswith("https:") else False
        connector = aiohttp.UnixConnector(place.socket) if place.socket else aiohttp.TCPConnector(ssl=tls, limit=4)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=place.connect_s, sock_read=place.first_byte_s)
        session = aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=limits, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._sessions[number] = session
        return session


def _with_query(url: str, query: Query | None) -> str:
    """The URL with its query; what is quoted in it stays as it is."""
    pairs = query.items() if isinstance(query, Mapping) else query or ()
    words = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in pairs)
    return f"{url}?{words}" if words else url


async def _in_thread(read: Callable[[bytes], _Read], raw: bytes, asked: str) -> _Read:
    try:
        # a page's thousands of numbers would hold up every call
        return await asyncio.get_running_loop().run_in_executor(None, read, raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceFailed(f"{asked}: {error}") from None


def _excerpt(raw: bytes) -> str:
    return " ".join(raw[:200].decode("utf-8", "replace").split())


def _retry_after_s(told: str | None) -> float | None:
    if told is None:
        return None
    if told.strip().isdigit():
        return float(told)
    try:
        return max(0.0, seconds_of(told) - time.time())
    except ValueError:
        return None
