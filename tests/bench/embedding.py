"""What the local model costs beside a bare ONNX Runtime session: `python -m tests.bench.embedding`.

    one question     tokenise and run, by hand and through our Embedder and Batcher; CPU time, interleaved
    64 at once       questions per CPU second through the Batcher, and in loops of bare sessions with as many threads:
                     what either reaches on the same cores; interleaved, and by wall clock beside it
    bulk             how late the event loop's turn was while 512 passages were embedded, and what of it was our own
                     work; the rest is other programs' (see `watched`)
    int8             recall@10 against fp32 on SQuAD beside the checkout, a sample of its questions over all passages

Both sides run the same graph on the same texts, one text a run: on a CPU an int8 vector must not depend on its company.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from tokenizers import Tokenizer

from tests.bench.extractive import SQUAD, squad
from tests.bench.watched import Lateness, read, watch
from understudy.models.batcher import Batcher
from understudy.models.built import built
from understudy.models.embedder import Embedder, load, load_variant
from understudy.models.runtime import open_session
from understudy.proxy.server import TURN_S

ONE_SHARE_MAX = 1.2
MANY_SHARE_MIN = 0.9
STALL_S_MAX = 0.020
DRIFT_MAX = 0.002
AT_ONCE = 64
K = 10


class Bare:
    """A session and a tokeniser, used as somebody would who has read ONNX Runtime's first page."""

    def __init__(self, cache: Path) -> None:
        manifest = built(cache, "int8")
        self._tokenizer: Any = Tokenizer.from_file(str(manifest.tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(manifest.tokens_max)
        self._session = open_session(manifest.file, "cpu")

    def embed(self, text: str) -> Any:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        return self._session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]


def one_question(bare: Bare, embedder: Embedder, questions: Sequence[str], rounds: int) -> tuple[float, float, float]:
    """CPU milliseconds of one question: bare, through the Embedder, and through the Batcher's thread."""
    loop = uvloop.new_event_loop()
    batcher = Batcher(embedder)

    async def through(texts: Sequence[str]) -> None:
        for text in texts:
            await batcher.embed([text], until=loop.time() + 60)

    ways: list[Callable[[Sequence[str]], object]] = [
        lambda texts: [bare.embed(text) for text in texts],
        lambda texts: [embedder.embed([text]) for text in texts],
        lambda texts: loop.run_until_complete(through(texts)),
    ]
    times: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for way, taken in zip(ways, times, strict=True):
            began = time.process_time()
            way(questions)
            # the first round pays for allocations
            if number:
                taken.append(1e3 * (time.process_time() - began) / len(questions))
    loop.run_until_complete(batcher.close())
    loop.close()
    bare_ms, own_ms, batched_ms = map(statistics.median, times)
    return bare_ms, own_ms, batched_ms


def many_questions(
    bare: Bare, embedder: Embedder, questions: Sequence[str], threads: int, rounds: int
) -> tuple[float, float]:
    """What the Batcher reaches of the bare loops' questions per CPU second, and per second of the clock, with as many
    threads: medians of rounds. On a busy machine only the first says something."""
    loop = uvloop.new_event_loop()
    batcher = Batcher(embedder, workers=threads)
    pool = ThreadPoolExecutor(threads)

    async def through() -> None:
        await asyncio.gather(*(batcher.embed([text], until=loop.time() + 60) for text in questions))

    def timed(work: Callable[[], object]) -> tuple[float, float]:
        began, cpu_began = time.perf_counter(), time.process_time()
        work()
        return time.process_time() - cpu_began, time.perf_counter() - began

    shares: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        ours = timed(lambda: loop.run_until_complete(through()))
        theirs = timed(lambda: list(pool.map(bare.embed, questions)))
        if number:
            shares.append((theirs[0] / ours[0], theirs[1] / ours[1]))
    pool.shutdown()
    loop.run_until_complete(batcher.close())
    loop.close()
    return statistics.median(cpu for cpu, _ in shares), statistics.median(wall for _, wall in shares)


def stalls(embedder: Embedder, passages: Sequence[str], told: Path) -> list[Lateness]:
    """The times that the loop's turn was late while passages were embedded."""
    loop = uvloop.new_event_loop()
    batcher = Batcher(embedder)
    # as in the sidecar
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    watch(loop, told)
    loop.run_until_complete(batcher.embed(passages, kind="document", until=loop.time() + 600))
    loop.run_until_complete(batcher.close())
    loop.close()
    sys.setswitchinterval(before_s)
    return read(told)


def drift(cache: Path, questions: int) -> tuple[float, float]:
    """Recall@10 of fp32 and of int8, passage by question, on SQuAD."""
    passages, asked = squad(questions)
    texts = [text for _, text in passages]
    places = {text: number for number, text in enumerate(texts)}
    right = np.array([places[one.passage] for one in asked])
    recalls: list[float] = []
    for variant in ("fp32", "int8"):
        embedder = load_variant(None, cache, variant)
        scores = embedder.embed([one.question for one in asked]) @ embedder.embed(texts, "document").T
        own = scores[np.arange(len(asked)), right][:, None]
        recalls.append(float(((scores > own).sum(axis=1) < K).mean()))
    return recalls[0], recalls[1]


def questions_for(count: int) -> list[str]:
    """Questions of the length that people ask, without any data beside the checkout."""
    path = Path(__file__).parents[1] / "data" / "knowledge_questions.jsonl"
    lines = [json.loads(line)["question"] for line in path.read_text("utf-8").splitlines()]
    return [lines[number % len(lines)] for number in range(count)]


def main() -> int:
    """Print each figure beside its bar; 1 when one is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--drift", type=int, default=0, metavar="QUESTIONS", help="compare int8 with fp32 on SQuAD")
    parser.add_argument("--keep", type=Path, help="a folder to keep the built model in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cache = arguments.keep or Path(scratch)
        embedder = load(None, cache, "cpu")
        kept = timed_parts(Bare(cache), embedder, arguments.rounds)
        late = stalls(embedder, [" ".join(questions_for(8))] * 512, Path(scratch) / "lateness")
        late_ms, own_ms = (max((of(each) for each in late), default=0.0) for of in (_late_ms, _own_ms))
        print(f"loop late by at most {late_ms:.1f} ms in bulk, {own_ms:.1f} of our own, bar {1e3 * STALL_S_MAX:.0f}")
        kept &= own_ms <= 1e3 * STALL_S_MAX
        if arguments.drift and SQUAD.is_dir():
            full, quick = drift(cache, arguments.drift)
            kept &= abs(full - quick) <= DRIFT_MAX
            print(f"recall@{K} on SQuAD: fp32 {full:.4f}, int8 {quick:.4f}, bar {DRIFT_MAX} apart")
    return 0 if kept else 1


def timed_parts(bare: Bare, embedder: Embedder, rounds: int) -> bool:
    """Print the figures of time; whether all are within their bars."""
    bare_ms, own_ms, batched_ms = one_question(bare, embedder, questions_for(40), rounds)
    share = batched_ms / bare_ms
    print(f"one question: bare {bare_ms:.2f} ms CPU, Embedder {own_ms:.2f}, through the Batcher {batched_ms:.2f}")
    print(f"  {share:.2f} x, bar {ONE_SHARE_MAX}")
    shares = {threads: many_questions(bare, embedder, questions_for(AT_ONCE), threads, rounds) for threads in (1, 2)}
    for threads, (reached, by_wall) in shares.items():
        print(f"{AT_ONCE} at once, {threads} thread(s): {reached:.2f} of the bare loops ({by_wall:.2f} by the clock)")
    print(f"  bar {MANY_SHARE_MIN}")
    reached = min(cpu for cpu, _ in shares.values())
    return share <= ONE_SHARE_MAX and reached >= MANY_SHARE_MIN


def _late_ms(lateness: Lateness) -> float:
    return lateness.late_ms


def _own_ms(lateness: Lateness) -> float:
    return lateness.own_ms


if __name__ == "__main__":
    sys.exit(main())
