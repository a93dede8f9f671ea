"""What a bench sends and what must come back: requests as the official SDKs write them, answers as providers do."""

from __future__ import annotations

import base64
import json
import random
import struct
from dataclasses import dataclass

MARKER = "x-bench"
"""The request header by which the upstream knows which exchange is meant."""

STAMP = b"fp_0000000000000000"
"""Where an event of a stream has room for the moment it is sent: nanoseconds of the monotonic clock, in hex."""

DIMENSIONS = 1536


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and its answer in one piece (with a length) or in several (chunked, `gap_s` apart)."""

    name: str
    path: str
    asked: bytes
    pieces: tuple[bytes, ...]
    gap_s: float = 0.0
    host: str = ""

    @property
    def is_streamed(self) -> bool:
        return len(self.pieces) > 1

    @property
    def body(self) -> bytes:
        """The whole body of the answer; a stream's stamps in it are noughts."""
        return b"".join(self.pieces)

    def request(self, port: int) -> bytes:
        """The request as the official SDK would write it, with its 16 headers and our marker."""
        accept = "text/event-stream" if self.is_streamed else "application/json"
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host or '127.0.0.1'}:{port}",
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


# --- the exchanges -------------------------------------------------------------------------------------------------


def chat(name: str = "chat", path: str = "/v1/chat/completions", host: str = "") -> Exchange:
    """0.6 KB up, 1 KiB down."""
    return Exchange(name, path, _chat_body(stream=False), (_completion(1024),), host=host)


def stream(name: str, count: int, gap_s: float) -> Exchange:
    """`count` events of about 0.2 KB, `gap_s` apart, each with room for a stamp."""
    return Exchange(name, "/v1/chat/completions", _chat_body(stream=True), _events(count), gap_s)


def embedding(
    name: str = "embedding", path: str = "/v1/embeddings", host: str = "", *, decimals: int | None = None
) -> Exchange:
    """One vector down: in base64 as the SDK asks for it (8 KiB), or as numbers with so many decimals."""
    encoding = "base64" if decimals is None else "float"
    asked = {"input": _text(60, 5), "model": "text-embedding-3-small", "encoding_format": encoding}
    values = _vector(3, decimals or 7)
    vector = values if decimals else base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *values)).decode()
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": 12, "total_tokens": 12}
    answer = {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}
    return Exchange(name, path, _json(asked), (_json(answer),), host=host)


def search(name: str = "search", path: str = "/collections/docs/points/query", host: str = "") -> Exchange:
    """A 21 KiB query vector up, ten points with their passages down: 6 KB."""
    asked = {"query": _vector(6, 10), "limit": 10, "with_payload": True}
    points = [
        {"id": number, "version": 1, "score": round(0.9 - number / 50, 6), "payload": {"text": _text(500, 7 + number)}}
        for number in range(10)
    ]
    answer = {"result": {"points": points}, "status": "ok", "time": 0.001267}
    return Exchange(name, path, _json(asked), (_json(answer),), host=host)


def plain(name: str = "plain", path: str = "/", host: str = "") -> Exchange:
    """1 KiB up and down, in nobody's dialect."""
    body = _json({"text": _text(1024 - len('{"text":""}'), 8)})
    return Exchange(name, path, body, (body,), host=host)


# --- bodies --------------------------------------------------------------------------------------------------------


def _text(length: int, seed: int) -> str:
    """`length` characters that read like words and do not repeat as a constant would."""
    dice = random.Random(seed)  # noqa: S311 (the same words every time is what is wanted)
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


def _vector(seed: int, decimals: int) -> list[float]:
    dice = random.Random(seed)  # noqa: S311 (the same numbers every time is what is wanted)
    return [round(dice.uniform(-0.1, 0.1), decimals) for _ in range(DIMENSIONS)]


def _events(count: int) -> tuple[bytes, ...]:
    def event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1780000000}
        stamped = {**head, "model": "gpt-4o-mini", "system_fingerprint": STAMP.decode()}
        return b"data: " + _json({**stamped, "choices": [choice]}) + b"\n\n"

    words = [event({"content": f"{word} "}) for word in _text(12 * count, 4).split()[: count - 3]]
    return (event({"role": "assistant"}), *words, event({}, "stop"), b"data: [DONE]\n\n")
