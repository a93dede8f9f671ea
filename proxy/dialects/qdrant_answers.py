"""Points written down as Qdrant writes them: {id, version, score, payload, vector}, what is not wanted left out.

A vector compared by its cosine is kept at length one by Qdrant, and given back so. One vector without a name stands
bare, vectors by name in an object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from understudy.proxy.asks import CollectionInfo, Found, RetrieveAsk, Retrieved
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.qdrant_payload import chosen

ONE: Final = "one"
"""The shape of an answer that is a single point, asked for by its id in the path."""

_DISTANCES: Final = {"cosine": "Cosine", "dot": "Dot", "euclid": "Euclid"}


def result_of(ask: RetrieveAsk, result: Retrieved) -> Any:
    """What stands under `result`. Raises BadRequest with a 404 for a single point that is not there."""
    if ask.op == "batch":
        return [result_of(part, found) for part, found in zip(ask.parts, result.parts, strict=True)]
    if ask.op in ("search", "scroll", "get"):
        return _points(ask, result)
    if ask.op == "groups":
        inner = ask.parts[0]
        groups = [
            {"hits": [_point(inner, each, result) for each in hits], "id": value} for value, hits in result.groups
        ]
        return {"groups": groups}
    if ask.op == "facet":
        return {"hits": [{"value": value, "count": count} for value, count in result.counted]}
    if ask.op == "count":
        return {"count": result.count}
    if ask.op == "exists":
        return {"exists": result.exists}
    if ask.op == "info" and result.info is not None:
        return _info(result.info)
    return {"collections": [{"name": name} for name in result.names]}


def _points(ask: RetrieveAsk, result: Retrieved) -> Any:
    if ask.shape == ONE and not result.found:
        raise BadRequest(f"Not found: Point with id {ask.ids[0]} does not exists!", status=404)
    points = [_point(ask, found, result) for found in result.found]
    if ask.shape == ONE:
        return points[0]
    if ask.op == "scroll" and not ask.shape:
        return {"points": points, "next_page_offset": result.next_id}
    return {"points": points} if ask.shape == "query" else points


def _point(ask: RetrieveAsk, found: Found, result: Retrieved) -> dict[str, Any]:
    point: dict[str, Any] = {"id": found.id}
    if ask.op == "search" or ask.shape == "query":
        # The client's model wants both; a version orders writes, and the local index has seen only one of each. What
        # was not ranked has a score of one.
        point |= {"version": 0, "score": 1.0 if found.score is None else found.score}
    if ask.with_payload is not False:
        point["payload"] = chosen(found.payload, ask.with_payload)
    if ask.with_vector:
        point["vector"] = _vectors(ask, found, result)
    if found.order_value is not None:
        point["order_value"] = found.order_value
    return point


def _vectors(ask: RetrieveAsk, found: Found, result: Retrieved) -> Any:
    """A point's vectors by name, or the one without a name by itself."""
    held: Mapping[str, list[float]] = found.named if found.vector is None else {"": found.vector, **found.named}
    names = held if ask.vector_names is None else [name for name in ask.vector_names if name in held]
    vectors = {name: _as_kept(held[name], result.distances.get(name, result.distance)) for name in names}
    return vectors[""] if vectors.keys() == {""} else vectors


def _as_kept(vector: list[float], distance: str) -> list[float]:
    if distance != "cosine":
        return vector
    length = math.sqrt(math.fsum(each * each for each in vector))
    # within what single precision can tell, it has been brought to length one before
    return vector if not length or abs(length - 1) < 1e-6 else [each / length for each in vector]


def _info(info: CollectionInfo) -> dict[str, Any]:
    """A collection as its client's model insists on it; what the local index has no counterpart for says Qdrant's
    defaults."""
    one = {"size": info.dimensions, "distance": _DISTANCES[info.distance]}
    several = {name: {"size": size, "distance": _DISTANCES[kind]} for name, (size, kind) in info.vectors.items()}
    return {
        "status": "green",
        "optimizer_status": "ok",
        "vectors_count": info.count,
        "indexed_vectors_count": info.count,
        "points_count": info.count,
        "segments_count": 1,
        "config": {
            "params": {
                "vectors": several or one,
                "shard_number": 1,
                "replication_factor": 1,
                "write_consistency_factor": 1,
                "on_disk_payload": True,
            },
            "hnsw_config": {
                "m": 16,
                "ef_construct": 100,
                "full_scan_threshold": 10000,
                "max_indexing_threads": 0,
                "on_disk": False,
            },
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "max_segment_size": None,
                "memmap_threshold": None,
                "indexing_threshold": 10000,
                "flush_interval_sec": 5,
                "max_optimization_threads": None,
            },
            "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
            "quantization_config": None,
        },
        "payload_schema": {},
    }
