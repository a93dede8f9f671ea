"""Cohere's chat, second version: `POST …/v2/chat`, whole or as a stream of named server-sent events.

    event: message-start                 who answers: no content
    event: content-start                 an empty text or thought: no content
    event: content-delta                 content: the stream is primed; so do tool plans, tool calls and citations
    event: message-end                   why it stopped, and the end; ERROR and TIMEOUT are failures

Its SDK raises for no event, whatever it says (7.3, tried): a stream that breaks gets a `message-end` of ERROR, for
those who look, and is then left without the end that HTTP asks for, which the SDK does raise. Documents that came with
the prompt are what is quoted from.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from understudy.policies.service import Answer, Call, Failed, Headers, HeldStream, Refused, Request
from understudy.proxy.asks import GenerateAsk, Written
from understudy.proxy.dialects.base import (
    SPACE,
    BadRequest,
    Malformed,
    Primed,
    asked_once,
    is_encoded,
    json_answer,
    looks_like_object,
    parsed,
    parsed_or_none,
)
from understudy.proxy.dialects.generating import EVENT_HEADERS, asks_for_stream, failed_inside, pieces_of
from understudy.proxy.dialects.plain import Plain
from understudy.proxy.dialects.sse import events

DOCUMENTS_MAX = 1_000
LONG_BYTES = 4096
END_BYTES = 1024
DONE = b"[DONE]"
_ROLES = frozenset({"user", "assistant", "system", "tool"})
_BROKEN = frozenset({"ERROR", "TIMEOUT"})
_SILENT = frozenset({"message-start", "content-end", "tool-call-end", "citation-end", "debug"})


class _Body(msgspec.Struct):
    messages: list[dict[str, Any]] | None = None
    model: str = ""
    stream: bool | None = None
    documents: list[str | dict[str, Any]] | None = None
    tools: list[Any] | None = None
    tool_choice: str | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None


class _Tokens(msgspec.Struct):
    input_tokens: float = 0
    output_tokens: float = 0


class _Usage(msgspec.Struct):
    tokens: _Tokens | None = None
    billed_units: _Tokens | None = None


class _Message(msgspec.Struct):
    content: list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None
    tool_plan: str | None = None
    citations: list[Any] | None = None


class _Answered(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None
    usage: _Usage | None = None


# Loose on purpose: a new kind of event must not make a stream unreadable.
class _Event(msgspec.Struct):
    type: Any = None
    delta: Any = None


_BODY = msgspec.json.Decoder(_Body)
_ANSWERED = msgspec.json.Decoder(_Answered)
_EVENT = msgspec.json.Decoder(_Event)


class CohereChat(Plain):
    """`cohere-chat`: a POST to `…/v2/chat` is of kind generate, everything else is passed through."""

    name = "cohere-chat"
    breaks_are_heard = False
    idle_fields = frozenset({"priority"})

    def read(self, request: Request) -> Call:
        """Looks for `stream` only. A body that is no JSON is the upstream's business while there is one."""
        is_chat = request.method == b"POST" and request.path.endswith(b"/v2/chat")
        call = Call("generate" if is_chat else "pass", request, dialect=self.name)
        call.wants_stream = is_chat and asks_for_stream(request.body)
        return call

    def ask(self, call: Call) -> GenerateAsk:
        """The prompt. Raises BadRequest where Cohere would answer 400, Refused for what one text cannot answer."""
        return asked_once(call, GenerateAsk, self._asked, "invalid request")

    def _asked(self, call: Call) -> GenerateAsk:
        if call.kind != "generate":
            raise Refused("unsupported", "only a POST to …/v2/chat asks for a text")
        body = parsed(_BODY, call.request.body)
        messages = _believed(body.messages)
        if body.logprobs:
            raise Refused("unsupported", "logprobs cannot be answered from passages")
        if any(map(_beyond_text, messages)):
            raise Refused("unsupported", "content other than text cannot be answered from passages")
        return GenerateAsk(
            (*_from_documents(body.documents or []), *messages),
            body.model,
            stream=body.stream is True,
            structured=_structure_asked(body),
        )

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what cannot be JSON, `error_in_200` for a message instead of an answer, or one that ended in
        an error."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if not looks_like_object(body):
            return "garbage"
        ends = body if len(body) <= LONG_BYTES else body[:END_BYTES] + body[-END_BYTES:]
        if b'"ERROR"' not in ends and b'"TIMEOUT"' not in ends and b'"finish_reason"' in ends:
            return ""
        try:
            answered = parsed(_ANSWERED, body)
        except Malformed:
            # an error has a sentence where an answer has its message
            return "error_in_200" if b'"message"' in ends and b'"finish_reason"' not in ends else ""
        return "error_in_200" if answered.finish_reason in _BROKEN else ""

    def primed(self, held: bytes) -> Primed:
        """`go` at the first words, thought, plan, call or citation, or at a sound end; starts are none."""
        if held[:64].lstrip(SPACE)[:1] in (b"{", b"<", b"["):
            raise Failed("garbage", "a stream was asked for, and no event stream came")
        for name, data in events(held):
            if data.strip() == DONE:
                return "go"
            event = parsed_or_none(_EVENT, data)
            if name == b"error" or (event is not None and event.type == "error"):
                raise failed_inside("error", ())
            if event is not None and _has_content(event):
                return "go"
        return "wait"

    def stream_complete(self, tail: bytes) -> bool:
        """Whether a `message-end` that is no error is among the last events; `tail` may begin inside an event."""
        for _, data in events(tail, ended=True):
            if b"message-end" in data:
                event = parsed_or_none(_EVENT, data)
                if event is not None and event.type == "message-end":
                    return not _is_error(event)
        return False

    def broken_off(self, reason: str) -> bytes:
        """A `message-end` of ERROR; the blank line in front ends an event that was cut short."""
        error = f"The answer broke off before its end ({reason})."
        return b"\n\n" + event_bytes("message-end", {"delta": {"error": error, "finish_reason": "ERROR"}})

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """A sentence; the reason stands in our own headers."""
        return json_answer(status, {"message": detail}, headers)

    def said(self, body: bytes) -> Written | None:
        """The text of an answer that came to its own end (`COMPLETE`), and has no other content."""
        try:
            if body[:64].lstrip(SPACE)[:1] == b"{":
                return _written(parsed(_ANSWERED, body))
            datas = [data for _, data in events(body, ended=True) if data.strip() != DONE]
            return _written(_put_together(datas))
        except (Malformed, msgspec.ValidationError):
            return None

    def generated(self, ask: GenerateAsk, written: Written) -> Answer:
        """The same text whole, or in pieces of a sentence or a line when a stream was asked for.

        A top-level `understudy` says that this is no model's answer; SDKs leave unknown fields alone. Nothing is
        billed.
        """
        note = {"understudy": {"fallback": written.source == "extractive", "source": written.source}}
        tokens = {"input_tokens": written.prompt_tokens, "output_tokens": written.completion_tokens}
        usage = {"billed_units": {"input_tokens": 0, "output_tokens": 0}, "tokens": tokens}
        if not ask.stream:
            message = {"role": "assistant", "content": [{"type": "text", "text": written.text}]}
            told = {"id": written.id, "finish_reason": "COMPLETE", "message": message, "usage": usage}
            return json_answer(200, told | note)
        begun: dict[str, Any] = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        empty = {"message": {"content": {"type": "text", "text": ""}}}
        stream = [
            event_bytes("message-start", {"id": written.id, "delta": {"message": begun}, **note}),
            event_bytes("content-start", {"index": 0, "delta": empty}),
        ]
        deltas = [{"message": {"content": {"text": piece}}} for piece in pieces_of(written.text)]
        stream += [event_bytes("content-delta", {"index": 0, "delta": delta}) for delta in deltas]
        stream.append(event_bytes("content-end", {"index": 0}))
        stream.append(event_bytes("message-end", {"delta": {"finish_reason": "COMPLETE", "usage": usage}}))
        return Answer(200, list(EVENT_HEADERS), stream=HeldStream(stream))


def event_bytes(name: str, fields: dict[str, Any]) -> bytes:
    """One event, whose data repeats its name as `type`."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name} | fields))


# --- reading -------------------------------------------------------------------------------------------------------


def _believed(messages: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if not messages:
        raise BadRequest("invalid request: at least one message must be given")
    for message in messages:
        if message.get("role") not in _ROLES:
            raise BadRequest(f"invalid request: a message's role must be one of {', '.join(sorted(_ROLES))}")
    return list(messages)


def _from_documents(documents: list[str | dict[str, Any]]) -> list[dict[str, Any]]:
    """The documents that came beside the messages, as a context that stands in the prompt."""
    texts = [text for each in documents[:DOCUMENTS_MAX] if (text := _document(each))]
    if not texts:
        return []
    context = "\n\n".join(f"[{n}] {text}" for n, text in enumerate(texts, 1))
    return [{"role": "system", "content": f"Context:\n\n{context}"}]


def _document(document: str | dict[str, Any]) -> str:
    data = document if isinstance(document, str) else document.get("data")
    if isinstance(data, dict):
        fields = cast("dict[str, Any]", data)
        # its other fields are titles and addresses; nobody said which of them is to be read
        data = fields.get("text", fields.get("snippet"))
        title = fields.get("title")
        if isinstance(data, str) and isinstance(title, str) and title:
            return f"{title}\n{data}"
    return data if isinstance(data, str) else ""


def _structure_asked(body: _Body) -> str:
    """Which structure the caller wants the answer in, or ''."""
    if body.tools and body.tool_choice != "NONE":
        return "tools"
    kind = (body.response_format or {}).get("type")
    return "" if kind in (None, "text") else str(kind)[:32]


def _beyond_text(message: dict[str, Any]) -> bool:
    content: Any = message.get("content")
    if message.get("tool_calls"):
        return True
    if not isinstance(content, list):
        return False
    parts = cast("list[Any]", content)
    return any(not isinstance(part, dict) or cast("dict[str, Any]", part).get("type") != "text" for part in parts)


# --- streams -------------------------------------------------------------------------------------------------------


def _has_content(event: _Event) -> bool:
    """Whether an application could act on anything in an event. Raises Failed for an end that is an error."""
    if event.type == "message-end":
        if _is_error(event):
            raise failed_inside(str(_delta(event).get("finish_reason"))[:32].lower(), ())
        return True
    if event.type in _SILENT:
        return False
    if event.type in ("content-start", "content-delta"):
        return any(value for name, value in _content(event).items() if name != "type")
    # what we cannot read is not ours to hold back
    return True


def _is_error(event: _Event) -> bool:
    """Whether an end is the end of an answer that broke."""
    return _delta(event).get("finish_reason") in _BROKEN or bool(_delta(event).get("error"))


def _delta(event: _Event) -> dict[str, Any]:
    return cast("dict[str, Any]", event.delta) if isinstance(event.delta, dict) else {}


def _content(event: _Event) -> dict[str, Any]:
    """What an event adds to the message's content."""
    message = _delta(event).get("message")
    content = cast("dict[str, Any]", message).get("content") if isinstance(message, dict) else None
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _put_together(datas: list[bytes]) -> _Answered:
    """The answer that a stream's events tell. Raises Malformed for one with more than a text."""
    whole, text = _Answered(_Message([])), ""
    for data in datas:
        event = parsed(_EVENT, data)
        if event.type in ("content-start", "content-delta"):
            content = _content(event)
            if content.get("type", "text") != "text" or content.keys() - {"type", "text"}:
                raise Malformed("more than a text")
            text += str(content.get("text") or "")
        elif event.type == "message-end":
            end = msgspec.convert(_delta(event), _Answered)
            whole.finish_reason, whole.usage = end.finish_reason, end.usage
        elif event.type not in _SILENT:
            raise Malformed("more than a text")
    assert whole.message is not None
    whole.message.content = [{"type": "text", "text": text}]
    return whole


def _written(answered: _Answered) -> Written | None:
    message = answered.message
    if message is None or answered.finish_reason != "COMPLETE":
        return None
    if message.tool_calls or message.citations or message.tool_plan:
        return None
    parts = message.content or []
    text = "".join(str(part.get("text") or "") for part in parts)
    if not text.strip() or any(part.get("type") != "text" for part in parts):
        return None
    usage = answered.usage or _Usage()
    tokens = usage.tokens or usage.billed_units or _Tokens()
    return Written(text, "", int(tokens.input_tokens), int(tokens.output_tokens))
