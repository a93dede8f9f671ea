"""Many streams at once: what each costs in memory and CPU, and whether its tokens keep their distance.

    python -m tests.bench.streams [--streams 500] [--tokens 20] [--gap-s 0.5]

Upstream and caller are this process, so that one clock has sent and received every token. The same is measured without
the sidecar, in turns; CPU and memory are the sidecar's own, while times are as busy as the machine is.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from tests.kit.processes import Sidecar
from understudy.proxy.bench.processes import cpu_s, rss_bytes, tree

POLICIES = """
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}"}}
routes:
  - name: chat
    match: {{prefix: /v1}}
    dialect: openai-chat
    limit: {{concurrent: 4096}}
    tiers:
      - {{kind: upstream, name: first, url: "{url}", connections_max: 4096}}
      - {{kind: upstream, name: second, url: "{url}"}}
"""
BODY = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "Count."}]}'
ASKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n" + (
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"%d "}}]}\n\n'
DONE = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
_STAMP = re.compile(rb'"content":"([0-9]+) "')


@dataclass
class Seen:
    """What came of all streams of one run; times in ms."""

    first_ms: list[float] = field(default_factory=list[float])
    late_ms: list[float] = field(default_factory=list[float])
    """How long each token was on its way."""
    gap_added_ms: list[float] = field(default_factory=list[float])
    """By how much the distance of two tokens was another when they arrived."""
    chunks: int = 0


class Talker:
    """An upstream that says so many tokens, each with the moment at which it was said."""

    def __init__(self, tokens: int, gap_s: float) -> None:
        self._tokens = tokens
        self._gap_s = gap_s

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head)
                await reader.readexactly(int(found[1]) if found else 0)
                writer.write(HEAD)
                for _ in range(self._tokens):
                    await asyncio.sleep(self._gap_s)
                    _chunk(writer, TOKEN % time.perf_counter_ns())
                _chunk(writer, DONE)
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def _one(port: int, seen: Seen) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked_at = time.perf_counter_ns()
    writer.write(ASKED)
    before: tuple[int, int] | None = None
    held = b""
    while b"[DONE]" not in held:
        piece = await reader.read(65536)
        now = time.perf_counter_ns()
        if not piece:
            raise RuntimeError("a stream ended early")
        held = held[-256:].rpartition(b"\n\n")[2] + piece
        for stamp in _STAMP.findall(piece):
            said = int(stamp)
            seen.chunks += 1
            seen.late_ms.append((now - said) / 1e6)
            if before is None:
                seen.first_ms.append((now - asked_at) / 1e6)
            else:
                seen.gap_added_ms.append(abs((now - before[1]) - (said - before[0])) / 1e6)
            before = said, now
    writer.close()


async def _run(port: int, streams: int, seen: Seen) -> None:
    await asyncio.gather(*(_one(port, seen) for _ in range(streams)))


@dataclass
class Report:
    """Both runs, and what the sidecar used in its own."""

    through: Seen
    direct: Seen
    kib_per_stream: float
    us_per_chunk: float

    def text(self) -> str:
        rows = [
            ("CPU per chunk, µs", f"{self.us_per_chunk:.1f}"),
            ("memory per stream, KiB", f"{self.kib_per_stream:.1f}"),
            ("added to the first token, median ms", f"{_median(self.through.first_ms, self.direct.first_ms):.2f}"),
            ("added to a token, median ms", f"{_median(self.through.late_ms, self.direct.late_ms):.2f}"),
            ("distance of two tokens, p95 of what was added, ms", f"{p95(self.through.gap_added_ms):.2f}"),
            ("the same without the sidecar, ms", f"{p95(self.direct.gap_added_ms):.2f}"),
        ]
        return "\n".join(f"{name:<52}{value:>10}" for name, value in rows)


def _median(through: list[float], direct: list[float]) -> float:
    return statistics.median(through) - statistics.median(direct)


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[int(len(values) * 0.95)]


async def measure(streams: int, tokens: int, gap_s: float) -> Report:
    """Run it once directly and once through a sidecar of its own."""
    server = await asyncio.start_server(Talker(tokens, gap_s).answer, "127.0.0.1", 0, backlog=1024)
    upstream_port = server.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as name:
        folder = Path(name)
        (folder / "policies").mkdir()
        (folder / "policies" / "all.yaml").write_text(POLICIES.format(url=f"http://127.0.0.1:{upstream_port}"))
        sidecar = Sidecar(folder / "policies", folder / "state")
        await asyncio.to_thread(sidecar.start)
        try:
            direct, through = Seen(), Seen()
            await _run(upstream_port, streams, direct)
            # one first, so that what is loaded by a first call is loaded
            await _run(sidecar.port, 1, Seen())
            pids = tree(sidecar.pid)
            idle, cpu = sum(map(rss_bytes, pids)), cpu_s(pids)
            running = asyncio.ensure_future(_run(sidecar.port, streams, through))
            await asyncio.sleep(gap_s * tokens / 2)
            busy = sum(map(rss_bytes, pids))
            await running
            used = cpu_s(pids) - cpu
        finally:
            await asyncio.to_thread(sidecar.stop)
            server.close()
    return Report(through, direct, (busy - idle) / streams / 1024, used / max(1, through.chunks) * 1e6)


def main() -> None:
    """Measure, and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--streams", type=int, default=500)
    words.add_argument("--tokens", type=int, default=20)
    words.add_argument("--gap-s", type=float, default=0.5)
    given = words.parse_args()
    report = uvloop.run(measure(given.streams, given.tokens, given.gap_s))
    print(f"{given.streams} streams of {given.tokens} tokens, {given.gap_s:g} s apart")
    print(report.text())


if __name__ == "__main__":
    main()
