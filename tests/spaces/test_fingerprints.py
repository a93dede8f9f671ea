"""Endpoints are measured now and then; one whose vectors have changed is not asked until they are as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.two_spaces import far, near
from understudy.policies.fingerprint import TEXTS
from understudy.policies.service import Answer, Call, Failed, Refused, Request, Service
from understudy.proxy.control.probing import measured_one
from understudy.proxy.settings.settings import (
    DeclaredSpace,
    Match,
    Probing,
    Route,
    Secret,
    Server,
    Settings,
    Spaces,
    UpstreamTier,
)
from understudy.proxy.spaces.fingerprints import FIRST_S, Fingerprints, Measuring, identity_of, measuring
from understudy.proxy.spaces.reembedding import Reembedding, Way


class Endpoint:
    """An embeddings endpoint whose model can be changed."""

    def __init__(self) -> None:
        self.model: Any = far
        self.asked: list[list[str]] = []
        self.is_down = False

    async def __call__(self, call: Call) -> Answer:
        if self.is_down:
            raise Failed("reset")
        asked = json.loads(call.request.body)
        self.asked.append(asked["input"])
        assert (call.request.path, asked["model"]) == (b"/v1/embeddings", "m")
        data = [{"index": n, "embedding": self.model(text).tolist()} for n, text in enumerate(asked["input"])]
        return Answer(200, [], json.dumps({"data": data, "model": "m"}).encode())


KEY = {"authorization": Secret("Bearer k")}


def route(**probing: Any) -> Route:
    return Route(
        name="e",
        match=Match(path="/v1/embeddings"),
        dialect="openai-embeddings",
        space="s",
        tiers=[UpstreamTier(name="up", url="http://a", headers=KEY)],
        spaces=Spaces(probing=Probing(**probing)),
    )


def one(endpoint: Endpoint, settings: Settings | None = None, name: str = "up", **probing: Any) -> Measuring:
    made = measuring(settings or Settings(), route(**probing), _tier(), name, endpoint, lambda: 0.0)
    assert made is not None
    return made


def _tier(**changed: Any) -> UpstreamTier:
    return UpstreamTier(**{"name": "up", "url": "http://a", "headers": KEY, **changed})


def all_of(path: Path | None = None, *, shown: bool = True) -> Fingerprints:
    ways = Reembedding()
    if shown:
        ways.knows("s", Way(b"/v1/embeddings", b"/v1/embeddings", "m"))
    return Fingerprints(ways, dice=lambda: 0.5, path=path)


async def reason_of(service: Service) -> str:
    call = Call(
        "embed", Request(b"POST", b"/v1/embeddings", [], b'{"input": ["x"], "model": "m"}', path=b"/v1/embeddings")
    )
    try:
        await service(call)
    except Refused as refused:
        return refused.reason
    return ""


async def test_a_model_changed_behind_its_name_is_quarantined_and_asked_again_once_it_is_back():
    endpoint, fingerprints = Endpoint(), all_of()
    service = fingerprints.watched(endpoint, one(endpoint), 0.0)
    told: list[tuple[str, str]] = []
    now = 0.0
    for endpoint.model in (far, far, near, near, near, far):
        now += 10_000.0
        told.append((await measured_one(fingerprints, now), await reason_of(service)))
    assert told == [
        ("first", ""),
        ("same", ""),
        ("changed", ""),
        ("quarantined", "quarantined"),
        ("changed", "quarantined"),
        ("back", ""),
    ]
    assert endpoint.asked[0] == list(TEXTS)
    (state,) = fingerprints
    assert state.results == {"first": 1, "same": 1, "changed": 2, "quarantined": 1, "back": 1}


async def test_a_sibling_with_another_model_is_found_out_by_the_spaces_own_baseline():
    well, odd, fingerprints = Endpoint(), Endpoint(), all_of()
    odd.model = near
    services = [
        fingerprints.watched(endpoint, one(endpoint, name=name), 0.0) for name, endpoint in (("a", well), ("b", odd))
    ]
    for now in (1e4, 1e4, 2e4, 2e4, 3e4, 3e4):
        await measured_one(fingerprints, now)
    assert [await reason_of(service) for service in services] == ["", "quarantined"]


async def test_reporting_only_says_it():
    endpoint, fingerprints = Endpoint(), all_of()
    service = fingerprints.watched(endpoint, one(endpoint, drift="report"), 0.0)
    for n, endpoint.model in enumerate((far, near, near)):
        await measured_one(fingerprints, 1e4 * (n + 1))
    assert [each.heart.state for each in fingerprints] == ["quarantined"]
    assert await reason_of(service) == ""


async def test_an_endpoint_is_measured_seldom_and_sooner_when_it_has_changed_or_failed():
    endpoint, fingerprints = Endpoint(), all_of()
    fingerprints.watched(endpoint, one(endpoint, every_s=3600.0), 0.0)
    (state,) = fingerprints
    assert FIRST_S < state.due_at < 2 * FIRST_S
    assert await measured_one(fingerprints, FIRST_S / 2) == ""
    assert await measured_one(fingerprints, 1000.0) == "first"
    assert state.due_at == pytest.approx(1000.0 + 3600.0)
    endpoint.model = near
    assert await measured_one(fingerprints, 5000.0) == "changed"
    assert state.due_at == pytest.approx(5000.0 + 360.0)
    endpoint.is_down = True
    assert await measured_one(fingerprints, 6000.0) == "failed"
    assert (state.due_at, state.heart.state) == (pytest.approx(6360.0), "suspected")


async def test_nobody_is_asked_before_callers_have_shown_how():
    endpoint, fingerprints = Endpoint(), all_of(shown=False)
    fingerprints.watched(endpoint, one(endpoint), 0.0)
    assert await measured_one(fingerprints, 1000.0) == ""
    assert endpoint.asked == []


async def test_the_baseline_outlives_a_restart_and_a_new_revision_begins_another(tmp_path: Path):
    path = tmp_path / "fingerprints.json"
    endpoint, first = Endpoint(), all_of(path)
    first.watched(endpoint, one(endpoint), 0.0)
    assert await measured_one(first, 1e4) == "first"
    first.save()
    endpoint.model = near
    again = all_of(path)
    again.watched(endpoint, one(endpoint), 0.0)
    assert await measured_one(again, 1e4) == "changed"
    # whoever has changed the model on purpose says so
    revised = Settings(server=Server(spaces={"s": DeclaredSpace(revision="2")}))
    again.watched(endpoint, one(endpoint, revised), 0.0)
    assert await measured_one(again, 2e4) == "first"
    path.write_text("[]")
    assert all_of(path).baselines == {}


def test_a_reload_goes_on_with_what_is_known_and_forgets_who_is_gone():
    endpoint, fingerprints = Endpoint(), all_of()
    fingerprints.watched(endpoint, one(endpoint), 0.0)
    (before,) = fingerprints
    before.heart.state = "suspected"
    fingerprints.watched(endpoint, one(endpoint), 50.0)
    (after,) = fingerprints
    assert (after.heart.state, after.due_at) == ("suspected", before.due_at)
    fingerprints.keep(set())
    assert list(fingerprints) == []


def test_only_endpoints_whose_key_is_ours_and_whose_space_is_named_are_measured():
    asked = Endpoint()
    assert measuring(Settings(), route(), _tier(headers={}), "up", asked, lambda: 0.0) is None
    assert measuring(Settings(), route(every_s=0), _tier(), "up", asked, lambda: 0.0) is None
    nameless = Route(name="e", match=Match(path="/"), dialect="openai-embeddings", tiers=[_tier()])
    assert measuring(Settings(), nameless, _tier(), "up", asked, lambda: 0.0) is None
    keyless = Route(name="e", match=Match(path="/"), dialect="tei", tiers=[_tier()], space="s")
    assert measuring(Settings(), keyless, _tier(headers={}), "up", asked, lambda: 0.0) is not None


def test_what_is_declared_of_a_space_is_its_identity():
    plain = identity_of(Settings(), "s")
    for declared in (DeclaredSpace(revision="2"), DeclaredSpace(dimensions=64), DeclaredSpace(query_prefix="q: ")):
        assert identity_of(Settings(server=Server(spaces={"s": declared})), "s") != plain
    assert identity_of(Settings(server=Server(spaces={"s": DeclaredSpace()})), "s") == plain
