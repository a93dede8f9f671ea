"""Remember what filters let through: worked out once for what never changes, and only carried on for what grows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from understudy.indexes.conditions import Condition
from understudy.indexes.faults import UnknownFilter
from understudy.indexes.filters import compile_filter
from understudy.indexes.points import key_id
from understudy.indexes.records import Record, payload_of
from understudy.indexes.vectors import Gathered, Mask

MASKS_MAX: Final = 64
FILTER_BYTES_MAX: Final = 2**20


class Masks:
    """The last MASKS_MAX masks, by their filters' keys. Safe from any thread."""

    def __init__(self) -> None:
        self._masks: OrderedDict[bytes, Mask] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._masks)

    def peek(self, key: bytes) -> Mask | None:
        """The mask of this key, if it is remembered."""
        return self._masks.get(key)

    def get(self, key: bytes, work_out: Callable[[], Mask]) -> Mask:
        """The mask of this key, worked out if it is not remembered."""
        mask = self._masks.get(key)
        if mask is None:
            mask = work_out()
        self.put(key, mask)
        return mask

    def put(self, key: bytes, mask: Mask) -> None:
        """Remember a mask, and forget the one that was not asked for longest."""
        with self._lock:
            self._masks[key] = mask
            self._masks.move_to_end(key)
            while len(self._masks) > MASKS_MAX:
                self._masks.popitem(last=False)


class Gatherings:
    """Rows gathered for filters that are asked again and again, within `bytes_max`. Safe from any thread.

    One that finds no room has to ask twice before it takes another's: filters asked by turns that do not fit together
    would only be gathered over and over.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_held = 0
        self._bytes_max = bytes_max
        self._kept: OrderedDict[tuple[str, bytes], Gathered | None] = OrderedDict()
        self._wanting: tuple[str, bytes] | None = None
        self._lock = threading.Lock()

    def get(self, key: tuple[str, bytes], due_bytes: int, gather: Callable[[], Gathered | None]) -> Gathered | None:
        """What is gathered under `key`, gathered now if there is room for its `due_bytes`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            if due_bytes > self._bytes_max:
                return None
            if self.bytes_held + due_bytes > self._bytes_max and self._wanting != key:
                self._wanting = key
                return None
        gathered = gather()
        with self._lock:
            self._kept[key] = gathered
            self.bytes_held = sum(each.matrix.nbytes for each in self._kept.values() if each is not None)
            while self.bytes_held > self._bytes_max or len(self._kept) > MASKS_MAX:
                _, oldest = self._kept.popitem(last=False)
                self.bytes_held -= 0 if oldest is None else oldest.matrix.nbytes
        return gathered


def mask_of_tail(masks: Masks, filter: object, records: Sequence[Record], count: int) -> Mask:
    """Which of the first `count` records a filter lets through; of those seen before it is remembered.

    `records` may only ever grow. Raises UnknownFilter.
    """
    key = filter_key(filter)
    known = masks.peek(key)
    done = 0 if known is None else len(known)
    if known is None or done < count:
        passes = test_of(filter)
        more = np.fromiter(map(passes, records[done:count]), np.bool_, count - done)
        known = more if known is None else np.concatenate([known, more])
    masks.put(key, known)
    return known[:count]


def test_of(filter: object) -> Callable[[Record], bool]:
    """Whether a record passes a filter: Qdrant's JSON or a Condition. Raises UnknownFilter."""
    if isinstance(filter, Condition):
        condition = filter
        return lambda record: condition.passes(
            key_id(record.key), payload_of(record.payload), record.text if condition.reads_text else ""
        )
    looked_at: list[Record] = []
    passes = compile_filter(filter, has_vector=lambda _id, name: name in looked_at[0].vectors)

    def test(record: Record) -> bool:
        # records are tested one after the other, by whoever has asked for this test
        looked_at[:] = (record,)
        return passes(key_id(record.key), payload_of(record.payload))

    return test


def is_no_filter(filter: object) -> bool:
    """Whether a filter lets everything through without being looked at."""
    return filter is None or filter == {}


def filter_key(filter: object) -> bytes:
    """What a filter is remembered by. Raises UnknownFilter if it is not JSON, or too large."""
    if isinstance(filter, Condition):
        return filter.key
    try:
        key = msgspec.json.encode(filter)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnknownFilter(f"it is not JSON: {error}") from error
    if len(key) > FILTER_BYTES_MAX:
        raise UnknownFilter(f"it has {len(key)} bytes, more than {FILTER_BYTES_MAX}")
    return key
