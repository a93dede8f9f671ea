"""What every tier must do, whatever it asks: a test module of a tier brings a Subject and awaits `check_tier`.

    async def test_it_does_what_every_tier_must(tmp_path): await check_tier(lambda: made(tmp_path))

The checks wait in real time, a few hundredths of a second each: mark the test `real_clock`. What `stall` holds up is
to stand still for longer than LATE_S_MAX, so that whoever had waited for it would be seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.proxy.http.stepping import Stepped, Steps

FRAMING = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive"}
TIME_S = 0.05
LATE_S_MAX = 10.0
GONE_S_MAX = 60.0
AT_ONCE = 20


@dataclass
class Subject:
    """A tier, and what a check has to know and to do about it.

    `call(n)` makes the n-th call, `belongs(n, answer)` asserts that an answer is that call's. `stall` makes everything
    behind the tier stand still until `resume`. `left_behind` counts what is still in hand for callers who have left.
    """

    service: Service
    call: Callable[[int], Call]
    belongs: Callable[[int, Answer], None]
    stall: Callable[[], None]
    resume: Callable[[], None]
    left_behind: Callable[[], int]
    odd_calls: Sequence[Call] = field(default_factory=list[Call])
    close: Callable[[], Awaitable[None]] | None = None


Make = Callable[[], Subject]


async def check_tier(make: Make) -> None:
    """All checks, each on a Subject of its own."""
    for check in (
        answers_say_where_they_come_from,
        nobody_needs_a_task_of_its_own,
        odd_calls_are_answered_refused_or_failed,
        nobody_waits_longer_than_until,
        who_is_late_already_is_told_at_once,
        who_leaves_leaves_nothing_behind,
        many_at_once_get_their_own_answers,
    ):
        subject = make()
        try:
            await check(subject)
        finally:
            subject.resume()
            if subject.close is not None:
                await subject.close()


async def answers_say_where_they_come_from(subject: Subject) -> None:
    answer = await subject.service(subject.call(0))
    subject.belongs(0, answer)
    assert answer.source
    assert not {name.lower() for name, _ in answer.headers} & FRAMING
    again = await subject.service(subject.call(0))
    # the caller may write on an answer's headers: they are nobody else's
    assert again.headers is not answer.headers


async def nobody_needs_a_task_of_its_own(subject: Subject) -> None:
    """The door steps a call by hand for as long as it can."""
    over = asyncio.Event()
    answers: list[Answer] = []

    async def asked() -> None:
        try:
            answers.append(await subject.service(subject.call(0)))
        finally:
            over.set()

    Stepped().start(asked(), Steps(asyncio.get_running_loop()))
    await over.wait()
    subject.belongs(0, answers[0])


async def odd_calls_are_answered_refused_or_failed(subject: Subject) -> None:
    for call in subject.odd_calls:
        call.until = now() + 5
        try:
            answer = await subject.service(call)
        except (Refused, Failed):
            continue
        assert 100 < answer.status < 600
        assert answer.source


async def nobody_waits_longer_than_until(subject: Subject) -> None:
    subject.stall()
    call = subject.call(0)
    call.until = now() + TIME_S
    assert await refused_or_failed(subject.service(call))
    assert now() < call.until + LATE_S_MAX
    subject.resume()
    await nothing_left(subject)
    subject.belongs(1, await subject.service(subject.call(1)))


async def who_is_late_already_is_told_at_once(subject: Subject) -> None:
    call = subject.call(0)
    call.until = now() - 1
    began = now()
    assert await refused_or_failed(subject.service(call))
    assert now() < began + LATE_S_MAX
    await nothing_left(subject)


async def who_leaves_leaves_nothing_behind(subject: Subject) -> None:
    subject.stall()
    tasks = [asyncio.ensure_future(subject.service(subject.call(n))) for n in range(AT_ONCE)]
    await asyncio.sleep(TIME_S)
    for task in tasks:
        task.cancel()
    came = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError | Refused) for each in came), came
    subject.resume()
    await nothing_left(subject)
    subject.belongs(1, await subject.service(subject.call(1)))


async def many_at_once_get_their_own_answers(subject: Subject) -> None:
    answers = await asyncio.gather(*(subject.service(subject.call(n)) for n in range(AT_ONCE)))
    for n, answer in enumerate(answers):
        subject.belongs(n, answer)
    await nothing_left(subject)


async def refused_or_failed(asked: Awaitable[Answer]) -> bool:
    try:
        await asked
    except (Refused, Failed):
        return True
    return False


async def nothing_left(subject: Subject) -> None:
    async with asyncio.timeout(GONE_S_MAX):
        while subject.left_behind():  # noqa: ASYNC110 - a tier tells nobody when the last of it is gone
            await asyncio.sleep(0.001)


def now() -> float:
    return asyncio.get_running_loop().time()
