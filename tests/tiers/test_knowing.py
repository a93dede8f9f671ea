"""What is known locally comes bit by bit, and may not come at all: either way it says so."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.tiers.toy import toy_knowing, toy_library, toy_model, until_idle
from understudy.policies.service import Failed, Refused
from understudy.proxy.settings.settings import Local
from understudy.proxy.tiers.knowing import Knowing


async def test_until_it_is_loaded_everything_is_refused_as_warming():
    knowing = Knowing()
    assert not knowing.ready
    assert "being loaded" in knowing.reason
    for ask in (knowing.model, knowing.shelf):
        with pytest.raises(Refused) as caught:
            ask()
        assert caught.value.reason == "warming"
    await knowing.close()


async def test_collections_are_there_before_the_model_and_without_it(tmp_path: Path):
    knowing = Knowing()
    toy_library(tmp_path / "collections")
    await knowing.load(
        Local(model=str(tmp_path / "no-such-model")), models=tmp_path / "models", collections=tmp_path / "collections"
    )
    assert knowing.shelf().get("docs") is not None
    with pytest.raises(Refused, match="no-such-model") as caught:
        knowing.model()
    assert caught.value.reason == "no_local_model"
    assert not knowing.ready
    assert "no-such-model" in knowing.reason
    await knowing.close()


async def test_a_model_is_in_its_own_space_under_each_of_its_names():
    model = toy_model(named="models/toy")
    assert model.is_in("models/toy")
    assert model.is_in("acme/Toy-Embed")
    assert not model.is_in("text-embedding-3-small")
    assert not model.is_in("")
    await model.batcher.close()


async def test_work_is_done_in_a_thread_and_its_result_comes_back(tmp_path: Path):
    knowing = toy_knowing(tmp_path)
    assert knowing.ready
    assert knowing.reason == ""
    name = await knowing.in_thread(lambda: threading.current_thread().name, float("inf"))
    assert name.startswith("local")
    with pytest.raises(ZeroDivisionError):
        await knowing.in_thread(lambda: 1 // 0, float("inf"))
    assert knowing.works == 0
    await knowing.close()


@pytest.mark.real_clock
async def test_more_work_than_can_wait_is_refused_and_places_come_back():
    knowing = Knowing(threads=1, works_max=3)
    gate, begun, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()

    def work() -> bool:
        loop.call_soon_threadsafe(begun.set)
        return gate.wait(60)

    waiting = [asyncio.ensure_future(knowing.in_thread(work, float("inf"))) for _ in range(3)]
    await begun.wait()
    with pytest.raises(Refused) as caught:
        await knowing.in_thread(lambda: None, float("inf"))
    assert caught.value.reason == "overloaded"
    waiting[2].cancel()
    await asyncio.wait([waiting[2]])
    # the one that had not begun gave its place back at once, the one in hand keeps its until it is over
    assert knowing.works == 2
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    assert knowing.works == 2
    gate.set()
    assert await waiting[1]
    await until_idle(knowing)
    await knowing.close()


@pytest.mark.real_clock
async def test_work_that_takes_too_long_fails_and_its_thread_is_not_lost():
    knowing = Knowing(threads=1)
    gate = threading.Event()
    with pytest.raises(Failed) as caught:
        await knowing.in_thread(lambda: gate.wait(60), asyncio.get_running_loop().time() + 0.02)
    assert (caught.value.reason, caught.value.again) == ("deadline", False)
    gate.set()
    assert await knowing.in_thread(lambda: 7, float("inf")) == 7
    await until_idle(knowing)
    await knowing.close()
