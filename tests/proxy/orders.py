"""What the tests of the order share: two layers as they are and swapped, and which pairs have been."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from understudy.policies.coalesce import Flights, coalesce
from understudy.policies.deadline import Deadline
from understudy.policies.service import Service
from understudy.proxy.settings import settings

TIMES = Deadline(10.0, 1.0)
SHOWN: set[tuple[str, str]] = set()

Test = TypeVar("Test", bound=Callable[..., Any])
Policy = Callable[[Service], Service]


def shows(outer: str, inner: str) -> Callable[[Test], Test]:
    """The test shows what becomes of these two in the other order."""

    def noted(test: Test) -> Test:
        SHOWN.add((outer, inner))
        return test

    return noted


def in_both_orders(outer: Policy, inner: Policy, service: Service) -> tuple[Service, Service]:
    """As it is, and swapped."""
    return outer(inner(service)), inner(outer(service))


def now() -> float:
    return asyncio.get_running_loop().time()


def sharing() -> Policy:
    heart = Flights(settings.Coalesce())
    return lambda service: coalesce(service, heart, TIMES, clock=now)
