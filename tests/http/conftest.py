"""Dialogues run twice: on the virtual clock's plain loop, and on uvloop, which is what the sidecar runs on."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.real_clock(within_s=60.0))])
def either_loop(request: pytest.FixtureRequest) -> str:
    """Use it in dialogues that wait for nothing but bytes."""
    return request.param
