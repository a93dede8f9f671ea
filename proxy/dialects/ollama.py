"""Ollama's chat and generate: `POST …/api/chat` and `…/api/generate`, whole or as lines of JSON.

A stream is what one gets unless `stream` is false. Its client takes a clean end for the end, whatever came before it,
so an end must be proved and a break must be said aloud:

    {"message":{"role":"assistant","content":""},"done":false}      an empty text: no content
    {"message":{"content":"Hel"},"done":false}                      content: the stream is primed
    {"error":"…"}                                                   an error inside a 200
    {"message":{"content":""},"done":true,"done_reason":"stop",…}   the end
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from understudy.policies.service import Answer, Call, Failed, Headers, HeldStream, Refused, Request
from understudy.proxy.asks import GenerateAsk, Written
from understudy.proxy.dialects.base import (
    SPACE,
    BadRequest,
    Primed,
    asked_once,
    json_answer,
    parsed,
    parsed_or_none,
)
from understudy.proxy.dialects.generating import asks_for_stream, pieces_of
from understudy.proxy.dialects.ndjson import lines
from understudy.proxy.dialects.openai import ErrorsInside

LINE_HEADERS: Headers = [(b"content-type", b"application/x-ndjson")]
CHAT = b"/api/chat"
GENERATE = b"/api/generate"

# A quotation mark inside a string is written \", so these can only be keys, wherever the bytes were cut.
_DONE = re.compile(rb'"done"\s*:\s*(true|false)')
_COUNTS = re.compile(rb'"(?:total_duration|eval_duration|eval_count)"\s*:\s*[0-9]')


class _Body(msgspec.Struct):
    model: str = ""
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    stream: bool | None = None
    tools: list[Any] | None = None
    format: Any = None
    images: list[Any] | None = None
    logprobs: bool | None = None


# Loose on purpose: a server's own idea of a field's type must not make a line unreadable.
class _Line(msgspec.Struct):
    message: Any = None
    response: Any = None
    thinking: Any = None
    done: Any = None
    done_reason: Any = None
    error: Any = None
    model: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None


_BODY = msgspec.json.Decoder(_Body)
_LINE = msgspec.json.Decoder(_Line)


class OllamaChat(ErrorsInside):
    """`ollama-chat`: a POST to `…/api/chat` or `…/api/generate` is of kind generate, all else is passed through."""

    name = "ollama-chat"
    idle_fields = frozenset({"keep_alive"})

    def read(self, request: Request) -> Call:
        """Looks for `stream` only. A body that is no JSON is the upstream's business while there is one."""
        asks = request.method == b"POST" and request.path.endswith((CHAT, GENERATE))
        call = Call("generate" if asks else "pass", request, dialect=self.name)
        call.wants_stream = asks and asks_for_stream(request.body, unless_said=True)
        return call

    def ask(self, call: Call) -> GenerateAsk:
        """The prompt. Raises BadRequest where Ollama would answer 400, Refused for what one text cannot answer."""
        return asked_once(call, GenerateAsk, self._asked, "invalid JSON")

    def _asked(self, call: Call) -> GenerateAsk:
        if call.kind != "generate":
            raise Refused("unsupported", "only a POST to /api/chat or /api/generate asks for a text")
        body = parsed(_BODY, call.request.body)
        shape = "generate" if call.request.path.endswith(GENERATE) else "chat"
        messages = _messages(body, shape)
        if body.suffix or body.logprobs or body.images or any(message.get("images") for message in messages):
            raise Refused("unsupported", "images, a suffix and logprobs cannot be answered from passages")
        return GenerateAsk(
            tuple(messages), body.model, stream=body.stream is not False, structured=_structure_asked(body), shape=shape
        )

    def primed(self, held: bytes) -> Primed:
        """`go` at the first words, thought, tool call or `done`; an empty text is none."""
        if held[:64].lstrip(SPACE)[:1] not in (b"", b"{"):
            raise Failed("garbage", "a stream was asked for, and no lines of JSON came")
        for data in lines(held):
            line = parsed_or_none(_LINE, data)
            if line is not None and line.error:
                raise Failed("error_in_stream", "unnamed")
            if line is not None and _has_content(line):
                return "go"
        return "wait"

    def stream_complete(self, tail: bytes) -> bool:
        """Whether the last line says `done: true`; `tail` may begin inside it, since it brings a context of any
        length."""
        *_, last = b"", *lines(tail, ended=True)
        line = parsed_or_none(_LINE, last)
        if line is not None:
            return line.done is True
        if not last.rstrip(SPACE).endswith(b"}"):
            return False
        # a tool's arguments may have a `done` of their own; the line's stands behind them
        told = _DONE.findall(last)
        return told[-1] == b"true" if told else _COUNTS.search(last) is not None

    def stream_failed(self, tail: bytes) -> bool:
        """Whether an error is among the last lines, though one that is done stands behind it."""
        return b'"error"' in tail and any(
            (line := parsed_or_none(_LINE, data)) is not None and bool(line.error) for data in lines(tail, ended=True)
        )

    def broken_off(self, reason: str) -> bytes:
        """A line with an error, which the client raises. Behind a line that was cut short it is no JSON: it raises that
        too. With an empty line between them, that is all it would see."""
        return _line_bytes({"error": f"the answer broke off before its end ({reason})"})

    def error(
        self,
        status: int,
        reason: str,  # noqa: ARG002 - such an error is a sentence
        detail: str,
        *,
        headers: Headers | None = None,
    ) -> Answer:
        return json_answer(status, {"error": detail}, headers)

    def said(self, body: bytes) -> Written | None:
        """The text of an answer that came to its own end (`stop`), without calling tools."""
        text, model, last = "", "", None
        for data in lines(body, ended=True):
            line = last = parsed_or_none(_LINE, data)
            if line is None or line.error:
                return None
            message = cast("dict[str, Any]", line.message) if isinstance(line.message, dict) else {}
            if message.get("tool_calls"):
                return None
            text += str(message.get("content") or line.response or "")
            model = model or str(line.model or "")
        if last is None or last.done is not True or last.done_reason not in (None, "stop") or not text.strip():
            return None
        return Written(text, model, _count(last.prompt_eval_count), _count(last.eval_count))

    def generated(self, ask: GenerateAsk, written: Written) -> Answer:
        """The same text whole, or in pieces of a sentence or a line when a stream was asked for.

        A top-level `understudy` says that this is no model's answer; clients leave unknown fields alone.
        """
        head = {"model": written.model, "created_at": _instant(written.created_s)}
        end = {
            "understudy": {"fallback": written.source == "extractive", "source": written.source},
            "done": True,
            "done_reason": "stop",
            "total_duration": 0,
            "load_duration": 0,
            "prompt_eval_count": written.prompt_tokens,
            "prompt_eval_duration": 0,
            "eval_count": written.completion_tokens,
            "eval_duration": 0,
        }
        if not ask.stream:
            return json_answer(200, head | _saying(ask, written.text) | end)
        told = [_line_bytes(head | _saying(ask, piece) | {"done": False}) for piece in pieces_of(written.text)]
        told.append(_line_bytes(head | _saying(ask, "") | end))
        return Answer(200, list(LINE_HEADERS), stream=HeldStream(told))


def _messages(body: _Body, shape: str) -> list[dict[str, Any]]:
    if shape == "generate":
        if not body.prompt:
            raise Refused("unsupported", "without a prompt a model is only loaded")
        system = [{"role": "system", "content": body.system}] if body.system else []
        return [*system, {"role": "user", "content": body.prompt}]
    if not body.messages:
        raise Refused("unsupported", "without messages a model is only loaded")
    for at, message in enumerate(body.messages):
        if not isinstance(message.get("role"), str):
            raise BadRequest(f"messages[{at}].role must be a string")
    return body.messages


def _structure_asked(body: _Body) -> str:
    """Which structure the caller wants the answer in, or ''."""
    if body.tools:
        return "tools"
    if isinstance(body.format, dict):
        return "json_schema"
    return "json_object" if body.format else ""


def _saying(ask: GenerateAsk, text: str) -> dict[str, Any]:
    return {"response": text} if ask.shape == "generate" else {"message": {"role": "assistant", "content": text}}


def _has_content(line: _Line) -> bool:
    """Whether an application could act on anything in a line."""
    if line.done is True or line.response or line.thinking:
        return True
    if not isinstance(line.message, dict):
        # another API's line: what we cannot read is not ours to hold back
        return line.message is None and line.response is None and line.done is None
    return any(value for name, value in cast("dict[str, Any]", line.message).items() if name != "role")


def _line_bytes(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _instant(created_s: int) -> str:
    return datetime.fromtimestamp(created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
