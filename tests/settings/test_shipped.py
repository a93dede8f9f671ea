"""The policies that ship work with nothing set, and with everything."""

from __future__ import annotations

import pytest

from tests.settings.folders import SHIPPED, route_of, sound
from understudy.proxy.routes import Routes
from understudy.proxy.settings.reading import read_folder
from understudy.proxy.settings.settings import LocalTier, Settings, UpstreamTier

EVERYTHING = {
    "OPENAI_API_KEY": "sk-s3cret",
    "OPENAI_UPSTREAM_URL": "http://127.0.0.1:9000",
    "QDRANT_URL": "http://127.0.0.1:6333",
    "QDRANT_API_KEY": "s3cret",
    "UNDERSTUDY_LISTEN": "127.0.0.1:0",
    "UNDERSTUDY_ADMIN": "127.0.0.1:0",
}


def found(settings: Settings, path: bytes) -> str | None:
    hit = Routes(settings.routes).find(b"127.0.0.1:8787", 8787, path)
    return hit[0].name if hit else None


def test_with_nothing_set_the_local_tier_answers_everything_that_it_can():
    settings = sound(read_folder(SHIPPED, {}))
    assert settings.server.listen == "127.0.0.1:8787"
    assert settings.server.admin == "127.0.0.1:8788"
    for name in ("embeddings", "retrieval", "chat"):
        route = route_of(settings, name)
        assert [type(tier) for tier in settings.active(route)] == [LocalTier]
        assert settings.space_of(route) == settings.local.model
    assert settings.active(route_of(settings, "openai")) == ()


def test_with_everything_set_the_services_are_asked_first():
    reading = read_folder(SHIPPED, EVERYTHING)
    settings = sound(reading)
    assert settings.inactive == {}
    assert reading.warnings == ()
    for name in ("embeddings", "retrieval"):
        route = route_of(settings, name)
        assert [type(tier) for tier in settings.active(route)] == [UpstreamTier, LocalTier]
        assert settings.space_of(route) == "text-embedding-3-small"
    qdrant = route_of(settings, "retrieval").tiers[0]
    assert isinstance(qdrant, UpstreamTier)
    assert qdrant.headers["api-key"].reveal() == "s3cret"
    assert "s3cret" not in repr(settings)


def test_a_qdrant_without_a_key_is_sent_none():
    qdrant = route_of(sound(read_folder(SHIPPED, {"QDRANT_URL": "http://q"})), "retrieval").tiers[0]
    assert isinstance(qdrant, UpstreamTier)
    assert qdrant.headers == {}


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (b"/v1/embeddings", "embeddings"),
        (b"/v1/chat/completions", "chat"),
        (b"/v1/models", "openai"),
        (b"/v1/embeddings/x", "openai"),
        (b"/collections/docs/points/query", "retrieval"),
        (b"/", "retrieval"),
        (b"/v2", None),
    ],
)
def test_each_leg_of_an_application_finds_its_route(path: bytes, route: str | None):
    assert found(sound(read_folder(SHIPPED, {})), path) == route


def test_variables_set_to_nothing_are_as_good_as_not_set():
    settings = sound(read_folder(SHIPPED, dict.fromkeys(EVERYTHING, "")))
    assert [type(tier) for tier in settings.active(route_of(settings, "retrieval"))] == [LocalTier]


@pytest.mark.parametrize("own", ["http://127.0.0.1:8787", "http://localhost:8787", "http://127.0.0.1:8788"])
def test_the_applications_own_variables_in_our_environment_would_send_calls_round_in_circles(own: str):
    (fault,) = read_folder(SHIPPED, {"QDRANT_URL": own}).faults
    assert "this is the sidecar's own address" in str(fault)
