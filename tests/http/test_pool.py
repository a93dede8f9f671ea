"""The pool of connections to one upstream: in line for a place, led by DNS, and never too old."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence

import pytest

from tests.kit.acts import answer, hang_up
from tests.kit.fake_upstream import deaf_port
from tests.tiers.upstream_bench import Bench
from understudy.policies.service import Answer, Failed, Refused
from understudy.proxy.http.upstream import Connection

OK = answer(200, body={})
HERE, NOT_HERE = "127.0.0.1", "127.0.0.9"
PASS_POST = {"kind": "pass"}


def now() -> float:
    return asyncio.get_running_loop().time()


class Dns:
    """What a name leads to, until it is told otherwise."""

    def __init__(self, *says: str, after_s: float = 0.0) -> None:
        self.says: Sequence[str] = says
        self.after_s = after_s
        self.asked = 0

    async def __call__(self, _host: str, _port: int) -> Sequence[str]:
        self.asked += 1
        await asyncio.sleep(self.after_s)
        if not self.says:
            raise socket.gaierror(socket.EAI_AGAIN, "no server could be asked")
        return self.says


# --- in line -------------------------------------------------------------------------------------------------------


async def test_calls_wait_in_line_for_a_connection_to_come_back_and_none_is_opened_beyond_the_bound():
    async with Bench(answer(200, body={}, delay_s=0.03), connections_max=2) as bench:
        order: list[int] = []

        async def ask(number: int) -> None:
            await bench.ask()
            order.append(number)

        asking = [asyncio.ensure_future(ask(number)) for number in range(6)]
        await asyncio.sleep(0.01)
        assert (bench.pool.size, bench.pool.waiting) == (2, 4)
        await asyncio.gather(*asking)
        assert order == [0, 1, 2, 3, 4, 5]
        assert (bench.up.connections_ever, bench.pool.waiting, bench.pool.idle) == (2, 0, 2)
        assert (sum(bench.pool.waits.counts), bench.pool.waits.sum) == (4, pytest.approx(0.03 * 2 + 0.06 * 2, abs=0.02))


async def test_a_place_in_line_is_given_up_after_pool_wait_s_and_the_next_tier_may_be_asked():
    async with Bench(answer(200, body={}, delay_s=1.0), connections_max=1, pool_wait_s=0.2) as bench:
        busy = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(0.1)
        began = now()
        with pytest.raises(Refused) as refused:
            await bench.ask()
        assert (refused.value.reason, now() - began) == ("connections", pytest.approx(0.2))
        assert (await busy).status == 200
        assert (bench.pool.waiting, bench.pool.size, bench.pool.idle) == (0, 1, 1)


async def test_nobody_waits_in_line_for_longer_than_the_call_may_take():
    async with Bench(answer(200, body={}, delay_s=1.0), connections_max=1, pool_wait_s=10.0) as bench:
        busy = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(0.1)
        began = now()
        with pytest.raises(Refused):
            await bench.ask(within_s=0.3)
        assert now() - began == pytest.approx(0.3)
        await busy


async def test_without_patience_the_next_tier_is_asked_at_once():
    async with Bench(answer(200, body={}, delay_s=1.0), connections_max=1, pool_wait_s=0.0) as bench:
        busy = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(0.1)
        began = now()
        with pytest.raises(Refused):
            await bench.ask()
        assert now() == began
        await busy


async def test_the_line_goes_on_when_a_connection_is_lost_instead_of_coming_back():
    async with Bench(OK, connections_max=1, pool_wait_s=5.0) as bench:
        bench.up.then(hang_up())
        first, second = await asyncio.gather(bench.ask(), bench.ask(), return_exceptions=True)
        assert isinstance(first, Failed)
        assert isinstance(second, Answer)
        assert (bench.up.connections_ever, bench.pool.size) == (2, 1)


async def test_whoever_leaves_the_line_in_the_moment_of_his_turn_hands_the_connection_on():
    async with Bench(answer(200, body={}, delay_s=0.05), connections_max=1, pool_wait_s=5.0) as bench:
        busy = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(0.01)
        leaver = asyncio.ensure_future(bench.ask())
        stayer = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(0.01)
        real = bench.pool.give_back

        def give_back(connection: Connection) -> None:
            bench.pool.give_back = real  # type: ignore[method-assign]
            real(connection)
            leaver.cancel()

        bench.pool.give_back = give_back  # type: ignore[method-assign]
        assert [one.status for one in await asyncio.gather(busy, stayer)] == [200, 200]
        assert leaver.cancelled()
        assert (bench.up.connections_ever, bench.pool.idle, bench.pool.size) == (1, 1, 1)


async def test_a_connection_handed_over_in_line_that_was_dead_is_replaced_by_a_new_one():
    async with Bench(answer(200, body={}, delay_s=0.05), connections_max=1, pool_wait_s=5.0) as bench:
        busy = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(0.01)
        bench.up.on_reuse = hang_up()
        assert (await bench.ask()).status == 200
        assert (await busy).status == 200
        assert bench.up.connections_ever == 2


@pytest.mark.parametrize("seed", range(5))
async def test_in_any_weather_the_bound_holds_and_nobody_is_forgotten_in_line(seed: int):
    dice = random.Random(seed)
    async with Bench(connections_max=3, pool_wait_s=0.5) as bench:
        acts = [answer(200, body={}, delay_s=0.02), answer(200, body={}), hang_up(), answer(503)]
        bench.up.then(*(dice.choice(acts) for _ in range(300)))
        bench.up.always(OK)
        asking: list[asyncio.Future[Answer]] = []
        for _ in range(200):
            asking.append(asyncio.ensure_future(bench.ask()))
            if dice.random() < 0.2:
                dice.choice(asking).cancel()
            await asyncio.sleep(dice.choice([0.0, 0.0, 0.01]))
            assert bench.pool.size <= 3
        await asyncio.gather(*asking, return_exceptions=True)
        await bench.settled()
        assert (bench.pool.waiting, bench.pool.size - bench.pool.idle, bench.up.connections_open <= 3) == (0, 0, True)


# --- led by DNS ----------------------------------------------------------------------------------------------------


async def test_an_upstream_that_moved_is_found_in_the_same_call_that_missed_it():
    dns = Dns(NOT_HERE)
    async with Bench(OK, resolve=dns, dns_s=3600.0) as bench:
        assert (await bench.fails()).reason == "connect_refused"
        await asyncio.sleep(2)
        dns.says = (HERE,)
        assert (await bench.ask()).status == 200
        assert (dns.asked, bench.pool.failures) == (2, {"connect_refused": 1})


async def test_an_upstream_that_refuses_and_did_not_move_fails_without_delay():
    dns = Dns(NOT_HERE)
    async with Bench(OK, resolve=dns) as bench:
        for _ in range(20):
            began = now()
            assert (await bench.fails()).reason == "connect_refused"
            assert now() - began < 0.1
            await asyncio.sleep(0.1)
        assert dns.asked <= 4


async def test_a_name_with_a_dead_address_before_the_living_one_is_connected_to_and_remembers_it():
    async with Bench(OK, resolve=Dns("::1", NOT_HERE, HERE)) as bench:
        assert (await bench.ask()).status == 200
        assert bench.pool.names.good == HERE


async def test_a_black_hole_among_the_addresses_costs_a_quarter_of_a_second_and_is_not_tried_first_again():
    async with Bench(OK, resolve=Dns("127.0.0.2", HERE)) as bench:
        with deaf_port("127.0.0.2", bench.up.port):
            began = now()
            assert (await bench.ask()).status == 200
            assert now() - began == pytest.approx(0.25, abs=0.01)
            began = now()
            await bench.pool.connect(2.0)
            assert now() == began


async def test_the_loser_that_connected_after_all_is_closed():
    late = asyncio.Event()
    async with Bench(OK, resolve=Dns("127.0.0.2", HERE)) as bench:
        attempt = bench.pool._attempt  # pyright: ignore[reportPrivateUsage]

        async def tried(_address: str) -> asyncio.Transport:
            transport = await attempt(HERE)
            if not late.is_set():
                late.set()
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    # it had connected in the moment it lost
                    return transport
            return transport

        bench.pool._attempt = tried  # type: ignore[method-assign]
        assert (await bench.ask()).status == 200
        await bench.settled()
        assert (bench.up.connections_ever, bench.up.connections_open, bench.pool.size) == (2, 1, 1)


async def test_a_resolver_that_hangs_fails_the_call_when_the_time_to_connect_is_up():
    dns = Dns(HERE, after_s=60.0)
    async with Bench(OK, resolve=dns, connect_s=2.0) as bench:
        began = now()
        failed = await bench.fails(**PASS_POST)
        assert (failed.reason, failed.elsewhere, now() - began) == ("dns", True, pytest.approx(2.0))
        await asyncio.sleep(60)
        # the answer that came too late for the first is there for the next
        assert (await bench.ask()).status == 200
        assert dns.asked == 1


async def test_while_dns_is_down_connections_go_where_the_name_led_before():
    dns = Dns(HERE)
    async with Bench(OK, resolve=dns, dns_s=10.0) as bench:
        await bench.ask()
        dns.says = ()
        for _ in range(5):
            await asyncio.sleep(600)
            bench.pool.sweep(now())
            assert (await bench.ask()).status == 200
        assert bench.up.connections_ever == 6
        assert bench.pool.names.results["failed"] >= 5


# --- never too old -------------------------------------------------------------------------------------------------


async def test_a_connection_that_has_lived_its_time_is_not_used_again_and_its_successor_follows_dns():
    dns = Dns(HERE)
    async with Bench(OK, resolve=dns, connection_s_max=100.0, dns_s=30.0) as bench:
        began = now()
        while bench.up.connections_ever < 2:
            await bench.ask()
            await asyncio.sleep(1)
            assert now() - began < 110, "never idle, and still retired"
        assert now() - began == pytest.approx(102, abs=2)
        assert bench.pool.size == 1


async def test_a_stream_is_not_cut_because_its_connection_is_old():
    async with Bench(answer(200, body={}, delay_s=20.0), connection_s_max=10.0) as bench:
        asking = asyncio.ensure_future(bench.ask())
        for _ in range(15):
            await asyncio.sleep(1)
            bench.pool.sweep(now())
        assert (await asking).status == 200
        await bench.settled()
        assert bench.pool.size == 0


async def test_connections_opened_together_are_not_retired_together():
    retired = set[float]()
    async with Bench(answer(200, body={}, delay_s=0.1), connection_s_max=100.0) as bench:
        dice = random.Random(1)
        bench.pool._dice = dice.random  # pyright: ignore[reportPrivateUsage]
        opened = [await bench.pool.connect(1.0) for _ in range(10)]
        retired = {round(one.retire_at - now(), 3) for one in opened}
        assert len(retired) == 10
        assert all(90 <= age_s <= 100 for age_s in retired)


async def test_an_idle_connection_that_is_too_old_is_swept_away():
    async with Bench(OK, connection_s_max=10.0) as bench:
        await bench.ask()
        await asyncio.sleep(11)
        bench.pool.sweep(now())
        await bench.settled()
        assert (bench.pool.size, bench.pool.idle) == (0, 0)


@pytest.mark.real_clock
async def test_on_uvloop_too_dead_addresses_are_passed_by_and_the_line_is_kept():
    async with Bench(
        answer(200, body={}, delay_s=0.02), resolve=Dns("::1", NOT_HERE, HERE), connections_max=2, pool_wait_s=60.0
    ) as bench:
        answers = await asyncio.gather(*(bench.ask() for _ in range(6)))
        assert [one.status for one in answers] == [200] * 6
        assert bench.up.connections_ever == 2
