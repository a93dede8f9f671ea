"""The test kit keeps its promises: time jumps, sockets are real, faults are the faults they claim to be."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.kit.acts import answer, broken, drip, early, hang_up, interim, pieces, raw, reset, silence, sse
from tests.kit.fake_upstream import FakeUpstream, deaf_port, in_thread
from tests.kit.virtual_clock import START_S, Stuck, Untidy, VirtualClockLoop, run, run_on
from tests.kit.weather import Outages, Weather, call_of, calls, weathered
from understudy.policies.service import Answer, Call, Failed, Refused

REPOSITORY = Path(__file__).parents[1]
GET = b"GET /v1/models HTTP/1.1\r\nhost: u\r\n\r\n"

# --- the virtual clock ---------------------------------------------------------------------------------------------


async def test_an_hour_of_sleep_takes_no_time():
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.sleep(3600)
    assert loop.time() - began == 3600
    # one jump, in which nothing is waited for
    assert isinstance(loop, VirtualClockLoop)
    assert loop.jumps == 1


async def test_timers_fire_in_the_order_of_their_times_and_the_clock_shows_each():
    loop = asyncio.get_running_loop()
    began = loop.time()
    rung: list[tuple[str, float]] = []

    async def ring(name: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        rung.append((name, loop.time() - began))

    async with asyncio.TaskGroup() as group:
        for name, after_s in [("late", 90.0), ("soon", 0.5), ("later", 86_400.0 * 30)]:
            group.create_task(ring(name, after_s))
    assert rung == [("soon", 0.5), ("late", 90.0), ("later", 86_400.0 * 30)]


async def test_a_timeout_of_asyncio_is_on_the_same_clock():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await asyncio.sleep(60)


async def test_time_stands_while_a_thread_works_for_us():
    loop = asyncio.get_running_loop()
    sleeper = asyncio.create_task(asyncio.sleep(5))
    await asyncio.to_thread(_busy_for, 0.05)
    assert loop.time() == START_S
    await sleeper
    assert loop.time() == START_S + 5


async def test_ticks_among_which_nobody_says_anything_wait_for_nothing_and_what_is_said_comes_before_the_next_one():
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    async with FakeUpstream(answer(200, body=b"hello", delay_s=500.5)) as upstream, Client(upstream.port) as client:
        await asyncio.sleep(1)
        before = loop.graces
        for _ in range(1000):
            await asyncio.sleep(1)
        assert loop.graces == before
        asked = asyncio.create_task(client.ask())
        for second in range(501):
            assert asked.done() == (second > 500)
            await asyncio.sleep(1)
        assert loop.graces - before < 10
        assert (await asked).endswith(b"hello")


def _busy_for(real_s: float) -> None:
    until = time.monotonic() + real_s
    while time.monotonic() < until:
        pass


async def test_time_stands_while_it_is_held():
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    woken = asyncio.Event()
    thread = asyncio.create_task(asyncio.sleep(5))
    with loop.held():
        loop.run_in_executor(None, lambda: (_busy_for(0.02), loop.call_soon_threadsafe(woken.set)))
        await woken.wait()
    assert loop.time() == START_S
    await thread


def test_tasks_that_wait_for_each_other_are_stuck_and_the_error_says_where():
    async def deadlock() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match=r"in test_tasks_that_wait_for_each_other.*deadlock"):
        run(deadlock())


def test_a_story_that_never_ends_is_stopped_by_the_real_clock():
    async def tick_for_ever() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(1)

    with pytest.raises(Stuck, match="real time"):
        run(tick_for_ever(), real_s_max=0.05)


def test_a_leaked_task_is_a_failure():
    async def leak() -> None:
        # Held in the loop's own set only, as leaks are.
        asyncio.get_running_loop().create_task(asyncio.sleep(3600), name="the leak")

    with pytest.raises(Untidy, match="the leak"):
        run(leak())


def test_an_error_nobody_saw_is_a_failure():
    async def fail() -> None:
        raise ValueError("unseen")

    async def look_away() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task

    with pytest.raises(Untidy, match="unseen"):
        run(look_away())


def test_what_the_story_raises_is_raised_and_what_it_returns_is_returned():
    async def give(value: int) -> int:
        await asyncio.sleep(value)
        return 10 // value

    assert run(give(5)) == 2
    with pytest.raises(ZeroDivisionError):
        run(give(0))


@given(some.floats(min_value=0, max_value=1e6))
@settings(max_examples=20)
async def test_hypothesis_can_test_coroutines(pause_s: float):
    await asyncio.sleep(pause_s)
    assert asyncio.get_running_loop().time() == pytest.approx(START_S + pause_s)


@pytest.mark.real_clock
async def test_the_marker_real_clock_runs_on_uvloop():
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")


@pytest.mark.real_clock("asyncio")
async def test_the_marker_real_clock_can_ask_for_the_plain_loop():
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    assert not isinstance(loop, VirtualClockLoop)


@pytest.fixture
def a_number() -> int:
    return 7


@pytest.mark.virtual_clock(start_s=5.0)
async def test_coroutines_take_fixtures_and_arguments_for_their_loop(a_number: int):
    assert a_number == 7
    assert asyncio.get_running_loop().time() == 5.0


# --- the fake upstream ---------------------------------------------------------------------------------------------


class Client:
    """A caller that shows every byte; `read` gives what came until the end, and how it ended."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def read(self) -> tuple[bytes, str]:
        told = b""
        try:
            while piece := await self.reader.read(65_536):
                told += piece
        except ConnectionResetError:
            return told, "reset"
        return told, "closed"

    async def ask(self, request: bytes = GET) -> bytes:
        """One answer with a content-length, whole."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self.reader.readexactly(length)


async def test_a_request_is_recorded_byte_for_byte_and_answered():
    async with FakeUpstream(answer(200, [(b"X-One", b"1")], {"ok": True})) as upstream, Client(upstream.port) as client:
        request = b"POST /v1/x?q=1 HTTP/1.1\r\nHost: u\r\nCoNtEnT-LeNgTh:  4\r\n\r\nbody"
        told = await client.ask(request)
        assert told.startswith(b"HTTP/1.1 200 OK\r\nX-One: 1\r\n")
        assert told.endswith(b'{"ok": true}')
        (heard,) = upstream.heard
        assert heard.raw == request
        assert (heard.method, heard.target, heard.body) == (b"POST", b"/v1/x?q=1", b"body")
        assert heard.headers == [(b"Host", b"u"), (b"CoNtEnT-LeNgTh", b"4")]
        assert (upstream.connections_ever, upstream.connections_open) == (1, 1)


async def test_a_chunked_request_is_understood_and_its_bytes_kept():
    async with FakeUpstream() as upstream, Client(upstream.port) as client:
        request = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nt: 1\r\n\r\n"
        await client.ask(request)
        assert upstream.heard[0].body == b"abcde"
        assert upstream.heard[0].raw == request


async def test_acts_are_chosen_from_the_queue_then_the_period_then_the_usual():
    async with FakeUpstream(answer(200)) as upstream, Client(upstream.port) as client:
        upstream.during(60, answer(503))
        upstream.then(answer(429))
        statuses = [(await client.ask())[9:12], (await client.ask())[9:12]]
        await asyncio.sleep(61)
        statuses.append((await client.ask())[9:12])
        upstream.respond = lambda heard: answer(404, body=heard.target)
        statuses.append((await client.ask())[9:12])
        upstream.on_reuse = answer(500)
        statuses.append((await client.ask())[9:12])
        assert statuses == [b"429", b"503", b"200", b"404", b"500"]


@pytest.mark.parametrize(
    ("act", "told", "ending"),
    [
        (hang_up(), b"", "closed"),
        (reset(), b"", "reset"),
        (raw(b"\x00\xffgarbage", then="cut"), b"\x00\xffgarbage", "closed"),
        (broken("cut", after=3, body=b"x" * 9), b"content-length: 9\r\n\r\nxxx", "closed"),
        (broken("reset", after=3, body=b"x" * 9), b"content-length: 9\r\n\r\nxxx", "reset"),
        (broken("cut", after=3, framing="chunked"), b"transfer-encoding: chunked\r\n\r\n3\r\nxxx\r\n", "closed"),
        (answer(200, body=b"xyz", framing="until-close"), b"connection: close\r\n\r\nxyz", "closed"),
        (early(answer(413)), b"HTTP/1.1 413 Whatever\r\ncontent-length: 0\r\n\r\n", "closed"),
    ],
)
@pytest.mark.parametrize("clock", ["virtual", "uvloop"])
def test_an_answer_ends_the_way_its_act_says(act: object, told: bytes, ending: str, clock: str):
    async def story() -> None:
        async with FakeUpstream(act) as upstream, Client(upstream.port) as client:  # type: ignore[arg-type]
            client.writer.write(GET)
            heard, ended = await client.read()
            assert heard.endswith(told)
            assert ended == ending
            assert upstream.connections_open == 0

    run(story()) if clock == "virtual" else run_on(uvloop.new_event_loop, story())


async def test_silence_and_stalls_last_until_the_caller_leaves():
    async with FakeUpstream() as upstream:
        for act, so_far in [(silence(), 0), (broken("stall", after=5), 5)]:
            upstream.then(act)
            async with Client(upstream.port) as client:
                client.writer.write(GET)
                if so_far:
                    await client.reader.readuntil(b"\r\n\r\n")
                    await client.reader.readexactly(so_far)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.reader.read(1), 3600)
                assert upstream.connections_open == 1
            await asyncio.sleep(0.1)
            assert upstream.connections_open == 0
        assert upstream.abandoned == upstream.heard


async def test_a_drip_takes_its_time():
    loop = asyncio.get_running_loop()
    async with FakeUpstream(drip(b"ten bytes.", bytes_per_s=0.1)) as upstream, Client(upstream.port) as client:
        assert (await client.ask()).endswith(b"ten bytes.")
        assert loop.time() == pytest.approx(START_S + 100, abs=0.1)


async def test_server_sent_events_keep_their_gaps_and_end_as_told():
    loop = asyncio.get_running_loop()
    async with FakeUpstream(sse([{"a": 1}, "two"], first_s=2, gap_s=30)) as upstream, Client(upstream.port) as client:
        client.writer.write(GET)
        await client.reader.readuntil(b"\r\n\r\n")
        times: list[float] = []
        for event in (b'data: {"a": 1}\n\n', b"data: two\n\n", b"data: [DONE]\n\n"):
            await client.reader.readuntil(event)
            times.append(loop.time() - START_S)
        assert times == pytest.approx([2, 32, 62], abs=0.1)
        assert await client.reader.readexactly(7) == b"\r\n0\r\n\r\n"
        upstream.then(pieces([b"one"], ending="cut"))
        client.writer.write(GET)
        assert (await client.read())[0].endswith(b"3\r\none\r\n")


async def test_expectations_and_interim_answers():
    async with FakeUpstream() as upstream, Client(upstream.port) as client:
        upstream.then(interim(answer(200), headers=[(b"link", b"</x>")], times=2))
        client.writer.write(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(b"hi")
        for _ in range(2):
            assert b" 103 Early Hints\r\nlink: </x>" in await client.reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in await client.reader.readuntil(b"\r\n\r\n")


async def test_a_pooled_connection_dies_between_two_requests():
    async with FakeUpstream(idle_close_s=0) as upstream, Client(upstream.port) as client:
        assert (await client.ask()).endswith(b"ok")
        assert await client.reader.read() == b""
    async with FakeUpstream() as upstream, Client(upstream.port) as client:
        upstream.on_reuse = hang_up()
        assert (await client.ask()).endswith(b"ok")
        client.writer.write(GET)
        assert await client.reader.read() == b""


@pytest.mark.parametrize("clock", ["virtual", "uvloop"])
def test_an_upstream_goes_away_and_comes_back_on_the_same_port(clock: str):
    async def story() -> None:
        async with FakeUpstream() as upstream:
            async with Client(upstream.port) as client:
                await client.ask()
                await upstream.refuse()
                assert (await client.read())[1] == "reset"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", upstream.port)
            await upstream.come_back()
            async with Client(upstream.port) as client:
                await client.ask()

    run(story()) if clock == "virtual" else run_on(uvloop.new_event_loop, story())


async def test_a_black_hole_accepts_and_says_nothing_even_in_the_middle_of_an_answer():
    async with FakeUpstream(sse(["one", "two"], gap_s=10)) as upstream, Client(upstream.port) as old:
        old.writer.write(GET)
        await old.reader.readuntil(b"data: one\n\n")
        await upstream.black_hole()
        async with Client(upstream.port) as new:
            new.writer.write(GET)
            for client in (old, new):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(3600):
                        await client.reader.readuntil(b"data: two")
            await upstream.come_back()
            assert (await new.read())[1] == "reset"
        assert [heard.connection for heard in upstream.heard] == [1]


async def test_half_a_request_is_garbled():
    async with FakeUpstream() as upstream, Client(upstream.port) as client:
        client.writer.write(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf")
        client.writer.write_eof()
        assert await client.reader.read() == b""
        assert upstream.garbled == [b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf"]
        assert upstream.heard == []


async def test_connecting_to_a_deaf_port_hangs():
    with deaf_port() as port, pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await asyncio.open_connection("127.0.0.1", port)


def test_an_upstream_on_a_thread_serves_synchronous_clients():
    with in_thread(answer(200, body=b"hello")) as upstream:
        for ending in ("answered", "refused"):
            client = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=60)
            if ending == "answered":
                client.request("GET", "/x")
                assert client.getresponse().read() == b"hello"
                assert upstream.paths == [b"/x"]
                client.close()
                upstream.do(upstream.refuse())
            else:
                with pytest.raises(ConnectionRefusedError):
                    client.request("GET", "/x")


# --- the weather ---------------------------------------------------------------------------------------------------


async def _sunny(call: Call) -> Answer:
    return Answer(200, [], call.id.encode())


async def _hour_of_weather(seed: int) -> list[str]:
    """What became of each call of an hour, as `id: outcome at time`."""
    clock = asyncio.get_running_loop().time
    service = weathered(_sunny, Weather(seed, began=clock()), clock)
    told: list[str] = []

    async def make(at: float, call: Call) -> None:
        await asyncio.sleep(at - clock())
        call.until = clock() + 30
        try:
            outcome = str((await service(call)).status)
        except (Failed, Refused) as error:
            outcome = error.reason
        told.append(f"{call.id}: {outcome} at {clock():.6f}")
        assert clock() <= call.until

    async with asyncio.TaskGroup() as group:
        for at, call in calls(1000, seed, rate=1000 / 3600, began=clock()):
            group.create_task(make(at, call))
    return told


def test_the_same_seed_is_the_same_weather_and_another_seed_is_not():
    assert run(_hour_of_weather(1)) == run(_hour_of_weather(1))
    assert run(_hour_of_weather(1)) != run(_hour_of_weather(2))


def test_an_hour_of_weather_has_every_kind_of_fault():
    outcomes = {line.split()[1] for line in run(_hour_of_weather(3))}
    assert {"200", "connect", "weather", "timeout", "429", "5xx", "404"} <= outcomes


async def test_an_endpoint_is_down_for_its_times_and_takes_with_it_what_it_was_doing():
    clock = asyncio.get_running_loop().time
    outages = Outages({"a": [(clock() + 10, clock() + 20)]})

    async def slow(call: Call) -> Answer:
        await asyncio.sleep(4)
        return Answer(200, [])

    mortal, other = outages.mortal("a", slow, clock), outages.mortal("b", slow, clock)
    told: list[str] = []
    for _ in range(6):
        try:
            told.append(str((await mortal(call_of("embed", "x"))).status))
        except Failed as error:
            told.append(error.reason)
            await asyncio.sleep(4)
    assert told == ["200", "200", "reset", "connect", "200", "200"]
    assert (await other(call_of("embed", "x"))).status == 200


def test_drawn_outages_are_as_long_and_as_far_apart_as_asked_on_average():
    outages = Outages.drawn(7, ["a", "b"], began=0, length_s=1e6, up_s=900, down_s=100)
    down_s = sum(back - dies for dies, back in outages.schedule["a"])
    assert down_s / 1e6 == pytest.approx(0.1, abs=0.02)
    assert outages.schedule["a"] != outages.schedule["b"]
    assert outages.schedule == Outages.drawn(7, ["a", "b"], began=0, length_s=1e6, up_s=900, down_s=100).schedule


# --- how the suite runs --------------------------------------------------------------------------------------------


def _suite_of(text: str, tmp_path: Path, **env: str) -> str:
    """What pytest says of a suite of its own, made of this conftest and one file with this text."""
    tests = tmp_path / "tests"
    (tests / "kit").mkdir(parents=True)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tests)
    shutil.copy(REPOSITORY / "tests" / "kit" / "virtual_clock.py", tests / "kit")
    (tests / "test_it.py").write_text("import asyncio\nimport pytest\n\n" + text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA"]
    surroundings = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTEST_ADDOPTS"}}
    ran = subprocess.run(
        command, cwd=tmp_path, env={**surroundings, **env}, capture_output=True, text=True, timeout=600
    )
    return ran.stdout


SKIPPING = '@pytest.mark.skip(reason="no nginx")\ndef test_one():\n    pass\n'


def test_a_skip_is_a_failure_in_ci_and_only_there(tmp_path: Path):
    assert "1 skipped" in _suite_of(SKIPPING, tmp_path / "elsewhere")
    told = _suite_of(SKIPPING, tmp_path / "ci", CI="true")
    assert "1 error" in told
    assert "skipped in CI, where nothing may be: Skipped: no nginx" in told


TRYING = """
from hypothesis import given, settings, strategies as some

@given(some.integers(0, 10**9))
def test_one(number):
    assert settings.default.deadline is None
    print("tried", number)
"""


def test_hypothesis_tries_the_same_everywhere_and_may_take_its_time(tmp_path: Path):
    at_home, in_ci = (
        [line for line in _suite_of(TRYING, tmp_path / name, CI=ci).splitlines() if line.startswith("tried")]
        for name, ci in (("home", ""), ("ci", "true"))
    )
    assert at_home == in_ci
    assert len(set(at_home)) > 20


def test_a_module_skipped_as_a_whole_is_a_failure_in_ci(tmp_path: Path):
    told = _suite_of('pytest.importorskip("no_such_module")\n', tmp_path, CI="true")
    assert "1 error" in told
    assert "skipped in CI" in told


def test_an_expected_failure_is_no_skip(tmp_path: Path):
    assert "1 xfailed" in _suite_of("@pytest.mark.xfail\ndef test_one():\n    assert 0\n", tmp_path, CI="true")


def test_what_is_not_meant_for_a_machine_is_left_out_and_not_skipped(tmp_path: Path):
    text = '@pytest.mark.slow\ndef test_one(): ...\n@pytest.mark.beside("no/such/place")\ndef test_two(): ...\n'
    assert "2 deselected" in _suite_of(text, tmp_path / "elsewhere")
    assert "1 passed, 1 deselected" in _suite_of(text, tmp_path / "ci", CI="true")


def test_an_async_test_that_leaks_or_fails_fails(tmp_path: Path):
    text = "async def test_one():\n    asyncio.create_task(asyncio.sleep(9))\nasync def test_two():\n    assert 0\n"
    assert "2 failed" in _suite_of(text, tmp_path)
