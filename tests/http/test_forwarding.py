"""What an upstream is told of the way a request came: Via, X-Forwarded-*, traceparent; and calls that go in circles."""

from __future__ import annotations

import random
import re

import pytest

from tests.http.house import House, request
from tests.kit.acts import answer
from tests.kit.fake_upstream import Heard
from understudy.policies.service import Answer, Call, Request
from understudy.proxy.http.exchange import Exchange
from understudy.proxy.http.forwarding import Marks, goes_in_circles, trace_of
from understudy.proxy.reports.access_log import line_of
from understudy.proxy.settings.settings import Secret, UpstreamTier
from understudy.proxy.tiers.upstream import Target

pytestmark = pytest.mark.usefixtures("either_loop")

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MADE = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01")
OURS = b"understudy-abc123"


def every(heard: Heard, name: bytes) -> list[bytes]:
    lines = heard.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    pairs = [line.partition(b": ") for line in lines]
    return [value for key, _, value in pairs if key.lower() == name]


# --- Via -----------------------------------------------------------------------------------------------------------


async def test_we_put_ourselves_behind_the_proxies_before_us():
    async with House(marks=Marks(OURS)) as house:
        await house.ask(request(headers=[(b"Via", b"1.0 fred"), (b"via", b"1.1 nginx")]))
        assert every(house.up.heard[0], b"via") == [b"1.0 fred", b"1.1 nginx", b"1.1 " + OURS]


@pytest.mark.parametrize("via", [b"1.1 " + OURS, b"1.1 other, 1.1 " + OURS + b" (x), 1.1 third"])
async def test_a_request_that_has_been_here_before_is_told_so_and_goes_no_further(via: bytes):
    async with House(marks=Marks(OURS), pseudonym=OURS) as house:
        for _ in range(2):
            got = await house.ask(request(headers=[(b"VIA", via)]))
            assert (got.status, got.code) == (508, "loop")
        assert not house.up.heard
        assert (await house.ask(request(headers=[(b"Via", b"1.1 understudy-another")]))).status == 200


async def test_an_upstream_that_leads_back_to_us_is_found_out_on_the_second_round():
    async with House(marks=Marks(OURS), pseudonym=OURS) as house:

        async def back(heard: Heard) -> None:
            again = await house.ask(heard.raw)
            house.up.then(answer(again.status, body=again.body))

        await house.ask(request("POST", body=b"x"))
        [heard] = house.up.heard
        await back(heard)
        got = await house.ask()
        assert (got.status, got.code) == (508, "loop")


def test_a_name_in_another_header_makes_no_circle():
    assert not goes_in_circles([(b"x-via", b"1.1 " + OURS), (b"via", b"1.1 understudy")], OURS)


# --- X-Forwarded-* -------------------------------------------------------------------------------------------------


async def test_unless_asked_nothing_is_said_of_the_caller_and_nothing_it_said_is_lost():
    async with House(marks=Marks(OURS)) as house:
        await house.ask(request())
        await house.ask(request(headers=[(b"X-Forwarded-For", b"9.9.9.9")]))
        assert [every(heard, b"x-forwarded-for") for heard in house.up.heard] == [[], [b"9.9.9.9"]]
        assert every(house.up.heard[0], b"x-forwarded-proto") == every(house.up.heard[0], b"x-forwarded-host") == []


async def test_asked_to_we_append_the_callers_address_and_say_what_it_asked_for():
    async with House(marks=Marks(forwarded="append")) as house:
        await house.ask(request(host="app.example"))
        await house.ask(request(headers=[(b"X-Forwarded-For", b"9.9.9.9, 8.8.8.8"), (b"x-forwarded-for", b"7.7.7.7")]))
        first, second = house.up.heard
        assert every(first, b"x-forwarded-for") == [b"127.0.0.1"]
        assert every(first, b"x-forwarded-proto") == [b"http"]
        assert every(first, b"x-forwarded-host") == [b"app.example"]
        assert every(second, b"x-forwarded-for") == [b"9.9.9.9, 8.8.8.8, 7.7.7.7, 127.0.0.1"]


async def test_what_an_outer_proxy_said_of_the_place_is_believed():
    said = [(b"X-Forwarded-Proto", b"https"), (b"X-Forwarded-Host", b"shop.example")]
    async with House(marks=Marks(forwarded="append")) as house:
        await house.ask(request(headers=said))
        assert every(house.up.heard[0], b"x-forwarded-proto") == [b"https"]
        assert every(house.up.heard[0], b"x-forwarded-host") == [b"shop.example"]


async def test_a_tiers_own_header_goes_before_ours():
    own = {name: Secret("own") for name in ("X-Forwarded-For", "Via", "Traceparent", "X-Forwarded-Host")}
    async with House(marks=Marks(OURS, forwarded="append", trace="make"), tier={"headers": own}) as house:
        await house.ask(request(headers=[(b"traceparent", TRACE), (b"via", b"1.1 x")]))
        for name in own:
            assert every(house.up.heard[0], name.lower().encode()) == [b"own"]


# --- traceparent ---------------------------------------------------------------------------------------------------


async def test_a_trace_the_caller_began_is_carried_on_untouched():
    async with House(marks=Marks(trace="make")) as house:
        await house.ask(request(headers=[(b"Traceparent", TRACE), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]))
        assert every(house.up.heard[0], b"traceparent") == [TRACE]
        assert every(house.up.heard[0], b"tracestate") == [b"a=1", b"b=2"]


async def test_a_call_without_a_trace_is_given_one_that_is_its_own():
    async with House(marks=Marks(trace="make")) as house:
        for _ in range(2):
            await house.ask()
        made = [every(heard, b"traceparent") for heard in house.up.heard]
        assert all(len(one) == 1 and MADE.fullmatch(one[0]) for one in made)
        assert made[0] != made[1]


async def test_every_attempt_of_a_call_belongs_to_one_trace():
    async with House(marks=Marks(trace="make")) as house:
        house.up.then(answer(503), answer(200))
        assert (await house.ask()).status == 200
        first, second = [every(heard, b"traceparent") for heard in house.up.heard]
        assert first == second


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"ff-" + TRACE[3:],
        b"00-" + b"0" * 32 + TRACE[35:],
        TRACE[:36] + b"0" * 16 + b"-01",
        TRACE.upper(),
        TRACE + b"-more",
        TRACE[:-1],
    ],
)
async def test_a_broken_trace_is_replaced_and_its_state_goes_with_it(broken: bytes):
    async with House(marks=Marks(trace="make")) as house:
        await house.ask(request(headers=[(b"traceparent", broken), (b"tracestate", b"a=1")]))
        [made] = every(house.up.heard[0], b"traceparent")
        assert MADE.fullmatch(made)
        assert every(house.up.heard[0], b"tracestate") == []


def test_a_later_version_may_say_more_and_two_say_nothing():
    assert trace_of([(b"traceparent", b"01" + TRACE[2:] + b"-more")]) == TRACE[3:35]
    assert trace_of([(b"traceparent", TRACE), (b"Traceparent", TRACE)]) is None


async def test_where_traces_are_only_kept_none_is_made_and_none_is_judged():
    async with House(marks=Marks(trace="keep")) as house:
        await house.ask()
        await house.ask(request(headers=[(b"traceparent", b"odd")]))
        assert [every(heard, b"traceparent") for heard in house.up.heard] == [[], [b"odd"]]


def test_dice_that_show_nothing_make_no_trace_of_zeros():
    for bits in (lambda _n: 0, random.Random(1).getrandbits):
        assert trace_of([(b"traceparent", Marks(bits=bits).new_trace().encode())])


def test_the_access_log_says_which_trace_a_call_belongs_to():
    class AtTheDoor:
        def send(self, data: bytes) -> None: ...
        def finished(self, exchange: Exchange, end: str, *, abort: bool = False) -> None: ...

    target = Target(UpstreamTier(name="up", url="http://up.test"), Marks(trace="make"))
    for headers, expected in (([(b"traceparent", TRACE)], TRACE[3:35].decode()), ([], None)):
        made = Exchange(AtTheDoor(), "id", Request(b"GET", b"/", headers, b"", {}), None, None, 1.0)
        made.call = Call("pass", made.request, id="id")
        made.answer = Answer(200, [])
        head = target.head(made.call)
        line = line_of(made, "done")
        assert line.trace == (expected or made.call.trace[3:35])
        assert b"-" + line.trace.encode() + b"-" in head
