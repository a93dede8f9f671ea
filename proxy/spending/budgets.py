"""The budgets of all routes of one process, and their book: what is spent here goes out, what all have spent comes in.

calls --charge--> Budgets of a route --twice a second, in a thread--> Book --> Budgets, here and in other processes
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from understudy.policies.events import WHOLE, Event
from understudy.policies.spend import Budgets, Crossed
from understudy.proxy.settings.settings import Settings
from understudy.proxy.spending.book import Book, Entry

TELL_S = 0.4
"""How often what was spent is told and heard: two of these, and a little, are how long processes take to agree."""

log = logging.getLogger("understudy.spend")


class Spending:
    """One process's worth. `wall` tells the time since the epoch, `drain` has what was noted charged."""

    def __init__(self, path: Path, *, wall: Callable[[], float], drain: Callable[[], None]) -> None:
        self._path = path
        self._wall = wall
        self._drain = drain
        self._book: Book | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._reads_anew = False
        self.budgets: dict[str, Budgets] = {}
        self.is_kept = True
        # who hears that a budget is nearly spent, spent, or begins anew
        self.tell: Callable[[Event], None] | None = None

    def obey(self, settings: Settings) -> None:
        """Have the budgets of these settings in force; what was spent goes on, and what others have is read."""
        now = self._wall()
        kept: dict[str, Budgets] = {}
        for route in settings.routes:
            spend = route.spend
            if spend.budgets:
                heart = kept[route.name] = self.budgets.get(route.name) or Budgets((), spend.callers_max, now)
                heart.obey(spend.budgets, spend.callers_max, now)
        self.budgets = kept
        # what is new among these may stand in the book already
        self._reads_anew = True
        if self._task is None:
            self.exchange()

    def charge(self, route: str, payer: bytes, tokens: int, cost: float) -> None:
        """A call of this route has cost so much."""
        heart = self.budgets.get(route)
        if heart is not None:
            heart.charge(self._wall(), payer, tokens, cost)

    # --- the book --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Tell and hear from now on."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep_telling())

    async def stop(self) -> None:
        """Write down what is left."""
        self._stopping.set()
        if self._task is not None:
            await self._task
        self.exchange()
        if self._book is not None:
            self._book.close()

    async def _keep_telling(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TELL_S)
            added = self._added()
            self._heard(added, await loop.run_in_executor(None, self._asked, added, self._wall()))
            self._publish()

    def _publish(self) -> None:
        """What has become of budgets since the last time; what was spent when we began is told, too."""
        now = self._wall()
        for route, heart in self.budgets.items():
            for crossed in heart.crossed(now):
                event = crossing(now, route, crossed)
                (log.info if crossed.stage == "free" else log.warning)("%s", event.detail)
                if self.tell is not None:
                    self.tell(event)

    def exchange(self) -> None:
        """Tell and hear now, and wait for it."""
        added = self._added()
        self._heard(added, self._asked(added, self._wall()))

    def _added(self) -> list[Entry]:
        self._drain()
        return [(route, each) for route, heart in self.budgets.items() for each in heart.fresh()]

    def _asked(self, added: list[Entry], now: float) -> list[Entry] | None:
        """What the book says, once `added` is written down; None where it could not be. Not by two at once."""
        try:
            if self._book is None:
                self._book = Book(self._path)
            anew, self._reads_anew = self._reads_anew, False
            return self._book.exchange(added, now, anew=anew)
        except (OSError, sqlite3.Error) as error:
            if self.is_kept:
                log.error("what is spent can't be written down, and is only known here: %s", error)
            return None

    def _heard(self, added: list[Entry], told: list[Entry] | None) -> None:
        self.is_kept = told is not None
        of: dict[str, list[Entry]] = {}
        for entry in added if told is None else told:
            of.setdefault(entry[0], []).append(entry)
        for route, entries in of.items():
            heart = self.budgets.get(route)
            if heart is None:
                continue
            sums = [each for _, each in entries]
            if told is None:
                heart.take_back(sums)
            else:
                heart.hear(sums)


def crossing(now: float, route: str, crossed: Crossed) -> Event:
    """For the journal, and for alerts: a tier story, since it says who will answer from now on. Nobody is named."""
    rules, stage, ends = crossed
    whose = "a caller's" if rules.each == "caller" else "the"
    what = f"{whose} budget {rules.name} for the {rules.window} of route {route}"
    if stage == "free":
        detail = f"{what} has something left again"
    elif stage == "low":
        moves = f"calls go to {', '.join(rules.cheaper)} first" if rules.cheaper else "nothing is moved"
        detail = f"{what} is nearly spent ({rules.soft_share:.0%}): {moves}"
    else:
        detail = f"{what} is spent: {'calls are refused until its window ends' if rules.hard else 'it is only told of'}"
    facts = {
        "route": route,
        "budget": rules.name,
        "each": rules.each,
        "window": rules.window,
        "ends": str(ends),
        "refuses": "yes" if stage == "spent" and rules.hard else "no",
    }
    return Event(now, "tier", WHOLE, f"budget_{stage}", detail, facts)
