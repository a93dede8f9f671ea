"""A small language model served as OpenAI's chat completions, in a process of its own: `understudy llm FOLDER`.

    POST /v1/chat/completions --one at a time, few waiting--> the decoder's thread --piece by piece--> the caller
    GET /v1/models, /healthz

What the model can't do (tools, pictures, JSON, log probabilities) is a 400 that names it; while it loads, where its
weights or the package are missing, and when too many wait, the answer is a 503: the sidecar asks its next tier.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web

from understudy.models.decoder import Decoder, Ended, TooLong, Wanted
from understudy.models.errors import ModelError
from understudy.policies.service import Refused
from understudy.proxy.dialects.openai import error_body
from understudy.proxy.dialects.openai_chat import data_bytes
from understudy.proxy.dialects.translate import Begun, Prompt, Reply, Signature, Text, Words, refuse, texts_of
from understudy.proxy.dialects.translate import Ended as EndedAnswer
from understudy.proxy.dialects.translate_openai import OpenAIWire

log = logging.getLogger("understudy.llm")

BODY_BYTES_MAX = 4 * 1024 * 1024
RETRY_AFTER_S = "1"
WIRE = OpenAIWire()


class Busy(Exception):
    """Nobody is asked now; the words say why."""


class Serving:
    """One model, its queue, and what is answered of it."""

    def __init__(self, folder: Path, *, answer_tokens_max: int, waiting_max: int, wait_s_max: float) -> None:
        self.folder = folder
        self.answer_tokens_max = answer_tokens_max
        self.waiting_max = waiting_max
        self.wait_s_max = wait_s_max
        self.decoder: Decoder | None = None
        self.reason = "the model is being loaded"
        self.fault: ModelError | None = None
        self._waiting = 0
        self._turn = asyncio.Semaphore(1)
        self._thread = ThreadPoolExecutor(1, "decoder")

    async def load(self) -> None:
        """Load the model; why it could not be stands in `reason`."""
        try:
            decoder = await asyncio.get_running_loop().run_in_executor(self._thread, Decoder, self.folder)
        except ModelError as fault:
            self.reason, self.fault = str(fault), fault
            log.error("the model can't be served: %s", fault)
            return
        self.decoder, self.reason = decoder, ""
        log.info("serving %s, a context of %d tokens", decoder.name, decoder.context_tokens)

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/v1/chat/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/healthz", self._health)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"ready": not self.reason, "reason": self.reason}, status=503 if self.reason else 200)

    async def _models(self, _request: web.Request) -> web.Response:
        names = [] if self.decoder is None else [self.decoder.name]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "local"} for name in names]
        return web.json_response({"object": "list", "data": models})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        decoder = self.decoder
        if decoder is None:
            return _error(503, "no_model", self.reason)
        try:
            prompt = WIRE.read(await request.read(), b"")
            messages = _messages(prompt)
        except Refused as refused:
            what = refused.detail.replace(
                "can't be translated for this provider", "is more than this local model can do"
            )
            return _error(400, "unsupported", what)
        wanted = Wanted(
            min(prompt.tokens_max or self.answer_tokens_max, self.answer_tokens_max),
            prompt.temperature,
            prompt.top_p,
            stop=prompt.stop,
        )
        pieces = self._pieces(decoder, messages, wanted)
        try:
            try:
                first = await anext(pieces)
            except Busy as busy:
                return _error(503, "busy", str(busy))
            except TooLong as fault:
                return _error(400, "context_length_exceeded", str(fault))
            except ModelError as fault:
                return _error(500, "model_error", str(fault))
            signature = Signature(uuid4().hex, int(time.time()))
            if prompt.stream:
                return await _streamed(request, prompt, signature, decoder.name, first, pieces)
            return await _whole(prompt, signature, decoder.name, first, pieces)
        finally:
            await pieces.aclose()

    async def _pieces(
        self, decoder: Decoder, messages: list[dict[str, str]], wanted: Wanted
    ) -> AsyncGenerator[str | Ended]:
        """The answer's pieces, once it is our turn. Raises Busy and ModelError. Whoever closes it stops the decoder."""
        await self._in_turn()
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[str | Ended | Exception] = asyncio.Queue()
        left = threading.Event()

        def decode() -> None:
            try:
                for piece in decoder.answer(messages, wanted, left.is_set):
                    loop.call_soon_threadsafe(said.put_nowait, piece)
            except Exception as fault:
                loop.call_soon_threadsafe(said.put_nowait, fault)

        # the next one's turn comes when the thread is free, not when its caller has gone
        loop.run_in_executor(self._thread, decode).add_done_callback(lambda _: self._turn.release())
        try:
            while True:
                piece = await said.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if isinstance(piece, Ended):
                    return
        finally:
            left.set()

    async def _in_turn(self) -> None:
        if self._turn.locked() and self._waiting >= self.waiting_max:
            raise Busy(f"{self._waiting} calls wait for the local model already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self.wait_s_max):
                await self._turn.acquire()
        except TimeoutError:
            raise Busy(f"the local model was busy for {self.wait_s_max:g} s") from None
        finally:
            self._waiting -= 1


async def serve(serving: Serving, host: str, port: int, stop: asyncio.Event, *, stays: bool) -> None:
    """Serve until `stop`; where the model can't be loaded, say so until then, or end unless it `stays`.

    Raises OSError for an address that can't be had, ModelError.
    """
    # a caller who has gone away is not decoded for
    runner = web.AppRunner(serving.app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        loading = asyncio.create_task(serving.load())
        if not stays:
            loading.add_done_callback(lambda _: stop.set() if serving.fault else None)
        await stop.wait()
        loading.cancel()
        if serving.fault is not None and not stays:
            raise serving.fault
    finally:
        await runner.cleanup()


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    """The conversation in words. Raises Refused for what is more."""
    if prompt.tools and prompt.choice != "none":
        refuse("a prompt with tools")
    if prompt.schema is not None:
        refuse("an answer in JSON")
    if not all(isinstance(part, Text) for turn in prompt.turns for part in turn.parts):
        refuse("content other than text")
    return [{"role": turn.role, "content": texts_of(turn, "\n")} for turn in prompt.turns]


async def _whole(
    prompt: Prompt, signature: Signature, name: str, first: str | Ended, pieces: AsyncIterator[str | Ended]
) -> web.Response:
    text: list[str] = []
    piece = first
    try:
        while not isinstance(piece, Ended):
            text.append(piece)
            piece = await anext(pieces)
    except ModelError as fault:
        return _error(500, "model_error", str(fault))
    reply = Reply(name, "".join(text), (), _end(piece), piece.prompt_tokens, piece.completion_tokens)
    return web.Response(body=WIRE.told(reply, prompt, signature), content_type="application/json")


async def _streamed(
    request: web.Request,
    prompt: Prompt,
    signature: Signature,
    name: str,
    first: str | Ended,
    pieces: AsyncIterator[str | Ended],
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    telling = WIRE.telling(prompt, signature)
    await response.write(telling.tell(Begun(name)))
    piece = first
    try:
        while not isinstance(piece, Ended):
            await response.write(telling.tell(Words(piece)))
            piece = await anext(pieces)
        await response.write(telling.tell(EndedAnswer(_end(piece), piece.prompt_tokens, piece.completion_tokens)))
    except ModelError as fault:
        await response.write(data_bytes(error_body(str(fault), "server_error", "model_error")))
    await response.write_eof()
    return response


def _end(ended: Ended) -> Any:
    return "length" if ended.reason == "length" else "stop"


def _error(status: int, code: str, message: str) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"retry-after": RETRY_AFTER_S} if code == "busy" else {}
    return web.json_response(error_body(message, kind, code), status=status, headers=headers)
