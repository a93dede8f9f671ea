"""OpenAI's chat completions as one side of a translation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec

from understudy.policies.service import Header
from understudy.proxy.dialects.base import Malformed, parsed, parsed_or_none
from understudy.proxy.dialects.openai import error_name
from understudy.proxy.dialects.openai_chat import DONE, data_bytes
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
    Telling,
    Text,
    Tool,
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
    known_tool,
    met_by_id,
    refuse,
    result_text,
    spelt,
    texts_of,
    written,
)

HARMLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "seed",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
NEUTRAL = {"n": 1, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0, "modalities": ["text"]}
_HOW_WORDS_ARE_CHOSEN = frozenset(
    {"frequency_penalty", "logit_bias", "presence_penalty", "stop", "temperature", "top_p"}
)
_ID = re.compile(r".{1,40}")
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_ENDS: dict[str, End] = {"stop": "stop", "length": "length", "tool_calls": "tools", "content_filter": "filter"}
_REASONS: dict[End, str] = {end: reason for reason, end in _ENDS.items()}


class OpenAIWire:
    """`openai-chat`, both ways."""

    name = "openai-chat"
    path = b"/v1/chat/completions"
    headers: Sequence[Header] = ()
    stream_type = b"text/event-stream; charset=utf-8"

    def read(self, body: bytes, path: bytes) -> Prompt:  # noqa: ARG002 - every path asks alike
        fields = fields_of(body)
        names: dict[str, str] = {}
        turns = tuple(_merged(_turn(Fields(each, "messages."), names) for each in fields.objects("messages")))
        wanted = fields.object("response_format")
        prompt = Prompt(
            model=fields.text("model"),
            turns=check_last(turns),
            tools=tuple(read_tool(tool) for tool in fields.objects("tools")),
            choice=choice_of(fields.take("tool_choice"), lambda named: as_object(named.get("function")).get("name")),
            parallel=fields.take("parallel_tool_calls") is not False,
            tokens_max=_either(fields.count("max_completion_tokens"), fields.count("max_tokens")),
            temperature=fields.number("temperature"),
            top_p=fields.number("top_p"),
            stop=fields.texts("stop"),
            schema=schema_of(wanted, as_object(wanted.get("json_schema")).get("schema"), "response_format"),
            stream=fields.take("stream") is True,
            wants_usage=fields.object("stream_options").get("include_usage") is True,
        )
        fields.done(HARMLESS, NEUTRAL)
        return prompt

    def write(self, prompt: Prompt, tokens_max: int) -> bytes:  # noqa: ARG002 - here one need not be told
        if prompt.top_k is not None:
            refuse("top_k")
        body: dict[str, Any] = {
            "model": prompt.model,
            "messages": [message for turn in _asked_for_json(prompt) for message in _messages(turn)],
            "max_completion_tokens": prompt.tokens_max,
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "stop": list(prompt.stop) or None,
        }
        if len(prompt.stop) > 4:
            refuse("more than four stop sequences")
        if prompt.tools:
            name = known_tool(prompt)
            choice = {"auto": None, "any": "required"}.get(prompt.choice, prompt.choice)
            body["tools"] = [write_tool(tool) for tool in prompt.tools]
            body["tool_choice"] = {"type": "function", "function": {"name": name}} if name else choice
            body["parallel_tool_calls"] = None if prompt.parallel else False
        if prompt.schema is not None:
            strict = {"name": "answer", "schema": prompt.schema}
            given = {"type": "json_schema", "json_schema": strict} if prompt.schema else {"type": "json_object"}
            body["response_format"] = given
        if prompt.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return written(body)

    def reply(self, body: bytes, prompt: Prompt) -> Reply:  # noqa: ARG002 - the answer says all of it
        fields = parsed(OBJECT, body)
        choices = as_list(fields.get("choices"))
        if not choices:
            raise Malformed("no choices")
        message = as_object(choices[0].get("message"))
        usage = as_object(fields.get("usage"))
        uses = tuple(_use(call) for call in as_list(message.get("tool_calls")))
        refusal = message.get("refusal")
        end = _end(choices[0].get("finish_reason"), uses=bool(uses))
        return Reply(
            model=str(fields.get("model") or ""),
            text=str(message.get("content") or refusal or ""),
            uses=uses,
            end="filter" if refusal else end,
            prompt_tokens=as_count(usage.get("prompt_tokens")),
            completion_tokens=as_count(usage.get("completion_tokens")),
        )

    def told(self, reply: Reply, prompt: Prompt, signature: Signature) -> bytes:  # noqa: ARG002 - nothing depends on it
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "refusal": None}
        if reply.uses:
            uses = (replace(use, id=use.id or signature.use_id(at)) for at, use in enumerate(reply.uses))
            message["tool_calls"] = list(map(_call, uses))
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _REASONS[reply.end]}
        usage = _usage(reply.prompt_tokens, reply.completion_tokens)
        return msgspec.json.encode(
            _head(signature, "chat.completion", reply.model) | {"choices": [choice], "usage": usage}
        )

    def hearing(self, prompt: Prompt) -> OpenAIHearing:  # noqa: ARG002 - the stream says all of it
        return OpenAIHearing()

    def telling(self, prompt: Prompt, signature: Signature) -> Telling:
        return OpenAITelling(prompt, signature)


class AzureWire(OpenAIWire):
    """`azure-openai-chat`, for callers: the same, of a deployment that the path names."""

    name = "azure-openai-chat"

    def read(self, body: bytes, path: bytes) -> Prompt:
        prompt = super().read(body, path)
        if prompt.model:
            return prompt
        _, _, deployment = path.partition(b"/deployments/")
        return replace(prompt, model=deployment.partition(b"/")[0].decode("utf-8", "replace"))


class CompletionsReading:
    """`openai-completions`, as far as it takes to go on with one: its prompt and answer are one text."""

    name = "openai-completions"
    stream_type = OpenAIWire.stream_type

    def read(self, body: bytes, path: bytes) -> Prompt:  # noqa: ARG002 - every path asks alike
        fields = fields_of(body)
        prompts = fields.texts("prompt")
        if len(prompts) != 1:
            refuse("several prompts, or none")
        prompt = Prompt(
            model=fields.text("model"),
            turns=(Turn("user", (Text(prompts[0]),)),),
            tokens_max=fields.count("max_tokens"),
            stream=fields.take("stream") is True,
            wants_usage=fields.object("stream_options").get("include_usage") is True,
        )
        fields.done(HARMLESS | _HOW_WORDS_ARE_CHOSEN, NEUTRAL | {"best_of": 1, "echo": False, "suffix": ""})
        return prompt

    def hearing(self, prompt: Prompt) -> OpenAIHearing:  # noqa: ARG002 - the stream says all of it
        return OpenAIHearing()


class OpenAIHearing:
    """Reads chunks, a chat's or a completion's; the end is told once the usage has come, or with [DONE]."""

    def __init__(self) -> None:
        self._cut = Cut(EVENT_ENDS)
        self._begun = False
        self._end: End | None = None
        self._usage: dict[str, Any] = {}
        self._calls = 0

    def hear(self, piece: bytes) -> list[Said]:
        saids: list[Said] = []
        for name, data in events(self._cut.take(piece)):
            if data.strip() == DONE:
                saids += self.over()
                continue
            chunk = parsed_or_none(OBJECT, data)
            if chunk is None:
                continue
            if name == b"error" or chunk.get("error"):
                return [*saids, Broke(error_name(chunk.get("error")))]
            saids += self._chunk(chunk)
        return saids

    def _chunk(self, chunk: dict[str, Any]) -> Iterator[Said]:
        if not self._begun and (chunk.get("model") or chunk.get("choices")):
            # Azure says first what it found in the prompt, and not yet who answers
            self._begun = True
            yield Begun(str(chunk.get("model") or ""))
        self._usage = as_object(chunk.get("usage")) or self._usage
        for choice in as_list(chunk.get("choices"))[:1]:
            delta = as_object(choice.get("delta"))
            words = delta.get("content") or delta.get("refusal") or choice.get("text")
            if words:
                yield Words(str(words))
            for call in as_list(delta.get("tool_calls")):
                yield from self._call(call)
            if choice.get("finish_reason"):
                self._end = _end(choice["finish_reason"], uses=self._calls > 0)

    def _call(self, call: dict[str, Any]) -> Iterator[Said]:
        at, function = as_count(call.get("index")), as_object(call.get("function"))
        if at >= self._calls:
            self._calls = at + 1
            yield Called(at, str(call.get("id") or ""), str(function.get("name") or ""))
        if function.get("arguments"):
            yield Arguments(at, str(function["arguments"]))

    def over(self) -> list[Said]:
        end, self._end = self._end, None
        if end is None:
            return []
        usage = self._usage
        return [Ended(end, as_count(usage.get("prompt_tokens")), as_count(usage.get("completion_tokens")))]


class OpenAITelling:
    """Writes chunks."""

    def __init__(self, prompt: Prompt, signature: Signature) -> None:
        self._wants_usage = prompt.wants_usage
        self._signature = signature
        self._head: dict[str, Any] = {}

    def tell(self, said: Said) -> bytes:
        match said:
            case Begun():
                head = _head(self._signature, "chat.completion.chunk", said.model)
                self._head = head | ({"usage": None} if self._wants_usage else {})
                return self._delta({"role": "assistant", "content": ""})
            case Words():
                return self._delta({"content": said.text})
            case Called():
                function = {"name": said.name, "arguments": ""}
                named = said.id or self._signature.use_id(said.at)
                call = {"index": said.at, "id": named, "type": "function", "function": function}
                return self._delta({"tool_calls": [call]})
            case Arguments():
                return self._delta({"tool_calls": [{"index": said.at, "function": {"arguments": said.json}}]})
            case Ended():
                end = self._delta({}, _REASONS[said.end])
                usage = _usage(said.prompt_tokens, said.completion_tokens)
                told = data_bytes(self._head | {"choices": [], "usage": usage}) if self._wants_usage else b""
                return end + told + b"data: [DONE]\n\n"
            case Broke():
                raise Malformed(said.word)

    def _delta(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return data_bytes(self._head | {"choices": [choice]})


# --- parts ---------------------------------------------------------------------------------------------------------


def read_tool(tool: dict[str, Any]) -> Tool:
    """A function as OpenAI and Ollama describe it."""
    if tool.get("type", "function") != "function":
        refuse(f"a tool of type {str(tool.get('type'))[:32]}")
    function = as_object(tool.get("function"))
    schema = as_object(function.get("parameters")) or {"type": "object", "properties": {}}
    return Tool(str(function.get("name") or ""), str(function.get("description") or ""), schema)


def write_tool(tool: Tool) -> dict[str, Any]:
    """A function as OpenAI and Ollama describe it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.schema}
    return {"type": "function", "function": function}


def choice_of(choice: Any, name_of: Callable[[dict[str, Any]], Any]) -> str:
    """A `tool_choice` as both of OpenAI's APIs have it but for where `name_of` finds the function that it names."""
    if isinstance(choice, dict):
        name = name_of(cast("dict[str, Any]", choice))
        return f"tool:{name}" if name else refuse("this tool_choice")
    if choice in (None, "auto", "none"):
        return str(choice or "auto")
    return "any" if choice == "required" else refuse("this tool_choice")


def schema_of(wanted: dict[str, Any], schema: Any, where: str) -> dict[str, Any] | None:
    """What a format of this type asks for: no JSON (None), any, or such as `schema` says; `where` it was asked for."""
    match wanted.get("type"):
        case None | "text":
            return None
        case "json_object":
            return {}
        case "json_schema":
            return as_object(schema)
        case _:
            return refuse(f"this {where}")


def _asked_for_json(prompt: Prompt) -> tuple[Turn, ...]:
    """The turns; where any JSON object will do, one of them has to say so, or OpenAI's answer is a 400."""
    turns = met_by_id(prompt.turns, _ID)
    if prompt.schema != {} or any("json" in texts_of(turn).lower() for turn in turns):
        return turns
    return (Turn("system", (Text("Answer in JSON."),)), *turns)


def _turn(message: Fields, names: dict[str, str]) -> Turn:
    role, parts = message.text("role"), list(_parts(message.take("content")))
    if role == "tool":
        use = message.text("tool_call_id")
        message.done()
        return Turn("user", (ToolResult(use, names.get(use, ""), result_text(parts)),))
    if role == "assistant":
        refusal = message.text("refusal")
        parts += [Text(refusal)] if refusal else []
        try:
            uses = [_use(call) for call in message.objects("tool_calls")]
        except Malformed:
            refuse("a tool's arguments that are no JSON object")
        names |= {use.id: use.name for use in uses}
        parts += uses
        message.done(("annotations", "reasoning", "reasoning_content"))
        return Turn("assistant", tuple(parts))
    message.done()
    if role in ("system", "developer", "user"):
        return Turn("user" if role == "user" else "system", tuple(parts))
    return refuse(f"a message of role {role[:32]}")


def _parts(content: Any) -> Iterator[Part]:
    if content is None:
        return
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    for part in as_list(content):
        match part.get("type"):
            case "text" | "refusal":
                text = str(part.get("text") or part.get("refusal") or "")
                if text:
                    yield Text(text)
            case "image_url":
                yield picture_of(str(as_object(part.get("image_url")).get("url") or ""))
            case kind:
                refuse(f"content of type {str(kind)[:32]}")


def picture_of(url: str) -> Picture:
    """A picture as OpenAI's APIs have it: an address, or a `data:` URL."""
    if not url.startswith("data:"):
        return Picture(url=url)
    head, comma, data = url.removeprefix("data:").partition(",")
    media_type, _, coding = head.partition(";")
    return Picture(media_type, data) if comma and coding == "base64" else refuse("a picture that is not in base64")


def _merged(turns: Iterator[Turn]) -> Iterator[Turn]:
    """Turns, the results of several tools in one."""
    before: Turn | None = None
    for turn in turns:
        if before is not None and _is_result(before) and _is_result(turn):
            before = Turn("user", before.parts + turn.parts)
            continue
        if before is not None:
            yield before
        before = turn
    if before is not None:
        yield before


def _is_result(turn: Turn) -> bool:
    return bool(turn.parts) and isinstance(turn.parts[-1], ToolResult)


def _messages(turn: Turn) -> Iterator[dict[str, Any]]:
    said = [part for part in turn.parts if isinstance(part, Text | Picture)]
    results = [part for part in turn.parts if isinstance(part, ToolResult)]
    yield from ({"role": "tool", "tool_call_id": each.id, "content": each.text} for each in results)
    if turn.role == "assistant":
        uses = [_call(part) for part in turn.parts if isinstance(part, ToolUse)]
        message: dict[str, Any] = {"role": "assistant", "content": texts_of(turn) or None}
        yield message | ({"tool_calls": uses} if uses else {})
    elif said or not results:
        words = [part.text for part in said if isinstance(part, Text)]
        alone = len(said) == 1 and len(words) == 1
        yield {"role": turn.role, "content": words[0] if alone else [_part(part) for part in said]}


def _part(part: Text | Picture) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.url or f"data:{part.media_type};base64,{part.data}"}}


def _use(call: dict[str, Any]) -> ToolUse:
    function = as_object(call.get("function"))
    return ToolUse(str(call.get("id") or ""), str(function.get("name") or ""), arguments_of(function.get("arguments")))


def _call(use: ToolUse) -> dict[str, Any]:
    return {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": spelt(use.arguments)}}


def _end(reason: Any, *, uses: bool) -> End:
    return _ENDS.get(str(reason), "tools" if uses else "stop")


def _either(first: int | None, second: int | None) -> int | None:
    return second if first is None else first


def _head(signature: Signature, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{signature.id}", "object": kind, "created": signature.created_s, "model": model}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
