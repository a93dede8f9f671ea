"""The queue before a local language model: one is answered, few wait, and nobody is decoded for who has left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from understudy.models.decoder import Decoder, Ended, Wanted
from understudy.models.errors import ModelError
from understudy.proxy.llm.server import Busy, Serving

pytestmark = pytest.mark.real_clock


class Endless:
    """A model that says one word after the other, each when it is let, until nobody listens."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)
        self.left: list[str] = []

    def answer(
        self, messages: list[dict[str, str]], _wanted: Wanted, is_left: Callable[[], bool]
    ) -> Iterator[str | Ended]:
        name = messages[0]["content"]
        if name == "broken":
            raise ModelError("out of memory")
        while True:
            self.turn.acquire()
            if is_left():
                self.left.append(name)
                yield Ended("left", 1, 1)
                return
            yield name


def serving(model: Endless, *, waiting_max: int = 1, wait_s_max: float = 30.0) -> Serving:
    made = Serving(Path(), answer_tokens_max=9, waiting_max=waiting_max, wait_s_max=wait_s_max)
    made.decoder = cast("Decoder", model)
    return made


def asked(server: Serving, name: str) -> AsyncGenerator[str | Ended]:
    decoder: Any = server.decoder
    return server._pieces(decoder, [{"role": "user", "content": name}], Wanted(9))


async def test_one_is_answered_another_waits_and_a_third_is_told_so():
    model = Endless()
    server = serving(model)
    first, second = asked(server, "first"), asked(server, "second")
    model.turn.release()
    assert await anext(first) == "first"
    waiting = asyncio.ensure_future(anext(second))
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="1 calls wait"):
        await anext(asked(server, "third"))
    assert not waiting.done()
    await first.aclose()
    # the decoder sees that its caller has gone before its next word, and only then is it the other's turn
    model.turn.release(2)
    assert await waiting == "second"
    assert model.left == ["first"]
    await second.aclose()
    model.turn.release()


async def test_whoever_waits_too_long_is_told_so_and_the_next_one_may_wait():
    model = Endless()
    server = serving(model, wait_s_max=0.01)
    first = asked(server, "first")
    model.turn.release()
    assert await anext(first) == "first"
    for name in ("second", "third"):
        with pytest.raises(Busy, match=r"busy for 0\.01 s"):
            await anext(asked(server, name))
    await first.aclose()
    model.turn.release()


async def test_what_breaks_is_raised_and_the_next_one_has_its_turn():
    model = Endless()
    server = serving(model)
    with pytest.raises(ModelError, match="out of memory"):
        await anext(asked(server, "broken"))
    model.turn.release()
    second = asked(server, "second")
    assert await anext(second) == "second"
    await second.aclose()
    model.turn.release()
