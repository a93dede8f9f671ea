"""A stream that breaks in the middle is gone on with by somebody else: plain text, from what was said.

    tier --events--> caller        every whole event is passed on, and remembered
      x  it breaks
    another tier, asked the same and given what was said  --what is new of it, in the same message--> caller

Nobody else can go on with tools, JSON, several choices, log probabilities or thoughts; then, and where nobody wants to,
the caller is told of the break as it would have been without this. Of what others answer to being asked, an error
included, the caller hears nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from understudy.policies.chain import Link
from understudy.policies.deadline import Deadline
from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Request, Service, Sink, Stream
from understudy.policies.service import Begun as BegunAnswer
from understudy.policies.streaming import whole_to
from understudy.proxy.dialects.base import Malformed
from understudy.proxy.dialects.prefill import Splice, plain_text_only, prefilled, resumed, tokens_in
from understudy.proxy.dialects.translate import (
    EVENT_BYTES_MAX,
    Begun,
    Broke,
    Ended,
    Hearing,
    Prompt,
    Readable,
    Said,
    Telling,
    Words,
)
from understudy.proxy.dialects.translate_openai import CompletionsReading
from understudy.proxy.settings.settings import Route, UpstreamTier
from understudy.proxy.tiers.translating import WIRES

log = logging.getLogger("understudy.streams")

TOLD_BYTES_MAX = 4 * 1024 * 1024
"""How much of a stream is remembered; a longer one is not gone on with."""
CONTINUATIONS_MAX = 2
"""How often one stream is gone on with."""
_NOTHING = Prompt("", ())
GOES_ON: Mapping[str, Readable] = MappingProxyType({**WIRES, CompletionsReading.name: CompletionsReading()})
"""The dialects whose streams can be gone on with."""


def prefilling(service: Service, dialect: str, *, can: bool) -> Service:
    """`service`, an upstream of `dialect`, which goes on with an answer that was begun if it `can`; else it refuses."""

    def going_on(call: Call) -> Awaitable[Answer]:
        return service(call) if call.begun is None else begun(call, call.begun)

    async def begun(call: Call, answer: BegunAnswer) -> Answer:
        if not can:
            raise Refused("prefill", "it can't go on with what another has said")
        request = call.request
        body = prefilled(dialect, request.body, answer.text, answer.tokens)
        headers = [header for header in request.headers if header[0].lower() != b"content-encoding"]
        inner = call.fork()
        inner.request = Request(request.method, request.target, headers, body, path=request.path)
        inner.request.hop = request.hop
        inner.asked, inner.trail, inner.tried = None, call.trail, call.tried
        return await service(inner)

    return going_on


def prefilled_by(route: Route, tier: UpstreamTier, service: Service) -> Service:
    """`service`, the upstream of this tier, as it is asked where the route's streams are gone on with."""
    if not is_continued(route):
        return service
    return prefilling(service, tier.speaks or route.dialect, can=tier.prefill)


def is_continued(route: Route) -> bool:
    """Whether streams of this route that break are gone on with."""
    return route.stream.after_first_content == "continue" and route.dialect in GOES_ON


def continuations_of(
    route: Route, links: Sequence[Link], heart: Deadline, clock: Callable[[], float]
) -> Continuations | None:
    """Who goes on with the route's streams, by its own tiers; None where nobody does."""
    if not is_continued(route):
        return None
    tiers = [tier for tier in route.tiers if isinstance(tier, UpstreamTier)]
    prefill = [tier.name for tier in tiers if tier.prefill or any(each.prefill for each in tier.endpoints)]
    several = [tier.name for tier in tiers if len(tier.endpoints) > 1]
    return Continuations(GOES_ON[route.dialect], links, frozenset(prefill), frozenset(several), heart, clock)


class Continuations:
    """Who goes on with the streams of one route. `results` counts what came of breaks."""

    def __init__(
        self,
        wire: Readable,
        links: Sequence[Link],
        prefill: frozenset[str],
        several: frozenset[str],
        heart: Deadline,
        clock: Callable[[], float],
    ) -> None:
        """`prefill` names the links that can go on, `several` those of more than one endpoint."""
        self.wire = wire
        self.is_lines = wire.stream_type == b"application/x-ndjson"
        self._links = links
        self._prefill = prefill
        self._several = several
        self._heart = heart
        self._clock = clock
        self.results = {"continued": 0, "unfit": 0, "failed": 0}

    def goes_on_from(self, before: Continuations | None) -> None:
        """Count on, over a reload."""
        if before is not None:
            self.results = before.results

    def around(self, service: Service) -> Service:
        """`service`, the chain of these links, whose broken streams are gone on with."""

        async def mended(call: Call) -> Answer:
            answer = await service(call)
            stream = answer.stream
            if stream is not None and call.wants_stream and answer.status == 200 and _is_readable(answer, stream):
                answer.stream = Continued(stream, call, answer.source, self)
            return answer

        return mended

    async def next_stream(self, call: Call, said: BegunAnswer, source: str) -> tuple[Stream, str] | None:
        """A stream that goes on from what was said, and whose it is; None where nobody does. Nothing is raised."""
        now = self._clock()
        asked = call.fork()
        asked.trail, asked.begun = [], said if said.text else None
        asked.deadline = self._heart.for_call(now, None)
        candidates = self._candidates(said.text, source)
        for link in candidates:
            is_last = link is candidates[-1]
            asked.until = self._heart.for_tier(self._clock(), asked.deadline, last=is_last)
            assert link.service is not None
            try:
                answer = await link.service(asked)
            except (Refused, Failed) as without:
                link.count("refused" if isinstance(without, Refused) else "failed", without.reason)
                continue
            stream = answer.stream
            if stream is not None and answer.status == 200 and _is_readable(answer, stream, held=True):
                link.count("answered", "continued")
                return stream, link.name
            link.count("caller", "prefill")
            if stream is not None:
                stream.close()
        return None

    def _candidates(self, said: str, source: str) -> list[Link]:
        """Who may go on: the endpoint whose stream broke is not asked, and before a word was said anybody is."""
        names = [link.name for link in self._links]
        # an endpoint of several calls itself by both names
        tier = source.partition("/")[0]
        failed = names.index(tier) if tier in names else -1
        return [
            link
            for at, link in enumerate(self._links)
            if link.service is not None
            and (not said or link.name in self._prefill)
            and (at > failed or (at == failed and link.name in self._several))
        ]


def _is_readable(answer: Answer, stream: Stream, *, held: bool = False) -> bool:
    # what is held by us breaks nowhere
    return not answer.packed and stream.length is None and (held or not isinstance(stream, HeldStream))


class Continued(Stream):
    """A stream in the caller's words, of whoever is left to go on with it."""

    __slots__ = (
        "_by",
        "_call",
        "_continuations",
        "_hearing",
        "_inner",
        "_is_paused",
        "_last_words",
        "_sink",
        "_splice",
        "_spliced",
        "_task",
        "_telling",
        "_tokens",
        "_told",
        "_told_bytes",
        "_unread",
        "_usage",
        "mended",
    )

    def __init__(self, inner: Stream, call: Call, source: str, by: Continuations) -> None:
        super().__init__()
        self._inner: Stream | None = inner
        self._call = call
        self._by = by
        self._sink: Sink | None = None
        self._is_paused = False
        self._unread = b""
        self._told: list[bytes] | None = []
        self._told_bytes = 0
        self._last_words = b""
        self._spliced = source
        self._hearing: Hearing | None = None
        self._telling: Telling | None = None
        self._splice = Splice("")
        self._usage = (0, 0)
        self._continuations = 0
        self._tokens = 0
        self._task: asyncio.Task[None] | None = None
        self.mended = False

    # --- the caller's side -------------------------------------------------------------------------------------------

    def relay(self, sink: Sink) -> None:
        self._sink = sink
        if self._inner is not None:
            self._inner.relay(self)

    def pause(self) -> None:
        self._is_paused = True
        if self._inner is not None:
            self._inner.pause()

    def resume(self) -> None:
        self._is_paused = False
        if self._inner is not None:
            self._inner.resume()

    def close(self) -> None:
        self._sink = None
        self.finish("left")
        if self._task is not None:
            self._task.cancel()
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.close()

    # --- the inner stream's side -------------------------------------------------------------------------------------

    def write(self, chunk: bytes) -> None:
        if self._sink is None or self._inner is None:
            return
        unread = self._unread + chunk if self._unread else chunk
        at = whole_to(unread, is_lines=self._by.is_lines)
        # an event that is cut short stays here: what goes on behind half of one would be no event either
        whole, self._unread = unread[:at], unread[at:]
        if len(self._unread) > EVENT_BYTES_MAX:
            # it is longer than any event: it goes as it comes, and whoever broke it off is not followed by anybody
            whole, self._unread, self._told = unread, b"", None
        if not whole:
            return
        if b'"error"' in whole and self._breaks(whole):
            self._last_words = whole
            inner = self._inner
            inner.spoil()
            self._broke("error_in_stream")
        elif self._hearing is not None:
            self._tell(self._hearing, whole)
        else:
            self._pass_on(whole)

    def end(self) -> None:
        self._inner = None
        if self._hearing is not None:
            # never without its own end
            self._broke("truncated")
            return
        if self._unread:
            self._pass_on(self._unread)
        self._over("")

    def cut(self, reason: str) -> None:
        self._broke(reason)

    def _breaks(self, whole: bytes) -> bool:
        try:
            return any(isinstance(said, Broke) for said in self._by.wire.hearing(_NOTHING).hear(whole))
        except Malformed:
            return True

    def _pass_on(self, piece: bytes) -> None:
        told = self._told
        if told is not None:
            self._told_bytes += len(piece)
            if self._told_bytes > TOLD_BYTES_MAX:
                self._told = None
            else:
                told.append(piece)
        if self._sink is not None:
            self._sink.write(piece)

    # --- going on ----------------------------------------------------------------------------------------------------

    def _broke(self, reason: str) -> None:
        self._inner = None
        if self._sink is None:
            return
        if self._told is None or self._continuations >= CONTINUATIONS_MAX:
            self._give_up(reason, "unfit")
            return
        self._continuations += 1
        self._unread, self._hearing = b"", None
        self._task = asyncio.get_running_loop().create_task(self._go_on(reason, b"".join(self._told)))

    async def _go_on(self, reason: str, told: bytes) -> None:
        try:
            await self._gone_on(reason, told)
        except Exception:
            log.exception("a stream on route %s could not be gone on with", self._call.route)
            self._give_up(reason, "failed")
        finally:
            self._task = None

    async def _gone_on(self, reason: str, told: bytes) -> None:
        by = self._by
        try:
            prompt = _plain(by.wire.read(self._call.request.body, self._call.request.path))
            said, pieces, begun = _heard(by.wire, told)
            telling = resumed(by.wire.name, told, prompt)
        except (Refused, Malformed):
            self._give_up(reason, "unfit")
            return
        tokens = tokens_in(said, pieces)
        if prompt.tokens_max is not None and tokens >= prompt.tokens_max:
            self._usage = (begun, tokens)
            self._end_with(telling, Ended("length"))
            return
        found = await by.next_stream(self._call, BegunAnswer(said, tokens), self._spliced)
        if found is None:
            self._give_up(reason, "failed")
            return
        stream, source = found
        if self._sink is None:
            stream.close()
            return
        self.mended = True
        by.results["continued"] += 1
        self._spliced, self._usage = source, (begun, tokens)
        self._hearing, self._telling, self._splice = by.wire.hearing(prompt), telling, Splice(said)
        self._inner = stream
        if not by.is_lines:
            self._pass_on(b": understudy: %b goes on\n\n" % source.encode())
        if self._is_paused:
            stream.pause()
        stream.relay(self)

    def _tell(self, hearing: Hearing, whole: bytes) -> None:
        """What is new of the stream that goes on, in the message that was begun."""
        telling = self._telling
        assert telling is not None
        try:
            for said in hearing.hear(whole):
                if isinstance(said, Ended):
                    self._end_with(telling, said)
                    return
                if isinstance(said, Words) and (new := self._splice.take(said.text)):
                    self._pass_on(telling.tell(Words(new)))
        except Malformed:
            inner = self._inner
            if inner is not None:
                inner.spoil()
            self._broke("garbage")

    def _end_with(self, telling: Telling, ended: Ended) -> None:
        """The end, with what both have cost."""
        prompt_tokens, tokens = self._usage
        rest = self._splice.rest()
        end = replace(
            ended,
            prompt_tokens=ended.prompt_tokens + prompt_tokens,
            completion_tokens=ended.completion_tokens + tokens,
        )
        self._pass_on((telling.tell(Words(rest)) if rest else b"") + telling.tell(end))
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.watch(lambda _end: None)
            inner.relay(_Nowhere())
        self._over("")

    def _give_up(self, reason: str, result: str) -> None:
        if self._sink is None:
            return
        self._by.results[result] += 1
        if self._last_words:
            # what the upstream itself said of it
            self._sink.write(self._last_words)
        self._over(reason)

    def _over(self, broken: str) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        self.finish("cut" if broken else "done")
        if broken:
            sink.cut(broken)
        else:
            sink.end()


class _Nowhere:
    """Takes what comes behind the end, so that a connection is whole again."""

    def write(self, chunk: bytes) -> None: ...
    def end(self) -> None: ...
    def cut(self, reason: str) -> None: ...


def _plain(prompt: Prompt) -> Prompt:
    """A prompt that asks for nothing but words. Raises Refused for any other."""
    if prompt.schema is not None or (prompt.tools and prompt.choice != "none"):
        raise Refused("prefill", "only plain text can be gone on with")
    return prompt


def _heard(wire: Readable, told: bytes) -> tuple[str, int, int]:
    """What was said so far, in how many pieces, and the prompt's tokens where they were told. Raises Malformed for more
    than words, or for an answer that has ended."""
    if not plain_text_only(told):
        raise Malformed("more than words")
    text: list[str] = []
    prompt_tokens = 0
    hearing = wire.hearing(_NOTHING)
    saids: list[Said] = [*hearing.hear(told), *hearing.over()]
    for said in saids:
        match said:
            case Begun():
                prompt_tokens = said.prompt_tokens
            case Words():
                text.append(said.text)
            case _:
                raise Malformed("more than words")
    return "".join(text), len(text), prompt_tokens
