"""The table of what policies cost: every stack in it can be put together, and lets a call pass without waiting."""

from __future__ import annotations

import pytest

from tests.bench.policies import ROWS, measure


async def test_every_row_is_put_together_and_measured(capsys: pytest.CaptureFixture[str]):
    await measure(1)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[:54].strip() for line in lines] == [row.name for row in ROWS]
    assert all(float(line[54:62]) > 0 for line in lines)
