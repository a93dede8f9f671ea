"""What a database answers to a write is read whole and judged, and goes back to its caller as it came."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.acts import answer, pieces
from tests.tiers.upstream_bench import Bench, taken
from understudy.policies.service import Call, Failed, Request
from understudy.proxy.tiers.upstream import WRITE_WHOLE_BYTES_MAX


def bulk(*statuses: int) -> dict[str, Any]:
    items = [{"index": {"_index": "docs", "_id": str(n), "status": status}} for n, status in enumerate(statuses)]
    return {"took": 3, "errors": any(status >= 300 for status in statuses), "items": items}


def write(dialect: str = "elasticsearch") -> Call:
    return Call("pass", Request(b"POST", b"/_bulk", [], b'{"index":{"_id":"a"}}\n{}\n'), dialect=dialect)


async def test_a_bulk_that_the_cluster_could_not_take_counts_and_goes_back_as_it_came():
    async with Bench(answer(200, body=bulk(201, 429)), dialect="elasticsearch") as bench:
        with pytest.raises(Failed) as failed:
            await bench.tier(write())
        assert (failed.value.reason, failed.value.again, failed.value.elsewhere) == ("error_in_200", False, False)
        assert failed.value.fault == "endpoint"
        assert failed.value.answer is not None
        assert (failed.value.answer.status, b'"errors"' in failed.value.answer.body) == (200, True)


async def test_a_document_that_is_itself_at_fault_says_nothing_of_the_cluster():
    async with Bench(answer(200, body=bulk(201, 400, 409)), dialect="elasticsearch") as bench:
        assert (await bench.tier(write())).status == 200


async def test_a_long_answer_to_a_write_is_held_whole_and_to_anything_else_is_not():
    said = [b'{"errors":false,"items":[', b" " * 200_000, b"]}"]
    async with Bench(pieces(said), dialect="elasticsearch") as bench:
        written = await bench.tier(write())
        assert (written.stream, len(written.body)) == (None, sum(map(len, said)))
        read = await bench.tier(Call("pass", Request(b"GET", b"/_cat/indices", []), dialect="elasticsearch"))
        assert len((await taken(read)).body) == sum(map(len, said))


async def test_an_answer_to_a_write_that_has_no_end_is_handed_over_as_it_comes():
    said = [b" " * (WRITE_WHOLE_BYTES_MAX // 2)] * 3
    async with Bench(pieces(said), dialect="elasticsearch") as bench:
        written = await bench.tier(write())
        assert len((await taken(written)).body) == sum(map(len, said))


def search(dialect: str) -> Call:
    path = b"/v2/vectordb/entities/search" if dialect == "milvus" else b"/v1/graphql"
    return Call("retrieve", Request(b"POST", path, [], b"{}"), dialect=dialect)


@pytest.mark.parametrize(
    ("dialect", "said", "reason", "soft"),
    [
        ("milvus", {"code": 2, "message": "service unavailable"}, "error_in_200", False),
        ("milvus", {"code": 8, "message": "rate limit exceeded"}, "rate_limit", True),
        ("milvus", {"code": 101, "message": "collection not loaded"}, "not_loaded", False),
        ("weaviate", {"errors": [{"message": "shard not ready"}], "data": None}, "error_in_200", False),
    ],
)
async def test_an_error_in_a_200_is_judged_by_its_code(dialect: str, said: Any, reason: str, soft: bool):
    async with Bench(answer(200, body=said), dialect=dialect) as bench:
        with pytest.raises(Failed) as failed:
            await bench.tier(search(dialect))
        assert (failed.value.reason, failed.value.soft, failed.value.fault) == (reason, soft, "endpoint")


@pytest.mark.parametrize(
    ("dialect", "said", "fault"),
    [
        ("milvus", {"code": 100, "message": "collection not found"}, "not_found"),
        ("milvus", {"code": 1100, "message": "invalid parameter"}, "invalid"),
        ("milvus", {"code": 1800, "message": "user hasn't authenticated"}, "credentials"),
        ("weaviate", {"errors": [{"message": 'Cannot query field "x" on type "Docs".'}]}, "invalid"),
        ("weaviate", {"errors": [{"message": "Syntax Error GraphQL request (1:3) Unexpected }"}]}, "invalid"),
    ],
)
async def test_a_callers_mistake_in_a_200_goes_back_and_says_nothing_of_the_server(dialect: str, said: Any, fault: str):
    async with Bench(answer(200, body=said), dialect=dialect) as bench:
        answered = await bench.tier(search(dialect))
        assert (answered.status, answered.fault) == (200, fault)
