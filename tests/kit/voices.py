"""Three providers' streams, event by event: what an upstream says, and what a caller has heard of it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Told:
    """A stream as a caller read it, half of one too."""

    text: str = ""
    starts: int = 0
    ended: bool = False
    errors: list[str] = field(default_factory=list[str])
    models: set[str] = field(default_factory=set[str])
    ids: set[str] = field(default_factory=set[str])
    usage: tuple[int, int] = (0, 0)
    comments: list[str] = field(default_factory=list[str])


class Voice(ABC):
    """One provider. `model` is what it calls itself."""

    name = ""
    path = ""
    content_type = "text/event-stream"

    def __init__(self, model: str = "first-model") -> None:
        self.model = model

    def asked(self, *, stream: bool = True, **more: Any) -> dict[str, Any]:
        """A prompt."""
        messages = [{"role": "user", "content": "Count."}]
        return {"model": "m", "messages": messages, "stream": stream} | more

    @abstractmethod
    def start(self) -> list[bytes]:
        """What comes before any content."""
        ...

    @abstractmethod
    def token(self, text: str) -> bytes: ...

    @abstractmethod
    def end(self, prompt: int = 9, completion: int = 3) -> list[bytes]: ...

    def whole(self, *texts: str) -> list[bytes]:
        """A whole stream."""
        return [*self.start(), *map(self.token, texts), *self.end(completion=len(texts))]

    @abstractmethod
    def answer(self, text: str) -> dict[str, Any]:
        """The same at once."""
        ...

    @abstractmethod
    def error(self) -> bytes:
        """That it can't go on, within a stream."""
        ...

    def idle(self) -> bytes:
        """What keeps a connection alive and says nothing."""
        return b": keep-alive\n\n"

    @abstractmethod
    def refusal(self, what: str) -> dict[str, Any]:
        """The body of a 400: `context` or `filter`."""
        ...

    def read(self, body: bytes) -> Told:
        """What a caller makes of a stream; of events that are cut short nothing."""
        told = Told()
        for block in body.decode().split("\n\n"):
            lines = block.split("\n")
            told.comments += [line for line in lines if line.startswith(":")]
            data = "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data: "))
            if data == "[DONE]":
                told.ended = True
            elif data and (event := _parsed(data)) is not None:
                self._take(event, told)
        return told

    @abstractmethod
    def _take(self, event: dict[str, Any], told: Told) -> None: ...


class OpenAI(Voice):
    name = "openai-chat"
    path = "/v1/chat/completions"

    def asked(self, *, stream: bool = True, **more: Any) -> dict[str, Any]:
        return super().asked(stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}), **more)

    def _chunk(self, choices: list[Any], **more: Any) -> bytes:
        head = {"id": f"chatcmpl-{self.model}", "object": "chat.completion.chunk", "created": 1, "model": self.model}
        return b"data: " + json.dumps(head | {"choices": choices} | more).encode() + b"\n\n"

    def _delta(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": reason}])

    def start(self) -> list[bytes]:
        return [self._delta({"role": "assistant", "content": ""})]

    def token(self, text: str) -> bytes:
        return self._delta({"content": text})

    def end(self, prompt: int = 9, completion: int = 3) -> list[bytes]:
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return [self._delta({}, "stop"), self._chunk([], usage=usage), b"data: [DONE]\n\n"]

    def answer(self, text: str) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"id": "c", "object": "chat.completion", "model": self.model, "choices": [choice]}

    def error(self) -> bytes:
        return b'data: {"error": {"message": "no more", "type": "server_error", "code": "overloaded"}}\n\n'

    def refusal(self, what: str) -> dict[str, Any]:
        code = {"context": "context_length_exceeded", "filter": "content_filter"}[what]
        return {"error": {"message": f"refused for {what}", "type": "invalid_request_error", "code": code}}

    def _take(self, event: dict[str, Any], told: Told) -> None:
        if "error" in event:
            told.errors.append(str(event["error"].get("code")))
            return
        told.models.add(event["model"])
        told.ids.add(event["id"])
        if event.get("usage"):
            told.usage = event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"]
        for choice in event["choices"]:
            told.starts += "role" in choice["delta"]
            told.text += choice["delta"].get("content") or ""


class Anthropic(Voice):
    name = "anthropic"
    path = "/v1/messages"

    def asked(self, *, stream: bool = True, **more: Any) -> dict[str, Any]:
        return super().asked(stream=stream, **({"max_tokens": 100} | more))

    def _event(self, kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()

    def start(self) -> list[bytes]:
        usage = {"input_tokens": 9, "output_tokens": 1}
        message = {"id": f"msg_{self.model}", "type": "message", "role": "assistant", "content": []}
        return [
            self._event("message_start", message=message | {"model": self.model, "usage": usage}),
            self._event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            self._event("ping"),
        ]

    def token(self, text: str) -> bytes:
        return self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def end(self, prompt: int = 9, completion: int = 3) -> list[bytes]:
        usage = {"input_tokens": prompt, "output_tokens": completion}
        return [
            self._event("content_block_stop", index=0),
            self._event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=usage),
            self._event("message_stop"),
        ]

    def answer(self, text: str) -> dict[str, Any]:
        usage = {"input_tokens": 9, "output_tokens": 3}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": self.model, "usage": usage}
        return message | {"content": [{"type": "text", "text": text}], "stop_reason": "end_turn"}

    def error(self) -> bytes:
        return self._event("error", error={"type": "overloaded_error", "message": "Overloaded"})

    def idle(self) -> bytes:
        return self._event("ping")

    def refusal(self, what: str) -> dict[str, Any]:
        message = {"context": "prompt is too long: 9 tokens > 8", "filter": "blocked by our content filtering policy"}
        return {"type": "error", "error": {"type": "invalid_request_error", "message": message[what]}}

    def _take(self, event: dict[str, Any], told: Told) -> None:
        match event["type"]:
            case "message_start":
                told.starts += 1
                told.models.add(event["message"]["model"])
                told.ids.add(event["message"]["id"])
            case "content_block_delta":
                told.text += event["delta"]["text"]
            case "message_delta":
                told.usage = event["usage"]["input_tokens"], event["usage"]["output_tokens"]
            case "message_stop":
                told.ended = True
            case "error":
                told.errors.append(event["error"]["type"])
            case _:
                pass


class Ollama(Voice):
    name = "ollama-chat"
    path = "/api/chat"
    content_type = "application/x-ndjson"

    def _line(self, text: str, **more: Any) -> bytes:
        message = {"role": "assistant", "content": text}
        head = {"model": self.model, "created_at": "2026-01-01T00:00:00Z", "message": message, "done": False}
        return json.dumps(head | more).encode() + b"\n"

    def start(self) -> list[bytes]:
        return [self._line("")]

    def token(self, text: str) -> bytes:
        return self._line(text)

    def end(self, prompt: int = 9, completion: int = 3) -> list[bytes]:
        return [self._line("", done=True, done_reason="stop", prompt_eval_count=prompt, eval_count=completion)]

    def answer(self, text: str) -> dict[str, Any]:
        return json.loads(self._line(text, done=True, done_reason="stop"))

    def error(self) -> bytes:
        return b'{"error": "llama runner has gone"}\n'

    def idle(self) -> bytes:
        return self._line("")

    def refusal(self, what: str) -> dict[str, Any]:
        message = {"context": "the prompt exceeds the available context size", "filter": "refused by a filter"}
        return {"error": message[what]}

    def read(self, body: bytes) -> Told:
        told = Told()
        for line in body.decode().split("\n"):
            if (event := _parsed(line)) is not None:
                self._take(event, told)
        return told

    def _take(self, event: dict[str, Any], told: Told) -> None:
        if "error" in event:
            told.errors.append(event["error"])
            return
        told.starts = 1
        told.models.add(event["model"])
        told.text += event["message"]["content"]
        if event["done"]:
            told.ended = True
            told.usage = event["prompt_eval_count"], event["eval_count"]


def _parsed(data: str) -> dict[str, Any] | None:
    """An event, or None for one that is malformed or cut short."""
    try:
        return json.loads(data)
    except ValueError:
        return None


VOICES: dict[str, type[Voice]] = {voice.name: voice for voice in (OpenAI, Anthropic, Ollama)}
