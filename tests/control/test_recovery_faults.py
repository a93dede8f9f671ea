"""Faults of every kind, injected into the real parts of a sidecar, and healed by nobody's hand: one for each rung.

    inject --> the check fails --> Recoverer climbs --> the same check passes three times in a row

Each must be healed by the rung that is meant for it, within two backoff periods, on the clock that jumps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession, web

from tests.kit.acts import answer
from tests.kit.clinic import DB, FINE, Clinic, clinic, upstream
from tests.kit.fake_upstream import FakeUpstream, Heard, Wire
from tests.kit.hollow_redis import HollowRedis
from tests.kit.qdrant_service import make_app
from tests.tiers.toy import DIMENSIONS, SPACE, TEXTS, ToyEmbedder, toy_library, vector_of
from understudy.indexes.faults import IndexFault
from understudy.indexes.generation import current_name
from understudy.indexes.library import Library
from understudy.indexes.writes import Delete, Which
from understudy.models.batcher import Batcher
from understudy.models.runtime import Device, Runtime, Session
from understudy.policies.mirror import Standing
from understudy.proxy.control.recovery import Recoverer
from understudy.proxy.control.rungs import Rungs
from understudy.proxy.http.names import Names
from understudy.proxy.mirroring.mirror import Held
from understudy.proxy.reports.recovery import recovering
from understudy.proxy.tiers.knowing import Knowing, Model

# --- connections, names, endpoints ---------------------------------------------------------------------------------


async def test_connections_that_lead_into_a_black_hole_are_dropped(tmp_path: Path):
    async with FakeUpstream(FINE) as up, clinic(tmp_path, upstream(up)) as ward:
        assert all(await asyncio.gather(*(ward.ask() for _ in range(30))))
        old = up.connections_ever

        async def half_dead(wire: Wire, heard: Heard) -> None:
            if heard.connection <= old:
                await asyncio.sleep(3600)
            await FINE(wire, heard)

        up.always(half_dead)
        assert await ward.healed(DB.format(up.port), ward.ask) == "reset_pool"


async def test_a_name_that_leads_elsewhere_now_is_asked_about_again(tmp_path: Path):
    async with FakeUpstream(answer(503, body="no such place")) as stranger, FakeUpstream(FINE) as up:
        tier = f'{{kind: upstream, name: db, url: "http://db.test:{up.port}"}}'
        async with clinic(tmp_path, tier) as ward:
            (pool,) = ward.sidecar.pools.values()
            addresses = [stranger.port]
            loop = asyncio.get_running_loop()

            async def resolve(_host: str, _port: int) -> Sequence[str]:
                return ["127.0.0.2" if addresses[-1] == stranger.port else "127.0.0.1"]

            pool.names = Names(loop, "db.test", up.port, dns_s=3600, clock=loop.time, resolve=resolve)
            server = await loop.create_server(lambda: Wire(stranger), "127.0.0.2", up.port)
            assert not await ward.ask()
            addresses.append(up.port)
            assert not await ward.ask()
            assert await ward.healed(f"vector_database:db.test:{up.port}", ward.ask) == "resolve_again"
            server.close()


async def test_another_endpoint_takes_over_and_the_first_one_comes_back_when_it_is_well(tmp_path: Path):
    async with FakeUpstream(FINE) as one, FakeUpstream(FINE) as other:
        tier = f'{{kind: upstream, name: db, endpoints: [{{url: "{one.url}"}}, {{url: "{other.url}"}}]}}'
        async with clinic(tmp_path, tier) as ward:

            async def reaches(up: FakeUpstream) -> bool:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", up.port)
                    writer.close()
                    return True
                return False

            ward.probes[DB.format(other.port)] = lambda: reaches(other)
            await ward.passes(DB.format(other.port), "")
            await one.refuse()
            ill = DB.format(one.port)
            running = asyncio.create_task(ward.recoverer.run())
            ward.probes[ill] = lambda: reaches(one)
            assert not await ward.passes(ill, "refused")
            await asyncio.sleep(9)
            assert ward.recoverer.recovered == {(ill, "switch_endpoint"): 1}
            assert [await ward.ask() for _ in range(50)] == [True] * 50
            assert not one.heard
            # for as long as it stays ill it stays out, though an ejection is over by then
            await asyncio.sleep(200)
            assert [await ward.ask() for _ in range(50)] == [True] * 50
            assert "stands in" in ward.recoverer.doing(ill)
            await one.come_back()
            assert await ward.passes(ill, "refused")
            await asyncio.sleep(100)
            assert all([await ward.ask() for _ in range(100)])
            assert one.heard
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_cache_whose_connections_hang_is_connected_to_anew(tmp_path: Path):
    pytest.importorskip("redis")
    async with HollowRedis() as redis, FakeUpstream(FINE) as up, clinic(tmp_path, upstream(up)) as ward:
        policy = ward.sidecar.policies / "p.yaml"
        cached = f"server:\n  cache: {{url: '{redis.url}', wait_s: 0.2}}"
        policy.write_text(policy.read_text().replace("server:", cached, 1) + "defaults: {cache: {enabled: true}}\n")
        assert ward.sidecar.reload(), ward.sidecar.faults
        assert ward.sidecar.caches is not None
        second = ward.sidecar.caches.second
        assert second is not None

        async def asked() -> bool:
            before = second.results["error"] + second.results["late"] + second.results["skipped"]
            await second.read([b"key"], ())
            return second.results["error"] + second.results["late"] + second.results["skipped"] == before

        assert all(await asyncio.gather(*(asked() for _ in range(40))))
        redis.black_hole(old=True)
        assert await ward.healed(f"cache:127.0.0.1:{redis.port}", asked) == "reset_cache"


# --- collections ---------------------------------------------------------------------------------------------------


class Shelf:
    """A clinic with one collection of toys, and the question that it must answer."""

    def __init__(self, ward: Clinic) -> None:
        self.ward = ward
        self.folder = ward.sidecar.state / "collections"
        toy_library(self.folder)
        self.knowing = ward.sidecar.knowing
        embedder = ToyEmbedder()
        self.knowing.give_model(Model(embedder, Batcher(embedder), SPACE))
        self.library = Library(self.folder, rebuild_embed=self.knowing.embed_again, embeds=self.knowing.embeds_into)
        self.knowing.give_shelf(self.library)

    @property
    def generation(self) -> Path:
        return self.folder / "docs" / str(current_name(self.folder / "docs"))

    async def answers(self) -> bool:
        try:
            collection = self.library.get("docs")
            return collection is not None and collection.search(vector_of(TEXTS[1]), 1)[0].id == 1
        except (IndexFault, sqlite3.Error):
            return False

    async def is_sound(self) -> bool:
        return await self.answers() and not self.library.verify("docs")


@contextlib.asynccontextmanager
async def shelf(tmp_path: Path) -> AsyncGenerator[Shelf]:
    async with FakeUpstream(FINE) as up, clinic(tmp_path, upstream(up)) as ward:
        yield Shelf(ward)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


async def test_a_collection_taken_for_rotten_when_a_disk_read_wrong_is_verified_and_opened(tmp_path: Path):
    async with shelf(tmp_path) as one:
        store = one.generation / "points.sqlite"
        sound = store.read_bytes()
        flipped(store)
        assert not await one.answers()
        store.write_bytes(sound)
        assert await one.ward.healed("local_index:docs", one.answers) == "verify_index"


async def test_a_collection_that_is_broken_in_memory_is_opened_anew(tmp_path: Path):
    async with shelf(tmp_path) as one:
        toy_library(tmp_path / "elsewhere", space="another-model", name="docs")
        stranger = Library(tmp_path / "elsewhere").open("docs")
        stranger.write([Delete(Which((1,)))])
        # whatever is held in memory is not what lies on the disk
        vars(one.library)["_open"] = {"docs": stranger}
        assert await one.ward.healed("local_index:docs", one.answers) == "reload_snapshot"


async def test_what_is_derived_and_damaged_is_made_again_from_the_store(tmp_path: Path):
    async with shelf(tmp_path) as one:
        assert await one.is_sound()
        flipped(one.generation / "vectors.npy")
        assert await one.ward.healed("local_index:docs", one.is_sound) == "rebuild_index"


async def test_a_store_whose_vectors_are_lost_is_embedded_again_by_the_local_model(tmp_path: Path):
    async with shelf(tmp_path) as one:
        sql = sqlite3.connect(one.generation / "points.sqlite")
        sql.execute("UPDATE vectors SET vector = zeroblob(length(vector))")
        sql.commit()
        sql.close()
        pauses: list[float] = []
        one.knowing.pause = pauses.append
        assert await one.ward.healed("local_index:docs", one.is_sound) == "rebuild_index"
        assert pauses, "embedding again was not slowed down to its share of a core"


async def test_vectors_of_another_space_are_never_mixed_with_the_local_models(tmp_path: Path):
    async with shelf(tmp_path) as one:
        toy_library(one.folder, space="another-model", name="others")
        generation = one.folder / "others" / str(current_name(one.folder / "others"))
        sql = sqlite3.connect(generation / "points.sqlite")
        sql.execute("UPDATE vectors SET vector = zeroblob(length(vector))")
        sql.commit()
        sql.close()
        with pytest.raises(IndexFault, match="another-model"):
            one.library.heal("others")


# --- the local model -----------------------------------------------------------------------------------------------


class Runs:
    """A session that doubles its input, or, while it is `sick`, does not."""

    def __init__(self, provider: str, *, sick: bool) -> None:
        self.provider = provider
        self.sick = sick

    def run(self, output_names: Sequence[str] | None, input_feed: Any, /) -> Sequence[Any]:
        return [input_feed["input_ids"] * (3 if self.sick else 2)]

    def get_providers(self) -> Sequence[str]:
        return [self.provider]

    def get_inputs(self) -> Sequence[Any]:
        return []


class Doubler(ToyEmbedder):
    """An embedder on a real Runtime. The first `sick` sessions on a device give wrong numbers."""

    def __init__(self, *, cuda: bool, sick: int) -> None:
        super().__init__()
        self.opened: list[Runs] = []
        self._sick = sick
        self._runtime = Runtime(
            Path, "auto" if cuda else "cpu", open_session=self._open, cuda_absent=lambda: "" if cuda else "none"
        )

    def _open(self, _graph: Path, device: Device) -> Session:
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        sick = len(self.opened) < self._sick
        self.opened.append(Runs(provider, sick=sick))
        return self.opened[-1]

    @property
    def provider(self) -> str:  # type: ignore[override]
        return self._runtime.provider

    def release_cuda(self, why: str, *, for_ever: bool = False) -> None:
        self._runtime.release_cuda(why, for_ever=for_ever)

    def renew_session(self) -> None:
        self._runtime.renew()

    async def is_right(self) -> bool:
        rows = np.ones((1, 2), np.int64)
        return bool((self._runtime.run({"input_ids": rows}) == 2).all())


@pytest.mark.parametrize(("cuda", "sick", "by"), [(True, 1, "drop_cuda"), (False, 1, "clear_session")])
async def test_a_model_that_gives_wrong_numbers_leaves_the_gpu_or_gets_a_new_session(
    cuda: bool, sick: int, by: str, tmp_path: Path
):
    async with FakeUpstream(FINE) as up, clinic(tmp_path, upstream(up)) as ward:
        embedder = Doubler(cuda=cuda, sick=sick)
        ward.sidecar.knowing.give_model(Model(embedder, Batcher(embedder), SPACE))
        assert await ward.healed(f"local_model:{SPACE}", embedder.is_right) == by
        assert embedder.provider == "cpu"


async def test_a_model_that_could_not_be_loaded_is_loaded_once_it_can_be(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    async with FakeUpstream(FINE) as up, clinic(tmp_path, upstream(up)) as ward:
        knowing: Knowing = ward.sidecar.knowing
        models = ward.sidecar.state / "models"
        models.parent.mkdir(parents=True, exist_ok=True)
        models.write_text("a file where the folder of models should be")
        assert await knowing.reload_model(ward.sidecar.settings.local, models)
        models.unlink()

        async def is_there() -> bool:
            return knowing.model_or_none() is not None

        assert await ward.healed(f"local_model:{SPACE}", is_there) == "reload_model"


@pytest.mark.parametrize(("frugal", "niceness"), [(True, 19), (False, 0)])
async def test_what_takes_our_cpu_time_has_the_lowest_priority_and_is_counted(
    tmp_path: Path, frugal: bool, niceness: int
):
    async with FakeUpstream(FINE) as up, clinic(tmp_path, upstream(up)) as ward:
        rungs = Rungs(ward.sidecar, frugal=frugal)
        found: list[int] = []

        class Told(ToyEmbedder):
            def renew_session(self) -> None:
                found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

        embedder = Told()
        ward.sidecar.knowing.give_model(Model(embedder, Batcher(embedder), SPACE))
        climbed = await rungs.here(f"local_model:{SPACE}", "clear_session")
        rungs.close()
    # whoever runs the tests may be nice already
    assert found == [max(niceness, os.getpriority(os.PRIO_PROCESS, 0))]
    assert (climbed.result, climbed.cpu_s > 0) == ("done", frugal)


# --- hooks ---------------------------------------------------------------------------------------------------------

COMMAND = """
import json, os, sys
told = json.load(sys.stdin)
assert told["component"] == os.environ["UNDERSTUDY_COMPONENT"], told
assert "SECRET" not in os.environ
assert os.environ["GIVEN"] == "given"
open(sys.argv[1], "w").write(json.dumps(sorted(os.environ)))
"""


@pytest.mark.real_clock
async def test_a_command_that_restarts_it_is_told_what_is_wrong_and_sees_none_of_our_keys(tmp_path: Path):
    script, proof = tmp_path / "restart.py", tmp_path / "restarted"
    script.write_text(COMMAND)
    command = f'["{sys.executable}", "{script}", "{proof}"]'
    hooks = (
        f"{{pause_s: 0.05, verify_s: 0.01, hooks: [{{name: restart, command: {command}, env: {{GIVEN: given}}}}],"
        " ladders: {vector_database: [reset_pool, restart]}}"
    )
    async with FakeUpstream(FINE) as up, clinic(tmp_path, upstream(up), hooks) as ward:

        async def is_up() -> bool:
            return proof.exists()

        assert await ward.healed(DB.format(up.port), is_up, within_s=120) == "restart"
        assert not ward.sidecar.state.joinpath("secret").exists()


async def test_a_webhook_has_it_restarted_and_is_given_the_time_that_this_takes(tmp_path: Path):
    async with FakeUpstream(FINE) as up, FakeUpstream() as orchestrator:
        tasks: list[asyncio.Task[None]] = []

        async def restarts(wire: Wire, heard: Heard) -> None:
            async def later() -> None:
                await asyncio.sleep(4)
                await up.come_back()

            tasks.append(asyncio.create_task(later()))
            await answer(202)(wire, heard)

        orchestrator.always(restarts)
        hooks = (
            f'{{hooks: [{{name: restart, url: "{orchestrator.url}/restart", headers: {{x-token: t}}, settle_s: 30}}],'
            " ladders: {vector_database: [reset_pool, restart]}}"
        )
        async with clinic(tmp_path, upstream(up), hooks) as ward:
            assert await ward.ask()
            await up.refuse()
            component = DB.format(up.port)
            assert await ward.healed(component, ward.ask) == "restart"
            (heard,) = orchestrator.heard
            assert heard.json()["component"] == component
            assert heard.header(b"idempotency-key") == f"{heard.json()['incident']}/1/restart".encode()
            assert heard.header(b"x-token") == b"t"
            await tasks[0]


# --- from the database ---------------------------------------------------------------------------------------------

MIRRORED = """
server:
  access_log: false
routes:
  - name: search
    match: {{prefix: /collections}}
    dialect: qdrant
    space: toy-embed
    mirror: {{collections: [docs]}}
    tiers:
      - {{kind: upstream, name: db, url: "http://127.0.0.1:{port}"}}
      - {{kind: local, name: own}}
"""


async def test_a_copy_that_nothing_can_be_saved_of_is_copied_from_its_database_again(tmp_path: Path):
    app = make_app()
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    await filled(port)
    async with clinic(tmp_path, '{kind: upstream, name: db, url: "http://127.0.0.1:1"}') as ward:
        (ward.sidecar.policies / "p.yaml").write_text(MIRRORED.format(port=port))
        folder = ward.sidecar.state / "collections"
        folder.mkdir(parents=True)
        library = Library(folder)
        ward.sidecar.knowing.give_shelf(library)
        assert ward.sidecar.reload(), ward.sidecar.faults

        async def is_whole() -> bool:
            try:
                copy = library.get("docs")
                return copy is not None and copy.count == 3 and not library.verify("docs")
            except IndexFault:
                return False

        async with asyncio.timeout(60):
            while not await is_whole():  # noqa: ASYNC110
                await asyncio.sleep(1)
        library.compact("docs")
        for generation in (folder / "docs").glob("g-*"):
            flipped(generation / "manifest.json")
        shutil.rmtree(folder / "docs" / "journal", ignore_errors=True)
        vars(library)["_open"] = {}
        assert await ward.healed("local_index:docs", is_whole, within_s=60) == "copy_again"
    await runner.cleanup()


async def test_what_can_not_be_had_again_is_not_dropped(tmp_path: Path):
    async with FakeUpstream(answer(503)) as up, clinic(tmp_path, upstream(up)) as ward:
        (ward.sidecar.policies / "p.yaml").write_text(MIRRORED.format(port=up.port))
        folder = ward.sidecar.state / "collections"
        toy_library(folder)
        library = Library(folder)
        ward.sidecar.knowing.give_shelf(library)
        assert ward.sidecar.reload(), ward.sidecar.faults
        await asyncio.sleep(5)
        mirrors = ward.sidecar.copies.mirrors
        assert mirrors is not None
        mirrors.running["search"].mirror.held.setdefault("docs", Held("docs", Standing(whole=True)))
        climbed = await Rungs(ward.sidecar, frugal=False).here("local_index:docs", "copy_again")
        assert climbed.result == "failed"
        assert library.verify("docs") == []


async def filled(port: int) -> None:
    base = f"http://127.0.0.1:{port}/collections/docs"
    points = [{"id": n, "vector": [0.1 * n] * DIMENSIONS, "payload": {"text": TEXTS[n]}} for n in (1, 2, 3)]
    async with ClientSession() as session:
        for path, body in (
            ("", {"vectors": {"size": DIMENSIONS, "distance": "Cosine"}}),
            ("/points", {"points": points}),
        ):
            async with session.put(base + path, json=body) as answered:
                assert answered.status == 200, await answered.text()


# --- the whole loop ------------------------------------------------------------------------------------------------


async def test_what_nothing_helps_is_told_to_a_human_once_and_again_only_after_it_has_been_well(tmp_path: Path):
    async with FakeUpstream(FINE) as up, FakeUpstream() as pager:
        hooks = f'{{hooks: [{{name: page, url: "{pager.url}"}}], escalate: [page], pause_s: 0.5, pause_ratio: 2}}'
        async with clinic(tmp_path, upstream(up), hooks) as ward:
            component = DB.format(up.port)
            await up.refuse()
            ward.probes[component] = ward.ask
            await ward.passes(component, "refused")
            running = asyncio.create_task(ward.recoverer.run())
            await asyncio.sleep(600)
            (told,) = [heard.json() for heard in pager.heard]
            assert (told["status"], told["component"], told["kind"]) == ("escalated", component, "refused")
            assert "attempt 3, resolve_again: skipped" in told["steps"]
            families = [event.kind for event in ward.sidecar.events.recent if event.family == "recovery"]
            assert families.count("escalated") == 1
            assert recovering(ward.sidecar.events.recent)[component].startswith("beyond us after 3 attempts")
            await up.come_back()
            assert await ward.passes(component, "")
            await asyncio.sleep(601)
            assert ward.recoverer.told() == []
            assert recovering(ward.sidecar.events.recent) == {}
            await up.refuse()
            await ward.passes(component, "refused")
            await asyncio.sleep(60)
            assert len(pager.heard) == 2
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_of_two_over_one_state_folder_one_recovers_and_the_other_when_that_one_has_gone(tmp_path: Path):
    async with FakeUpstream(FINE) as up, clinic(tmp_path, upstream(up)) as ward:
        second = Recoverer(ward.sidecar, ward, Rungs(ward.sidecar, frugal=False), wall=ward.now, dice=lambda: 0.99)
        component = DB.format(up.port)
        await up.refuse()
        ward.probes[component] = ward.ask
        await ward.passes(component, "refused")
        tasks = [asyncio.create_task(ward.recoverer.run())]
        await asyncio.sleep(2)
        tasks.append(asyncio.create_task(second.run()))
        await asyncio.sleep(2)
        assert ward.recoverer.heart.ladders
        assert not second.heart.ladders
        tasks[0].cancel()
        await asyncio.sleep(10)
        ladder = second.heart.ladders[component]
        assert ladder.attempt >= 1
        assert ladder.began_at == ward.recoverer.heart.ladders[component].began_at
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
