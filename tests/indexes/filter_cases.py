"""Seeded filters over seeded payloads, asked of Qdrant's in-memory engine and of us.

    python -m tests.indexes.filter_cases --cases 20000

A case is one filter over POINTS points; it agrees if exactly the same points pass. Both sides are told the filter as
JSON. Fields are mostly asked for what they hold, so that filters let through some and not all.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qdrant_client import QdrantClient, models

from understudy.indexes.filters import compile_filter

POINTS = 40
UUIDS = [f"00000000-0000-4000-8000-{n:012x}" for n in range(8)]
WORDS = ("red", "fox", "quick", "Brown", "naïve", "café", "x1", "a-b", "snake_case", "東京")
DATES = ("2024-05-01", "2024-05-01T10:30:00Z", "2024-05-01T12:30:00+02:00", "2023-12-31 23:59:59", "2025-01-01T00:00")
KEYS = (
    "n",
    "f",
    "s",
    "flag",
    "tags",
    "sizes",
    "when",
    "place",
    "places",
    "deep.n",
    "deep.tags",
    "rows[].n",
    "rows[].s",
)
ODD_KEYS = (
    "rows[0].n",
    "rows",
    "rows[]",
    "missing",
    "deep",
    '"dotted.key"',
    "rows[].place",
    "none",
    "mixed",
    "mixed[]",
)


@dataclass
class Tally:
    """How many cases agreed, how many let some but not all points through, and what disagreed."""

    agreed: int = 0
    telling: int = 0
    differing: list[dict[str, Any]] = field(default_factory=list)


class Cases:
    """An endless row of cases from one seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.client = QdrantClient(":memory:")
        size = models.VectorParams(size=1, distance=models.Distance.DOT)
        self.client.create_collection("docs", vectors_config={"a": size, "b": size})
        self.ids: list[int | str] = [*range(POINTS - len(UUIDS)), *UUIDS]
        self.payloads: dict[int | str, dict[str, Any]] = {}
        self.vectors: dict[int | str, dict[str, list[float]]] = {}
        self.fill()

    def fill(self) -> None:
        """New payloads for all points."""
        self.payloads = {name: self.payload() for name in self.ids}
        self.vectors = {name: {v: [1.0] for v in ("a", "b") if self.dice.random() < 0.7} for name in self.ids}
        self.client.upsert(
            "docs",
            [models.PointStruct(id=n, vector=self.vectors[n], payload=self.payloads[n]) for n in self.ids],
        )

    def run(self, count: int) -> Tally:
        """Compare `count` filters, with new payloads after every 200."""
        tally = Tally()
        for case in range(count):
            if case and case % 200 == 0:
                self.fill()
            asked = self.filter(0)
            theirs = self.theirs(asked)
            passes = compile_filter(asked, has_vector=lambda point, name: name in self.vectors[point])
            ours = {name for name, payload in self.payloads.items() if passes(name, payload)}
            if ours == theirs:
                tally.agreed += 1
                tally.telling += 0 < len(ours) < POINTS
            else:
                tally.differing.append(asked)
        return tally

    def theirs(self, filter: dict[str, Any]) -> set[int | str]:
        """What the engine lets through."""
        asked = models.Filter.model_validate(filter)
        found, _ = self.client.scroll("docs", scroll_filter=asked, limit=POINTS, with_payload=False)
        return {point.id for point in found}

    # -- payloads ------------------------------------------------------------------------------------------------------

    def payload(self) -> dict[str, Any]:
        """A payload in which a field is now and then missing, null, empty or of another kind."""
        fields: dict[str, Callable[[], Any]] = {
            "n": lambda: self.dice.randrange(6),
            "f": lambda: self.dice.choice([-1.5, 0.0, 0.5, 1.0, 2.25, 3.0]),
            "s": self.text,
            "flag": lambda: self.dice.random() < 0.5,
            "tags": lambda: [self.dice.choice(WORDS) for _ in range(self.dice.randrange(4))],
            "sizes": lambda: [self.dice.randrange(6) for _ in range(self.dice.randrange(4))],
            "when": lambda: self.dice.choice([*DATES, "yesterday"]),
            "place": self.place,
            "places": lambda: [self.place() for _ in range(self.dice.randrange(3))],
            "deep": lambda: {"n": self.dice.randrange(6), "tags": [self.text(), None][: self.dice.randrange(3)]},
            "rows": lambda: [self.row() for _ in range(self.dice.randrange(4))],
            "dotted.key": lambda: self.dice.randrange(3),
            "none": lambda: None,
            "mixed": lambda: [self.odd() for _ in range(self.dice.randrange(4))],
        }
        payload = {name: made() for name, made in fields.items() if self.dice.random() < 0.85}
        for name in list(payload):
            if self.dice.random() < 0.06:
                payload[name] = self.odd()
        return payload

    def row(self) -> Any:
        if self.dice.random() < 0.1:
            return self.odd()
        return {"n": self.dice.randrange(4), "s": self.dice.choice(WORDS), "place": self.place(), "tags": [self.text()]}

    def text(self) -> str:
        return " ".join(self.dice.choice(WORDS) for _ in range(self.dice.randrange(1, 5)))

    def place(self) -> Any:
        # on a coarse grid, so that borders and corners are met
        return {"lon": self.dice.randrange(-180, 181, 15), "lat": self.dice.randrange(-90, 91, 15) + 0.0}

    def odd(self) -> Any:
        odds = [None, [], {}, "", 1, 1.0, True, [None], [[1, 2]], {"lon": 1}, {"lon": "1", "lat": 2}, "2024-05-01", [1]]
        return self.dice.choice(odds)

    # -- filters -------------------------------------------------------------------------------------------------------

    def filter(self, depth: int) -> dict[str, Any]:
        """Clauses of conditions, one to three of each."""
        made: dict[str, Any] = {}
        for word in self.dice.sample(["must", "should", "must_not", "min_should"], k=self.dice.choice([1, 1, 1, 2, 3])):
            conditions = [self.condition(depth) for _ in range(self.dice.choice([1, 1, 2, 3]))]
            if word == "min_should":
                made[word] = {"conditions": conditions, "min_count": self.dice.randrange(1, 4)}
            else:
                made[word] = conditions[0] if self.dice.random() < 0.1 else conditions
        return made

    def condition(self, depth: int) -> dict[str, Any]:
        luck = self.dice.random()
        if luck < 0.08 and depth < 3:
            return self.filter(depth + 1)
        if luck < 0.18 and depth < 3:
            key = self.dice.choice(["rows", "rows[]", "mixed", "deep", "places"])
            return {"nested": {"key": key, "filter": self.nested(depth + 1)}}
        if luck < 0.23:
            return {"has_id": [*self.dice.sample(self.ids, k=self.dice.randrange(6)), UUIDS[0].upper(), 10**6]}
        if luck < 0.27:
            return {"has_vector": self.dice.choice(["a", "b", "c"])}
        if luck < 0.33:
            return {self.dice.choice(["is_empty", "is_null"]): {"key": self.dice.choice(KEYS + ODD_KEYS)}}
        return self.on_field(self.dice.choice(KEYS) if self.dice.random() < 0.85 else self.dice.choice(ODD_KEYS))

    def nested(self, depth: int) -> dict[str, Any]:
        """A filter in the words of an array's elements."""
        conditions = [self.on_field(self.dice.choice(["n", "s", "place", "tags", "tags[]"])) for _ in range(2)]
        if self.dice.random() < 0.3:
            conditions.append(self.condition(depth))
        return {self.dice.choice(["must", "should", "must_not"]): conditions}

    def on_field(self, key: str) -> dict[str, Any]:
        """A condition of a kind that the field's values are of, mostly."""
        leaf = key.rpartition(".")[2].removesuffix("[]")
        kinds = {
            **dict.fromkeys(("n", "sizes"), ("integer", "number", "count")),
            **dict.fromkeys(("f",), ("number",)),
            **dict.fromkeys(("s", "tags"), ("word", "text", "count")),
            "flag": ("flag",),
            "when": ("moment", "word"),
            **dict.fromkeys(("place", "places"), ("box", "circle", "polygon", "count")),
        }.get(leaf, ("integer", "word", "count", "empty"))
        kind = self.dice.choice(kinds) if self.dice.random() < 0.9 else self.dice.choice(list(_ON_FIELD))
        return {"key": key} | _ON_FIELD[kind](self)


def _bounds(dice: random.Random, values: tuple[Any, ...]) -> dict[str, Any]:
    words = dice.sample(["lt", "lte", "gt", "gte"], k=dice.choice([1, 1, 2]))
    return {word: dice.choice(values) for word in words}


def _word(cases: Cases) -> dict[str, Any]:
    word = cases.dice.choice(["value", "any", "except", "prefix", "substring"])
    one = cases.text() if cases.dice.random() < 0.4 else cases.dice.choice([*WORDS, *DATES, ""])
    if word in ("any", "except"):
        return {"match": {word: [one, *cases.dice.sample(WORDS, k=cases.dice.randrange(4))]}}
    return {"match": {word: one[:3] if word in ("prefix", "substring") else one}}


def _integer(cases: Cases) -> dict[str, Any]:
    word = cases.dice.choice(["value", "value", "any", "except"])
    several = [cases.dice.randrange(6) for _ in range(cases.dice.randrange(4))]
    return {"match": {word: cases.dice.randrange(6) if word == "value" else several}}


def _text(cases: Cases) -> dict[str, Any]:
    wanted = cases.dice.choice([cases.text().upper(), cases.text(), cases.dice.choice(WORDS), "snake case", "", "!?"])
    return {"match": {cases.dice.choice(["text", "text_any", "phrase"]): wanted}}


def _corner(cases: Cases) -> dict[str, Any]:
    return {"lon": cases.dice.randrange(-180, 181, 15), "lat": cases.dice.randrange(-90, 91, 15)}


def _box(cases: Cases) -> dict[str, Any]:
    one, other = _corner(cases), _corner(cases)
    top, bottom = max(one["lat"], other["lat"]), min(one["lat"], other["lat"])
    corners = {"top_left": {**one, "lat": top}, "bottom_right": {**other, "lat": bottom}}
    return {"geo_bounding_box": corners}


def _circle(cases: Cases) -> dict[str, Any]:
    return {"geo_radius": {"center": _corner(cases), "radius": cases.dice.choice([0.0, 1e3, 2e6, 5e6, 1.2e7, 3e7])}}


def _polygon(cases: Cases) -> dict[str, Any]:
    def ring() -> dict[str, Any]:
        corners = [_corner(cases) for _ in range(cases.dice.randrange(3, 7))]
        return {"points": [*corners, corners[0]]}

    holes = [ring() for _ in range(cases.dice.choice([0, 0, 1, 2]))]
    return {"geo_polygon": {"exterior": ring()} | ({"interiors": holes} if holes else {})}


_ON_FIELD: dict[str, Callable[[Cases], dict[str, Any]]] = {
    "word": _word,
    "integer": _integer,
    "text": _text,
    "flag": lambda cases: {"match": {"value": cases.dice.random() < 0.5}},
    "number": lambda cases: {"range": _bounds(cases.dice, (-1.5, 0, 0.5, 1, 2, 2.25, 4))},
    "moment": lambda cases: {"range": _bounds(cases.dice, DATES)},
    "count": lambda cases: {"values_count": _bounds(cases.dice, (0, 1, 2, 3))},
    "empty": lambda cases: {cases.dice.choice(["is_empty", "is_null"]): cases.dice.random() < 0.5},
    "box": _box,
    "circle": _circle,
    "polygon": _polygon,
}


def main() -> None:
    """Compare and say how many agree."""
    words = argparse.ArgumentParser(description="Filters, as Qdrant's in-memory engine and as Understudy reads them.")
    words.add_argument("--cases", type=int, default=20_000)
    words.add_argument("--seed", type=int, default=1)
    asked = words.parse_args()
    tally = Cases(asked.seed).run(asked.cases)
    print(f"{tally.agreed} of {asked.cases} filters agree; {tally.telling} of them let some points through and not all")
    for differing in tally.differing[:20]:
        print(differing)


if __name__ == "__main__":
    main()
