"""The load generator: a process that takes orders on stdin and answers each with what it measured, as lines of JSON.

python -m tests.bench.load
"""

from __future__ import annotations

import gc
import sys

import msgspec
import uvloop

from tests.bench.workloads import EXCHANGES
from understudy.proxy.bench.load import Aim, measure


class Order(msgspec.Struct):
    """What is to be measured: an exchange on a port, and whose CPU time."""

    port: int
    exchange: str
    connections: int
    pids: list[int]
    warm_s: float
    window_s: float

    def aim(self) -> Aim:
        exchange = EXCHANGES[self.exchange]
        return Aim(self.port, exchange, self.connections, self.pids, self.warm_s, self.window_s)


def main() -> None:
    """Take orders until stdin ends."""
    gc.freeze()
    for line in sys.stdin.buffer:
        mark = uvloop.run(measure(msgspec.json.decode(line, type=Order).aim()))
        sys.stdout.buffer.write(msgspec.json.encode(mark) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
