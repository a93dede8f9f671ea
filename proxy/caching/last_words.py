"""Last words, the shell: look a question up among those that were foreseen, and say what is said when all has failed.

    before(local tier)     a prepared answer, or the local tier
    around(chain)          the chain; where it has no answer, a prepared one       (where there is no local tier)
    finally_(all of it)    all of it; where it has no answer, the message

A call that an upstream answers is not touched, and costs one frame more. Prepared answers are looked up by their words
at once, and by vectors as soon as the local model has embedded their questions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from understudy.policies.chain import explain_trail
from understudy.policies.last_words import (
    MESSAGE_SOURCE,
    NEAREST,
    PREPARED_SOURCE,
    Foreseen,
    Found,
    message_text,
    prepared_text,
)
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.proxy.asks import GenerateAsk, Written
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import BadRequest, Dialect
from understudy.proxy.settings.last_word import LastWords as Rules

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from understudy.proxy.settings.settings import Route

__all__ = ["LastWords", "last_words_of"]

log = logging.getLogger("understudy.last_words")

MODEL = "understudy-last-words"
MOMENTARY = frozenset((408, 425, 429, 500, 502, 503, 504, 529))
"""An upstream's own errors after which somebody else's word is worth more. No other is: it says what is wrong with the
request."""
EMBED_S_MAX = 1.0
"""How long a question may take to be embedded."""
SLICE_TEXTS = 64
WARM_S_MAX = 120.0
INLINE_CHARS = 20_000
"""A longer prompt is searched for its question in a thread."""
CHARS_PER_TOKEN = 4

Embed = Callable[[list[str], float], Awaitable["NDArray[np.float32]"]]


class LastWords:
    """One route's. `before` is what it was until a reload: vectors and counts go on."""

    def __init__(
        self,
        rules: Rules,
        foreseen: Foreseen | None,
        dialect: Dialect,
        *,
        clock: Callable[[], float],
        embed: Embed | None = None,
        wall: Callable[[], float] = time.time,
        before: LastWords | None = None,
    ) -> None:
        self.rules = rules
        self.foreseen = foreseen = foreseen or Foreseen(())
        self.counts: dict[str, int] = before.counts if before is not None else {}
        self._dialect = dialect
        self._clock = clock
        self._wall = wall
        self._embed = embed if rules.cosine_min is not None else None
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._matrix: NDArray[np.float32] | None = None
        if before is not None:
            asked = {question for question, _ in foreseen.questions}
            self._vectors = {text: row for text, row in before._vectors.items() if text in asked}
            self._stack()

    # --- where it stands -------------------------------------------------------------------------------------------

    def before(self, service: Service) -> Service:
        """A prepared answer where there is one, or `service`: for a local tier, which is asked when all else failed."""

        async def foreseen(call: Call) -> Answer:
            return await self.prepared(call) or await service(call)

        return foreseen

    def around(self, service: Service) -> Service:
        """What `service` answers; where it has no answer, or only a passing error, a prepared one."""
        return self._standing_by(service, self.prepared)

    def finally_(self, service: Service) -> Service:
        """What `service` answers; where it has no answer, the message. A stale answer that is kept goes before it."""
        return self._standing_by(service, self.message)

    def _standing_by(self, service: Service, instead: Callable[[Call], Awaitable[Answer | None]]) -> Service:
        async def standing_by(call: Call) -> Answer:
            try:
                answer = await service(call)
            except (Refused, Failed) as without:
                said = await instead(call)
                if said is None:
                    raise
                said.reason = said.reason or explain_trail(call, "") or without.reason
                return said
            if answer.status not in MOMENTARY:
                return answer
            said = await instead(call)
            if said is None:
                return answer
            if answer.stream is not None:
                answer.stream.close()
            said.reason = said.reason or explain_trail(call, "") or f"the upstream answered {answer.status}"
            return said

        return standing_by

    # --- what is said ----------------------------------------------------------------------------------------------

    async def prepared(self, call: Call) -> Answer | None:
        """The prepared answer to what the call asks; None where there is none, or where a text would not do."""
        if not self.foreseen.questions:
            return None
        ask = self._asked(call)
        if ask is None:
            return None
        question = await _question(ask)
        found = self.foreseen.worded(question) or await self._alike(call, question)
        if found is None:
            return None
        self._count(PREPARED_SOURCE, found.how)
        return self._said(call, ask, prepared_text(found), PREPARED_SOURCE)

    async def message(self, call: Call) -> Answer | None:
        """The route's message; None where it has none, where a stale answer goes first, or a text would not do."""
        if not self.rules.message or call.kept:
            return None
        ask = self._asked(call)
        if ask is None:
            return None
        self._count(MESSAGE_SOURCE, "configured")
        return self._said(call, ask, message_text(self.rules.message), MESSAGE_SOURCE)

    def _asked(self, call: Call) -> GenerateAsk | None:
        if call.kind != "generate":
            return None
        try:
            ask = self._dialect.ask(call)
        except (BadRequest, Refused):
            # whoever could answer it would have said what is wrong with it
            return None
        if not isinstance(ask, GenerateAsk):
            return None
        if ask.structured:
            self._count("none", "structured")
            return None
        return ask

    async def _alike(self, call: Call, question: str) -> Found | None:
        matrix, cosine_min = self._matrix, self.rules.cosine_min
        if matrix is None or cosine_min is None or self._embed is None or not question:
            return None
        now = self._clock()
        # never more than half of what is left: whoever is asked next needs the rest
        wait_s = min(EMBED_S_MAX, (min(call.until, call.deadline) - now) / 2)
        if wait_s <= 0:
            return None
        try:
            (vector,) = await self._embed([question], now + wait_s)
        except Exception as fault:
            # whatever it is, it is no fault of the call's
            log.debug("not embedded: %s", fault)
            return None
        cosines = matrix @ vector
        nearest = [int(row) for row in (-cosines).argsort(kind="stable")[:NEAREST] if cosines[row] >= cosine_min]
        return self.foreseen.alike(question, nearest)

    def _said(self, call: Call, ask: GenerateAsk, text: str, source: str) -> Answer:
        prompt_chars = sum(len(str(message.get("content") or "")) for message in ask.messages)
        counts = prompt_chars // CHARS_PER_TOKEN, len(text) // CHARS_PER_TOKEN
        written = Written(text, MODEL, *counts, id=call.id, created_s=int(self._wall()), source=source)
        answer = self._dialect.generated(ask, written)
        answer.tier = answer.source = source
        return answer

    def _count(self, source: str, how: str) -> None:
        key = f"{source} {how}"
        self.counts[key] = self.counts.get(key, 0) + 1

    # --- vectors of the questions ----------------------------------------------------------------------------------

    @property
    def embedded(self) -> int:
        """How many of the questions have a vector."""
        return len(self._vectors)

    async def warm_up(self) -> None:
        """Embed the questions that have no vector yet; until then they are found by their words. Raises nothing."""
        if self._embed is None:
            return
        missing = [
            text for text in dict.fromkeys(text for text, _ in self.foreseen.questions) if text not in self._vectors
        ]
        loop = asyncio.get_running_loop()
        for at in range(0, len(missing), SLICE_TEXTS):
            some = missing[at : at + SLICE_TEXTS]
            try:
                rows = await self._embed(some, loop.time() + WARM_S_MAX)
            except Exception as fault:
                log.warning("%d prepared questions are found by their words alone: %s", len(missing) - at, fault)
                return
            self._vectors.update(zip(some, rows, strict=True))
        self._stack()

    def _stack(self) -> None:
        texts = [text for text, _ in self.foreseen.questions]
        if texts and all(text in self._vectors for text in texts):
            import numpy as np

            self._matrix = np.stack([self._vectors[text] for text in texts])


def last_words_of(
    route: Route,
    dialect: Dialect,
    foreseen: Foreseen | None,
    before: LastWords | None,
    *,
    clock: Callable[[], float],
    embed: Embed | None,
) -> LastWords | None:
    """A route's last words, where its policy has any and its calls ask for text."""
    if not route.last_words.asked_for or KINDS.get(dialect.name) != "generate":
        return None
    return LastWords(route.last_words, foreseen, dialect, clock=clock, embed=embed, before=before)


async def _question(ask: GenerateAsk) -> str:
    from understudy.models.prompts import question_in_prompt

    messages: Sequence[dict[str, Any]] = ask.messages
    if sum(len(str(message.get("content") or "")) for message in messages) <= INLINE_CHARS:
        return question_in_prompt(messages)
    return await asyncio.get_running_loop().run_in_executor(None, question_in_prompt, messages)
