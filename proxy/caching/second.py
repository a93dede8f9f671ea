"""The second level: Redis or Memcached through aiocache, asked for at most a moment and never needed.

    read --> patience --> multi_get --in time------> values that are whole, and of the collections' shared epoch
                |            |-----later, or broken--> misses, and after three of those nothing is asked for a while
                +--refuses--> misses, at no cost

What stands there is not believed: values carry a checksum and a version, and those read from a collection carry its
shared epoch, a random word that every write replaces. While such a replacement is owed, because the server was not
there when a write went through, nothing of that collection is believed at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from understudy.policies.cache import Homes, Patience

HARD_S = 1.0
"""How long a question nobody waits for any longer may go on."""
IN_FLIGHT_MAX = 64
"""Questions at once; beyond it, a call goes without, and what was to be written is not."""
KEYS_MAX = 256
"""Keys of one question."""
EPOCH_TTL_S = 30 * 86400.0
EPOCH_BYTES = 12
OWED_MAX = 4096

log = logging.getLogger("understudy.cache")

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Client(Protocol):
    """What is needed of an aiocache cache."""

    async def multi_get(self, keys: Sequence[str]) -> list[bytes | None]: ...
    @property
    def set(self) -> Callable[..., Awaitable[object]]: ...
    async def close(self) -> object: ...


def client_of(url: str, namespace: str) -> Client:
    """The aiocache cache that `url` names. Nothing is connected yet."""
    parts = urlsplit(url)
    from aiocache.serializers import NullSerializer

    told = {"serializer": NullSerializer(encoding=None), "namespace": namespace, "timeout": HARD_S}
    host = parts.hostname or "127.0.0.1"
    if parts.scheme == "memcached":
        from aiocache import MemcachedCache

        return MemcachedCache(endpoint=host, port=parts.port or 11211, pool_size=8, **told)
    from aiocache import RedisCache

    return RedisCache(
        endpoint=host,
        port=parts.port or 6379,
        db=int(parts.path.strip("/") or 0),
        password=unquote(parts.password) if parts.password else None,
        pool_max_size=IN_FLIGHT_MAX,
        create_connection_timeout=HARD_S,
        connection_pool_kwargs={"socket_timeout": HARD_S, **({"username": parts.username} if parts.username else {})},
        ssl=parts.scheme == "rediss",
        **told,
    )


class Second:
    """The shell round a client. Nothing here raises, and nothing takes longer than `wait_s`."""

    def __init__(
        self,
        client: Client,
        wait_s: float,
        *,
        clock: Callable[[], float],
        dice: Callable[[], float],
        word: Callable[[], bytes],
        spawn: Spawn,
    ) -> None:
        self._client = client
        self.wait_s = wait_s
        self._clock = clock
        self._dice = dice
        self._word = word
        self._spawn = spawn
        self._in_flight = 0
        self.patience = Patience()
        self.answers = self.failures = 0
        """Questions and writes that were answered in time, and that were not, by anybody's doing."""
        self.moved: Callable[[str], None] | None = None
        """Called with the name of a collection that somebody else has written to."""
        self.epochs: dict[str, bytes] = {}
        self.owed: dict[str, None] = {}
        self.results = dict.fromkeys(("hit", "miss", "late", "error", "skipped", "stored", "malformed", "dropped"), 0)

    async def reconnect(self, client: Client) -> None:
        """Ask by another client from now on, at once; the old one's connections are closed, whatever hangs on them.

        What is owed stays owed."""
        before, self._client = self._client, client
        self.patience = Patience()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(HARD_S):
                await before.close()

    # --- values ----------------------------------------------------------------------------------------------------

    async def read(self, keys: Sequence[bytes], homes: Homes) -> tuple[list[bytes | None], bytes | None]:
        """The values of `keys`, and the shared epoch of `homes` to believe them by; None where there is none to know.

        Who gets an epoch may write under it what was asked for afterwards.
        """
        nothing: list[bytes | None] = [None] * len(keys)
        if len(keys) > KEYS_MAX or any(home.name in self.owed for home in homes):
            self.results["skipped"] += 1
            return nothing, None
        names = [_epoch_key(home.name) for home in homes] + [key.hex() for key in keys]
        values = await self._asked(names)
        if values is None:
            return nothing, None
        words = values[: len(homes)]
        for home, word in zip(homes, words, strict=True):
            self._heard(home.name, word)
        if any(word is None for word in words):
            # whose word was lost knows nothing of writes before: what stands there is of no use, what comes is
            self._spawn(self._renew([home.name for home, word in zip(homes, words, strict=True) if word is None]))
            return nothing, None
        return values[len(homes) :], b"".join(word for word in words if word)

    def write(self, pairs: Iterable[tuple[bytes, bytes]], ttl_s: float) -> None:
        """Keep values there, behind the caller's back; dropped where that can't be done now."""
        pairs = list(pairs)
        if not pairs:
            return
        if self._in_flight >= IN_FLIGHT_MAX or not self.patience.admits(self._clock()):
            self.results["dropped"] += len(pairs)
            return
        self._in_flight += 1
        self._spawn(self._write([(key.hex(), value) for key, value in pairs], max(1, int(ttl_s))))

    async def _write(self, pairs: Sequence[tuple[str, bytes]], ttl_s: int) -> None:
        try:
            for key, value in pairs:
                await self._client.set(key, value, ttl=ttl_s)
                self.results["stored"] += 1
            self._answered()
        except Exception as error:
            self._failed(error)
        finally:
            self._in_flight -= 1

    async def _asked(self, names: list[str]) -> list[bytes | None] | None:
        """The values of `names`, or None when they were not there in time."""
        if self._in_flight >= IN_FLIGHT_MAX or not self.patience.admits(self._clock()):
            self.results["skipped"] += 1
            return None
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[list[bytes | None] | None] = loop.create_future()
        self._in_flight += 1
        asking = loop.create_task(self._ask(names, waiter))
        timer = loop.call_later(self.wait_s, self._late, asking, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()

    async def _ask(self, names: list[str], waiter: asyncio.Future[list[bytes | None] | None]) -> None:
        values: list[bytes | None] | None = None
        try:
            values = await self._client.multi_get(names)
            self._answered()
        except Exception as error:
            self._failed(error)
        finally:
            self._in_flight -= 1
            if not waiter.done():
                waiter.set_result(values)

    def _late(self, asking: asyncio.Task[None], waiter: asyncio.Future[list[bytes | None] | None]) -> None:
        if waiter.done():
            return
        self.results["late"] += 1
        self.failures += 1
        self.patience.failed(self._clock(), self._dice())
        waiter.set_result(None)
        # its connection is closed with it: an answer that comes now would be taken for the next one's
        asking.cancel()

    def _answered(self) -> None:
        self.answers += 1
        self.patience.answered()

    def _failed(self, error: Exception) -> None:
        was_open = self.patience.is_open
        self.results["error"] += 1
        self.failures += 1
        self.patience.failed(self._clock(), self._dice())
        if self.patience.is_open and not was_open:
            log.warning("the second level of the cache is left alone for a while: %s", type(error).__name__)

    # --- shared epochs ---------------------------------------------------------------------------------------------

    def written(self, names: Iterable[str]) -> None:
        """Collections were written to: nothing of them that stands there is believed from now on, by anybody."""
        for name in names:
            if len(self.owed) < OWED_MAX:
                self.owed[name] = None
        self._spawn(self._renew(list(names)))

    async def ping(self) -> bool | None:
        """Whether it answers in time; None where it is left alone for a while, or asked enough already."""
        skipped = self.results["skipped"]
        values = await self._asked([_epoch_key("")])
        if values is None and self.results["skipped"] > skipped:
            return None
        return values is not None

    async def poll(self, homes: Iterable[str]) -> None:
        """Pay what is owed, and hear of what others have written to since last time."""
        if self.owed:
            await self._renew(list(self.owed)[:KEYS_MAX])
        names = [name for name in homes if name in self.epochs and name not in self.owed][:KEYS_MAX]
        before = [self.epochs[name] for name in names]
        words = await self._asked([_epoch_key(name) for name in names]) if names else None
        for name, known, word in zip(names, before, words or (), strict=False):
            if self.epochs.get(name) == known and word != known:
                self._heard(name, word)

    def _heard(self, name: str, word: bytes | None) -> None:
        known = self.epochs.get(name)
        if word is None:
            self.epochs.pop(name, None)
        elif known is not None or len(self.epochs) < OWED_MAX:
            self.epochs[name] = word
        if known is not None and word != known and self.moved is not None:
            self.moved(name)

    async def _renew(self, names: list[str]) -> None:
        if not self.patience.admits(self._clock()):
            return
        try:
            for name in names:
                word = self._word()
                await self._client.set(_epoch_key(name), word, ttl=int(EPOCH_TTL_S))
                self.epochs[name] = word
                self.owed.pop(name, None)
            self._answered()
        except Exception as error:
            self._failed(error)

    async def close(self) -> None:
        """Let go of the connections."""
        try:
            await asyncio.wait_for(self._client.close(), HARD_S)
        except Exception as error:
            log.info("the second level of the cache did not close in order: %s", type(error).__name__)


def _epoch_key(name: str) -> str:
    # a collection's name may be any text, and Memcached's keys may not
    return "epoch:" + name.encode().hex()[:160]
