"""Which routes remember vectors, give handles and are guarded; and what becomes of a call that brings a handle.

    search with a handle --> its own space's index --> by its text's words --> embedded anew for the database --> 503
    write with a handle ---> 503, to be repeated; or kept until the embedder is back

A plan is made once for all routes of a policy folder, since one route's handles are another's to look out for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from understudy.models.space import same_space
from understudy.policies.chain import Link, signed
from understudy.policies.marks import Marked, handles_in, numbers_at, unpacked
from understudy.policies.service import Answer, Call, Failed, Refused, Request, Service
from understudy.policies.spaces import guarded, noted
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.settings.settings import LocalTier, Route, Settings
from understudy.proxy.spaces.held_writes import CannotWait, HeldWrites
from understudy.proxy.spaces.provenance import Provenance, tenant_by
from understudy.proxy.spaces.reembedding import Asker, with_vectors

RETRY_AFTER_S = 30
SERVED_MAX = 1024


class Plan(NamedTuple):
    """What a route does about vectors: `remembers` those it hands out, `hands_out` handles, and is guarded."""

    remembers: bool = False
    hands_out: bool = False
    guards: bool = False


NO_PLAN = Plan()


def plans_of(settings: Settings) -> Mapping[str, Plan]:
    """The plan of every route, by name."""
    own = settings.local.model
    embeds = [route for route in settings.routes if KINDS.get(route.dialect) == "embed"]
    searched = [
        settings.space_of(route)
        for route in settings.routes
        if KINDS.get(route.dialect) == "retrieve" and any(isinstance(tier, LocalTier) for tier in route.tiers)
    ]
    plans: dict[str, Plan] = {}
    for route in embeds:
        space = settings.space_of(route)
        is_searched = any(same_space(space, other) for other in searched)
        is_foreign = bool(space) and not same_space(space, own) and space != own
        has_local = any(isinstance(tier, LocalTier) for tier in settings.active(route))
        has_upstream = any(not isinstance(tier, LocalTier) for tier in settings.active(route))
        plans[route.name] = Plan(
            remembers=has_upstream and _is_on(route.spaces.remember, auto=is_searched),
            hands_out=has_local and is_foreign and _is_on(route.spaces.handles, auto=is_searched),
        )
    # handles may still be about that were given out before a reload, or by a neighbour
    are_about = any(plan.hands_out for plan in plans.values()) or settings.server.ledger.watch == "always"
    for route in settings.routes:
        if KINDS.get(route.dialect) in ("retrieve", "pass"):
            plans[route.name] = Plan(guards=are_about)
    return plans


def is_never_alone(settings: Settings) -> bool:
    """Whether handles may be about that this process did not give out: other workers' or replicas'."""
    server = settings.server
    return server.ledger.watch == "always" or server.workers != 1 or server.reuse_port or server.cache.url is not None


def _is_on(said: str, *, auto: bool) -> bool:
    return auto if said == "auto" else said == "on"


def spaced(
    service: Service,
    route: Route,
    dialect: Dialect,
    space: str,
    plan: Plan,
    provenance: Provenance,
    links: Sequence[Link],
    clock: Callable[[], float],
    held: HeldWrites | None = None,
) -> Service:
    """`service`, with the vectors it hands out remembered, and without calls that bring handles. `links` are the
    route's own tiers, `held` keeps writes until their vectors can be had."""
    _offer_embedder(route, dialect, space, provenance, links, clock)
    if plan.remembers:
        service = noted(service, Noting(route, dialect, space, provenance).note)
    if held is not None:
        service = held.around(service)
    if plan.guards:
        guard = Guard(route, dialect, space, provenance, links, service)
        guard.held = held
        service = guarded(service, provenance, guard.otherwise)
    return service


def _offer_embedder(
    route: Route,
    dialect: Dialect,
    space: str,
    provenance: Provenance,
    links: Sequence[Link],
    clock: Callable[[], float],
) -> None:
    """Have texts embedded by this route's first upstream, where it is one for embeddings."""
    if KINDS.get(route.dialect) != "embed" or not space:
        return
    names = {tier.name for tier in route.tiers if not isinstance(tier, LocalTier)}
    first = next((link.service for link in links if link.name in names and link.service is not None), None)
    if first is not None:
        provenance.reembedding.offer(space, Asker(route.name, dialect, first, clock))


class Noting:
    """Tells the ledger of a route's answered embeddings."""

    __slots__ = ("dialect", "headers", "provenance", "space", "vocabulary")

    def __init__(self, route: Route, dialect: Dialect, space: str, provenance: Provenance) -> None:
        self.dialect = dialect
        self.headers = route.spaces.tenant_headers
        self.space = space
        self.provenance = provenance
        self.vocabulary = provenance.vocabulary_of(route.spaces.tiktoken_file)

    def note(self, call: Call, answer: Answer) -> None:
        tenant = tenant_by(call.request, self.headers) if self.headers else b""
        self.provenance.answered(call, answer, self.dialect, self.space, tenant, self.vocabulary)


class Guard:
    """What becomes of a route's calls that bring handles. `links` are its own tiers, `inner` what is guarded."""

    def __init__(
        self,
        route: Route,
        dialect: Dialect,
        space: str,
        provenance: Provenance,
        links: Sequence[Link],
        inner: Service,
    ) -> None:
        self.route = route
        self.dialect = dialect
        self.space = space
        self.provenance = provenance
        is_local = {tier.name for tier in route.tiers if isinstance(tier, LocalTier)}
        self.local = next((link for link in links if link.name in is_local and link.service is not None), None)
        self.upstreams = [link for link in links if link.name not in is_local]
        self.inner = inner
        self.held: HeldWrites | None = None

    async def otherwise(self, call: Call) -> Answer:
        """Answer a call with a handle without asking a primary with it."""
        if call.kind == "retrieve":
            return await self._search(call)
        if call.kind == "pass" and self.dialect.written(call.request) is not None:
            return await self._write(call)
        self._count("refused")
        raise Refused("handle", _FOREIGN + "only the database itself could answer this")

    async def _search(self, call: Call) -> Answer:
        for link in self.upstreams:
            if link.service is not None:
                call.note(link.name, "refused", "handle")
                link.count("refused", "handle")
        told: list[str] = []
        if self.local is not None and self.local.service is not None:
            call.until = call.deadline
            try:
                answer = await self.local.service(call)
            except (Refused, Failed) as without:
                told.append(f"{self.local.name}: {without.detail}")
                call.note(self.local.name, "refused" if isinstance(without, Refused) else "failed", without.reason)
                self.local.count("refused" if isinstance(without, Refused) else "failed", without.reason)
            else:
                self._count("local" if answer.status < 400 else "rejected")
                self.local.count("answered", "handle")
                return signed(answer, self.local, call)
        answer = await self._embedded_anew(call)
        if answer is not None:
            self._count("embedded_anew")
            return answer
        self._count("refused")
        raise Refused("handle", _FOREIGN + ("; ".join(told) or "there is no local tier to search"))

    async def _embedded_anew(self, call: Call) -> Answer | None:
        """The call as it would be with vectors of the database's own space, where their texts are known and the
        embedder is back; None where that can't be."""
        request = call.request
        body, places, texts = self._told(request)
        if not texts:
            return None
        vectors = await self.provenance.reembedding.vectors(self.space, texts, call.until)
        if vectors is None:
            return None
        headers = [header for header in request.headers if header[0].lower() != b"content-encoding"]
        anew = Request(request.method, request.target, headers, with_vectors(body, places, vectors), path=request.path)
        anew.hop = request.hop
        # what was read of the body was read of the handles
        call.request, call.asked = anew, None
        call.until = call.deadline
        try:
            return await self.inner(call)
        finally:
            call.request = request

    def _told(self, request: Request) -> tuple[bytes, list[Marked], list[str]]:
        """A request's body, unpacked, where handles stand in it, and their texts; no texts where one is unknown."""
        body = unpacked(request.body, (request.header(b"content-encoding") or b"").strip().lower())
        places = list(handles_in(body)) if body is not None else []
        texts = [self._text_of(request, numbers_at(body, place).tobytes()) for place in places] if body else []
        known = [text for text in texts if text]
        return body or b"", places, known if len(known) == len(places) else []

    def _text_of(self, request: Request, vector: bytes) -> str | None:
        """The whole text of a handle, where it is remembered."""
        entry = self.provenance.ledger.find(vector, tenant_by(request, self.route.spaces.tenant_headers))
        return None if entry is None or entry.is_cut else entry.text

    async def _write(self, call: Call) -> Answer:
        why = "stored, it would poison the collection: embed the texts again, and repeat"
        if self.route.spaces.handles_in_writes != "refuse":
            written = await self._embedded_anew(call)
            if written is not None:
                self._count("write_embedded")
                return written
        if self.held is not None and self.held.accepts:
            try:
                answer = await self._kept(call, self.held)
            except CannotWait as fault:
                why = f"it can't wait for its vectors: {fault}"
            else:
                self._count("write_held")
                return answer
        self._count("write_refused")
        answer = self.dialect.error(
            503,
            "handle_in_write",
            _FOREIGN + why,
            headers=[(b"retry-after", b"%d" % RETRY_AFTER_S)],
        )
        answer.tier, answer.reason = "none", f"{call.route}: handle_in_write"
        return answer

    async def _kept(self, call: Call, held: HeldWrites) -> Answer:
        _, places, texts = self._told(call.request)
        if not texts:
            raise CannotWait("the text of a fallback vector is not remembered")
        return await held.hold(call, places, texts)

    def _count(self, how: str) -> None:
        key = (self.route.name, how)
        self.provenance.served[key] = self.provenance.served.get(key, 0) + 1


_FOREIGN = "a fallback vector, which is of another space than the database's, is in it: "


def of_another_space(own: str, wanted: str) -> Service:
    """A tier that is never asked: its vectors are in another space than the route's."""

    async def refusing(_call: Call) -> Answer:
        raise Refused("space", f"this tier's vectors are in the space {own}, the route's in {wanted}")

    return refusing
