"""Where a name leads: how often DNS is asked, what is believed while it is silent, and in which order it is tried."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence

import pytest

from understudy.proxy.http.names import STALE_S_MAX, Names, interleaved

pytestmark = pytest.mark.virtual_clock(io_grace_s=0)

OLD, NEW, OTHER = "192.0.2.1", "192.0.2.2", "192.0.2.3"


class Dns:
    """A resolver that says what it is told to, and counts."""

    def __init__(self, *says: str, after_s: float = 0.0) -> None:
        self.says: Sequence[str] | Exception = says
        self.after_s = after_s
        self.asked = 0

    async def __call__(self, _host: str, _port: int) -> Sequence[str]:
        self.asked += 1
        await asyncio.sleep(self.after_s)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def names(self, host: str = "up.test", dns_s: float = 30.0) -> Names:
        loop = asyncio.get_running_loop()
        return Names(loop, host, 80, dns_s=dns_s, clock=loop.time, resolve=self)


GONE = socket.gaierror(socket.EAI_AGAIN, "no server could be asked")


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_dns_is_asked_once_for_all_who_wait_and_not_again_before_its_time():
    dns = Dns(OLD, NEW, after_s=0.5)
    names = dns.names()
    assert await asyncio.gather(*(names.addresses() for _ in range(50))) == [(OLD, NEW)] * 50
    await asyncio.sleep(29)
    assert await names.addresses() == (OLD, NEW)
    assert dns.asked == 1


async def test_old_addresses_are_served_at_once_while_new_ones_are_asked_for():
    dns = Dns(OLD)
    names = dns.names()
    await names.addresses()
    dns.says, dns.after_s = (NEW,), 2.0
    await asyncio.sleep(31)
    began = asyncio.get_running_loop().time()
    assert [await names.addresses() for _ in range(3)] == [(OLD,)] * 3
    assert asyncio.get_running_loop().time() == began, "nobody waits"
    await asyncio.sleep(2.1)
    assert await names.addresses() == (NEW,)
    assert (dns.asked, names.results) == (2, {"ok": 2, "failed": 0, "stale": 3})


async def test_while_dns_fails_what_was_known_is_used_for_a_day_and_no_longer():
    dns = Dns(OLD)
    names = dns.names()
    await names.addresses()
    for silence in (GONE, ()):
        dns.says = silence
        await asyncio.sleep(STALE_S_MAX / 2 - 60)
        assert await names.addresses() == (OLD,)
        await turns()
    await asyncio.sleep(121)
    with pytest.raises(socket.gaierror):
        await names.addresses()
    dns.says = (NEW,)
    assert await names.addresses() == (NEW,)


async def test_a_name_that_never_resolved_says_so_every_time_until_it_does():
    dns = Dns()
    dns.says = GONE
    names = dns.names()
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await names.addresses()
    dns.says = (OLD,)
    assert await names.addresses() == (OLD,)


async def test_a_name_that_cant_be_written_is_one_that_does_not_resolve():
    dns = Dns()
    dns.says = UnicodeError("label too long")
    with pytest.raises(socket.gaierror):
        await dns.names("x" * 70).addresses()


async def test_after_a_failed_connection_dns_is_asked_at_once_but_at_most_once_a_second():
    dns = Dns(OLD)
    names = dns.names()
    await names.addresses()
    await asyncio.sleep(5)
    dns.says = (NEW,)
    for _ in range(100):
        names.led_nowhere()
        await asyncio.sleep(0.01)
    assert dns.asked <= 3
    assert await names.addresses() == (NEW,)


async def test_a_call_that_could_not_connect_hears_of_other_addresses_but_does_not_wait_long_for_them():
    loop = asyncio.get_running_loop()
    dns = Dns(OLD)
    names = dns.names()
    await names.addresses()
    await asyncio.sleep(5)
    dns.says = (OLD, NEW)
    assert await names.others((OLD,)) == (NEW,)
    await asyncio.sleep(5)
    dns.after_s = 60.0
    began = loop.time()
    assert await names.others((OLD, NEW)) == ()
    assert loop.time() - began == pytest.approx(0.25)
    names.close()
    await turns()


async def test_the_address_that_was_good_is_tried_first_until_it_fails_or_is_no_longer_there():
    dns = Dns(OLD, NEW, OTHER)
    names = dns.names()
    await names.addresses()
    names.led_to(NEW)
    assert await names.addresses() == (NEW, OLD, OTHER)
    names.led_nowhere()
    await turns()
    assert await names.addresses() == (OLD, NEW, OTHER)
    names.led_to(NEW)
    dns.says = (OLD, OTHER)
    await asyncio.sleep(31)
    await names.addresses()
    await turns()
    assert await names.addresses() == (OLD, OTHER)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "2001:db8::1"])
async def test_an_address_in_digits_is_never_asked_about(host: str):
    dns = Dns(OLD)
    names = dns.names(host)
    for _ in range(3):
        await asyncio.sleep(100)
        assert await names.addresses() == (host,)
        assert await names.others((host,)) == ()
        names.led_nowhere()
    assert dns.asked == 0


async def test_a_resolver_that_hangs_is_asked_one_question_and_leaves_those_who_wait_free_to_go():
    dns = Dns(OLD, after_s=3600.0)
    names = dns.names()
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await names.addresses()
    assert dns.asked == 1
    names.close()
    await turns()


async def test_the_systems_resolver_is_asked_where_no_other_is_given():
    loop = asyncio.get_running_loop()
    names = Names(loop, "localhost", 80, dns_s=30.0, clock=loop.time)
    assert set(await names.addresses()) <= {"127.0.0.1", "::1"}


def test_families_take_turns_and_the_first_ones_comes_first():
    assert interleaved(["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"]) == ("::1", "1.1.1.1", "::2", "2.2.2.2", "::3")
    assert interleaved(["1.1.1.1", "::1", "2.2.2.2"]) == ("1.1.1.1", "::1", "2.2.2.2")
    assert interleaved([]) == ()


@pytest.mark.parametrize("seed", range(20))
def test_interleaving_loses_nothing_and_keeps_each_familys_order(seed: int):
    dice = random.Random(seed)
    given = [dice.choice(["::%d", "10.0.0.%d"]) % number for number in range(dice.randrange(12))]
    turned = interleaved(given)
    for is_six in (True, False):
        assert [a for a in turned if (":" in a) is is_six] == [a for a in given if (":" in a) is is_six]
