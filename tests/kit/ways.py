"""One search by a vector in each database's API: as it is asked, as a fake reads it, as it answers, as it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Scored = Sequence[tuple[int, float]]
_CHROMA = "4647e5e8-2f00-48be-a3a7-cbc01dfd6d53"


class Way(NamedTuple):
    """`called` is what callers name the collection; `told` is given (id, cosine), the best first."""

    called: str
    path: str
    asked: Callable[[Sequence[float], int], Any]
    vector: Callable[[Any], list[float]]
    told: Callable[[Scored], Any]
    ids: Callable[[Any], list[int]]


def _graphql(vector: Sequence[float], limit: int) -> Any:
    near = "nearVector: {vector: " + json.dumps(list(vector)) + "}, limit: " + str(limit)
    return {"query": "{ Get { Docs(" + near + ") { _additional { id } } } }"}


def _in_graphql(body: Any) -> list[float]:
    query = body["query"]
    return json.loads(query[query.index("[") : query.index("]") + 1])


WAYS = {
    "elasticsearch": Way(
        "docs",
        "/docs/_search",
        lambda vector, limit: {
            "knn": {"field": "v", "query_vector": list(vector), "k": limit, "num_candidates": 100},
            "size": limit,
            "_source": False,
        },
        lambda body: body["knn"]["query_vector"],
        lambda found: {
            "took": 1,
            "timed_out": False,
            "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0},
            "hits": {"hits": [{"_index": "docs", "_id": str(n), "_score": score} for n, score in found]},
        },
        lambda told: [int(hit["_id"]) for hit in told["hits"]["hits"]],
    ),
    "chroma": Way(
        _CHROMA,
        f"/api/v2/tenants/default_tenant/databases/default_database/collections/{_CHROMA}/query",
        lambda vector, limit: {"query_embeddings": [list(vector)], "n_results": limit, "include": ["distances"]},
        lambda body: body["query_embeddings"][0],
        lambda found: {
            "ids": [[str(n) for n, _ in found]],
            "distances": [[1 - score for _, score in found]],
            "include": ["distances"],
        },
        lambda told: [int(each) for each in told["ids"][0]],
    ),
    "pinecone": Way(
        "docs",
        "/query",
        lambda vector, limit: {"vector": list(vector), "topK": limit, "namespace": "docs"},
        lambda body: body["vector"],
        lambda found: {"matches": [{"id": str(n), "score": score} for n, score in found], "namespace": "docs"},
        lambda told: [int(each["id"]) for each in told["matches"]],
    ),
    "milvus": Way(
        "docs",
        "/v2/vectordb/entities/search",
        lambda vector, limit: {"collectionName": "docs", "data": [list(vector)], "limit": limit},
        lambda body: body["data"][0],
        lambda found: {"code": 0, "cost": 0, "data": [{"id": n, "distance": score} for n, score in found]},
        lambda told: [int(each["id"]) for each in told["data"]],
    ),
    "weaviate": Way(
        "Docs",
        "/v1/graphql",
        _graphql,
        _in_graphql,
        lambda found: {"data": {"Get": {"Docs": [{"_additional": {"id": str(n)}} for n, _ in found]}}},
        lambda told: [int(each["_additional"]["id"]) for each in told["data"]["Get"]["Docs"]],
    ),
}
WAYS["opensearch"] = WAYS["elasticsearch"]._replace(
    asked=lambda vector, limit: {
        "query": {"knn": {"v": {"vector": list(vector), "k": limit}}},
        "size": limit,
        "_source": False,
    },
    vector=lambda body: body["query"]["knn"]["v"]["vector"],
)
WAYS["qdrant"] = Way(
    "docs",
    "/collections/docs/points/query",
    lambda vector, limit: {"query": list(vector), "limit": limit},
    lambda body: body["query"],
    lambda found: {
        "result": {"points": [{"id": n, "version": 0, "score": score} for n, score in found]},
        "status": "ok",
        "time": 0.0,
    },
    lambda told: [each["id"] for each in told["result"]["points"]],
)
