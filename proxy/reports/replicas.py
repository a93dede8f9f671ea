"""What `/metrics` says of replicas that share hints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.proxy.control.wire import Family

REPLICA_METRICS = {
    "understudy_replicas_alive": "Other replicas whose pages are read from Redis",
    "understudy_replicas_reached": "1 while the Redis that replicas share can be reached",
    "understudy_replicas_total": "Pages read, written and malformed, times Redis failed, hints passed on, events noted",
}


def replica_families(alive: int, results: Mapping[str, int], *, is_reached: bool) -> list[Family]:
    """The families of one process that shares."""
    names = list(REPLICA_METRICS)
    base = names[2].removesuffix("_total")
    return [
        (names[0], "gauge", REPLICA_METRICS[names[0]], [(names[0], {}, float(alive))]),
        (names[1], "gauge", REPLICA_METRICS[names[1]], [(names[1], {}, float(is_reached))]),
        (
            base,
            "counter",
            REPLICA_METRICS[names[2]],
            [(names[2], {"result": word}, float(count)) for word, count in results.items()],
        ),
    ]
