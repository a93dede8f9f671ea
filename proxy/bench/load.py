"""Load on one port: so many keep-alive connections that ask again as soon as they are answered, or listen to streams.

Every answer is compared with what it should be, and a wrong one ends the measurement: there are no figures for answers
that were not given. What is measured comes after a warm-up that is not counted.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import httptools
import msgspec

from understudy.proxy.bench.exchanges import STAMP, Exchange
from understudy.proxy.bench.processes import cpu_s

PATIENCE_S = 20.0
"""How long past its own length a measurement may take."""

PARTING_S_MAX = 10.0
_STAMP_MARK = b'"fp_'


class Mark(msgspec.Struct):
    """What was measured: units (calls, or chunks of streams), and how long they took.

    A call's latency is from its first byte out to its answer's last byte in; a chunk's is from the moment the upstream
    sent it.
    """

    units: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    wrong: str = ""


class WrongAnswer(Exception):
    """A subject did not answer as it must."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Where the load goes and how hard: `pids` are those whose CPU time is counted.

    With `is_exact` an answer must be the exchange's own, byte for byte; without it any 2xx will do.
    """

    port: int
    exchange: Exchange
    connections: int
    pids: Sequence[int]
    warm_s: float
    window_s: float
    is_exact: bool = True
    host: str = "127.0.0.1"


class _Connection(asyncio.Protocol):
    """What every kind of caller is: a connection that must stay open until it is done."""

    def __init__(self, over: asyncio.Future[None]) -> None:
        self._over = over
        # whoever is interrupted reads no result, and that is no error
        over.add_done_callback(_looked_at)
        self._transport: asyncio.Transport | None = None
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self.is_open = False
        self.fail("the connection was closed")

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def fail(self, why: str) -> None:
        if not self._over.done():
            self._over.set_exception(WrongAnswer(why))


def _looked_at(over: asyncio.Future[None]) -> None:
    if not over.cancelled():
        over.exception()


class Caller(_Connection):
    """Asks again as soon as it is answered. Heads are hardly looked at: what comes must have the right length."""

    def __init__(self, aim: Aim, over: asyncio.Future[None]) -> None:
        super().__init__(over)
        self._body = aim.exchange.body
        self._request = aim.exchange.request(aim.port)
        self._held = b""
        self._asked_at = 0.0
        self.latencies: array[float] = array("d")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + len(self._body):
            self._held = data
            if end >= 0 and data[9:12] != b"200":
                self.fail(repr(data[:200]))
            return
        self._held = b""
        if data[9:12] != b"200" or len(data) != end + 4 + len(self._body) or not data.endswith(self._body):
            self.fail(repr(data[:200]))
            return
        self._answered()

    def _answered(self) -> None:
        self.latencies.append(time.perf_counter() - self._asked_at)
        if self._over.done():
            self.close()
        else:
            self._ask()

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self.write(self._request)


class Asker(Caller):
    """A caller who takes any 2xx for an answer, however it is framed."""

    def __init__(self, aim: Aim, over: asyncio.Future[None]) -> None:
        super().__init__(aim, over)
        self._parser = httptools.HttpResponseParser(self)
        self._is_whole = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"{error}: {data[:200]!r}")
            return
        if self._is_whole:
            self._is_whole = False
            status = self._parser.get_status_code()
            self._parser = httptools.HttpResponseParser(self)
            if 200 <= status < 300:
                self._answered()
            else:
                self.fail(f"status {status}: {data[:200]!r}")

    def on_message_complete(self) -> None:
        self._is_whole = True


class Listening(_Connection):
    """One stream is asked for and heard to its end; `delays_s` says how long each of its events was under way."""

    def __init__(self, exchange: Exchange, over: asyncio.Future[None]) -> None:
        super().__init__(over)
        self._expected = exchange.body
        self._parser = httptools.HttpResponseParser(self)
        self._held = b""
        self._heard: list[bytes] = []
        self.delays_s: array[float] = array("d")

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        now = time.monotonic_ns()
        *events, self._held = (self._held + piece).split(b"\n\n")
        for event in events:
            before, mark, after = event.partition(_STAMP_MARK)
            if mark:
                self.delays_s.append((now - int(after[:16], 16)) / 1e9)
                event = before + b'"' + STAMP + after[16:]
            self._heard.append(event + b"\n\n")

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), b"".join(self._heard) + self._held
        if status != 200 or body != self._expected:
            self.fail(f"status {status}, {len(body)} bytes of {len(self._expected)}: {body[:200]!r}")
        elif not self._over.done():
            self._over.set_result(None)


async def _connect(make: Callable[[], asyncio.Protocol], aim: Aim) -> None:
    await asyncio.get_running_loop().create_connection(make, aim.host, aim.port)


async def _measure_calls(aim: Aim) -> Mark:
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    kind = Caller if aim.is_exact else Asker
    callers = [kind(aim, over) for _ in range(aim.connections)]
    for caller in callers:
        await _connect(lambda caller=caller: caller, aim)
    await asyncio.wait((over,), timeout=aim.warm_s)
    for caller in callers:
        del caller.latencies[:]
    cpu, wall = cpu_s(aim.pids), time.perf_counter()
    patience = time.perf_counter() + PATIENCE_S / 2
    await asyncio.wait((over,), timeout=aim.window_s)
    while not over.done() and not any(caller.latencies for caller in callers) and time.perf_counter() < patience:
        # on a busy machine a short time may end before the first answer
        await asyncio.wait((over,), timeout=aim.window_s)
    mark = Mark(cpu_s=cpu_s(aim.pids) - cpu, wall_s=time.perf_counter() - wall)
    if over.done():
        over.result()
    over.set_result(None)
    _note(mark, [caller.latencies for caller in callers])
    if not mark.units:
        raise WrongAnswer(f"no answer within {mark.wall_s:g} s")
    # a model beside us takes its time over what it was asked last
    await _part(callers, PARTING_S_MAX if aim.is_exact else PATIENCE_S / 2)
    return mark


def _note(mark: Mark, durations_s: Sequence[array[float]]) -> None:
    in_order = sorted(one for several in durations_s for one in several)
    mark.units = len(in_order)
    if in_order:
        mark.p50_s, mark.p99_s = (in_order[int(share * len(in_order))] for share in (0.5, 0.99))


async def _part(callers: Sequence[Caller], within_s: float) -> None:
    """Let every caller hear its last answer, so that no subject has to clean up after us while another is measured."""
    give_up = time.perf_counter() + within_s
    while any(caller.is_open for caller in callers):
        if time.perf_counter() > give_up:
            raise WrongAnswer("a connection was left with too short an answer, or none")
        await asyncio.sleep(0.005)


async def _measure_streams(aim: Aim) -> Mark:
    loop, exchange = asyncio.get_running_loop(), aim.exchange
    overs = [loop.create_future() for _ in range(aim.connections)]
    listening = [Listening(exchange, over) for over in overs]
    for one in listening:
        await _connect(lambda one=one: one, aim)
    request = exchange.request(aim.port)
    cpu, wall = cpu_s(aim.pids), time.perf_counter()
    for one in listening:
        one.write(request)
        # not all at once, so that the streams do not beat in time
        await asyncio.sleep(exchange.gap_s / aim.connections)
    await asyncio.gather(*overs)
    mark = Mark(cpu_s=cpu_s(aim.pids) - cpu, wall_s=time.perf_counter() - wall)
    _note(mark, [one.delays_s for one in listening])
    # the stream's own end has no stamp, and is a chunk like the others
    mark.units = aim.connections * len(exchange.pieces)
    for one in listening:
        one.close()
    return mark


async def measure(aim: Aim) -> Mark:
    """Put the load on; what was wrong, if anything was, stands in the Mark."""
    streaming_s = aim.exchange.gap_s * len(aim.exchange.pieces)
    measured = _measure_streams if aim.exchange.is_streamed else _measure_calls
    try:
        async with asyncio.timeout(aim.warm_s + aim.window_s + streaming_s + PATIENCE_S):
            return await measured(aim)
    except WrongAnswer as wrong:
        return Mark(wrong=str(wrong))
    except (TimeoutError, OSError) as error:
        return Mark(wrong=f"{type(error).__name__} {error}")


# --- one call ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """One answer: its status, headers by their names in lower case, and body."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(host: str, port: int, exchange: Exchange, *, patience_s: float) -> Told:
    """Ask once, with the very bytes the load sends; blocks. Raises OSError and HTTPException."""
    with socket.create_connection((host, port), timeout=patience_s) as connection:
        connection.sendall(exchange.request(port))
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Told(answer.status, headers, answer.read())
