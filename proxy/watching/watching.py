"""Watch a primary that goes on answering: is what it answers still right?

    a search, sampled --> answered --> the caller        ...later: the local tier asked the same, and the two compared
                                                             |
    every `goldens_s`: fixed texts embedded again, or searches made again as callers made them
                                                             |
                                                        Verdict: healthy, degraded, unhealthy, and why

A golden is asked as the application itself asks: of a sampled call the request is kept, in memory only, and its texts
replaced by ours, or itself sent again. So there is nothing to configure, and nothing that a dialect would have to say.
What the texts' vectors were is kept on disk: a model that changed while we were away is noticed too.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from understudy.policies.chain import Link, rank_of
from understudy.policies.compare import Pair as Answers
from understudy.policies.compare import Results
from understudy.policies.drift import Kind, Pair, Ranking, Stand, Watched, embedding_fault, paired, searches_faults
from understudy.policies.observe import Histogram
from understudy.policies.service import Answer, Call, Failed, Refused, Request, Service
from understudy.policies.shadow import SHADOW_HEADER, Mirror, Shadowing, shadow
from understudy.policies.verdict import Verdict
from understudy.proxy.asks import RetrieveAsk
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import BadRequest, Dialect
from understudy.proxy.durable import replace_file
from understudy.proxy.settings.settings import LocalTier, Route, Tier, UpstreamTier
from understudy.proxy.settings.watch import Watch
from understudy.proxy.watching.doubting import Doubting
from understudy.proxy.watching.reading_answers import results_of

log = logging.getLogger("understudy.watch")

GOLDENS_MAX = 20
MODELS_MAX = 4
"""Models, with their dimensions, that one route's texts are embedded by, and goldens kept of."""
AGAIN_S = 5.0
"""What was found wrong is looked at again so soon: two of three make a verdict."""
ASK_S = 10.0
TICK_S = 1.0
SHARES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TEXT_FIELDS = ("input", "inputs", "texts", "prompt")
GOLDEN_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "Invoice 4411 was paid on 3 March 2021 by bank transfer.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "def add(a, b): return a + b",
    "La biblioteca abre a las nueve de la mañana.",
    "Not safe for use during pregnancy.",
    "Warranty",
)


class Rules(NamedTuple):
    """What the sampling goes by, as a shadow's does; nobody waits for it, so it may be narrow."""

    share: float
    concurrent: int = 1
    queue: int = 32
    queue_bytes_max: int = 8 * 1024 * 1024
    deadline_s: float = ASK_S
    generate_tokens_per_hour_max: int = 0


class Copies(Protocol):
    """What is asked of the local collections."""

    def stand(self, called: str) -> Stand:
        """How the copy of a collection stands, by its caller's name."""
        ...

    def has(self, called: str, point: str) -> bool:
        """Whether the copy has a point at all."""
        ...


class Taken(Protocol):
    """What is taken from outside (`understudy.proxy.stack.World` has it). What was learnt is kept below `state`."""

    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def shelf(self) -> Callable[[], Any] | None: ...
    @property
    def state(self) -> Path | None: ...
    @property
    def behind(self) -> Callable[[str], bool] | None: ...


class Watching:
    """One route's. `primary` asks the first upstream apart from live traffic, `local` the local tier."""

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        rules: Watch,
        primary: Service,
        local: Service | None,
        copies: Copies | None,
        *,
        clock: Callable[[], float],
        store: Path | None = None,
    ) -> None:
        self.name = name
        self.tier, self.rank = "", rank_of(0)
        self.rules = rules
        self.heart = Watched()
        self.verdict = Verdict(clock())
        self.mirror = Mirror(Rules(rules.share), clock())
        self.checks: dict[tuple[str, str], int] = {}
        self.silent: dict[str, int] = {}
        self.measures = {measure: Histogram(SHARES) for measure in ("overlap", "rbo")}
        self.searches: dict[bytes, Request] = {}
        self.embeddings: dict[str, Request] = {}
        self.vectors: dict[str, list[list[float]]] = {}
        self._dialect = dialect
        self._primary = primary
        self._local = local
        self._copies = copies
        self._clock = clock
        self._store = store
        self._due_at = clock() + rules.goldens_s
        self._restored = False
        self._is_embedding = KINDS.get(dialect.name) == "embed"
        self._shadowing = Shadowing(self.mirror, self.other, self.compared, clock)
        self.doubting: Doubting | None = None
        """Who doubts searches that found nothing, where there is somebody to ask."""

    def around(self, service: Service, dice: Callable[[], float]) -> Service:
        """`service`, with a sampled share of its answers looked at."""
        service = shadow(service, self._shadowing, clock=self._clock, dice=dice)
        return service if self.doubting is None else self.doubting.around(service)

    @property
    def component(self) -> str:
        """What is watched: `embedding` or `retrieval`."""
        return "embedding" if self._is_embedding else "retrieval"

    def close(self) -> None:
        """Let go of what is being compared."""
        self._shadowing.close()
        if self.doubting is not None:
            self.doubting.close()

    def carry(self, old: Watching) -> None:
        """Go on with what `old` has learnt and counted."""
        self.heart, self.verdict, self.checks, self.silent = old.heart, old.verdict, old.checks, old.silent
        self.measures, self.searches, self.embeddings = old.measures, old.searches, old.embeddings
        self.vectors, self._restored, self._due_at = old.vectors, old._restored, old._due_at
        self.mirror.carry(old.mirror)

    # --- live answers ------------------------------------------------------------------------------------------------

    async def other(self, call: Call) -> Answer:
        """What a sampled call is compared with: the local tier's answer. Of embeddings the request alone is of use."""
        if self._local is None:
            raise Refused("unwatched", "embeddings are not compared with a local model's")
        return await self._local(call)

    def compared(self, answers: Answers) -> None:
        """A sampled call was answered, and asked of the local tier as well."""
        if answers.live.status != 200 or answers.live.stream is not None:
            return
        if answers.live.tier not in ("", self.rank):
            # another tier has answered, which says nothing of this one
            return
        call = answers.call
        if call.kind == "embed":
            self._learn_embedding(call.request)
            return
        try:
            ask = self._dialect.ask(call)
        except (BadRequest, Refused):
            return
        if not isinstance(ask, RetrieveAsk) or ask.op not in ("search", "batch"):
            return
        self._learn_search(call.request)
        if answers.shadow is None or answers.shadow.status != 200:
            self._count("pairs", "unanswered")
            return
        due = False
        for pair in self._pairs(call, ask.collection, answers.live, answers.shadow):
            self.measures["overlap"].add(pair.overlap)
            self.measures["rbo"].add(pair.rbo)
            due = self.heart.add(pair, self.stand(ask.collection), call.born)
        if due:
            self._judge("pairs", self.heart.take()[0])

    def _pairs(self, call: Call, collection: str, live: Answer, mirrored: Answer) -> list[Pair]:
        try:
            one, other = results_of(call, live), results_of(call, mirrored)
        except ValueError:
            self._count("pairs", "unreadable")
            return []
        copies = self._copies
        knows: Callable[[str], bool] = lambda point: copies is None or copies.has(collection, point)  # noqa: E731
        return [
            paired(first, second, knows, k=max(len(first.ids), len(second.ids)))
            for first, second in zip(_rankings(one), _rankings(other), strict=False)
        ]

    def doubted(self, result: str, faults: Sequence[Kind] = ()) -> None:
        """What came of a doubt: one that was groundless says nothing of what else may be wrong."""
        if faults:
            self._judge("doubts", faults)
        else:
            self._count("doubts", result)

    def stand(self, collection: str) -> Stand:
        """How the copy of a collection stands."""
        return Stand() if self._copies is None else self._copies.stand(collection)

    # --- goldens -----------------------------------------------------------------------------------------------------

    def _learn_search(self, request: Request) -> None:
        key = blake2b(request.target + b"\0" + request.body, digest_size=8).digest()
        self.searches.pop(key, None)
        self.searches[key] = _kept(request, request.body)
        while len(self.searches) > GOLDENS_MAX:
            # the oldest: what callers ask now is what has to be found
            del self.searches[next(iter(self.searches))]

    def _learn_embedding(self, request: Request) -> None:
        golden = golden_request(request)
        if golden is None:
            return
        key, asked = golden
        if key in self.embeddings or len(self.embeddings) < MODELS_MAX:
            # the latest: credentials change
            self.embeddings[key] = asked

    async def look(self, *, now: bool = False) -> None:
        """Ask goldens, if it is time to, or at once."""
        if not now and (not self.rules.goldens_s or self._clock() < self._due_at):
            return
        wrong = await self._look_at_embeddings() if self.embeddings else await self._look_at_searches()
        self._due_at = self._clock() + (min(AGAIN_S, self.rules.goldens_s) if wrong else self.rules.goldens_s)

    async def _look_at_embeddings(self) -> bool:
        await asyncio.get_running_loop().run_in_executor(None, self._restore)
        faults: list[str] = []
        for key, request in list(self.embeddings.items()):
            told = await self._asked("embed", request, self._primary)
            if told is None:
                self._count("embeddings", "unanswered")
                continue
            got = [list(vector) for vector in told.vectors]
            stored = self.vectors.get(key)
            if stored is None:
                self.vectors[key] = got
                self._count("embeddings", "learnt")
                await asyncio.get_running_loop().run_in_executor(None, self._keep)
                continue
            fault = embedding_fault(got, stored)
            self._judge("embeddings", (fault,) if fault else ())
            faults += [fault] if fault else []
        return bool(faults)

    async def _look_at_searches(self) -> bool:
        if self._local is None or not self.searches:
            return False
        pairs: list[Pair] = []
        for request in list(self.searches.values()):
            call, collection = self._dialect.read(request), self._dialect.collection_of(request)
            # seen first, so that a change is noticed that comes between the two answers
            self.stand(collection)
            began = self._clock()
            live = await self._answered("retrieve", request, self._primary)
            mirrored = await self._answered("retrieve", request, self._local)
            if live is None or mirrored is None or live.status != 200 or mirrored.status != 200:
                self._count("goldens", "unanswered")
                continue
            stand = self.stand(collection)
            if stand.is_behind or stand.changed_at >= began:
                self._count("goldens", "moving")
                continue
            pairs += self._pairs(call, collection, live, mirrored)
        if not pairs:
            return False
        faults = searches_faults(pairs)
        self._judge("goldens", faults)
        return bool(faults)

    async def _asked(self, kind: Any, request: Request, service: Service) -> Results | None:
        answer = await self._answered(kind, request, service)
        if answer is None or answer.status != 200:
            return None
        try:
            return results_of(self._dialect.read(request), answer, vectors_max=len(GOLDEN_TEXTS))
        except (ValueError, BadRequest):
            return None

    async def _answered(self, kind: Any, request: Request, service: Service) -> Answer | None:
        call = Call(kind, request, dialect=self._dialect.name, route=self.name, born=self._clock(), id="watch")
        call.deadline = call.until = self._clock() + ASK_S
        try:
            async with asyncio.timeout(ASK_S + 1.0):
                answer = await service(call)
        except (Refused, Failed, TimeoutError):
            return None
        if answer.stream is not None:
            answer.stream.close()
            return None
        return answer

    # --- what came of it ---------------------------------------------------------------------------------------------

    def _judge(self, check: str, faults: Sequence[str]) -> None:
        self._count(check, "wrong" if faults else "well")
        for fault in faults:
            self.silent[fault] = self.silent.get(fault, 0) + 1
        before = self.verdict.word
        word = self.verdict.checked(self._clock(), tuple(faults))
        if word != before and (before, word) != ("unknown", "healthy"):
            tell = log.info if word == "healthy" else log.warning
            tell("route %s: what its primary answers is %s%s", self.name, word, _because(self.verdict.reasons))

    def _count(self, check: str, result: str) -> None:
        self.checks[check, result] = self.checks.get((check, result), 0) + 1

    def _restore(self) -> None:
        """Take over what vectors the texts had before a restart."""
        if self._restored or self._store is None:
            return
        self._restored = True
        try:
            kept: Any = json.loads(self._store.read_text("utf-8"))
            found = {str(key): [[float(x) for x in vector] for vector in rows] for key, rows in kept.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("route %s: goldens are learnt anew: %s", self.name, error)
            return
        self.vectors = {**found, **self.vectors}

    def _keep(self) -> None:
        if self._store is None:
            return
        try:
            replace_file(self._store, json.dumps(self.vectors).encode())
        except OSError as error:
            log.warning("route %s: goldens can't be kept: %s", self.name, error)


def _because(reasons: Sequence[str]) -> str:
    return f": {', '.join(reasons)}" if reasons else ""


def _rankings(told: Results) -> list[Ranking]:
    scores: Sequence[Sequence[float]] = told.scores or [()] * len(told.rankings)
    return [Ranking(ids, each) for ids, each in zip(told.rankings, scores, strict=True)]


def _kept(request: Request, body: bytes) -> Request:
    """A request to be sent again by ourselves, marked as no caller's."""
    skipped = (b"content-length", b"x-request-id", b"x-understudy-deadline")
    headers = [header for header in request.headers if header[0].lower() not in skipped]
    again = Request(request.method, request.target, [*headers, SHADOW_HEADER], body)
    again.path, again.hop = request.path, request.hop
    return again


def golden_request(request: Request) -> tuple[str, Request] | None:
    """The same request for our own texts, and a key of everything else that decides what vectors come back: path,
    model, dimensions. None where it can't be told where its texts stand."""
    if request.header(b"content-encoding"):
        return None
    try:
        body: Any = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    fields = cast("dict[str, Any]", body)
    field = next((name for name in TEXT_FIELDS if name in fields), None)
    if field is None:
        return None
    texts: Any = GOLDEN_TEXTS[0] if field == "prompt" else list(GOLDEN_TEXTS)
    rest = {name: value for name, value in sorted(fields.items()) if name not in (field, "user")}
    try:
        told = msgspec.json.encode([request.path.decode("latin-1"), rest])
    except (TypeError, ValueError):
        return None
    key = f"{str(rest.get('model') or '')[:80]} {blake2b(told, digest_size=8).hexdigest()}".strip()
    return key, _kept(request, msgspec.json.encode({**fields, field: texts}))


def watch_of(
    route: Route,
    dialect: Dialect,
    links: Sequence[Link],
    apart: Callable[[Tier], Service],
    before: Watching | None,
    world: Taken,
) -> Watching | None:
    """The watch of a route that asks for one, its tiers being `links`; None where none of its upstreams is there.

    `apart` asks a tier without anything live learning from it; `before` is what went before a reload.
    """
    there = {link.name: link.service for link in links if link.service is not None}
    first = next((tier for tier in route.tiers if isinstance(tier, UpstreamTier) and tier.name in there), None)
    if first is None or route.watch is None:
        return None
    ours = next((tier for tier in route.tiers if isinstance(tier, LocalTier)), None)
    clock, shelf = world.clock, world.shelf
    copies = None if ours is None or shelf is None else LocalCopies(shelf, ours.collections, clock, world.behind)
    local = None if ours is None else there.get(ours.name)
    store = None if world.state is None else world.state / "watch" / f"{route.name}.json"
    watching = Watching(route.name, dialect, route.watch, apart(first), local, copies, clock=clock, store=store)
    link = None if ours is None else next((link for link in links if link.name == ours.name), None)
    if link is not None and local is not None and route.watch.doubt != "off" and watching.component == "retrieval":
        watching.doubting = Doubting(dialect, route.watch.doubt, link, watching, clock)
    watching.tier, watching.rank = first.name, rank_of(route.tiers.index(first))
    if before is not None:
        watching.carry(before)
    return watching


async def watch_all(
    watched: Callable[[], Iterable[Watching]],
    sleep: Callable[[float], Any] = asyncio.sleep,
) -> None:
    """Look at goldens as they fall due, until cancelled; one at a time, so that it costs next to nothing."""
    while True:
        await sleep(TICK_S)
        for watching in list(watched()):
            try:
                await watching.look()
            except Exception:
                # a bug here must not end the watch of all other routes
                log.exception("an error of our own in the watch of route %s", watching.name)


class LocalCopies:
    """The local collections as a watch sees them. `called` is what the local tier calls them by callers' names."""

    def __init__(
        self, shelf: Callable[[], Any], renamed: Mapping[str, str], clock: Callable[[], float], behind: Any = None
    ) -> None:
        self._shelf = shelf
        self._renamed = renamed
        self._clock = clock
        self._behind: Callable[[str], bool] | None = behind
        self._seen: dict[str, tuple[object, float]] = {}

    def stand(self, called: str) -> Stand:
        name = self._renamed.get(called, called)
        collection = self._get(name)
        if collection is None:
            return Stand(is_behind=True)
        epoch: object = getattr(collection, "epoch", None) or getattr(collection, "generation", None)
        before = self._seen.get(name)
        if before is None or before[0] != epoch:
            # not known since when: as if it had been written just now
            self._seen[name] = before = epoch, self._clock()
        return Stand(before[1], self._behind is not None and self._behind(name))

    def has(self, called: str, point: str) -> bool:
        collection = self._get(self._renamed.get(called, called))
        if collection is None:
            return True
        ids: list[int | str] = [point, int(point)] if point.isdecimal() else [point]
        return bool(collection.get(ids))

    def _get(self, name: str) -> Any:
        try:
            return self._shelf().get(name)
        except Exception:
            # not opened yet, or damaged: the local tier says why to whoever asks it
            return None
