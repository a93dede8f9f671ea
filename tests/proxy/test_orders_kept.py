"""What operators have said: kept, read again, and believed only where it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.policies.forcing import Forced
from understudy.policies.tiering import Pin
from understudy.proxy.orders import FILE, ORDERS_MAX, Orders, order_text, orders_of

WORD = Forced("chat", "openai", "east", "forced-open", 1.8e9, "anna from 127.0.0.1")


async def test_what_was_said_is_read_again_and_auto_leaves_nothing_behind(tmp_path: Path):
    orders = orders_of(tmp_path / "state")
    other = WORD._replace(endpoint="west", mode="disabled")
    orders.take([WORD, other])
    orders.pin([Pin("chat", "secondary"), Pin("", "tertiary")])
    assert await orders.keep() == ""
    again = orders_of(tmp_path / "state")
    assert (again.breakers, again.tiers) == ([WORD, other], [Pin("chat", "secondary"), Pin("", "tertiary")])
    # a word on the tier is on each of its endpoints that something was said of
    again.take(again.meant(Forced("chat", "openai", "", "auto", 1.9e9)))
    again.pin([Pin("chat", None)])
    assert await again.keep() == ""
    last = orders_of(tmp_path / "state")
    assert (last.breakers, last.tiers) == ([], [Pin("", "tertiary")])


async def test_who_has_read_an_older_file_is_told_of_auto_too():
    orders = Orders()
    orders.take([WORD])
    orders.take([WORD._replace(mode="auto")])
    assert [word.mode for word in orders.breakers] == ["auto"]
    assert orders.meant(WORD) == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"breakers": [["chat"]]}', '{"breakers": [["c", "t", "e", "ajar", 0, ""]]}']
)
async def test_a_file_that_says_what_nobody_can_have_said_is_told_of_and_not_believed(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
):
    (tmp_path / FILE).write_text(text)
    orders = orders_of(tmp_path)
    assert (orders.breakers, orders.tiers) == ([], [])
    assert "is not known" in caplog.text


async def test_where_nothing_can_be_written_it_is_said_so_and_holds_until_the_end(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    orders = orders_of(tmp_path / "file")
    orders.take([WORD])
    assert await orders.keep() != ""
    assert orders.breakers == [WORD]
    assert await Orders().keep() == "there is no state folder"


async def test_words_are_bounded_and_the_oldest_goes_first():
    orders = Orders()
    orders.take([WORD._replace(endpoint=f"{n}") for n in range(ORDERS_MAX + 1)])
    assert (len(orders.breakers), orders.breakers[0].endpoint) == (ORDERS_MAX, "1")


def test_it_is_told_since_when_and_by_whom():
    assert order_text(WORD) == "since 2027-01-15 08:00 UTC by anna from 127.0.0.1"
    assert order_text(WORD._replace(since=0.0)) == ""
