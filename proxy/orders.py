"""What operators have said, which holds until they say otherwise: also over a restart, where there is a state folder.

    admin port --a word on breakers, a pinned tier--> Orders --orders.json--> the next process, before its first call

What is kept is who says to have said it, and when: whoever comes to it at night asks both. A word on a breaker that is
not there any more is kept too, since a policy file may bring it back; `auto` takes a word away in any case.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from understudy.policies.forcing import Forced
from understudy.policies.tiering import Pin
from understudy.proxy.durable import replace_file

ORDERS_MAX = 1000
"""Breakers that words are kept for; the oldest are the first to go."""
FILE_BYTES_MAX = 1024 * 1024
FILE = "orders.json"

log = logging.getLogger("understudy.orders")


class Kept(msgspec.Struct, frozen=True):
    """What stands in the file."""

    breakers: list[Forced] = []
    tiers: list[Pin] = []


class Orders:
    """What holds now. Without a `path`, or where nothing can be written there, only until the process ends."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._forced: dict[tuple[str, str, str], Forced] = {}
        self._pinned: dict[str, Pin] = {}
        self._writing = asyncio.Lock()
        kept = _read(path) if path is not None else Kept()
        self.take(kept.breakers)
        self.pin(kept.tiers)

    @property
    def breakers(self) -> list[Forced]:
        """Words on breakers, each on one endpoint's; `auto` too, for who has read an older file."""
        return list(self._forced.values())

    @property
    def tiers(self) -> list[Pin]:
        """Pinned tiers."""
        return list(self._pinned.values())

    def take(self, words: list[Forced]) -> None:
        """These words hold from now on; `auto` ends one."""
        for word in words:
            self._forced.pop(word[:3], None)
            self._forced[word[:3]] = word
        while len(self._forced) > ORDERS_MAX:
            del self._forced[next(iter(self._forced))]

    def meant(self, word: Forced) -> list[Forced]:
        """The words that hold on what `word` is about, each with the mode, time and name of `word`."""
        same = [one for one in self._forced.values() if one[:2] == word[:2] and word.endpoint in ("", one.endpoint)]
        return [word._replace(endpoint=one.endpoint) for one in same if one.mode != "auto"]

    def pin(self, pins: list[Pin]) -> None:
        """These tiers are pinned from now on, or let go."""
        for pin in pins:
            self._pinned[pin.route] = pin

    async def keep(self) -> str:
        """Write down what holds, off the loop; why that failed, or ''."""
        if self._path is None:
            return "there is no state folder"
        path = self._path
        loop = asyncio.get_running_loop()
        async with self._writing:
            breakers = [word for word in self.breakers if word.mode != "auto"]
            kept = Kept(breakers, [pin for pin in self.tiers if pin.rank is not None])
            data = msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n"
            try:
                await loop.run_in_executor(None, _write, path, data)
            except OSError as error:
                why = error.strerror or type(error).__name__
                log.warning("what operators say is not kept over a restart: %s: %s", path, why)
                return why
        return ""


def orders_of(state: Path) -> Orders:
    """What operators have said to the sidecar of this state folder."""
    return Orders(state / FILE)


def order_text(word: Forced) -> str:
    """When it was said and by whom, for people."""
    when = datetime.fromtimestamp(word.since, UTC).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00")
    return f"since {when} UTC by {word.by or 'somebody'}" if word.since else ""


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)


def _read(path: Path) -> Kept:
    """What the file says; nothing where it can't be believed, which is told."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ValueError("too long")
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except (OSError, ValueError) as error:
        # msgspec's errors are ValueErrors too
        log.warning("what operators said before this start is not known: %s: %s", path, error)
        return Kept()
