"""Anthropic's messages: `POST …/messages`, whole or as a stream of named server-sent events.

A stream that ends cleanly before `message_stop` is a success to the official SDK, with its text cut short and no stop
reason (measured), so an end must be proved and a break must be said aloud:

    event: message_start                who answers: no content
    event: content_block_start          an empty text or thought: no content; a tool's name: content
    event: ping                         no content
    event: content_block_delta          content: the stream is primed
    event: error                        an error inside a 200, such as `overloaded_error`
    event: message_delta, message_stop  why it stopped, and the end
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
    json_answer,
    parsed,
    parsed_or_none,
)
from understudy.proxy.dialects.generating import EVENT_HEADERS, NO_RETRY, asks_for_stream, failed_inside, pieces_of
from understudy.proxy.dialects.openai import ErrorsInside, error_name
from understudy.proxy.dialects.sse import events

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Asking again would get the same error: the account or the prompt is at fault, not the moment.
_LASTING = frozenset(
    {
        "authentication_error",
        "billing_error",
        "invalid_request_error",
        "not_found_error",
        "permission_error",
        "request_too_large",
    }
)
_EMPTY_AT_FIRST = frozenset({"text", "thinking"})


class _Body(msgspec.Struct):
    messages: list[dict[str, Any]] | None = None
    model: str = ""
    stream: bool | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    mcp_servers: list[Any] | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Message(msgspec.Struct):
    content: list[dict[str, Any]] = []
    model: str = ""
    stop_reason: str | None = None
    usage: _Usage = msgspec.field(default_factory=_Usage)


# Loose on purpose: a new kind of event must not make a stream unreadable.
class _Event(msgspec.Struct):
    type: Any = None
    index: Any = None
    delta: Any = None
    content_block: Any = None
    message: Any = None
    error: Any = None
    usage: Any = None


_BODY = msgspec.json.Decoder(_Body)
_MESSAGE = msgspec.json.Decoder(_Message)
_EVENT = msgspec.json.Decoder(_Event)


class Anthropic(ErrorsInside):
    """`anthropic`: a POST to `…/messages` is of kind generate, everything else is passed through."""

    name = "anthropic"
    idle_fields = frozenset({"metadata", "service_tier"})

    def read(self, request: Request) -> Call:
        """Looks for `stream` only. A body that is no JSON is the upstream's business while there is one."""
        is_message = request.method == b"POST" and request.path.endswith(b"/messages")
        call = Call("generate" if is_message else "pass", request, dialect=self.name)
        call.wants_stream = is_message and asks_for_stream(request.body)
        return call

    def ask(self, call: Call) -> GenerateAsk:
        """The prompt. Raises BadRequest where Anthropic would answer 400, Refused for what one text cannot answer."""
        return asked_once(call, GenerateAsk, self._asked, "The request body is not valid JSON")

    def _asked(self, call: Call) -> GenerateAsk:
        if call.kind != "generate":
            raise Refused("unsupported", "only a POST to …/messages asks for a text")
        body = parsed(_BODY, call.request.body)
        messages = _believed(body.messages)
        if body.system:
            messages.insert(0, {"role": "system", "content": body.system})
        if any(map(_beyond_text, messages)):
            raise Refused("unsupported", "content other than text cannot be answered from passages")
        return GenerateAsk(tuple(messages), body.model, stream=body.stream is True, structured=_structure_asked(body))

    def primed(self, held: bytes) -> Primed:
        """`go` at the first words, thought, tool or stop reason; the start, empty blocks and pings are none."""
        if held[:64].lstrip(SPACE)[:1] in (b"{", b"<", b"["):
            raise Failed("garbage", "a stream was asked for, and no event stream came")
        for name, data in events(held):
            event = parsed_or_none(_EVENT, data)
            if name == b"error" or (event is not None and (event.error or event.type == "error")):
                raise failed_inside(error_name(None if event is None else event.error), _LASTING)
            if event is not None and _has_content(event):
                return "go"
        return "wait"

    def stream_complete(self, tail: bytes) -> bool:
        """Whether `message_stop` is among the last events; `tail` may begin inside an event."""
        for _, data in events(tail, ended=True):
            if b"message_stop" in data:
                event = parsed_or_none(_EVENT, data)
                if event is not None and event.type == "message_stop":
                    return True
        return False

    def stream_failed(self, tail: bytes) -> bool:
        """Whether an error is among the last events, though the message was stopped behind it."""
        return b'"error"' in tail and any(
            name == b"error" or ((event := parsed_or_none(_EVENT, data)) is not None and event.type == "error")
            for name, data in events(tail, ended=True)
        )

    def broken_off(self, reason: str) -> bytes:
        """An `error` event, which the SDK raises, and no `message_stop`.

        The blank line in front ends an event that was cut short, so that the error is read as an event of its own.
        """
        message = f"The answer broke off before its end ({reason})."
        return b"\n\n" + event_bytes("error", {"error": {"type": "api_error", "message": message}})

    def error(
        self,
        status: int,
        reason: str,  # noqa: ARG002 - such an error has a type, which follows from the status, and no code
        detail: str,
        *,
        headers: Headers | None = None,
    ) -> Answer:
        kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": detail}}
        return json_answer(status, body, NO_RETRY + (headers or []))

    def said(self, body: bytes) -> Written | None:
        """The text of a message that came to its own end (`end_turn`), and has no other content."""
        try:
            if body[:64].lstrip(SPACE)[:1] == b"{":
                return _written(parsed(_MESSAGE, body))
            return _written(_put_together([data for _, data in events(body, ended=True)]))
        except (Malformed, msgspec.ValidationError):
            return None

    def generated(self, ask: GenerateAsk, written: Written) -> Answer:
        """The same text whole, or in pieces of a sentence or a line when a stream was asked for.

        A top-level `understudy` says that this is no model's answer; SDKs leave unknown fields alone.
        """
        message = {
            "id": f"msg_{written.id}",
            "type": "message",
            "role": "assistant",
            "model": written.model,
            "content": [{"type": "text", "text": written.text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": written.prompt_tokens, "output_tokens": written.completion_tokens},
            "understudy": {"fallback": written.source == "extractive", "source": written.source},
        }
        if not ask.stream:
            return json_answer(200, message)
        usage = {"input_tokens": written.prompt_tokens, "output_tokens": 0}
        begun = message | {"content": [], "stop_reason": None, "usage": usage}
        told = [
            event_bytes("message_start", {"message": begun}),
            event_bytes("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ]
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces_of(written.text)]
        told += [event_bytes("content_block_delta", {"index": 0, "delta": delta}) for delta in deltas]
        told += [
            event_bytes("content_block_stop", {"index": 0}),
            event_bytes(
                "message_delta",
                {
                    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                    "usage": {"output_tokens": written.completion_tokens},
                },
            ),
            event_bytes("message_stop", {}),
        ]
        return Answer(200, list(EVENT_HEADERS), stream=HeldStream(told))


def event_bytes(name: str, fields: dict[str, Any]) -> bytes:
    """One event, whose data repeats its name as `type`."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name} | fields))


def _believed(messages: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if not messages:
        raise BadRequest("messages: at least one message is required")
    for at, message in enumerate(messages):
        if message.get("role") not in ("user", "assistant"):
            raise BadRequest(f"messages.{at}.role: Input should be 'user' or 'assistant'")
    return list(messages)


def _structure_asked(body: _Body) -> str:
    """Which structure the caller wants the answer in, or ''."""
    if (body.tools and (body.tool_choice or {}).get("type") != "none") or body.mcp_servers:
        return "tools"
    wanted = (body.output_config or {}).get("format") or body.output_format
    return str(cast("dict[str, Any]", wanted).get("type"))[:32] if isinstance(wanted, dict) else ""


def _beyond_text(message: dict[str, Any]) -> bool:
    content: Any = message.get("content")
    if not isinstance(content, list):
        return False
    blocks = cast("list[Any]", content)
    return any(not isinstance(block, dict) or cast("dict[str, Any]", block).get("type") != "text" for block in blocks)


def _has_content(event: _Event) -> bool:
    """Whether an application could act on anything in an event."""
    match event.type:
        case "message_start" | "ping" | "content_block_stop":
            return False
        case "content_block_start":
            return not isinstance(event.content_block, dict) or _begins(cast("dict[str, Any]", event.content_block))
        case "content_block_delta":
            return _adds(event.delta)
        case "message_delta":
            return isinstance(event.delta, dict) and bool(cast("dict[str, Any]", event.delta).get("stop_reason"))
        case _:
            # what we cannot read is not ours to hold back
            return True


def _begins(block: dict[str, Any]) -> bool:
    kind = block.get("type")
    return kind not in _EMPTY_AT_FIRST or bool(block.get(str(kind)))


def _adds(delta: Any) -> bool:
    if not isinstance(delta, dict):
        return False
    return any(value for name, value in cast("dict[str, Any]", delta).items() if name != "type")


def _written(message: _Message) -> Written | None:
    text = "".join(str(block.get("text") or "") for block in message.content)
    if message.stop_reason != "end_turn" or not text.strip():
        return None
    if any(block.get("type") != "text" or block.get("citations") for block in message.content):
        return None
    usage = message.usage
    return Written(text, message.model, usage.input_tokens, usage.output_tokens)


def _put_together(datas: list[bytes]) -> _Message:
    """The message that a stream's events tell; what it holds beside texts stays there, without its own content."""
    message = _Message()
    for data in datas:
        event = parsed(_EVENT, data)
        if event.error:
            raise Malformed("an error")
        if event.type == "message_start":
            message = msgspec.convert(event.message, _Message)
        elif event.type == "content_block_start":
            message.content = [*message.content, msgspec.convert(event.content_block, dict[str, Any])]
        elif event.type == "content_block_delta" and message.content:
            delta = msgspec.convert(event.delta, dict[str, Any])
            block = message.content[-1]
            if delta.get("type") != "text_delta":
                block["type"] = str(delta.get("type"))
            block["text"] = str(block.get("text") or "") + str(delta.get("text") or "")
        elif event.type == "message_delta":
            message.stop_reason = msgspec.convert(event.delta, dict[str, Any]).get("stop_reason")
            if event.usage is not None:
                message.usage.output_tokens = msgspec.convert(event.usage, _Usage).output_tokens
    return message
