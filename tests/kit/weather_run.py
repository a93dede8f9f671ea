"""A season of weather over whole routes as the sidecar puts them together, and what must hold whatever the weather.

    python -m tests.kit.weather_run [--calls 25000] [--seeds 1 2 3 4 5 6 7 8]

    callers --> hit | dialect.read --> observe > ... > chain > ... > balance > [breaker > quota > limit > Spot]
       |                                  ^
       +- hang up, ask at once, write     +- put together anew twice, with other rules; breakers forced by hand

Three routes (embeddings, retrieval, chat) with every policy that is not an operator's own doing, on a virtual clock;
each endpoint has weather of its own. A seed that is found wanting is a reproducer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tests.kit import virtual_clock
from tests.kit.endpoints import Base, Spot, local, number_of
from tests.kit.weather import SKIES, Weather
from understudy.policies.budget import Budget
from understudy.policies.service import Answer, Failed, Refused, Request, Service
from understudy.proxy.caching.caches import Caches
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.http.stepping import Stepped, Steps
from understudy.proxy.settings import settings
from understudy.proxy.settings.balance import Ejection
from understudy.proxy.settings.settings import (
    Arm,
    Endpoint,
    LocalTier,
    Match,
    PlannedFault,
    Rate,
    Route,
    Tier,
    UpstreamTier,
)
from understudy.proxy.stack import EndpointParts, RouteParts, World, assemble

RATE = 100.0
"""Calls a second, all routes together."""
TOTAL_S = 5.0
WINDOW_S = 30.0
TENANTS = tuple(f"Bearer {name}" for name in "abcde")
EPSILON_S = 1e-6
TIDY_S = 90.0
CALM_S = 120.0

EMBED, RETRIEVE, CHAT = "embed", "retrieve", "chat"
DIALECT = {EMBED: "openai-embeddings", RETRIEVE: "qdrant", CHAT: "openai-chat"}
TARGET = {
    EMBED: b"/v1/embeddings",
    RETRIEVE: b"/collections/knowledge/points/query",
    CHAT: b"/v1/chat/completions",
}


def tier_of(name: str, *endpoints: str, **more: Any) -> UpstreamTier:
    if not endpoints:
        return UpstreamTier(name=name, url=f"http://{name}", first_byte_s=2.0, **more)
    made = [
        Endpoint(name=each, url=f"http://{each}", weight=1 + at, zone="xy"[at % 2]) for at, each in enumerate(endpoints)
    ]
    return UpstreamTier(name=name, endpoints=made, first_byte_s=2.0, **more)


def route_of(name: str, time_it_is: int) -> Route:
    """The route as it is at first (0), and after each reload."""
    turned = time_it_is % 2
    fields: dict[str, Any] = {
        "name": name,
        "match": Match(prefix="/"),
        "dialect": DIALECT[name],
        "deadline": settings.Deadline(total_s=TOTAL_S, reserve_s=0.5),
        # without breakers for a while: then it is the budget that has to hold
        "breaker": settings.Breaker(
            enabled=name != EMBED or not turned, open_s=2.0, open_s_max=20.0, slow_s=1.5, probing_s_max=8.0
        ),
        "balance": settings.Balance(ejection=Ejection(pause_s=3.0, pause_s_max=20.0, share_max=0.5)),
        "retry": settings.Retry(attempts=2 + 2 * turned),
        "hedge": settings.Hedge(samples_min=32),
        "limit": settings.Limit(concurrent_max=64 - 24 * turned),
        "ramp": settings.Ramp(over_s=10.0),
        "cache": settings.Cache(enabled=True, ttl_s=3.0, revalidate_s=2.0, stale_s_max=30.0, answers="always"),
    }
    tiers: dict[str, list[Tier]] = {
        # a reload takes an endpoint away and brings it back
        EMBED: [tier_of("many", *("abc" if not turned else "ab")), tier_of("spare"), LocalTier()],
        RETRIEVE: [tier_of("base", "r0", "r1", "r2"), LocalTier()],
        CHAT: [tier_of("llm", "g0", "g1", faults=[PlannedFault(do="error", share=0.005)]), tier_of("own"), LocalTier()],
    }
    if name == EMBED:
        fields["arms"] = {"mirror": Arm(tiers=[tier_of("mirrored")])}
        fields["shadow"] = settings.Shadow(arm="mirror", share=0.05)
    elif name == RETRIEVE:
        fields["likeness"] = settings.Likeness(mode="serve", cosine_min=0.95, ttl_s=10.0)
    else:
        fields["arms"] = {"next": Arm(tiers=[tier_of("new")])}
        fields["split"] = settings.Split(arm="next", share=0.2, keys=["header:x-user-id"])
        fields["tokens"] = settings.Tokens(caller=Rate(calls_per_s=15.0, burst=30))
    return Route(**fields, tiers=tiers[name])


async def embedded(texts: list[str], _until: float) -> np.ndarray:
    """A model of two numbers, for likeness."""
    rows = np.array([[1.0, number_of("", text) % 7] for text in texts], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Heard:
    """A caller's end of a stream."""

    def __init__(self) -> None:
        self.data = b""
        self.ending = ""

    def write(self, chunk: bytes) -> None:
        self.data += chunk

    def end(self) -> None:
        self.ending = "end"

    def cut(self, reason: str) -> None:
        self.ending = reason


@dataclass
class Asked:
    """One call as its caller meant it."""

    route: str
    tenant: str
    texts: list[str]
    request: Request
    born: float
    patience_s: float
    version: int
    id: str = ""
    is_write: bool = False
    is_stream: bool = False

    @property
    def until(self) -> float:
        return self.born + min(TOTAL_S, self.patience_s * 0.9)


@dataclass
class Report:
    """What became of a season. `wrong` is empty, or the season is a bug's reproducer."""

    seed: int
    calls: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    left: int = 0
    unsafe: int = 0
    streams: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    retries: int = 0
    hedges: int = 0
    hedges_won: int = 0
    opened: int = 0
    ejected: int = 0
    coalesced: int = 0
    took_over: int = 0
    mirrored: int = 0
    alike: int = 0
    faults: int = 0
    amplification: float = 0.0
    latest_s: float = -1e9
    virtual_s: float = 0.0
    wall_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        tiers = ", ".join(f"{count} {tier}" for tier, count in sorted(self.answered.items()))
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.streams.items()))
        return [
            f"seed {self.seed}: {self.calls} calls in {self.virtual_s:.0f} s, which took {self.wall_s:.1f} s",
            f"  answered by: {tiers}; hung up {self.left}, failed writes {self.unsafe}; streams: {ends}",
            f"  attempts {self.attempts}, retries {self.retries}, hedges {self.hedges} (won {self.hedges_won}), "
            f"worst amplification above the floor in {WINDOW_S:.0f} s: {self.amplification:.3f}",
            f"  breakers opened {self.opened}, ejections {self.ejected}, coalesced {self.coalesced} "
            f"(taken over {self.took_over}), mirrored {self.mirrored}, alike {self.alike}, faults {self.faults}",
            f"  the latest answer came {-self.latest_s * 1000:.1f} ms before its deadline; "
            + (f"WRONG: {len(self.wrong)}: {self.wrong[:5]}" if self.wrong else "nothing wrong"),
        ]


class Season:
    """One run. Asks `count` calls, then has all end, then has the sun come out."""

    def __init__(self, seed: int, count: int) -> None:
        self.report = Report(seed)
        self.count = count
        self.loop = asyncio.get_running_loop()
        self.dice = random.Random(f"{seed}/callers")
        self.base = Base()
        self.acknowledged = 0
        self.spots: dict[tuple[str, str, str], Spot] = {}
        self.steps = Steps(self.loop)
        self.caches = Caches(clock=self.loop.time, wall=lambda: 1.8e9 + self.loop.time(), dice=self.dice.random)
        self.world = World(
            clock=self.loop.time,
            sleep=asyncio.sleep,
            dice=random.Random(f"{seed}/policies").random,
            wall=lambda: 1.8e9 + self.loop.time(),
            embed=embedded,
        )
        self.routes: dict[str, RouteParts] = {}
        self.known: dict[int, tuple[str, EndpointParts]] = {}
        self.ids = itertools.count(1)
        self.batches: set[str] = set()
        self.running: set[asyncio.Task[None]] = set()
        self.seen: dict[str, tuple[int, int]] = {}

    def wrong(self, what: str) -> None:
        self.report.wrong.append(f"at {self.loop.time():.2f}: {what}")

    # --- putting together ------------------------------------------------------------------------------------------

    def load(self, time_it_is: int) -> None:
        """The first reload, or another one."""
        for name in DIALECT:
            before = self.routes.get(name)
            route = route_of(name, time_it_is)
            parts = assemble(
                route,
                DIALECTS[DIALECT[name]],
                self.world,
                self._made,
                before=before,
                faults=True,
                caches=self.caches,
                space="m" if name != CHAT else "",
                zone="x",
            )
            self.routes[name] = parts
            for tier, each in parts.tiers.items():
                for endpoint, own in each.endpoints.items():
                    self.known[id(own)] = (f"{name}/{tier}/{endpoint}", own)
                    spot = self.spots.get((name, tier, endpoint))
                    if spot is not None:
                        spot.known_as(own)

    def _made(self, route: Route, tier: Tier, endpoint: str) -> Service:
        if isinstance(tier, LocalTier):
            return local(random.Random(f"{self.report.seed}/{route.name}/local"))
        key = (route.name, tier.name, endpoint)
        if key not in self.spots:
            weather = Weather("/".join((str(self.report.seed), *key)), began=self.loop.time(), kinds=SKIES)
            quota_each = 97 if endpoint == "g0" else 0
            dialect = DIALECTS[route.dialect]
            self.spots[key] = Spot(tier, endpoint, dialect, weather, self.base, quota_each=quota_each)
        return self.spots[key]

    # --- callers ---------------------------------------------------------------------------------------------------

    def ask(self) -> Asked:
        """What the next caller wants: some of it has been asked before, by this tenant or another."""
        dice = self.dice
        route = dice.choice((EMBED, RETRIEVE, CHAT))
        tenant = TENANTS[min(int(dice.expovariate(0.7)), len(TENANTS) - 1)]
        count = dice.randrange(2, 5) if route == EMBED and dice.random() < 0.2 else 1
        # few searches are asked again and again, so that they meet writes and each other
        rarity = 0.3 if route == RETRIEVE else 0.02
        texts = [f"question {int(dice.expovariate(rarity))}" for _ in range(count)]
        is_stream = route == CHAT and dice.random() < 0.4
        is_write = route == RETRIEVE and dice.random() < 0.03
        method, target = b"POST", TARGET[route]
        body: dict[str, Any]
        if is_write:
            method, way = dice.choice(((b"PUT", b""), (b"POST", b"/delete")))
            target, body = b"/collections/knowledge/points" + way, {"points": []}
        elif route == EMBED:
            body = {"model": "m", "input": texts if count > 1 else texts[0]}
        elif route == RETRIEVE:
            vector = [round(random.Random(f"{texts[0]}/{at}").uniform(-1, 1), 6) for at in range(4)]
            texts, body = [str(vector)], {"query": vector, "limit": 5}
        else:
            body = {"model": "m", "messages": [{"role": "user", "content": texts[0]}], "temperature": 0}
            body |= {"stream": True} if is_stream else {}
        headers = [(b"content-type", b"application/json"), (b"authorization", tenant.encode())]
        headers.append((b"x-user-id", b"%d" % dice.randrange(50)))
        patience_s = float("inf")
        if dice.random() < 0.3:
            patience_s = dice.choice((1.0, 2.0, 4.0))
            headers.append((b"x-stainless-read-timeout", b"%g" % patience_s))
        if dice.random() < 0.05:
            headers.append((b"x-stainless-retry-count", b"1"))
        request = Request(method, target, headers, json.dumps(body).encode(), {})
        asked = Asked(route, tenant, texts, request, self.loop.time(), patience_s, self.acknowledged)
        asked.is_write, asked.is_stream = is_write, is_stream
        return asked

    async def one(self, asked: Asked) -> None:
        """One caller. Raises nothing but CancelledError, as what is stepped by hand must."""
        parts = self.routes[asked.route]
        try:
            answer = parts.hit(asked.request) if parts.hit is not None else None
            if answer is None:
                call = DIALECTS[DIALECT[asked.route]].read(asked.request)
                call.dialect, call.route, call.id = DIALECT[asked.route], asked.route, f"call-{next(self.ids)}"
                call.born, call.wants_stream = asked.born, asked.is_stream
                asked.id = call.id
                if len(asked.texts) > 1:
                    self.batches.add(call.id)
                answer = await parts.service(call)
            self._answered(asked, answer)
        except (Failed, Refused) as error:
            if asked.is_write:
                self.report.unsafe += 1
            else:
                self.wrong(f"nobody answered {asked.route}: {error}")
        except asyncio.CancelledError:
            self.report.left += 1
            raise
        except Exception as error:
            self.wrong(f"{type(error).__name__}: {error}")
        finally:
            self._in_time(asked)
            if asked.id:
                # who was called off is told so in a turn of its own
                self.loop.call_later(EPSILON_S, self._called_off, asked)

    def _called_off(self, asked: Asked) -> None:
        for (*where, _), spot in self.spots.items():
            if asked.id in spot.ids_inside and where != [EMBED, "mirrored"]:
                self.wrong(f"{asked.id} is over, and {spot.name} is still asked for it")

    def _in_time(self, asked: Asked) -> None:
        late_s = self.loop.time() - asked.until
        self.report.latest_s = max(self.report.latest_s, late_s)
        if late_s > EPSILON_S:
            self.wrong(f"{asked.route} was {late_s:.4f} s late")

    def _answered(self, asked: Asked, answer: Answer) -> None:
        self.report.answered[answer.tier or "ourselves"] += 1
        if answer.source == "semantic-cache":
            self.report.alike += 1
        if answer.status >= 500 or (answer.status == 429 and answer.tier):
            if not asked.is_write:
                self.wrong(f"{asked.route} was told {answer.status} by {answer.source}")
        elif asked.is_write:
            if answer.status == 200 and answer.tier == "primary":
                self.acknowledged = self.base.version
        elif answer.stream is not None:
            self._listen(asked, answer)
        elif answer.status == 200:
            self._check(asked, answer.body, answer.source)

    def _listen(self, asked: Asked, answer: Answer) -> None:
        stream, heard = answer.stream, Heard()
        assert stream is not None
        stream.watch(lambda end: self._stream_ended(asked, answer, heard, end))
        if self.dice.random() < 0.05:
            self.loop.call_later(self.dice.random() * 0.3, stream.close)
        stream.relay(heard)

    def _stream_ended(self, asked: Asked, answer: Answer, heard: Heard, end: str) -> None:
        self.report.streams[end] += 1
        if end == "done" and answer.source != "local":
            events = [line[6:] for line in heard.data.split(b"\n\n") if line.startswith(b"data: {")]
            said = "".join(json.loads(each)["choices"][0]["delta"].get("content", "") for each in events)
            if said != f"{asked.tenant}|{asked.texts[0]}":
                self.wrong(f"{asked.tenant} asked {asked.texts[0]} and was streamed {said!r}")

    def _check(self, asked: Asked, body: bytes, source: str) -> None:
        """That the answer is this caller's, to this question, and no older than the last write it can know of."""
        value = json.loads(body)
        if asked.route == EMBED:
            told: Any = [item["embedding"][0] for item in value["data"]]
            wanted: Any = [number_of(asked.tenant, text) for text in asked.texts]
        elif asked.route == CHAT:
            told, wanted = value["choices"][0]["message"]["content"], f"{asked.tenant}|{asked.texts[0]}"
        else:
            payload = value["result"]["points"][0]["payload"]
            told, wanted = (payload["tenant"], payload["text"]), (asked.tenant, asked.texts[0])
            if source == "semantic-cache":
                # a neighbour's list: of this tenant all the same
                told, wanted = told[:1], wanted[:1]
            if payload["version"] is not None and payload["version"] < asked.version:
                self.wrong(f"a read after write {asked.version} saw {payload['version']} ({source})")
        if told != wanted:
            self.wrong(f"{wanted} was told {told} by {source}")

    # --- the season ------------------------------------------------------------------------------------------------

    async def run(self) -> Report:
        wall, began = time.perf_counter(), self.loop.time()
        self.load(0)
        ticking = asyncio.ensure_future(self._tick())
        third = self.count // 3
        for number in range(self.count):
            await asyncio.sleep(self.dice.expovariate(RATE))
            if number in (third, 2 * third):
                self.load(number // third)
            self._by_hand(number)
            asked = self.ask()
            # now and then several ask the same at once
            for _ in range(1 if self.dice.random() < 0.95 else self.dice.randrange(2, 6)):
                self._begin(replace(asked))
        await asyncio.sleep(TIDY_S)
        self._nothing_left()
        await self._sunshine()
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        self._nothing_left()
        await self.caches.close()
        self._sum()
        self.report.virtual_s, self.report.wall_s = self.loop.time() - began, time.perf_counter() - wall
        return self.report

    def _begin(self, asked: Asked) -> None:
        """One more caller: half of them are stepped by hand, as the door does it; a few hang up."""
        self.report.calls += 1
        leaves = self.dice.random() < 0.03
        if self.dice.random() < 0.5:
            stepped = Stepped()
            stepped.start(self.one(asked), self.steps)
            if leaves:
                self.loop.call_later(self.dice.random() * 0.5, lambda: stepped.is_under_way and stepped.cancel())
            return
        task = asyncio.ensure_future(self.one(asked))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        if leaves:
            self.loop.call_later(self.dice.random() * 0.5, task.cancel)

    def _by_hand(self, number: int) -> None:
        """An operator forces a breaker now and then."""
        if number % 3000 == 1500:
            heart = self.dice.choice([own.breaker for _, own in self.known.values() if own.breaker])
            heart.force("forced-open", self.loop.time())
            self.loop.call_later(7.0, lambda: heart.force("auto", self.loop.time()))

    async def _tick(self) -> None:
        for number in itertools.count(1):
            await asyncio.sleep(0.05)
            for spot in self.spots.values():
                spot.note()
            if number % 5 == 0:
                self._bounds()
            if number % int(WINDOW_S / 0.05) == 0:
                self._amplified()

    def _bounds(self) -> None:
        """What holds at every moment."""
        now = self.loop.time()
        for name, own in self.known.values():
            bulkhead = own.bulkhead
            if bulkhead.in_flight < 0 or len(bulkhead.waiting) > bulkhead.rules.queue:
                self.wrong(f"{name}: {bulkhead.in_flight} in flight, {len(bulkhead.waiting)} waiting")
        for (*_, name), spot in self.spots.items():
            if spot.permits_lost:
                self.wrong(f"{name}: {spot.permits_lost} permits are lost, or too many")
        for name, parts in self.routes.items():
            for tier, each in parts.tiers.items():
                if each.balance is None:
                    continue
                peers = each.balance.peers
                out = sum(peer.ejected_until > now for peer in peers)
                if out > len(peers) // 2 or any(peer.outstanding < 0 for peer in peers):
                    self.wrong(f"{name}/{tier}: {out} of {len(peers)} left out")

    def _amplified(self) -> None:
        """Attempts at each tier against the calls that asked it, over a window."""
        for name, parts in self.routes.items():
            for tier, each in parts.tiers.items():
                spots = [spot for key, spot in self.spots.items() if key[:2] == (name, tier)]
                if each.budget is None or each.link is None or not spots:
                    continue
                outcomes = each.link.outcomes
                calls = sum(outcomes.values()) - outcomes.get(("refused", "ramp"), 0)
                extra = each.budget.retries + each.budget.hedges
                calls_before, extra_before = self.seen.get(f"{name}/{tier}", (0, 0))
                self.seen[f"{name}/{tier}"] = (calls, extra)
                if calls - calls_before >= 100:
                    above = extra - extra_before - WINDOW_S * 1.0
                    amplification = 1 + max(0.0, above) / (calls - calls_before)
                    self.report.amplification = max(self.report.amplification, amplification)
                    if amplification > 1.25:
                        self.wrong(f"{name}/{tier}: amplification {amplification:.3f}")

    # --- afterwards ------------------------------------------------------------------------------------------------

    def _nothing_left(self) -> None:
        """Nobody is under way, and nothing is held for anybody."""
        left: dict[str, Any] = {"running": len(self.running), "stepped": self.steps.under_way}
        for name, own in self.known.values():
            left[f"{name} places"] = own.bulkhead.in_flight
            left[f"{name} waiting"] = len(own.bulkhead.waiting)
            left[f"{name} outstanding"] = own.peer.outstanding if own.peer else 0
            heart = own.breaker
            if heart is not None and heart.state == "half-open":
                # each permit is there, or has been spent on an answer
                left[f"{name} permits"] = heart.rules.permits - heart._permits_left - heart._answered
        for (*where, _), spot in self.spots.items():
            left[f"{where} {spot.name} inside"] = spot.inside
            self.report.wrong += spot.broken
            spot.broken = []
        for name, parts in self.routes.items():
            left[f"{name} in flight"] = parts.tally.in_flight
            shadowing = parts.arms.shadowing
            if shadowing is not None:
                left[f"{name} shadows"] = shadowing.heart.in_flight + len(shadowing.heart.queue)
            if parts.cache is not None:
                left[f"{name} flights"] = len(parts.cache.flights.flights)
                left[f"{name} refreshes"] = len(parts.cache._refreshing)
        for what, count in left.items():
            if count:
                self.wrong(f"left over: {count} {what}")

    async def _sunshine(self) -> None:
        """The weather is fine from now on: every breaker closes, and the primaries answer."""
        for spot in self.spots.values():
            spot.weather = None
        until = self.loop.time() + CALM_S
        while self.loop.time() < until:
            await asyncio.sleep(self.dice.expovariate(RATE / 3))
            self.report.calls += 1
            self._begin_calm()
        await asyncio.sleep(TIDY_S)
        for name, parts in self.routes.items():
            arm = [tier.name for tier in parts.route.arms["next"].tiers] if name == CHAT else []
            for tier in (parts.route.tiers[0].name, *arm):
                for endpoint, own in parts.tiers[tier].endpoints.items():
                    # who stands by for others is not asked while they are well, and so not probed either
                    stands_by = own.peer is not None and own.peer.rank > (0, False)
                    if own.breaker is not None and own.breaker.state != "closed" and not stands_by:
                        self.wrong(f"{name}/{tier}/{endpoint} is {own.breaker.state} after {CALM_S:.0f} fine seconds")

    def _begin_calm(self) -> None:
        task = asyncio.ensure_future(self.one(self.ask()))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    def _sum(self) -> None:
        report = self.report
        report.attempts = sum(spot.attempts for spot in self.spots.values())
        for name, parts in self.routes.items():
            for tier, each in parts.tiers.items():
                if each.budget is not None:
                    report.retries += each.budget.retries
                    report.hedges += each.budget.hedges
                    self._accounted(name, tier, each.budget)
                if each.hedge is not None:
                    report.hedges_won += each.hedge.results["won"]
            if parts.cache is not None:
                report.coalesced += parts.cache.flights.shared
                report.took_over += parts.cache.flights.took_over
            if parts.arms.shadowing is not None:
                report.mirrored += sum(parts.arms.shadowing.heart.fates.values())
            report.faults += sum(heart.hits for heart in parts.arms.injections.values())
        for _, own in self.known.values():
            report.opened += own.breaker.transitions["open"] if own.breaker else 0
            report.ejected += sum(own.peer.ejections.values()) if own.peer else 0

    def _accounted(self, name: str, tier: str, budget: Budget) -> None:
        """What really reached the endpoints beyond each call's first attempt is on the budget's account."""
        spots = [spot for key, spot in self.spots.items() if key[:2] == (name, tier)]
        calls = set[str]().union(*(spot.asked for spot in spots))
        extra = sum(spot.attempts for spot in spots) - len(calls)
        # a batch of which a part could not be had is asked for once more as a whole, a call of its own to the tier
        if extra > budget.retries + budget.hedges + len(calls & self.batches):
            self.wrong(f"{name}/{tier}: {extra} extra attempts, {budget.retries} retries and {budget.hedges} hedges")


async def season(seed: int, count: int) -> Report:
    """One season on the running loop."""
    return await Season(seed, count).run()


def main() -> None:
    """Run seasons one after another, and tell of each."""
    parser = argparse.ArgumentParser(description="Seeded weather over whole routes, on a virtual clock.")
    parser.add_argument("--calls", type=int, default=25_000, help="in each season")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(1, 9)))
    options = parser.parse_args()
    reports: list[Report] = []
    for seed in options.seeds:
        reports.append(virtual_clock.run(season(seed, options.calls), io_grace_s=0, real_s_max=3600))
        print("\n".join(reports[-1].lines()), flush=True)
    print(f"{sum(report.calls for report in reports)} calls, {sum(len(report.wrong) for report in reports)} wrong")
    sys.exit(any(report.wrong for report in reports))


if __name__ == "__main__":
    main()
