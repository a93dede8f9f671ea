"""The fingerprints of vector spaces: what each embedding endpoint's vectors were at first, and whether they still are.

    an endpoint --a few texts, now and then--> vectors --the same as at first?--> trusted, or quarantined
    a call --> quarantined? --> Refused: a sibling, the next tier, or a handle, but no vector of another model

The baseline is the space's, not the endpoint's, so that a sibling with another model behind it is found out as well; it
is kept over a restart, by the space's declaration: who has changed models on purpose gives it another revision.
"""

from __future__ import annotations

import json
import logging
from array import array
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.models.space import Space
from understudy.policies.fingerprint import TEXTS, Fingerprint
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.proxy.dialects import DIALECTS, KINDS
from understudy.proxy.dialects.generating import model_asked
from understudy.proxy.durable import replace_file
from understudy.proxy.settings.outcomes import sets_key
from understudy.proxy.settings.settings import DeclaredSpace, Probing, Route, Settings, UpstreamTier
from understudy.proxy.spaces.reembedding import Asker, Reembedding, Way

KEYLESS = ("ollama-embed", "tei")
BASELINES_MAX = 256
FIRST_S = 60.0
"""Seconds after its start in which an endpoint is left alone."""
AGAIN_SHARE = 0.1
"""Of the usual pause, until one that has changed is measured again."""
MEASURE_S = 15.0

log = logging.getLogger("understudy.spaces")

Key = tuple[str, str, str]
"""A route, a tier and an endpoint."""


@dataclass(slots=True)
class Measuring:
    """One endpoint: how it is asked, what of, and when next."""

    key: Key
    rules: Probing
    space: str
    identity: str
    asker: Asker
    heart: Fingerprint = field(default_factory=Fingerprint)
    due_at: float = 0.0
    results: dict[str, int] = field(default_factory=dict[str, int])
    is_shown: bool = False
    """Whether a caller has shown how it is asked."""

    def count(self, result: str) -> None:
        self.results[result] = self.results.get(result, 0) + 1


class Fingerprints:
    """One process's. `ways` is how callers ask the embedders of each space."""

    def __init__(self, ways: Reembedding, *, dice: Callable[[], float], path: Path | None = None) -> None:
        self._ways = ways
        self._dice = dice
        self._path = path
        self.baselines: dict[str, list[array[float]]] = {}
        self.endpoints: dict[Key, Measuring] = {}
        self._load()

    def __iter__(self) -> Iterator[Measuring]:
        return iter(self.endpoints.values())

    def watched(self, service: Service, one: Measuring, now: float) -> Service:
        """`service`, while its vectors are those of its space. What was known of the endpoint is known still."""
        before = self.endpoints.get(one.key)
        if before is not None and before.identity == one.identity:
            one.heart, one.due_at, one.results = before.heart, before.due_at, before.results
        else:
            one.due_at = now + FIRST_S * (1.0 + self._dice())
        self.endpoints[one.key] = one
        heart, reports = one.heart, one.rules.drift == "report"

        def trusted(call: Call) -> Awaitable[Answer]:
            # no coroutine of its own: it would be stepped through at every turn of every call
            if heart.is_quarantined and not reports:
                raise Refused("quarantined", "its vectors are no longer those of its space")
            if not one.is_shown:
                self._learn(one, call)
            return service(call)

        return trusted

    def _learn(self, one: Measuring, call: Call) -> None:
        """Have a caller show how the embedders of a space are asked, where nobody has yet."""
        one.is_shown = True
        if self._ways.way_of(one.space) is None:
            request = call.request
            self._ways.knows(one.space, Way(request.target, request.path, model_asked(request.body)))

    def keep(self, keys: set[Key]) -> None:
        """Forget the endpoints that are not among these."""
        self.endpoints = {key: one for key, one in self.endpoints.items() if key in keys}

    async def measure(self, one: Measuring, now: float) -> str:
        """Ask an endpoint for the vectors of the fixed texts, and compare; what came of it, in a word."""
        way = self._ways.way_of(one.space)
        if one.rules.model is not None and way is not None:
            way = way._replace(model=one.rules.model)
        if way is None:
            # nobody has asked it yet, and how it is asked is for its callers to show
            one.due_at = now + FIRST_S
            return ""
        pause_s = one.rules.every_s * (0.9 + 0.2 * self._dice())
        try:
            vectors = [array("f", each) for each in await one.asker.vectors(TEXTS, way, now + MEASURE_S)]
        except (Refused, Failed, ValueError):
            one.due_at = now + max(FIRST_S, AGAIN_SHARE * pause_s)
            one.count("failed")
            return "failed"
        key = f"{one.identity} {way.model}"
        before = self.baselines.get(key)
        if before is not None and len(before) != len(TEXTS):
            # of another version of ours, which had other texts
            before = None
        result = one.heart.measured(vectors, before, one.rules.cosine_min)
        if result == "first" and len(self.baselines) < BASELINES_MAX:
            self.baselines[key] = vectors
        one.due_at = now + (pause_s if one.heart.state == "trusted" else AGAIN_SHARE * pause_s)
        one.count(result)
        _tell(one, result)
        return result

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            told: Any = json.loads(self._path.read_text(encoding="utf-8"))
            self.baselines = {
                str(key): [array("f", b64decode(vector)) for vector in vectors] for key, vectors in told.items()
            }
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("the fingerprints of vector spaces can't be read: %s", type(error).__name__)

    def save(self) -> None:
        """Write the baselines down. Writes to disk: call it in a thread."""
        if self._path is None:
            return
        told = {
            key: [b64encode(vector.tobytes()).decode() for vector in vectors] for key, vectors in self.baselines.items()
        }
        try:
            replace_file(self._path, json.dumps(told).encode())
        except OSError as error:
            log.warning("the fingerprints of vector spaces can't be written: %s", error.strerror)


def _tell(one: Measuring, result: str) -> None:
    where = "/".join(one.key)
    if result == "quarantined":
        does = "said only" if one.rules.drift == "report" else "not asked until it is as it was"
        log.error(
            "%s: its vectors are no longer those of %s (%s, cosine %.4f); %s",
            where,
            one.space,
            one.heart.fault,
            one.heart.cosine,
            does,
        )
    elif result == "back":
        log.warning("%s: its vectors are those of %s again", where, one.space)


def measuring(
    settings: Settings, route: Route, tier: UpstreamTier, endpoint: str, service: Service, clock: Callable[[], float]
) -> Measuring | None:
    """How an endpoint is measured; None for one that is not: of no space, without a key of its own, or not to be."""
    space, rules = settings.space_of(route), route.spaces.probing
    is_ours = sets_key(tier) or route.dialect in KEYLESS
    if KINDS.get(route.dialect) != "embed" or not space or not rules.every_s or not is_ours:
        return None
    asker = Asker(route.name, DIALECTS[route.dialect], service, clock)
    return Measuring((route.name, tier.name, endpoint), rules, space, identity_of(settings, space), asker)


def identity_of(settings: Settings, space: str) -> str:
    """A space's name, and a fingerprint of all that is declared of it."""
    declared = settings.server.spaces.get(space) or DeclaredSpace()
    whole = Space(
        declared.model or space,
        declared.dimensions or 0,
        declared.normalised,
        declared.query_prefix,
        declared.document_prefix,
        f"{declared.provider} {declared.revision}".strip(),
    )
    return f"{space} {whole.fingerprint}"
