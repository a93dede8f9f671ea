"""qdrant-client through the running sidecar: a full fake of Qdrant answers, and when it is killed the local tier does.

The local collections were filled from the same writes, as the dialect reads them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from tests.dialects.qdrant_cases import same
from tests.dialects.recorded_exchanges import request
from tests.kit.processes import QdrantService, Sidecar
from understudy.indexes.collection import Collection
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.knowledge import collections_folder

pytestmark = pytest.mark.real

POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
defaults:
  breaker: {enabled: false}
  retry: {base_s: 0.001}
routes:
  - name: qdrant
    match: {prefix: /}
    dialect: qdrant
    space: toy-space
    cache: {enabled: false}
    tiers:
      - {kind: upstream, name: qdrant, url: "${QDRANT}"}
      - kind: local
"""
COUNT = 200
DICE = random.Random(7)
WORDS = ("red fox", "quick brown", "lazy dog", "café")
SINGLE: dict[str, Any] = {"size": 8, "distance": "Cosine"}
NAMED: dict[str, Any] = {
    "image": {"size": 6, "distance": "Dot"},
    "text": {"size": 4, "distance": "Cosine"},
    "place": {"size": 2, "distance": "Euclid"},
}
Ask = Callable[[QdrantClient], Any]


class Deployed(NamedTuple):
    sidecar: Sidecar
    qdrant: QdrantService
    client: QdrantClient


def vector(size: int) -> list[float]:
    return [round(DICE.gauss(0, 1), 3) for _ in range(size)]


def payload(n: int) -> dict[str, Any]:
    return {
        "n": n % 7,
        "f": n / 4,
        "words": WORDS[n % 4],
        "tags": [WORDS[n % 4].split()[0], f"t{n % 5}"],
        "when": f"2024-{n % 12 + 1:02}-{n % 28 + 1:02}T10:00:00Z",
        "where": {"lon": -180 + 1.8 * n, "lat": -80 + 0.8 * n},
        "rows": [{"k": n % 3, "s": "x"}, {"k": n % 2, "s": "y"}],
    }


def point(n: int, vectors: Any) -> dict[str, Any]:
    return {"id": n if n % 9 else f"00000000-0000-4000-8000-{n:012}", "vector": vectors, "payload": payload(n)}


WRITES: dict[str, list[tuple[str, str, Any]]] = {
    "single": [
        ("PUT", "", {"vectors": SINGLE}),
        ("PUT", "/points", {"points": [point(n, vector(8)) for n in range(COUNT)]}),
        ("POST", "/points/payload", {"payload": {"new": True}, "filter": {"must": [{"has_id": [1, 2, 3]}]}}),
        ("POST", "/points/delete", {"points": [5, 6, 7]}),
    ],
    "named": [
        ("PUT", "", {"vectors": NAMED}),
        (
            "PUT",
            "/points",
            {"points": [point(n, {k: vector(each["size"]) for k, each in NAMED.items()}) for n in range(COUNT)]},
        ),
        ("POST", "/points/vectors/delete", {"points": [10, 11], "vector": ["place"]}),
    ],
}


@pytest.fixture(scope="module")
def deployed(made_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    home = tmp_path_factory.mktemp("qdrant")
    (home / "policies").mkdir()
    (home / "policies" / "p.yaml").write_text(POLICIES)
    for name, writes in WRITES.items():
        folder = collections_folder(home / "state") / name
        folder.mkdir(parents=True)
        collection = Collection.open(folder, create=True)
        dialect = DIALECTS["qdrant"]
        for method, path, body in writes:
            changes = dialect.changes(dialect.read(request(method, f"/collections/{name}{path}", body)))
            collection.write([change.write for change in changes], space="toy-space")
        collection.close()
    with QdrantService() as qdrant:
        environment = {"QDRANT": qdrant.url}
        with Sidecar(home / "policies", home / "state", env=environment, models=made_state / "models") as sidecar:
            for name, writes in WRITES.items():
                for method, path, body in writes:
                    answer = httpx.request(method, f"{sidecar.url}/collections/{name}{path}", json=body, timeout=60)
                    assert answer.status_code == 200, answer.text
            yield Deployed(sidecar, qdrant, QdrantClient(url=sidecar.url, check_compatibility=False, timeout=60))


def filters() -> list[models.Filter]:
    """One of each condition."""
    where = models.GeoPoint(lon=20, lat=10)
    corners = [(0.0, 0.0), (90.0, 0.0), (90.0, 60.0), (0.0, 60.0), (0.0, 0.0)]
    polygon = models.GeoLineString(points=[models.GeoPoint(lon=lon, lat=lat) for lon, lat in corners])
    n, text = models.MatchValue(value=3), models.MatchText(text="FOX")
    nested = models.Filter(
        must=[_on("k", match=models.MatchValue(value=1)), _on("s", match=models.MatchValue(value="y"))]
    )
    box = models.GeoBoundingBox(top_left=models.GeoPoint(lon=-50, lat=50), bottom_right=where)
    return [
        models.Filter(must=[_on("n", match=n)]),
        models.Filter(must_not=[_on("tags", match=models.MatchAny(any=["red", "t1"]))]),
        models.Filter(should=[_on("words", match=text), _on("f", range=models.Range(gte=40, lt=45.5))]),
        models.Filter(must=[_on("tags[]", match=models.MatchExcept(**{"except": ["red", "t1"]}))]),
        models.Filter(must=[_on("when", range=models.DatetimeRange(gte="2024-06-01T00:00:00Z"))]),
        models.Filter(must=[_on("where", geo_radius=models.GeoRadius(center=where, radius=3e6))]),
        models.Filter(must=[_on("where", geo_bounding_box=box)]),
        models.Filter(must=[_on("where", geo_polygon=models.GeoPolygon(exterior=polygon))]),
        models.Filter(must=[models.NestedCondition(nested=models.Nested(key="rows", filter=nested))]),
        models.Filter(must=[models.HasIdCondition(has_id=[1, 2, 99])]),
        models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key="new"))]),
        models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="new"))]),
        models.Filter(must=[_on("tags", values_count=models.ValuesCount(gte=2))]),
        models.Filter(
            min_should=models.MinShould(conditions=[_on("n", match=n), _on("words", match=text)], min_count=1)
        ),
        models.Filter(must=[models.HasVectorCondition(has_vector="place")]),
    ]


def _on(key: str, **test: Any) -> models.FieldCondition:
    return models.FieldCondition(key=key, **test)


def reads() -> dict[str, Ask]:
    """What the methods of the client are asked, with a vector without a name and with named ones."""
    v8, v4 = vector(8), vector(4)
    near, far = models.RecommendInput(positive=[1, v8], negative=[2]), models.RecommendInput(positive=[1], negative=[3])
    reco: dict[str, Ask] = {
        f"recommend, {strategy}": _query("single", {"recommend": {**near.model_dump(), "strategy": strategy}})
        for strategy in ("average_vector", "best_score", "sum_scores")
    }
    pair = models.ContextPair(positive=1, negative=2)
    prefetch = [models.Prefetch(query=v4, using="text", limit=20), models.Prefetch(query=3, using="image", limit=20)]
    ordered = models.OrderBy(key="f", direction=models.Direction.DESC, start_from=30.5)
    return {
        "by vector": _query("single", v8, limit=20, with_payload=True),
        "by id": _query("single", 1, limit=5, offset=3, with_vectors=True),
        "threshold": _query("single", v8, score_threshold=0.3, limit=100),
        "exact": _query("single", v8, search_params=models.SearchParams(exact=True, hnsw_ef=32)),
        "named": _query("named", v4, using="text", with_vectors=["image", "text"]),
        "euclid": _query("named", [0.5, 0.5], using="place", score_threshold=1.0, limit=50),
        **reco,
        "recommend, named": _query("named", models.RecommendQuery(recommend=far), using="image"),
        "discover": _query("single", models.DiscoverQuery(discover=models.DiscoverInput(target=v8, context=[pair]))),
        "context": _query("single", models.ContextQuery(context=[pair]), limit=200),
        "rrf": _query("named", models.FusionQuery(fusion=models.Fusion.RRF), prefetch=prefetch, with_payload=["n"]),
        "dbsf": _query("named", models.FusionQuery(fusion=models.Fusion.DBSF), prefetch=prefetch, limit=5),
        "rescored": _query("named", vector(6), using="image", prefetch=prefetch[0]),
        "no query": _query("single", None, limit=7, offset=2),
        "by a field": _query("single", models.OrderByQuery(order_by="f")),
        "batch": lambda c: c.query_batch_points("single", [models.QueryRequest(query=v8, limit=k) for k in (1, 5)]),
        "groups": lambda c: c.query_points_groups("single", "n", query=v8, limit=3, group_size=2),
        "scroll": lambda c: _pages(c, limit=33, with_vectors=True),
        "scroll by a field": lambda c: c.scroll("single", order_by=ordered, limit=12),
        "retrieve": lambda c: c.retrieve("named", [1, 10, point(9, [])["id"], 5_000], with_vectors=True),
        "selected": lambda c: c.retrieve(
            "single", [1], with_payload=models.PayloadSelectorExclude(exclude=["rows[].k"])
        ),
        "count": lambda c: c.count("single"),
        "facet": lambda c: c.facet("single", "tags", limit=20),
        "exists": lambda c: [c.collection_exists(name) for name in WRITES],
        "collections": lambda c: sorted(each.name for each in c.get_collections().collections if each.name in WRITES),
        "info": lambda c: [_told(c.get_collection(name)) for name in WRITES],
        **{f"filter {at}": _filtered(each) for at, each in enumerate(filters())},
    }


def _query(collection: str, query: Any, **more: Any) -> Ask:
    if isinstance(query, dict):
        query = models.RecommendQuery.model_validate(query)
    return lambda client: client.query_points(collection, query=query, **{"with_payload": False, **more})


def _filtered(by: models.Filter) -> Ask:
    asked = vector(4)
    return lambda client: [
        client.count("named", count_filter=by),
        client.query_points("named", query=asked, using="text", query_filter=by, limit=300),
    ]


def _pages(client: QdrantClient, **more: Any) -> Sequence[Any]:
    found: list[Any] = []
    offset = None
    while True:
        page, offset = client.scroll("single", offset=offset, **more)
        found += page
        if offset is None:
            return found


def _told(info: models.CollectionInfo) -> Any:
    told = info.config.params.vectors
    shapes = told if isinstance(told, dict) else {"": told}
    return info.points_count, {name: (each.size, each.distance) for name, each in shapes.items() if each}


OLDER = {
    "search": {"vector": vector(8), "limit": 4, "with_payload": True},
    "search/batch": {"searches": [{"vector": vector(8), "limit": 2}, {"vector": vector(8), "limit": 3}]},
    "search/groups": {"vector": vector(8), "limit": 2, "group_by": "n", "group_size": 2},
    "recommend": {"positive": [1, 2], "negative": [3], "limit": 5},
    "recommend/batch": {"searches": [{"positive": [4], "limit": 3}]},
    "discover": {"target": 1, "context": [{"positive": 2, "negative": 3}], "limit": 5},
}


def plain(value: Any) -> Any:
    """The models of the client as JSON."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def test_every_read_is_answered_alike_with_qdrant_up_and_killed(deployed: Deployed):
    asks = reads()

    def older(path: str, body: Any) -> Any:
        answer = httpx.post(f"{deployed.sidecar.url}/collections/single/points/{path}", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    before = {name: plain(ask(deployed.client)) for name, ask in asks.items()}
    before_older = {path: older(path, body) for path, body in OLDER.items()}
    deployed.qdrant.kill()
    after = {name: plain(ask(deployed.client)) for name, ask in asks.items()}
    after_older = {path: older(path, body) for path, body in OLDER.items()}
    assert {name: (after[name], before[name]) for name in asks if not same(after[name], before[name])} == {}
    assert {p: (after_older[p], before_older[p]) for p in OLDER if not same(after_older[p], before_older[p])} == {}
    # and there was something to compare
    assert all(any(told) if isinstance(told, list) else told for name, told in after.items() if name != "filter 11")


def test_what_is_wrong_is_wrong_here_too_and_what_is_not_known_here_fails(deployed: Deployed):
    if deployed.qdrant.child is not None and deployed.qdrant.child.poll() is None:
        deployed.qdrant.kill()
    client = deployed.client
    wrong: list[tuple[int, Ask]] = [
        (400, _query("single", [1.0, 2.0])),
        (400, _query("named", vector(4), using="nobody")),
        (404, _query("single", 5_000)),
        (404, _query("named", 10, using="place")),
        (5, _query("single", models.SampleQuery(sample=models.Sample.RANDOM))),
        (5, _query("named", models.SparseVector(indices=[1], values=[1.0]), using="text")),
        (5, _query("nowhere", vector(8))),
        (5, lambda c: c.upsert("single", [models.PointStruct(id=1, vector=vector(8))])),
        (5, lambda c: c.delete("single", models.PointIdsList(points=[1]))),
    ]
    for status, ask in wrong:
        with pytest.raises(UnexpectedResponse) as caught:
            ask(client)
        told = caught.value.status_code
        # nobody could answer: a 502 or a 503, whichever tier was asked last
        assert told == status or (status == 5 and told in (502, 503)), (status, caught.value)
