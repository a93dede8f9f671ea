"""OpenAI's responses: `POST …/responses`, whole or as a stream of named server-sent events.

event: response.created, .in_progress, .output_item.added, .content_part.added     no content
event: response.output_text.delta       content: the stream is primed
event: error, response.failed           an error inside a 200
event: response.completed, .incomplete  the end, with the whole response once more
"""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Request
from understudy.proxy.asks import GenerateAsk, Written
from understudy.proxy.dialects.base import (
    SPACE,
    BadRequest,
    Malformed,
    Primed,
    asked_once,
    is_encoded,
    json_answer,
    parsed,
    parsed_or_none,
)
from understudy.proxy.dialects.generating import EVENT_HEADERS, asks_for_stream, failed_inside, pieces_of
from understudy.proxy.dialects.openai import UNREADABLE, OpenAI, error_name
from understudy.proxy.dialects.openai_chat import LASTING
from understudy.proxy.dialects.sse import events

_ENDS = frozenset({"response.completed", "response.incomplete"})
_BEGINNINGS = frozenset({"response.created", "response.queued", "response.in_progress"})
# A quotation mark inside a string is written \", so this can only be a key, wherever the bytes were cut.
_COUNTED = re.compile(rb'"total_tokens"\s*:\s*[0-9]')
_FAILED = re.compile(rb'"status"\s*:\s*"failed"')


class _Body(msgspec.Struct):
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    model: str = ""
    stream: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    text: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None


# Loose on purpose: a new kind of event must not make a stream unreadable.
class _Event(msgspec.Struct):
    type: Any = None
    delta: Any = None
    item: Any = None
    part: Any = None
    response: Any = None
    error: Any = None
    code: Any = None


class _Peek(msgspec.Struct):
    status: Any = None


_BODY = msgspec.json.Decoder(_Body)
_EVENT = msgspec.json.Decoder(_Event)
_STATUS = msgspec.json.Decoder(_Peek)


class OpenAIResponses(OpenAI):
    """`openai-responses`: a POST to `…/responses` is of kind generate, everything else is passed through."""

    name = "openai-responses"
    idle_fields = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})

    def read(self, request: Request) -> Call:
        """Looks for `stream` only. A body that is no JSON is the upstream's business while there is one."""
        asks = request.method == b"POST" and request.path.endswith(b"/responses")
        call = Call("generate" if asks else "pass", request, dialect=self.name)
        call.wants_stream = asks and asks_for_stream(request.body)
        return call

    def ask(self, call: Call) -> GenerateAsk:
        """The prompt. Raises BadRequest where OpenAI would answer 400, Refused for what one text cannot answer."""
        return asked_once(call, GenerateAsk, self._asked, UNREADABLE)

    def _asked(self, call: Call) -> GenerateAsk:
        if call.kind != "generate":
            raise Refused("unsupported", "only a POST to …/responses asks for a text")
        body = parsed(_BODY, call.request.body)
        if body.previous_response_id or body.conversation or body.prompt or body.background:
            raise Refused("unsupported", "what was said before stands with OpenAI, and not in this request")
        return GenerateAsk(
            tuple(_messages(body)), body.model, stream=body.stream is True, structured=_structure_asked(body)
        )

    def failure_within(self, answer: Answer) -> str:
        """As for every endpoint of OpenAI; a response's own `error` is one only where its status says so too."""
        within = super().failure_within(answer)
        if within or is_encoded(answer) or not _FAILED.search(answer.body):
            return within
        try:
            return "error_in_200" if parsed(_STATUS, answer.body).status == "failed" else ""
        except Malformed:
            return ""

    def primed(self, held: bytes) -> Primed:
        """`go` at the first words, tool call or end; what only announces something is no content."""
        if held[:64].lstrip(SPACE)[:1] in (b"{", b"<", b"["):
            raise Failed("garbage", "a stream was asked for, and no event stream came")
        for name, data in events(held):
            event = parsed_or_none(_EVENT, data)
            failed = None if event is None else _error_of(event)
            if name == b"error" or failed is not None:
                raise failed_inside(error_name(failed), LASTING)
            if event is not None and _has_content(event):
                return "go"
        return "wait"

    def stream_complete(self, tail: bytes) -> bool:
        """Whether the whole response has come once more; `tail` may begin inside it, since it is of any length."""
        *_, (_, data) = (b"", b""), *events(tail, ended=True)
        event = parsed_or_none(_EVENT, data)
        if event is not None:
            return event.type in _ENDS
        # where its beginning is out of sight: only a response that has ended says what it cost
        lines = tail.rstrip(b"\r\n").replace(b"\r", b"\n").rpartition(b"\n")
        return not lines[1] and lines[2].endswith(b"}") and _COUNTED.search(lines[2]) is not None

    def broken_off(self, reason: str) -> bytes:
        """An `error` event, and no end. The official SDK raises for the `error` field, and hands the event on without
        it."""
        message = f"The answer broke off before its end ({reason})."
        told = {"code": "stream_broken", "message": message, "param": None, "sequence_number": 0}
        return b"\n\n" + _event_bytes("error", told | {"error": {"type": "server_error"} | told})

    def generated(self, ask: GenerateAsk, written: Written) -> Answer:
        """The same text whole, or in pieces of a sentence or a line when a stream was asked for.

        A top-level `understudy` says that this is no model's answer; SDKs leave unknown fields alone.
        """
        if not ask.stream:
            return json_answer(200, _response(written, "completed"))
        return Answer(200, list(EVENT_HEADERS), stream=HeldStream(_told(written)))


def _told(written: Written) -> list[bytes]:
    """A text as the events of a stream, the way OpenAI tells one."""
    spot = {"item_id": f"msg_{written.id}", "output_index": 0, "content_index": 0}
    item, begun = _item(written, "completed"), _item(written, "in_progress")
    empty: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
    told: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": _response(written, "in_progress")}),
        ("response.in_progress", {"response": _response(written, "in_progress")}),
        ("response.output_item.added", {"output_index": 0, "item": begun}),
        ("response.content_part.added", spot | {"part": empty}),
    ]
    pieces: list[dict[str, Any]] = [spot | {"delta": piece, "logprobs": []} for piece in pieces_of(written.text)]
    told += [("response.output_text.delta", piece) for piece in pieces]
    told += [
        ("response.output_text.done", spot | {"text": written.text, "logprobs": []}),
        ("response.content_part.done", spot | {"part": empty | {"text": written.text}}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": _response(written, "completed")}),
    ]
    return [_event_bytes(name, {"sequence_number": at} | fields) for at, (name, fields) in enumerate(told)]


def _response(written: Written, status: str) -> dict[str, Any]:
    done = status == "completed"
    usage = {
        "input_tokens": written.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": written.prompt_tokens + written.completion_tokens,
    }
    return {
        "id": f"resp_{written.id}",
        "object": "response",
        "created_at": written.created_s,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": written.model,
        "output": [_item(written, status)] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        "temperature": None,
        "top_p": None,
        "understudy": {"fallback": written.source == "extractive", "source": written.source},
        "usage": usage if done else None,
    }


def _item(written: Written, status: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = (
        [{"type": "output_text", "text": written.text, "annotations": []}] if status == "completed" else []
    )
    return {"id": f"msg_{written.id}", "type": "message", "status": status, "role": "assistant", "content": content}


def _messages(body: _Body) -> list[dict[str, Any]]:
    """The input as chat has it. Raises Refused for items that are no messages, or more than texts."""
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    if not body.input:
        raise BadRequest("Missing required parameter: 'input'.")
    for at, item in enumerate(body.input):
        if item.get("type", "message") != "message":
            raise Refused("unsupported", "an input other than messages cannot be answered from passages")
        if not isinstance(item.get("role"), str):
            raise BadRequest(f"input[{at}].role must be a string")
        messages.append({"role": item["role"], "content": _content(item.get("content"))})
    return messages


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts = [cast("dict[str, Any]", part) for part in cast("list[Any]", content) if isinstance(part, dict)]
    if any(part.get("type") not in ("input_text", "output_text", "text") for part in parts):
        raise Refused("unsupported", "content other than text cannot be answered from passages")
    return [{"type": "text", "text": part.get("text")} for part in parts]


def _structure_asked(body: _Body) -> str:
    """Which structure the caller wants the answer in, or ''."""
    if body.tools and body.tool_choice != "none":
        return "tools"
    wanted = (body.text or {}).get("format")
    kind = cast("dict[str, Any]", wanted).get("type") if isinstance(wanted, dict) else None
    return "" if kind in (None, "text") else str(kind)[:32]


def _error_of(event: _Event) -> Any:
    """The error that an event tells, or None."""
    if event.type == "response.failed":
        response = cast("dict[str, Any]", event.response) if isinstance(event.response, dict) else {}
        return response.get("error") or {}
    if event.type == "error":
        return event.error or {"code": event.code}
    return event.error or None


def _has_content(event: _Event) -> bool:
    """Whether an application could act on anything in an event."""
    kind = str(event.type)
    if kind in _BEGINNINGS or kind == "keepalive":
        return False
    if kind == "response.output_item.added":
        item = cast("dict[str, Any]", event.item) if isinstance(event.item, dict) else {}
        return item.get("type") not in ("message", "reasoning")
    if kind in ("response.content_part.added", "response.reasoning_summary_part.added"):
        part = cast("dict[str, Any]", event.part) if isinstance(event.part, dict) else {}
        return bool(part.get("text"))
    if kind.endswith(".delta"):
        return bool(event.delta)
    # what we cannot read is not ours to hold back
    return True


def _event_bytes(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name} | fields))
