"""An upstream of another provider, asked in its own words and answered for in the caller's.

    Call --read--> Prompt --write--> a request with the provider's own auth --> upstream
    Answer or Stream in the caller's dialect <--told-- Reply or Saids <--reply, hearing-- upstream

It stands round the upstream tier alone, so that breakers, retries and quotas see one upstream like any other, and it is
there only where a tier says `speaks`. Of the caller's headers only those go on that say nothing of who asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import msgspec

from understudy.policies.service import (
    Answer,
    Call,
    End,
    Failed,
    Header,
    Headers,
    HeldStream,
    Refused,
    Request,
    Service,
    Sink,
    Stream,
)
from understudy.proxy.dialects.base import Dialect, Malformed, parsed
from understudy.proxy.dialects.translate import (
    Broke,
    Ended,
    Hearing,
    Prompt,
    Said,
    Signature,
    Telling,
    Wire,
    refuse,
    saids_of,
)
from understudy.proxy.dialects.translate_anthropic import AnthropicWire
from understudy.proxy.dialects.translate_ollama import OllamaWire
from understudy.proxy.dialects.translate_openai import AzureWire, OpenAIWire
from understudy.proxy.dialects.translate_responses import ResponsesWire
from understudy.proxy.settings.settings import UpstreamTier
from understudy.proxy.tiers.judging import error_said

WIRES: Mapping[str, Wire] = MappingProxyType(
    {wire.name: wire for wire in (OpenAIWire(), AnthropicWire(), OllamaWire(), AzureWire(), ResponsesWire())}
)
ANY_MODEL = "*"
# whoever asks is known by all the others: keys, cookies, organisations, and headers of the first provider's own
_GO_ON = frozenset((b"user-agent", b"traceparent", b"tracestate"))
_COME_BACK = (b"anthropic-ratelimit-", b"x-ratelimit-", b"ratelimit", b"retry-after", b"x-upstream-request-id")
# a status of Anthropic's alone
_STATUSES = {529: 503}
_NOT_TRANSLATIONS_FAULT = "content_filter"
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_ANYTHING = msgspec.json.Decoder()


def translating(
    service: Service, settings: UpstreamTier, dialect: Dialect, *, clock: Callable[[], float] = time.time
) -> Service:
    """`service`, which asks an upstream that speaks `settings.speaks`, for callers of `dialect`.

    Raises Refused (`untranslatable`, `model`) for what this provider can't be asked. `clock` tells the time since the
    epoch.
    """
    assert settings.speaks is not None
    if settings.speaks == dialect.name:
        return _Renaming(service, settings, dialect, clock).answer
    return _Translating(service, settings, dialect, clock).answer


class _Renaming:
    """Another provider of the caller's own dialect: another key, and other names for the models."""

    def __init__(self, service: Service, settings: UpstreamTier, dialect: Dialect, clock: Callable[[], float]) -> None:
        self.service = service
        self.settings = settings
        self.dialect = dialect
        self.clock = clock

    async def answer(self, call: Call) -> Answer:
        if call.kind == "pass":
            raise Refused("untranslatable", "only prompts can be put to this provider")
        request = call.request
        body = self._renamed(request.body)
        # without the query, in which there may be a key
        inner = Request(request.method, request.path, _headers(request, ()), body)
        return await self.asked(call, inner, self.dialect.name)

    async def asked(self, call: Call, request: Request, dialect: str) -> Answer:
        """The upstream's answer to `request` in the place of the call's own."""
        request.hop = call.request.hop
        inner = call.fork()
        inner.kind, inner.request, inner.dialect, inner.asked = call.kind, request, dialect, None
        inner.trail, inner.tried = call.trail, call.tried
        try:
            return await self.service(inner)
        finally:
            call.attempts += inner.attempts
            call.upstream_s += inner.upstream_s
            call.trace = inner.trace

    def model(self, asked: str) -> str:
        """What the model is called here. Raises Refused where no model stands for it."""
        models = self.settings.models
        if not models:
            return asked
        name = models.get(asked) or models.get(ANY_MODEL)
        if name is None:
            raise Refused("model", f"no model of {self.settings.name} stands for {asked[:64]!r}")
        return name

    def _renamed(self, body: bytes) -> bytes:
        if not self.settings.models:
            return body
        try:
            fields = parsed(_FIELDS, body)
            asked = parsed(_TEXT, fields.get("model", msgspec.Raw(b'""')))
        except Malformed:
            raise Refused("untranslatable", "the body is no JSON object that names a model") from None
        fields["model"] = msgspec.Raw(msgspec.json.encode(self.model(asked)))
        return msgspec.json.encode(fields)


class _Translating(_Renaming):
    """A provider of another dialect."""

    def __init__(self, service: Service, settings: UpstreamTier, dialect: Dialect, clock: Callable[[], float]) -> None:
        super().__init__(service, settings, dialect, clock)
        self.callers = WIRES[dialect.name]
        self.providers = WIRES[settings.speaks or ""]

    async def answer(self, call: Call) -> Answer:
        prompt, request = self._translated(call)
        try:
            answer = await self.asked(call, request, self.providers.name)
        except Failed as failed:
            if failed.answer is not None:
                failed.answer = self._error(failed.answer)
            raise
        if answer.status >= 400:
            return self._at_fault(answer)
        try:
            return self._told(answer, prompt, Signature(call.id, int(self.clock())))
        except Malformed as fault:
            if answer.stream is not None:
                answer.stream.close()
            raise Failed("garbage", f"an answer that can't be translated: {fault}") from None

    def _translated(self, call: Call) -> tuple[Prompt, Request]:
        """What is asked, and the request it makes here. Raises Refused."""
        if call.kind == "pass":
            refuse("what is no prompt")
        asked = call.request
        prompt = self.callers.read(asked.body, asked.path)
        prompt = replace(prompt, model=self.model(prompt.model))
        body = self.providers.write(prompt, self.settings.answer_tokens_max)
        return prompt, Request(b"POST", self.providers.path, _headers(asked, self.providers.headers), body)

    def _at_fault(self, answer: Answer) -> Answer:
        """What the provider finds wrong with the request may be our doing: the next tier is asked, and if nobody can
        answer, it is given back in the caller's words."""
        told = self._error(answer)
        if answer.fault == _NOT_TRANSLATIONS_FAULT:
            return told
        failed = Failed(answer.fault or f"status_{answer.status}", f"it answered {answer.status}", answer=told)
        failed.again, failed.fault = False, "caller"
        raise failed

    def _error(self, answer: Answer) -> Answer:
        codes, message = error_said(answer)
        status = _STATUSES.get(answer.status, answer.status)
        reason = answer.fault or (codes[0] if codes else "upstream_error")
        told = self.dialect.error(status, reason, message or "the provider gave no reason", headers=_kept(answer))
        told.source, told.fault = answer.source, answer.fault
        return told

    def _told(self, answer: Answer, prompt: Prompt, signature: Signature) -> Answer:
        """The provider's answer in the caller's words. Raises Malformed."""
        if answer.packed:
            raise Malformed("it is compressed, though nobody asked for that")
        content_type = self.callers.stream_type if prompt.stream else b"application/json"
        headers: Headers = [(b"content-type", content_type), *_kept(answer)]
        told = Answer(answer.status, headers, source=answer.source)
        if answer.stream is not None:
            if not prompt.stream:
                raise Malformed("a stream, though nobody asked for one")
            telling = self.callers.telling(prompt, signature)
            told.stream = Translated(answer.stream, self.providers.hearing(prompt), telling)
            return told
        reply = self.providers.reply(answer.body, prompt)
        if prompt.schema is not None and reply.end == "stop":
            parsed(_ANYTHING, reply.text.encode())
        if not prompt.stream:
            told.body = self.callers.told(reply, prompt, signature)
            return told
        telling = self.callers.telling(prompt, signature)
        told.stream = HeldStream([piece for said in saids_of(reply) if (piece := telling.tell(said))])
        return told


class Translated(Stream):
    """A provider's stream, read as it comes and told on in the caller's words; never a clean end without its own."""

    __slots__ = ("_hearing", "_inner", "_sink", "_telling", "_whole")

    def __init__(self, inner: Stream, hearing: Hearing, telling: Telling) -> None:
        super().__init__()
        self._inner = inner
        self._hearing = hearing
        self._telling = telling
        self._whole = False
        self._sink: Sink | None = None

    def relay(self, sink: Sink) -> None:
        self._sink = sink
        self._inner.relay(self)

    def pause(self) -> None:
        self._inner.pause()

    def resume(self) -> None:
        self._inner.resume()

    def close(self) -> None:
        self._sink = None
        self.finish("left")
        self._inner.close()

    # the inner stream's side

    def write(self, chunk: bytes) -> None:
        self._tell(lambda: self._hearing.hear(chunk))

    def end(self) -> None:
        self._tell(self._hearing.over)
        self._over("" if self._whole else "truncated")

    def cut(self, reason: str) -> None:
        self._over(reason)

    def _tell(self, heard: Callable[[], list[Said]]) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            saids = heard()
            broke = next((said.word for said in saids if isinstance(said, Broke)), "")
            told = b"".join([self._telling.tell(said) for said in saids if not isinstance(said, Broke)])
        except Malformed:
            told, saids, broke = b"", [], "garbage"
        self._whole = self._whole or any(isinstance(said, Ended) for said in saids)
        if told:
            sink.write(told)
        if broke:
            self._over("error_in_stream" if broke != "garbage" else broke)
            self._inner.close()

    def _over(self, broken: str) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        end: End = "cut" if broken else "done"
        self.finish(end)
        if broken:
            sink.cut(broken)
        else:
            sink.end()


def _headers(request: Request, own: Sequence[Header]) -> Headers:
    """What the provider is told of the caller: nothing that says who it is, and how we want the answer."""
    going_on = [header for header in request.headers if header[0].lower() in _GO_ON]
    return [(b"content-type", b"application/json"), (b"accept-encoding", b"identity"), *own, *going_on]


def _kept(answer: Answer) -> Headers:
    """The headers of an answer that are as true in another dialect."""
    return [header for header in answer.headers if header[0].lower().startswith(_COME_BACK)]
