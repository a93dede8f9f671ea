"""Applications that ask a question with an official client, and write down what they saw of the answer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import anthropic
import ollama
import openai

from tests.kit.providers import PROVIDERS
from tests.kit.questions import Question

KEY = "first-secret"
HEADERS = {
    "openai-organization": "org-first-secret",
    "openai-project": "proj-first-secret",
    "anthropic-beta": "beta-first-secret",
    "cookie": "session=first-secret",
    "x-forwarded-user": "first-secret",
    "x-tenant": "first-secret",
}
"""What else a caller may send that is nobody's business but the first provider's."""
PATIENCE_S = 30


@dataclass
class Seen:
    """What a client saw: the pieces of the text, the tools to be used, why it ended, its usage and its model."""

    pieces: list[str] = field(default_factory=list[str])
    uses: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    ids: list[str] = field(default_factory=list[str])
    end: str | None = None
    usage: tuple[int, int] = (0, 0)
    model: str = ""
    source: str = ""
    said: Any = None
    """The answer as an application puts it behind the conversation."""

    @property
    def told(self) -> tuple[str, list[tuple[str, Any]], str | None, tuple[int, int]]:
        """All of it that does not say who answered."""
        return "".join(self.pieces), self.uses, self.end, self.usage


class SdkCaller(ABC):
    """One official client at a base URL."""

    name = ""
    dialect = ""
    raised: tuple[type[Exception], ...] = ()
    """What its errors are."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.own = PROVIDERS[self.dialect]

    def ask(self, question: Question, *, stream: bool, **more: Any) -> Seen:
        """Ask, and read to the end. Raises what the client raises."""
        asked = self.own.body(question) | more
        return self._streamed(asked) if stream else self._whole(asked)

    @abstractmethod
    def _whole(self, asked: dict[str, Any]) -> Seen: ...
    @abstractmethod
    def _streamed(self, asked: dict[str, Any]) -> Seen: ...
    @abstractmethod
    def status(self, error: Exception) -> int | None:
        """The HTTP status of an error, None for one in a stream."""
        ...

    @abstractmethod
    def after(self, asked: dict[str, Any], seen: Seen, results: list[str]) -> dict[str, Any]:
        """What an application adds to its messages when tools were used."""
        ...


class OpenAICaller(SdkCaller):
    name = "openai"
    dialect = "openai-chat"
    raised = (openai.APIError,)

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client: openai.OpenAI = self._client()

    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.url + "/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S, default_headers=HEADERS
        )

    def _whole(self, asked: dict[str, Any]) -> Seen:
        raw = self.client.chat.completions.with_raw_response.create(**({"model": "caller-model"} | asked))
        told: Any = raw.parse()
        (choice,) = told.choices
        message = choice.message
        calls = message.tool_calls or []
        return Seen(
            [message.content] if message.content else [],
            [(call.function.name, json.loads(call.function.arguments)) for call in calls],
            [call.id for call in calls],
            choice.finish_reason,
            (told.usage.prompt_tokens, told.usage.completion_tokens),
            told.model,
            raw.headers.get("x-understudy-source", ""),
            message.to_dict(),
        )

    def _streamed(self, asked: dict[str, Any]) -> Seen:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks: Any = self.client.chat.completions.create(**({"model": "caller-model"} | asked | options))
        seen, arguments = Seen(source=chunks.response.headers.get("x-understudy-source", "")), list[str]()
        for chunk in chunks:
            seen.model = chunk.model
            if chunk.usage:
                seen.usage = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
            for choice in chunk.choices:
                if choice.delta.content:
                    seen.pieces.append(choice.delta.content)
                for call in choice.delta.tool_calls or ():
                    if call.index == len(arguments):
                        arguments.append("")
                        seen.uses.append((call.function.name, None))
                        seen.ids.append(call.id)
                    arguments[call.index] += call.function.arguments or ""
                seen.end = choice.finish_reason or seen.end
        seen.uses = [(name, json.loads(each)) for (name, _), each in zip(seen.uses, arguments, strict=True)]
        calls = [
            {"id": named, "type": "function", "function": {"name": name, "arguments": each}}
            for named, (name, _), each in zip(seen.ids, seen.uses, arguments, strict=True)
        ]
        said: dict[str, Any] = {"role": "assistant", "content": "".join(seen.pieces) or None}
        seen.said = said | ({"tool_calls": calls} if calls else {})
        return seen

    def status(self, error: Exception) -> int | None:
        return error.status_code if isinstance(error, openai.APIStatusError) else None

    def after(self, asked: dict[str, Any], seen: Seen, results: list[str]) -> dict[str, Any]:
        told = [
            {"role": "tool", "tool_call_id": named, "content": text}
            for named, text in zip(seen.ids, results, strict=True)
        ]
        return asked | {"messages": [*asked["messages"], seen.said, *told]}


class AzureCaller(OpenAICaller):
    name = "azure"

    def _client(self) -> openai.OpenAI:
        return openai.AzureOpenAI(
            azure_endpoint=self.url,
            api_key=KEY,
            api_version="2024-10-21",
            max_retries=0,
            timeout=PATIENCE_S,
            default_headers=HEADERS,
        )


class AnthropicCaller(SdkCaller):
    name = "anthropic"
    dialect = "anthropic"
    raised = (anthropic.APIError,)

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client = anthropic.Anthropic(
            base_url=url, api_key=KEY, max_retries=0, timeout=PATIENCE_S, default_headers=HEADERS
        )

    def _whole(self, asked: dict[str, Any]) -> Seen:
        raw = self.client.messages.with_raw_response.create(**_for_anthropic(asked))
        told: Any = raw.parse()
        uses = [block for block in told.content if block.type == "tool_use"]
        return Seen(
            [block.text for block in told.content if block.type == "text"],
            [(use.name, use.input) for use in uses],
            [use.id for use in uses],
            told.stop_reason,
            (told.usage.input_tokens, told.usage.output_tokens),
            told.model,
            raw.headers.get("x-understudy-source", ""),
            {"role": "assistant", "content": [block.to_dict() for block in told.content]},
        )

    def _streamed(self, asked: dict[str, Any]) -> Seen:
        events: Any = self.client.messages.create(**_for_anthropic(asked), stream=True)
        seen, arguments = Seen(source=events.response.headers.get("x-understudy-source", "")), list[str]()
        for event in events:
            match event.type:
                case "message_start":
                    seen.model = event.message.model
                    seen.usage = event.message.usage.input_tokens, 0
                case "content_block_start" if event.content_block.type == "tool_use":
                    seen.uses.append((event.content_block.name, None))
                    seen.ids.append(event.content_block.id)
                    arguments.append("")
                case "content_block_delta" if event.delta.type == "text_delta":
                    seen.pieces.append(event.delta.text)
                case "content_block_delta":
                    arguments[-1] += event.delta.partial_json
                case "message_delta":
                    seen.end = event.delta.stop_reason
                    seen.usage = event.usage.input_tokens or seen.usage[0], event.usage.output_tokens
                case _:
                    pass
        seen.uses = [(name, json.loads(each or "{}")) for (name, _), each in zip(seen.uses, arguments, strict=True)]
        text = [{"type": "text", "text": "".join(seen.pieces)}] if seen.pieces else []
        uses = [
            {"type": "tool_use", "id": named, "name": name, "input": each}
            for named, (name, each) in zip(seen.ids, seen.uses, strict=True)
        ]
        seen.said = {"role": "assistant", "content": [*text, *uses]}
        return seen

    def status(self, error: Exception) -> int | None:
        # an error in a stream has the 200 with which it began
        status = error.status_code if isinstance(error, anthropic.APIStatusError) else 200
        return None if status == 200 else status

    def after(self, asked: dict[str, Any], seen: Seen, results: list[str]) -> dict[str, Any]:
        told = [
            {"type": "tool_result", "tool_use_id": named, "content": text}
            for named, text in zip(seen.ids, results, strict=True)
        ]
        return asked | {"messages": [*asked["messages"], seen.said, {"role": "user", "content": told}]}


def _for_anthropic(asked: dict[str, Any]) -> dict[str, Any]:
    """The client has no arguments any more for what its newest models don't take."""
    extra = {name: asked[name] for name in ("temperature", "top_p", "top_k") if name in asked}
    told = {name: value for name, value in asked.items() if name not in extra}
    return {"model": "caller-model"} | told | ({"extra_body": extra} if extra else {})


class OllamaCaller(SdkCaller):
    name = "ollama"
    dialect = "ollama-chat"
    raised = (ollama.ResponseError,)

    def __init__(self, url: str) -> None:
        super().__init__(url)
        headers = {"authorization": f"Bearer {KEY}"} | HEADERS
        self.client = ollama.Client(url, headers=headers, timeout=PATIENCE_S)

    def _whole(self, asked: dict[str, Any]) -> Seen:
        told = self.client.chat(**({"model": "caller-model"} | asked))
        seen = Seen()
        self._take(told, seen)
        seen.said = told.message.model_dump(exclude_none=True)
        return seen

    def _streamed(self, asked: dict[str, Any]) -> Seen:
        seen = Seen()
        for line in self.client.chat(**({"model": "caller-model"} | asked), stream=True):
            self._take(line, seen)
        calls = [{"function": {"name": name, "arguments": each}} for name, each in seen.uses]
        said: dict[str, Any] = {"role": "assistant", "content": "".join(seen.pieces)}
        seen.said = said | ({"tool_calls": calls} if calls else {})
        return seen

    def _take(self, line: ollama.ChatResponse, seen: Seen) -> None:
        seen.model = line.model or ""
        if line.message.content:
            seen.pieces.append(line.message.content)
        seen.uses += [(call.function.name, dict(call.function.arguments)) for call in line.message.tool_calls or ()]
        seen.ids = [""] * len(seen.uses)
        if line.done:
            seen.end = line.done_reason
            seen.usage = line.prompt_eval_count or 0, line.eval_count or 0

    def status(self, error: Exception) -> int | None:
        status = error.status_code if isinstance(error, ollama.ResponseError) else -1
        return None if status == -1 else status

    def after(self, asked: dict[str, Any], seen: Seen, results: list[str]) -> dict[str, Any]:
        names = [name for name, _ in seen.uses]
        told = [{"role": "tool", "tool_name": name, "content": text} for name, text in zip(names, results, strict=True)]
        return asked | {"messages": [*asked["messages"], seen.said, *told]}


CALLERS: dict[str, type[SdkCaller]] = {
    each.name: each for each in (OpenAICaller, AzureCaller, AnthropicCaller, OllamaCaller)
}
