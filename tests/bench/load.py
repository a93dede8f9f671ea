"""The load generator: a process that takes orders on stdin and answers each with what it measured, as lines of JSON.

Each order is measured on connections of its own, after a warm-up that is not counted. Every answer is compared with
what it should be: a wrong one ends the measurement.

    python -m tests.bench.load
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from array import array
from collections.abc import Callable
from typing import cast

import httptools
import msgspec
import uvloop

from tests.bench.cpu import cpu_s
from tests.bench.workloads import EXCHANGES, Exchange

PATIENCE_S = 20.0
"""How long past its own length a measurement may take."""

PARTING_S_MAX = 1.0


class Order(msgspec.Struct):
    """What is to be measured: an exchange on a port, and whose CPU time."""

    port: int
    exchange: str
    connections: int
    pids: list[int]
    warm_s: float
    window_s: float


class Mark(msgspec.Struct):
    """What was measured: units (calls, or chunks of streams), and calls' latencies."""

    units: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    wrong: str = ""


class WrongAnswer(Exception):
    """A subject did not answer as it must."""


class Caller(asyncio.Protocol):
    """A keep-alive connection that asks again as soon as it is answered. Heads are hardly looked at: answers come with
    their length or not at all."""

    def __init__(self, exchange: Exchange, request: bytes, done: asyncio.Future[None]) -> None:
        self._body = exchange.body
        self._request = request
        self._done = done
        self._held = b""
        self._transport: asyncio.Transport | None = None
        self._asked_at = 0.0
        self.is_open = True
        self.latencies: array[float] = array("d")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        _fail(self._done, "the connection was closed")

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + len(self._body):
            self._held = data
            if end >= 0 and data[9:12] != b"200":
                _fail(self._done, repr(data[:200]))
            return
        self._held = b""
        if data[9:12] != b"200" or len(data) != end + 4 + len(self._body) or not data.endswith(self._body):
            _fail(self._done, repr(data[:200]))
            return
        self.latencies.append(time.perf_counter() - self._asked_at)
        if self._done.done():
            assert self._transport is not None
            self._transport.close()
        else:
            self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        self._asked_at = time.perf_counter()
        self._transport.write(self._request)


class Listening(asyncio.Protocol):
    """A connection on which one stream is asked for and heard to its end."""

    def __init__(self, exchange: Exchange, over: asyncio.Future[None]) -> None:
        self._body = exchange.body
        self._over = over
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        _fail(self._over, "the connection was closed")

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), b"".join(self._pieces)
        if status != 200 or body != self._body:
            _fail(self._over, f"status {status}, {len(body)} bytes of {len(self._body)}: {body[:200]!r}")
        elif not self._over.done():
            self._over.set_result(None)


def _fail(future: asyncio.Future[None], why: str) -> None:
    if not future.done():
        future.set_exception(WrongAnswer(why))


async def _connect(make: Callable[[], asyncio.Protocol], port: int) -> None:
    await asyncio.get_running_loop().create_connection(make, "127.0.0.1", port)


async def _measure_calls(order: Order, exchange: Exchange) -> Mark:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    request = exchange.request(order.port)
    callers = [Caller(exchange, request, done) for _ in range(order.connections)]
    for caller in callers:
        await _connect(lambda caller=caller: caller, order.port)
    await asyncio.wait((done,), timeout=order.warm_s)
    for caller in callers:
        del caller.latencies[:]
    cpu, wall = cpu_s(order.pids), time.perf_counter()
    await asyncio.wait((done,), timeout=order.window_s)
    mark = Mark(cpu_s=cpu_s(order.pids) - cpu, wall_s=time.perf_counter() - wall)
    if done.done():
        done.result()
    done.set_result(None)
    latencies = sorted(latency for caller in callers for latency in caller.latencies)
    if not latencies:
        raise WrongAnswer(f"no answer within {order.window_s:g} s")
    mark.units = len(latencies)
    mark.p50_s, mark.p99_s = (latencies[int(share * len(latencies))] for share in (0.5, 0.99))
    await _part(callers)
    return mark


async def _part(callers: list[Caller]) -> None:
    """Let every caller hear its last answer, so that no subject has to clean up after us while another is measured."""
    give_up = time.perf_counter() + PARTING_S_MAX
    while any(caller.is_open for caller in callers):
        if time.perf_counter() > give_up:
            raise WrongAnswer("a connection was left with too short an answer, or none")
        await asyncio.sleep(0.005)


async def _measure_streams(order: Order, exchange: Exchange) -> Mark:
    loop = asyncio.get_running_loop()
    overs = [loop.create_future() for _ in range(order.connections)]
    listening = [Listening(exchange, over) for over in overs]
    for one in listening:
        await _connect(lambda one=one: one, order.port)
    request = exchange.request(order.port)
    cpu, wall = cpu_s(order.pids), time.perf_counter()
    for one in listening:
        assert one.transport is not None
        one.transport.write(request)
        # not all at once, so that the streams do not beat in time
        await asyncio.sleep(exchange.gap_s / order.connections)
    await asyncio.gather(*overs)
    mark = Mark(cpu_s=cpu_s(order.pids) - cpu, wall_s=time.perf_counter() - wall)
    mark.units = order.connections * len(exchange.pieces)
    for one in listening:
        assert one.transport is not None
        one.transport.close()
    return mark


async def _measure(order: Order) -> Mark:
    exchange = EXCHANGES[order.exchange]
    streaming_s = exchange.gap_s * len(exchange.pieces)
    measure = _measure_streams if exchange.is_streamed else _measure_calls
    try:
        async with asyncio.timeout(order.warm_s + order.window_s + streaming_s + PATIENCE_S):
            return await measure(order, exchange)
    except WrongAnswer as wrong:
        return Mark(wrong=str(wrong))
    except (TimeoutError, OSError) as error:
        return Mark(wrong=f"{type(error).__name__} {error}")


def main() -> None:
    """Take orders until stdin ends."""
    gc.freeze()
    for line in sys.stdin.buffer:
        mark = uvloop.run(_measure(msgspec.json.decode(line, type=Order)))
        sys.stdout.buffer.write(msgspec.json.encode(mark) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
