"""Replicas that share hints through Redis: soon heard, and nothing lost when Redis stalls, lies or dies."""

from __future__ import annotations

import asyncio
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.caching.test_second import server
from tests.kit.processes import Sidecar, eventually, free_port
from understudy.policies.events import Event
from understudy.policies.hints import Noted, Open, Page
from understudy.proxy.control.hinting import Opening
from understudy.proxy.control.redis_line import REPLY_BYTES_MAX, Address, RedisFault, RedisLine
from understudy.proxy.control.replicas import PAGE_BYTES_MAX, Replicas, keys_of
from understudy.proxy.reports.metrics import METRICS
from understudy.proxy.reports.replicas import REPLICA_METRICS
from understudy.proxy.settings.cache import SharedCache
from understudy.proxy.settings.replica import Replicas as ReplicaSettings
from understudy.proxy.settings.settings import Match, Route, Secret, Server, Settings, UpstreamTier

OPEN_S = 240
KEY = ("chat", "model", "model")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def settings_of(url: str, *, share: bool = True, key: str = "") -> Settings:
    tier = UpstreamTier(name="model", url=f"http://127.0.0.1:9{key}")
    return Settings(
        routes=(Route(name="chat", match=Match(prefix="/"), dialect="plain", tiers=[tier]),),
        server=Server(cache=SharedCache(url=Secret(url)), replicas=ReplicaSettings(share=share)),
    )


class Own:
    """One replica's breakers, as a test says."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.open: list[Opening] = []
        self.heard: list[Opening] = []
        self.ill: dict[str, str] = {}
        self.alarmed: list[str] = []

    async def settings_now(self) -> Settings:
        return self.settings

    def opened(self) -> list[Opening]:
        return self.open

    def hinted(self, hints: Sequence[Opening], ill: Sequence[str]) -> None:
        self.heard += hints
        self.alarmed += ill

    def verdicts(self) -> dict[str, str]:
        return self.ill


@asynccontextmanager
async def serving(serve: Serve):
    """A server of raw bytes; its URL."""
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def to_its_end() -> None:
            with suppress(OSError, asyncio.IncompleteReadError):
                await serve(reader, writer)
            writer.close()

        tasks.add(asyncio.get_running_loop().create_task(to_its_end()))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def saying(data: bytes, *, then_wait: bool = True) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(data)
        await writer.drain()
        if then_wait:
            await asyncio.Event().wait()

    return serve


def bulks(*values: bytes) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)


# --- a server that is no friend ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b":1\r\n:1\r\n$-1\r\n",
        b":1\r\n:1\r\n*-1\r\n",
        b":1\r\n:1\r\n$99999999999\r\n",
        b":1\r\n:1\r\n*999999999\r\n",
        b":1\r\n:1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        b":1\r\n:1\r\n$x\r\n",
        b":1\r\n:1\r\n$2\r\nabcd\r\n",
        b"+" + b"x" * 200_000,
        b":1\r\n:1\r\n" + bulks(b"b", b"\xc1"),
        b":1\r\n:1\r\n" + bulks(b"b"),
        b":1\r\n:1\r\n" + bulks(b"b", b"x" * (PAGE_BYTES_MAX + 1)),
        b":1\r\n:1\r\n" + bulks(b"b", msgspec.msgpack.encode(Page("c", 1, 1e9, (Open("k", 1.0, "x"),)))),
        b":1\r\n:1\r\n" + bulks(b"b", msgspec.msgpack.encode(Page("b", 1, 1e9, (Open("k", -5.0, "x"),)))),
        b":1\r\n:1\r\n" + bulks(b"b", msgspec.msgpack.encode(Page("b", 1, 1e9, (Open("k", math.nan, ""),)))),
        b":1\r\n:1\r\n"
        + bulks(b"b", msgspec.msgpack.encode(Page("b", 1, 1e9, notes=(Noted(1, 1.0, "gossip", "c", "k", ""),)))),
        b":1\r\n:1\r\n"
        + bulks(b"b", msgspec.msgpack.encode(Page("b", 1, 1e9, notes=(Noted(1, math.nan, "failure", "c", "k", ""),)))),
    ],
)
async def test_a_server_that_says_nonsense_or_nothing_is_given_up_within_a_second(data: bytes):
    async with serving(saying(data)) as url:
        own = Own(settings_of(url))
        loop = asyncio.get_running_loop()
        replicas, began = Replicas(own, "a"), loop.time()
        await replicas.once(own.settings)
        assert loop.time() - began < 1
        assert own.heard == []
        assert replicas.told()["pages"] == []
        assert replicas.results["failed"] + replicas.results["malformed"] + replicas.results["read"] >= 1
        replicas.close()


@pytest.mark.real_clock
async def test_a_server_that_floods_is_hung_up_on_before_it_has_filled_memory():
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"*4000\r\n")
        while True:
            writer.write(b"$60000\r\n" + b"x" * 60_000 + b"\r\n")
            await writer.drain()

    async with serving(flood) as url:
        address = Address.read(url)
        assert address is not None
        line = RedisLine(address)
        with pytest.raises((RedisFault, TimeoutError)):
            await line.ask((b"HGETALL", b"x"))
        assert line._left_bytes > -REPLY_BYTES_MAX  # pyright: ignore[reportPrivateUsage]


async def test_one_that_is_away_is_tried_again_further_and_further_apart():
    own = Own(settings_of(f"redis://127.0.0.1:{free_port()}"))
    replicas = Replicas(own, "a", dice=lambda: 0.5)
    pauses: list[float] = []
    for _ in range(7):
        await replicas.once(own.settings)
        pauses.append(replicas._pause_s)  # pyright: ignore[reportPrivateUsage]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert replicas.summary() == {"name": "a", "reached": False, "others": []}
    assert {family[0] for family in replicas.families()} == {name.removesuffix("_total") for name in REPLICA_METRICS}
    assert set(REPLICA_METRICS) <= set(METRICS)


async def test_nothing_is_shared_where_nobody_asks_for_it_or_the_second_level_is_no_redis():
    for settings in (settings_of("redis://127.0.0.1:1", share=False), settings_of("memcached://127.0.0.1:1")):
        replicas = Replicas(Own(settings), "a")
        await replicas.once(settings)
        assert replicas.results["failed"] == 0
        assert (replicas.families(), replicas.summary()) == ([], {})


def test_where_a_redis_is_stands_in_its_url():
    assert Address.read("redis://h") == Address("h", 6379, 0, None, None, tls=False)
    assert Address.read("rediss://u:p%40@h:1/2") == Address("h", 1, 2, "u", "p@", tls=True)
    assert Address.read("memcached://h") is None


def test_a_breaker_is_told_by_a_hash_that_says_nothing_of_its_url():
    one, other = keys_of(settings_of("redis://x", key="/?key=a")), keys_of(settings_of("redis://x", key="/?key=b"))
    assert one.keys() == other.keys() == {KEY}
    assert one[KEY] != other[KEY]
    assert len(one[KEY]) == 32


# --- a real Redis --------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.real_clock
async def test_what_one_has_opened_the_other_hears_and_the_page_goes_with_its_replica(
    monkeypatch: pytest.MonkeyPatch,
):
    # a machine that is busy is no Redis that is away, and no time goes by
    monkeypatch.setattr("understudy.proxy.control.redis_line.TIMEOUT_S", 60.0)
    with server("redis") as (url, _):
        settings = settings_of(url)
        one, other = Own(settings), Own(settings)
        kept: list[Event] = []
        writes = Replicas(one, "one", clock=lambda: 1000.0)
        reads = Replicas(other, "other", clock=lambda: 1000.0, journal=kept.append)
        for replicas in (writes, reads):
            await replicas.once(settings)
        one.open = [(KEY, 7.0, "5 failures in a row")]
        await writes.once(settings)
        await reads.once(settings)
        assert other.heard == [(KEY, 7.0, "replica one: 5 failures in a row")]
        assert reads.summary()["others"] == ["one"]
        for _ in range(5):
            await writes.once(settings)
            await reads.once(settings)
        assert len(other.heard) == 1
        assert writes.results["written"] == 2
        one.ill = {"llm_service:model:443": "unhealthy", "vector_database:db:6333": "degraded"}
        for _ in range(3):
            await writes.once(settings)
            await reads.once(settings)
        assert other.alarmed == ["llm_service:model:443"]
        assert reads.told()["pages"][0]["health"] == one.ill
        writes.notes.add(Event(time.time(), "failure", "llm_service:model:443", "dns", "no such\nname"))
        for _ in range(3):
            await writes.once(settings)
            await reads.once(settings)
        [noted] = kept
        assert (noted.family, noted.kind, noted.detail) == ("failure", "dns", "no such name")
        assert noted.facts == {"replica": "one"}
        assert not reads.notes.own, "what was heard is passed on by nobody"
        await writes._leave()  # pyright: ignore[reportPrivateUsage]
        await reads.once(settings)
        assert reads.told()["pages"] == []
        reads.close()


POLICIES = """
server:
  listen: ${{UNDERSTUDY_LISTEN}}
  admin: ${{UNDERSTUDY_ADMIN}}
  access_log: false
  workers: {workers}
  cache: {{url: "{redis}"}}
  replicas: {{name: "{name}"}}
routes:
  - name: chat
    match: {{prefix: /}}
    dialect: plain
    retry: {{attempts: 1}}
    breaker: {{open_s: {open_s}, open_s_max: {open_s}}}
    tiers:
      - {{kind: upstream, name: model, url: "http://127.0.0.1:{upstream}"}}
"""


def admin(sidecar: Sidecar, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{sidecar.admin_url}/{path}", timeout=60) as told:
        return json.load(told)


def noted(sidecar: Sidecar, text: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{sidecar.admin_url}/changes", data=text), timeout=60):
        pass


def journal(sidecar: Sidecar) -> list[tuple[str, str]]:
    """What happened, and to which replica; '' for this one."""
    return [(each["facts"].get("replica", ""), each["detail"]) for each in admin(sidecar, "journal")["entries"]]


def called(sidecar: Sidecar) -> int:
    """A call's status."""
    try:
        with urllib.request.urlopen(f"{sidecar.url}/x", timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def states(sidecar: Sidecar) -> list[tuple[str, str]]:
    """What each breaker is, and why; of workers as a whole, the worst."""
    status = admin(sidecar, "status")
    return [
        (endpoint["breaker"]["state"], endpoint["breaker"]["reason"])
        for route in status["routes"]
        for tier in route["tiers"]
        for endpoint in tier["endpoints"]
    ]


@pytest.mark.real
@pytest.mark.parametrize("workers", [1, 2])
def test_a_breaker_that_one_sidecar_opens_is_open_in_the_other_and_both_go_on_when_redis_is_killed(
    tmp_path: Path, workers: int
):
    with ExitStack() as stack:
        redis, child = stack.enter_context(server("redis"))
        upstream = free_port()
        sidecars: list[Sidecar] = []
        for name in ("one", "other"):
            policies = tmp_path / name / "policies"
            policies.mkdir(parents=True)
            (policies / "chat.yaml").write_text(
                POLICIES.format(redis=redis, upstream=upstream, name=name, workers=workers, open_s=OPEN_S)
            )
            sidecars.append(stack.enter_context(Sidecar(policies, tmp_path / name / "state")))
        one, other = sidecars
        for sidecar, neighbour in ((one, "other"), (other, "one")):
            eventually(lambda s=sidecar, n=neighbour: admin(s, "status").get("replicas", {}).get("others") == [n])
        while states(one)[0][0] == "closed":
            assert called(one) >= 500
        eventually(lambda: states(other)[0][0] == "open", within_s=OPEN_S / 2)
        assert "replica one: " in states(other)[0][1]
        # a page that came too late for a look at them all is there at the next one
        eventually(lambda: admin(other, "replicas")["pages"][0]["replica"] == "one")
        # what was heard is passed on by nobody
        eventually(lambda: admin(one, "replicas")["pages"][0]["open"] == [])
        noted(one, b"app 2.1 is out")
        eventually(lambda: ("one", "app 2.1 is out") in journal(other))
        eventually(lambda: ("", "app 2.1 is out") in journal(one))
        assert "app 2.1" not in json.dumps(admin(other, "changes")), "nobody here has deployed anything"
        child.kill()
        child.wait(60)
        for sidecar in sidecars:
            eventually(lambda s=sidecar: not admin(s, "status")["replicas"]["reached"])
        for sidecar in sidecars:
            assert called(sidecar) >= 500
            assert admin(sidecar, "status")["ready"]
            noted(sidecar, b"while Redis is away")
            eventually(lambda s=sidecar: ("", "while Redis is away") in journal(s))
