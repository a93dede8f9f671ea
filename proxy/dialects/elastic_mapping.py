"""What an index is made with: its vectors, in Elasticsearch's words (`dense_vector`) and OpenSearch's (`knn_vector`).

    {"mappings": {"properties": {"vec": {"type": "dense_vector", "dims": 384, "similarity": "cosine"}}}}
    {"mappings": {"properties": {"vec": {"type": "knn_vector", "dimension": 384, "space_type": "cosinesimil"}}}}

A vector is called by its path. Those in `nested` objects are many to a document, and not among an index's own here;
bytes and bits, models, other distances and pipelines that change documents on their way in are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from understudy.indexes.writes import Create, DistanceName, VectorShape
from understudy.policies.service import Refused

DEPTH_MAX: Final = 20

_SIMILARITIES: Final[dict[str, DistanceName]] = {"cosine": "cosine", "dot_product": "dot", "l2_norm": "euclid"}
_SPACES: Final[dict[str, DistanceName]] = {"cosinesimil": "cosine", "innerproduct": "dot", "l2": "euclid"}
_PIPELINES: Final = ("default_pipeline", "final_pipeline")
Fields = dict[str, Any]


def created(body: Fields) -> Create:
    """What making an index with this body makes. A vector whose dimensions are not said has them from its first
    document; its distance is in the notes, by its name. Raises Refused."""
    settings = _object(body.get("settings"))
    index = {**settings, **_object(settings.get("index"))}
    if any(index.get(name, index.get(f"index.{name}")) not in (None, "_none") for name in _PIPELINES):
        raise Refused("unsupported", "what a pipeline makes of documents, only the database knows")
    shapes = dict(_shapes(_object(_object(body.get("mappings")).get("properties")), "", 0))
    return Create(
        {name: VectorShape(dims, distance) for name, (dims, distance) in shapes.items() if dims},
        {"distances": {name: distance for name, (_, distance) in shapes.items()}} if shapes else {},
    )


def has_vectors(properties: Any) -> bool:
    """Whether a mapping's properties name vectors."""
    return any(True for _ in _shapes(_object(properties), "", 0))


def _shapes(properties: Fields, under: str, depth: int) -> Iterator[tuple[str, tuple[int, DistanceName]]]:
    if depth > DEPTH_MAX:
        raise Refused("unsupported", f"a mapping nested more than {DEPTH_MAX} deep")
    for name, said in properties.items():
        field = _object(said)
        kind = field.get("type")
        if kind == "dense_vector":
            yield under + name, _dense(field)
        elif kind == "knn_vector":
            yield under + name, _knn(field)
        elif kind in (None, "object"):
            yield from _shapes(_object(field.get("properties")), f"{under}{name}.", depth + 1)


def _dense(field: Fields) -> tuple[int, DistanceName]:
    if field.get("element_type", "float") != "float":
        raise Refused("unsupported", "vectors of bytes or bits are others than those of floats")
    return _whole(field.get("dims", 0)), _known(_SIMILARITIES, field.get("similarity", "cosine"))


def _knn(field: Fields) -> tuple[int, DistanceName]:
    if field.get("model_id") or field.get("data_type", "float") != "float":
        raise Refused("unsupported", "vectors of bytes or bits, or by a model, are others than those of floats")
    method = _object(field.get("method"))
    return _whole(field.get("dimension", 0)), _known(_SPACES, method.get("space_type", field.get("space_type", "l2")))


def _known(distances: dict[str, DistanceName], said: Any) -> DistanceName:
    distance = distances.get(said) if isinstance(said, str) else None
    if distance is None:
        raise Refused("unsupported", f"a mirror does not know the distance {str(said)[:40]!r}")
    return distance


def _whole(said: Any) -> int:
    if not isinstance(said, int) or isinstance(said, bool) or said < 0:
        raise Refused("unsupported", "dimensions that are no whole number")
    return said


def _object(value: Any) -> Fields:
    return cast("Fields", value) if isinstance(value, dict) else {}
