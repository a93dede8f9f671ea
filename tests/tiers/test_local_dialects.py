"""What the local tier does for one dialect or another: prefixes, lengths, what Pinecone's filters may mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiers.test_local import KNOWN_ID, Local, reason_of, vector
from tests.tiers.toy import DIMENSIONS, TEXTS, vector_of
from understudy.proxy.settings.settings import LocalTier


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


# --- what texts are for --------------------------------------------------------------------------------------------


def prefixed_space(local: Local) -> None:
    """Give the toy model the prefixes of an E5."""
    local.embedder.space = replace(local.embedder.space, query_prefix="query: ", document_prefix="passage: ")


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["query: one two"], "query"),
        (["passage: one", "passage: two"], "document"),
    ],
)
async def test_a_prefix_that_the_caller_has_put_is_not_put_twice(local: Local, texts: list[str], kind: str):
    prefixed_space(local)
    answer = await local.ask("ollama-embed", "POST", "/api/embed", {"model": "m", "input": texts})
    vectors = json.loads(answer.body)["embeddings"]
    assert np.allclose(vectors, [vector_of(text.partition(": ")[2]) for text in texts])
    assert local.embedder.asked == [(len(texts), kind)]


@pytest.mark.parametrize("texts", [["one"], ["query: one", "passage: two"]])
async def test_texts_that_are_neither_queries_nor_documents_are_refused(local: Local, texts: list[str]):
    prefixed_space(local)
    assert await reason_of(local.ask("tei", "POST", "/embed", {"inputs": texts, "truncate": True})) == "prefix"


async def test_a_space_that_prefixes_only_queries_takes_the_rest_for_documents(local: Local):
    local.embedder.space = replace(local.embedder.space, query_prefix="query: ")
    for text in ("query: one", "one"):
        await local.ask("tei", "POST", "/embed", {"inputs": text, "truncate": True})
    assert local.embedder.asked == [(1, "query"), (1, "document")]


@pytest.mark.parametrize(("input_type", "kind"), [("search_query", "query"), ("search_document", "document")])
async def test_what_a_text_is_for_goes_before_how_many_there_are(local: Local, input_type: str, kind: str):
    body = {"model": "m", "texts": ["a", "b"], "input_type": input_type, "embedding_types": ["float"]}
    answer = await local.ask("cohere-embed", "POST", "/v2/embed", body)
    assert np.allclose(json.loads(answer.body)["embeddings"]["float"], [vector_of("a"), vector_of("b")])
    assert local.embedder.asked == [(2, kind)]
    prefixed_space(local)
    clustered = local.ask("cohere-embed", "POST", "/v2/embed", body | {"input_type": "clustering"})
    assert await reason_of(clustered) == "prefix"


@pytest.mark.parametrize(
    ("dialect", "path", "body"),
    [
        ("ollama-embed", "/api/embed", {"input": "w " * 65, "truncate": False}),
        ("tei", "/embed", {"inputs": ["short", "w " * 65]}),
        ("cohere-embed", "/v2/embed", {"texts": ["w " * 65], "input_type": "search_query", "truncate": "NONE"}),
    ],
)
async def test_a_text_that_must_not_be_cut_is_refused_when_it_is_too_long(
    local: Local, dialect: str, path: str, body: dict[str, Any]
):
    assert await reason_of(local.ask(dialect, "POST", path, body)) == "too_long"
    fitting = json.loads(json.dumps(body).replace("w " * 65, "w " * 64))
    assert (await local.ask(dialect, "POST", path, fitting)).status == 200


@pytest.mark.parametrize("dialect", ["ollama-embed", "tei", "cohere-embed", "azure-openai-embeddings"])
async def test_no_dialect_is_given_a_vector_of_another_space(local: Local, dialect: str):
    asked = {
        "ollama-embed": ("/api/embed", {"input": "a"}),
        "tei": ("/embed", {"inputs": "a"}),
        "cohere-embed": ("/v2/embed", {"texts": ["a"], "input_type": "search_query"}),
        "azure-openai-embeddings": ("/openai/deployments/d/embeddings", {"input": "a"}),
    }[dialect]
    assert (await local.ask(dialect, "POST", *asked)).source == "local-embed"
    for space in ("text-embedding-3-small", None):
        local.space = space
        assert await reason_of(local.ask(dialect, "POST", *asked)) == "space"


# --- Pinecone ------------------------------------------------------------------------------------------------------


async def pinecone(local: Local, path: str = "/query", method: str = "POST", **body: Any) -> Any:
    local.settings = LocalTier(collections={"__default__": "docs"})
    answer = await local.ask("pinecone", method, path, body or None)
    assert (answer.status, answer.source) == (200, "local-index"), answer.body
    return json.loads(answer.body)


async def test_a_record_is_among_its_own_neighbours_and_an_unknown_one_has_none(local: Local):
    found = await pinecone(local, id=KNOWN_ID, topK=2)
    assert found["matches"][0]["id"] == KNOWN_ID
    assert found["matches"][0]["score"] == pytest.approx(1)
    assert len(found["matches"]) == 2
    assert (await pinecone(local, id="nobody", topK=2))["matches"] == []


async def test_a_filter_that_negates_is_answered_only_where_every_record_has_the_field(local: Local):
    found = await pinecone(local, vector=vector(1), topK=9, filter={"k": {"$nin": [1, 2]}}, includeMetadata=True)
    assert sorted(match["metadata"]["k"] for match in found["matches"]) == [3, 4, 5]
    # the fifth record has no text of its own
    negated = local.ask(
        "pinecone", "POST", "/query", {"vector": vector(1), "topK": 9, "filter": {"text": {"$ne": "x"}}}
    )
    assert await reason_of(negated) == "unsupported_filter"
    both = {"k": {"$lte": 4}, "text": {"$ne": TEXTS[2]}}
    found = await pinecone(local, vector=vector(1), topK=9, filter=both)
    assert sorted(match["id"] for match in found["matches"]) == ["1", "3", "4"]


async def test_an_index_is_described_by_the_collections_that_the_settings_name(local: Local):
    said = await pinecone(local, "/describe_index_stats")
    assert said["namespaces"] == {"": {"vectorCount": 5}}
    assert (said["dimension"], said["metric"]) == (DIMENSIONS, "cosine")
    local.settings = LocalTier(collections={"__default__": "docs", "other": "not here"})
    assert await reason_of(local.ask("pinecone", "POST", "/describe_index_stats", {})) == "no_collection"
    local.settings = LocalTier()
    assert await reason_of(local.ask("pinecone", "POST", "/describe_index_stats", {})) == "no_collection"


async def test_records_are_fetched_with_values_and_metadata(local: Local):
    said = await pinecone(local, f"/vectors/fetch?ids={KNOWN_ID}&ids=nobody", "GET")
    assert list(said["vectors"]) == [KNOWN_ID]
    record = said["vectors"][KNOWN_ID]
    assert np.allclose(record["values"], vector_of("Nothing else."))
    assert record["metadata"]["k"] == 5
