"""Azure OpenAI, Ollama, Cohere and Text Embeddings Inference in one fake service: real MiniLM vectors in their shapes.

    python -m tests.kit.embedders_service --port N [--model-cache FOLDER]

- POST /openai/deployments/{name}/embeddings, …/chat/completions      as tests.kit.openai_service, with an api-version
- POST /api/embed, /api/embeddings                                    Ollama
- POST /v2/embed                                                      Cohere
- POST /embed, /                                                      TEI
- GET  /healthz
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from aiohttp import web

from tests.kit.openai_service import Service, base64_of, json_of, serve


class Embedders(Service):
    """The handlers. Each says the words of its own service where a request is wrong."""

    def app(self) -> web.Application:
        """The routes."""
        app = super().app()
        deployment = "/openai/deployments/{name}"
        app.router.add_post(f"{deployment}/embeddings", self.azure(self.embeddings))
        app.router.add_post(f"{deployment}/chat/completions", self.azure(self.chat))
        app.router.add_post("/api/embed", self.ollama)
        app.router.add_post("/api/embeddings", self.ollama_old)
        app.router.add_post("/v2/embed", self.cohere)
        for path in ("/embed", "/"):
            app.router.add_post(path, self.tei)
        return app

    def azure(self, handler: Any) -> Any:
        """`handler`, for those who name an api-version."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if "api-version" not in request.query:
                return web.json_response({"error": {"code": "404", "message": "Resource not found"}}, status=404)
            return await handler(request)

        return handle

    async def vectors(self, texts: list[str], kind: Any = "query") -> list[list[float]]:
        embedder = await self.loaded()
        return np.asarray(await asyncio.to_thread(embedder.embed, texts, kind), np.float32).tolist()

    async def ollama(self, request: web.Request) -> web.Response:
        asked = await json_of(request)
        if asked.get("model") == "missing":
            return web.json_response({"error": 'model "missing" not found, try pulling it first'}, status=404)
        given = asked.get("input")
        texts = [given] if isinstance(given, str) else list(given or [])
        said = {"model": asked.get("model"), "embeddings": await self.vectors(texts) if texts else []}
        counted = sum(len(text.split()) for text in texts)
        return web.json_response(said | {"total_duration": 14143917, "load_duration": 1, "prompt_eval_count": counted})

    async def ollama_old(self, request: web.Request) -> web.Response:
        asked = await json_of(request)
        return web.json_response({"embedding": (await self.vectors([asked["prompt"]]))[0]})

    async def cohere(self, request: web.Request) -> web.Response:
        asked = await json_of(request)
        texts = asked.get("texts") or []
        if len(texts) > 96:
            return web.json_response({"message": "invalid request: too many texts"}, status=400)
        rows = await self.vectors(texts)
        by_type: dict[str, Any] = {}
        for wanted in asked.get("embedding_types") or ["float"]:
            by_type[wanted] = rows if wanted == "float" else [base64_of(np.array(row, np.float32)) for row in rows]
        meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": len(texts)}}
        said = {"id": "kit", "embeddings": by_type, "texts": texts, "meta": meta}
        return web.json_response(said | {"response_type": "embeddings_by_type"})

    async def tei(self, request: web.Request) -> web.Response:
        asked = await json_of(request)
        given = asked["inputs"]
        texts = [given] if isinstance(given, str) else given
        if not texts or "" in texts:
            return web.json_response({"error": "`inputs` cannot be empty", "error_type": "Validation"}, status=413)
        return web.json_response(await self.vectors(texts))


if __name__ == "__main__":
    serve(Embedders)
