"""A route with a cache, put together as the sidecar does it, in front of tiers that a test plays.

desk = Desk("openai-embeddings", upstream)          upstream: a Service, or anything `async (Call) -> Answer`
answer = await desk.ask(body, headers=...)          through the whole stack, or from the door's own look-up
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from understudy.policies.service import Answer, Headers, Request, Service, Stream
from understudy.proxy.caching.caches import Caches
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import LocalTier, Match, Route, Tier, UpstreamTier
from understudy.proxy.stack import RouteParts, World, assemble

TARGETS = {
    "openai-embeddings": b"/v1/embeddings",
    "azure-openai-embeddings": b"/openai/deployments/d/embeddings",
    "ollama-embed": b"/api/embed",
    "tei": b"/embed",
    "cohere-embed": b"/v2/embed",
    "pinecone": b"/query",
    "openai-chat": b"/v1/chat/completions",
    "qdrant": b"/collections/books/points/query",
    "elasticsearch": b"/books/_search",
    "milvus": b"/v2/vectordb/entities/search",
    "weaviate": b"/v1/graphql",
}
JSON_BLOCK = b"content-type: application/json\r\n"
WALL_S = 1_800_000_000.0


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def answer(body: Any, *, status: int = 200, block: bytes = b"") -> Answer:
    """An upstream's answer, its head as bytes."""
    content = body if isinstance(body, bytes) else as_json(body)
    return Answer(status, None, content, block=JSON_BLOCK + block)


def route_of(dialect: str, *, local: bool, cache: settings.Cache, **changed: Any) -> Route:
    tiers: list[Tier] = [UpstreamTier(name="first", url="http://a")]
    tiers += [LocalTier()] if local else []
    fields: dict[str, Any] = {"name": "r", "match": Match(prefix="/"), "dialect": dialect, "tiers": tiers}
    fields |= {"retry": settings.Retry(attempts=1), "breaker": settings.Breaker(enabled=False), "cache": cache}
    return Route(**{**fields, **changed})


def shared_caches(dice: Callable[[], float] = lambda: 0.0) -> Caches:
    """Caches on the test's own clock."""
    clock = asyncio.get_running_loop().time
    return Caches(clock=clock, wall=lambda: WALL_S + clock(), dice=dice)


class Desk:
    """One route and its tiers. `rules` are the cache's settings."""

    def __init__(
        self,
        dialect: str,
        upstream: Service,
        *,
        local: Service | None = None,
        caches: Caches | None = None,
        before: RouteParts | None = None,
        route: dict[str, Any] | None = None,
        **rules: Any,
    ) -> None:
        cache = settings.Cache(**{"enabled": True, "jitter_share": 0.0, **rules})
        made = route_of(dialect, local=local is not None, cache=cache, **(route or {}))
        self.caches = caches or shared_caches()
        self.dialect = DIALECTS[dialect]
        clock = asyncio.get_running_loop().time
        world = World(clock=clock, sleep=asyncio.sleep, dice=random.Random(1).random, wall=self.caches.wall)
        services = {"first": upstream, **({"local": local} if local is not None else {})}
        self.parts = assemble(
            made,
            self.dialect,
            world,
            lambda _route, tier, _endpoint: services.get(tier.name, upstream),
            caches=self.caches,
            before=before,
        )
        assert self.parts.cache is not None
        self.cache = self.parts.cache

    def request(
        self, body: Any, headers: Headers | None = None, target: bytes = b"", method: bytes = b"POST"
    ) -> Request:
        content = body if isinstance(body, bytes) else as_json(body)
        named = [(b"content-type", b"application/json"), *(headers or [])]
        return Request(method, target or TARGETS[self.dialect.name], named, content)

    async def ask(
        self,
        body: Any,
        headers: Headers | None = None,
        *,
        target: bytes = b"",
        method: bytes = b"POST",
        at_the_door: bool = True,
    ) -> Answer:
        """Ask as the door does: the cache's own look-up first, and then the stack."""
        return await self.ask_with(self.request(body, headers, target, method), at_the_door=at_the_door)

    async def ask_with(self, request: Request, *, at_the_door: bool = True) -> Answer:
        """The same with a request made elsewhere."""
        assert self.parts.hit is not None
        if at_the_door and (found := self.parts.hit(request)) is not None:
            return found
        call = self.dialect.read(request)
        call.dialect, call.route, call.id = self.dialect.name, "r", "test"
        call.born = asyncio.get_running_loop().time()
        return await self.parts.service(call)

    async def close(self) -> None:
        await self.caches.close()


class Heard:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.data = b""
        self.ending = ""

    def write(self, chunk: bytes) -> None:
        self.data += chunk

    def end(self) -> None:
        self.ending = "end"

    def cut(self, reason: str) -> None:
        self.ending = f"cut: {reason}"


class Played(Stream):
    """A stream that says these pieces one by one, and then ends or breaks."""

    def __init__(self, pieces: Sequence[bytes], *, cut: bool = False) -> None:
        super().__init__()
        self.pieces = list(pieces)
        self.is_cut = cut

    def relay(self, sink: Any) -> None:
        for piece in self.pieces:
            sink.write(piece)
        self.finish("cut" if self.is_cut else "done")
        sink.cut("broken") if self.is_cut else sink.end()


def heard(answer: Answer) -> Heard:
    """All of a streamed answer."""
    sink = Heard()
    assert answer.stream is not None
    answer.stream.relay(sink)
    return sink


def embedder(asked: list[list[Any]], **options: Any) -> Service:
    """An upstream that embeds "text" as [len, ord...], and writes down the inputs of each request."""

    async def embedding(call: Any) -> Answer:
        body = json.loads(call.request.body)
        given = body["input"]
        inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        asked.append(inputs)
        data = [
            {"object": "embedding", "index": n, "embedding": vector_of(each, body)} for n, each in enumerate(inputs)
        ]
        if options.get("backwards"):
            data.reverse()
        tokens = sum(len(str(each)) for each in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return answer({"object": "list", "data": data, "model": body.get("model", "m"), "usage": usage})

    return embedding


def vector_of(item: Any, body: dict[str, Any]) -> Any:
    """What `embedder` makes of an input: another one for another input, dimension or encoding."""
    text = str(item)
    numbers = [float(len(text)), float(sum(map(ord, text)))] + [0.5] * int(body.get("dimensions") or 0)
    return f"b64:{text}:{len(numbers)}" if body.get("encoding_format") == "base64" else numbers
