"""OpenAI's responses as a caller's side of a translation: what is asked in items, and told in them.

    instructions, input items --read--> Prompt          Reply | Saids --told | Telling--> a response and its items

Nobody is asked in these words: no second provider has them. What only stands with OpenAI (earlier responses, stored
prompts, its own tools) has no words elsewhere, and is refused by name. What is told is not stored anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from understudy.proxy.dialects.base import Malformed
from understudy.proxy.dialects.translate import (
    EVENT_BYTES_MAX,
    Arguments,
    Begun,
    Broke,
    Called,
    End,
    Ended,
    Fields,
    Part,
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
    arguments_of,
    as_list,
    as_object,
    check_last,
    fields_of,
    refuse,
    result_text,
    saids_of,
)
from understudy.proxy.dialects.translate_openai import HARMLESS, OpenAIWire, choice_of, picture_of, schema_of

_HARMLESS = HARMLESS | {"reasoning", "stream_options", "truncation"}
_NEUTRAL = {"background": False, "top_logprobs": 0, "include": ["reasoning.encrypted_content"]}
_INCOMPLETE: dict[End, str] = {"length": "max_output_tokens", "filter": "content_filter"}


class ResponsesWire(OpenAIWire):
    """`openai-responses`, for callers."""

    name = "openai-responses"

    def read(self, body: bytes, path: bytes) -> Prompt:  # noqa: ARG002 - every path asks alike
        fields = fields_of(body)
        instructions = fields.text("instructions")
        turns = (Turn("system", (Text(instructions),)),) if instructions else ()
        words = fields.object("text")
        wanted = as_object(words.pop("format", None))
        prompt = Prompt(
            model=fields.text("model"),
            turns=check_last((*turns, *_turns(fields.take("input")))),
            tools=tuple(map(_tool, fields.objects("tools"))),
            choice=choice_of(fields.take("tool_choice"), _named),
            parallel=fields.take("parallel_tool_calls") is not False,
            tokens_max=fields.count("max_output_tokens"),
            temperature=fields.number("temperature"),
            top_p=fields.number("top_p"),
            schema=schema_of(wanted, wanted.get("schema"), "text.format"),
            stream=fields.take("stream") is True,
            wants_usage=True,
        )
        Fields(words, "text.").done(("verbosity",))
        fields.done(_HARMLESS, _NEUTRAL)
        return prompt

    def told(self, reply: Reply, prompt: Prompt, signature: Signature) -> bytes:
        telling = ResponsesTelling(prompt, signature)
        for said in saids_of(reply):
            telling.tell(said)
        return msgspec.json.encode(telling.response)

    def telling(self, prompt: Prompt, signature: Signature) -> ResponsesTelling:
        return ResponsesTelling(prompt, signature)


@dataclass(slots=True)
class _Item:
    """One item of the output, as far as it has been told: a message's text, or a use's arguments."""

    index: int
    item: dict[str, Any]
    said: list[str]

    @property
    def text(self) -> str:
        return "".join(self.said)


class ResponsesTelling:
    """Writes the events of one response; `response` is how it stands. Items are closed at the end, messages also where
    a tool's use begins: arguments of several uses may come in turns."""

    def __init__(self, prompt: Prompt, signature: Signature) -> None:
        self._signature = signature
        self._number = 0
        self._bytes = 0
        self._message: _Item | None = None
        self._uses: dict[int, _Item] = {}
        self._items: list[_Item] = []
        self.response: dict[str, Any] = {
            "id": f"resp_{signature.id}",
            "object": "response",
            "created_at": signature.created_s,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": prompt.tokens_max,
            "model": prompt.model,
            "output": [],
            "parallel_tool_calls": prompt.parallel,
            "previous_response_id": None,
            "store": False,
            "temperature": prompt.temperature,
            "tool_choice": "auto",
            "tools": [],
            "top_p": prompt.top_p,
            "usage": None,
            "metadata": {},
        }

    def tell(self, said: Said) -> bytes:
        match said:
            case Begun():
                self.response["model"] = said.model
                begun = {"response": self.response}
                return self._event("response.created", begun) + self._event("response.in_progress", begun)
            case Words():
                return self._words(said.text)
            case Called():
                return self._called(said)
            case Arguments():
                item = self._uses.get(said.at)
                if item is None:
                    raise Malformed("arguments of a tool that is not used")
                self._add(item, said.json)
                told = {"item_id": item.item["id"], "output_index": item.index, "delta": said.json}
                return self._event("response.function_call_arguments.delta", told)
            case Ended():
                return self._ended(said)
            case Broke():
                raise Malformed(said.word)

    def _add(self, item: _Item, text: str) -> None:
        self._bytes += len(text)
        if self._bytes > EVENT_BYTES_MAX:
            raise Malformed("more than the last event can tell once more")
        item.said.append(text)

    def _begin(self, item: dict[str, Any]) -> tuple[_Item, bytes]:
        begun = _Item(len(self._items), item, [])
        self._items.append(begun)
        return begun, self._event("response.output_item.added", {"output_index": begun.index, "item": item})

    def _words(self, text: str) -> bytes:
        told = b""
        if self._message is None:
            message: dict[str, Any] = {
                "id": f"msg_{self._signature.id}_{len(self._items)}",
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            self._message, told = self._begin(message)
            told += self._event("response.content_part.added", _spot(self._message) | {"part": _part("")})
        self._add(self._message, text)
        return told + self._event("response.output_text.delta", _spot(self._message) | {"delta": text, "logprobs": []})

    def _called(self, said: Called) -> bytes:
        told = self._message_over()
        use = {
            "id": f"fc_{self._signature.id}_{len(self._items)}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": said.id or self._signature.use_id(said.at),
            "name": said.name,
            "arguments": "",
        }
        self._uses[said.at], begun = self._begin(use)
        return told + begun

    def _message_over(self) -> bytes:
        message, self._message = self._message, None
        if message is None:
            return b""
        text, spot = message.text, _spot(message)
        message.item = message.item | {"status": "completed", "content": [_part(text)]}
        return (
            self._event("response.output_text.done", spot | {"text": text, "logprobs": []})
            + self._event("response.content_part.done", spot | {"part": _part(text)})
            + self._event("response.output_item.done", {"output_index": message.index, "item": message.item})
        )

    def _use_over(self, use: _Item) -> bytes:
        arguments = use.text or "{}"
        use.item = use.item | {"status": "completed", "arguments": arguments}
        told = {"item_id": use.item["id"], "output_index": use.index, "name": use.item["name"], "arguments": arguments}
        done = self._event("response.function_call_arguments.done", told)
        return done + self._event("response.output_item.done", {"output_index": use.index, "item": use.item})

    def _ended(self, said: Ended) -> bytes:
        told = self._message_over() + b"".join([self._use_over(use) for use in self._uses.values()])
        why = _INCOMPLETE.get(said.end)
        word = "incomplete" if why else "completed"
        self.response |= {
            "status": word,
            "incomplete_details": {"reason": why} if why else None,
            "output": [each.item for each in self._items],
            "usage": {
                "input_tokens": said.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": said.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": said.prompt_tokens + said.completion_tokens,
            },
        }
        return told + self._event(f"response.{word}", {"response": self.response})

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        data = msgspec.json.encode({"type": name, "sequence_number": self._number} | fields)
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def _spot(message: _Item) -> dict[str, Any]:
    return {"item_id": message.item["id"], "output_index": message.index, "content_index": 0}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


# --- what is asked -------------------------------------------------------------------------------------------------


def _turns(given: Any) -> Iterator[Turn]:
    """The input's turns: what the model said and the tools that it used with it are one, and so are several results."""
    if isinstance(given, str):
        yield Turn("user", (Text(given),))
        return
    names: dict[str, str] = {}
    before: Turn | None = None
    for item in as_list(given):
        turn = _turn(Fields(item, "input."), names)
        if turn is None:
            continue
        if before is not None and _go_together(before, turn):
            before = Turn(before.role, before.parts + turn.parts)
            continue
        if before is not None:
            yield before
        before = turn
    if before is not None:
        yield before


def _go_together(before: Turn, turn: Turn) -> bool:
    if before.role == turn.role == "assistant":
        return True
    return all(each.parts and isinstance(each.parts[-1], ToolResult) for each in (before, turn))


def _turn(item: Fields, names: dict[str, str]) -> Turn | None:
    """One item's turn; none of what the model only thought."""
    kind = item.text("type") or "message"
    if kind == "reasoning":
        return None
    item.take("id")
    item.take("status")
    if kind == "function_call":
        use, name = item.text("call_id"), item.text("name")
        names[use] = name
        try:
            arguments = arguments_of(item.take("arguments"))
        except Malformed:
            refuse("a tool's arguments that are no JSON object")
        item.done()
        return Turn("assistant", (ToolUse(use, name, arguments),))
    if kind == "function_call_output":
        use, said = item.text("call_id"), list(_parts(item.take("output")))
        item.done()
        return Turn("user", (ToolResult(use, names.get(use, ""), result_text(said)),))
    if kind != "message":
        refuse(f"an input of type {kind[:32]}")
    role, parts = item.text("role"), tuple(_parts(item.take("content")))
    item.done(("phase",))
    if role == "assistant":
        return Turn("assistant", parts)
    if role in ("system", "developer", "user"):
        return Turn("user" if role == "user" else "system", parts)
    return refuse(f"a message of role {role[:32]}")


def _parts(content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    for part in as_list(content):
        match part.get("type"):
            case "input_text" | "output_text" | "text" | "refusal":
                text = str(part.get("text") or part.get("refusal") or "")
                if text:
                    yield Text(text)
            case "input_image" if part.get("image_url"):
                yield picture_of(str(part["image_url"]))
            case kind:
                refuse(f"content of type {str(kind)[:32]}")


def _tool(tool: dict[str, Any]) -> Tool:
    if tool.get("type") != "function":
        refuse(f"a tool of type {str(tool.get('type'))[:32]}")
    schema = as_object(tool.get("parameters")) or {"type": "object", "properties": {}}
    return Tool(str(tool.get("name") or ""), str(tool.get("description") or ""), schema)


def _named(choice: dict[str, Any]) -> Any:
    return choice.get("name") if choice.get("type") == "function" else None
