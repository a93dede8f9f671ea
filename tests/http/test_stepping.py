"""A coroutine that is stepped by hand behaves as one in a task does, whatever it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from understudy.proxy.http.stepping import AT_ONCE_MAX, HELD_BYTES_MAX, Stepped, Steps, Waiter


def new() -> tuple[Steps, Stepped]:
    steps = Steps(asyncio.get_running_loop())
    return steps, Stepped()


def waiter() -> Waiter[int]:
    return Waiter(asyncio.get_running_loop())


async def test_a_coroutine_goes_on_in_the_very_turn_in_which_it_is_told():
    steps, stepped = new()
    told, heard = waiter(), list[int]()

    async def listening() -> None:
        heard.append(await told)

    stepped.start(listening(), steps)
    assert (heard, stepped.is_under_way) == ([], True)
    told.tell(7)
    assert (heard, stepped.is_under_way) == ([7], False)


async def test_under_load_those_who_were_told_go_on_together_a_turn_later():
    steps, _ = new()
    waiters = [waiter() for _ in range(AT_ONCE_MAX + 3)]
    heard: list[int] = []

    async def listening(told: Waiter[int]) -> None:
        heard.append(await told)

    for told in waiters:
        Stepped().start(listening(told), steps)
    await asyncio.sleep(0)
    assert steps.under_way == len(waiters)
    for number, told in enumerate(waiters):
        told.tell(number)
    assert heard == []
    await asyncio.sleep(0)
    assert heard == list(range(len(waiters)))
    assert steps.under_way == 0


class Wire(asyncio.WriteTransport):
    """Writes down in what order things happened."""

    def __init__(self, happened: list[bytes]) -> None:
        super().__init__()
        self.happened = happened
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.happened.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing


async def test_what_is_written_together_goes_out_behind_the_last_of_those_who_go_on_together():
    steps, _ = new()
    happened: list[bytes] = []
    waiters = [waiter() for _ in range(AT_ONCE_MAX + 3)]
    given_up = Wire(happened)
    long = b"x" * (HELD_BYTES_MAX + 1)

    async def saying(told: Waiter[int]) -> None:
        number = await told
        happened.append(b"goes on")
        if number == 0:
            steps.write(given_up, b"to nobody")
        steps.write(Wire(happened), b"%d" % number if number != 1 else long)
        given_up.closing = True

    for told in waiters:
        Stepped().start(saying(told), steps)
    await asyncio.sleep(0)
    for number, told in enumerate(waiters):
        told.tell(number)
    await asyncio.sleep(0)
    assert happened == [b"goes on", b"goes on", long, b"goes on", b"goes on", b"goes on", b"0", b"2", b"3", b"4"]
    # who is alone on the road waits for nobody
    steps.write(Wire(happened), b"at once")
    assert happened[-1] == b"at once"


@pytest.mark.parametrize("wait_s", [0, 5])
async def test_what_only_a_task_can_wait_for_makes_a_task_of_the_rest(wait_s: float):
    steps, stepped = new()
    seen: list[object] = []

    async def waiting() -> None:
        await asyncio.sleep(wait_s)
        seen.append(asyncio.current_task() is not None)
        async with asyncio.timeout(1):
            await asyncio.sleep(0.5)
        seen.append("done")

    stepped.start(waiting(), steps)
    assert (seen, steps.under_way) == ([], 1)
    await asyncio.sleep(6)
    assert (seen, steps.under_way, stepped.is_under_way) == ([True, "done"], 0, False)


async def test_what_became_a_task_is_cancelled_like_one():
    steps, stepped = new()
    seen: list[object] = []

    async def waiting() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            seen.append("ends")

    stepped.start(waiting(), steps)
    stepped.cancel()
    await asyncio.sleep(1)
    assert (seen, steps.under_way, stepped.is_under_way) == (["ends"], 0, False)


async def test_an_error_is_raised_where_it_was_waited_and_may_be_caught_there():
    steps, stepped = new()
    first, second, heard = waiter(), waiter(), list[object]()

    async def asking() -> None:
        try:
            await first
        except ValueError as error:
            heard.append(str(error))
        heard.append(await second)

    stepped.start(asking(), steps)
    first.fail(ValueError("no"))
    second.tell(2)
    second.tell(3)
    assert heard == ["no", 2]


async def test_a_waiter_told_beforehand_is_not_waited_for():
    steps, stepped = new()
    told, heard = waiter(), list[int]()
    told.tell(1)

    async def asking() -> None:
        heard.append(await told)

    stepped.start(asking(), steps)
    assert heard == [1]


async def test_a_task_can_wait_by_a_waiter_and_be_cancelled_there():
    told = waiter()
    task = asyncio.ensure_future(_wait_for(told))
    await asyncio.sleep(0)
    told.tell(5)
    assert await task == 5
    untold = waiter()
    task = asyncio.ensure_future(_wait_for(untold))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert untold.done
    assert untold.answered is None


async def _wait_for(told: Waiter[int]) -> int:
    return await told


class Cancelled:
    """A coroutine that notes what it lives through, and cleans up by waiting once more."""

    def __init__(self) -> None:
        self.told = waiter()
        self.noted: list[str] = []

    async def run(self) -> None:
        self.noted.append("begun")
        try:
            await self.told
            self.noted.append("told")
        except asyncio.CancelledError:
            self.noted.append("cancelled")
            await asyncio.sleep(1)
            self.noted.append("cleaned up")
            raise


async def test_whoever_is_cancelled_while_it_waits_can_still_clean_up():
    steps, stepped = new()
    life = Cancelled()
    stepped.start(life.run(), steps)
    stepped.cancel()
    assert life.noted == ["begun", "cancelled"]
    await asyncio.sleep(2)
    assert life.noted == ["begun", "cancelled", "cleaned up"]
    assert steps.under_way == 0


async def test_whoever_was_told_and_is_cancelled_before_it_could_go_on_is_cancelled():
    steps, _ = new()
    lives = [Cancelled() for _ in range(AT_ONCE_MAX + 2)]
    stepped = [Stepped() for _ in lives]
    for life, each in zip(lives, stepped, strict=True):
        each.start(life.run(), steps)
    await asyncio.sleep(0)
    for life in lives:
        life.told.tell(1)
    stepped[0].cancel()
    await asyncio.sleep(2)
    assert lives[0].noted == ["begun", "cancelled", "cleaned up"]
    assert [life.noted for life in lives[1:]] == [["begun", "told"]] * (len(lives) - 1)
    assert steps.under_way == 0


async def test_whoever_is_cancelled_before_its_first_step_never_begins():
    steps, _ = new()
    lives = [Cancelled() for _ in range(AT_ONCE_MAX + 2)]
    stepped = [Stepped() for _ in lives]
    for life, each in zip(lives, stepped, strict=True):
        each.start(life.run(), steps)
    stepped[-1].cancel()
    await asyncio.sleep(0)
    assert lives[-1].noted == []
    assert steps.under_way == len(lives) - 1


async def test_whoever_cancels_itself_is_cancelled_at_its_next_wait():
    steps, stepped = new()
    noted: list[str] = []

    def own() -> Coroutine[Any, Any, None]:
        async def run() -> None:
            stepped.cancel()
            noted.append("goes on")
            try:
                await waiter()
            finally:
                noted.append("ends")

        return run()

    stepped.start(own(), steps)
    await asyncio.sleep(0)
    assert (noted, steps.under_way) == (["goes on", "ends"], 0)
