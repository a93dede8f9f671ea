"""The upstream tier over real sockets: connections kept, lost and repeated, and every way an answer goes wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.kit.acts import answer, broken, drip, early, hang_up, interim, raw, reset, silence
from tests.kit.fake_upstream import Act, Heard, Wire, deaf_port
from tests.tiers.upstream_bench import Bench, taken
from understudy.policies.service import Failed, Refused
from understudy.proxy.http.upstream import Terms

OK = answer(200, body={"choices": []})
PASS_POST = {"kind": "pass"}
PASS_GET = {"kind": "pass", "method": "GET", "body": b""}


def now() -> float:
    return asyncio.get_running_loop().time()


# --- connections ---------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again():
    async with Bench(OK) as bench:
        for _ in range(5):
            assert (await bench.ask()).status == 200
        assert (bench.up.connections_ever, bench.pool.opened, bench.pool.idle, bench.pool.size) == (1, 1, 1, 1)


async def test_the_connection_used_last_is_used_first_and_the_others_grow_old():
    async with Bench(OK) as bench:
        bench.up.then(*[answer(200, body={}, delay_s=0.1)] * 3)
        await asyncio.gather(*(bench.ask() for _ in range(3)))
        assert (bench.up.connections_ever, bench.pool.idle) == (3, 3)
        for _ in range(65):
            await asyncio.sleep(1)
            await bench.ask()
            bench.pool.sweep(now())
        assert (bench.up.connections_ever, bench.pool.size) == (3, 1)
        assert len({heard.connection for heard in bench.up.heard[3:]}) == 1


async def test_an_idle_connection_that_the_upstream_closes_is_forgotten():
    async with Bench(OK, idle_close_s=5.0) as bench:
        await bench.ask()
        await asyncio.sleep(6)
        assert (bench.pool.size, bench.up.connections_open) == (0, 0)
        assert (await bench.ask()).status == 200
        assert bench.up.connections_ever == 2


@pytest.mark.parametrize("death", [hang_up(), reset()])
@pytest.mark.parametrize("asked", [{}, PASS_GET, {"kind": "embed"}, {"kind": "retrieve"}])
async def test_a_request_that_met_a_dead_connection_is_repeated_once_on_a_new_one(death: Act, asked: dict[str, Any]):
    async with Bench(OK, dialect="plain") as bench:
        await bench.ask()
        bench.up.on_reuse = death
        assert (await bench.ask(**asked)).status == 200
        assert [heard.connection for heard in bench.up.heard] == [1, 1, 2]


@pytest.mark.parametrize("death", [hang_up(), reset()])
async def test_a_passed_post_that_met_a_dead_connection_is_never_repeated(death: Act):
    async with Bench(OK) as bench:
        await bench.ask()
        bench.up.on_reuse = death
        failed = await bench.fails(**PASS_POST)
        assert (failed.reason, failed.again, failed.elsewhere) == ("reset", False, False)
        assert len(bench.up.heard) == 2


async def test_a_request_that_dies_on_its_new_connection_too_is_failed_and_not_repeated_here():
    async with Bench(OK) as bench:
        await bench.ask()
        bench.up.always(hang_up())
        failed = await bench.fails()
        assert (failed.reason, failed.again, failed.elsewhere) == ("reset", True, True)
        assert len(bench.up.heard) == 3


async def test_a_connection_that_spoke_out_of_turn_is_not_used_again():
    async with Bench(OK) as bench:

        async def chatty(wire: Wire, heard: Heard) -> None:
            await OK(wire, heard)
            await asyncio.sleep(1)
            await wire.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")

        bench.up.then(chatty)
        await bench.ask()
        await asyncio.sleep(2)
        assert bench.pool.size == 0
        assert (await bench.ask()).status == 200


async def test_bytes_behind_an_answer_in_the_same_packet_end_its_connection():
    async with Bench(OK) as bench:
        bench.up.then(
            raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
        )
        assert (await bench.ask()).body == b"{}"
        await bench.settled()
        assert bench.pool.size == 0
        assert b"forged" not in (await bench.ask()).body


async def test_a_body_where_none_may_be_ends_the_connection():
    async with Bench(OK, dialect="plain") as bench:
        bench.up.then(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"))
        answered = await bench.ask("pass", "HEAD", b"")
        assert (answered.status, answered.body) == (200, b"")
        await bench.settled()
        assert bench.pool.size == 0


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nconnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
async def test_an_upstream_that_will_close_is_not_asked_on_that_connection_again(head: bytes):
    async with Bench(raw(head + b"content-length: 2\r\n\r\n{}")) as bench:
        await bench.ask()
        assert bench.pool.idle == 0
        await bench.ask()
        assert bench.up.connections_ever == 2


async def test_an_answer_that_came_before_the_request_was_all_sent_ends_the_connection():
    async with Bench(OK, dialect="plain") as bench:
        bench.up.then(early(answer(413, body=b"too large")))
        answered = await bench.ask(body=b"b" * 50_000_000)
        assert (answered.status, answered.body) == (413, b"too large")
        await bench.settled()
        assert bench.pool.size == 0


async def test_no_more_connections_are_opened_than_allowed():
    async with Bench(answer(200, body={}, delay_s=1.0), connections_max=3) as bench:
        results = await asyncio.gather(*(bench.ask() for _ in range(5)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Refused)]
        assert [one.reason for one in refused] == ["connections"] * 2
        assert bench.up.connections_ever == 3
        assert (await bench.ask()).status == 200


# --- not connected -------------------------------------------------------------------------------------------------


async def test_a_refused_connection_fails_at_once():
    async with Bench() as bench:
        await bench.up.refuse()
        started = now()
        for asked in ({}, PASS_POST):
            failed = await bench.fails(**asked)
            assert (failed.reason, failed.again, failed.elsewhere) == ("connect_refused", True, True)
        assert now() - started < 0.1


async def test_a_black_hole_fails_when_the_time_to_connect_is_up():
    with deaf_port() as port:
        async with Bench(url=f"http://127.0.0.1:{port}", connect_s=2.0) as bench:
            started = now()
            failed = await bench.fails(**PASS_POST)
            assert (failed.reason, failed.elsewhere) == ("connect_timeout", True)
            assert 2.0 <= now() - started < 2.1


async def test_a_name_that_does_not_resolve_fails():
    async with Bench(url="http://nobody.invalid:80") as bench:
        assert (await bench.fails()).reason == "dns"


async def test_an_upstream_that_accepts_and_closes_at_once_has_failed():
    async def slam(reader: object, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Bench(url=f"http://127.0.0.1:{port}") as bench:
        for _ in range(3):
            assert (await bench.fails()).reason == "reset"
    server.close()


async def test_a_connection_lost_before_it_was_used_is_no_bug_of_ours():
    async with Bench(OK) as bench:
        real = bench.pool.connect

        async def connect(wait_s: float) -> Any:
            connection = await real(wait_s)
            connection.abort()
            await asyncio.sleep(0.01)
            return connection

        bench.pool.connect = connect  # type: ignore[method-assign]
        failed = await bench.fails()
        assert (failed.reason, failed.again) == ("reset", True)


async def test_a_call_without_time_left_spends_nothing_and_loses_no_connection():
    async with Bench(OK) as bench:
        failed = await bench.fails(within_s=0.0)
        assert (failed.reason, failed.again, failed.soft) == ("deadline", False, True)
        assert bench.up.connections_ever == 0
        await bench.ask()
        for _ in range(3):
            assert (await bench.fails(within_s=-1.0)).reason == "deadline"
        assert (bench.pool.idle, bench.pool.size) == (1, 1)
        assert len(bench.up.heard) == 1


async def test_a_call_whose_time_was_spent_connecting_gives_the_connection_to_the_pool():
    async with Bench(OK) as bench:
        real = bench.pool.connect

        async def connect(wait_s: float) -> Any:
            connection = await real(wait_s)
            await asyncio.sleep(5)
            return connection

        bench.pool.connect = connect  # type: ignore[method-assign]
        assert (await bench.fails(within_s=3.0)).reason == "deadline"
        assert bench.pool.idle == 1


# --- broken answers ------------------------------------------------------------------------------------------------

GARBAGE = raw(b"\x00\x01SSH-2.0-OpenSSH\r\n\r\n", then="stall")
LONG_HEAD = b"HTTP/1.1 200 OK\r\n" + b"x-h: " + b"v" * 40_000 + b"\r\n" + b"x-i: " + b"v" * 40_000 + b"\r\n\r\n"
BROKEN = {
    "a reset before the head": (reset(), "reset"),
    "a close before the head": (hang_up(), "reset"),
    "a reset in the head": (raw(b"HTTP/1.1 200 OK\r\ncontent-le", then="reset"), "truncated"),
    "a close in the head": (raw(b"HTTP/1.1 200 OK\r\ncontent-le", then="cut"), "truncated"),
    "a reset in the body": (broken("reset", after=100, body=b"b" * 200), "truncated"),
    "an early close in a body whose length was told": (broken("cut", after=100, body=b"b" * 200), "truncated"),
    "a chunked body without its end": (broken("cut", after=100, framing="chunked"), "truncated"),
    "a chunk cut in two": (
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc", then="cut"),
        "truncated",
    ),
    "a reset in a body that ends with the connection": (broken("reset", after=100, framing="until-close"), "truncated"),
    "garbage": (GARBAGE, "garbage"),
    "empty lines before the head": (
        raw(b"\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", then="stall"),
        "garbage",
    ),
    "a wrong chunk size": (
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", then="stall"),
        "garbage",
    ),
    "two lengths": (
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", then="stall"),
        "garbage",
    ),
    "a long head": (raw(LONG_HEAD, then="stall"), "head_too_large"),
    "a head without an end": (raw(b"HTTP/1.1 200 OK\r\nx: " + b"v" * 400_000, then="stall"), "head_too_large"),
    "trailers without an end": (
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: " + b"v" * 900_000, then="stall"),
        "head_too_large",
    ),
    "another protocol unasked": (
        raw(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", then="stall"),
        "upgrade",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_answer_is_failed_and_its_connection_closed(name: str):
    act, reason = BROKEN[name]
    async with Bench(act, dialect="plain") as bench:
        for asked, may in (({}, True), (PASS_GET, True), (PASS_POST, False)):
            answered = failed = None
            try:
                answered = await bench.ask(**asked)
            except Failed as caught:
                failed = caught
            if answered is None:
                assert failed is not None
                assert (failed.reason, failed.again, failed.elsewhere) == (reason, may, may), asked
            else:
                # what is only passed on is a stream as soon as its head is there
                assert answered.stream is not None
                assert (await taken(answered)).broken == reason
            await bench.settled()
            assert (bench.pool.size, bench.up.connections_open) == (0, 0)


async def test_an_upstream_that_stays_silent_is_failed_when_its_time_is_up():
    async with Bench(silence(), first_byte_s=7.0) as bench:
        started = now()
        failed = await bench.fails()
        assert (failed.reason, failed.soft, failed.again) == ("first_byte_timeout", False, True)
        assert 7.0 <= now() - started < 7.1
        await bench.settled()
        assert bench.up.connections_open == 0


async def test_the_callers_impatience_is_soft_and_ends_the_attempts():
    async with Bench(silence(), first_byte_s=7.0) as bench:
        failed = await bench.fails(within_s=3.0)
        assert (failed.reason, failed.soft, failed.again) == ("deadline", True, False)


async def test_a_head_or_a_whole_body_that_only_drips_runs_out_of_time_too():
    body = b'{"choices": []}'
    async with Bench(first_byte_s=7.0) as bench:
        bench.up.then(broken("stall", after=5, body=body), drip(body, bytes_per_s=1.0), drip(body, bytes_per_s=10.0))
        assert (await bench.fails()).reason == "first_byte_timeout"
        assert (await bench.fails()).reason == "first_byte_timeout"
        assert (await bench.ask()).body == body


async def test_interim_answers_are_passed_over():
    async with Bench() as bench:
        bench.up.then(interim(OK, status=100), interim(OK, status=103, times=3), interim(OK, status=102), OK)
        for _ in range(4):
            answered = await bench.ask(headers=[(b"link", b"x")])
            assert (answered.status, answered.body) == (200, b'{"choices": []}')
        assert bench.up.connections_ever == 1


async def test_interim_answers_without_an_end_run_out_of_time():
    async with Bench(interim(silence(), times=50), first_byte_s=7.0) as bench:
        assert (await bench.fails()).reason == "first_byte_timeout"


async def test_an_answer_may_end_with_its_connection():
    async with Bench(answer(200, body={"choices": []}, framing="until-close")) as bench:
        for _ in range(2):
            assert (await bench.ask()).body == b'{"choices": []}'
        assert (bench.up.connections_ever, bench.pool.size) == (2, 0)


async def test_trailers_do_not_pass_for_headers():
    async with Bench(
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: 1\r\n\r\n2\r\n{}\r\n0\r\nx-forged: 1\r\n\r\n")
    ) as bench:
        assert (await bench.ask()).headers == [(b"x-a", b"1")]


async def test_an_answer_may_come_byte_by_byte():
    whole = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: 1\r\n\r\n" + b"2\r\n{}\r\n0\r\n\r\n"

    async def play(wire: Wire, _heard: Heard) -> None:
        for byte in whole:
            await wire.write(bytes([byte]))
            await asyncio.sleep(0.001)

    async with Bench(play) as bench:
        for _ in range(2):
            answered = await bench.ask()
            assert (answered.headers, answered.body) == ([(b"x-a", b"1")], b"{}")


# --- judged --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529])
async def test_a_status_that_blames_the_upstream_is_failed_with_its_answer(status: int):
    async with Bench(answer(status, [(b"x-why", b"w")], b"why")) as bench:
        failed = await bench.fails()
        assert failed.answer is not None
        assert (failed.reason, failed.answer.status, failed.answer.body) == (f"status_{status}", status, b"why")
        assert (b"x-why", b"w") in failed.answer.headers
        assert failed.soft == (status in (429, 529))
        assert bench.pool.idle == 1, "a proper answer leaves the connection in order"
        passed = await bench.fails(**PASS_POST)
        assert (passed.again, passed.elsewhere) == (False, status in (425, 429, 503, 529))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 501, 505])
async def test_a_status_that_blames_the_caller_is_an_answer(status: int):
    async with Bench(answer(status, body=b"why")) as bench:
        answered = await bench.ask()
        assert (answered.status, answered.body) == (status, b"why")


async def test_a_503_that_says_when_is_soft_and_one_that_does_not_is_hard():
    async with Bench() as bench:
        bench.up.then(answer(503, [(b"retry-after", b"7")]), answer(503))
        first, second = await bench.fails(), await bench.fails()
        assert (first.soft, first.retry_after_s) == (True, 7.0)
        assert (second.soft, second.retry_after_s) == (False, None)


async def test_an_error_inside_a_200_is_failed():
    async with Bench() as bench:
        bench.up.then(answer(200, body={"error": {"code": "overloaded"}}), answer(200, body=b"<html>"))
        assert (await bench.fails()).reason == "error_in_200"
        assert (await bench.fails()).reason == "garbage"


@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_a_long_error_page_is_kept_or_let_go_and_holds_no_connection(size: int):
    async with Bench(answer(503, body=b"e" * size, framing="chunked")) as bench:
        failed = await bench.fails(**PASS_GET)
        assert failed.reason == "status_503"
        assert (failed.answer is not None and len(failed.answer.body)) == (size if size < 1_000_000 else False)
        await bench.settled()
        assert bench.pool.size == bench.pool.idle


# --- cancelled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.5])
async def test_a_cancelled_call_leaves_nothing(after_s: float):
    async def slow(wire: Wire, _heard: Heard) -> None:
        await asyncio.sleep(1)
        await wire.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
        await asyncio.sleep(1000)

    async with Bench(slow) as bench:
        asking = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(after_s)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        await bench.settled()
        assert (bench.pool.size, bench.up.connections_open) == (0, 0)


async def test_a_call_cancelled_while_connecting_leaves_nothing():
    with deaf_port() as port:
        async with Bench(url=f"http://127.0.0.1:{port}", connect_s=20.0) as bench:
            asking = asyncio.ensure_future(bench.ask())
            await asyncio.sleep(1)
            assert bench.pool.size == 1
            asking.cancel()
            await asyncio.wait([asking])
            assert bench.pool.size == 0


async def test_a_call_cancelled_as_its_answer_came_does_not_disturb_the_next_on_that_connection():
    async with Bench(answer(200, body={"n": 1}, delay_s=1.0)) as bench:
        first = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(0.5)
        second: list[asyncio.Future[Any]] = []
        real = bench.pool.give_back

        def give_back(connection: Any) -> None:
            real(connection)
            # the answer is there, its task has not run yet: somebody else takes the connection, and the first leaves
            second.append(asyncio.ensure_future(bench.ask(**PASS_POST)))
            asyncio.get_running_loop().call_soon(first.cancel)
            bench.pool.give_back = real  # type: ignore[method-assign]

        bench.pool.give_back = give_back  # type: ignore[method-assign]
        await asyncio.wait([first])
        assert (await second[0]).status == 200
        assert bench.up.connections_ever == 1


async def test_a_clock_left_over_from_one_exchange_does_not_disturb_the_next_on_that_connection():
    clock = asyncio.get_running_loop().time
    async with Bench(answer(200, body={"n": 1}, delay_s=1.0)) as bench:
        connection = await bench.pool.connect(1.0)
        get = (b"GET", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"", Terms(None, 1000))
        await connection.send(*get, clock() + 1.2)
        # the first one's time would be up while the second is waited for
        assert (await connection.send(*get, clock() + 5.0)).status == 200
        assert bench.up.connections_ever == 1


async def test_a_shorter_patience_than_the_last_ones_is_kept_on_the_same_connection():
    clock = asyncio.get_running_loop().time
    async with Bench(answer(200, body={"n": 1})) as bench:
        connection = await bench.pool.connect(1.0)
        get = (b"GET", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"", Terms(None, 1000))
        await connection.send(*get, clock() + 60.0)
        bench.up.always(silence())
        began = clock()
        with pytest.raises(Failed) as failed:
            await connection.send(*get, clock() + 0.5, due_is_callers=True)
        assert failed.value.reason == "deadline"
        assert clock() - began == pytest.approx(0.5, abs=0.01)


# --- reload --------------------------------------------------------------------------------------------------------


async def test_a_closed_pool_lets_busy_connections_finish_and_keeps_none():
    async with Bench(answer(200, body={}, delay_s=1.0)) as bench:
        await bench.ask()
        asking = [asyncio.ensure_future(bench.ask()) for _ in range(2)]
        await asyncio.sleep(0.5)
        assert (bench.pool.size, bench.pool.idle) == (2, 0)
        bench.pool.close()
        assert [(await one).status for one in asking] == [200, 200]
        await bench.settled()
        assert (bench.pool.size, bench.up.connections_open) == (0, 0)


async def test_a_closed_pool_closes_its_idle_connections_at_once():
    async with Bench(OK) as bench:
        await bench.ask()
        bench.pool.close()
        await bench.settled()
        assert (bench.pool.size, bench.up.connections_open) == (0, 0)
