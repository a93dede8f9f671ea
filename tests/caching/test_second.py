"""The second level: Redis and Memcached as they are, and a client that is slow, broken or lying; never a lost call."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.caching.desk import Desk, answer, embedder, shared_caches
from tests.kit.processes import eventually, free_port, needs
from understudy.policies.cache import FAILURES_MAX
from understudy.policies.service import Answer, Call
from understudy.proxy.caching.caches import Caches
from understudy.proxy.caching.second import Client, Second, client_of
from understudy.proxy.caching.values import MAGIC, Value, packed, unpacked

WELL_S = 30.0
WAIT_S = 0.05


class Shelf:
    """A client whose memory several second levels share, and which does as it is told."""

    def __init__(self, memory: dict[str, bytes]) -> None:
        self.memory = memory
        self.mood = "well"
        self.asked = 0

    async def multi_get(self, keys: list[str]) -> list[bytes | None]:
        self.asked += 1
        await self._suffer()
        return [b"\x00garbage" if self.mood == "lying" and "epoch" not in key else self.memory.get(key) for key in keys]

    async def set(self, key: str, value: bytes, ttl: int) -> bool:
        await self._suffer()
        self.memory[key] = value
        return True

    async def close(self) -> None: ...

    async def _suffer(self) -> None:
        if self.mood == "black hole":
            await asyncio.sleep(10_000)
        if self.mood == "broken":
            raise ConnectionError("refused")


def level(client: Client, caches: Caches) -> Second:
    words = itertools.count()
    second = Second(
        client,
        WAIT_S,
        clock=caches.clock,
        dice=lambda: 0.0,
        word=lambda: b"%x-%d" % (id(caches), next(words)),
        spawn=caches.spawn,
    )
    caches.use(second)
    return second


async def searching(call: Call) -> Answer:
    return answer({"result": {"seen": 1}, "status": "ok", "time": 0.1})


async def test_what_one_sidecar_has_kept_another_finds():
    memory: dict[str, bytes] = {}
    asked: list[list[Any]] = []
    desks: list[Desk] = []
    for _ in range(2):
        caches = shared_caches()
        level(Shelf(memory), caches)
        desks.append(Desk("openai-embeddings", embedder(asked), caches=caches))
    one, other = desks
    first = await one.ask({"model": "m", "input": "a"})
    await asyncio.sleep(1)
    again = await other.ask({"model": "m", "input": "a"})
    assert (again.source, again.body) == ("cache", first.body)
    assert b"age: 1\r\n" in again.lines()
    await other.ask({"model": "m", "input": ["b", "a", "c"]})
    await asyncio.sleep(1)
    await one.ask({"model": "m", "input": ["c", "b", "d"]})
    assert asked == [["a"], ["b", "c"], ["d"]]
    for desk in desks:
        await desk.close()


@pytest.mark.parametrize("mood", ["black hole", "broken", "lying"])
async def test_T39_a_second_level_that_fails_costs_a_few_waits_and_then_nothing(mood: str):
    caches = shared_caches()
    shelf = Shelf({})
    shelf.mood = mood
    second = level(shelf, caches)
    desk = Desk("openai-embeddings", embedder([]), caches=caches)
    clock = asyncio.get_running_loop().time
    waits: list[float] = []
    for n in range(200):
        began = clock()
        assert (await desk.ask({"model": "m", "input": f"text {n}"})).status == 200
        waits.append(clock() - began)
    assert max(waits) <= WAIT_S + 0.001
    assert sum(wait > 0.001 for wait in waits) <= FAILURES_MAX
    if mood != "lying":
        assert second.patience.is_open
        assert shelf.asked <= FAILURES_MAX
    shelf.mood = "well"
    await asyncio.sleep(60)
    for n in range(3):
        await desk.ask({"model": "m", "input": f"later {n}"})
        await asyncio.sleep(0.1)
    assert not second.patience.is_open
    assert second.results["stored"] >= 2
    await desk.close()


async def test_a_write_that_one_sidecar_sees_is_heard_by_the_others():
    memory: dict[str, bytes] = {}
    desks: list[Desk] = []
    writes = 0

    async def database(call: Call) -> Answer:
        nonlocal writes
        writes += call.kind == "pass"
        return answer({"result": writes, "status": "ok", "time": 0.1})

    for _ in range(2):
        caches = shared_caches()
        level(Shelf(memory), caches)
        desks.append(Desk("qdrant", database, caches=caches))
    one, other = desks

    async def settle() -> None:
        for _ in range(4):
            for desk in desks:
                desk.caches.tick()
            await asyncio.sleep(0.6)

    for _ in range(2):
        for desk in desks:
            await desk.ask({"query": [1]})
            await settle()
    assert [(await desk.ask({"query": [1]})).source for desk in desks] == ["cache", "cache"]
    await one.ask({}, target=b"/collections/books/points", method=b"PUT")
    assert json.loads((await one.ask({"query": [1]})).body)["result"] == 1
    await settle()
    assert json.loads((await other.ask({"query": [1]})).body)["result"] == 1
    assert other.cache.store.moved == 1
    for desk in desks:
        await desk.close()


async def test_what_was_kept_before_a_write_that_the_second_level_missed_is_not_believed_when_it_is_back():
    memory: dict[str, bytes] = {}
    caches = shared_caches()
    shelf = Shelf(memory)
    second = level(shelf, caches)
    desk = Desk("qdrant", searching, caches=caches)
    for n in range(3):
        await desk.ask({"query": [n]})
        await asyncio.sleep(0.1)
    assert second.results["stored"]
    shelf.mood = "broken"
    await desk.ask({}, target=b"/collections/books/points", method=b"PUT")
    await asyncio.sleep(2)
    assert "books" in second.owed
    # its memory is as good as lost, and what is in the second level is from before the write
    shelf.mood = "well"
    for n in range(3):
        assert (await desk.ask({"query": [n]})).source == "first"
    for _ in range(80):
        caches.tick()
        await asyncio.sleep(1)
    assert not second.owed
    desk.cache.store.clear()
    assert (await desk.ask({"query": [0]})).source == "first"
    await desk.close()


@pytest.mark.parametrize("at", range(0, 200, 7))
def test_a_value_with_any_byte_changed_or_missing_is_not_believed(at: int):
    whole = packed(Value(200, b"content-type: application/json\r\n", b'{"a": 1}' * 10), 1.0, 2.0)
    found = unpacked(whole)
    assert found is not None
    assert found.body == b'{"a": 1}' * 10
    place = at % len(whole)
    assert unpacked(whole[:place]) is None
    assert unpacked(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]) is None


@pytest.mark.parametrize(
    "value",
    [
        Value(500, b"content-type: x\r\n", b""),
        Value(200, b"content-type: x\r\nset-cookie: a\r\n", b""),
        Value(200, b"content-type: x\nset-cookie: a\r\n", b""),
        Value(200, b"content-type: x", b""),
        Value(200, b"", b"abc", vector=(2, 9)),
    ],
)
def test_a_value_that_nobody_would_have_kept_is_not_believed(value: Value):
    assert unpacked(packed(value, 1.0, 2.0)) is None
    assert unpacked(MAGIC) is None


# --- the real servers ----------------------------------------------------------------------------------------------


@contextmanager
def server(kind: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis or Memcached on a free port, with nothing on the disk."""
    port = free_port()
    if kind == "redis":
        command = [needs("redis-server"), "--port", str(port), "--save", "", "--appendonly", "no"]
    else:
        command = [needs("memcached"), "-p", str(port), "-l", "127.0.0.1", "-u", "nobody", "-U", "0"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    scheme = "redis" if kind == "redis" else "memcached"
    try:
        eventually(lambda: _accepts(port))
        yield f"{scheme}://127.0.0.1:{port}", child
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait(60)


def _accepts(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.real
@pytest.mark.real_clock
@pytest.mark.parametrize("kind", ["redis", "memcached"])
async def test_T39_a_real_server_is_used_and_when_it_is_stopped_or_killed_no_call_fails(kind: str):
    pytest.importorskip("redis" if kind == "redis" else "aiomcache")
    with server(kind) as (url, child):
        asked: list[list[Any]] = []
        desks: list[Desk] = []
        for _ in range(2):
            caches = shared_caches()
            level(client_of(url, "understudy"), caches)
            desks.append(Desk("openai-embeddings", embedder(asked), caches=caches))
        one, other = desks
        stored, second = one.caches.second, other.caches.second
        assert stored is not None
        assert second is not None
        # while it is well, a busy machine may take its time
        stored.wait_s = second.wait_s = WELL_S
        await one.ask({"model": "m", "input": ["a", "é b", "c"]})
        while stored.results["stored"] < 3:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.01)
        assert (await other.ask({"model": "m", "input": ["c", "a"]})).source == "cache"
        assert len(asked) == 1
        stored.wait_s = second.wait_s = WAIT_S
        child.send_signal(signal.SIGSTOP)
        for n in range(50):
            assert (await other.ask({"model": "m", "input": f"stopped {n}"})).status == 200
        assert second.patience.is_open
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait(60)
        for n in range(50):
            assert (await one.ask({"model": "m", "input": f"killed {n}"})).status == 200
        for desk in desks:
            await desk.close()


@pytest.mark.real
@pytest.mark.real_clock
async def test_T39_it_starts_with_the_second_level_down():
    pytest.importorskip("redis")
    caches = shared_caches()
    level(client_of(f"redis://127.0.0.1:{free_port()}", "understudy"), caches)
    desk = Desk("openai-embeddings", embedder([]), caches=caches)
    for n in range(20):
        assert (await desk.ask({"model": "m", "input": f"{n}"})).status == 200
    assert (await desk.ask({"model": "m", "input": "3"})).source == "cache"
    await desk.close()


def test_the_programs_that_these_tests_start_are_named_where_the_gate_installs_them():
    from tests.kit.processes import REPOSITORY

    gate = (REPOSITORY / ".ci" / "run").read_text()
    assert all(f"wants {name} " in gate for name in ("redis-server", "memcached"))
    assert shutil.which("sh")
