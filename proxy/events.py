"""What happened, told to whoever listens: the last of it is kept, and nobody who listens can hold up who tells.

publish --> the last EVENTS_MAX, and every listener --> journal, or the parent that has one
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from understudy.policies.events import Event

EVENTS_MAX = 1000

log = logging.getLogger("understudy.events")


class Events:
    """One process's events. With several workers each has its own, and the parent hears them all."""

    def __init__(self) -> None:
        self.recent: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._listeners: list[Callable[[Event], None]] = []

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Have `listener` told of every event from now on, on the loop, at once; it must not wait."""
        self._listeners.append(listener)

    def publish(self, event: Event) -> None:
        """Tell of an event. Called on the loop."""
        event = event.bounded()
        self.recent.append(event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("an event was not taken: %s", event)
