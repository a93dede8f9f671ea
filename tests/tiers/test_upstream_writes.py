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
