"""What a journal keeps: the nouns, for those who speak of it and do not open it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from understudy.policies.events import Event

FILE = "journal.sqlite"
ENTRIES_MAX = 1000
"""How many are told at once."""


class Entry(NamedTuple):
    """An event, what was measured when it happened, and what had been changed in the half hour before it."""

    event: Event
    numbers: Mapping[str, float] = {}
    changes: tuple[str, ...] = ()


class Known(NamedTuple):
    """A value that was seen of something, and when last it became so."""

    component: str
    kind: str
    value: str
    at: float


class Tried(NamedTuple):
    """How often an action was tried against a cause, and how often it helped."""

    cause: str
    action: str
    tried: int
    helped: int
