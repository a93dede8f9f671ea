"""Happy eyeballs on the virtual clock: who is tried when, who wins, and what becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from understudy.proxy.http.eyeballs import first_connected

pytestmark = pytest.mark.virtual_clock(io_grace_s=0)

REFUSED = ConnectionRefusedError("refused")
UNREACHABLE = OSError(101, "Network is unreachable")
NEVER = 10_000.0


class Net:
    """Hosts that connect, or fail, after so many seconds."""

    def __init__(self, **hosts: tuple[float, OSError | None]) -> None:
        self.hosts = hosts
        self.tried: list[tuple[str, float]] = []
        self.open: list[str] = []
        self.began = asyncio.get_running_loop().time()

    @property
    def passed_s(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    async def _attempt(self, address: str) -> str:
        self.tried.append((address, round(self.passed_s, 6)))
        after_s, error = self.hosts[address]
        await asyncio.sleep(after_s)
        if error is not None:
            raise error
        self.open.append(address)
        return address

    async def connected(self, addresses: Sequence[str] | None = None) -> str:
        won, address = await first_connected(addresses or list(self.hosts), self._attempt, self.open.remove)
        assert won == address
        return won


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_address_wins_alone_when_it_answers_in_time():
    net = Net(a=(0.2, None), b=(0.0, None))
    assert await net.connected() == "a"
    assert net.tried == [("a", 0.0)]


async def test_a_silent_address_is_passed_by_after_250_ms_each():
    net = Net(a=(NEVER, None), b=(NEVER, None), c=(0.01, None))
    assert await net.connected() == "c"
    assert net.tried == [("a", 0.0), ("b", 0.25), ("c", 0.5)]
    await settled()
    assert net.open == ["c"]


async def test_a_failure_has_the_next_begin_at_once():
    net = Net(a=(0.0, UNREACHABLE), b=(0.1, REFUSED), c=(0.05, None))
    assert await net.connected() == "c"
    assert net.tried == [("a", 0.0), ("b", 0.0), ("c", 0.1)]


async def test_a_slow_first_still_wins_over_a_slower_second():
    net = Net(a=(0.4, None), b=(0.3, None))
    assert await net.connected() == "a"
    assert net.passed_s == pytest.approx(0.4)


async def test_of_two_that_connect_in_the_same_moment_one_is_kept_and_the_other_discarded():
    net = Net(a=(0.35, None), b=(0.1, None))
    assert await net.connected() == "a"
    await settled()
    assert net.open == ["a"]


async def test_when_all_fail_the_one_that_was_there_is_named():
    net = Net(a=(0.0, UNREACHABLE), b=(0.0, REFUSED), c=(0.0, UNREACHABLE))
    with pytest.raises(ConnectionRefusedError):
        await net.connected()
    assert len(net.tried) == 3


async def test_whoever_stops_waiting_leaves_nothing_open_or_running():
    net = Net(a=(1.0, None), b=(1.0, None), c=(1.0, None))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.6):
            await net.connected()
    await settled()
    assert (len(net.tried), net.open) == (3, [])
    assert len(asyncio.all_tasks()) == 1


async def test_a_single_address_costs_no_task():
    net = Net(a=(0.1, None))
    connecting = asyncio.ensure_future(net.connected())
    await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) == 2
    assert await connecting == "a"
