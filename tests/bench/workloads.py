"""What is sent through every subject, and what must come back: one table of exchanges, one of workloads.

An exchange is a request and its answer; a workload is an exchange and how hard it is driven. A new one is one entry.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

MARKER = "x-bench"
"""The request header by which the upstream knows which exchange is meant."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and its answer in one piece (with a length) or in several (chunked, `gap_s` apart)."""

    name: str
    path: str
    asked: bytes
    pieces: tuple[bytes, ...]
    gap_s: float = 0.0

    @property
    def is_streamed(self) -> bool:
        return len(self.pieces) > 1

    @property
    def body(self) -> bytes:
        """The whole body of the answer."""
        return b"".join(self.pieces)

    def request(self, port: int) -> bytes:
        """The request as the official SDK would write it, with its 16 headers and our marker."""
        accept = "text/event-stream" if self.is_streamed else "application/json"
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Accept-Encoding: gzip, deflate",
            "Connection: keep-alive",
            f"Accept: {accept}",
            "Content-Type: application/json",
            "User-Agent: AsyncOpenAI/Python 1.99.9",
            "X-Stainless-Lang: python",
            "X-Stainless-Package-Version: 1.99.9",
            "X-Stainless-OS: Linux",
            "X-Stainless-Arch: x64",
            "X-Stainless-Runtime: CPython",
            "X-Stainless-Runtime-Version: 3.11.9",
            "Authorization: Bearer sk-proj-" + "a1B2c3D4" * 6,
            "X-Stainless-Async: async:asyncio",
            "x-stainless-retry-count: 0",
            "x-stainless-read-timeout: 600",
            f"{MARKER}: {self.name}",
            f"Content-Length: {len(self.asked)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.asked

    def answer_head(self) -> bytes:
        """The head of the answer, with the headers that a provider's edge adds."""
        kind = "text/event-stream; charset=utf-8" if self.is_streamed else "application/json"
        framing = "transfer-encoding: chunked" if self.is_streamed else f"content-length: {len(self.body)}"
        lines = [
            "HTTP/1.1 200 OK",
            "date: Mon, 01 Jun 2026 12:00:00 GMT",
            f"content-type: {kind}",
            framing,
            "connection: keep-alive",
            # nginx gathers a body into its buffers unless it is asked not to
            *(["x-accel-buffering: no", "cache-control: no-cache"] if self.is_streamed else []),
            "openai-processing-ms: 412",
            "openai-version: 2020-10-01",
            "x-ratelimit-limit-requests: 10000",
            "x-ratelimit-remaining-requests: 9999",
            "x-ratelimit-limit-tokens: 30000000",
            "x-ratelimit-remaining-tokens: 29999838",
            "x-envoy-upstream-service-time: 419",
            "strict-transport-security: max-age=31536000; includeSubDomains; preload",
            "x-content-type-options: nosniff",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Workload:
    """An exchange on so many keep-alive connections at once.

    `on_one_core` puts subject, upstream and load on the same core: with one connection only one of them runs at a
    time, and waking an idle core would cost more than the work.
    """

    name: str
    exchange: Exchange
    connections: int
    on_one_core: bool = False

    @property
    def unit(self) -> str:
        return "chunk" if self.exchange.is_streamed else "call"

    @property
    def about(self) -> str:
        """What is done, for the report."""
        exchange = self.exchange
        sent, got = len(exchange.asked), len(exchange.body)
        cores = ", all on one core" if self.on_one_core else ""
        if exchange.is_streamed:
            shape = f"{len(exchange.pieces)} events of {len(exchange.pieces[1])} B, {exchange.gap_s * 1000:g} ms apart"
            return f"{self.connections} streams of {shape}{cores}"
        return f"{sent} B up, {got} B down, {self.connections} connection(s){cores}"


# --- bodies --------------------------------------------------------------------------------------------------------


def _text(length: int, seed: int) -> str:
    """`length` characters that read like words and do not repeat as a constant would."""
    dice = random.Random(seed)
    words = ["sidecar", "forwards", "call", "upstream", "watches", "how", "long", "before", "it", "answers"]
    text = ""
    while len(text) < length:
        text += dice.choice(words) + " "
    return text[:length]


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _chat_body(*, stream: bool) -> bytes:
    messages = [
        {"role": "system", "content": "You are a helpful assistant. Answer from the context."},
        {"role": "user", "content": _text(430, 1)},
    ]
    streaming = {"stream": True} if stream else {}
    return _json({"model": "gpt-4o-mini", "messages": messages, "temperature": 0.2, **streaming})


def _completion(body_bytes: int) -> bytes:
    def made(length: int) -> bytes:
        message = {"role": "assistant", "content": _text(length, 2), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {"prompt_tokens": 96, "completion_tokens": 120, "total_tokens": 216}
        head = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1780000000, "model": "gpt-4o-mini"}
        return _json({**head, "choices": [choice], "usage": usage})

    return made(body_bytes - len(made(0)))


def _vector(dimensions: int) -> bytes:
    dice = random.Random(3)
    values = [round(dice.uniform(-0.1, 0.1), 10) for _ in range(dimensions)]
    data = [{"object": "embedding", "index": 0, "embedding": values}]
    usage = {"prompt_tokens": 12, "total_tokens": 12}
    return _json({"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage})


def _events(count: int) -> tuple[bytes, ...]:
    def event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1780000000}
        return b"data: " + _json({**head, "model": "gpt-4o-mini", "choices": [choice]}) + b"\n\n"

    words = [event({"content": f"{word} "}) for word in _text(12 * count, 4).split()[: count - 3]]
    return (event({"role": "assistant"}), *words, event({}, "stop"), b"data: [DONE]\n\n")


# --- the tables ----------------------------------------------------------------------------------------------------

CHAT = Exchange("chat", "/v1/chat/completions", _chat_body(stream=False), (_completion(1024),))
EMBEDDING = Exchange(
    "embedding",
    "/v1/embeddings",
    _json({"input": _text(60, 5), "model": "text-embedding-3-small", "encoding_format": "float"}),
    (_vector(1536),),
)
STREAM = Exchange("stream", "/v1/chat/completions", _chat_body(stream=True), _events(100), gap_s=0.005)

EXCHANGES = {exchange.name: exchange for exchange in (CHAT, EMBEDDING, STREAM)}

WORKLOADS = (
    Workload("chat", CHAT, connections=32),
    Workload("embedding", EMBEDDING, connections=32),
    Workload("stream", STREAM, connections=20),
    Workload("chat-1", CHAT, connections=1, on_one_core=True),
)
