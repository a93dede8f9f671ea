"""What a route does about questions: join those under way, share their deadline, and tell what they are built on.

It stands in the deadline's own shell, and is looked into only while a fallback has lately answered something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from understudy.policies.marks import unpacked
from understudy.policies.questions import (
    LOOKED_BYTES_MAX,
    Leg,
    Publish,
    Question,
    Questions,
    prints_of,
    shared_deadline,
    text_prints,
)
from understudy.policies.service import Answer, Call, Refused, find_header
from understudy.proxy.asks import Ask, EmbedAsk, RetrieveAsk, parts_of
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import BadRequest, Dialect
from understudy.proxy.http.forwarding import trace_of
from understudy.proxy.settings.settings import Route
from understudy.proxy.spaces.embeddings_told import encoding_of
from understudy.proxy.spaces.provenance import tenant_by

if TYPE_CHECKING:
    from understudy.proxy.parts import World
    from understudy.proxy.spaces.provenance import Provenance

BUILT_ON = b"x-understudy-built-on"
SEARCH = b"x-understudy-search"
TRACE_CHARS = 32
_STANDS_IN = frozenset(("secondary", "tertiary"))


class Story:
    """One route's part in questions. `built_on` counts answers that said what they are built on."""

    __slots__ = ("_clock", "_dialect", "_headers", "_provenance", "_route", "built_on", "publish", "questions")

    def __init__(
        self,
        route: Route,
        dialect: Dialect,
        questions: Questions,
        clock: Callable[[], float],
        provenance: Provenance | None,
        publish: Publish | None = None,
    ) -> None:
        self._route = route.name
        self._dialect = dialect
        self._headers = route.spaces.tenant_headers
        self._clock = clock
        self._provenance = provenance
        self.questions = questions
        self.publish = publish
        self.built_on = 0

    def _tenant(self, call: Call) -> bytes:
        return tenant_by(call.request, self._headers)

    def join(self, call: Call) -> None:
        """Before a call is answered: the question that it belongs to, if one is known, and the deadline they share."""
        trace = (trace_of(call.request.headers) or b"").decode()
        question = self.questions.of_trace(trace, call.born)
        if question is None and call.kind == "generate":
            question = self.questions.of_prompt(call.request.body, self._tenant(call))
        elif question is None and call.kind == "retrieve" and self.questions.looks_for_vectors:
            question = self._by_vector(call)
        if question is None or (trace and _is_trace(question.id) and question.id != trace):
            # the same passages may have been found for another question, which has a trace of its own
            return
        call.question = question
        call.deadline = call.until = shared_deadline(question, call.deadline, self._clock())

    def told(self, call: Call, answer: Answer) -> Answer:
        """After it was answered: say what it is built on, and remember it where a fallback has answered."""
        if call.kind == "pass" or answer.status >= 400:
            return answer
        fell = answer.tier in _STANDS_IN or (bool(answer.reason) and answer.tier != "primary")
        question = call.question
        if question is None and fell:
            question = self._by_vector(call) if call.kind == "retrieve" else None
            if question is None:
                trace = (trace_of(call.request.headers) or b"").decode()
                question = self.questions.begun(trace or call.id, call.born)
            call.question = question
        if question is None:
            return answer
        is_built = bool(question.legs)
        if is_built:
            answer.add(BUILT_ON, question.built_on.encode("ascii", "replace"))
            self.built_on += 1
        if fell or (is_built and call.kind == "retrieve"):
            self._note(call, answer, question, fell=fell)
        return answer

    def _ask(self, call: Call) -> Ask | None:
        """What a call asks for, as far as it can be read."""
        try:
            return self._dialect.ask(call)
        except (BadRequest, Refused, ValueError):
            return None

    def _by_vector(self, call: Call) -> Question | None:
        """The question whose text was embedded as what is searched by, as far as the ledger knows it."""
        asked, provenance = self._ask(call), self._provenance
        if provenance is None or not isinstance(asked, RetrieveAsk):
            return None
        vector = next((part.vector for part in parts_of(asked) if part.vector is not None), None)
        text = provenance.text_of(vector, self._tenant(call)) if vector is not None else ""
        return self.questions.of_text(text, self._tenant(call)) if text else None

    def _note(self, call: Call, answer: Answer, question: Question, *, fell: bool) -> None:
        leg = None
        if fell:
            how = find_header(answer.headers, SEARCH) or b""
            leg = Leg(call.kind, self._route, answer.tier, answer.source, how.decode("latin-1"))
        texts: list[int] = []
        prints: list[int] = []
        if call.kind == "embed":
            asked = self._ask(call)
            texts = text_prints(asked.texts, self._tenant(call)) if isinstance(asked, EmbedAsk) else []
        elif call.kind == "retrieve" and answer.stream is None and len(answer.body) <= LOOKED_BYTES_MAX:
            body = unpacked(answer.body, encoding_of(answer)) if answer.packed else answer.body
            prints = prints_of(body or b"", self._tenant(call))
        told = self.questions.fell(question, leg, self._clock(), texts=texts, prints=prints)
        if self.publish is not None:
            self.publish(told)


def story_of(route: Route, dialect: Dialect, world: World, before: Story | None) -> Story | None:
    """A route's part in questions; None where it speaks of none."""
    if world.questions is None or KINDS.get(route.dialect) not in ("embed", "retrieve", "generate"):
        return None
    story = Story(route, dialect, world.questions, world.clock, world.provenance, world.publish)
    story.built_on = before.built_on if before is not None else 0
    return story


def _is_trace(id: str) -> bool:
    return len(id) == TRACE_CHARS
