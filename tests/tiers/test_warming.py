"""A call that comes while the local tier is being loaded waits for it, as long as it has time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kit.weather import call_of
from understudy.policies.service import Refused
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.settings import Local, LocalTier
from understudy.proxy.tiers import knowing as module
from understudy.proxy.tiers.local import Knowing, local_tier


@pytest.mark.real_clock
async def test_a_call_waits_for_the_loading_and_not_past_its_own_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import threading

    release = threading.Event()

    def slow_library(_folder: Path, _bytes_max: int, _knowing: Knowing) -> None:
        release.wait(30)
        raise module.IndexFault("no library here")

    def no_model(_local: Local, _cache: Path) -> None:
        raise module.ModelError("no model here")

    monkeypatch.setattr(module, "_library", slow_library)
    monkeypatch.setattr(module, "_model", no_model)
    known = Knowing()
    tier = local_tier(LocalTier(), space="s", dialect=DIALECTS["openai-embeddings"], knowing=known)
    now = asyncio.get_running_loop().time
    # callers are let in before it begins
    known.expect_load()
    early = call_of("embed", "x")
    early.until = now() + 30
    first = asyncio.ensure_future(tier(early))
    await asyncio.sleep(0.01)
    assert not first.done()
    loading = asyncio.ensure_future(known.load(Local(), models=tmp_path, collections=tmp_path))
    await asyncio.sleep(0)

    impatient = call_of("embed", "x")
    impatient.until = now() + 0.01
    with pytest.raises(Refused) as refused:
        await tier(impatient)
    assert refused.value.reason == "warming"

    patient = call_of("embed", "x")
    patient.until = now() + 30
    waiting = asyncio.ensure_future(tier(patient))
    await asyncio.sleep(0)
    assert not waiting.done()
    release.set()
    for one in (waiting, first):
        with pytest.raises(Refused) as refused:
            await one
        assert refused.value.reason == "no_local_model"
    await loading
    await known.close()
