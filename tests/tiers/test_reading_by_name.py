"""Which of a collection's vectors is meant by a document's field, as clients of Elasticsearch and Milvus say it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from understudy.indexes.collection import Collection
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.writes import Create, Upsert, VectorShape
from understudy.policies.service import Refused
from understudy.proxy.asks import RetrieveAsk, distance_of
from understudy.proxy.tiers.reading import by_name, read

VECTOR = np.array([1, 0], np.float32)


def made(folder: Path, **distances: str) -> Collection:
    """A collection whose vectors are called so, with one point."""
    library = Library(folder)
    shapes = {name: VectorShape(2, distance) for name, distance in distances.items()}  # type: ignore[arg-type]
    shapes = shapes or {"": VectorShape(2)}
    point = Point("a", VECTOR if "" in shapes else None, named={name: VECTOR for name in shapes if name})
    library.write("docs", [Create(shapes, {"space": "toy"}), Upsert((point,))])
    return library.open("docs")


def asked(using: str) -> RetrieveAsk:
    return RetrieveAsk("search", "docs", vector=(1.0, 0.0), using=using, is_field=True)


def test_a_vector_without_a_name_stands_for_any_field(tmp_path: Path):
    collection = made(tmp_path)
    for field in ("", "vec"):
        ask = by_name(collection, asked(field))
        assert ask.using == ""
        assert [found.id for found in read(collection, ask).found] == ["a"]


def test_a_field_is_searched_by_its_name_and_by_its_own_distance(tmp_path: Path):
    collection = made(tmp_path, emb="cosine", other="euclid")
    ask = by_name(collection, asked("other"))
    result = read(collection, ask)
    assert (ask.using, distance_of(ask, result), [found.id for found in result.found]) == ("other", "euclid", ["a"])
    for unknown in ("", "vec"):
        with pytest.raises(Refused, match="this name"):
            by_name(collection, asked(unknown))


def test_the_only_field_is_meant_where_none_is_said(tmp_path: Path):
    collection = made(tmp_path, emb="dot")
    assert by_name(collection, asked("")).using == "emb"
    with pytest.raises(Refused):
        by_name(collection, asked("vec"))
    # a name that is no field is the dialect's own business
    assert by_name(collection, RetrieveAsk("search", "docs", vector=(1.0, 0.0), using="x")).using == "x"
