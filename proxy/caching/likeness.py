"""Likeness, the shell: find what was answered to a call that is alike, and learn from what the upstream answers.

    retrieve   query vector --nearest in scope--> its list           mode serve: given     shadow: counted
    generate   question --wording--> kept answer --embed both--> bucket --permitted?--> given, or asked upstream
                                                    upstream's answer --compared, behind the caller's back--> bucket

    nobody answers, or only the local tier would     modes fallback and serve: given, up to fallback_ttl_s old

Whatever is missing here (a model that is loading, slow or broken, a body that can't be read) costs the hit and never
the call. Only answers of a route's first tier are kept and compared: a fallback's own answer proves nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from understudy.policies.cache import Town, is_settled, stamp_of
from understudy.policies.likeness import Bucket, Likeness, Told, bucket_of
from understudy.policies.service import Answer, Call, Failed, Headers, Refused, Service
from understudy.policies.wording import Grade, compare_answers
from understudy.proxy.asks import Written
from understudy.proxy.caching.keys import Scope, wishes_of
from understudy.proxy.caching.scopes import Prompted, Searched, prompt_of, search_of
from understudy.proxy.caching.values import Recorded, told_s
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import Dialect

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from understudy.proxy.settings.settings import Route

log = logging.getLogger("understudy.likeness")

SOURCE = "semantic-cache"
COSINE_MIN = {"retrieve": 0.92, "generate": 0.95}
"""Where nothing else is set: what costs no recall, and where the bands with enough right answers begin."""
ANSWER_BYTES_MAX = 256 * 1024
"""A longer answer is not kept."""
LAST_WORD_S_MAX = 1.0
"""How long the two questions may take to be embedded where no upstream answers anyway."""
VERIFYING_MAX = 4
"""Comparisons under way at once; more are not begun, as one is as good as another."""
VERIFY_S_MAX = 5.0
OVERHEAD_BYTES = 1024
_IDENTITY = ("name", "url", "socket", "space", "endpoints", "speaks", "models")
"""What makes a tier the one it is."""
_KEPT_HEADERS = (b"content-type", b"content-encoding")

Embed = Callable[[list[str], float], Awaitable["NDArray[np.float32]"]]
"""Texts, and until when -> vectors [n, d] of unit length. May raise whatever it likes."""


class Page(NamedTuple):
    """A list of points as it came from the upstream, to be given again byte by byte."""

    headers: Headers
    body: bytes


class Alike:
    """One route's likeness: `around` stands before the chain of tiers, `before` in front of a local tier."""

    def __init__(
        self,
        heart: Likeness,
        dialect: Dialect,
        *,
        clock: Callable[[], float],
        dice: Callable[[], float],
        embed: Embed | None = None,
        embed_s_max: float = 0.05,
        cosine_min: float | None = None,
        tenant_headers: tuple[bytes, ...] = (),
        idle_headers: frozenset[bytes] = frozenset(),
        aliases: bool = False,
    ) -> None:
        self._heart = heart
        self._dialect = dialect
        self._clock = clock
        self._dice = dice
        self._embed = embed
        self._embed_s_max = embed_s_max
        self._cosine_min = cosine_min
        self._manners = Scope(b"", tenant_headers, idle_headers)
        self._aliases = aliases
        self._verifying: set[asyncio.Task[None]] = set()

    def around(self, service: Service) -> Service:
        """Answer calls of `service` by likeness where that is allowed, and learn from its answers."""

        async def likened(call: Call) -> Answer:
            if call.kind == "retrieve":
                return await self._search(call, service)
            if call.kind == "generate":
                return await self._generate(call, service)
            return await service(call)

        return likened

    def before(self, service: Service) -> Service:
        """Where all upstreams have failed: what one of them answered to a call that is alike, or `service`."""

        async def remembered(call: Call) -> Answer:
            return await self.last_word(call) or await service(call)

        return remembered

    async def last_word(self, call: Call) -> Answer | None:
        """What may be given when no upstream answers."""
        if self._heart.rules.mode not in ("fallback", "serve"):
            return None
        if call.kind == "retrieve":
            searched = search_of(call, self._dialect, self._manners)
            return None if searched is None else self._neighbours(searched, self._heart.rules.fallback_ttl_s)
        if call.kind == "generate":
            prompted = prompt_of(call, self._dialect, self._manners)
            return None if prompted is None else await self._told(call, prompted, self._heart.rules.fallback_ttl_s)
        return None

    async def _or_last_word(self, call: Call, service: Service) -> Answer:
        """What `service` answers; where it has no answer, or only an upstream's error, what is remembered."""
        try:
            answer = await service(call)
        except (Refused, Failed):
            # the very answer, however old, goes before one like it
            kept = None if call.kept else await self.last_word(call)
            if kept is None:
                raise
            return kept
        if (answer.status < 500 and answer.status != 429) or call.kept:
            return answer
        kept = await self.last_word(call)
        if kept is None:
            return answer
        if answer.stream is not None:
            answer.stream.close()
        return kept

    def _is_proof(self, call: Call, answer: Answer) -> bool:
        """Whether an answer is the upstream's own word, to be kept and compared."""
        is_own = answer.status == 200 and answer.tier == "primary" and answer.source != SOURCE and not call.faults
        # nor is what the caller, or the upstream, wants nobody to keep
        return is_own and wishes_of(call.request).writes and told_s(answer) is not None

    # --- retrieval -------------------------------------------------------------------------------------------------

    async def _search(self, call: Call, service: Service) -> Answer:
        heart = self._heart
        searched = search_of(call, self._dialect, self._manners)
        if searched is None or not wishes_of(call.request).reads:
            heart.count("passed")
            return await service(call)
        if heart.rules.mode == "serve":
            answer = self._neighbours(searched, heart.rules.ttl_s)
            if answer is not None:
                return answer
        elif self._near(searched, heart.rules.ttl_s) is not None:
            heart.count("would")
        homes = heart.lists.homes(self._dialect.collection_of(call.request), aliases=self._aliases)
        stamp, settled = stamp_of(homes), is_settled(homes, self._clock())
        answer = await self._or_last_word(call, service)
        is_whole = answer.stream is None and len(answer.body) <= ANSWER_BYTES_MAX
        if settled and is_whole and self._is_proof(call, answer):
            page = Page([each for each in answer.headers if each[0].lower() in _KEPT_HEADERS], answer.body)
            size = len(answer.body) + OVERHEAD_BYTES
            heart.lists.keep(searched.scope, homes, stamp, searched.vector, page, size, self._clock(), heart.rules)
        return answer

    def _near(self, searched: Searched, age_s_max: float) -> Any:
        cosine_min = self._cosine_min or COSINE_MIN["retrieve"]
        return self._heart.lists.nearest(searched.scope, searched.vector, self._clock(), cosine_min, age_s_max)

    def _neighbours(self, searched: Searched, age_s_max: float) -> Answer | None:
        near = self._near(searched, age_s_max)
        if near is None:
            return None
        self._heart.count("served")
        page: Page = near.answer
        headers = [*page.headers, (b"age", b"%d" % max(0, near.age_s))]
        why = f"a search at cosine {near.cosine:.3f} was answered so"
        return Answer(200, headers, page.body, tier=SOURCE, source=SOURCE, reason=why)

    # --- answers ---------------------------------------------------------------------------------------------------

    async def _generate(self, call: Call, service: Service) -> Answer:
        heart = self._heart
        prompted = prompt_of(call, self._dialect, self._manners)
        if prompted is None or not wishes_of(call.request).reads:
            heart.count("passed")
            return await service(call)
        if heart.rules.mode == "serve":
            answer = await self._told(call, prompted, heart.rules.ttl_s, sampled=True)
            if answer is not None:
                return answer
        before = self._find(prompted)
        answer = await self._or_last_word(call, service)
        if self._is_proof(call, answer) and not answer.packed:
            if answer.stream is None:
                self._learn(prompted, before, answer.body)
            else:
                answer.stream = Recorded(
                    answer.stream, ANSWER_BYTES_MAX, lambda body: self._learn(prompted, before, body)
                )
        return answer

    def _find(self, prompted: Prompted) -> Told | None:
        age_s_max = self._heart.rules.fallback_ttl_s
        return self._heart.answers.find(prompted.scope, prompted.wording, self._clock(), age_s_max)

    async def _told(self, call: Call, prompted: Prompted, age_s_max: float, *, sampled: bool = False) -> Answer | None:
        """The answer kept for a question that is alike, where its bucket may be served; `sampled`: but for the share
        that is asked upstream all the same, so that what was learnt stays true."""
        heart = self._heart
        now = self._clock()
        told = heart.answers.find(prompted.scope, prompted.wording, now, age_s_max)
        grade = prompted.wording.grade(told.wording) if told is not None else None
        if told is None or grade is None:
            return None
        if not heart.permission.allows_any(grade, now, heart.rules.false_share_max):
            return None
        # never more than half of what is left: whoever is asked next needs the rest
        left_s = min(call.until, call.deadline) - now
        wait_s = min(self._embed_s_max if sampled else LAST_WORD_S_MAX, left_s / 2)
        bucket = await self._bucket(prompted, told, grade, now + wait_s)
        if bucket is None or not heart.permitted(bucket, now):
            return None
        if sampled and self._dice() < heart.rules.verify_share:
            heart.count("sampled")
            return None
        heart.count("served")
        written: Written = told.answer
        answer = self._dialect.generated(prompted.ask, replace(written, id=call.id or written.id, source=SOURCE))
        answer.headers = [*answer.headers, (b"age", b"%d" % max(0.0, now - told.at))]
        answer.tier = answer.source = SOURCE
        answer.reason = f"a question alike was answered so ({bucket.label})"
        return answer

    async def _bucket(self, prompted: Prompted, told: Told, grade: Grade, until: float) -> Bucket | None:
        """Where a hit belongs, by the cosine of the two questions; None where that can't be known now, or is low."""
        vectors = await self._vectors([prompted.question, *([told.text] if told.vector is None else [])], until)
        if vectors is None:
            self._heart.count("not_embedded")
            return None
        if told.vector is None:
            told.vector = vectors[1]
        cosine = float(vectors[0] @ told.vector)
        return bucket_of(grade, cosine) if cosine >= (self._cosine_min or COSINE_MIN["generate"]) else None

    async def _vectors(self, texts: list[str], until: float) -> NDArray[np.float32] | None:
        if self._embed is None:
            return None
        try:
            return await self._embed(texts, until)
        except Exception as fault:
            # whatever it is, it is no fault of the call's
            log.debug("not embedded: %s", fault)
            return None

    def _learn(self, prompted: Prompted, before: Told | None, body: bytes) -> None:
        """Keep the upstream's answer, and compare it with the one kept when it was asked for; calls that shared one
        answer are one comparison."""
        heart = self._heart
        written = self._dialect.said(body) if len(body) <= ANSWER_BYTES_MAX else None
        if written is None:
            return
        grade = prompted.wording.grade(before.wording) if before is not None else None
        if before is not None and grade is not None and self._find(prompted) is before:
            heart.count("would")
            self._verify(prompted, before, grade, written.text)
        size = 2 * len(prompted.question) + len(body) + OVERHEAD_BYTES
        kept = Told(prompted.question, prompted.wording, written, self._clock(), size)
        heart.answers.keep(prompted.scope, kept, heart.rules)

    def _verify(self, prompted: Prompted, told: Told, grade: Grade, text: str) -> None:
        if len(self._verifying) >= VERIFYING_MAX:
            self._heart.count("not_compared")
            return
        task = asyncio.get_running_loop().create_task(self._compared(prompted, told, grade, text))
        self._verifying.add(task)
        task.add_done_callback(self._verifying.discard)

    async def _compared(self, prompted: Prompted, told: Told, grade: Grade, text: str) -> None:
        """A verdict on a hit that was, or would have been, served; none where the vectors it takes can't be had."""
        until = self._clock() + VERIFY_S_MAX
        bucket = await self._bucket(prompted, told, grade, until)
        if bucket is None:
            return
        written: Written = told.answer
        verdict = compare_answers(written.text, text)
        same = verdict.same
        if same and verdict.cosine_min is not None:
            pair = await self._vectors([written.text, text], until)
            if pair is None:
                self._heart.count("not_embedded")
                return
            same = float(pair[0] @ pair[1]) >= verdict.cosine_min
        self._heart.permission.judged(bucket, self._clock(), same=same)


def likeness_of(
    route: Route,
    dialect: Dialect,
    town: Town,
    before: Likeness | None,
    *,
    clock: Callable[[], float],
    dice: Callable[[], float],
    embed: Embed | None,
) -> tuple[Likeness | None, Alike | None]:
    """The heart and the shell for a route whose settings ask for it, or nothing where no two calls can be alike."""
    if KINDS.get(dialect.name) not in COSINE_MIN:
        return None, None
    rules = route.likeness
    # whoever is asked otherwise is somebody else: neither what was answered nor what was learnt holds for them
    of = repr([[repr(getattr(tier, name, None)) for name in _IDENTITY] for tier in route.tiers] + [route.space])
    heart = before if before is not None and before.of == of else Likeness(rules, town, of)
    heart.rules = rules
    alike = Alike(
        heart,
        dialect,
        clock=clock,
        dice=dice,
        embed=embed,
        embed_s_max=rules.embed_s_max,
        cosine_min=rules.cosine_min,
        tenant_headers=tuple(name.lower().encode("latin-1", "replace") for name in rules.tenant_headers),
        idle_headers=frozenset(name.lower().encode("latin-1", "replace") for name in route.cache.idle_headers),
        aliases=dialect.aliases and route.cache.aliases,
    )
    return heart, alike
