"""Three providers of language models as far as a translation can tell: each says a script, and reads prompts strictly.

    Question --Provider.body--> what its own client sends --Provider.read--> the same Question, or AssertionError
    Script --Provider.whole | Provider.stream--> what it answers

`read` refuses what the real API refuses (ids, roles, results that meet no use, ceilings that are missing), so that a
translation is held to more than what it says of itself. Nothing here shares code with what is tested.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from typing import Any

from tests.kit.questions import Function, Provider, Question, Script, Turn, Use

_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class OpenAIProvider(Provider):
    name = "openai-chat"
    path = "/v1/chat/completions"

    def body(self, question: Question) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "system", "content": question.system}] if question.system else []
        for turn in question.turns:
            messages += [
                {"role": "tool", "tool_call_id": f"call_{named}", "content": text} for named, text in turn.results
            ]
            if turn.pictures:
                urls = [each if ":" in each else f"data:image/png;base64,{each}" for each in turn.pictures]
                parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
                messages.append({"role": turn.role, "content": [{"type": "text", "text": turn.text}, *parts]})
            elif turn.text or turn.uses:
                calls = [
                    {
                        "id": f"call_{use.id}",
                        "type": "function",
                        "function": {"name": use.name, "arguments": json.dumps(use.arguments)},
                    }
                    for use in turn.uses
                ]
                messages.append(
                    {"role": turn.role, "content": turn.text or None} | ({"tool_calls": calls} if calls else {})
                )
        functions = [
            {"name": each.name, "description": each.description, "parameters": each.schema} for each in question.tools
        ]
        formats = {"type": "json_schema", "json_schema": {"name": "answer", "schema": question.schema}}
        told: dict[str, Any] = {
            "messages": messages,
            "tools": [{"type": "function", "function": each} for each in functions] or None,
            "tool_choice": None if question.choice == "auto" else _choice_of_openai(question.choice),
            "response_format": formats if question.schema else None if question.schema is None else _JSON_OBJECT,
            "stop": list(question.stop) or None,
            "max_completion_tokens": question.tokens_max,
            "temperature": question.temperature,
            "top_p": question.top_p,
        }
        return {name: value for name, value in told.items() if value is not None}

    def read(self, body: dict[str, Any]) -> Question:
        turns: list[Turn] = []
        system, seen = "", dict[str, int]()
        waiting: list[str] = []
        for message in body["messages"]:
            role, content = message["role"], message.get("content")
            assert role == "tool" or not waiting, "a use without its result"
            if role in ("system", "developer"):
                system += content if isinstance(content, str) else "".join(part["text"] for part in content)
                continue
            if role == "tool":
                assert message["tool_call_id"] in waiting, "a result without its use"
                waiting.remove(message["tool_call_id"])
                result = (seen[message["tool_call_id"]], content)
                if turns and turns[-1].results:
                    turns[-1] = replace(turns[-1], results=(*turns[-1].results, result))
                else:
                    turns.append(Turn("user", results=(result,)))
                continue
            text, pictures = _parts_of_openai(content)
            uses: list[Use] = []
            for call in message.get("tool_calls", ()):
                assert role == "assistant"
                assert call["type"] == "function"
                assert 0 < len(call["id"]) <= 40, "the id is too long"
                assert call["id"] not in seen, "the same id twice"
                seen[call["id"]] = len(seen)
                waiting.append(call["id"])
                function = call["function"]
                uses.append(Use(seen[call["id"]], function["name"], json.loads(function["arguments"])))
            assert text or pictures or uses, "an empty message"
            if turns and turns[-1].results and not turns[-1].text and role == "user":
                turns[-1] = replace(turns[-1], text=text, pictures=pictures)
            else:
                turns.append(Turn(role, text, pictures, tuple(uses)))
        assert not waiting, "a use without its result"
        functions = [tool["function"] for tool in body.get("tools", ())]
        assert all(_NAME.fullmatch(each["name"]) for each in functions)
        assert "tool_choice" not in body or functions, "a choice of no tools"
        wanted = body.get("response_format", {"type": "text"})
        kind = wanted["type"]
        assert kind in ("text", "json_object", "json_schema")
        assert kind != "json_schema" or _NAME.fullmatch(wanted["json_schema"]["name"])
        assert kind != "json_object" or "json" in json.dumps(body["messages"]).lower(), "JSON that no word asks for"
        assert not {"max_tokens", "max_completion_tokens"} <= body.keys()
        choice = body.get("tool_choice", "auto")
        return Question(
            tuple(turns),
            system,
            tuple(Function(each["name"], each.get("description", ""), each["parameters"]) for each in functions),
            f"tool:{choice['function']['name']}" if isinstance(choice, dict) else choice.replace("required", "any"),
            {"text": None, "json_object": {}}.get(kind, wanted.get("json_schema", {}).get("schema")),
            _stop_of_openai(body.get("stop")),
            body.get("max_completion_tokens", body.get("max_tokens")),
            body.get("temperature"),
            body.get("top_p"),
        )

    def whole(self, script: Script, body: dict[str, Any]) -> dict[str, Any]:
        calls = [
            {"id": f"call_{named}", "type": "function", "function": {"name": name, "arguments": "".join(pieces)}}
            for named, (name, pieces) in zip(script.ids, script.uses, strict=False)
        ]
        message = {"role": "assistant", "content": script.text or None, "refusal": None}
        choice = {"index": 0, "message": message | ({"tool_calls": calls} if calls else {}), "logprobs": None}
        choice |= {"finish_reason": _openai_end(script)}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": script.model}
        return head | {"choices": [choice], "usage": _openai_usage(script)}

    def stream(self, script: Script, body: dict[str, Any]) -> list[bytes]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": script.model}
        wants_usage = body.get("stream_options", {}).get("include_usage") is True
        head |= {"usage": None} if wants_usage else {}

        def delta(reason: str | None = None, **fields: Any) -> bytes:
            choice = {"index": 0, "delta": fields, "logprobs": None, "finish_reason": reason}
            return _event(head | {"choices": [choice]})

        told = [delta(role="assistant", content="", refusal=None)]
        told += [delta(content=word) for word in script.words]
        for at, (name, pieces) in enumerate(script.uses):
            function = {"name": name, "arguments": ""}
            call = {"index": at, "id": f"call_{script.ids[at]}", "type": "function", "function": function}
            told.append(delta(tool_calls=[call]))
            told += [delta(tool_calls=[{"index": at, "function": {"arguments": piece}}]) for piece in pieces]
        told.append(delta(_openai_end(script)))
        if wants_usage:
            told.append(_event(head | {"choices": [], "usage": _openai_usage(script)}))
        return [*told, b"data: [DONE]\n\n"]

    def begun(self, script: Script, body: dict[str, Any]) -> int:
        return 1

    def error_event(self) -> bytes:
        return _event({"error": {"message": "The server had an error", "type": "server_error", "code": "overloaded"}})

    def error(self, kind: str) -> tuple[int, dict[str, Any]]:
        status, code, message = {
            "context": (400, "context_length_exceeded", "maximum context length is 8 tokens"),
            "key": (401, "invalid_api_key", "Incorrect API key provided: second-secret"),
            "busy": (429, "rate_limit_exceeded", "Rate limit reached"),
            "broken": (500, "server_error", "The server had an error"),
        }[kind]
        return status, {"error": {"message": message, "type": code, "param": None, "code": code}}


class AnthropicProvider(Provider):
    name = "anthropic"
    path = "/v1/messages"

    def body(self, question: Question) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        for turn in question.turns:
            blocks: list[dict[str, Any]] = [
                {"type": "tool_result", "tool_use_id": f"toolu_{named}", "content": text}
                for named, text in turn.results
            ]
            blocks += [{"type": "text", "text": turn.text}] if turn.text else []
            for each in turn.pictures:
                url = {"type": "url", "url": each}
                data = {"type": "base64", "media_type": "image/png", "data": each}
                blocks.append({"type": "image", "source": url if ":" in each else data})
            blocks += [
                {"type": "tool_use", "id": f"toolu_{use.id}", "name": use.name, "input": use.arguments}
                for use in turn.uses
            ]
            messages.append({"role": turn.role, "content": blocks})
        choice: dict[str, Any] = {"type": question.choice}
        if question.choice.startswith("tool:"):
            choice = {"type": "tool", "name": question.choice.removeprefix("tool:")}
        tools = [
            {"name": each.name, "description": each.description, "input_schema": each.schema} for each in question.tools
        ]
        form = {"format": {"type": "json_schema", "schema": question.schema}}
        told: dict[str, Any] = {
            "messages": messages,
            "system": question.system or None,
            "tools": tools or None,
            "tool_choice": None if question.choice == "auto" else choice,
            "output_config": form if question.schema else None,
            "stop_sequences": list(question.stop) or None,
            "max_tokens": question.tokens_max or 1024,
            "temperature": question.temperature,
            "top_p": question.top_p,
        }
        return {name: value for name, value in told.items() if value is not None}

    def read(self, body: dict[str, Any]) -> Question:
        assert body["max_tokens"] > 0
        assert body["messages"][0]["role"] == "user", "the user must begin"
        assert 0 <= body.get("temperature", 0) <= 1
        turns: list[Turn] = []
        seen: dict[str, int] = {}
        waiting: list[str] = []
        for message in body["messages"]:
            content = message["content"]
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            assert blocks, "an empty message"
            assert not turns or turns[-1].role != message["role"], "two of one side"
            results = [block for block in blocks if block["type"] == "tool_result"]
            assert blocks[: len(results)] == results, "results come first"
            assert sorted(waiting) == sorted(block["tool_use_id"] for block in results), "uses and results don't meet"
            waiting = []
            for block in blocks:
                if block["type"] == "tool_use":
                    assert message["role"] == "assistant"
                    assert _ID.fullmatch(block["id"]), f"the id {block['id']!r}"
                    assert block["id"] not in seen, "the same id twice"
                    seen[block["id"]] = len(seen)
                    waiting.append(block["id"])
            turns.append(_turn_of_anthropic(message["role"], blocks, seen))
        assert not waiting
        assert not seen or body.get("tools"), "uses in a conversation without tools"
        return self._question(body, tuple(turns))

    def _question(self, body: dict[str, Any], turns: tuple[Turn, ...]) -> Question:
        system = body.get("system", "")
        tools, choice = body.get("tools", []), body.get("tool_choice", {"type": "auto"})
        assert all(_NAME.fullmatch(each["name"]) and each["input_schema"]["type"] == "object" for each in tools)
        assert choice["type"] in ("auto", "any", "none", "tool")
        schema = body.get("output_config", {}).get("format", {}).get("schema")
        forced = f"tool:{choice['name']}" if choice["type"] == "tool" else choice["type"]
        assert not forced.startswith("tool:") or forced[5:] in [each["name"] for each in tools]
        if forced == "tool:json_answer":
            # a JSON answer is asked for as the arguments of a tool
            (tool,) = (each for each in tools if each["name"] == "json_answer")
            schema = {} if tool["input_schema"] == {"type": "object"} else tool["input_schema"]
            tools, forced = [], "auto"
        return Question(
            turns,
            system if isinstance(system, str) else "".join(block["text"] for block in system),
            tuple(Function(each["name"], each.get("description", ""), each["input_schema"]) for each in tools),
            forced,
            schema,
            tuple(body.get("stop_sequences", ())),
            body["max_tokens"],
            body.get("temperature"),
            body.get("top_p"),
        )

    def whole(self, script: Script, body: dict[str, Any]) -> dict[str, Any]:
        script = _forced(script, body)
        blocks: list[dict[str, Any]] = [{"type": "text", "text": script.text}] if script.words else []
        blocks += [
            {"type": "tool_use", "id": f"toolu_{named}", "name": name, "input": json.loads("".join(pieces))}
            for named, (name, pieces) in zip(script.ids, script.uses, strict=False)
        ]
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": script.model, "content": blocks}
        usage = {"input_tokens": script.prompt_tokens, "output_tokens": script.completion_tokens}
        return message | {"stop_reason": _anthropic_end(script), "stop_sequence": None, "usage": usage}

    def stream(self, script: Script, body: dict[str, Any]) -> list[bytes]:
        script = _forced(script, body)
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": script.model, "content": []}
        usage = {"input_tokens": script.prompt_tokens, "output_tokens": 1}
        begun = message | {"stop_reason": None, "stop_sequence": None, "usage": usage}
        told = [_named("message_start", message=begun)]
        at = 0
        if script.words:
            told.append(_named("content_block_start", index=0, content_block={"type": "text", "text": ""}))
            told.append(_named("ping"))
            deltas = [{"type": "text_delta", "text": word} for word in script.words]
            told += [_named("content_block_delta", index=0, delta=delta) for delta in deltas]
            told.append(_named("content_block_stop", index=0))
            at = 1
        for named, (name, pieces) in zip(script.ids, script.uses, strict=False):
            block = {"type": "tool_use", "id": f"toolu_{named}", "name": name, "input": {}}
            told.append(_named("content_block_start", index=at, content_block=block))
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *pieces)]
            told += [_named("content_block_delta", index=at, delta=delta) for delta in deltas]
            told.append(_named("content_block_stop", index=at))
            at += 1
        usage = {"output_tokens": script.completion_tokens}
        delta = {"stop_reason": _anthropic_end(script), "stop_sequence": None}
        return [*told, _named("message_delta", delta=delta, usage=usage), _named("message_stop")]

    def begun(self, script: Script, body: dict[str, Any]) -> int:
        # a tool's start is something that an application can act on
        return 3 if _forced(script, body).words else 1

    def error_event(self) -> bytes:
        return _named("error", error={"type": "overloaded_error", "message": "Overloaded"})

    def error(self, kind: str) -> tuple[int, dict[str, Any]]:
        status, name, message = {
            "context": (400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"),
            "key": (401, "authentication_error", "invalid x-api-key second-secret"),
            "busy": (429, "rate_limit_error", "This request would exceed your rate limit"),
            "broken": (529, "overloaded_error", "Overloaded"),
        }[kind]
        return status, {"type": "error", "error": {"type": name, "message": message}}


class OllamaProvider(Provider):
    name = "ollama-chat"
    path = "/api/chat"
    content_type = "application/x-ndjson"

    def body(self, question: Question) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "system", "content": question.system}] if question.system else []
        names = {use.id: use.name for turn in question.turns for use in turn.uses}
        for turn in question.turns:
            messages += [{"role": "tool", "tool_name": names[named], "content": text} for named, text in turn.results]
            if turn.text or turn.uses or turn.pictures:
                message: dict[str, Any] = {"role": turn.role, "content": turn.text}
                if turn.pictures:
                    message["images"] = list(turn.pictures)
                if turn.uses:
                    functions = [{"name": use.name, "arguments": use.arguments} for use in turn.uses]
                    message["tool_calls"] = [{"function": each} for each in functions]
                messages.append(message)
        functions = [
            {"name": each.name, "description": each.description, "parameters": each.schema} for each in question.tools
        ]
        options = {
            "stop": list(question.stop) or None,
            "num_predict": question.tokens_max,
            "temperature": question.temperature,
            "top_p": question.top_p,
        }
        told: dict[str, Any] = {
            "messages": messages,
            "tools": [{"type": "function", "function": each} for each in functions] or None,
            "format": question.schema or (None if question.schema is None else "json"),
            "options": {name: value for name, value in options.items() if value is not None} or None,
        }
        return {name: value for name, value in told.items() if value is not None}

    def read(self, body: dict[str, Any]) -> Question:
        turns: list[Turn] = []
        system, count = "", 0
        waiting: list[Use] = []
        for message in body["messages"]:
            role, text = message["role"], message.get("content", "")
            assert isinstance(text, str)
            if role == "system":
                system += text
                continue
            if role == "tool":
                use = next(use for use in waiting if use.name == message["tool_name"])
                waiting.remove(use)
                if turns[-1].results:
                    turns[-1] = replace(turns[-1], results=(*turns[-1].results, (use.id, text)))
                else:
                    turns.append(Turn("user", results=((use.id, text),)))
                continue
            for data in message.get("images", ()):
                assert base64.b64decode(data, validate=True)
            functions = [call["function"] for call in message.get("tool_calls", ())]
            assert all(isinstance(each["arguments"], dict) for each in functions)
            uses = tuple(Use(count + at, each["name"], each["arguments"]) for at, each in enumerate(functions))
            count += len(uses)
            waiting += uses
            pictures = tuple(message.get("images", ()))
            if turns and turns[-1].results and not turns[-1].text and role == "user":
                turns[-1] = replace(turns[-1], text=text, pictures=pictures)
            else:
                turns.append(Turn(role, text, pictures, uses))
        functions = [tool["function"] for tool in body.get("tools", ())]
        options = body.get("options", {})
        form = body.get("format")
        assert form is None or form == "json" or isinstance(form, dict)
        assert options.keys() <= {"stop", "num_predict", "temperature", "top_p", "top_k"}
        return Question(
            tuple(turns),
            system,
            tuple(Function(each["name"], each.get("description", ""), each["parameters"]) for each in functions),
            "auto",
            {} if form == "json" else form,
            tuple(options.get("stop", ())),
            options.get("num_predict"),
            options.get("temperature"),
            options.get("top_p"),
        )

    def whole(self, script: Script, body: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": script.text}
        if script.uses:
            message["tool_calls"] = [
                {"function": {"name": name, "arguments": arguments}} for name, arguments in script.calls
            ]
        return self._line(script, message=message, **self._end(script))

    def stream(self, script: Script, body: dict[str, Any]) -> list[bytes]:
        told = [self._line(script, message={"role": "assistant", "content": word}, done=False) for word in script.words]
        for name, arguments in script.calls:
            calls = [{"function": {"name": name, "arguments": arguments}}]
            message = {"role": "assistant", "content": "", "tool_calls": calls}
            told.append(self._line(script, message=message, done=False))
        told.append(self._line(script, message={"role": "assistant", "content": ""}, **self._end(script)))
        return [json.dumps(line).encode() + b"\n" for line in told]

    def begun(self, script: Script, body: dict[str, Any]) -> int:
        return 0

    def _line(self, script: Script, **fields: Any) -> dict[str, Any]:
        return {"model": script.model, "created_at": "2026-01-01T00:00:00Z"} | fields

    def _end(self, script: Script) -> dict[str, Any]:
        counts = {"prompt_eval_count": script.prompt_tokens, "eval_count": script.completion_tokens}
        return {"done": True, "done_reason": "length" if script.end == "length" else "stop"} | counts

    def error_event(self) -> bytes:
        return b'{"error": "llama runner process has terminated"}\n'

    def error(self, kind: str) -> tuple[int, dict[str, Any]]:
        status, message = {
            "context": (400, "the prompt exceeds the available context size"),
            "key": (401, "unauthorized second-secret"),
            "busy": (503, "server busy, please try again. maximum pending requests exceeded"),
            "broken": (500, "llama runner process has terminated"),
        }[kind]
        return status, {"error": message}


PROVIDERS: dict[str, Provider] = {each.name: each for each in (OpenAIProvider(), AnthropicProvider(), OllamaProvider())}

# --- parts ---------------------------------------------------------------------------------------------------------

_JSON_OBJECT = {"type": "json_object"}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _named(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


def _choice_of_openai(choice: str) -> Any:
    if choice.startswith("tool:"):
        return {"type": "function", "function": {"name": choice.removeprefix("tool:")}}
    return {"any": "required"}.get(choice, choice)


def _stop_of_openai(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    assert len(stops) <= 4
    return tuple(stops)


def _parts_of_openai(content: Any) -> tuple[str, tuple[str, ...]]:
    if not isinstance(content, list):
        return content or "", ()
    text = "".join(part["text"] for part in content if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return text, tuple(url.removeprefix("data:image/png;base64,") for url in urls)


def _openai_end(script: Script) -> str:
    return {"tools": "tool_calls", "filter": "content_filter"}.get(script.end, script.end)


def _openai_usage(script: Script) -> dict[str, int]:
    prompt, completion = script.prompt_tokens, script.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _turn_of_anthropic(role: str, blocks: list[dict[str, Any]], seen: dict[str, int]) -> Turn:
    text, pictures, uses, results = "", list[str](), list[Use](), list[tuple[int, str]]()
    for block in blocks:
        match block["type"]:
            case "text":
                assert block["text"], "an empty text"
                text += block["text"]
            case "image":
                source = block["source"]
                assert source["type"] == "url" or source["media_type"] == "image/png"
                pictures.append(source["url"] if source["type"] == "url" else source["data"])
            case "tool_use":
                uses.append(Use(seen[block["id"]], block["name"], block["input"]))
            case "tool_result":
                results.append((seen[block["tool_use_id"]], block["content"]))
            case kind:
                raise AssertionError(kind)
    return Turn(role, text, tuple(pictures), tuple(uses), tuple(results))


def _anthropic_end(script: Script) -> str:
    return {"stop": "end_turn", "length": "max_tokens", "tools": "tool_use", "filter": "refusal"}[script.end]


def _forced(script: Script, body: dict[str, Any]) -> Script:
    """What a model says that must use one tool: its words are the arguments."""
    choice = body.get("tool_choice", {})
    if choice.get("type") != "tool" or not script.words:
        return script
    return replace(script, words=(), uses=((choice["name"], script.words),), end="tools")
