"""What the sidecar has of its own, and the cache behind it, from the first check that fails to the last that passes.

    Redis swallows everything --> ill within 5 s --> reset_cache, until it helps or it comes back --> well
    the GPU gives wrong vectors, or none --> ill within a minute --> drop_cuda, or clear_session --> well

Through the sidecar's own health checks and its own recovery, on the clock that jumps. The GPU is one of straw.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream
from tests.kit.hollow_redis import HollowRedis
from tests.kit.unwell import SERVER, Ward
from tests.tiers.toy import SPACE, ToyEmbedder
from understudy.models.batcher import Batcher
from understudy.models.runtime import Device, Runtime
from understudy.policies.recovery import period_s
from understudy.proxy.caching.second import Second
from understudy.proxy.control.healing import keep_recovering
from understudy.proxy.reports.recovery import recovering
from understudy.proxy.tiers.knowing import Model

pytestmark = pytest.mark.virtual_clock(io_grace_s=0.001)

HARD_S, SILENT_S = 5.0, 60.0
POINTS: dict[str, Any] = {"result": {"collections": []}, "status": "ok", "time": 0.0}
ROUTES = """
local: {{model: {space}, knowledge: false}}
routes:
  - name: docs
    match: {{prefix: /collections}}
    dialect: qdrant
    space: {space}
    cache: {{enabled: true}}
    tiers:
      - {{name: first, kind: upstream, url: "{url}"}}
{more}
"""
LOCAL_TIER = "      - {name: own, kind: local}"


@asynccontextmanager
async def healing(ward: Ward) -> AsyncGenerator[None]:
    """With recovery at work."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(keep_recovering(ward.sidecar, wall=lambda: 1_800_000_000.0 + loop.time(), frugal=False))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def recovering_ward(folder: Path, up: FakeUpstream, server: str) -> AsyncGenerator[Ward]:
    policies = ROUTES.format(url=up.url, space=SPACE, more="")
    async with Ward(folder, policies, f"{SERVER}{server}") as ward, healing(ward):
        yield ward


def told(ward: Ward, component: str) -> list[str]:
    """What recovery has said of a component, in order."""
    return [event.kind for event in ward.events if (event.family, event.component) == ("recovery", component)]


def second_level(ward: Ward) -> Second:
    """The cache's, as callers use it."""
    caches = ward.sidecar.caches
    assert caches is not None
    assert caches.second is not None
    return caches.second


# --- the cache -----------------------------------------------------------------------------------------------------

CACHE = "  cache: {{url: '{url}', wait_s: 0.05}}\n"


@asynccontextmanager
async def cached_ward(folder: Path) -> AsyncGenerator[tuple[HollowRedis, Ward, str]]:
    """A cache's second level, a sidecar with recovery that knows it to be healthy, and what that calls it."""
    pytest.importorskip("redis")
    async with (
        HollowRedis() as redis,
        FakeUpstream(answer(body=POINTS)) as up,
        recovering_ward(folder, up, CACHE.format(url=redis.url)) as ward,
    ):
        component = f"cache:127.0.0.1:{redis.port}"
        await ward.until(lambda: ward.word(component) == "healthy", 60.0)
        yield redis, ward, component


@pytest.mark.parametrize("moment_s", [0.0, 0.4, 0.9, 1.7])
async def test_a_second_level_that_swallows_everything_is_found_ill_within_five_seconds_and_well_when_it_is_back(
    tmp_path: Path, moment_s: float
):
    async with cached_ward(tmp_path) as (redis, ward, component):
        await asyncio.sleep(10.0 + moment_s)
        redis.black_hole()
        assert await ward.until(lambda: ward.word(component) == "unhealthy", 30.0) <= HARD_S
        assert ward.sidecar.health.diagnosis(component).reason == "no answer in time"
        assert ward.tier() == ward.tier("docs") == "primary", "a cache is no tier"
        await ward.until(lambda: "unhelped" in told(ward, component), 30.0)
        assert told(ward, component)[:3] == ["ill", "climbing", "climbed"]
        assert (await ward.call()).status == 200
        redis.come_back()
        await ward.until(lambda: ward.word(component) == "healthy", 60.0)
        await ward.until(lambda: told(ward, component)[-1:] == ["recovered"], 10.0)
        assert "escalated" not in told(ward, component)


async def test_connections_that_hang_for_ever_are_let_go_of_by_the_rung_that_is_meant_for_it(tmp_path: Path):
    async with cached_ward(tmp_path) as (redis, ward, component):
        redis.black_hole()
        await ward.until(lambda: ward.word(component) == "unhealthy", 30.0)
        # before anything was tried: what is connected anew is answered, and nobody else
        redis.black_hole(old=True)
        rules = ward.sidecar.settings.server.recovery
        await ward.until(lambda: told(ward, component)[-1:] == ["recovered"], period_s(rules, 0) + period_s(rules, 1))
        assert recovering(ward.events)[component] == "well again: reset_cache"
        assert told(ward, component) == ["ill", "climbing", "climbed", "recovered"]


async def test_a_second_level_that_stays_a_black_hole_is_told_to_a_human_once_and_well_when_it_is_back(tmp_path: Path):
    async with cached_ward(tmp_path) as (redis, ward, component):
        redis.black_hole()
        await asyncio.sleep(150.0)
        assert told(ward, component).count("escalated") == 1
        assert told(ward, component).count("climbing") == 3
        redis.come_back()
        await ward.until(lambda: ward.word(component) == "healthy", 60.0)
        await ward.until(lambda: told(ward, component)[-1:] == ["recovered"], 10.0)


async def test_callers_who_are_answered_by_the_second_level_save_it_our_questions(tmp_path: Path):
    async with cached_ward(tmp_path) as (redis, ward, component):
        second, before = second_level(ward), redis.asked
        for _ in range(60):
            await second.read([b"key"], ())
            await asyncio.sleep(1.0)
        assert redis.asked - before == 60
        before = redis.asked
        await asyncio.sleep(60.0)
        assert 20 <= redis.asked - before <= 31, "nobody asks, so we do, every two seconds or so"
        assert ward.word(component) == "healthy"


# --- a GPU of straw ------------------------------------------------------------------------------------------------


class Gpu:
    """Memory for one session, which counts until it is let go of; `fault` befalls those that run on it by now."""

    def __init__(self) -> None:
        self.sessions = weakref.WeakSet[Run]()
        self.opened: list[Device] = []

    def open(self, _graph: Path, device: Device) -> Run:
        if device == "cuda" and self.sessions:
            raise RuntimeError("CUDA failure 2: out of memory")
        self.opened.append(device)
        run = Run(device)
        if device == "cuda":
            self.sessions.add(run)
        return run

    def fails(self, fault: Literal["wrong", "error"]) -> None:
        for each in self.sessions:
            each.fault = fault


class Run:
    """A session that gives back what it is fed, unless something is wrong with it."""

    def __init__(self, device: Device) -> None:
        self.fault = ""
        self._provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"

    def run(self, output_names: Sequence[str] | None, input_feed: Any, /) -> Sequence[Any]:
        if self.fault == "error":
            raise RuntimeError("an illegal instruction was met")
        rows = input_feed["input_ids"]
        return [-rows[:, ::-1] if self.fault == "wrong" else rows]

    def get_providers(self) -> Sequence[str]:
        return [self._provider]

    def get_inputs(self) -> Sequence[Any]:
        return []


class OnGpu(ToyEmbedder):
    """The toy model, whose vectors go through a real Runtime."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self._runtime = Runtime(Path, "auto", open_session=gpu.open, cuda_absent=str)

    @property
    def provider(self) -> str:  # type: ignore[override]
        return self._runtime.provider

    def embed(self, texts: Sequence[str], kind: Literal["query", "document"] = "query") -> NDArray[np.float32]:
        return self._runtime.run({"input_ids": super().embed(texts, kind)}).astype(np.float32)  # type: ignore[dict-item]

    def release_cuda(self, why: str, *, for_ever: bool = False) -> None:
        self._runtime.release_cuda(why, for_ever=for_ever)

    def renew_session(self) -> None:
        self._runtime.renew()


@pytest.mark.parametrize("fault", ["wrong", "error"])
@pytest.mark.parametrize(
    ("ladder", "by", "runs_on"),
    [("{}", "drop_cuda", "cpu"), ("{ladders: {local_model: [clear_session, drop_cuda]}}", "clear_session", "cuda")],
    ids=["as shipped", "the session first"],
)
async def test_a_gpu_that_goes_wrong_is_found_within_a_minute_and_left_or_given_a_new_session(
    tmp_path: Path, fault: Literal["wrong", "error"], ladder: str, by: str, runs_on: Device
):
    gpu, component = Gpu(), f"local_model:{SPACE}"
    async with FakeUpstream(answer(body=POINTS)) as up:
        policies = ROUTES.format(url=up.url, space=SPACE, more=LOCAL_TIER)
        async with Ward(tmp_path, policies, f"{SERVER}  recovery: {ladder}\n") as ward:
            # there is no such model to load: what the test has takes its place, as if it had been loaded
            await ward.until(lambda: ward.word(component) == "unhealthy", 60.0)
            embedder = OnGpu(gpu)
            ward.sidecar.knowing.give_model(Model(embedder, Batcher(embedder), SPACE))
            await ward.until(lambda: ward.word(component) == "healthy", 60.0)
            async with healing(ward):
                await asyncio.sleep(30.0)
                assert (told(ward, component), embedder.provider) == ([], "cuda")
                first = weakref.ref(next(iter(gpu.sessions)))
                gpu.fails(fault)
                assert await ward.until(lambda: ward.word(component) == "unhealthy", 90.0) <= SILENT_S
                assert ward.tier() == "primary", "others answer, and it is no critical part"
                await ward.until(lambda: told(ward, component)[-1:] == ["recovered"], 20.0)
                assert recovering(ward.events)[component] == f"well again: {by}"
                assert told(ward, component) == ["ill", "climbing", "climbed", "recovered"]
                await ward.until(lambda: ward.word(component) == "healthy", SILENT_S)
            assert embedder.provider == runs_on
            gc.collect()
            assert first() is None, "its memory was not given back"
            assert len(gpu.sessions) == (runs_on == "cuda"), "nothing is left on the GPU that nobody uses"
