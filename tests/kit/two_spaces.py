"""A RAG application's two legs with a primary in one vector space and a local tier in another, over one provenance.

    embeddings: primary (space far, 96 dimensions)  then local (space near, 48 dimensions)
    retrieval:  primary (points in space far)       then local (the same points in space near)

Both spaces are bags of hashed words, of unlike hashes, one of them turned by a random rotation, so that a vector of one
is noise in the other. Whoever searches here says what it was searched with: a vector of the wrong space, or a handle at
a primary, is counted and not forgiven.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.kit.ways import WAYS
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.models.batcher import Batcher
from understudy.models.space import Space
from understudy.policies.marks import first_handle
from understudy.policies.questions import Questions
from understudy.policies.service import Answer, Call, Failed, Refused, Request, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.settings.settings import LocalTier, Match, Route, Settings, Spaces, Tier, UpstreamTier
from understudy.proxy.spaces.provenance import Provenance
from understudy.proxy.spaces.spaces import plans_of
from understudy.proxy.stack import RouteParts, World, assemble
from understudy.proxy.tiers.handing import Handing
from understudy.proxy.tiers.knowing import Knowing, Model
from understudy.proxy.tiers.local import local_tier
from understudy.proxy.tiers.origins import Origins

FAR, NEAR = "far-embed", "near-embed"
FAR_DIMENSIONS, NEAR_DIMENSIONS = 96, 48
COLLECTION = "docs"
WORDS = 400
TEXT_WORDS = 12

Floats = NDArray[np.float32]


def texts(count: int, seed: int = 1) -> list[str]:
    """So many texts of words drawn by chance."""
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(WORDS)}" for _ in range(TEXT_WORDS)) for _ in range(count)]


def topical(count: int, seed: int = 2) -> list[str]:
    """So many texts, each of words of one of 40 topics: whoever shares words with one lies near it."""
    rng = random.Random(seed)
    topics = [f"t{n % 40}" for n in range(count)]
    return [" ".join(f"{topic}w{rng.randrange(30)}" for _ in range(TEXT_WORDS)) for topic in topics]


def _bag(text: str, salt: str, dimensions: int) -> NDArray[np.float64]:
    bag = np.full(dimensions, 0.01)
    for word in text.split():
        digest = hashlib.sha256(f"{salt}{word}".encode()).digest()
        bag[digest[0] % dimensions] += 1 if digest[1] & 1 else -1
        bag[digest[2] % dimensions] += 1 if digest[3] & 1 else -1
    return bag / np.linalg.norm(bag)


@lru_cache
def _rotation() -> NDArray[np.float64]:
    drawn = np.random.default_rng(7).normal(size=(FAR_DIMENSIONS, FAR_DIMENSIONS))
    return np.linalg.qr(drawn)[0]


@lru_cache(maxsize=100_000)
def far(text: str) -> Floats:
    """The primary's vector of a text."""
    return (_rotation() @ _bag(text, "far", FAR_DIMENSIONS)).astype(np.float32)


@lru_cache(maxsize=100_000)
def kin(text: str) -> Floats:
    """Another primary's vector of a text: it sees what the local model sees, bent and turned."""
    bent = np.tanh(4 * _rotation()[:, :NEAR_DIMENSIONS] @ _bag(text, "near", NEAR_DIMENSIONS))
    return (bent / np.linalg.norm(bent)).astype(np.float32)


@lru_cache(maxsize=100_000)
def near(text: str) -> Floats:
    """The local model's vector of a text."""
    return _bag(text, "near", NEAR_DIMENSIONS).astype(np.float32)


class NearEmbedder:
    """The local model."""

    provider = "cpu"
    batch_tokens_max = 4096
    text_tokens_max = 64

    def __init__(self) -> None:
        self.space = Space(NEAR, NEAR_DIMENSIONS)

    def embed(self, texts: Sequence[str], kind: Literal["query", "document"] = "query") -> Floats:
        return np.stack([near(text) for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) for text in texts)


class Watched:
    """A local collection that looks at what it is searched with."""

    def __init__(self, inner: Any, world: TwoSpaces) -> None:
        self._inner = inner
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def search(self, vector: Any, *rest: Any, **more: Any) -> Any:
        self._world.check_near(vector)
        return self._inner.search(vector, *rest, **more)

    def search_fused(self, vector: Any, *rest: Any, **more: Any) -> Any:
        self._world.check_near(vector)
        return self._inner.search_fused(vector, *rest, **more)


class TwoSpaces:
    """The two legs. `embedder_up` and `database_up` may be changed at any time; `wrong_space` and `handles_at_primary`
    are to stay 0."""

    def __init__(
        self,
        folder: Path,
        documents: Sequence[str],
        *,
        spaces: Spaces | None = None,
        collection_space: str = NEAR,
        provenance: Provenance | None = None,
        far: Callable[[str], Floats] = far,
        worded: bool = True,
        state: Path | None = None,
        questions: Questions | None = None,
        dialect: str = "qdrant",
    ) -> None:
        self.way = WAYS[dialect]
        self.documents = list(documents)
        self.far, self.worded = far, worded
        self.embedder_up = self.database_up = True
        self.wrong_space = self.handles_at_primary = self.asked_database = 0
        self.written: list[bytes] = []
        self.says: int | None = None
        """What writes are answered with, instead of a yes."""
        self.known_near = {near(text).tobytes() for text in documents}
        self.known_far = {self.far(text).tobytes() for text in documents}
        self._matrix = np.stack([self.far(text) for text in documents])
        self.provenance = provenance or Provenance()
        self._knowing = Knowing()
        self._knowing.give_model(Model(NearEmbedder(), Batcher(NearEmbedder()), NEAR))
        self._knowing.give_shelf(self._library(folder, collection_space))
        rules = spaces or Spaces()
        self.embeddings = self._route("embeddings", "openai-embeddings", rules)
        self.retrieval = self._route("retrieval", dialect, rules)
        settings = Settings(local=_local(), routes=(self.embeddings, self.retrieval))
        self.plans = plans_of(settings)
        self.skipped_s = 0.0
        clock = self._clock
        self.world = World(
            clock,
            asyncio.sleep,
            dice=random.Random(1).random,
            provenance=self.provenance,
            questions=questions,
            state=state,
        )
        self.embed_parts = self._assembled(self.embeddings)
        self.retrieve_parts = self._assembled(self.retrieval)

    @property
    def knowing(self) -> Knowing:
        """What is known locally."""
        return self._knowing

    def _clock(self) -> float:
        return asyncio.get_running_loop().time() + self.skipped_s

    def _library(self, folder: Path, space: str) -> Any:
        if not (folder / COLLECTION).exists():
            vector = near if space == NEAR else self.far
            told: list[tuple[dict[str, Any], str]] = [({"text": text}, text) for text in self.documents]
            told = told if self.worded else [({}, "")] * len(told)
            points = [
                Point(n, vector(text), *about) for n, (text, about) in enumerate(zip(self.documents, told, strict=True))
            ]
            write_snapshot(folder / COLLECTION, points, space=space, dimensions=len(vector("x")))
        library = Library(folder)
        library.refresh()
        watched = Watched(library.get(COLLECTION), self) if space == NEAR else library.get(COLLECTION)
        shelf: Any = type("Shelf", (), {})()
        shelf.get = lambda name: watched if name == COLLECTION else None
        shelf.names = lambda: [COLLECTION]
        shelf.write = library.write
        return shelf

    def _route(self, name: str, dialect: str, rules: Spaces) -> Route:
        tiers: list[Tier] = [UpstreamTier(name="primary", url="http://a", space=FAR), self._local(name)]
        return Route(name=name, match=Match(prefix="/"), dialect=dialect, tiers=tiers, space=FAR, spaces=rules)

    def _local(self, name: str) -> LocalTier:
        called = self.way.called
        return LocalTier(collections={called: COLLECTION} if name == "retrieval" and called != COLLECTION else {})

    def _assembled(self, route: Route) -> RouteParts:
        return assemble(route, DIALECTS[route.dialect], self.world, self._tier, space=FAR, plan=self.plans[route.name])

    def _tier(self, route: Route, tier: Tier, _name: str) -> Service:
        if not isinstance(tier, LocalTier):
            return self._embedder if route is self.embeddings else self._database
        plan = self.plans[route.name]
        handing = Handing(route.name, route.spaces, FAR, self.provenance, hands_out=plan.hands_out)
        return local_tier(
            tier,
            space=FAR,
            dialect=DIALECTS[route.dialect],
            knowing=self._knowing,
            handing=handing if route is self.embeddings else None,
            origins=Origins(FAR, self.provenance, None, route.spaces.tenant_headers),
        )

    # --- the primaries ---------------------------------------------------------------------------------------------

    async def _embedder(self, call: Call) -> Answer:
        if not self.embedder_up:
            raise Failed("reset", "the embedder is down", again=False)
        asked = json.loads(call.request.body)
        given = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        if not all(isinstance(text, str) for text in given):
            return _json(400, {"error": {"message": "token ids"}})
        data: list[dict[str, Any]] = []
        for n, text in enumerate(given):
            vector = self.far(text)
            self.known_far.add(vector.tobytes())
            packed = asked.get("encoding_format") == "base64"
            data.append(
                {"index": n, "embedding": base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist()}
            )
        return _json(200, {"object": "list", "data": data, "model": asked["model"]})

    async def _database(self, call: Call) -> Answer:
        if not self.database_up:
            raise Failed("reset", "the database is down", again=False)
        self.asked_database += 1
        if first_handle(call.request.body) is not None:
            self.handles_at_primary += 1
        if call.kind == "pass":
            self.written.append(call.request.body)
            if self.says is not None:
                return _json(self.says, {"status": {"error": "as planned"}})
            return _json(200, {"result": {"status": "acknowledged"}, "status": "ok", "time": 0.0})
        asked = json.loads(call.request.body)
        told = [self.way.told(self._found(search)) for search in asked.get("searches", [asked])]
        if "searches" in asked:
            return _json(200, {"result": [each["result"] for each in told], "status": "ok", "time": 0.0})
        return _json(200, told[0])

    def _found(self, search: dict[str, Any]) -> list[tuple[int, float]]:
        vector = np.asarray(self.way.vector(search), np.float32)
        if vector.tobytes() not in self.known_far:
            self.wrong_space += 1
        best = np.argsort(-(self._matrix @ vector))[: search.get("limit", 10)]
        return [(int(n), float(self._matrix[n] @ vector)) for n in best]

    def check_near(self, vector: Any) -> None:
        given = np.asarray(vector, np.float32)
        if given.tobytes() in self.known_near:
            return
        # one that was scaled is the same one
        known = np.frombuffer(b"".join(self.known_near), np.float32).reshape(-1, NEAR_DIMENSIONS)
        if len(given) != NEAR_DIMENSIONS or float((known @ given).max()) < 0.9999 * float(np.linalg.norm(given)):
            self.wrong_space += 1

    # --- the application -------------------------------------------------------------------------------------------

    async def ask(self, parts: RouteParts, method: str, path: str, body: object, headers: Any = None) -> Answer:
        """What the application is answered; errors as the door would put them."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        call = parts.dialect.read(Request(method.encode(), path.encode(), headers or [], content))
        call.route, call.dialect, call.born = parts.name, parts.dialect.name, self.world.clock()
        try:
            return await parts.service(call)
        except BadRequest as bad:
            return parts.dialect.error(bad.status, "bad_request", bad.detail)
        except Refused as refused:
            answer = parts.dialect.error(503, refused.reason, refused.detail)
            answer.source = f"refused {refused.reason}"
            return answer
        except Failed as failed:
            answer = parts.dialect.error(502, failed.reason, failed.detail)
            answer.source = f"failed {failed.reason}"
            return answer

    async def embed(self, *given: Any, **more: Any) -> Answer:
        """The answer to a request for embeddings; what is embedded is known to be so from then on."""
        self.known_near |= {near(text).tobytes() for text in given if isinstance(text, str)}
        body = {"model": "m", "input": list(given)} | more
        return await self.ask(self.embed_parts, "POST", "/v1/embeddings", body)

    async def vector(self, text: str) -> list[float]:
        """The vector of a text as the application gets it."""
        answer = await self.embed(text)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)["data"][0]["embedding"]

    async def search(self, vector: Sequence[float], limit: int = 10, **more: Any) -> Answer:
        return await self.ask(self.retrieve_parts, "POST", self.way.path, self.way.asked(vector, limit) | more)

    async def upsert(self, vector: Sequence[float], id: int = 1) -> Answer:
        body = {"points": [{"id": id, "vector": list(vector), "payload": {"text": "x"}}]}
        return await self.ask(self.retrieve_parts, "PUT", f"/collections/{COLLECTION}/points", body)

    async def close(self) -> None:
        await self._knowing.close()


def ids_of(answer: Answer) -> list[int]:
    """The ids that a search found."""
    return [point["id"] for point in json.loads(answer.body)["result"]["points"]]


def _json(status: int, body: object) -> Answer:
    answer = Answer(status, [(b"content-type", b"application/json")], json.dumps(body).encode())
    answer.source = "primary"
    return answer


def _local() -> Any:
    from understudy.proxy.settings.settings import Local

    return Local(model=NEAR, knowledge=False)
