"""Search each vector among vectors of its own space: whose it is comes from the ledger, or from its mark.

    the route's own --------> a collection of that space, or none
    a handle ---------------> a collection of the local model's space, by its vector and its text's words
    known by the ledger ----> where the collection is of another space: its text embedded for it, and its words
    no such collection -----> vectors of its texts that we made beside its own, and the words
    it has few texts -------> its own vectors, by what a proven map makes of the local model's, and the words
    no collection fits -----> the words alone, where they are known; else nobody is searched

What nobody handed out is taken for the route's own, and never meets another space's vectors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from understudy.models.space import Space, same_space
from understudy.policies.service import Call, Refused
from understudy.proxy.asks import RetrieveAsk, parts_of
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.spaces.provenance import Origin, Provenance, tenant_by

EXAMPLES = ("positive", "negative", "target")
"""The roles of what a recommendation goes by, as dialects note them in an ask's shape."""


class Home(NamedTuple):
    """A collection as far as vectors are concerned; `is_models` says that the local model embeds into its space.

    `beside` names the vectors of its texts that we made with the local model, where its own are of another space, and
    `share` is how many of its points have one.
    """

    space: str
    dimensions: int
    is_models: bool
    beside: str = ""
    share: float = 0.0
    bridge: Callable[[Sequence[float]], tuple[float, ...]] | None = None
    """What makes of the local model's vectors about what its own model would have said, where that is proven."""


BESIDE_SHARE_MIN = 0.5
Embeds = Callable[[str], Awaitable[tuple[float, ...] | None]]
"""The vector of a text that is a question, in the local model's space; None where there is no model now."""


def has_vectors(ask: RetrieveAsk) -> bool:
    """Whether a search, or any part of it, is by a vector."""
    return any(each.vector is not None for each in parts_of(ask))


class Origins:
    """Whose the vectors of a route's searches are. `space` is the route's."""

    __slots__ = ("dimensions", "own", "provenance", "space", "tenant_headers")

    def __init__(
        self, space: str, provenance: Provenance, dimensions: int | None = None, tenant_headers: Sequence[str] = ()
    ) -> None:
        self.space = space
        self.tenant_headers = tenant_headers
        self.provenance = provenance
        self.dimensions = dimensions
        self.own: Space | None = None

    def tenant_of(self, call: Call) -> bytes:
        """Whose the vectors of a call are."""
        return tenant_by(call.request, self.tenant_headers)

    async def ask_others(self, ask: RetrieveAsk, tenant: bytes) -> None:
        """Have what replicas know of the ask's vectors, where there are any."""
        if self.provenance.second is not None:
            vectors = [part.vector for part in parts_of(ask) if part.vector is not None]
            await self.provenance.ask_others(vectors, tenant)

    async def understood(self, ask: RetrieveAsk, home: Home, tenant: bytes, embeds: Embeds) -> RetrieveAsk:
        """The ask with each vector in the collection's space, or as words. Raises Refused where neither can be, and
        BadRequest for a vector that has not its space's length."""
        parts = tuple([await self.understood(part, home, tenant, embeds) for part in ask.parts])
        if parts != ask.parts:
            ask = replace(ask, parts=parts)
        if ask.vector is None:
            return ask
        own = self.own
        origin = self.provenance.origin_of(ask.vector, tenant, own.name if own else "", own.dimensions if own else 0)
        if origin is None:
            self._check_length(ask.vector, home)
            return ask
        if _is_in(origin.space, home, own):
            if not origin.is_handle or origin.vector is None:
                return replace(ask, space=origin.space)
            self.provenance.count("searched_own")
            return _worded(replace(ask, vector=tuple(origin.vector), space=home.space), origin)
        if home.is_models and origin.text:
            vector = await embeds(origin.text)
            if vector is not None:
                self.provenance.count("searched_text")
                return _worded(replace(ask, vector=vector, space=home.space), origin)
        found = await self._beside(ask, origin, home, embeds)
        found = found or await self._bridged(ask, origin, home, embeds)
        if found is not None:
            return found
        if origin.text and not ask.text and _takes_words(ask):
            self.provenance.count("searched_words")
            return replace(ask, vector=None, text=origin.text, score_threshold=None)
        if origin.is_handle:
            what = "this fallback vector is" if origin.space else "this is a fallback vector, given out elsewhere,"
            raise Refused("space", f"{what} of another space than the collection ({home.space}), and its text is gone")
        return replace(ask, space=origin.space)

    async def _beside(self, ask: RetrieveAsk, origin: Origin, home: Home, embeds: Embeds) -> RetrieveAsk | None:
        """The ask among the vectors that we made of the collection's texts; None where there are none, or too few for
        points without one not to fall behind those with one in a search by words as well."""
        own = self.own
        if not home.beside or own is None or (origin.text and home.share < BESIDE_SHARE_MIN):
            return None
        vector = origin.vector if origin.is_handle and same_space(origin.space, own.name) else None
        if vector is None and origin.text:
            vector = await embeds(origin.text)
        if vector is None:
            return None
        self.provenance.count("searched_beside")
        return _worded(replace(ask, vector=tuple(vector), using=home.beside, space=own.name), origin)

    async def _bridged(self, ask: RetrieveAsk, origin: Origin, home: Home, embeds: Embeds) -> RetrieveAsk | None:
        """The ask among the collection's own vectors, mapped to them, and by its words: never by the map alone."""
        worded = _worded(ask, origin)
        if home.bridge is None or worded is ask or ask.using or self.own is None:
            return None
        vector = origin.vector if origin.is_handle and same_space(origin.space, self.own.name) else None
        if vector is None:
            vector = await embeds(origin.text)
        if vector is None:
            return None
        self.provenance.count("searched_bridged")
        return replace(worded, vector=home.bridge(vector), space=home.space)

    def _check_length(self, vector: tuple[float, ...], home: Home) -> None:
        if same_space(self.space, home.space):
            # the collection itself says what it wants
            return
        wanted = self.dimensions or self.provenance.dimensions_of(self.space)
        if wanted is not None and len(vector) != wanted:
            raise BadRequest(
                f"Wrong input: Vector dimension error: expected dim: {wanted}, got {len(vector)} "
                f"(vectors of {self.space} are searched here)"
            )


def _is_in(space: str, home: Home, own: Space | None) -> bool:
    """Whether `space` is the collection's; the settings may name the local model's by its folder."""
    if same_space(space, home.space):
        return True
    return home.is_models and own is not None and same_space(space, own.name)


def _worded(ask: RetrieveAsk, origin: Origin) -> RetrieveAsk:
    """With the words beside the vector, where they are known and scores are not asked to be the vector's own."""
    if ask.text or not origin.text or ask.score_threshold is not None or not _takes_words(ask):
        return ask
    return replace(ask, text=origin.text)


def _takes_words(ask: RetrieveAsk) -> bool:
    """Not an example of a recommendation, which only a vector is, and not what ranks points that others have found."""
    return not ask.parts and ask.shape not in EXAMPLES
