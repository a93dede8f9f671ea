"""Arms, shadows and planned faults in the assembled stack: what is off is not there, what is on does what it says."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.kit.weather import call_of
from understudy.policies.breaker import Breaker, breaker
from understudy.policies.fault import Injection, fault
from understudy.policies.service import Answer, Call, Failed, Request, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.reports.arms import arm_metrics, arms_status, arms_text, merged_arms
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import Arm, Match, PlannedFault, Route, Shadow, Split, Tier, UpstreamTier
from understudy.proxy.stack import RouteParts, World, assemble
from understudy.proxy.stages import TierStage
from understudy.proxy.tiers.judging import tier_judge
from understudy.proxy.watching.reading_answers import body_field, results_of

EMBEDDINGS = DIALECTS["openai-embeddings"]
ARM = {"next": Arm(tiers=[UpstreamTier(name="new", url="http://n")])}


def vectors(*numbers: float) -> bytes:
    return json.dumps({"data": [{"index": 0, "embedding": list(numbers)}]}).encode()


def answering(body: bytes) -> Service:
    async def answered(call: Call) -> Answer:
        call.attempts += 1
        return Answer(200, [(b"content-type", b"application/json")], body)

    return answered


async def failing(_call: Call) -> Answer:
    raise Failed("reset")


MADE: dict[str, Service] = {
    "first": answering(vectors(1, 0)),
    "second": answering(vectors(0, 1)),
    "new": answering(vectors(1, 1)),
}


def route(**changed: object) -> Route:
    tiers: list[Tier] = [UpstreamTier(name="first", url="http://a"), UpstreamTier(name="second", url="http://b")]
    fields: dict[str, object] = {
        "name": "r",
        "match": Match(prefix="/"),
        "dialect": "openai-embeddings",
        "space": "minilm",
        "tiers": tiers,
    }
    return Route(**{**fields, **changed})  # pyright: ignore[reportArgumentType]


def put_together(
    made: dict[str, Service] | None = None,
    *,
    before: RouteParts | None = None,
    enabled: bool = False,
    count: Callable[[str], None] = lambda _name: None,
    **changed: object,
) -> RouteParts:
    def make_tier(_route: Route, tier: Tier, endpoint: str) -> Service:
        count(f"{tier.name}/{endpoint}")
        return {**MADE, **(made or {})}[tier.name]

    world = World(clock=asyncio.get_running_loop().time, sleep=asyncio.sleep, dice=random.Random(1).random)
    return assemble(route(**changed), EMBEDDINGS, world, make_tier, before=before, faults=enabled)


def layers(service: Service) -> list[str]:
    """The names of the functions of a stack, from outside in, down to the chain."""
    names: list[str] = []
    inner: Any = service
    while inner is not None:
        names.append(inner.__name__)
        cells = [cell.cell_contents for cell in inner.__closure__ or ()]
        inner = next((each for each in cells if callable(each) and asyncio.iscoroutinefunction(each)), None)
    return names


def header(answer: Answer, name: bytes) -> bytes | None:
    return dict(answer.headers).get(name)


# --- off -----------------------------------------------------------------------------------------------------------


@pytest.mark.interpreted
async def test_what_is_off_is_not_in_the_stack():
    planned = [PlannedFault(do="abort")]
    unused = put_together(arms=ARM)
    assert layers(put_together().service) == layers(unused.service)
    assert not {"divided", "shadowed", "tried", "naming"} & set(layers(unused.service))
    not_enabled = put_together(tiers=[UpstreamTier(name="first", url="http://a", faults=planned)])
    assert (await not_enabled.service(call_of("embed", "x"))).status == 200
    assert not_enabled.arms.injections == {}


# --- faults --------------------------------------------------------------------------------------------------------


async def test_a_fault_at_a_tier_opens_its_breaker_and_the_next_tier_answers_and_says_so():
    planned = [PlannedFault(do="error", status=503)]
    tiers = [
        UpstreamTier(name="first", url="http://a", faults=planned, retry=settings.Retry(attempts=1)),
        UpstreamTier(name="second", url="http://b"),
    ]
    parts = put_together(enabled=True, tiers=tiers)
    answers = [await parts.service(call_of("embed", "x")) for _ in range(20)]
    assert {answer.status for answer in answers} == {200}
    heart = parts.tiers["first"].only.breaker
    assert heart is not None
    assert heart.state == "open"
    injection = parts.arms.injections["first", "error"]
    assert injection.hits == settings.Breaker().consecutive
    marks = [header(answer, b"x-understudy-fault") for answer in answers]
    assert marks == [b"error"] * injection.hits + [None] * (20 - injection.hits)
    assert answers[0].reason == "first: status_503"


async def test_a_fault_outside_the_breaker_would_rehearse_nothing():
    clock = asyncio.get_running_loop().time
    stage = TierStage(EMBEDDINGS, tier_judge(None, route().tiers[0], EMBEDDINGS), clock=clock)

    def stacked(*, swapped: bool) -> tuple[Service, Breaker]:
        heart = Breaker(settings.Breaker(consecutive=3))
        planned = [Injection("error", PlannedFault(do="error"), clock())]

        def faulty(service: Service) -> Service:
            return fault(service, planned, stage, clock=clock, dice=lambda: 0.0, sleep=asyncio.sleep)

        def guarded(service: Service) -> Service:
            return breaker(service, heart, clock=clock, dice=lambda: 0.5)

        service = MADE["first"]
        return (faulty(guarded(service)) if swapped else guarded(faulty(service))), heart

    for swapped, state in ((False, "open"), (True, "closed")):
        service, heart = stacked(swapped=swapped)
        for _ in range(3):
            with pytest.raises(Failed):
                await service(call_of("embed", "x"))
        assert heart.state == state


async def test_a_fault_at_a_route_is_the_callers_and_counted_like_any_trouble():
    parts = put_together(enabled=True, faults=[PlannedFault(do="error")])
    answer = await parts.service(call_of("embed", "x"))
    assert (answer.status, header(answer, b"x-understudy-fault")) == (503, b"error")
    assert parts.tally.answers == {("", 5): 1}


async def test_a_fault_may_befall_one_endpoint_of_several():
    tier = UpstreamTier(
        name="first",
        endpoints=[settings.Endpoint(url="http://a", name="a"), settings.Endpoint(url="http://b", name="b")],
        faults=[PlannedFault(do="abort", endpoint="a")],
        retry=settings.Retry(attempts=1),
        breaker=settings.Breaker(consecutive=1),
    )
    parts = put_together(enabled=True, tiers=[tier, UpstreamTier(name="second", url="http://c")])
    for _ in range(40):
        assert (await parts.service(call_of("embed", "x"))).status == 200
    states = {name: each.breaker.state for name, each in parts.tiers["first"].endpoints.items() if each.breaker}
    assert states == {"a": "open", "b": "closed"}


async def test_a_reload_leaves_a_faults_clock_running_unless_the_fault_is_another_now():
    planned = [PlannedFault(do="abort", after_s=60)]
    before = put_together(enabled=True, faults=planned)
    began = before.arms.injections["route", "abort"].began
    await asyncio.sleep(50)
    same = put_together(enabled=True, faults=planned, before=before)
    other = put_together(enabled=True, faults=[PlannedFault(do="abort", after_s=61)], before=before)
    assert same.arms.injections["route", "abort"].began == began
    assert other.arms.injections["route", "abort"].began == began + 50
    # and what is taken out is gone
    assert put_together(enabled=True, before=same).arms.injections == {}


# --- split ---------------------------------------------------------------------------------------------------------


async def test_an_arm_has_breakers_of_its_own_and_what_it_does_not_answer_the_main_one_does():
    parts = put_together({"new": failing}, arms=ARM, split=Split(arm="next", share=1.0))
    for number in range(20):
        answer = await parts.service(call_of("embed", "x", id=str(number)))
        assert (answer.source, header(answer, b"x-understudy-arm")) == ("first", b"main")
        assert answer.reason.startswith("new: ")
    states = {name: tier.only.breaker.state for name, tier in parts.tiers.items() if tier.only.breaker}
    assert states == {"first": "closed", "second": "closed", "new": "open"}
    assert parts.arms.split is not None
    assert parts.arms.split.fell_back == 20


async def test_an_arms_own_error_answer_is_not_given_back_while_the_main_arm_can_answer():
    async def busy(_call: Call) -> Answer:
        raise Failed("status_503", answer=Answer(503, [], b"busy"))

    async def half_done(_call: Call) -> Answer:
        raise Failed("status_500", answer=Answer(500, [], b"half done"), again=False, elsewhere=False)

    for new, fall_back, status in ((busy, True, 200), (busy, False, 503), (half_done, True, 500)):
        parts = put_together({"new": new}, arms=ARM, split=Split(arm="next", share=1.0, fall_back=fall_back))
        assert (await parts.service(call_of("embed", "x", id="1"))).status == status


async def test_a_write_that_failed_in_the_arm_with_nothing_to_show_is_not_sent_to_the_main_one():
    async def cut(_call: Call) -> Answer:
        raise Failed("reset", again=False, elsewhere=False)

    parts = put_together({"new": cut}, arms=ARM, split=Split(arm="next", share=1.0))
    with pytest.raises(Failed):
        await parts.service(call_of("embed", "x", id="1"))


async def test_a_share_set_live_holds_over_a_reload_until_the_file_says_another():
    before = put_together(arms=ARM, split=Split(arm="next", share=0.05))
    assert before.arms.split is not None
    before.arms.split.share = 1.0
    answer = await before.service(call_of("embed", "x", id="1"))
    assert header(answer, b"x-understudy-arm") == b"next"
    for share, live in ((0.05, 1.0), (0.1, 0.1)):
        after = put_together(arms=ARM, split=Split(arm="next", share=share), before=before)
        assert after.arms.split is not None
        assert after.arms.split.share == live
        assert after.arms.split.tallies["next"].answers == {2: 1}


def test_a_field_of_the_body_is_a_key_and_a_body_without_it_is_not_parsed():
    def asked(body: bytes) -> Call:
        return Call("generate", Request(b"POST", b"/", [], body))

    user, nested = body_field("user"), body_field("metadata.session")
    assert user(asked(b'{"messages": [{"role": "user"}], "user": "ada"}')) == b"ada"
    assert user(asked(b'{"messages": [{"role": "user"}]}')) == b""
    assert user(asked(b'{"user": 7}')) == b"7"
    for odd in (b'{"user": ["x"]}', b'{"user": null}', b'{"user": "x"', b'["user":]', b""):
        assert user(asked(odd)) == b""
    assert nested(asked(b'{"metadata": {"session": "s-1"}}')) == b"s-1"
    assert nested(asked(b'{"metadata": "session", "session": "s"}')) == b""


# --- shadow --------------------------------------------------------------------------------------------------------


async def test_a_shadow_asks_the_arm_apart_from_everything_live():
    heard: list[Call] = []

    async def listening(call: Call) -> Answer:
        heard.append(call)
        raise Failed("reset")

    made: list[str] = []
    parts = put_together(
        {"new": listening},
        count=made.append,
        arms=ARM,
        shadow=Shadow(arm="next", share=1.0, queue=999),
        split=Split(arm="next"),
    )
    for number in range(30):
        answer = await parts.service(call_of("embed", "x", id=str(number)))
        assert answer.source == "first"
        await asyncio.sleep(0.1)
    live = parts.tiers["new"].only.breaker
    assert live is not None
    assert (live.state, sum(live.transitions.values())) == ("closed", 0)
    assert parts.tally.answers == {("primary", 2): 30}
    # five failures opened the shadow's own breaker; it is asked again when that lets it, and never twice for one call
    assert 5 <= len(heard) < 10
    assert all(call.request.header(b"x-understudy-shadow") == b"1" for call in heard)
    # a tier that is in two stacks is made once: it has one pool of connections
    assert sorted(made) == ["first/first", "new/new", "second/second"]
    assert parts.arms.agreement is not None
    assert parts.arms.agreement.pairs == {"failed": 30}


async def test_a_call_that_the_arm_answers_is_not_asked_of_it_again():
    heard: list[Call] = []

    async def listening(call: Call) -> Answer:
        heard.append(call)
        return await MADE["new"](call)

    # were the shadow outside the split, the arm would be asked twice and compared with itself
    parts = put_together(
        {"new": listening}, arms=ARM, split=Split(arm="next", share=0.5), shadow=Shadow(arm="next", share=1.0)
    )
    for number in range(40):
        await parts.service(call_of("embed", "x", id=str(number)))
        await asyncio.sleep(0.1)
    split, agreement = parts.arms.split, parts.arms.agreement
    assert split is not None
    assert agreement is not None
    assert agreement.pairs == {"same": split.tallies["main"].answers[2]}
    assert len(heard) == 40


async def test_a_shadows_vectors_are_compared_with_the_callers():
    parts = put_together(arms=ARM, shadow=Shadow(arm="next", share=1.0))
    await parts.service(call_of("embed", "x"))
    await asyncio.sleep(1)
    assert parts.arms.agreement is not None
    assert parts.arms.agreement.pairs == {"same": 1}
    assert parts.arms.agreement.measures["cosine"].sum == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("body", "rankings"),
    [
        (b'{"result": {"points": [{"id": 1}, {"id": "b"}]}}', [["1", "b"]]),
        (b'{"result": [{"id": 1, "score": 0.5}]}', [["1"]]),
        (b'{"result": [[{"id": 1}], [{"id": 2}]]}', [["1"], ["2"]]),
        (b'{"result": [{"points": [{"id": 1}]}, {"points": []}]}', [["1"], []]),
        (b'{"result": {"count": 3}}', [[]]),
        (b'{"result": true}', []),
        (b'{"results": [], "matches": [{"id": "a", "score": 0.9}, {"id": "b"}]}', [["a", "b"]]),
    ],
)
def test_the_points_of_every_kind_of_answer_are_read(body: bytes, rankings: list[list[str]]):
    assert results_of(call_of("retrieve", "x"), Answer(200, [], body)).rankings == rankings


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": [{"embedding": [0.5, 2]}, {"embedding": [1, 0]}]}',
        b'{"embeddings": [[0.5, 2], [1, 0]]}',
        b'{"embeddings": {"float": [[0.5, 2], [1, 0]]}, "texts": ["a", "b"]}',
        b'{"embeddings": {"base64": ["AAAAPwAAAEA=", "AACAPwAAAAA="]}}',
        b"[[0.5, 2], [1, 0]]",
    ],
)
def test_the_vectors_of_every_kind_of_answer_are_read(body: bytes):
    vectors = results_of(call_of("embed", "x"), Answer(200, [], body)).vectors
    assert [list(vector) for vector in vectors] == [[0.5, 2], [1, 0]]


def test_a_vector_alone_is_read():
    assert results_of(call_of("embed", "x"), Answer(200, [], b'{"embedding": [0.5, 2]}')).vectors == [[0.5, 2]]


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b'{"data": [{"embedding": "%"}]}'])
def test_what_can_not_be_read_is_said_so(body: bytes):
    with pytest.raises(ValueError, match=r"."):
        results_of(call_of("embed", "x"), Answer(200, [], body))


# --- what is told --------------------------------------------------------------------------------------------------


async def test_metrics_and_status_tell_of_arms_shadows_and_faults():
    parts = put_together(
        enabled=True,
        arms=ARM,
        split=Split(arm="next", share=1.0),
        shadow=Shadow(arm="next", share=1.0),
        faults=[PlannedFault(do="delay", delay_s=0.5)],
    )
    for number in range(4):
        await parts.service(call_of("embed", "x", id=str(number)))
    samples = {(one.name, *one.labels.values()): one.value for family in arm_metrics([parts]) for one in family.samples}
    assert samples["understudy_arm_share", "r", "next"] == 1.0
    assert samples["understudy_arm_calls_total", "r", "next", "2xx"] == 4
    assert samples["understudy_arm_seconds_count", "r", "next"] == 4
    assert samples["understudy_fault_active", "r", "route", "delay"] == 1.0
    assert samples["understudy_faults_injected_total", "r", "route", "delay"] == 4
    told = arms_status(parts)
    assert json.loads(json.dumps(told)) == told
    text = "\n".join(arms_text(told))
    assert "100 % to next" in text
    assert "FAULT     ON at route: delay of 0.5 s for 100 % of calls, 4 so far" in text
    both = merged_arms([told, told])
    assert (both["split"]["calls"]["next"]["2xx"], both["split"]["share"]) == (8, 1.0)
    assert (both["faults"][0]["hits"], both["faults"][0]["on"]) == (8, True)


async def test_a_route_without_any_of_it_tells_nothing():
    parts = put_together()
    assert arms_status(parts) == {}
    assert not [one for family in arm_metrics([parts]) for one in family.samples]
