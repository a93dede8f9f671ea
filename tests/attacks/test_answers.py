"""Whatever an upstream answers, the caller gets that or an error, the next caller gets their own, and nobody hangs."""

from __future__ import annotations

import asyncio

import pytest

from tests.attacks.answers import POISON, ROWS, Row, head
from tests.http.house import Caller, Got, House, chat, request, turns, until
from tests.kit.acts import answer
from tests.kit.fake_upstream import Act, Gone, Heard, Wire

HANG_S_MAX = 60.0
"""How long anything may take, on the virtual clock: attempts, their clocks and the pauses between them."""
CLOCKS = {"first_byte_s": 5.0, "idle_s": 10.0}
NEXT = answer(200, body=b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"NEXT"}}]}')


def playing(row: Row, piece_bytes: int) -> Act:
    async def play(wire: Wire, heard: Heard) -> None:
        for at in range(0, len(row.data), piece_bytes):
            await wire.write(row.data[at : at + piece_bytes])
            await asyncio.sleep(0)
        if row.end == "close":
            raise Gone
        if row.end == "reset":
            wire.reset()
            raise Gone
        if row.end == "stall":
            await wire.closed.wait()

    return play


async def first_hears(caller: Caller, row: Row) -> Got:
    async with asyncio.timeout(HANG_S_MAX):
        return await caller.hears(row.method)


def wrongs(row: Row, got: Got) -> list[str]:
    """What the caller should not have seen."""
    seen = f"{row.name}: {got.status} {got.body[:80]!r} whole={got.whole}"
    if row.fair:
        return [] if (got.status, got.body, got.whole) == (row.status, row.body, True) else [seen]
    found = [seen] if got.whole and got.status < 500 else []
    if b"POISON" in got.body or b"evil" in got.body or got.header(b"set-cookie"):
        found.append(f"something smuggled: {seen}")
    return found


async def play_row(row: Row, piece_bytes: int, dialect: str = "plain") -> list[str]:
    async with House(dialect=dialect, tier=CLOCKS) as house:
        house.up.respond = lambda heard: NEXT if b"next" in heard.target else playing(row, piece_bytes)
        caller = await house.caller()
        caller.say(chat() if dialect != "plain" else request(row.method))
        got = await first_hears(caller, row)
        found = wrongs(row, got)
        forged = [value for value in got.every(b"x-understudy-tier") if value == b"forged"]
        found += [f"{row.name}: forged {forged}"] if forged else []
        used = house.up.connections_ever
        await turns(20)
        # on a connection of its own, and where the first one is kept, behind it: no answer but its own
        after = await house.ask(request(target="/next"))
        if (after.status, after.whole) != (200, True) or b"NEXT" not in after.body:
            found.append(f"{row.name}: the next caller got {after.status} {after.body[:80]!r}")
        kept = house.up.connections_ever == used
        if kept != row.kept:
            found.append(f"{row.name}: the connection was {'kept' if kept else 'not kept'}")
    return found


@pytest.mark.parametrize("piece_bytes", [1_000_000, 7])
async def test_each_answer_is_handed_on_or_refused_and_the_next_caller_gets_its_own(piece_bytes: int):
    rows = [row for row in ROWS if len(row.data) // piece_bytes < 300]
    found = [wrong for row in rows for wrong in await play_row(row, piece_bytes)]
    assert not found, f"{len(found)}\n" + "\n".join(found)


async def test_no_bad_answer_passes_where_answers_are_held_until_they_are_whole():
    rows = [row for row in ROWS if not row.fair and row.method == "GET"]
    found = [wrong for row in rows for wrong in await play_row(row, 1_000_000, "openai-chat")]
    assert not found, f"{len(found)}\n" + "\n".join(found)


async def test_byte_by_byte_an_answer_means_the_same():
    rows = [row for row in ROWS if len(row.data) < 120 and row.end == "keep"]
    found = [wrong for row in rows for wrong in await play_row(row, 1)]
    assert not found, f"{len(found)}\n" + "\n".join(found)


async def test_an_answer_behind_the_first_in_one_packet_never_reaches_a_caller_who_waits_already():
    # the second request is sent in the very moment the first answer is complete
    for method in ("GET", "HEAD"):
        for surplus in (POISON, b"X", b"HTTP/1.1 100 Continue\r\n\r\n" + POISON, b"\r\n" + POISON):
            row = Row("", head(b"Content-Length: 0") + surplus, "keep", fair=True)
            async with House() as house:
                house.up.respond = lambda heard, row=row: NEXT if b"next" in heard.target else playing(row, 10_000)
                caller = await house.caller()
                caller.say(request(method), request(target="/next"))
                assert (await caller.hears(method)).status == 200
                assert b"NEXT" in (await caller.hears()).body


@pytest.mark.parametrize("waiting", [1, 4])
async def test_callers_in_line_for_a_poisoned_connection_get_their_own_answers(waiting: int):
    row = Row("", head(b"Content-Length: 2") + b"ok" + POISON, "keep", fair=True)
    async with House(tier={"connections_max": 1}) as house:
        house.up.respond = lambda heard: NEXT if b"next" in heard.target else playing(row, 10_000)
        callers = [await house.caller() for _ in range(1 + waiting)]
        callers[0].say(request())
        await turns(5)
        for caller in callers[1:]:
            caller.say(request(target="/next"))
        assert (await callers[0].hears()).body == b"ok"
        for caller in callers[1:]:
            got = await caller.hears()
            assert (got.status, b"NEXT" in got.body) == (200, True)


async def test_an_answer_said_before_its_request_is_not_believed():
    async with House() as house:

        async def spoken_first(wire: Wire, heard: Heard) -> None:
            await NEXT(wire, heard)
            await asyncio.sleep(0.5)
            await wire.write(POISON)

        house.up.respond = lambda heard: spoken_first if heard.target == b"/x" else NEXT
        assert b"NEXT" in (await house.ask()).body
        await until(lambda: house.pool.idle == 0)
        assert b"NEXT" in (await house.ask(request(target="/next"))).body
        assert house.up.connections_ever == 2


async def test_interim_answers_without_end_are_cut_off_by_the_clock():
    async def endless(wire: Wire, heard: Heard) -> None:
        while True:
            await wire.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            await asyncio.sleep(0.2)

    async with House(tier=CLOCKS) as house:
        house.up.respond = lambda heard: NEXT if b"next" in heard.target else endless
        caller = await house.caller()
        caller.say(request("POST", body=b""))
        async with asyncio.timeout(HANG_S_MAX):
            assert (await caller.hears()).status == 504
        assert b"NEXT" in (await house.ask(request(target="/next"))).body


async def test_an_answer_before_the_request_was_all_sent_leaves_nothing_for_the_next():
    body = b"b" * 8_000_000

    async def early(wire: Wire, heard: Heard) -> None:
        wire.stop_reading()
        await wire.write(head(b"Content-Length: 2") + b"ok")
        await wire.closed.wait()

    early.before_body = True  # type: ignore[attr-defined]
    async with House(tier=CLOCKS) as house:
        house.up.respond = lambda heard: NEXT if b"next" in heard.target else early
        caller = await house.caller()
        caller.say(request("POST", body=body))
        async with asyncio.timeout(HANG_S_MAX):
            assert (await caller.hears()).body == b"ok"
        assert b"NEXT" in (await house.ask(request(target="/next"))).body
        assert house.up.connections_ever == 2


def test_the_table_of_answers_is_large_enough_and_counted(capsys: pytest.CaptureFixture[str]):
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    fair = sum(row.fair for row in ROWS)
    with capsys.disabled():
        print(f"\nhostile answers: {len(ROWS)} cases, {len(ROWS) - fair} never handed on whole, {fair} handed on")
    assert len(ROWS) >= 140
