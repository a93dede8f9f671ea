"""Seeded reads and writes, put to Qdrant's in-memory engine and to a local collection through the dialect.

    python -m tests.dialects.qdrant_cases --cases 5000

Both sides get the same JSON. A write goes through `changes` into the collection, as a mirror would apply it; a read is
asked, answered and written down as the local tier does. Scores agree within single precision; points of equal scores
may stand in any order.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tests.dialects.recorded_exchanges import request
from tests.indexes.filter_cases import Cases
from tests.kit.qdrant_service import Engine, Missing, plain, routes_of
from understudy.indexes.collection import Collection
from understudy.indexes.faults import BadQuestion, UnknownFilter
from understudy.policies.service import Refused
from understudy.proxy.asks import RetrieveAsk
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.tiers.reading import read

QDRANT = DIALECTS["qdrant"]
SIZES = {"": 4, "a": 3, "b": 5}
POINTS = 60
CLOSE = {"rel_tol": 2e-4, "abs_tol": 2e-5}


@dataclass
class Tally:
    """Cases by what they asked: how many agreed, how many we refused, how many both called wrong; and what differed."""

    agreed: Counter[str] = field(default_factory=Counter[str])
    refused: Counter[str] = field(default_factory=Counter[str])
    wrong: Counter[str] = field(default_factory=Counter[str])
    differing: list[tuple[str, Any, Any, Any]] = field(default_factory=list)


class Both:
    """The engine and a local collection, holding the same. Reads use the fields that `filter_cases` makes up."""

    def __init__(self, folder: Path, seed: int, distances: tuple[str, str, str] = ("Cosine", "Dot", "Euclid")) -> None:
        self.dice = random.Random(seed)
        self.filters = Cases(seed)
        self.engine = Engine()
        self.works = {(method, path): work for method, path, work in routes_of(self.engine)}
        (folder / "docs").mkdir()
        self.local = Collection.open(folder / "docs", create=True)
        self.ids: list[int | str] = [*range(POINTS - 8), *self.filters.ids[-8:]]
        self.tally = Tally()
        self.failed: type[Exception] | None = None
        vectors = {name: {"size": SIZES[name], "distance": d} for name, d in zip(SIZES, distances, strict=True)}
        self.write("PUT", "", {"vectors": vectors})
        self.write("PUT", "/points", {"points": [self.point(name) for name in self.ids]})
        self.alive: dict[str, list[int | str]] = {}
        self.look()

    # -- both sides ----------------------------------------------------------------------------------------------------

    def theirs(self, method: str, path: str, body: Any) -> Any:
        """The engine's result as JSON; None for an error."""
        try:
            return json.loads(
                json.dumps(plain(self.works[method, "/collections/{name}" + path]({**body, "name": "docs"})))
            )
        except (ValidationError, Missing, ValueError, TypeError, KeyError) as fault:
            self.failed = type(fault)
            return None

    def ours(self, path: str, body: Any) -> Any:
        """Our result as JSON; None for an error. Raises Refused."""
        try:
            ask = QDRANT.ask(QDRANT.read(request("POST", f"/collections/docs{path}", body)))
            assert isinstance(ask, RetrieveAsk)
            return json.loads(QDRANT.retrieved(ask, read(self.local, ask), 0.0).body)["result"]
        except UnknownFilter as fault:
            raise Refused("unsupported_filter", str(fault)) from None
        except (BadRequest, BadQuestion):
            return None

    def write(self, method: str, path: str, body: Any) -> None:
        """One write to both. What the engine refuses changes nothing here either."""
        # a 404 tells of one point that is not there, after all the others have been written
        if self.theirs(method, path, body) is None and self.failed is not KeyError:
            return
        asked = request(method, f"/collections/docs{path}", body)
        self.local.write([change.write for change in QDRANT.changes(QDRANT.read(asked))])

    def compare(self, kind: str, path: str, body: Any) -> None:
        """One read of both."""
        theirs = self.theirs("POST", path, body)
        try:
            ours = self.ours(path, body)
        except Refused as refused:
            self.tally.refused[f"{kind}: {refused.detail}"] += 1
            return
        if ours is None and theirs is None:
            self.tally.wrong[kind] += 1
        elif theirs is not None and ours is not None and same(ours, theirs):
            self.tally.agreed[kind] += 1
        else:
            self.tally.differing.append((path, body, ours, theirs))

    # -- what is asked -------------------------------------------------------------------------------------------------

    def run(self, count: int) -> Tally:
        """That many reads, with a few writes after every 25."""
        kinds = list(_READS)
        for case in range(count):
            if case and case % 25 == 0:
                for _ in range(3):
                    self.change()
            kind = kinds[case % len(kinds)]
            path, body = _READS[kind](self)
            self.compare(kind, path, body)
        return self.tally

    def change(self) -> None:
        """One write of any kind."""
        method, path, body = self.dice.choice(_WRITES)(self)
        self.write(method, path, body)
        self.look()

    def look(self) -> None:
        """Learn which points have which vectors."""
        records, _ = self.engine.client.scroll("docs", limit=1_000, with_payload=False, with_vectors=True)
        for name in SIZES:
            self.alive[name] = [each.id for each in records if name in _names(each.vector)]

    def vector(self, name: str) -> list[float]:
        return [round(self.dice.gauss(0, 1), 3) for _ in range(SIZES[name])]

    def vectors(self) -> dict[str, list[float]]:
        return {name: self.vector(name) for name in SIZES if self.dice.random() < 0.85}

    def point(self, name: int | str) -> dict[str, Any]:
        return {"id": name, "vector": self.vectors(), "payload": self.filters.payload()}

    def some_ids(self, most: int = 4) -> list[int | str]:
        return self.dice.sample(self.ids, k=self.dice.randrange(1, most + 1))

    def there(self, most: int = 4) -> list[int | str]:
        """As `some_ids`, of the points that there are: at others the engine stops halfway."""
        records, _ = self.engine.client.scroll("docs", limit=1_000, with_payload=False)
        return self.dice.sample([record.id for record in records], k=self.dice.randrange(1, most + 1))

    def using(self) -> str:
        return self.dice.choice(list(SIZES))

    def example(self, using: str) -> Any:
        if self.dice.random() < 0.5:
            return self.vector(using)
        # now and then one that is not there, or has no such vector
        return self.dice.choice(self.alive[using] if self.dice.random() < 0.9 else self.ids)

    def examples(self, using: str, most: int = 3) -> list[Any]:
        return [self.example(using) for _ in range(self.dice.randrange(1, most + 1))]

    def selected(self, using: str | None = None) -> dict[str, Any]:
        """Filter, page, selectors and `using`, each now and then."""
        made: dict[str, Any] = {}
        if self.dice.random() < 0.4:
            made["filter"] = self.filters.filter(1)
        if self.dice.random() < 0.7:
            made["limit"] = self.dice.choice([1, 3, 10, 100])
        if self.dice.random() < 0.5:
            made["with_payload"] = self.dice.choice([True, False, ["n", "deep.n"], {"exclude": ["rows[].n", "tags"]}])
        if self.dice.random() < 0.4:
            made["with_vector"] = self.dice.choice([True, False, ["a"], ["", "b"]])
        if using is not None:
            made["using"] = using
        return made

    def paged(self, using: str) -> dict[str, Any]:
        """As `selected`, with an offset and a threshold."""
        made = self.selected(using)
        if self.dice.random() < 0.3:
            made["offset"] = self.dice.randrange(6)
        if self.dice.random() < 0.25:
            made["score_threshold"] = self.dice.choice([-1.0, 0.0, 0.25, 1.0, 2.5])
        return made

    def prefetch(self, depth: int = 0) -> dict[str, Any]:
        using = self.using()
        made: dict[str, Any] = {"using": using, "limit": self.dice.choice([2, 5, 20])}
        if self.dice.random() < 0.3:
            made["filter"] = self.filters.filter(1)
        if depth == 0 and self.dice.random() < 0.2:
            inner = [self.prefetch(1) for _ in range(2)]
            if self.dice.random() < 0.5:
                made.pop("using")
                return made | {"prefetch": inner, "query": {"fusion": "rrf"}}
            return made | {"prefetch": inner, "query": self.example(using)}
        return made | {"query": self.example(using)}


def _names(vector: Any) -> set[str]:
    return set(vector) if isinstance(vector, dict) else {""}


def same(ours: Any, theirs: Any) -> bool:
    """Whether two results are the same; points of equal scores in any order."""
    if isinstance(ours, list) and ours and isinstance(ours[0], dict) and "score" in ours[0]:
        return _same_ranking(ours, theirs)
    if isinstance(ours, list) and ours and isinstance(ours[0], dict) and ours[0].get("order_value") is not None:
        return _same_ranking(ours, theirs, by="order_value")
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if "id" in ours:
            # the engine writes a null for what was not asked for; in a payload a null is a value
            ours, theirs = ({k: v for k, v in each.items() if v is not None} for each in (ours, theirs))
        return ours.keys() - {"lookup"} == theirs.keys() - {"lookup"} and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float | int):
        return math.isclose(ours, theirs, **CLOSE)
    return type(ours) is type(theirs) and ours == theirs


def _same_ranking(ours: list[Any], theirs: list[Any], by: str = "score") -> bool:
    if len(ours) != len(theirs) or not all(
        math.isclose(o[by], t[by], **CLOSE) for o, t in zip(ours, theirs, strict=True)
    ):
        return False
    ends = (ours[0][by], ours[-1][by]) if ours else ()
    held = {(json.dumps(each["id"]), round(each[by], 2)): each for each in theirs}
    for each in ours:
        other = next((held[key] for key in _keys(each, by) if key in held), None)
        if other is None:
            # cut off among equals, before the page or after it
            if not any(math.isclose(each[by], end, **CLOSE) for end in ends):
                return False
        elif not all(same(each.get(k), other.get(k)) for k in each if k not in (by, "version")):
            return False
    return True


def _keys(point: Any, by: str) -> list[tuple[str, float]]:
    return [(json.dumps(point["id"]), round(point[by] + nudge, 2)) for nudge in (0, 0.005, -0.005)]


# -- reads and writes --------------------------------------------------------------------------------------------------


def _search(both: Both) -> tuple[str, Any]:
    using = both.using()
    vector = both.vector(using)
    made = both.paged(using)
    del made["using"]
    return "/points/search", made | {"vector": {"name": using, "vector": vector} if using else vector}


def _query(both: Both) -> tuple[str, Any]:
    using = both.using()
    example = both.example(using)
    return "/points/query", both.paged(using) | {"query": both.dice.choice([example, {"nearest": example}])}


def _recommend(both: Both) -> tuple[str, Any]:
    using = both.using()
    asked: dict[str, Any] = {"positive": both.examples(using)}
    if both.dice.random() < 0.6:
        asked["negative"] = both.examples(using)
    if both.dice.random() < 0.7:
        asked["strategy"] = both.dice.choice(["average_vector", "best_score", "sum_scores"])
        if asked["strategy"] != "average_vector" and both.dice.random() < 0.2:
            asked["positive"] = []
    made = both.paged(using)
    if both.dice.random() < 0.3:
        return "/points/recommend", made | asked
    return "/points/query", made | {"query": {"recommend": asked}}


def _discover(both: Both) -> tuple[str, Any]:
    using = both.using()
    pairs = [
        {"positive": both.example(using), "negative": both.example(using)} for _ in range(both.dice.randrange(1, 4))
    ]
    made = both.paged(using)
    made.pop("score_threshold", None)
    if both.dice.random() < 0.4:
        return "/points/query", made | {"query": {"context": pairs}}
    return "/points/query", made | {"query": {"discover": {"target": both.example(using), "context": pairs}}}


def _fusion(both: Both) -> tuple[str, Any]:
    made = both.paged("")
    made.pop("using")
    prefetches = [both.prefetch() for _ in range(both.dice.randrange(1, 4))]
    rrf = {"rrf": {"k": both.dice.choice([1, 2, 60])} | ({"weights": [1.0, 2.0, 0.5][: len(prefetches)]})}
    query = both.dice.choice([{"fusion": "rrf"}, {"fusion": "rrf"}, {"fusion": "dbsf"}, rrf])
    return "/points/query", made | {"prefetch": prefetches, "query": query}


def _rescore(both: Both) -> tuple[str, Any]:
    using = both.using()
    prefetch = both.dice.choice([both.prefetch(), [both.prefetch(), both.prefetch()]])
    return "/points/query", both.paged(using) | {"prefetch": prefetch, "query": both.example(using)}


def _groups(both: Both) -> tuple[str, Any]:
    using = both.using()
    made = both.selected(using) | {"group_by": both.dice.choice(["n", "s", "tags", "deep.n", "sizes", "mixed", "flag"])}
    if both.dice.random() < 0.5:
        made["group_size"] = both.dice.choice([1, 2, 5])
    made["limit"] = both.dice.choice([1, 3, 10])
    return "/points/query/groups", made | {"query": both.example(using)}


def _batch(both: Both) -> tuple[str, Any]:
    searches = [both.dice.choice([_query, _fusion])(both)[1] for _ in range(3)]
    return "/points/query/batch", {"searches": searches}


def _scroll(both: Both) -> tuple[str, Any]:
    made = both.selected()
    if both.dice.random() < 0.5:
        made["offset"] = both.dice.choice([*both.ids, 7_000])
    return "/points/scroll", made


def _order_by(both: Both) -> tuple[str, Any]:
    made = both.selected()
    made.pop("with_payload", None)
    key = both.dice.choice(["n", "f", "sizes", "when", "deep.n", "s", "mixed"])
    order: dict[str, Any] = {"key": key, "direction": both.dice.choice(["asc", "desc"])}
    if both.dice.random() < 0.4:
        order["start_from"] = "2024-05-01T10:30:00Z" if key == "when" else both.dice.choice([0, 1, 2.5])
    return "/points/scroll", made | {"order_by": both.dice.choice([key, order])}


def _scroll_query(both: Both) -> tuple[str, Any]:
    return "/points/query", both.selected() | {"offset": both.dice.randrange(4)}


def _retrieve(both: Both) -> tuple[str, Any]:
    made = both.selected()
    made.pop("filter", None)
    made.pop("limit", None)
    return "/points", made | {"ids": [*both.some_ids(), 7_000]}


def _count(both: Both) -> tuple[str, Any]:
    return "/points/count", {"exact": True, "filter": both.filters.filter(0)}


def _facet(both: Both) -> tuple[str, Any]:
    made: dict[str, Any] = {"key": both.dice.choice(["n", "s", "tags", "flag", "deep.tags", "rows[].s", "mixed"])}
    if both.dice.random() < 0.4:
        made["filter"] = both.filters.filter(1)
    return "/facet", made | {"limit": both.dice.choice([2, 10, 100])}


_READS = {
    "search": _search,
    "query": _query,
    "recommend": _recommend,
    "discover": _discover,
    "fusion": _fusion,
    "rescore": _rescore,
    "groups": _groups,
    "batch": _batch,
    "scroll": _scroll,
    "order_by": _order_by,
    "scroll by query": _scroll_query,
    "retrieve": _retrieve,
    "count": _count,
    "facet": _facet,
}


def _whom(both: Both) -> dict[str, Any]:
    return {"points": both.some_ids()} if both.dice.random() < 0.6 else {"filter": both.filters.filter(1)}


_WRITES = [
    lambda both: ("PUT", "/points", {"points": [both.point(each) for each in both.some_ids()]}),
    lambda both: (
        "PUT",
        "/points",
        {
            "points": [both.point(each) for each in both.some_ids()],
            "update_mode": both.dice.choice(["insert_only", "update_only"]),
        },
    ),
    lambda both: (
        "PUT",
        "/points",
        {
            "batch": {
                "ids": both.ids[:3],
                "vectors": {"a": [both.vector("a") for _ in range(3)]},
                "payloads": [{"n": 1}, {"n": 2}, {}],
            }
        },
    ),
    lambda both: ("POST", "/points/delete", {"points": both.some_ids()}),
    lambda both: (
        "PUT",
        "/points/vectors",
        {"points": [{"id": each, "vector": both.vectors()} for each in both.there()]},
    ),
    lambda both: ("POST", "/points/vectors/delete", {"points": both.there(), "vector": [both.using()]}),
    lambda both: ("POST", "/points/payload", _whom(both) | {"payload": {"n": 3, "new": {"x": [1]}}}),
    lambda both: ("POST", "/points/payload", _whom(both) | {"payload": {"n": 3}, "key": both.dice.choice(_PATHS)}),
    lambda both: ("PUT", "/points/payload", {"points": both.some_ids(), "payload": both.filters.payload()}),
    lambda both: ("POST", "/points/payload/delete", _whom(both) | {"keys": [both.dice.choice(_PATHS), "n"]}),
    lambda both: ("POST", "/points/payload/clear", {"points": both.some_ids(2)}),
    lambda both: (
        "POST",
        "/points/batch",
        {
            "operations": [
                {"upsert": {"points": [both.point(each) for each in both.some_ids()]}},
                {"set_payload": {"payload": {"s": "fox", "n": None}, "points": both.there()}},
                {"delete": {"points": both.some_ids(1)}},
            ]
        },
    ),
]
_PATHS = ("deep", "deep.more", "rows[0]", "rows[]", "fresh.below", "tags")


def main() -> None:
    """Compare and say how many agree."""
    words = argparse.ArgumentParser(description="Reads of Qdrant, as its in-memory engine and as Understudy answers.")
    words.add_argument("--cases", type=int, default=5_000)
    words.add_argument("--seed", type=int, default=1)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = Both(Path(folder), asked.seed).run(asked.cases)
    for kind in _READS:
        refused = sum(count for why, count in tally.refused.items() if why.startswith(f"{kind}:"))
        print(f"{kind:16} {tally.agreed[kind]:5} agree, {refused:4} refused, {tally.wrong[kind]:4} wrong to both")
    print(f"{sum(tally.agreed.values())} agree, {len(tally.differing)} differ")
    for why, count in tally.refused.most_common(10):
        print(f"  refused {count}: {why}")
    for path, body, ours, theirs in tally.differing[:8]:
        print(f"{path} {body}\n  ours   {re.sub(' +', ' ', str(ours))[:700]}\n  theirs {str(theirs)[:700]}")


if __name__ == "__main__":
    main()
