"""Mutated requests and answers against an oracle: `python -m tests.attacks.fuzz --seconds 300 --seed 1`.

    seeds (the tables' rows and the corpus) --> Mutator --> door or upstream connection in memory --> finding | nothing

A request is a finding when what the upstream got is not exactly what the oracle reads; an answer, when it is handed on
though the oracle reads another or none, or when its connection is kept with bytes unread. A finding is printed as the
bytes, their packets and what is wrong, and is kept in the folder that `--keep` names, to become a row or a seed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import random
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tests.attacks import answers, oracle, smuggling_heads
from tests.attacks.rig import UPSTREAM, Echo, Lines, Rig
from tests.kit import virtual_clock
from understudy.policies.service import Answer
from understudy.proxy.http.upstream import Connection, Terms
from understudy.proxy.settings.settings import Limits

CORPUS = Path(__file__).parent / "corpus"
SEED_BYTES_MAX = 4096
MEANT_MAX = 12
"""Requests of one dialogue: more may be refused for being too many."""
WORDS = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b"\0", b" ", b"\t", b"\x0b", b"\x0c", b"\x7f", b"\x80",
    b":", b": ", b" :", b",", b";", b"0", b"1", b"3", b"-", b"+", b"0x", b"_", b"ff", b"G", b"/", b"//", b"\\", b"#",
    b"?", b"*", b"..", b"/../", b"http://here", b"@", b"here", b"Host: here\r\n", b"Host: there\r\n", b"chunked",
    b"Content-Length: 0\r\n", b"Content-Length: 3\r\n", b"content-length: 5\r\n", b"Content-Length: 00\r\n",
    b"Transfer-Encoding: chunked\r\n", b"transfer-encoding: x\r\n", b"Transfer-Encoding:", b"Content-Length:",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: x-a\r\n", b"Expect: 100-continue\r\n",
    b"X-A: b\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"5\r\n0\r\n\r\n\r\n", b"GET / HTTP/1.1\r\n", b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 x\r\n\r\n", b"HTTP/1.1 204 x\r\n", b"GET", b"HEAD", b"POST", b"OPTIONS",
    b"CONNECT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"9" * 20, b"f" * 16, b"a" * 300, b"%0d%0a", b"\xff", b"\xc2\xa0",
)  # fmt: skip
OUT_OF_SCOPE = re.compile(rb"(?i)websocket|event-stream|ndjson")
"""What opens a tunnel or a stream of events: other rules hold there."""


class Mutator:
    """Makes new bytes of old ones, by a seed."""

    def __init__(self, seeds: list[bytes], seed: int) -> None:
        self._seeds = seeds
        self.dice = random.Random(seed)
        self._moves = (
            self._insert, self._insert, self._replace, self._delete, self._flip, self._double, self._swap, self._splice,
            self._number,
        )  # fmt: skip

    def next(self) -> bytes:
        data = self.dice.choice(self._seeds)
        for _ in range(self.dice.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
            data = self.dice.choice(self._moves)(data)
        return data[:SEED_BYTES_MAX]

    def packets(self, data: bytes) -> list[bytes]:
        """The same bytes, cut at some places."""
        cuts = self.dice.choice((0, 0, 1, 2, 5, 20))
        edges = [0, *sorted(self.dice.randrange(len(data) + 1) for _ in range(cuts)), len(data)]
        return [data[begin:end] for begin, end in itertools.pairwise(edges) if begin < end]

    def _span(self, data: bytes) -> tuple[int, int]:
        begin = self.dice.randrange(len(data) + 1)
        return begin, min(len(data), begin + self.dice.choice((1, 1, 2, 4, 16, 60)))

    def _insert(self, data: bytes) -> bytes:
        at = self.dice.randrange(len(data) + 1)
        return data[:at] + self.dice.choice(WORDS) + data[at:]

    def _replace(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + self.dice.choice(WORDS) + data[end:]

    def _delete(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + data[end:]

    def _flip(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return (
            data[:begin]
            + bytes(byte ^ (1 << self.dice.randrange(8)) for byte in data[begin:end][:1])
            + data[begin + 1 :]
        )

    def _double(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:end] + data[begin:]

    def _swap(self, data: bytes) -> bytes:
        lines = data.split(b"\r\n")
        a, b = self.dice.randrange(len(lines)), self.dice.randrange(len(lines))
        lines[a], lines[b] = lines[b], lines[a]
        return b"\r\n".join(lines)

    def _splice(self, data: bytes) -> bytes:
        other = self.dice.choice(self._seeds)
        return data[: self.dice.randrange(len(data) + 1)] + other[self.dice.randrange(len(other) + 1) :]

    def _number(self, data: bytes) -> bytes:
        numbers = list(re.finditer(rb"[0-9]+", data))
        if not numbers:
            return data
        found = self.dice.choice(numbers)
        value = int(found[0][:18]) + self.dice.choice((-1, 1, 5, 16, 1 << 32))
        return data[: found.start()] + b"%d" % max(0, value) + data[found.end() :]


@dataclass
class Tally:
    """What a run has done and found."""

    requests: int = 0
    forwarded: int = 0
    answers: int = 0
    handed_on: int = 0
    findings: list[tuple[str, list[bytes], list[str]]] = field(default_factory=list[tuple[str, list[bytes], list[str]]])

    @property
    def executions(self) -> int:
        return self.requests + self.answers


def seeds() -> tuple[list[bytes], list[bytes]]:
    """Requests and answers to begin with."""
    small = [row.data for row in smuggling_heads.ROWS if len(row.data) <= SEED_BYTES_MAX]
    asked = small + [path.read_bytes() for path in sorted(CORPUS.glob("*.request"))]
    said = [row.data for row in answers.ROWS if row.data and len(row.data) <= SEED_BYTES_MAX]
    return asked, said + [path.read_bytes() for path in sorted(CORPUS.glob("*.answer"))]


class Fuzzer:
    """One door, one upstream, and two mutators."""

    def __init__(self, seed: int) -> None:
        asked, said = seeds()
        self.asking = Mutator(asked, seed)
        self.answering = Mutator(said, seed + 1)
        self.rigs = [Rig("plain"), Rig("openai-chat"), Rig("plain", Limits(head_bytes_max=600, headers_max=8))]
        self.bounds = [oracle.Bounds(), oracle.Bounds(), oracle.Bounds(head_bytes_max=600, headers_max=8)]
        self.tally = Tally()

    async def step(self) -> None:
        """One request and one answer."""
        await self.ask(self.asking.next())
        await self.answer(self.answering.next())

    async def ask(self, data: bytes) -> None:
        if OUT_OF_SCOPE.search(data) or not data:
            return
        which = self.asking.dice.choice((0, 0, 1, 2))
        meant = [said for said in oracle.requests(data, self.bounds[which]) if said.target != b"*"]
        if len(meant) > MEANT_MAX:
            return
        packets = self.asking.packets(data)
        outcome = await self.rigs[which].dialogue(packets)
        self.tally.requests += 1
        self.tally.forwarded += len(meant)
        wrong = oracle.faults(outcome.received, meant, UPSTREAM)
        got = oracle.requests(outcome.received)
        if len(got) < len(meant):
            wrong.append(f"{len(meant)} requests were meant, {len(got)} forwarded; answered {outcome.statuses}")
        self._note("request", packets, wrong)

    async def answer(self, data: bytes) -> None:
        if OUT_OF_SCOPE.search(data) or not data:
            return
        method = self.answering.dice.choice((b"GET", b"GET", b"POST", b"HEAD"))
        packets = self.answering.packets(data)
        lines = Lines(self.rigs[0])
        connection = Connection(cast(Any, lines))
        pipe = Echo(lines.loop, self.rigs[0])
        pipe.plug(connection)
        asked = b"%b / HTTP/1.1\r\n\r\n" % method
        waiter = connection.send(method, asked, b"", Terms(None, 1 << 20))
        for packet in packets:
            pipe.deliver(packet)
        await asyncio.sleep(0)
        kept = lines.take() is connection and connection.usable
        closed = not waiter.done
        pipe.hang_up()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.tally.answers += 1
        heard = waiter.answered
        self._note("answer", [method, *packets], self._wrong(data, method, heard, closed=closed, kept=kept))

    def _wrong(self, data: bytes, method: bytes, heard: Answer | None, *, closed: bool, kept: bool) -> list[str]:
        meant = oracle.answer(data, method, closed=closed)
        wrong: list[str] = []
        if heard is None:
            return [f"not handed on: {meant}"] if meant and meant.plain else []
        if heard.stream is not None:
            # too long to be held: where it ends is not known yet
            return []
        self.tally.handed_on += 1
        if meant is None or (heard.status, heard.body) != (meant.status, meant.body):
            wrong.append(f"handed on {heard.status} {heard.body!r} for {meant}")
        elif kept and data[meant.end :].strip(b"\r\n"):
            wrong.append(f"kept with {data[meant.end :]!r} unread")
        if re.search(rb"[\0\r\n]|\r\n[ \t]", (heard.block or b"").replace(b"\r\n", b"")):
            wrong.append(f"a header that injects: {heard.block!r}")
        return wrong

    def _note(self, kind: str, packets: list[bytes], wrong: list[str]) -> None:
        if wrong:
            self.tally.findings.append((kind, packets, wrong))


def keep(folder: Path, tally: Tally) -> None:
    """Write findings down, by their content."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, packets, _wrong in tally.findings:
        data = b"".join(packets)
        (folder / f"{hashlib.sha256(data).hexdigest()[:12]}.{kind}").write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, help="a folder for findings")
    told = parser.parse_args()

    async def story() -> Tally:
        fuzzer = Fuzzer(told.seed)
        began = time.monotonic()
        while time.monotonic() - began < told.seconds and len(fuzzer.tally.findings) < 20:
            for _ in range(200):
                await fuzzer.step()
        return fuzzer.tally

    began = time.monotonic()
    tally = virtual_clock.run(story(), io_grace_s=0, real_s_max=float("inf"))
    took_s = time.monotonic() - began
    for kind, packets, wrong in tally.findings:
        print(kind, packets, *wrong, sep="\n    ")
    if told.keep:
        keep(told.keep, tally)
    print(
        f"seed {told.seed}: {tally.executions} executions, {tally.executions / took_s:.0f}/s; "
        f"{tally.requests} dialogues with {tally.forwarded} requests meant, {tally.answers} answers, "
        f"{tally.handed_on} handed on; {len(tally.findings)} findings"
    )
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
