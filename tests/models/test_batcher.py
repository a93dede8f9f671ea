"""Many callers share one slow embedder: together where they meet, in turn otherwise, and nobody pays for the gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from understudy.models.batcher import Batcher
from understudy.models.embedder import Kind, Vectors
from understudy.models.errors import DeadlinePassed, ModelError, Overloaded
from understudy.models.space import Space

LATER_S = 100.0
LONG = "x" * 1000  # counts as 252 tokens, so that four of them fill a run


class Gated:
    """An embedder that says when it was asked, and answers when let; a text's vector is (length, first letter)."""

    def __init__(self) -> None:
        self.space = Space("fake", 2)
        self.batch_tokens_max = 1
        self.runs: list[tuple[Kind, list[str]]] = []
        self.faults: list[Exception] = []
        self.asked = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def embed(self, texts: Sequence[str], kind: Kind = "query") -> Vectors:
        self.runs.append((kind, list(texts)))
        self.asked.release()
        assert self.let.acquire(timeout=60)
        if self.faults:
            raise self.faults.pop()
        return np.array([[len(text), ord(text[0])] for text in texts], np.float32)

    async def is_asked(self) -> None:
        """Wait, on the loop, until one more run has reached a worker."""
        await asyncio.get_running_loop().run_in_executor(None, self.asked.acquire)

    def open(self) -> None:
        for _ in range(100):
            self.let.release()


@asynccontextmanager
async def opened(model: Gated, **options: int) -> AsyncIterator[Batcher]:
    batcher = Batcher(model, **options)
    try:
        yield batcher
    finally:
        model.open()
        await batcher.close()


def later() -> float:
    return asyncio.get_running_loop().time() + LATER_S


def start(batcher: Batcher, *texts: str, kind: Kind = "query", until: float | None = None) -> asyncio.Task[Vectors]:
    return asyncio.create_task(batcher.embed(texts, kind=kind, until=later() if until is None else until))


async def settle() -> None:
    """Let every callback that is ready have its turn."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_of_one_moment_share_a_run_and_each_gets_its_own_rows() -> None:
    model = Gated()
    model.open()
    async with opened(model) as batcher:
        one, two, three = await asyncio.gather(start(batcher, "a"), start(batcher, "bb", "ccc"), start(batcher, "dddd"))
    assert model.runs == [("query", ["a", "bb", "ccc", "dddd"])]
    assert one.tolist() == [[1, ord("a")]]
    assert two.tolist() == [[2, ord("b")], [3, ord("c")]]
    assert three.tolist() == [[4, ord("d")]]


async def test_an_idle_worker_starts_at_once_and_what_comes_meanwhile_goes_together_in_order() -> None:
    model = Gated()
    async with opened(model) as batcher:
        first = start(batcher, "a")
        await model.is_asked()
        rest = [start(batcher, text) for text in "bcd"]
        await settle()
        assert batcher.queued_texts == 3
        model.open()
        await asyncio.gather(first, *rest)
    assert [texts for _, texts in model.runs] == [["a"], ["b", "c", "d"]]


async def test_queries_and_documents_never_share_a_run_since_their_prefixes_differ() -> None:
    model = Gated()
    model.open()
    async with opened(model) as batcher:
        await asyncio.gather(start(batcher, "a"), start(batcher, "b", kind="document"), start(batcher, "c"))
    assert model.runs == [("query", ["a"]), ("document", ["b"]), ("query", ["c"])]


async def test_a_question_goes_before_the_next_piece_of_a_bulk_request_which_still_comes_back_in_order() -> None:
    model = Gated()
    async with opened(model) as batcher:
        bulk = start(batcher, *(f"{number}{LONG}" for number in range(9)), kind="document")
        await model.is_asked()
        question = start(batcher, "why")
        await settle()
        model.open()
        await question
        rows = await bulk
    assert [(kind, len(texts)) for kind, texts in model.runs] == [("document", 5), ("query", 1), ("document", 4)]
    assert rows[:, 1].tolist() == [ord(digit) for digit in "012345678"]


async def test_bulk_is_not_starved_by_a_stream_of_questions() -> None:
    model = Gated()
    async with opened(model, run_tokens_max=1) as batcher:
        first = start(batcher, "a")
        await model.is_asked()
        bulk = start(batcher, *"12345")
        questions = [start(batcher, "q") for _ in range(60)]
        await settle()
        model.open()
        await asyncio.gather(first, bulk, *questions)
    order = [texts[0] for _, texts in model.runs]
    assert order.index("1") <= 9
    assert order.index("5") < len(order) - 1


async def test_a_caller_who_has_gone_is_dropped_before_anything_is_spent_on_it() -> None:
    model = Gated()
    async with opened(model) as batcher:
        first = start(batcher, "a")
        await model.is_asked()
        gone, stays = start(batcher, "gone"), start(batcher, "stays")
        await settle()
        gone.cancel()
        await settle()
        assert batcher.queued_texts == 1
        model.open()
        await asyncio.gather(first, stays)
        assert gone.cancelled()
    assert [texts for _, texts in model.runs] == [["a"], ["stays"]]


async def test_a_caller_who_goes_during_its_run_takes_nobody_with_it() -> None:
    model = Gated()
    async with opened(model) as batcher:
        gone, stays = start(batcher, "gone"), start(batcher, "stays")
        await model.is_asked()
        gone.cancel()
        await settle()
        model.open()
        assert (await stays).tolist() == [[5, ord("s")]]


async def test_questions_that_die_as_the_worker_comes_free_do_not_leave_the_bulk_lane_asleep() -> None:
    model = Gated()
    async with opened(model) as batcher:
        first = start(batcher, "a")
        await model.is_asked()
        bulk, dead = start(batcher, *"12345"), start(batcher, "dead")
        await settle()
        # Within one turn of the loop: the question's future is settled, and its caller has not woken to say so.
        next(iter(batcher._interactive)).done.cancel()
        assert [(begin, end) for _, begin, end in batcher._next_pieces()] == [(0, 5)]
        bulk.cancel()
        model.open()
        await asyncio.gather(first, bulk, dead, return_exceptions=True)


async def test_the_rest_of_a_bulk_request_is_dropped_when_its_caller_goes() -> None:
    model = Gated()
    async with opened(model) as batcher:
        bulk = start(batcher, *[LONG] * 20)
        await model.is_asked()
        assert batcher.queued_texts == 15
        bulk.cancel()
        await settle()
        assert batcher.queued_texts == 0
    assert len(model.runs) == 1


async def test_a_full_queue_refuses_at_once_and_takes_again_when_there_is_room() -> None:
    model = Gated()
    async with opened(model, queue_texts_max=3) as batcher:
        running = start(batcher, "a")
        await model.is_asked()
        waiting = start(batcher, "b", "c")
        await settle()
        with pytest.raises(Overloaded, match="2 texts wait"):
            await batcher.embed(["d", "e"], until=later())
        fits = start(batcher, "d")
        await settle()
        assert batcher.queued_texts == 3
        model.open()
        await asyncio.gather(running, waiting, fits)
        assert batcher.queued_texts == 0
        assert (await batcher.embed(["f", "g", "h"], until=later())).shape == (3, 2)


async def test_a_deadline_already_passed_costs_nothing() -> None:
    model = Gated()
    async with opened(model) as batcher:
        with pytest.raises(DeadlinePassed):
            await batcher.embed(["a"], until=asyncio.get_running_loop().time())
    assert model.runs == []


@pytest.mark.real_clock("asyncio")
async def test_whoever_waits_past_its_deadline_is_told_so_and_is_never_run() -> None:
    model = Gated()
    async with opened(model) as batcher:
        running = start(batcher, "a")
        await model.is_asked()
        late = start(batcher, "late", until=asyncio.get_running_loop().time() + 0.01)
        with pytest.raises(DeadlinePassed):
            await late
        assert issubclass(DeadlinePassed, TimeoutError)
        assert batcher.queued_texts == 0
        model.open()
        await running
    assert [texts for _, texts in model.runs] == [["a"]]


async def test_the_deadline_is_read_on_the_clock_that_was_given() -> None:
    model = Gated()
    model.open()
    batcher = Batcher(model, clock=lambda: 5.0)
    assert (await batcher.embed(["a"], until=6.0)).shape == (1, 2)
    with pytest.raises(DeadlinePassed):
        await batcher.embed(["a"], until=5.0)
    await batcher.close()


async def test_a_fault_reaches_every_caller_of_that_run_and_nobody_else() -> None:
    model = Gated()
    model.faults.append(ModelError("the card fell out"))
    async with opened(model) as batcher:
        hurt = [start(batcher, "a"), start(batcher, "b")]
        await model.is_asked()
        spared = start(batcher, "c")
        await settle()
        model.open()
        outcomes = await asyncio.gather(*hurt, return_exceptions=True)
        assert (await spared).shape == (1, 2)
    assert all(isinstance(outcome, ModelError) and "card" in str(outcome) for outcome in outcomes)
    assert outcomes[0] is not outcomes[1]


async def test_a_bulk_request_whose_first_piece_fails_is_not_run_further() -> None:
    model = Gated()
    model.faults.append(RuntimeError("a bug"))
    model.open()
    async with opened(model) as batcher:
        with pytest.raises(RuntimeError, match="a bug"):
            await batcher.embed([LONG] * 20, until=later())
        await settle()
        assert batcher.queued_texts == 0
    assert len(model.runs) == 1


async def test_two_workers_run_two_pieces_side_by_side() -> None:
    model = Gated()
    async with opened(model, workers=2) as batcher:
        bulk = start(batcher, *[LONG] * 8)
        await model.is_asked()
        await model.is_asked()
        assert len(model.runs) == 2
        model.open()
        assert (await bulk).shape == (8, 2)


async def test_a_device_that_takes_larger_batches_is_given_larger_pieces() -> None:
    model = Gated()
    model.batch_tokens_max = 16_384
    model.open()
    async with opened(model) as batcher:
        assert (await batcher.embed([LONG] * 65, until=later())).shape == (65, 2)
    assert [len(texts) for _, texts in model.runs] == [65]


async def test_no_texts_need_no_model() -> None:
    model = Gated()
    async with opened(model) as batcher:
        assert (await batcher.embed([], until=later())).shape == (0, 2)
    assert model.runs == []


async def test_closing_turns_the_waiting_away_and_waits_for_the_running() -> None:
    model = Gated()
    batcher = Batcher(model)
    running = start(batcher, "a")
    await model.is_asked()
    waiting = start(batcher, "b")
    await settle()
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(ModelError, match="closed"):
        await waiting
    assert not closing.done()
    model.open()
    await closing
    assert (await running).shape == (1, 2)
    with pytest.raises(ModelError, match="closed"):
        await batcher.embed(["c"], until=later())
