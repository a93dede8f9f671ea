"""A handle is known for one wherever it comes back, and nothing else ever is."""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from array import array

import pytest

from understudy.policies.marks import (
    DIMENSIONS_MIN,
    MARK_PLACES,
    first_handle,
    handle_of,
    handles_in,
    mark_of,
    numbers_at,
    space_key,
    unpacked,
    vector_in,
)


def unit(dimensions: int, seed: int = 1) -> array[float]:
    rng = random.Random(seed)
    drawn = [rng.gauss(0, 1) for _ in range(dimensions)]
    length = sum(x * x for x in drawn) ** 0.5
    return array("f", [x / length for x in drawn])


def key_of(vector: array[float] | list[float]) -> int | None:
    return mark_of(list(vector)[-MARK_PLACES:])


@pytest.mark.parametrize("dimensions", [64, 256, 384, 416, 768, 1536, 3072])
def test_a_handle_has_the_dimensions_asked_for_names_its_space_and_carries_the_vector_as_far_as_it_fits(
    dimensions: int,
):
    own = unit(384)
    handle = handle_of(own, dimensions, "all-MiniLM-L6-v2")
    assert len(handle) == dimensions
    assert key_of(handle) == space_key("all-MiniLM-L6-v2")
    assert key_of(handle) != space_key("bge-small-en")
    kept = min(384, dimensions - MARK_PLACES)
    assert vector_in(handle, 384)[:kept] == own[:kept]
    assert not any(vector_in(handle, 384)[kept:])


def test_a_handle_of_too_few_dimensions_is_refused():
    with pytest.raises(ValueError, match="64 dimensions"):
        handle_of(unit(384), DIMENSIONS_MIN - 1, "s")


def test_a_mark_outlives_scaling_rounding_noise_half_precision_and_the_mean_of_several_handles():
    import numpy as np

    rng = random.Random(3)
    handle = handle_of(unit(384), 1536, "s")
    length = sum(x * x for x in handle) ** 0.5
    altered = [
        [x / length for x in handle],
        [round(x, 6) for x in handle],
        [x * 37.5 for x in handle],
        [x + rng.gauss(0, 0.0141 / 1536**0.5) for x in handle],
        np.asarray(handle, dtype=np.float16).astype(np.float32).tolist(),
        [(a + b) / 2 for a, b in zip(handle, handle_of(unit(384, 9), 1536, "s"), strict=True)],
    ]
    assert [key_of(each) for each in altered] == [space_key("s")] * len(altered)


def test_no_other_vector_has_a_mark():
    rng = random.Random(5)
    others: list[list[float]] = [[0.0] * 64, [0.1] * 64, [float("nan")] * 64, [float("inf")] * 64, [1.0, -1.0] * 32]
    others += [[rng.choice((-0.01, 0.01)) for _ in range(64)] for _ in range(5000)]
    others += [[rng.gauss(0, 1) for _ in range(64)] for _ in range(5000)]
    others += [list(unit(64, seed)) + [0.0] * 64 for seed in range(50)]
    assert [each for each in others if key_of(each) is not None] == []


HANDLE = handle_of(unit(384), 1536, "s")
OTHER = unit(1536, 8)
IN_BASE64 = base64.b64encode(HANDLE.tobytes()).decode()
BODIES = {
    "qdrant": {"query": list(HANDLE), "limit": 3, "filter": {"must": [{"key": "a", "match": {"any": [1, 2]}}]}},
    "a batch": {"searches": [{"query": list(OTHER)}, {"query": list(HANDLE)}]},
    "prefetch": {"prefetch": [{"query": list(HANDLE), "using": "a"}], "query": {"fusion": "rrf"}},
    "an upsert": {"points": [{"id": 1, "vector": list(OTHER)}, {"id": 2, "vector": {"named": list(HANDLE)}}]},
    "chroma": {"query_embeddings": [list(OTHER), list(HANDLE)], "include": ["documents"]},
    "chroma in base64": {"ids": ["a"], "embeddings": [base64.b64encode(OTHER.tobytes()).decode(), IN_BASE64]},
    "graphql": {"query": "{ Get { P(nearVector: {vector: " + json.dumps(list(HANDLE)) + "}) { text } } }"},
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("indent", [None, 4])
def test_a_handle_is_found_in_a_body_of_any_dialect_and_read_from_it_exactly(name: str, indent: int | None):
    body = json.dumps(BODIES[name], indent=indent).encode()
    (found,) = handles_in(body)
    assert numbers_at(body, found) == HANDLE
    assert found[2] == space_key("s")


def test_bodies_without_a_handle_have_none():
    bodies = [b"", b"]", b"[]", b"{}", b"[1,2]", b'{"a":["x","y"]}', b"\xff]\x00", b"[" * 99, b'"' * 999, b"1,1]" * 500]
    bodies += [json.dumps({"vector": list(unit(d, d))}).encode() for d in (1, 2, 31, 32, 33, 64, 1536)]
    bodies += [json.dumps({"e": [base64.b64encode(unit(d, d).tobytes()).decode()]}).encode() for d in range(64, 400)]
    bodies += [json.dumps({"text": "A" * 4000}).encode(), json.dumps({"vector": [0.5] * 64}).encode()]
    assert [body for body in bodies if first_handle(body) is not None] == []


def test_a_handle_is_found_in_base64_of_every_length():
    for dimensions in range(64, 400):
        body = json.dumps({"e": [base64.b64encode(handle_of(unit(64), dimensions, "s").tobytes()).decode()]}).encode()
        assert first_handle(body) is not None, dimensions


def test_compressed_bodies_are_looked_into_and_what_cannot_be_is_said_so():
    body = json.dumps(BODIES["qdrant"]).encode()
    assert unpacked(body, b"") == body
    assert unpacked(gzip.compress(body), b"gzip") == body
    assert unpacked(zlib.compress(body), b"deflate") == body
    assert unpacked(gzip.compress(body)[:-9], b"gzip") is None
    assert unpacked(b"no gzip", b"gzip") is None
    assert unpacked(body, b"br") is None
