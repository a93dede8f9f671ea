"""The wrong-space table, in small: no answer from a wrong space, no handle at a primary, all served somehow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.two_spaces import far, near
from tests.kit.ways import WAYS
from tests.real.spaces_table import Row, table


@pytest.mark.parametrize("dialect", sorted(WAYS))
async def test_no_search_is_answered_from_a_wrong_space_and_no_primary_sees_a_handle(tmp_path: Path, dialect: str):
    rows = await table(tmp_path, searches=60, documents=200, dialect=dialect)
    assert len(rows) == 12
    assert [(row.wrong_space, row.handles_at_primary) for row in rows] == [(0, 0)] * 12
    by_name = {(row.embedder, row.database, row.vector): row for row in rows}

    # whatever we handed out is answered, whoever is down; and found, not only answered
    ours = [row for row in rows if row.vector == "ours"]
    assert [row.answered for row in ours] == [60] * len(ours)
    assert min(row.right / row.answered for row in ours) >= 0.95
    # what nobody here handed out is the database's to answer, or nobody's
    for (_, database, vector), row in by_name.items():
        if vector == "unknown":
            assert row.answered == (60 if database == "up" else 0)
            assert (set(row.served) == {"primary (vector)"}) == (database == "up")
    assert _sources(by_name["up", "up", "ours"]) == {"primary (vector)"}
    assert _sources(by_name["up", "down", "ours"]) == {"local-index (vector)"}
    assert _sources(by_name["down", "up", "ours"]) == {"local-index (handle)"}
    # handles go on being answered, and new vectors are the primary's; its ramp leaves a few of those to the local index
    assert _sources(by_name["back", "up", "ours"]) >= {"primary (vector)", "local-index (handle)"}


def _sources(row: Row) -> set[str]:
    return set(row.served)


def test_the_two_spaces_are_noise_to_each_other():
    vector = far("w1 w2 w3")[:48]
    assert abs(float(vector @ near("w1 w2 w3"))) < 0.4
