"""Which headers pass, which don't, and which nobody but us may write."""

from __future__ import annotations

import pytest

from tests.http.house import House, answering, request
from tests.kit.acts import answer
from understudy.policies.service import Answer
from understudy.proxy.http.heads import header_safe, kept
from understudy.proxy.http.response_head import ResponseHead
from understudy.proxy.settings.settings import Match, Secret

pytestmark = pytest.mark.usefixtures("either_loop")


def names(raw: bytes) -> list[bytes]:
    return [line.partition(b":")[0].lower() for line in raw.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]


async def test_what_belongs_to_the_callers_hop_stays_there():
    hop = [
        (b"Connection", b"keep-alive, X-Private , x-other"),
        (b"connection", b"X-Third"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Authorization", b"Basic eA=="),
        (b"Proxy-Connection", b"keep-alive"),
        (b"TE", b"trailers"),
        (b"Trailer", b"x-late"),
        (b"X-Private", b"1"),
        (b"X-OTHER", b"2"),
        (b"x-third", b"3"),
    ]
    async with House() as house:
        await house.ask(request("POST", headers=[*hop, (b"Authorization", b"Bearer t"), (b"X-Kept", b"k")], body=b"b"))
        [heard] = house.up.heard
        # `TE: trailers` is said anew, with the Connection that it asks for: it holds for our own connection
        ours = [b"connection", b"content-length", b"host", b"te", b"x-request-id"]
        assert sorted(names(heard.raw)) == sorted([*ours, b"authorization", b"x-kept"])
        assert (heard.header(b"connection"), heard.header(b"te")) == (b"te", b"trailers")
        assert heard.header(b"host") == house.up.host_port.encode()


async def test_what_belongs_to_the_upstreams_hop_stays_there():
    hop = [
        (b"Connection", b"x-private"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Authenticate", b"Basic"),
        (b"Trailer", b"x-late"),
        (b"Upgrade", b"h2c"),
        (b"X-Private", b"1"),
    ]
    async with House() as house:
        house.up.then(answer(200, [*hop, (b"X-Kept", b"k")], b"body"))
        got = await house.ask()
        ours = {b"x-understudy-tier", b"x-understudy-source", b"x-request-id", b"content-length"}
        assert {name.lower() for name, _ in got.headers} == {b"x-kept"} | ours
        assert got.body == b"body"


async def test_an_upstream_that_mentions_an_upgrade_in_a_200_is_understood():
    async with House() as house:
        house.up.always(answer(200, [(b"Upgrade", b"h2,h2c"), (b"Connection", b"Upgrade, Keep-Alive")], b"body"))
        assert [(await house.ask()).body for _ in range(3)] == [b"body"] * 3
        assert house.up.connections_ever == 1


async def test_nobody_can_forge_where_an_answer_came_from():
    forged = [
        (b"X-Understudy-Tier", b"tertiary"),
        (b"x-understudy-source", b"forged"),
        (b"X-UNDERSTUDY-REASON", b"forged"),
        (b"x-understudy-anything", b"forged"),
    ]
    async with House() as house:
        for framing in ("length", "chunked"):
            house.up.then(answer(200, forged, b"body", framing=framing))  # type: ignore[arg-type]
            got = await house.ask()
            assert got.every(b"x-understudy-tier") == [b"primary"]
            assert got.every(b"x-understudy-source") == [b"up"]
            assert all(b"forged" not in value for _, value in got.headers)


async def test_an_upstreams_request_id_goes_on_under_another_name():
    async with House() as house:
        house.up.always(answer(200, [(b"X-Request-ID", b"theirs")], b"body"))
        got = await house.ask(request(headers=[(b"x-request-id", b"mine")]))
        assert got.every(b"x-request-id") == [b"mine"]
        assert got.every(b"x-upstream-request-id") == [b"theirs"]


async def test_headers_with_several_values_keep_them_in_order():
    several = [(b"Set-Cookie", b"a=1"), (b"x", b"1"), (b"set-cookie", b"b=2"), (b"X", b"2"), (b"x", b"1")]
    async with House() as house:
        house.up.always(answer(200, several, b"body"))
        got = await house.ask(request(headers=[(b"Accept", b"a"), (b"x", b"2"), (b"accept", b"b"), (b"X", b"1")]))
        assert got.every(b"set-cookie") == [b"a=1", b"b=2"]
        assert got.every(b"x") == [b"1", b"2", b"1"]
        [heard] = house.up.heard
        said = [(name, value) for name, value in heard.headers if name.lower() in (b"accept", b"x")]
        assert said == [(b"Accept", b"a"), (b"x", b"2"), (b"accept", b"b"), (b"X", b"1")]


async def test_odd_values_pass_untouched():
    odd = [(b"x-utf8", "grüße".encode()), (b"x-empty", b""), (b"x-latin", b"\xe4"), (b"x-colon", b"a: b: c")]
    async with House() as house:
        house.up.always(answer(200, odd, b"body"))
        got = await house.ask(request(headers=odd))
        for name, value in odd:
            assert house.up.heard[0].header(name) == value
            assert got.header(name) == value


async def test_a_compressed_answer_passes_intact():
    packed = bytes(range(256))
    async with House(dialect="openai-chat") as house:
        house.up.then(answer(200, [(b"content-encoding", b"gzip"), (b"content-type", b"application/json")], packed))
        got = await house.ask(request("POST", "/v1/chat/completions", [(b"accept-encoding", b"gzip")], b"{}"))
        assert (got.body, got.header(b"content-encoding")) == (packed, b"gzip")
        assert house.up.heard[0].header(b"accept-encoding") == b"gzip"


async def test_a_prefix_is_stripped_and_the_base_path_is_put_before():
    async with House(match=Match(prefix="/llm", strip=True), base="/base/v9/") as house:
        for target in ("/llm/v1/x?a=%2Fb&c", "/llm", "/llm?q=1", "/llm/"):
            assert (await house.ask(request(target=target))).status == 200
        assert house.up.paths == [b"/base/v9/v1/x?a=%2Fb&c", b"/base/v9/", b"/base/v9/?q=1", b"/base/v9/"]


async def test_an_absolute_target_of_our_own_host_is_taken_for_its_path():
    async with House() as house:
        await house.ask(request(target="http://HERE/x?y=1"))
        await house.ask(request(target="http://here"))
        assert house.up.paths == [b"/x?y=1", b"/"]


async def test_a_tiers_own_headers_go_over_the_callers():
    own = {"headers": {"Authorization": Secret("Bearer ours"), "X-Own": Secret("1")}}
    async with House(tier=own) as house:
        await house.ask(request(headers=[(b"authorization", b"Bearer theirs"), (b"x-own", b"2"), (b"x", b"3")]))
        [heard] = house.up.heard
        assert [value for name, value in heard.headers if name.lower() == b"authorization"] == [b"Bearer ours"]
        assert [value for name, value in heard.headers if name.lower() == b"x-own"] == [b"1"]
        assert heard.header(b"x") == b"3"


@pytest.mark.parametrize(
    ("method", "length"), [("GET", None), ("DELETE", None), ("POST", b"0"), ("PUT", b"0"), ("PATCH", b"0")]
)
async def test_a_request_without_a_body_says_so_where_one_is_usual(method: str, length: bytes | None):
    async with House() as house:
        await house.ask(request(method))
        [heard] = house.up.heard
        assert (heard.method, heard.header(b"content-length")) == (method.encode(), length)


async def test_a_get_with_a_body_keeps_it():
    async with House() as house:
        await house.ask(request("GET", body=b"query"))
        assert house.up.heard[0].body == b"query"


async def test_a_reason_cannot_break_the_head():
    def made(_call: object) -> Answer:
        return Answer(200, [], b"", tier="secondary", source="up", reason="a\r\nx-evil: 1\n" + "ü" * 1000)

    async with House(service=answering(made)) as house:
        got = await house.ask()
        assert got.header(b"x-evil") is None
        assert len(got.header(b"x-understudy-reason") or b"") < 600


def test_only_the_named_headers_are_dropped(either_loop: str):
    headers = [(b"Connection", b"close, , A"), (b"a", b"1"), (b"B", b"2"), (b"X-Understudy-Tier", b"3")]
    assert kept(headers, frozenset((b"b",))) == [headers[0], headers[3]]
    raw = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"
    assert ResponseHead(raw).block == b"B: 2\r\n"
    assert header_safe("a\0b\nc") == b"a b c"
