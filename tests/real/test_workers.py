"""Several workers behind one address: added up, replaced, agreeing, and handed over without a lost call."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import COMES_S_MAX, Sidecar, admin, eventually, put_in_place
from tests.real.callers import Callers, Connection, Lost
from understudy.proxy import cli

pytestmark = pytest.mark.real

RESTARTS = 20
FEW_RESTARTS = 3


def policies(upstream: Hosted, *, server: str = "workers: 2", route: str = "", tier: str = "") -> str:
    return (
        "server:\n"
        "  listen: ${UNDERSTUDY_LISTEN}\n"
        "  admin: ${UNDERSTUDY_ADMIN}\n"
        "  access_log: false\n"
        "  drain_s: 60\n"
        f"  {server}\n"
        "routes:\n"
        "  - name: chat\n"
        "    match: {prefix: /v1}\n"
        "    dialect: openai-chat\n"
        f"{route}"
        "    tiers:\n"
        "      - kind: upstream\n"
        "        name: model\n"
        f"        url: {upstream.url}\n"
        f"{tier}"
    )


@pytest.fixture
def upstream() -> Iterator[Hosted]:
    with in_thread(answer(body={"who": "model"})) as hosted:
        yield hosted


def started(folder: Path, tmp_path: Path, text: str) -> Sidecar:
    (folder / "chat.yaml").write_text(text)
    return Sidecar(folder, tmp_path / "state")


def heir_of(sidecar: Sidecar, folder: Path) -> Sidecar:
    """The next process on the same addresses."""
    heir = Sidecar(folder, sidecar.state)
    heir.port, heir.admin_port, heir.ready_port = sidecar.port, sidecar.admin_port, sidecar.admin_port
    heir.env = sidecar.env
    return heir


def status(sidecar: Sidecar) -> dict[str, Any]:
    return json.loads(admin(sidecar, "/status")[1])


def workers(sidecar: Sidecar) -> list[dict[str, Any]]:
    return status(sidecar)["workers"]


def all_ready(sidecar: Sidecar) -> bool:
    return all(worker["ready"] for worker in workers(sidecar))


def metric(sidecar: Sidecar, name: str) -> float:
    """The sum over all the samples with this name."""
    lines = admin(sidecar, "/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def holds(check: Callable[[], bool]) -> None:
    """`eventually`, while callers go on asking on this loop."""
    await asyncio.to_thread(eventually, check)


# --- adding up -----------------------------------------------------------------------------------------------------


@pytest.mark.real_clock
async def test_two_workers_answer_and_their_metrics_add_up_exactly(upstream: Hosted, folder: Path, tmp_path: Path):
    with started(folder, tmp_path, policies(upstream)) as sidecar:
        await holds(lambda: all_ready(sidecar))
        callers = Callers(sidecar.port, 24)
        async with callers:
            await holds(lambda: callers.answered >= 500)
        assert not callers.lost
        total = callers.answered
        # a worker that is slow to be asked is told of as it was when it last reported
        await holds(lambda: sum(worker["answers"] for worker in workers(sidecar)) == total)
        assert min(worker["answers"] for worker in await asyncio.to_thread(workers, sidecar)) > 0
        for name in (
            "understudy_requests_total",
            "understudy_request_seconds_count",
            "understudy_overhead_seconds_count",
            "understudy_tier_outcomes_total",
        ):
            await holds(lambda name=name: metric(sidecar, name) == total)
        await holds(lambda: metric(sidecar, "understudy_in_flight") == 0)
        text = (await asyncio.to_thread(admin, sidecar, "/metrics"))[1]
        assert 'understudy_workers{state="ready"} 2.0' in text
        assert len(upstream.heard) == total


# --- forced by hand ------------------------------------------------------------------------------------------------


def force(sidecar: Sidecar, name: str, mode: str, **headers: str) -> int:
    """The status of an operator's word on the breakers of `name`."""
    request = urllib.request.Request(sidecar.admin_url + f"/breakers/{name}", mode.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as told:
            return told.status
    except urllib.error.HTTPError as error:
        return error.code


def modes(sidecar: Sidecar) -> set[tuple[str, str]]:
    (endpoint,) = status(sidecar)["routes"][0]["tiers"][0]["endpoints"]
    return {(endpoint["breaker"]["mode"], endpoint["breaker"]["state"])}


@pytest.mark.parametrize("server", ["workers: 1", "workers: 2"])
def test_a_forced_breaker_is_obeyed_by_every_worker_also_after_a_reload_until_told_otherwise(
    upstream: Hosted, folder: Path, tmp_path: Path, server: str
):
    def asked() -> int:
        request = urllib.request.Request(sidecar.url + "/v1/models")
        try:
            with urllib.request.urlopen(request, timeout=30) as told:
                return told.status
        except urllib.error.HTTPError as error:
            return error.code

    with started(folder, tmp_path, policies(upstream, server=server)) as sidecar:
        assert force(sidecar, "chat/nobody", "forced-open") == 404
        assert force(sidecar, "chat/model", "shut") == 400
        assert force(sidecar, "chat/model", "forced-open", Origin="http://evil.example") == 403
        assert asked() == 200
        assert force(sidecar, "chat/model", "forced-open") == 200
        eventually(lambda: {asked() for _ in range(8)} == {503})
        before = sidecar.logs().count("in force")
        put_in_place(folder / "chat.yaml", policies(upstream, server=server, route="    deadline: {total_s: 7}\n"))
        eventually(lambda: sidecar.logs().count("in force") > before)
        assert {asked() for _ in range(8)} == {503}
        assert modes(sidecar) == {("forced-open", "open")}
        assert re.search(r'understudy_breaker_mode{.*mode="forced-open".*} 1.0', admin(sidecar, "/metrics")[1])
        assert force(sidecar, "chat/model", "auto") == 200
        eventually(lambda: {asked() for _ in range(8)} == {200})


@pytest.mark.parametrize("server", ["workers: 1", "workers: 2"])
def test_a_forced_breaker_is_still_forced_after_a_restart_and_says_since_when_and_by_whom(
    upstream: Hosted,
    folder: Path,
    tmp_path: Path,
    server: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    for port, name in enumerate(("UNDERSTUDY_LISTEN", "UNDERSTUDY_ADMIN"), 1):
        monkeypatch.setenv(name, f"127.0.0.1:{port}")
    text = policies(upstream, server=server)
    with started(folder, tmp_path, text) as sidecar:
        assert force(sidecar, "chat/model", "forced-open", **{"x-understudy-by": "anna"}) == 200
    before = len(upstream.heard)
    with started(folder, tmp_path, text) as sidecar:
        eventually(lambda: modes(sidecar) == {("forced-open", "open")})
        assert status_of_a_call(sidecar) == 503
        assert len(upstream.heard) == before
        assert "chat/model/model: forced-open by hand since 20" in sidecar.logs()
        (endpoint,) = status(sidecar)["routes"][0]["tiers"][0]["endpoints"]
        assert re.fullmatch(r"since 20\S+ \S+ UTC by anna from 127\.0\.0\.1", endpoint["breaker"]["by_hand"])
        command = ["explain", "POST", "/v1/models", "--policies", str(folder), "--state", str(tmp_path / "state")]
        assert cli.main(command) == 0
        assert re.search(r"by hand \(model\) +forced-open since 20.* by anna from 127", capsys.readouterr().out)
        # the second worker is told as the first is, and so is whoever comes after it
        assert cli.main(["breaker", "--admin", sidecar.admin_url.removeprefix("http://")]) == 1
        assert re.match(r"chat/model/model +open \(forced-open by hand since", capsys.readouterr().out)
        command = ["breaker", "chat/model", "auto", "--admin", sidecar.admin_url.removeprefix("http://")]
        assert cli.main(command) == 0
        eventually(lambda: {status_of_a_call(sidecar) for _ in range(8)} == {200})
    with started(folder, tmp_path, text) as sidecar:
        eventually(lambda: {status_of_a_call(sidecar) for _ in range(8)} == {200})
        assert modes(sidecar) == {("auto", "closed")}


def status_of_a_call(sidecar: Sidecar) -> int:
    try:
        with urllib.request.urlopen(sidecar.url + "/v1/models", timeout=60) as told:
            return told.status
    except urllib.error.HTTPError as error:
        return error.code


# --- replacing -----------------------------------------------------------------------------------------------------


@pytest.mark.real_clock
async def test_a_killed_worker_is_replaced_and_costs_only_the_calls_it_had_in_hand(
    upstream: Hosted, folder: Path, tmp_path: Path
):
    with started(folder, tmp_path, policies(upstream)) as sidecar:
        await holds(lambda: all_ready(sidecar))
        count = 16
        callers = Callers(sidecar.port, count)
        async with callers:
            await holds(lambda: callers.answered >= 300)
            before = await asyncio.to_thread(metric, sidecar, "understudy_requests_total")
            first, second = await asyncio.to_thread(workers, sidecar)
            at_the_kill = callers.answered
            os.kill(first["pid"], signal.SIGKILL)
            await holds(lambda: workers(sidecar)[0]["pid"] not in (None, first["pid"]) and all_ready(sidecar))
            so_far = callers.answered
            await holds(lambda: callers.answered >= so_far + 200)
        print(f"one of two killed: {callers.answered} calls answered, lost {dict(callers.lost)}")
        # each caller has one call in hand: no more can be lost, and none can be refused a connection
        assert sum(callers.lost.values()) <= count, callers.lost
        assert not [how for how in callers.lost if not how.startswith("sent")], callers.lost
        now = await asyncio.to_thread(workers, sidecar)
        assert now[1]["pid"] == second["pid"]
        assert [worker["replaced"] for worker in now] == [1, 0]
        # what the dead one had counted since it last reported is all that may be missing, and it had by `before`; a
        # worker that is slow to be asked is told of as it was when it last reported
        least = before + callers.answered - at_the_kill - count
        await holds(lambda: least <= metric(sidecar, "understudy_requests_total"))
        most = callers.answered + sum(callers.lost.values())
        assert await asyncio.to_thread(metric, sidecar, "understudy_requests_total") <= most
        assert await asyncio.to_thread(metric, sidecar, "understudy_workers_replaced_total") == 1
        assert "worker 0 ended with signal SIGKILL" in sidecar.logs()


def test_workers_that_can_never_start_end_the_parent_with_a_reason(upstream: Hosted, folder: Path, tmp_path: Path):
    (folder / "ca.pem").write_text("no certificate at all")
    text = policies(upstream, tier="        tls: {ca_file: ca.pem}\n").replace("http://127", "https://127")
    sidecar = started(folder, tmp_path, text)
    with pytest.raises(RuntimeError, match="no worker can start"):
        sidecar.start()
    assert sidecar.child is not None
    assert sidecar.child.returncode == 2
    assert "tls.ca_file" in sidecar.logs()


def test_workers_do_not_outlive_their_parent(upstream: Hosted, folder: Path, tmp_path: Path):
    with started(folder, tmp_path, policies(upstream)) as sidecar:
        eventually(lambda: all_ready(sidecar))
        pids = [worker["pid"] for worker in workers(sidecar)]
        sidecar.kill()
        eventually(lambda: not any(alive(pid) for pid in pids))


# --- agreeing ------------------------------------------------------------------------------------------------------


def states(sidecar: Sidecar) -> set[str]:
    return {worker["breakers"].get("chat model", "closed") for worker in workers(sidecar)}


@pytest.mark.real_clock
async def test_a_breaker_that_opens_or_closes_in_one_worker_does_in_the_other(
    upstream: Hosted, folder: Path, tmp_path: Path
):
    upstream.always(answer(500, body={"error": {}}))
    rules = "    retry: {attempts: 1}\n    breaker: {consecutive: 3, open_s: 2, permits: 1}\n"
    with started(folder, tmp_path, policies(upstream, route=rules)) as sidecar:
        await holds(lambda: all_ready(sidecar))
        # one connection comes to one worker: the other sees no failure of its own
        connection = Connection(sidecar.port)
        for _ in range(3):
            assert (await connection.call())[0] == 500
        await holds(lambda: states(sidecar) == {"open"})
        assert len(upstream.heard) == 3

        upstream.always(answer(body={"who": "model"}))
        while (await connection.call())[0] != 200:  # noqa: ASYNC110 (what changes is in another process)
            await asyncio.sleep(0.05)
        await holds(lambda: states(sidecar) == {"closed"})
        connection.close()


@pytest.mark.real_clock
async def test_a_worker_that_replaces_another_knows_what_the_breakers_know(
    upstream: Hosted, folder: Path, tmp_path: Path
):
    upstream.always(answer(500, body={"error": {}}))
    rules = "    retry: {attempts: 1}\n    breaker: {consecutive: 3, open_s: 60, open_s_max: 60}\n"
    with started(folder, tmp_path, policies(upstream, route=rules)) as sidecar:
        await holds(lambda: all_ready(sidecar))
        connection = Connection(sidecar.port)
        for _ in range(3):
            await connection.call()
        connection.close()
        await holds(lambda: states(sidecar) == {"open"})
        pids = {worker["pid"] for worker in await asyncio.to_thread(workers, sidecar)}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await holds(lambda: all_ready(sidecar) and not pids & {worker["pid"] for worker in workers(sidecar)})
        await holds(lambda: states(sidecar) == {"open"})
        assert len(upstream.heard) == 3


# --- the way down, and on ------------------------------------------------------------------------------------------


@pytest.mark.real_clock
@pytest.mark.parametrize(("server", "processes"), [("workers: 1", 1), ("workers: 2", 3)])
async def test_who_calls_once_more_while_draining_is_answered_and_told_that_it_was_the_last(
    upstream: Hosted, folder: Path, tmp_path: Path, server: str, processes: int
):
    with started(folder, tmp_path, policies(upstream, server=server)) as sidecar:
        await holds(lambda: all(worker["ready"] for worker in status(sidecar).get("workers", ())))
        connections = [Connection(sidecar.port) for _ in range(6)]
        for connection in connections:
            assert "connection" not in (await connection.call())[1]
        sidecar.signal(signal.SIGTERM)

        async def calls_on(connection: Connection) -> None:
            # whoever is idle for a second meanwhile is hung up on: this one never is
            headers: dict[str, str] = {}
            while "connection" not in headers:
                told, headers = await connection.call()
                assert told == 200
            assert headers["connection"] == "close"

        await asyncio.gather(*map(calls_on, connections))
        assert [connection.opened for connection in connections] == [1] * 6
        # all six may have been one worker's, and the other holds the socket until it has heard, too
        while not await is_turned_away(connections[0]):
            pass
        assert sidecar.child is not None
        assert await asyncio.to_thread(sidecar.child.wait, COMES_S_MAX) == 0
        assert sidecar.logs().count("draining, for up to") == processes


async def is_turned_away(connection: Connection) -> bool:
    """Whether nobody takes a new connection any more."""
    try:
        await connection.call()
    except Lost as lost:
        return str(lost).startswith("not connected")
    return False


async def restart(times: int, sidecar: Sidecar, folder: Path) -> Sidecar:
    for _ in range(times):
        heir = heir_of(sidecar, folder)
        heir.spawn()
        assert sidecar.child is not None
        assert await asyncio.to_thread(sidecar.child.wait, COMES_S_MAX) == 0, heir.logs()
        sidecar = heir
    return sidecar


async def restarts_under_load(times: int, upstream: Hosted, folder: Path, tmp_path: Path, server: str) -> None:
    sidecar = started(folder, tmp_path, policies(upstream, server=server))
    with sidecar:
        callers = Callers(sidecar.port, 16)
        async with callers:
            last = await restart(times, sidecar, folder)
            enough = callers.answered + 100
            await holds(lambda: callers.answered >= enough)
        try:
            told = await asyncio.to_thread(admin, last, "/readyz")
            assert told[0] == 200
        finally:
            await asyncio.to_thread(last.stop)
    print(f"{times} restarts: {callers.answered} calls on {callers.opened} connections, lost {dict(callers.lost)}")
    assert not callers.lost
    assert len(upstream.heard) == callers.answered


@pytest.mark.real_clock
@pytest.mark.parametrize("server", ["workers: 2", "reuse_port: true"])
async def test_the_next_process_takes_over_under_load_and_no_call_is_lost(
    upstream: Hosted, folder: Path, tmp_path: Path, server: str
):
    await restarts_under_load(FEW_RESTARTS, upstream, folder, tmp_path, server)


@pytest.mark.slow
@pytest.mark.real_clock
async def test_twenty_restarts_under_load_lose_no_call(upstream: Hosted, folder: Path, tmp_path: Path):
    await restarts_under_load(RESTARTS, upstream, folder, tmp_path, "workers: 2")


def test_a_stranger_on_the_port_is_not_shared_with(upstream: Hosted, folder: Path, tmp_path: Path):
    with started(folder, tmp_path, policies(upstream, server="workers: 1")) as alone:
        (folder / "chat.yaml").write_text(policies(upstream))
        heir = heir_of(alone, folder)
        heir.spawn()
        assert heir.child is not None
        assert heir.child.wait(COMES_S_MAX) == 2
        assert "somebody listens there" in heir.logs()


def heard_via(sidecar: Sidecar, upstream: Hosted) -> bytes:
    """The name in Via of all the workers that answer, which is one."""
    body = b'{"messages": []}'
    eventually(lambda: all_ready(sidecar))
    while not all(worker["answers"] for worker in workers(sidecar)):
        urllib.request.urlopen(sidecar.url + "/v1/chat/completions", body, timeout=30).close()
    vias = {value for heard in upstream.heard for name, value in heard.headers if name.lower() == b"via"}
    assert len(vias) == 1
    return vias.pop()


def test_a_loop_is_seen_by_whichever_worker_it_comes_back_to_and_by_the_process_that_took_over(
    upstream: Hosted, folder: Path, tmp_path: Path
):
    with started(folder, tmp_path, policies(upstream)) as sidecar:
        via = heard_via(sidecar, upstream)
        with heir_of(sidecar, folder) as heir:
            assert sidecar.child is not None
            assert sidecar.child.wait(COMES_S_MAX) == 0
            returned = urllib.request.Request(heir.url + "/v1/chat/completions", b"{}", {"via": via.decode()})
            with pytest.raises(urllib.error.HTTPError, match="508"):
                urllib.request.urlopen(returned, timeout=30)
