"""The local tier answers faithfully or says why it can't: never a vector of another space, never an invented word."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dialects.recorded_exchanges import request
from tests.tiers.check_tier import Subject, check_tier
from tests.tiers.toy import DIMENSIONS, SPACE, TEXTS, ToyEmbedder, toy_knowing, toy_library, toy_model, vector_of
from understudy.models.errors import ModelError
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.settings import LocalTier
from understudy.proxy.tiers.knowing import Knowing
from understudy.proxy.tiers.local import local_tier

Ask = Callable[..., Any]
KNOWN_ID = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"


class Local:
    """Local tiers of every dialect over one toy world, asked as an application would."""

    def __init__(self, folder: Path) -> None:
        self.embedder = ToyEmbedder()
        self.knowing = toy_knowing(folder, self.embedder)
        self.settings = LocalTier(collection="docs", collections={"products": "docs"})
        self.space: str | None = SPACE

    def tier(self, dialect: str) -> Service:
        return local_tier(
            self.settings,
            space=self.space,
            dialect=DIALECTS[dialect],
            knowing=self.knowing,
            clock=lambda: 1_700_000_000.5,
        )

    def call(self, dialect: str, method: str, path: str, body: Any = None) -> Call:
        call = DIALECTS[dialect].read(request(method, path, body))
        call.id = "c-1"
        return call

    async def ask(self, dialect: str, method: str, path: str, body: Any = None) -> Answer:
        return await self.tier(dialect)(self.call(dialect, method, path, body))

    async def embed(self, **body: Any) -> Answer:
        return await self.ask("openai-embeddings", "POST", "/v1/embeddings", {"model": "m"} | body)

    async def qdrant(self, path: str, body: Any = None, method: str = "POST") -> Any:
        answer = await self.ask("qdrant", method, f"/collections{path}", body)
        assert answer.source == "local-index"
        assert answer.status == 200, answer.body
        return json.loads(answer.body)["result"]

    async def search(self, **body: Any) -> list[Any]:
        return (await self.qdrant("/docs/points/query", {"query": vector(1)} | body))["points"]


def vector(id: int) -> list[float]:
    return vector_of(TEXTS[id]).tolist()


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


async def reason_of(asked: Any) -> str:
    with pytest.raises(Refused) as caught:
        await asked
    assert caught.value.detail
    return caught.value.reason


# --- what every tier must do ---------------------------------------------------------------------------------------


@pytest.mark.real_clock
async def test_embedding_does_what_every_tier_must(tmp_path: Path):
    def made() -> Subject:
        local = Local(tmp_path)

        def belongs(n: int, answer: Answer) -> None:
            told = np.array(json.loads(answer.body)["data"][0]["embedding"], np.float32)
            assert np.allclose(told, vector_of(f"text number {n}"))

        return subject_of(
            local,
            "openai-embeddings",
            lambda n: local.call("openai-embeddings", "POST", "/v1/embeddings", {"input": f"text number {n}"}),
            belongs,
        )

    await check_tier(made)


@pytest.mark.real_clock
async def test_retrieval_does_what_every_tier_must(tmp_path: Path):
    def made() -> Subject:
        local = Local(tmp_path)
        shelf = Stalling(local.knowing.shelf(), local.embedder)
        local.knowing.give_shelf(shelf)

        def call(n: int) -> Call:
            body = {"query": vector(n % 4 + 1), "limit": 1}
            return local.call("qdrant", "POST", "/collections/docs/points/query", body)

        def belongs(n: int, answer: Answer) -> None:
            assert json.loads(answer.body)["result"]["points"][0]["id"] == n % 4 + 1

        return subject_of(local, "qdrant", call, belongs)

    await check_tier(made)


def subject_of(
    local: Local, dialect: str, call: Callable[[int], Call], belongs: Callable[[int, Answer], None]
) -> Subject:
    odd = [
        local.call(dialect, method, path, body)
        for method in ("GET", "POST", "PUT")
        for path in ("/", "/collections/docs/points", "/collections/docs/points/query", "/v1/x")
        for body in (b"", b"{}", b"\xff", b'{"messages": [{"role": "user"}]}', b'{"query": [1, 2], "input": [[1]]}')
    ]
    return Subject(
        service=local.tier(dialect),
        call=call,
        belongs=belongs,
        stall=local.embedder.gate.clear,
        resume=local.embedder.gate.set,
        left_behind=lambda: local.knowing.works + local.knowing.model().batcher.queued_texts,  # type: ignore[attr-defined]
        odd_calls=odd,
        close=local.knowing.close,
    )


class Stalling:
    """A library whose look-ups wait at the embedder's gate."""

    def __init__(self, library: Any, embedder: ToyEmbedder) -> None:
        self._library = library
        self._gate = embedder.gate

    def get(self, name: str) -> Any:
        self._gate.wait(60)
        return self._library.get(name)

    def names(self) -> Any:
        return self._library.names()

    def refresh(self) -> Any:
        return self._library.refresh()

    def follow(self) -> Any:
        return self._library.follow()

    @property
    def stats(self) -> Any:
        return self._library.stats


# --- embed ---------------------------------------------------------------------------------------------------------


async def test_texts_get_the_models_vectors_in_their_own_order(local: Local):
    answer = await local.embed(input=["b", "a", "b"])
    body = json.loads(answer.body)
    assert answer.source == "local-embed"
    assert body["model"] == SPACE
    assert body["usage"]["prompt_tokens"] == 3
    for entry, text in zip(body["data"], "bab", strict=True):
        assert np.allclose(entry["embedding"], vector_of(text))


async def test_base64_is_answered_with_base64(local: Local):
    body = json.loads((await local.embed(input="a", encoding_format="base64", dimensions=DIMENSIONS)).body)
    told = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    assert np.array_equal(told, vector_of("a"))


async def test_a_large_call_goes_through_the_queue_in_slices(local: Local):
    local.knowing.give_model(toy_model(local.embedder, queue_texts_max=128))
    body = json.loads((await local.embed(input=[f"text {n}" for n in range(300)])).body)
    assert np.allclose(body["data"][299]["embedding"], vector_of("text 299"))
    assert len(body["data"]) == 300


@pytest.mark.parametrize(
    ("change", "body", "reason"),
    [
        ("", {"input": [1, 2, 3]}, "token_input"),
        ("", {"input": [[1, 2], [3]]}, "token_input"),
        ("", {"input": "a", "dimensions": 256}, "dimensions"),
        ("text-embedding-3-small", {"input": "a"}, "space"),
        ("nowhere", {"input": "a"}, "space"),
    ],
)
async def test_what_the_model_would_embed_wrongly_is_refused(
    local: Local, change: str, body: dict[str, Any], reason: str
):
    local.space = {"": SPACE, "nowhere": None}.get(change, change)
    assert await reason_of(local.embed(**body)) == reason


async def test_a_refusal_over_spaces_names_both(local: Local):
    local.space = "text-embedding-3-small"
    with pytest.raises(Refused, match=r"text-embedding-3-small.*toy-embed"):
        await local.embed(input="a")


async def test_a_full_queue_refuses_and_a_broken_model_fails(local: Local):
    local.knowing.give_model(toy_model(local.embedder, queue_texts_max=2))
    assert await reason_of(local.embed(input=["a", "b", "c"])) == "overloaded"

    def broken(*_: Any) -> Any:
        raise ModelError("out of memory")

    local.embedder.embed = broken  # type: ignore[method-assign]
    with pytest.raises(Failed) as caught:
        await local.embed(input="a")
    assert (caught.value.reason, caught.value.again) == ("local_model", False)


async def test_without_a_model_the_tier_refuses(local: Local):
    local.knowing = Knowing()
    assert await reason_of(local.embed(input="a")) == "warming"
    assert await reason_of(local.search()) == "warming"


async def test_the_callers_own_fault_is_answered_in_the_dialect(local: Local):
    answer = await local.embed(input=["a", ""])
    assert (answer.status, answer.source) == (400, "local")
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


# --- retrieve ------------------------------------------------------------------------------------------------------


async def test_the_nearest_points_come_first_with_what_was_asked_for(local: Local):
    points = await local.search(limit=2, with_payload=["meta.page"], with_vector=True)
    assert points[0]["id"] == 1
    assert points[0]["score"] == pytest.approx(1)
    assert points[0]["payload"] == {"meta": {"page": 1}}
    assert np.allclose(points[0]["vector"], vector(1))
    assert len(points) == 2
    assert points[0]["score"] >= points[1]["score"]
    bare = await local.search(limit=1)
    assert bare[0].keys() == {"id", "version", "score"}


async def test_filters_offsets_and_thresholds_hold(local: Local):
    everything = [point["id"] for point in await local.search()]
    assert len(everything) == 5
    assert [point["id"] for point in await local.search(offset=2, limit=2)] == everything[2:4]
    assert [point["id"] for point in await local.search(score_threshold=0.999)] == [1]
    only = await local.search(filter={"must": [{"key": "k", "match": {"any": [2, 3]}}]})
    assert {point["id"] for point in only} == {2, 3}


async def test_a_point_is_not_its_own_neighbour(local: Local):
    everything = [point["id"] for point in await local.search()]
    local.space = "another-space"  # looked up here, the vector is the collection's own
    neighbours = [point["id"] for point in await local.search(query=1)]
    assert neighbours == everything[1:]
    assert [point["id"] for point in await local.search(query=1, offset=1, limit=2)] == everything[2:4]
    answer = await local.ask("qdrant", "POST", "/collections/docs/points/query", {"query": 77})
    assert answer.status == 404
    assert "77" in json.loads(answer.body)["status"]["error"]


async def test_older_clients_get_a_bare_list(local: Local):
    hits = await local.qdrant("/docs/points/search", {"vector": vector(2), "limit": 1})
    assert [hit["id"] for hit in hits] == [2]


async def test_a_batch_is_answered_search_by_search(local: Local):
    searches = [{"query": vector(2), "limit": 1}, {"query": vector(3), "limit": 1}]
    results = await local.qdrant("/docs/points/query/batch", {"searches": searches})
    assert [result["points"][0]["id"] for result in results] == [2, 3]
    local.space = "another-space"
    assert await reason_of(local.qdrant("/docs/points/query/batch", {"searches": searches})) == "space"


async def test_everything_can_be_read_page_by_page(local: Local):
    ids: list[Any] = []
    after = None
    while True:
        page = await local.qdrant("/docs/points/scroll", {"limit": 2, "offset": after})
        ids += [point["id"] for point in page["points"]]
        after = page["next_page_offset"]
        if after is None:
            break
    assert ids == [1, 2, 3, 4, KNOWN_ID]


async def test_words_that_stand_beside_a_payload_are_put_into_it(local: Local):
    points = await local.qdrant("/docs/points", {"ids": [1, KNOWN_ID]})
    assert points[0]["payload"] == {"text": TEXTS[1], "k": 1, "meta": {"page": 1}}
    assert points[1]["payload"] == {"text": "Nothing else.", "k": 5}


async def test_points_are_fetched_by_id_and_counted(local: Local):
    points = await local.qdrant("/docs/points", {"ids": [3, 77, KNOWN_ID]})
    assert [point["id"] for point in points] == [3, KNOWN_ID]
    assert points[0]["payload"]["text"] == TEXTS[3]
    counted = await local.qdrant("/docs/points/count", {"filter": {"must": [{"key": "k", "range": {"gte": 3}}]}})
    assert counted == {"count": 3}


async def test_what_there_is_is_told_under_the_callers_names(local: Local):
    assert (await local.qdrant("/products/exists", method="GET")) == {"exists": True}
    assert (await local.qdrant("", method="GET")) == {"collections": [{"name": "products"}]}
    info = await local.qdrant("/products", method="GET")
    assert info["points_count"] == 5
    assert info["config"]["params"]["vectors"] == {"size": DIMENSIONS, "distance": "Cosine"}


async def test_what_is_missing_here_is_never_said_to_be_missing_there(local: Local):
    assert await reason_of(local.qdrant("/absent/exists", method="GET")) == "no_collection"
    assert await reason_of(local.qdrant("/absent", method="GET")) == "no_collection"
    assert await reason_of(local.qdrant("/../points/count", {})) == "no_collection"


@pytest.mark.parametrize("space", ["another-space", None])
async def test_a_vector_of_another_space_finds_nothing_here(local: Local, space: str | None):
    local.space = space
    assert await reason_of(local.search()) == "space"
    # counting and reading compare no vectors
    assert await local.qdrant("/docs/points/count", {}) == {"count": 5}


async def test_a_space_named_by_the_models_folder_is_the_models_space(local: Local):
    local.knowing.give_model(toy_model(named="models/toy"))
    local.space = "models/toy"
    assert (await local.search(limit=1))[0]["id"] == 1
    local.knowing.give_shelf(toy_library(Path(local.knowing.shelf().folder) / "b", space="b"))  # type: ignore[attr-defined]
    assert await reason_of(local.search()) == "space"


async def test_the_index_is_searched_without_a_model(local: Local):
    shelf = local.knowing.shelf()
    local.knowing = Knowing()
    local.knowing.give_shelf(shelf)
    assert (await local.search(limit=1))[0]["id"] == 1


async def test_a_vector_that_is_none_here_is_the_callers_fault(local: Local):
    for query in ([1.0, 2.0], [1e300] * DIMENSIONS):
        answer = await local.ask("qdrant", "POST", "/collections/docs/points/query", {"query": query})
        assert answer.status == 400
        assert json.loads(answer.body)["status"]["error"].startswith("Wrong input")


async def test_a_filter_whose_meaning_is_not_certain_is_refused(local: Local):
    assert await reason_of(local.search(filter={"must": [{"key": "g", "geo_radius": {}}]})) == "unsupported_filter"


async def test_writes_are_refused(local: Local):
    assert await reason_of(local.qdrant("/docs/points", {"points": []}, method="PUT")) == "write"


async def test_the_version_is_told_even_before_anything_is_loaded(local: Local):
    local.knowing = Knowing()
    answer = await local.ask("qdrant", "GET", "/")
    assert json.loads(answer.body)["title"].startswith("qdrant")


# --- generate ------------------------------------------------------------------------------------------------------

PROMPT = """Answer from the context.

Context:
[1] Refunds take fourteen days. They are paid to the card that was used.
[2] The warehouse ships on Mondays.

Question: How many days do refunds take?"""


async def generated(local: Local, prompt: str = PROMPT, **body: Any) -> Answer:
    return await local.ask(
        "openai-chat",
        "POST",
        "/v1/chat/completions",
        {"model": "gpt", "messages": [{"role": "user", "content": prompt}]} | body,
    )


async def text_of(local: Local, prompt: str = PROMPT) -> str:
    answer = await generated(local, prompt)
    assert (answer.status, answer.source) == (200, "extractive")
    return json.loads(answer.body)["choices"][0]["message"]["content"]


async def test_a_prompt_is_answered_with_its_own_sentences(local: Local):
    answer = await generated(local)
    body = json.loads(answer.body)
    assert "“Refunds take fourteen days.”" in body["choices"][0]["message"]["content"]
    assert body["choices"][0]["message"]["content"].startswith("This is a fallback answer")
    assert (body["model"], body["id"], body["created"]) == ("understudy-extractive", "chatcmpl-c-1", 1_700_000_000)
    assert body["usage"]["prompt_tokens"] == len(PROMPT.split())
    assert body["usage"]["completion_tokens"] > 5


async def test_a_prompt_without_context_is_answered_from_the_collection(local: Local):
    assert "“Support answers within one hour.” (3.md)" in await text_of(local, "When does support answer?")


async def test_a_route_of_another_space_can_still_quote(local: Local):
    local.space = "text-embedding-3-small"
    assert "one hour" in await text_of(local, "When does support answer?")


async def test_a_collection_of_another_space_is_searched_by_its_words(local: Local, tmp_path: Path):
    local.knowing.give_shelf(toy_library(tmp_path / "b", space="text-embedding-3-small"))
    assert "one hour" in await text_of(local, "When does support answer?")


@pytest.mark.parametrize("prompt", ["Zzyzx qwrtp?", " "])
async def test_where_nothing_fits_nothing_is_asserted(local: Local, prompt: str):
    local.knowing.give_model(toy_model(ToyEmbedder(SPACE)))
    local.settings = LocalTier(collection="absent")
    answer = await generated(local, prompt)
    text = json.loads(answer.body)["choices"][0]["message"]["content"]
    assert answer.source == "message"
    assert "no passage was found" in text
    assert "“" not in text


async def test_an_operators_message_is_said_where_nothing_fits(local: Local):
    dialect = DIALECTS["openai-chat"]
    tier = local_tier(
        LocalTier(collection="absent"), space=None, dialect=dialect, knowing=local.knowing, message="Call 555-0100."
    )
    body = {"model": "gpt", "messages": [{"role": "user", "content": "Zzyzx?"}]}
    answer = await tier(local.call("openai-chat", "POST", "/v1/chat/completions", body))
    assert answer.source == "message"
    text = json.loads(answer.body)["choices"][0]["message"]["content"]
    assert text == "This is a fallback answer: the answering model is unavailable. Call 555-0100."


async def test_what_was_searched_for_must_be_near_and_what_the_prompt_brings_need_only_share_a_word(local: Local):
    question = "Which moon shines Mondays?"
    local.embedder.far = frozenset({question})
    answer = await generated(local, question)
    assert answer.source == "message"
    given = f"Context:\n[1] The warehouse ships on Mondays, and on no other day of the week.\n\nQuestion: {question}"
    assert "“The warehouse ships on Mondays" in await text_of(local, given)


class Kept:
    """Vectors of sentences that somebody keeps, and how often they were asked for."""

    def __init__(self, *texts: str) -> None:
        self.texts = set(texts)
        self.asked: list[list[str]] = []

    def of(self, texts: Any, dimensions: int) -> Any:
        self.asked.append(list(texts))
        rows = np.stack([vector_of(text) if text in self.texts else np.zeros(dimensions, np.float32) for text in texts])
        return rows, np.array([text in self.texts for text in texts])


async def test_sentences_whose_vectors_are_kept_are_not_embedded_again(local: Local):
    local.knowing.sentences = Kept("Refunds take fourteen days.", "The warehouse ships on Mondays.")  # type: ignore[assignment]
    assert "“Refunds take fourteen days.”" in await text_of(local)
    # The question, and the one sentence that nobody keeps.
    assert local.embedder.asked == [(1, "query"), (1, "document")]
    local.embedder.asked.clear()
    local.knowing.sentences.texts.add("They are paid to the card that was used.")  # type: ignore[union-attr]
    await text_of(local)
    assert local.embedder.asked == [(1, "query")]


async def test_without_a_model_words_choose_what_is_quoted(local: Local):
    shelf = local.knowing.shelf()
    local.knowing = Knowing()
    assert "Refunds take fourteen days." in await text_of(local)
    local.knowing.give_shelf(shelf)
    assert "one hour" in await text_of(local, "When does support answer?")


async def test_a_model_with_too_much_to_do_is_done_without(local: Local):
    local.knowing.give_model(toy_model(local.embedder, queue_texts_max=0))
    assert "Refunds take fourteen days." in await text_of(local)


async def test_a_stream_is_streamed(local: Local):
    answer = await generated(local, stream=True)
    assert answer.stream is not None
    assert answer.source == "extractive"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tools": [{"type": "function"}]}, "structured"),
        ({"response_format": {"type": "json_object"}}, "structured"),
        ({"n": 2}, "unsupported"),
    ],
)
async def test_what_is_parsed_by_the_caller_is_refused(local: Local, body: dict[str, Any], reason: str):
    assert await reason_of(generated(local, **body)) == reason


@pytest.mark.real_clock
async def test_generating_does_what_every_tier_must(tmp_path: Path):
    def made() -> Subject:
        local = Local(tmp_path)

        def call(n: int) -> Call:
            prompt = f"Context:\n[1] Item number{n} costs {n} euros.\n\nQuestion: What does number{n} cost?"
            body = {"messages": [{"role": "user", "content": prompt}]}
            return local.call("openai-chat", "POST", "/v1/chat/completions", body)

        def belongs(n: int, answer: Answer) -> None:
            assert f"“Item number{n} costs {n} euros.”" in json.loads(answer.body)["choices"][0]["message"]["content"]

        return subject_of(local, "openai-chat", call, belongs)

    await check_tier(made)
