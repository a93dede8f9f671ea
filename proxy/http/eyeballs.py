"""Try several addresses, a little apart, and keep the first that answers: happy eyeballs, RFC 8305 section 5.

    attempt 1 ------------------------------- lost: discarded
       250 ms    attempt 2 ------ connected: won
                    failed at once? the next begins at once

The staggering is our own, since uvloop's `create_connection` has none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

STAGGER_S = 0.25
"""How long an attempt is alone before the next one begins beside it (RFC 8305 section 8 proposes 250 ms)."""

Won = TypeVar("Won")


async def first_connected(
    addresses: Sequence[str],
    attempt: Callable[[str], Coroutine[None, None, Won]],
    discard: Callable[[Won], None],
    *,
    stagger_s: float = STAGGER_S,
) -> tuple[Won, str]:
    """What came of the first attempt to succeed, and its address. Raises OSError when none does.

    What an attempt made that had lost already is given to `discard`.
    """
    if len(addresses) == 1:
        # the usual case costs no task
        return await attempt(addresses[0]), addresses[0]
    to_try = deque(addresses)
    errors: list[OSError] = []
    under_way: dict[asyncio.Task[Won], str] = {}

    def discarded(loser: asyncio.Task[Won]) -> None:
        if not loser.cancelled() and loser.exception() is None:
            discard(loser.result())

    try:
        while to_try or under_way:
            if to_try:
                address = to_try.popleft()
                under_way[asyncio.create_task(attempt(address))] = address
            wait_s = stagger_s if to_try else None
            done, _ = await asyncio.wait(under_way, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for one in sorted(done, key=list(under_way).index):
                address = under_way.pop(one)
                try:
                    return one.result(), address
                except OSError as error:
                    errors.append(error)
    finally:
        for loser in under_way:
            # also one that succeeded in the same moment as the winner
            loser.add_done_callback(discarded)
            loser.cancel()
    raise _most_telling(errors)


def _most_telling(errors: Sequence[OSError]) -> OSError:
    """A host that refuses is there, which says more than a network that isn't."""
    return next((error for error in errors if isinstance(error, ConnectionRefusedError)), errors[-1])
