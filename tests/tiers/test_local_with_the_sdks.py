"""The official SDKs, unchanged, read what the local tier writes: their own parsers are the judges of our shapes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import numpy as np
import openai
import pytest
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from tests.tiers.toy import DIMENSIONS, SPACE, TEXTS, toy_knowing, vector_of
from understudy.policies.service import Answer, Failed, Headers, Refused, Request, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.settings import LocalTier
from understudy.proxy.tiers.local import local_tier

pytestmark = pytest.mark.real_clock

HOST = "http://sidecar.test"
UUID = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"


class Application:
    """What an application holds: clients whose requests reach local tiers without a socket in between."""

    def __init__(self, folder: Path) -> None:
        knowing = toy_knowing(folder)
        settings = LocalTier(collection="docs")
        self.tiers: dict[str, Service] = {
            name: local_tier(settings, space=SPACE, dialect=dialect, knowing=knowing)
            for name, dialect in DIALECTS.items()
        }
        self.requests: list[Request] = []

    async def answered(self, dialect: str, method: str, target: str, headers: Headers, body: bytes) -> Answer:
        request = Request(method.encode(), target.encode(), headers, body)
        self.requests.append(request)
        call = DIALECTS[dialect].read(request)
        call.id = f"c-{len(self.requests)}"
        try:
            return await self.tiers[dialect](call)
        except (Refused, Failed) as outcome:
            return DIALECTS[dialect].error(503, outcome.reason, outcome.detail)

    def openai(self) -> openai.AsyncOpenAI:
        async def handle(request: Any) -> httpx2.Response:
            target = request.url.raw_path.decode()
            dialect = "openai-embeddings" if target.endswith("/embeddings") else "openai-chat"
            answer = await self.answered(dialect, request.method, target, request.headers.raw, request.content)
            return httpx2.Response(answer.status, headers=answer.headers, content=content_of(answer))

        client = openai.DefaultAsyncHttpx2Client(transport=httpx2.MockTransport(handle))
        return openai.AsyncOpenAI(base_url=f"{HOST}/v1", api_key="sk-test", http_client=client)

    def qdrant(self) -> AsyncQdrantClient:
        async def handle(request: httpx.Request) -> httpx.Response:
            target = request.url.raw_path.decode()
            answer = await self.answered("qdrant", request.method, target, request.headers.raw, request.content)
            return httpx.Response(answer.status, headers=answer.headers, content=content_of(answer))

        return AsyncQdrantClient(url=HOST, transport=httpx.MockTransport(handle), check_compatibility=False)


def content_of(answer: Answer) -> bytes:
    if answer.stream is None:
        return answer.body
    pieces: list[bytes] = []

    class Sink:
        def write(self, chunk: bytes) -> None:
            pieces.append(chunk)

        def end(self) -> None:
            pieces.append(b"")

        def cut(self, reason: str) -> None:
            raise AssertionError(reason)

    answer.stream.relay(Sink())
    return b"".join(pieces)


@pytest.fixture
def application(tmp_path: Path) -> Application:
    return Application(tmp_path)


# --- OpenAI --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": DIMENSIONS}])
async def test_the_openai_sdk_reads_our_embeddings(application: Application, options: dict[str, Any]):
    answer = await application.openai().embeddings.create(model="m", input=["b", "a"], **options)
    assert [entry.index for entry in answer.data] == [0, 1]
    for entry, text in zip(answer.data, "ba", strict=True):
        assert np.allclose(entry.embedding, vector_of(text))
    assert answer.usage.prompt_tokens == 2


async def test_the_openai_sdk_raises_our_refusals_and_does_not_ask_again(application: Application):
    with pytest.raises(openai.InternalServerError, match="check_embedding_ctx_length") as caught:
        await application.openai().embeddings.create(model="m", input=[[1, 2, 3]])
    assert caught.value.code == "token_input"
    with pytest.raises(openai.BadRequestError, match="empty string"):
        await application.openai().embeddings.create(model="m", input=[""])
    assert len(application.requests) == 2


async def test_the_openai_sdk_reads_our_completion(application: Application):
    answer = await application.openai().chat.completions.create(
        model="m", messages=[{"role": "user", "content": "When does support answer?"}]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert TEXTS[3] in (answer.choices[0].message.content or "")
    assert answer.model_extra is not None
    assert answer.model_extra["understudy"]["fallback"] is True


async def test_the_openai_sdk_reads_our_stream_to_its_end(application: Application):
    stream = await application.openai().chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "When does support answer?"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert TEXTS[3] in text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0


async def test_the_openai_sdk_raises_when_a_stream_is_broken_off():
    begun = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    begun += b'"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
    broken = begun + DIALECTS["openai-chat"].broken_off("idle timeout")

    async def pieces() -> AsyncIterator[bytes]:
        for byte in range(len(broken)):
            yield broken[byte : byte + 1]

    def handle(request: Any) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=pieces())

    client = openai.DefaultAsyncHttpx2Client(transport=httpx2.MockTransport(handle))
    sdk = openai.AsyncOpenAI(base_url=HOST, api_key="k", http_client=client)
    stream = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
    first = await anext(aiter(stream))
    assert first.choices[0].delta.content == "Hel"
    with pytest.raises(openai.APIError, match="idle timeout"):
        await anext(aiter(stream))


# --- Qdrant --------------------------------------------------------------------------------------------------------


async def test_the_qdrant_client_searches_here_as_it_would_there(application: Application):
    client = application.qdrant()
    found = await client.query_points("docs", query=vector_of(TEXTS[2]).tolist(), limit=2, with_vectors=True)
    assert found.points[0].id == 2
    assert found.points[0].score == pytest.approx(1)
    assert found.points[0].payload == {"text": TEXTS[2], "k": 2, "meta": {"page": 2}}
    assert np.allclose(found.points[0].vector, vector_of(TEXTS[2]))  # type: ignore[arg-type]
    near = await client.query_points("docs", query=2, limit=4)
    assert 2 not in [point.id for point in near.points]
    only = await client.query_points(
        "docs",
        query=vector_of(TEXTS[2]).tolist(),
        query_filter=models.Filter(must=[models.FieldCondition(key="k", match=models.MatchAny(any=[3, 4]))]),
        score_threshold=-1,
        with_payload=["k"],
    )
    assert sorted((point.payload or {})["k"] for point in only.points) == [3, 4]


async def test_the_qdrant_client_searches_in_batches(application: Application):
    requests = [models.QueryRequest(query=vector_of(TEXTS[n]).tolist(), limit=1, with_payload=True) for n in (3, 1)]
    results = await application.qdrant().query_batch_points("docs", requests=requests)
    assert [result.points[0].id for result in results] == [3, 1]


async def test_the_qdrant_client_reads_points_pages_and_counts(application: Application):
    client = application.qdrant()
    first, after = await client.scroll("docs", limit=3)
    rest, end = await client.scroll("docs", limit=3, offset=after)
    assert [point.id for point in first + rest] == [1, 2, 3, 4, UUID]
    assert end is None
    assert [point.id for point in await client.retrieve("docs", ids=[UUID, 1], with_vectors=True)] == [UUID, 1]
    assert (await client.count("docs")).count == 5


async def test_the_qdrant_client_learns_what_there_is(application: Application):
    client = application.qdrant()
    assert await client.collection_exists("docs")
    assert [each.name for each in (await client.get_collections()).collections] == ["docs"]
    info = await client.get_collection("docs")
    assert info.points_count == 5
    assert info.config.params.vectors == models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    assert (await client.info()).title.startswith("qdrant")


@pytest.mark.parametrize(
    ("status", "word"), [(400, b"shape"), (404, b"No point with id 77"), (503, b"writes go to the database")]
)
async def test_the_qdrant_client_raises_our_errors_with_their_sentence(
    application: Application, status: int, word: bytes
):
    client = application.qdrant()
    asked = {
        400: lambda: client.query_points("docs", query=[0.1, 0.2]),
        404: lambda: client.query_points("docs", query=77),
        503: lambda: client.delete("docs", points_selector=[1]),
    }[status]
    with pytest.raises(UnexpectedResponse) as caught:
        await asked()
    assert caught.value.status_code == status
    assert word in caught.value.content
