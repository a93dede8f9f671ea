"""The official clients of Elasticsearch and OpenSearch through the running sidecar, their cluster alive and dead.

The cluster is a fake that answers as recorded, since neither can be installed from a package; the clients are real.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from elasticsearch import ApiError, BadRequestError, Elasticsearch
from opensearchpy import OpenSearch

from tests.dialects.recorded_exchanges import recorded
from tests.kit.acts import answer, reset
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.proxy.knowledge import collections_folder

pytestmark = pytest.mark.real

POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
defaults:
  breaker: {enabled: false}
  # a cluster that was dead a moment ago is asked all the same: whether it is well is another test's
  ramp: {enabled: false}
  retry: {base_s: 0.001}
routes:
  - name: es
    match: {prefix: /es, strip: true}
    dialect: elasticsearch
    space: toy
    tiers:
      - {kind: upstream, name: es, url: "${CLUSTER}"}
      - kind: local
  - name: os
    match: {prefix: /os, strip: true}
    dialect: opensearch
    space: toy
    tiers:
      - {kind: upstream, name: os, url: "${CLUSTER}"}
      - kind: local
"""
VECTORS = np.random.default_rng(11).normal(size=(200, 8)).astype(np.float32)
WORDS = ("apples", "harbour", "lantern", "quartz")
TEXTS = [f"Passage {n} about {WORDS[n % 4]}." for n in range(200)]
PRODUCT = ((b"X-Elastic-Product", b"Elasticsearch"),)
FOUND = next(one.json for one in recorded("elasticsearch") if one.call == "es search knn")


class Deployed(NamedTuple):
    sidecar: Sidecar
    cluster: Hosted

    def elastic(self) -> Elasticsearch:
        return Elasticsearch(self.sidecar.url + "/es", max_retries=0, request_timeout=60)

    def open(self) -> Any:
        return OpenSearch(self.sidecar.url + "/os", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def deployed(made_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    state, folder = tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("policies")
    points = [Point(f"p-{n:03}", VECTORS[n], {"text": TEXTS[n], "k": n % 5}, TEXTS[n]) for n in range(200)]
    write_snapshot(collections_folder(state) / "docs", points, space="toy", dimensions=8)
    (folder / "p.yaml").write_text(POLICIES)
    with in_thread() as cluster:
        models = made_state / "models"
        with Sidecar(folder, state, env={"CLUSTER": cluster.url}, models=models) as sidecar:
            yield Deployed(sidecar, cluster)


def nearest(k: int, kept: Any = None) -> list[str]:
    """The ids of the points nearest to the third, by brute force."""
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[3]), kind="stable")
    return [f"p-{n:03}" for n in order if kept is None or n % 5 == kept][:k]


def ids(found: Any) -> list[str]:
    return [hit["_id"] for hit in found["hits"]["hits"]]


def knn(**more: Any) -> dict[str, Any]:
    return {"field": "vec", "query_vector": VECTORS[3].tolist(), "k": 5, "num_candidates": 50, **more}


def test_while_the_cluster_answers_it_is_the_cluster_that_answers(deployed: Deployed):
    deployed.cluster.always(answer(200, PRODUCT, body=FOUND))
    found = deployed.elastic().search(index="docs", knn=knn(), source=["text"])
    assert ids(found) == ["a"]
    assert found.meta.headers["x-understudy-tier"] == "primary"
    assert ids(deployed.open().search(index="docs", body={"query": {"match_all": {}}})) == ["a"]


@pytest.mark.parametrize("kept", [None, 2])
def test_a_dead_cluster_is_answered_for_with_the_nearest_points(deployed: Deployed, kept: int | None):
    deployed.cluster.always(reset())
    narrow = {} if kept is None else {"filter": {"term": {"k": kept}}}
    found = deployed.elastic().search(index="docs", knn=knn(**narrow), source=["k"])
    assert ids(found) == nearest(5, kept)
    assert found.meta.headers["x-understudy-source"] == "local-index"
    assert found["hits"]["max_score"] == found["hits"]["hits"][0]["_score"] > found["hits"]["hits"][1]["_score"]
    assert all(hit["_source"].keys() == {"k"} for hit in found["hits"]["hits"])
    query = {"knn": {"vec": {"vector": VECTORS[3].tolist(), "k": 5, **narrow}}}
    assert ids(deployed.open().search(index="docs", body={"size": 5, "query": query})) == nearest(5, kept)


def test_words_both_together_counts_documents_and_pages_are_answered_too(deployed: Deployed):
    deployed.cluster.always(reset())
    elastic = deployed.elastic()
    match = {"match": {"text": "lantern"}}
    worded = elastic.search(index="docs", query={"bool": {"must": [match], "filter": [{"term": {"k": 1}}]}}, size=50)
    assert sorted(ids(worded)) == [f"p-{n:03}" for n in range(200) if n % 4 == 2 and n % 5 == 1]
    both = elastic.search(index="docs", query=match, knn=knn())
    assert ids(both)[0] in {f"p-{n:03}" for n in range(200) if n % 4 == 2}
    paged = elastic.search(index="docs", knn=knn(k=20), size=3, from_=2)
    assert ids(paged) == nearest(5)[2:]
    assert elastic.count(index="docs", query={"range": {"k": {"gte": 3}}})["count"] == 80
    assert elastic.get(index="docs", id="p-007")["_source"] == {"text": TEXTS[7], "k": 2}
    unranked = deployed.open().search(index="docs", body={"query": {"terms": {"k": [0, 4]}}, "size": 4})
    assert (unranked["hits"]["total"]["value"], len(ids(unranked))) == (80, 4)
    assert elastic.info()["version"]["number"]
    assert deployed.open().info()["version"]["distribution"] == "opensearch"


def test_a_search_with_failed_shards_or_out_of_time_is_not_taken_for_an_answer(deployed: Deployed):
    for broken in ({"timed_out": True}, {"_shards": {"total": 2, "successful": 1, "skipped": 0, "failed": 1}}):
        deployed.cluster.always(answer(200, PRODUCT, body={**FOUND, **broken}))
        found = deployed.elastic().search(index="docs", knn=knn())
        assert (ids(found), found.meta.headers["x-understudy-source"]) == (nearest(5), "local-index")


def test_what_would_be_guessed_and_what_writes_fails_in_the_servers_words(deployed: Deployed):
    deployed.cluster.always(reset())
    elastic = deployed.elastic()
    with pytest.raises(ApiError) as refused:
        elastic.search(index="docs", knn=knn(), aggs={"by": {"terms": {"field": "k"}}})
    assert refused.value.status_code >= 500
    with pytest.raises(ApiError):
        elastic.index(index="docs", id="new", document={"text": "x"})
    with pytest.raises(ApiError):
        elastic.bulk(operations=[{"index": {"_index": "docs"}}, {"text": "x"}])
    with pytest.raises(BadRequestError, match="8"):
        elastic.search(index="docs", knn=knn(query_vector=[1.0, 2.0]))
    with pytest.raises(ApiError):
        elastic.search(index="docs", query={"match": {"author": "somebody"}})


def test_writes_and_unknown_fields_reach_a_living_cluster_untouched(deployed: Deployed):
    bulk = next(one for one in recorded("elasticsearch") if one.call == "es bulk")
    deployed.cluster.always(answer(200, PRODUCT, body=bulk.json))
    deployed.cluster.heard.clear()
    assert deployed.elastic().bulk(operations=[{"index": {"_index": "docs", "_id": "a"}}, {"text": "doc a"}])["items"]
    assert deployed.cluster.heard[0].body == b'{"index":{"_index":"docs","_id":"a"}}\n{"text":"doc a"}\n'
    deployed.cluster.always(answer(200, PRODUCT, body=FOUND))
    deployed.open().search(index="docs", body={"query": {"match_all": {}}, "a_field_of_tomorrow": {"x": 1}})
    assert deployed.cluster.heard[-1].json() == {"query": {"match_all": {}}, "a_field_of_tomorrow": {"x": 1}}


def test_a_bulk_that_the_cluster_could_not_take_comes_back_as_it_was_and_counts_once(deployed: Deployed):
    refused = {"type": "es_rejected_execution_exception", "reason": "rejected execution of coordinating operation"}
    item = {"_index": "docs", "_id": "a", "status": 429, "error": refused}
    said = {"took": 3, "errors": True, "items": [{"index": item}]}
    deployed.cluster.always(answer(200, PRODUCT, body=said))
    deployed.cluster.heard.clear()
    before = failures(deployed)
    told = deployed.elastic().bulk(operations=[{"index": {"_index": "docs", "_id": "a"}}, {"text": "doc a"}])
    assert (told["errors"], told["items"][0]["index"]["status"], len(deployed.cluster.heard)) == (True, 429, 1)
    assert failures(deployed) == before + 1


def failures(deployed: Deployed) -> float:
    """How often the route's cluster was found failing within a 200, as the metrics have it."""
    text = urllib.request.urlopen(deployed.sidecar.admin_url + "/metrics", timeout=30).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("understudy_tier_outcomes_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if "error_in_200" in line and 'route="es"' in line)
