"""Who claims a request: the table against a slow reading of the rules, and its cost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.proxy.routes import Routes, Table, bare_host
from understudy.proxy.settings.settings import LocalTier, Match, Route

Claims = list[tuple[Match, str]]


def table(**claims: Match) -> Table[str]:
    return Table((match, name) for name, match in claims.items())


def test_a_prefix_ends_where_a_segment_ends():
    found = table(v1=Match(prefix="/v1"))
    assert found.find(None, 80, b"/v1") == ("v1", b"/v1")
    assert found.find(None, 80, b"/v1/") == ("v1", b"/v1/")
    assert found.find(None, 80, b"/v1/x") == ("v1", b"/v1/x")
    for path in (b"/v1x", b"/v", b"/", b"", b"v1", b"//v1", b"/V1"):
        assert found.find(None, 80, path) is None


def test_an_exact_path_goes_before_a_prefix_and_a_long_prefix_before_a_short_one():
    found = table(all=Match(prefix="/"), v1=Match(prefix="/v1/"), deep=Match(prefix="/v1/a/b"), at=Match(path="/v1/a"))
    paths = {b"/": "all", b"*": "all", b"/v1": "v1", b"/v1/a": "at", b"/v1/a/": "v1", b"/v1/a/b/c": "deep"}
    assert {path: found.find(None, 80, path) for path in paths} == {path: (name, path) for path, name in paths.items()}


def test_what_is_said_of_one_host_or_port_goes_before_what_is_said_of_all():
    found = table(
        all=Match(prefix="/v1/long"),
        port=Match(prefix="/", port=81),
        host=Match(prefix="/", host="Rag.Example"),
        both=Match(path="/v1", host="rag.example", port=81),
    )
    assert found.find(b"other", 80, b"/v1/long") == ("all", b"/v1/long")
    assert found.find(b"other", 81, b"/v1/long") == ("port", b"/v1/long")
    assert found.find(b"RAG.example:81", 81, b"/v1/long") == ("host", b"/v1/long")
    assert found.find(b"rag.example.", 81, b"/v1") == ("both", b"/v1")
    assert found.find(b"rag.example", 80, b"/v1") == ("host", b"/v1")
    assert found.find(b"other", 80, b"/v1") is None


def test_a_prefix_is_stripped_and_leaves_at_least_a_slash():
    found = table(strip=Match(prefix="/rag/", strip=True), all=Match(prefix="/", strip=True))
    assert found.find(None, 80, b"/rag") == ("strip", b"/")
    assert found.find(None, 80, b"/rag/v1/x") == ("strip", b"/v1/x")
    assert found.find(None, 80, b"/v1") == ("all", b"/v1")


def test_of_two_equal_claims_the_first_is_kept():
    assert Table([(Match(path="/a"), 1), (Match(path="/a"), 2)]).find(None, 80, b"/a") == (1, b"/a")


def test_a_route_is_found_by_any_of_its_claims():
    route = Route(
        name="search", match=[Match(prefix="/collections"), Match(path="/")], dialect="qdrant", tiers=[LocalTier()]
    )
    assert [Routes([route]).find(None, 80, path) for path in (b"/", b"/collections/x", b"/x")] == [
        (route, b"/"),
        (route, b"/collections/x"),
        None,
    ]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"localhost", b"localhost"),
        (b"LocalHost:8787", b"localhost"),
        (b"a.b.:1", b"a.b"),
        (b"[::1]", b"[::1]"),
        (b"[::1]:80", b"[::1]"),
        (b"", b""),
        (b":", b""),
    ],
)
def test_a_host_is_compared_by_its_name_alone(header: bytes, name: bytes):
    assert bare_host(header) == name


def slow(claims: Claims, host: str | None, port: int, path: str) -> str | None:
    """The rules again, read one claim after the other."""

    def rank(match: Match) -> tuple[bool, bool, bool, int]:
        return (
            match.host is not None,
            match.port is not None,
            match.path is not None,
            len((match.prefix or "").rstrip("/")),
        )

    def claimed(match: Match) -> bool:
        prefix = (match.prefix or "").rstrip("/")
        here = path == match.path if match.path is not None else path == prefix or path.startswith(prefix + "/")
        return here and match.host in (None, host) and match.port in (None, port)

    fitting = [(match, name) for match, name in claims if claimed(match)]
    return max(fitting, key=lambda each: rank(each[0]))[1] if fitting else None


segments = st.lists(st.sampled_from(["a", "b", "ab", ""]), max_size=4)
paths = segments.map(lambda each: "/" + "/".join(each))
places = st.fixed_dictionaries({"host": st.sampled_from([None, "h", "i"]), "port": st.sampled_from([None, 1, 2])})
matches = st.one_of(
    st.builds(lambda path, place: Match(path=path, **place), paths, places),
    st.builds(lambda path, place: Match(prefix=path.rstrip("/") or "/", **place), paths, places),
)


@given(st.lists(matches, max_size=12), st.sampled_from([None, "h", "i", "j"]), st.sampled_from([1, 2, 3]), paths)
def test_the_table_finds_what_the_rules_say(found: list[Match], host: str | None, port: int, path: str):
    claims = [(match, str(n)) for n, match in enumerate(found)]
    hit = Table(claims).find(host.encode() if host else None, port, path.encode())
    assert (hit and hit[0]) == slow(claims, host, port, path)


def test_a_look_up_costs_the_same_among_a_thousand_routes_and_for_a_path_of_slashes():
    few = Table((Match(prefix=f"/p{n}/a"), n) for n in range(2))
    many = Table((Match(prefix=f"/p{n}/a"), n) for n in range(1000))
    once = best_of(lambda: few.find(b"h", 1, b"/p1/a/x"))
    # Generous: a cost that grew with either would be a hundred times as much.
    assert best_of(lambda: many.find(b"h", 1, b"/p999/a/x")) < 20 * once
    assert best_of(lambda: many.find(b"h", 1, b"/" * 16_000)) < 100 * once


def best_of(look_up: object) -> float:
    assert callable(look_up)
    times: list[float] = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(50):
            look_up()
        times.append(time.perf_counter() - started)
    return min(times)
