"""Embeddings are kept one by one in whatever words they are told; what can't be taken apart is kept whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.caching.desk import Desk, answer
from understudy.policies.service import Answer, Call, Failed


def vector_of(text: str) -> list[float]:
    return [float(len(text)), float(ord(text[0]))]


def openai(texts: list[str]) -> Any:
    data = [{"object": "embedding", "index": n, "embedding": vector_of(text)} for n, text in enumerate(texts)]
    return {"object": "list", "data": data[::-1], "model": "m", "usage": {"prompt_tokens": len(texts)}}


def ollama(texts: list[str]) -> Any:
    said = {"model": "m", "embeddings": [vector_of(text) for text in texts], "total_duration": 9}
    return said | {"load_duration": 1, "prompt_eval_count": len(texts)}


def tei(texts: list[str]) -> Any:
    return [vector_of(text) for text in texts]


def of_openai(body: Any) -> list[list[float]]:
    return [each["embedding"] for each in sorted(body["data"], key=lambda each: each["index"])]


SPOKEN: dict[str, tuple[str, Callable[[list[str]], Any], Callable[[Any], Any]]] = {
    "openai-embeddings": ("input", openai, of_openai),
    "azure-openai-embeddings": ("input", openai, of_openai),
    "ollama-embed": ("input", ollama, lambda body: body["embeddings"]),
    "tei": ("inputs", tei, lambda body: body),
}


@pytest.mark.parametrize("dialect", SPOKEN)
async def test_a_batch_is_asked_for_what_is_missing_in_the_dialects_own_words(dialect: str):
    field, spoken, vectors = SPOKEN[dialect]
    asked: list[Any] = []
    is_up = True

    async def upstream(call: Call) -> Answer:
        if not is_up:
            raise Failed("connect", "down")
        body = json.loads(call.request.body)
        assert body["model"] == "m"
        asked.append(body[field])
        return answer(spoken([body[field]] if isinstance(body[field], str) else body[field]))

    desk = Desk(dialect, upstream)

    async def told(texts: str | list[str]) -> Answer:
        given = await desk.ask({"model": "m", field: texts})
        expected = [vector_of(text) for text in ([texts] if isinstance(texts, str) else texts)]
        assert vectors(json.loads(given.body)) == expected
        return given

    await told(["bb", "a"])
    assert (await told("a")).source == "cache"
    await told(["ccc", "a", "bb", "ccc"])
    is_up = False
    whole = await told(["ccc", "bb", "a"])
    assert whole.source == "cache"
    assert asked == [["bb", "a"], ["ccc"]]
    if dialect == "ollama-embed":
        body = json.loads(whole.body)
        assert (body["model"], body["prompt_eval_count"], body["total_duration"]) == ("m", 3, 0)
    await desk.close()


@pytest.mark.parametrize(
    ("dialect", "target", "body", "said"),
    [
        ("ollama-embed", b"/api/embeddings", {"model": "m", "prompt": "a"}, {"embedding": [1.0]}),
        (
            "cohere-embed",
            b"",
            {"model": "m", "texts": ["a"], "input_type": "search_query"},
            {"id": "e", "embeddings": {"float": [[1.0]]}},
        ),
        ("pinecone", b"", {"topK": 1, "vector": [1.0]}, {"matches": [], "namespace": ""}),
    ],
)
async def test_other_answers_are_kept_whole(dialect: str, target: bytes, body: Any, said: Any):
    asked: list[Call] = []

    async def upstream(call: Call) -> Answer:
        asked.append(call)
        return answer(said)

    desk = Desk(dialect, upstream)
    for _ in range(3):
        assert json.loads((await desk.ask(body, target=target)).body) == said
    assert len(asked) == 1
    await desk.close()


@pytest.mark.parametrize(
    ("dialect", "said"),
    [("ollama-embed", {"embeddings": [[1.0]]}), ("tei", [[1.0]]), ("tei", {"a": 1}), ("tei", [[1.0], 2])],
)
async def test_an_answer_that_does_not_fit_its_batch_is_not_kept(dialect: str, said: Any):
    asked: list[Call] = []

    async def upstream(call: Call) -> Answer:
        asked.append(call)
        return answer(said)

    desk = Desk(dialect, upstream)
    for _ in range(2):
        body = {SPOKEN[dialect][0]: ["a", "b"]}
        assert json.loads((await desk.ask(body)).body) == said
    assert len(asked) == 2
    await desk.close()
