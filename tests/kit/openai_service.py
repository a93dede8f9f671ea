"""A fake OpenAI service: real MiniLM vectors, and answers that say what the prompt said.

    python -m tests.kit.openai_service --port N [--model-cache FOLDER] [--token-gap-s S] [--turned D] [--noise L]

- POST /v1/embeddings         the vectors of all-MiniLM-L6-v2, as floats or base64; turned into D dimensions by a random
                              rotation, they are of a space of their own; with noise of length L, which is each text's
                              own, of one that finds other things as well
- POST /v1/chat/completions   the sentence of the prompt's context that shares most words with the question; whole,
                              or token by token as server-sent events with `[DONE]`
- GET  /v1/models, /healthz
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from understudy.models.embedder import Embedder, load

MODELS = ("text-embedding-3-small", "all-MiniLM-L6-v2", "gpt-4o-mini")
BODY_BYTES_MAX = 64 * 1024 * 1024


class Service:
    """The handlers; the embedder is loaded by the first request that needs it, off the loop."""

    def __init__(self, model_cache: Path, token_gap_s: float = 0.0, turned: int = 0, noise: float = 0.0) -> None:
        self._model_cache = model_cache
        self._token_gap_s = token_gap_s
        self._turned, self._noise = turned, noise
        self._embedder: Embedder | None = None
        self._loading = asyncio.Lock()

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/v1/embeddings", self.embeddings)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/healthz", self.healthz)
        return app

    async def healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def models(self, _request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "understudy-tests"} for name in MODELS]
        return web.json_response({"object": "list", "data": data})

    async def embeddings(self, request: web.Request) -> web.Response:
        asked = await json_of(request)
        given = asked.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            return _error(400, "'input' must be a string or a list of strings here")
        embedder = await self.loaded()
        vectors = np.asarray(await asyncio.to_thread(embedder.embed, texts), dtype=np.float32)
        if self._turned:
            vectors = turned(vectors, self._turned)
        if self._noise:
            vectors = noisy(vectors, texts, self._noise)
        as_base64 = asked.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": base64_of(row) if as_base64 else row.tolist()}
            for index, row in enumerate(vectors)
        ]
        tokens = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": data, "model": asked.get("model"), "usage": usage})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = await json_of(request)
        messages = asked.get("messages")
        if not isinstance(messages, list) or not messages:
            return _error(400, "'messages' must be a list that is not empty")
        text = answer_to([_content(message) for message in messages])
        tokens = re.findall(r"\S+\s*", text)
        base = {"id": "chatcmpl-kit", "created": int(time.time()), "model": asked.get("model")}
        prompt_tokens = sum(len(_content(message).split()) for message in messages)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(tokens),
            "total_tokens": prompt_tokens + len(tokens),
        }
        if asked.get("stream"):
            wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            return await self._stream(request, base, tokens, usage if wants_usage else None)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return web.json_response({**base, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def _stream(
        self, request: web.Request, base: dict[str, Any], tokens: Sequence[str], usage: dict[str, int] | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def send(choices: list[dict[str, Any]], **more: object) -> None:
            event = {**base, "object": "chat.completion.chunk", "choices": choices, **more}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())

        await send([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for token in tokens:
            await asyncio.sleep(self._token_gap_s)
            await send([{"index": 0, "delta": {"content": token}, "finish_reason": None}])
        await send([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if usage is not None:
            await send([], usage=usage)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def loaded(self) -> Embedder:
        async with self._loading:
            if self._embedder is None:
                self._embedder = await asyncio.to_thread(load, None, self._model_cache, "cpu")
            return self._embedder


def answer_to(contents: Sequence[str]) -> str:
    """The sentence of the messages before the last line that shares most words with it; the first of equals."""
    *context, question = [line for content in contents for line in content.splitlines() if line.strip()]
    asked = _words(question)
    sentences = [one for line in context for one in re.split(r"(?<=[.!?])\s+", line.strip())]
    if not sentences:
        return f"You said: {question}"
    return max(sentences, key=lambda sentence: len(asked & _words(sentence)))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _content(message: Any) -> str:
    """A message's text; of one made of parts, its text parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


async def json_of(request: web.Request) -> dict[str, Any]:
    try:
        asked = await request.json()
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise web.HTTPBadRequest(text=json.dumps(_error_body("the body is not a JSON object")))
    return asked


def _error(status: int, message: str) -> web.Response:
    return web.json_response(_error_body(message), status=status)


def _error_body(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def base64_of(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def turned(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Vectors [n, d] as those of another space [n, dimensions]: distances stay, and nothing else does."""
    return (vectors @ _turn(dimensions, vectors.shape[1])).astype(np.float32)


def noisy(vectors: np.ndarray, texts: Sequence[str], length: float) -> np.ndarray:
    """Unit vectors [n, d] with noise of such a length in each, the same for the same text."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
    noise = np.stack([np.random.default_rng(seed).normal(size=vectors.shape[1]) for seed in seeds])
    moved = vectors + length * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


@lru_cache
def _turn(dimensions: int, width: int) -> np.ndarray:
    drawn = np.random.default_rng(3).normal(size=(dimensions, width))
    return np.linalg.qr(drawn)[0].T


def serve(service: type[Service] = Service) -> None:
    """Serve until a signal comes."""
    words = argparse.ArgumentParser(description=service.__doc__)
    words.add_argument("--port", type=int, required=True)
    cache = os.environ.get("UNDERSTUDY_TEST_MODELS") or str(Path(tempfile.gettempdir()) / "understudy-test-models")
    words.add_argument("--model-cache", type=Path, default=Path(cache))
    words.add_argument("--token-gap-s", type=float, default=0.0)
    words.add_argument("--turned", type=int, default=0)
    words.add_argument("--noise", type=float, default=0.0)
    given = words.parse_args()
    given.model_cache.mkdir(parents=True, exist_ok=True)

    async def app() -> web.Application:
        return service(given.model_cache, given.token_gap_s, given.turned, given.noise).app()

    web.run_app(app(), host="127.0.0.1", port=given.port, print=None, access_log=None)


if __name__ == "__main__":
    serve()
