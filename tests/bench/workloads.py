"""What is sent through every subject, and how hard: one table of workloads over the package's exchanges.

A new one is one entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.proxy.bench import exchanges
from understudy.proxy.bench.exchanges import Exchange


@dataclass(frozen=True, slots=True)
class Workload:
    """An exchange on so many keep-alive connections at once.

    `on_one_core` puts subject, upstream and load on the same core: with one connection only one of them runs at a
    time, and waking an idle core would cost more than the work. One that is not `for_all` is measured with those
    subjects only that name it.
    """

    name: str
    exchange: Exchange
    connections: int
    on_one_core: bool = False
    for_all: bool = True

    @property
    def unit(self) -> str:
        return "chunk" if self.exchange.is_streamed else "call"

    @property
    def about(self) -> str:
        """What is done, for the report."""
        exchange = self.exchange
        sent, got = len(exchange.asked), len(exchange.body)
        cores = ", all on one core" if self.on_one_core else ""
        if exchange.is_streamed:
            shape = f"{len(exchange.pieces)} events of {len(exchange.pieces[1])} B, {exchange.gap_s * 1000:g} ms apart"
            return f"{self.connections} streams of {shape}{cores}"
        plural = "s" * (self.connections != 1)
        return f"{sent:,} B up, {got:,} B down, {self.connections} connection{plural}{cores}"


CHAT = exchanges.chat()

WORKLOADS = (
    Workload("chat", CHAT, connections=32),
    Workload("embedding-8k", exchanges.embedding("embedding-8k"), connections=32),
    Workload("embedding-21k", exchanges.embedding("embedding-21k", decimals=10), connections=32),
    Workload("embedding-30k", exchanges.embedding("embedding-30k", decimals=16), connections=32),
    Workload("search", exchanges.search(), connections=32),
    Workload("stream", exchanges.stream("stream", 200, 0.008), connections=50),
    Workload("chat-1", CHAT, connections=1, on_one_core=True),
    Workload("chat-32", CHAT, connections=32, on_one_core=True),
    Workload("cache-hit", CHAT, connections=32, for_all=False),
)

EXCHANGES = {workload.exchange.name: workload.exchange for workload in WORKLOADS}
