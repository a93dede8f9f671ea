"""An upstream tier on its own: a real pool to a fake upstream, asked without a door."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from tests.kit.fake_upstream import Act, FakeUpstream, Headers
from understudy.policies.service import Answer, Call, End, Failed, Kind, Request, Stream
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.http.names import Resolve
from understudy.proxy.settings.settings import Tls, UpstreamTier
from understudy.proxy.tiers.upstream import make_pool, upstream_tier


class Sink:
    """Takes a stream down."""

    def __init__(self, stream: Stream) -> None:
        self.pieces: list[bytes] = []
        self.over = asyncio.Event()
        self.broken = ""
        self.ended: End | None = None
        stream.watch(self._watch)
        self.stream = stream

    def _watch(self, end: End) -> None:
        self.ended = end

    def write(self, chunk: bytes) -> None:
        self.pieces.append(chunk)

    def end(self) -> None:
        assert not self.over.is_set()
        self.over.set()

    def cut(self, reason: str) -> None:
        assert not self.over.is_set()
        self.broken = reason
        self.over.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


async def taken(answer: Answer) -> Sink:
    """The answer's stream, taken to its end."""
    assert answer.stream is not None
    sink = Sink(answer.stream)
    answer.stream.relay(sink)
    await sink.over.wait()
    return sink


class Bench:
    """One upstream, one pool, one tier."""

    def __init__(
        self,
        act: Act | None = None,
        *,
        dialect: str = "openai-chat",
        tls: Any = None,
        trust: Tls | None = None,
        idle_close_s: float | None = None,
        url: str | None = None,
        resolve: Resolve | None = None,
        holds: bool = True,
        **tier: Any,
    ) -> None:
        self.up = FakeUpstream(act, tls=tls, idle_close_s=idle_close_s)
        self.loop = asyncio.get_running_loop()
        self._dialect = dialect
        self._url = url
        self._resolve = resolve
        self._holds = holds
        self._tier = tier | ({"tls": trust} if trust else {})

    async def __aenter__(self) -> Self:
        await self.up.__aenter__()
        # with a resolver of the test's own, the upstream has a name that leads wherever that says
        url = self.up.url.replace("127.0.0.1", "up.test") if self._resolve else self.up.url
        settings = UpstreamTier(name="up", url=self._url or url, **self._tier)
        self.pool = make_pool(settings, self.loop, self.loop.time, dice=lambda: 0.0, resolve=self._resolve)
        dialect = DIALECTS[self._dialect]
        self.tier = upstream_tier(settings, dialect, self.pool, self.loop.time, holds=self._holds)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pool.close()
        await self.up.__aexit__()
        async with asyncio.timeout(30.0):
            while self.pool.size:  # noqa: ASYNC110 - what is lost is heard of when the kernel says so
                await asyncio.sleep(0.01)

    def call(
        self,
        kind: Kind = "generate",
        method: str = "POST",
        body: bytes = b"{}",
        headers: Headers = (),
        *,
        within_s: float = 1000.0,
    ) -> Call:
        call = Call(kind, Request(method.encode(), b"/v1/x", list(headers), body), born=self.loop.time(), id="id-1")
        call.deadline = call.until = self.loop.time() + within_s
        return call

    async def ask(self, *args: Any, **kwargs: Any) -> Answer:
        return await self.tier(self.call(*args, **kwargs))

    async def fails(self, *args: Any, **kwargs: Any) -> Failed:
        """The Failed that it must come to."""
        try:
            answer = await self.ask(*args, **kwargs)
        except Failed as failed:
            return failed
        raise AssertionError(f"answered {answer.status} {answer.body!r}")

    async def settled(self) -> None:
        """What was closed is seen to be closed on both sides."""
        await asyncio.sleep(0.05)
