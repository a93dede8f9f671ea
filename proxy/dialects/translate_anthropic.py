"""Anthropic's messages as one side of a translation.

A JSON answer is asked for as the arguments of one tool that must be used: every model that has tools can do it, and
its words come back as the text they are meant to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from understudy.policies.service import Header
from understudy.proxy.dialects.anthropic import event_bytes
from understudy.proxy.dialects.base import Malformed, parsed, parsed_or_none
from understudy.proxy.dialects.openai import error_name
from understudy.proxy.dialects.sse import events
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
    Tool,
    ToolResult,
    ToolUse,
    Turn,
    Words,
    as_count,
    as_list,
    as_object,
    check_last,
    fields_of,
    known_tool,
    met_by_id,
    refuse,
    result_text,
    spelt,
    uses_in,
    written,
)
from understudy.proxy.dialects.translate_openai import EVENT_ENDS

VERSION = b"2023-06-01"
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
JSON_TOOL = "json_answer"
_JSON_TOOL_SAYS = "Give the whole answer, and nothing else, as the arguments of this tool: the JSON that was asked for."
_HARMLESS = frozenset(
    {
        "cache_control",
        "diagnostics",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
        "thinking",
        "user_profile_id",
        "workspace_id",
    }
)
_ENDS: dict[str, End] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tools",
    "refusal": "filter",
}
_REASONS: dict[End, str] = {"stop": "end_turn", "length": "max_tokens", "tools": "tool_use", "filter": "refusal"}


class AnthropicWire:
    """`anthropic`, both ways."""

    name = "anthropic"
    path = b"/v1/messages"
    headers: Sequence[Header] = ((b"anthropic-version", VERSION),)
    stream_type = b"text/event-stream; charset=utf-8"

    def read(self, body: bytes, path: bytes) -> Prompt:  # noqa: ARG002 - every path asks alike
        fields = fields_of(body)
        names: dict[str, str] = {}
        system = tuple(_parts(fields.take("system"), names))
        turns = [Turn("system", system)] if system else []
        turns += [_turn(Fields(each, "messages."), names) for each in fields.objects("messages")]
        choice = fields.object("tool_choice")
        prompt = Prompt(
            model=fields.text("model"),
            turns=check_last(tuple(turns)),
            tools=tuple(map(_tool, fields.objects("tools"))),
            choice=_choice(choice),
            parallel=choice.get("disable_parallel_tool_use") is not True,
            tokens_max=fields.count("max_tokens"),
            temperature=fields.number("temperature"),
            top_p=fields.number("top_p"),
            top_k=fields.count("top_k"),
            stop=fields.texts("stop_sequences"),
            schema=_schema(fields),
            stream=fields.take("stream") is True,
        )
        fields.done(_HARMLESS)
        return prompt

    def write(self, prompt: Prompt, tokens_max: int) -> bytes:
        system, turns = _system_first(met_by_id(prompt.turns, _ID))
        if prompt.temperature is not None and prompt.temperature > 1:
            refuse("a temperature above 1")
        if any(not each.strip() for each in prompt.stop):
            refuse("a stop sequence without a letter")
        body: dict[str, Any] = {
            "model": prompt.model,
            "max_tokens": prompt.tokens_max or tokens_max,
            "system": system or None,
            "messages": _messages(turns),
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "top_k": prompt.top_k,
            "stop_sequences": list(prompt.stop) or None,
            "stream": True if prompt.stream else None,
        }
        body |= _tools(prompt)
        return written(body)

    def reply(self, body: bytes, prompt: Prompt) -> Reply:
        fields = parsed(OBJECT, body)
        if fields.get("type") != "message":
            raise Malformed("no message")
        usage = as_object(fields.get("usage"))
        text, uses = "", list[ToolUse]()
        for block in as_list(fields.get("content")):
            if block.get("type") == "text":
                text += str(block.get("text") or "")
            elif block.get("type") == "tool_use":
                uses.append(_use(block))
        end = _ENDS.get(str(fields.get("stop_reason")), "stop")
        if prompt.schema is not None and any(use.name == JSON_TOOL for use in uses):
            # what it says beside it is not part of the JSON
            text = "".join(spelt(use.arguments) for use in uses if use.name == JSON_TOOL)
            uses, end = [], "stop" if end == "tools" else end
        return Reply(
            model=str(fields.get("model") or ""),
            text=text,
            uses=tuple(uses),
            end=end,
            prompt_tokens=_prompt_tokens(usage),
            completion_tokens=as_count(usage.get("output_tokens")),
        )

    def told(self, reply: Reply, prompt: Prompt, signature: Signature) -> bytes:  # noqa: ARG002 - nothing depends on it
        content: list[dict[str, Any]] = [{"type": "text", "text": reply.text}] if reply.text else []
        content += [_block(replace(use, id=use.id or signature.use_id(at))) for at, use in enumerate(reply.uses)]
        message = _message(signature, reply.model, reply.prompt_tokens)
        usage = {"input_tokens": reply.prompt_tokens, "output_tokens": reply.completion_tokens}
        return msgspec.json.encode(message | {"content": content, "stop_reason": _REASONS[reply.end], "usage": usage})

    def hearing(self, prompt: Prompt) -> AnthropicHearing:
        return AnthropicHearing(wants_json=prompt.schema is not None)

    def telling(self, prompt: Prompt, signature: Signature) -> AnthropicTelling:  # noqa: ARG002 - the same for all
        return AnthropicTelling(signature)


class AnthropicHearing:
    """Reads events; the end is told by `message_stop`."""

    def __init__(self, *, wants_json: bool) -> None:
        self._cut = Cut(EVENT_ENDS)
        self._wants_json = wants_json
        self._uses: dict[int, int] = {}
        self._json_at: set[int] = set()
        self._usage: dict[str, Any] = {}
        self._end: End = "stop"
        self._stopped = False

    def hear(self, piece: bytes) -> list[Said]:
        saids: list[Said] = []
        for name, data in events(self._cut.take(piece)):
            event = parsed_or_none(OBJECT, data)
            if event is None:
                continue
            if name == b"error" or event.get("type") == "error":
                return [*saids, Broke(error_name(event.get("error")))]
            saids += self._event(event)
        return saids

    def _event(self, event: dict[str, Any]) -> Iterator[Said]:
        at = as_count(event.get("index"))
        match event.get("type"):
            case "message_start":
                message = as_object(event.get("message"))
                self._usage = as_object(message.get("usage"))
                yield Begun(str(message.get("model") or ""), _prompt_tokens(self._usage))
            case "content_block_start":
                yield from self._block(at, as_object(event.get("content_block")))
            case "content_block_delta":
                yield from self._delta(at, as_object(event.get("delta")))
            case "message_delta":
                reason = as_object(event.get("delta")).get("stop_reason")
                self._end = _ENDS.get(str(reason), self._end)
                told = {name: value for name, value in as_object(event.get("usage")).items() if value is not None}
                self._usage = self._usage | told
            case "message_stop":
                yield from self._stop()
            case _:
                pass

    def _block(self, at: int, block: dict[str, Any]) -> Iterator[Said]:
        if block.get("type") == "text" and block.get("text"):
            yield Words(str(block["text"]))
        elif block.get("type") == "tool_use":
            name = str(block.get("name") or "")
            if self._wants_json and name == JSON_TOOL:
                self._json_at.add(at)
                return
            self._uses[at] = len(self._uses)
            yield Called(self._uses[at], str(block.get("id") or ""), name)

    def _delta(self, at: int, delta: dict[str, Any]) -> Iterator[Said]:
        if delta.get("type") == "text_delta" and delta.get("text"):
            yield Words(str(delta["text"]))
        elif delta.get("type") == "input_json_delta" and delta.get("partial_json"):
            if at in self._json_at:
                yield Words(str(delta["partial_json"]))
            elif at in self._uses:
                yield Arguments(self._uses[at], str(delta["partial_json"]))

    def _stop(self) -> Iterator[Said]:
        if not self._stopped:
            self._stopped = True
            end: End = "stop" if self._json_at and self._end == "tools" else self._end
            yield Ended(end, _prompt_tokens(self._usage), as_count(self._usage.get("output_tokens")))

    def over(self) -> list[Said]:
        return []


class AnthropicTelling:
    """Writes events: one block after the other, each closed before the next is opened."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._block = -1
        self._open: str | int = ""

    def tell(self, said: Said) -> bytes:
        match said:
            case Begun():
                message = _message(self._signature, said.model, said.prompt_tokens)
                return event_bytes("message_start", {"message": message})
            case Words():
                begun = b"" if self._open == "text" else self._opened("text", {"type": "text", "text": ""})
                return begun + self._delta({"type": "text_delta", "text": said.text})
            case Called():
                use = ToolUse(said.id or self._signature.use_id(said.at), said.name, {})
                return self._opened(said.at, _block(use))
            case Arguments():
                if self._open != said.at:
                    raise Malformed("the arguments of two tools among each other")
                return self._delta({"type": "input_json_delta", "partial_json": said.json})
            case Ended():
                usage = {"input_tokens": said.prompt_tokens, "output_tokens": said.completion_tokens}
                delta = {"stop_reason": _REASONS[said.end], "stop_sequence": None}
                told = event_bytes("message_delta", {"delta": delta, "usage": usage})
                return self._closed() + told + event_bytes("message_stop", {})
            case Broke():
                raise Malformed(said.word)

    def _opened(self, what: str | int, block: dict[str, Any]) -> bytes:
        closed = self._closed()
        self._block, self._open = self._block + 1, what
        return closed + event_bytes("content_block_start", {"index": self._block, "content_block": block})

    def _closed(self) -> bytes:
        was, self._open = self._open, ""
        return b"" if was == "" else event_bytes("content_block_stop", {"index": self._block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event_bytes("content_block_delta", {"index": self._block, "delta": delta})


# --- parts ---------------------------------------------------------------------------------------------------------


def _tool(tool: dict[str, Any]) -> Tool:
    if tool.get("type", "custom") != "custom":
        refuse(f"a tool of type {str(tool.get('type'))[:32]}")
    schema = as_object(tool.get("input_schema"))
    return Tool(str(tool.get("name") or ""), str(tool.get("description") or ""), schema)


def _tools(prompt: Prompt) -> dict[str, Any]:
    """The tools and which of them must be used; a JSON answer is a tool's arguments."""
    if prompt.schema is not None:
        if prompt.tools:
            refuse("a JSON answer beside tools")
        schema = prompt.schema or {"type": "object"}
        if schema.get("type") != "object":
            refuse("a JSON answer that is no object")
        tool = {"name": JSON_TOOL, "description": _JSON_TOOL_SAYS, "input_schema": schema}
        return {"tools": [tool], "tool_choice": {"type": "tool", "name": JSON_TOOL}}
    if not prompt.tools:
        # it must be told of what was used before, and may use none of it
        names = dict.fromkeys(use.name for use in uses_in(prompt.turns))
        known = [{"name": name, "input_schema": {"type": "object"}} for name in names]
        return {"tools": known, "tool_choice": {"type": "none"}} if known else {}
    name = known_tool(prompt)
    choice: dict[str, Any] = {"type": "tool", "name": name} if name else {"type": prompt.choice}
    if not prompt.parallel and prompt.choice != "none":
        choice["disable_parallel_tool_use"] = True
    tools = [{"name": each.name, "description": each.description, "input_schema": each.schema} for each in prompt.tools]
    return {"tools": tools} | ({} if choice == {"type": "auto"} else {"tool_choice": choice})


def _choice(choice: dict[str, Any]) -> str:
    kind = choice.get("type", "auto")
    if kind == "tool":
        return f"tool:{choice.get('name')}"
    return str(kind) if kind in ("auto", "any", "none") else refuse("this tool_choice")


def _schema(fields: Fields) -> dict[str, Any] | None:
    config = fields.object("output_config")
    wanted = as_object(config.get("format")) or fields.object("output_format")
    if not wanted:
        return None
    return as_object(wanted.get("schema")) if wanted.get("type") == "json_schema" else refuse("this output format")


def _turn(message: Fields, names: dict[str, str]) -> Turn:
    role, content = message.text("role"), message.take("content")
    message.done()
    if role not in ("user", "assistant"):
        refuse(f"a message of role {role[:32]}")
    parts = list(_parts(content, names))
    # results come first everywhere else
    parts.sort(key=lambda part: not isinstance(part, ToolResult))
    return Turn("user" if role == "user" else "assistant", tuple(parts))


def _parts(content: Any, names: dict[str, str]) -> Iterator[Part]:
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    for block in as_list(content):
        match block.get("type"):
            case "text":
                if block.get("text"):
                    yield Text(str(block["text"]))
            case "image":
                yield _picture(as_object(block.get("source")))
            case "tool_use":
                use = _use(block)
                names[use.id] = use.name
                yield use
            case "tool_result":
                yield _result(block, names)
            case "thinking" | "redacted_thinking":
                # signed by one provider, and read by nobody else
                pass
            case kind:
                refuse(f"content of type {str(kind)[:32]}")


def _picture(source: dict[str, Any]) -> Picture:
    match source.get("type"):
        case "base64":
            return Picture(str(source.get("media_type") or ""), str(source.get("data") or ""))
        case "url":
            return Picture(url=str(source.get("url") or ""))
        case kind:
            return refuse(f"a picture from {str(kind)[:32]}")


def _use(block: dict[str, Any]) -> ToolUse:
    return ToolUse(str(block.get("id") or ""), str(block.get("name") or ""), as_object(block.get("input")))


def _result(block: dict[str, Any], names: dict[str, str]) -> ToolResult:
    text = result_text(list(_parts(block.get("content"), names)))
    use = str(block.get("tool_use_id") or "")
    # elsewhere only the words can say that it went wrong
    return ToolResult(use, names.get(use, ""), f"Error: {text}" if block.get("is_error") is True else text)


def _system_first(turns: tuple[Turn, ...]) -> tuple[list[dict[str, Any]], tuple[Turn, ...]]:
    """What stands before the first user's turn, as blocks, and the rest."""
    at = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if any(turn.role == "system" for turn in turns[at:]):
        refuse("a system message in the middle of a conversation")
    if at == len(turns) or turns[at].role != "user":
        refuse("a conversation that the user doesn't begin")
    return [_block(part) for turn in turns[:at] for part in turn.parts], turns[at:]


def _messages(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        blocks = [_block(part) for part in turn.parts]
        if not blocks:
            refuse("an empty message")
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": turn.role, "content": blocks})
    return messages


def _block(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Picture():
            source = {"type": "base64", "media_type": part.media_type, "data": part.data}
            return {"type": "image", "source": {"type": "url", "url": part.url} if part.url else source}
        case ToolUse():
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": part.arguments}
        case ToolResult():
            return {"type": "tool_result", "tool_use_id": part.id, "content": part.text}


def _prompt_tokens(usage: dict[str, Any]) -> int:
    """What was read, cached or not: elsewhere a prompt's tokens are all of them."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return sum(as_count(usage.get(name)) for name in names)


def _message(signature: Signature, model: str, prompt_tokens: int) -> dict[str, Any]:
    return {
        "id": f"msg_{signature.id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
    }
