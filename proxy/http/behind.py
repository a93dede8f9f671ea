"""Callers who take less than they are sent: what is kept for them has a bound together, and so has each one's time.

    buffer full --> BEHIND --it was taken--> forgotten
                      |
                      +--took too little for too long, or was behind for longest when too much was kept--> cut

Only who has a full buffer is looked at. A stream whose reader waits for the upstream has an empty one.
"""

from __future__ import annotations

from typing import Protocol

from understudy.proxy.settings.settings import Limits


class Reader(Protocol):
    """What is asked of a door."""

    @property
    def unsent_bytes(self) -> int: ...
    def abort(self) -> None: ...


class _Kept:
    """Since when a reader is behind, the most that was kept for it meanwhile, and what it counts for in the sum."""

    __slots__ = ("counted_bytes", "most_bytes", "since")

    def __init__(self, since: float, unsent_bytes: int) -> None:
        self.since = since
        self.most_bytes = self.counted_bytes = unsent_bytes


class Behind:
    """The readers who are behind, the longest first; `cut` counts those who were let go."""

    __slots__ = ("_kept_bytes", "_readers", "cut")

    def __init__(self) -> None:
        self._readers: dict[Reader, _Kept] = {}
        self._kept_bytes = 0
        self.cut = 0

    def __len__(self) -> int:
        return len(self._readers)

    def note(self, reader: Reader, now: float, limits: Limits) -> None:
        """Its buffer is full. A sum is kept: to add up a thousand readers for each that falls behind takes 0.1 ms."""
        self.forget(reader)
        kept = self._readers[reader] = _Kept(now, reader.unsent_bytes)
        self._kept_bytes += kept.counted_bytes
        if self._kept_bytes > limits.unsent_bytes_max:
            self._keep_bound(limits)

    def forget(self, reader: Reader) -> None:
        """It has caught up, or is gone."""
        kept = self._readers.pop(reader, None)
        if kept is not None:
            self._kept_bytes -= kept.counted_bytes

    def sweep(self, now: float, limits: Limits) -> None:
        """Cut who takes too little: idle_s is given, and each read_bytes_per_s_min bytes taken buy a second more."""
        if not self._readers:
            return
        self._keep_bound(limits)
        for reader, kept in list(self._readers.items()):
            taken_bytes = kept.most_bytes - kept.counted_bytes
            if now - kept.since > limits.idle_s + taken_bytes / limits.read_bytes_per_s_min:
                self._cut(reader)

    def _keep_bound(self, limits: Limits) -> None:
        """Look at each again, then cut who has been behind for longest: who reads at all is not behind for long."""
        self._kept_bytes = 0
        for reader, kept in self._readers.items():
            # a pause takes a moment to reach the source, so that there may be more than there was
            kept.counted_bytes = reader.unsent_bytes
            kept.most_bytes = max(kept.most_bytes, kept.counted_bytes)
            self._kept_bytes += kept.counted_bytes
        for reader in list(self._readers):
            if self._kept_bytes <= limits.unsent_bytes_max:
                return
            self._cut(reader)

    def _cut(self, reader: Reader) -> None:
        self.forget(reader)
        self.cut += 1
        reader.abort()
