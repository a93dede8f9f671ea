"""Ollama's chat as one side of a translation. Its tool calls have no ids: they are counted, and met by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from understudy.policies.service import Header
from understudy.proxy.dialects.base import Malformed, parsed, parsed_or_none
from understudy.proxy.dialects.ndjson import lines
from understudy.proxy.dialects.translate import (
    OBJECT,
    Arguments,
    Begun,
    Broke,
    Called,
    Cut,
    End,
    Ended,
    Fields,
    Part,
    Picture,
    Prompt,
    Reply,
    Said,
    Signature,
    Text,
    ToolResult,
    ToolUse,
    Turn,
    Words,
    arguments_of,
    as_count,
    as_list,
    as_object,
    check_last,
    fields_of,
    refuse,
    spelt,
    texts_of,
)
from understudy.proxy.dialects.translate_openai import read_tool, write_tool

LINE_ENDS = (b"\n", b"\r")
# how the server is to run the model, which is nobody else's business
_OF_THE_SERVER = frozenset(
    {
        "low_vram",
        "main_gpu",
        "num_batch",
        "num_ctx",
        "num_gpu",
        "num_keep",
        "num_thread",
        "numa",
        "seed",
        "use_mlock",
        "use_mmap",
    }
)
_NEUTRAL = {"repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "min_p": 0, "mirostat": 0}
_HARMLESS = frozenset({"keep_alive", "think", "truncate", "shift"})
# Ollama filters nothing itself; what another has withheld is no end like any other
_REASONS: dict[End, str] = {"length": "length", "filter": "content_filter"}
# A picture of Ollama's has no type; base64 of its first bytes tells it.
_MEDIA_TYPES = {"iVBORw0KGgo": "image/png", "/9j/": "image/jpeg", "R0lGOD": "image/gif", "UklGR": "image/webp"}


class OllamaWire:
    """`ollama-chat`, both ways: `/api/chat` alone."""

    name = "ollama-chat"
    path = b"/api/chat"
    headers: Sequence[Header] = ()
    stream_type = b"application/x-ndjson"

    def read(self, body: bytes, path: bytes) -> Prompt:
        if not path.endswith(self.path):
            refuse("/api/generate")
        fields = fields_of(body)
        options = Fields(fields.object("options"), "options.")
        count = options.count("num_predict")
        prompt = Prompt(
            model=fields.text("model"),
            turns=check_last(tuple(_turns(fields.objects("messages")))),
            tools=tuple(read_tool(tool) for tool in fields.objects("tools")),
            # negative: as many as it likes
            tokens_max=count if count is None or count > 0 else None,
            temperature=options.number("temperature"),
            top_p=options.number("top_p"),
            top_k=options.count("top_k"),
            stop=options.texts("stop"),
            schema=_schema(fields.take("format")),
            stream=fields.take("stream") is not False,
        )
        options.done(_OF_THE_SERVER, _NEUTRAL)
        fields.done(_HARMLESS, {"logprobs": False})
        return prompt

    def write(self, prompt: Prompt, tokens_max: int) -> bytes:  # noqa: ARG002 - here one need not be told
        if prompt.tools and prompt.choice not in ("auto", "none"):
            refuse("a tool that must be used")
        if prompt.tools and not prompt.parallel:
            refuse("one tool at a time")
        options = {
            "num_predict": prompt.tokens_max,
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "top_k": prompt.top_k,
            "stop": list(prompt.stop) or None,
        }
        body: dict[str, Any] = {
            "model": prompt.model,
            "messages": [message for turn in prompt.turns for message in _messages(turn)],
            "stream": prompt.stream,
        }
        if prompt.tools and prompt.choice == "auto":
            body["tools"] = [write_tool(tool) for tool in prompt.tools]
        if prompt.schema is not None:
            body["format"] = prompt.schema or "json"
        said = {name: value for name, value in options.items() if value is not None}
        return msgspec.json.encode(body | ({"options": said} if said else {}))

    def reply(self, body: bytes, prompt: Prompt) -> Reply:  # noqa: ARG002 - the answer says all of it
        fields = parsed(OBJECT, body)
        if fields.get("done") is not True:
            raise Malformed("not done")
        message = as_object(fields.get("message"))
        uses = tuple(_use(call, "") for call in as_list(message.get("tool_calls")))
        return Reply(
            model=str(fields.get("model") or ""),
            text=str(message.get("content") or ""),
            uses=uses,
            end=_end(fields.get("done_reason"), uses=bool(uses)),
            prompt_tokens=as_count(fields.get("prompt_eval_count")),
            completion_tokens=as_count(fields.get("eval_count")),
        )

    def told(self, reply: Reply, prompt: Prompt, signature: Signature) -> bytes:  # noqa: ARG002 - nothing depends on it
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.uses:
            message["tool_calls"] = [_call(use.name, use.arguments) for use in reply.uses]
        end = _ending(reply.end, reply.prompt_tokens, reply.completion_tokens)
        return msgspec.json.encode(_head(reply.model, signature) | {"message": message} | end)

    def hearing(self, prompt: Prompt) -> OllamaHearing:  # noqa: ARG002 - the stream says all of it
        return OllamaHearing()

    def telling(self, prompt: Prompt, signature: Signature) -> OllamaTelling:  # noqa: ARG002 - the same for all
        return OllamaTelling(signature)


class OllamaHearing:
    """Reads lines; the end is told by `done`."""

    def __init__(self) -> None:
        self._cut = Cut(LINE_ENDS)
        self._begun = False
        self._calls = 0

    def hear(self, piece: bytes) -> list[Said]:
        return [said for line in lines(self._cut.take(piece)) for said in self._line(line)]

    def over(self) -> list[Said]:
        held, self._cut.held = self._cut.held, b""
        return list(self._line(held)) if held.strip() else []

    def _line(self, line: bytes) -> Iterator[Said]:
        fields = parsed_or_none(OBJECT, line)
        if fields is None:
            return
        if fields.get("error"):
            yield Broke("unnamed")
            return
        if not self._begun:
            self._begun = True
            yield Begun(str(fields.get("model") or ""))
        message = as_object(fields.get("message"))
        if message.get("content"):
            yield Words(str(message["content"]))
        for call in as_list(message.get("tool_calls")):
            at, self._calls = self._calls, self._calls + 1
            use = _use(call, "")
            yield Called(at, use.id, use.name)
            yield Arguments(at, spelt(use.arguments))
        if fields.get("done") is True:
            end = _end(fields.get("done_reason"), uses=self._calls > 0)
            yield Ended(end, as_count(fields.get("prompt_eval_count")), as_count(fields.get("eval_count")))


class OllamaTelling:
    """Writes lines; a tool's arguments are gathered, since here they come in one piece."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._head: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._arguments: dict[int, str] = {}

    def tell(self, said: Said) -> bytes:
        match said:
            case Begun():
                self._head = _head(said.model, self._signature)
                return b""
            case Words():
                return self._line({"message": {"role": "assistant", "content": said.text}, "done": False})
            case Called():
                self._names[said.at] = said.name
                return b""
            case Arguments():
                self._arguments[said.at] = self._arguments.get(said.at, "") + said.json
                return b""
            case Ended():
                return self._calls() + self._line(
                    {"message": {"role": "assistant", "content": ""}}
                    | _ending(said.end, said.prompt_tokens, said.completion_tokens)
                )
            case Broke():
                raise Malformed(said.word)

    def _calls(self) -> bytes:
        if not self._names:
            return b""
        calls = [_call(name, arguments_of(self._arguments.get(at))) for at, name in sorted(self._names.items())]
        return self._line({"message": {"role": "assistant", "content": "", "tool_calls": calls}, "done": False})

    def _line(self, fields: dict[str, Any]) -> bytes:
        return msgspec.json.encode(self._head | fields) + b"\n"


# --- parts ---------------------------------------------------------------------------------------------------------


def _turns(messages: list[dict[str, Any]]) -> Iterator[Turn]:
    """Messages as turns: a tool's result meets the first use of its name that has none yet."""
    waiting: list[ToolUse] = []
    count = 0
    results: list[Part] = []
    for each in messages:
        message = Fields(each, "messages.")
        role, text = message.text("role"), message.text("content")
        if role == "tool":
            results.append(_result(text, message.text("tool_name") or message.text("name"), waiting))
            message.done(("tool_call_id", "name"))
            continue
        if results:
            yield Turn("user", tuple(results))
            results = []
        parts: list[Part] = [Text(text)] if text else []
        parts += map(_picture, message.texts("images"))
        calls = message.objects("tool_calls")
        uses = [_use(call, f"call_{count + at}") for at, call in enumerate(calls)]
        count, waiting = count + len(uses), [*waiting, *uses]
        message.done(("thinking",))
        match role:
            case "system":
                yield Turn("system", tuple(parts))
            case "user":
                yield Turn("user", tuple(parts))
            case "assistant":
                yield Turn("assistant", (*parts, *uses))
            case _:
                refuse(f"a message of role {role[:32]}")
    if results:
        yield Turn("user", tuple(results))


def _result(text: str, name: str, waiting: list[ToolUse]) -> ToolResult:
    use = next((use for use in waiting if not name or use.name == name), None)
    if use is None:
        refuse("a tool's result that nobody asked for")
    waiting.remove(use)
    return ToolResult(use.id, use.name, text)


def _picture(data: str) -> Picture:
    for start, media_type in _MEDIA_TYPES.items():
        if data.startswith(start):
            return Picture(media_type, data)
    return refuse("a picture of an unknown type")


def _messages(turn: Turn) -> Iterator[dict[str, Any]]:
    results = [part for part in turn.parts if isinstance(part, ToolResult)]
    yield from ({"role": "tool", "tool_name": each.name, "content": each.text} for each in results)
    if results and len(results) == len(turn.parts):
        return
    pictures = [part for part in turn.parts if isinstance(part, Picture)]
    if any(picture.url for picture in pictures):
        refuse("a picture that must be fetched")
    message: dict[str, Any] = {"role": turn.role, "content": texts_of(turn, "" if turn.role == "assistant" else "\n")}
    if pictures:
        message["images"] = [picture.data for picture in pictures]
    uses = [part for part in turn.parts if isinstance(part, ToolUse)]
    yield message | ({"tool_calls": [_call(use.name, use.arguments) for use in uses]} if uses else {})


def _schema(wanted: Any) -> dict[str, Any] | None:
    if isinstance(wanted, dict):
        return as_object(wanted)
    if wanted in (None, ""):
        return None
    return {} if wanted == "json" else refuse("this format")


def _use(call: dict[str, Any], id: str) -> ToolUse:
    function = as_object(call.get("function"))
    return ToolUse(id, str(function.get("name") or ""), arguments_of(function.get("arguments")))


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


def _end(reason: Any, *, uses: bool) -> End:
    if reason == "length":
        return "length"
    return "tools" if uses else "stop"


def _ending(end: End, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": _REASONS.get(end, "stop"),
        "total_duration": 0,
        "load_duration": 0,
        "prompt_eval_count": prompt_tokens,
        "prompt_eval_duration": 0,
        "eval_count": completion_tokens,
        "eval_duration": 0,
    }


def _head(model: str, signature: Signature) -> dict[str, Any]:
    instant = datetime.fromtimestamp(signature.created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"model": model, "created_at": instant}
