"""OpenAI's chat completions: `POST …/chat/completions`, whole or as a stream of server-sent events.

A stream that ends cleanly without `[DONE]` or a finish reason reaches the application as a success with its text cut
short (measured with the official SDK), so an end must be proved and a break must be said aloud:

    : keep-alive                       a comment: no content
    data: {"choices":[{"delta":{"role":…}}]}     only a role: no content
    data: {"choices":[{"delta":{"content":"Hel"}}]}     content: the stream is primed
    data: {"error":{…}}                 an error inside a 200
    data: {"choices":[{…,"finish_reason":"stop"}]}, data: [DONE]     the end
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from msgspec import UNSET, UnsetType

from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Request
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
from understudy.proxy.dialects.generating import EVENT_HEADERS, asks_for_stream, failed_inside, pieces_of
from understudy.proxy.dialects.openai import UNREADABLE, OpenAI, error_body, error_name
from understudy.proxy.dialects.sse import events

DONE = b"[DONE]"

# Asking again would get the same error: the account or the prompt is at fault, not the moment.
LASTING = frozenset(
    {"insufficient_quota", "invalid_api_key", "invalid_request_error", "context_length_exceeded", "model_not_found"}
)


class StreamOptions(msgspec.Struct):
    """What a stream is to tell besides its text."""

    include_usage: bool | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Said(msgspec.Struct):
    """A choice's message, or what a chunk adds to it; whatever is more than a text is in the others."""

    content: str | None = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None


class _SaidChoice(msgspec.Struct):
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None


class _Answered(msgspec.Struct):
    """A whole answer or one chunk of a streamed one, as far as its text goes."""

    choices: list[_SaidChoice]
    created: int = 0
    model: str = ""
    usage: _Usage | None = None
    error: Any = None


class _Body(msgspec.Struct):
    messages: list[dict[str, Any]] | None = None
    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | None = None
    audio: Any = None
    modalities: list[str] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None


# Loose on purpose: a provider's own idea of a field's type must not make an event unreadable.
class _Choice(msgspec.Struct):
    delta: Any = None
    text: Any = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | UnsetType | None = UNSET
    error: Any = None


_BODY = msgspec.json.Decoder(_Body)
_CHUNK = msgspec.json.Decoder(_Chunk)
_ANSWERED = msgspec.json.Decoder(_Answered)
_END = b"\n\ndata: [DONE]\n\n"


class OpenAIChat(OpenAI):
    """`openai-chat`: a POST is of kind generate, everything else is passed through."""

    name = "openai-chat"
    idle_fields = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})

    def read(self, request: Request) -> Call:
        """Looks for `stream` only. A body that is no JSON is the upstream's business while there is one."""
        call = Call("generate" if request.method == b"POST" else "pass", request, dialect=self.name)
        call.wants_stream = call.kind == "generate" and asks_for_stream(request.body)
        return call

    def ask(self, call: Call) -> GenerateAsk:
        """The prompt. Raises BadRequest where OpenAI would answer 400, Refused for what one text cannot answer."""
        return asked_once(call, GenerateAsk, self._asked, UNREADABLE)

    def _asked(self, call: Call) -> GenerateAsk:
        if call.kind != "generate":
            raise Refused("unsupported", "only POST asks for a completion")
        body = parsed(_BODY, call.request.body)
        if body.messages is None:
            if call.request.path.endswith(b"/chat/completions"):
                raise Malformed("messages is missing")
            raise Refused("unsupported", "there are no `messages`: another endpoint than chat completions")
        ask = GenerateAsk(
            _believed(body.messages),
            body.model,
            stream=body.stream is True,
            include_usage=body.stream_options is not None and body.stream_options.include_usage is True,
            structured=_structure_asked(body),
        )
        _refuse_unsupported(body)
        return ask

    def primed(self, held: bytes) -> Primed:
        """`go` at the first content, tool call, refusal, finish reason or [DONE]; a role and comments are none."""
        if held[:64].lstrip(SPACE)[:1] in (b"{", b"<", b"["):
            raise Failed("garbage", "a stream was asked for, and no event stream came")
        for name, data in events(held):
            if data.strip() == DONE:
                return "go"
            chunk = parsed_or_none(_CHUNK, data)
            if name == b"error" or (chunk is not None and chunk.error):
                raise _failed(None if chunk is None else chunk.error)
            if chunk is not None and _has_content(chunk):
                return "go"
        return "wait"

    def stream_complete(self, tail: bytes) -> bool:
        """Whether a finish reason or [DONE] is among the last events; `tail` may begin inside an event."""
        if tail.endswith(_END):
            # nearly every stream's: the events before it need not be read
            return True
        for _, data in events(tail, ended=True):
            if data.strip() == DONE:
                return True
            if b"finish_reason" in data:
                chunk = parsed_or_none(_CHUNK, data)
                if chunk is not None and chunk.choices and any(choice.finish_reason for choice in chunk.choices):
                    return True
        return False

    def stream_failed(self, tail: bytes) -> bool:
        """Whether an error is among the last events: some servers (vLLM) say [DONE] behind it all the same."""
        return b'"error"' in tail and any(
            name == b"error" or ((chunk := parsed_or_none(_CHUNK, data)) is not None and bool(chunk.error))
            for name, data in events(tail, ended=True)
        )

    def broken_off(self, reason: str) -> bytes:
        """An error event, which the SDK raises, and no [DONE].

        The blank line in front ends an event that was cut short, so that the error is read as an event of its own.
        """
        message = f"The answer broke off before its end ({reason})."
        return b"\n\n" + data_bytes(error_body(message, "server_error", "stream_broken"))

    def said(self, body: bytes) -> Written | None:
        """One choice's text that came to its own end (`stop`)."""
        whole = body[:64].lstrip(SPACE)[:1] == b"{"
        datas = [body] if whole else [data for _, data in events(body, ended=True) if data.strip() != DONE]
        try:
            return _put_together([parsed(_ANSWERED, data) for data in datas])
        except Malformed:
            return None

    def generated(self, ask: GenerateAsk, written: Written) -> Answer:
        """The same text whole, or in pieces of a sentence or a line when a stream was asked for.

        A top-level `understudy` says that this is no model's answer; SDKs leave unknown fields alone.
        """
        usage = usage_of(written)
        if not ask.stream:
            message = {"role": "assistant", "content": written.text, "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            return json_answer(200, _head(written, "chat.completion") | {"choices": [choice], "usage": usage})
        head = _head(written, "chat.completion.chunk") | ({"usage": None} if ask.include_usage else {})
        deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces_of(written.text))]
        stream = [data_bytes(head | {"choices": [_delta(delta)]}) for delta in deltas]
        stream.append(data_bytes(head | {"choices": [_delta({}, "stop")]}))
        if ask.include_usage:
            stream.append(data_bytes(head | {"choices": [], "usage": usage}))
        stream.append(b"data: [DONE]\n\n")
        return Answer(200, list(EVENT_HEADERS), stream=HeldStream(stream))


def _put_together(parts: list[_Answered]) -> Written | None:
    text, model, finished, usage, created = "", "", False, _Usage(), 0
    for part in parts:
        if part.error or len(part.choices) > 1:
            return None
        model, usage, created = model or part.model, part.usage or usage, created or part.created
        for choice in part.choices:
            said = choice.message or choice.delta or _Said()
            if said.refusal or said.tool_calls or said.function_call or said.audio or said.annotations:
                return None
            if choice.finish_reason not in (None, "stop"):
                return None
            text += said.content or ""
            finished = finished or choice.finish_reason == "stop"
    if not finished or not text.strip():
        return None
    return Written(text, model, usage.prompt_tokens, usage.completion_tokens, created_s=created)


def _believed(messages: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    if not messages:
        raise BadRequest("'messages' must not be an empty array")
    for at, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise BadRequest(f"messages[{at}].role must be a string")
    return tuple(messages)


def _structure_asked(body: _Body) -> str:
    """Which structure the caller wants the answer in, or ''."""
    if (body.tools or body.functions) and body.tool_choice != "none":
        return "tools"
    if body.response_format is not None:
        kind = body.response_format.get("type")
        return "" if kind in (None, "text") else str(kind)[:32]
    return ""


def _refuse_unsupported(body: _Body) -> None:
    wanted = {
        "n": (body.n or 1) > 1,
        "logprobs": bool(body.logprobs),
        "audio": bool(body.audio) or "audio" in (body.modalities or ()),
        "content other than text": any(map(_beyond_text, body.messages or ())),
    }
    for word, is_wanted in wanted.items():
        if is_wanted:
            raise Refused("unsupported", f"{word} cannot be answered from passages")


def _beyond_text(message: dict[str, Any]) -> bool:
    content: Any = message.get("content")
    if not isinstance(content, list):
        return False
    parts = cast("list[Any]", content)
    return any(not _is_text(part) for part in parts)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and cast("dict[str, Any]", part).get("type") in ("text", "refusal")


def _has_content(chunk: _Chunk) -> bool:
    """Whether an application could act on anything in a chunk: any value but a role's, and but padding."""
    if chunk.choices is UNSET:
        # No chat chunk at all: what we cannot read is not ours to hold back.
        return True
    return any(choice.finish_reason or choice.text or _says(choice.delta) for choice in chunk.choices or ())


def _says(delta: Any) -> bool:
    if not isinstance(delta, dict):
        return False
    fields = cast("dict[str, Any]", delta)
    return any(value for name, value in fields.items() if name not in ("role", "obfuscation"))


def _failed(error: Any) -> Failed:
    return failed_inside(error_name(error), LASTING)


def _head(written: Written, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{written.id}",
        "object": kind,
        "created": written.created_s,
        "model": written.model,
        "understudy": {"fallback": written.source == "extractive", "source": written.source},
    }


def usage_of(written: Written) -> dict[str, int]:
    """What a text cost, as OpenAI writes it."""
    prompt, completion = written.prompt_tokens, written.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _delta(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def data_bytes(value: Any) -> bytes:
    """One event without a name."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
