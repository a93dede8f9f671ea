"""The ladder's heart, told the time: what it does in order, what it never does, and what it remembers over a crash."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from understudy.policies.recovery import (
    BELIEVED_S,
    HEAVY,
    LADDERS,
    RUNGS,
    Act,
    Check,
    Climb,
    Escalate,
    Ladder,
    Recovery,
    in_words,
    period_s,
)
from understudy.proxy.settings.recovery import Recovery as Rules

BEGIN = 1_800_000_000.0
DB = "vector_database:db:6333"
INDEX = "local_index:docs"
THREE = ("reset_pool", "resolve_again", "switch_endpoint")


class Patient:
    """A heart in a world where time passes only when it is said to, and one rung cures."""

    def __init__(self, *rungs: str, cured_by: str = "", rules: Rules | None = None, luck: float = 1.0) -> None:
        self.rungs = rungs or THREE
        self.now = BEGIN
        self.cured_by = cured_by
        self.is_well = False
        self.did: list[str] = []
        self.heart = Recovery(rules or Rules(), lambda _component: self.rungs, lambda: luck)

    def acts(self) -> list[Act]:
        acts = self.heart.due(self.now)
        assert len(acts) <= 1
        return acts

    def once(self, component: str = DB) -> bool:
        """Whatever is due now; whether anything was."""
        for act in self.acts():
            match act:
                case Climb():
                    self.did.append(f"{act.attempt} {act.rung}")
                    self.is_well = self.is_well or act.rung == self.cured_by
                    self.heart.climbed(self.now, component, "done")
                case Check():
                    self.did.append("pass" if self.is_well else "fail")
                    self.heart.checked(self.now, component, passed=self.is_well)
                case Escalate():
                    self.did.append("escalate")
                    self.heart.told(component)
            return True
        return False

    def run(self, seconds: float, *, step_s: float = 0.5) -> list[str]:
        """What was done in so many seconds, without what was done before."""
        before = len(self.did)
        until = self.now + seconds
        while self.now < until:
            while self.once():
                pass
            self.now += step_s
        return self.did[before:]

    def ill(self, kind: str = "refused") -> None:
        self.is_well = False
        self.heart.hear(self.now, DB, is_ill=True, kind=kind)

    @property
    def state(self) -> str:
        ladder = self.heart.ladders.get(DB)
        return ladder.state if ladder is not None else "well"


def test_the_first_rung_that_helps_is_the_last_one_tried_and_three_passes_say_that_it_did():
    patient = Patient(cured_by="resolve_again")
    patient.ill()
    assert patient.run(10) == ["1 reset_pool", "fail", "1 resolve_again", "pass", "pass", "pass"]
    assert patient.state == "held"


def test_a_rung_has_not_helped_unless_the_check_passes_three_times_in_a_row():
    patient = Patient("reset_pool")
    patient.ill()
    patient.now += 2
    assert isinstance(patient.acts()[0], Climb)
    patient.heart.climbed(patient.now, DB, "done", settle_s=30)
    for passed in (True, True, False, True, True):
        assert isinstance(patient.acts()[0], Check)
        patient.heart.checked(patient.now, DB, passed=passed)
        assert patient.state == "verifying"
        patient.now += 1
    assert isinstance(patient.acts()[0], Check)
    patient.heart.checked(patient.now, DB, passed=True)
    assert patient.state == "held"


def test_what_takes_time_to_show_is_given_time_and_what_does_not_help_by_then_is_left_behind():
    patient = Patient("restart", "page")
    patient.ill()
    patient.now += 2
    patient.acts()
    patient.heart.climbed(patient.now, DB, "done", settle_s=5)
    checks = 0
    while isinstance(act := (patient.acts() or [None])[0], Check) or act is None:
        checks += act is not None
        if act is not None:
            patient.heart.checked(patient.now, DB, passed=False)
        patient.now += 0.5
    assert checks == 6
    assert isinstance(act, Climb)
    assert act.rung == "page"


def test_three_walks_further_and_further_apart_and_then_a_human_once_and_nothing_more():
    patient = Patient("reset_pool")
    patient.ill()
    did = patient.run(3600)
    assert did == ["1 reset_pool", "fail", "2 reset_pool", "fail", "3 reset_pool", "fail", "escalate"]
    assert [period_s(Rules(), attempt) for attempt in range(3)] == [1, 8, 60]


def test_pauses_have_full_jitter():
    early, late = Patient("reset_pool", luck=0.0), Patient("reset_pool", luck=0.999)
    for patient in (early, late):
        patient.ill()
    assert early.run(0.6) == ["1 reset_pool", "fail", "2 reset_pool", "fail", "3 reset_pool", "fail", "escalate"]
    assert late.run(8.9) == ["1 reset_pool", "fail"]
    assert late.run(0.6) == ["2 reset_pool", "fail"]


def test_one_that_gets_well_by_itself_is_left_alone():
    patient = Patient("reset_pool")
    patient.ill()
    patient.heart.hear(patient.now, DB, is_ill=False)
    assert patient.run(601) == []
    assert patient.state == "well"


def test_a_relapse_within_ten_minutes_goes_on_counting_and_one_after_them_begins_anew():
    patient = Patient("reset_pool", cured_by="reset_pool")
    for attempt in (1, 2, 3):
        patient.ill()
        assert patient.run(70) == [f"{attempt} reset_pool", "pass", "pass", "pass"]
        patient.heart.hear(patient.now, DB, is_ill=False)
    patient.ill()
    assert patient.run(70) == ["escalate"]
    patient.heart.hear(patient.now, DB, is_ill=False)
    patient.run(590)
    patient.ill()
    assert patient.run(70) == []
    patient.heart.hear(patient.now, DB, is_ill=False)
    patient.run(601)
    assert patient.state == "well"
    patient.ill()
    assert patient.run(70)[0] == "1 reset_pool"


def test_a_verdict_that_lags_behind_our_own_checks_is_no_relapse_and_one_that_stays_is():
    patient = Patient("reset_pool", cured_by="reset_pool")
    patient.ill()
    patient.run(5)
    assert patient.state == "held"
    for _ in range(20):
        patient.now += 1
        patient.heart.hear(patient.now, DB, is_ill=True, kind="refused")
    assert patient.state == "held"
    patient.now += BELIEVED_S
    patient.heart.hear(patient.now, DB, is_ill=True, kind="refused")
    assert patient.state == "waiting"


def test_while_another_stands_in_the_first_one_may_stay_ill_until_nobody_stands_in_any_more():
    patient = Patient("switch_endpoint")
    patient.ill()
    patient.now += 2
    patient.acts()
    patient.heart.climbed(patient.now, DB, "done", instead="vector_database:other:6333")
    for _ in range(3):
        [act] = patient.acts()
        assert act == Check(DB, "vector_database:other:6333", "refused")
        patient.heart.checked(patient.now, DB, passed=True)
        patient.now += 1
    for _ in range(1000):
        patient.now += 1
        patient.heart.hear(patient.now, DB, is_ill=True)
        assert patient.acts() == []
    assert "stands in" in in_words(patient.heart.ladders[DB], patient.rungs, Rules(), patient.now)
    patient.heart.relapsed(patient.now, DB, "other gone")
    assert patient.state == "waiting"


def test_dear_rungs_wait_until_the_cpu_time_of_the_last_one_is_paid_off_and_cheap_ones_do_not():
    patient = Patient("rebuild_index", "reset_pool", "reload_snapshot", rules=Rules(cpu_share=0.1))
    patient.ill()
    patient.now += 2
    [act] = patient.acts()
    patient.heart.climbed(patient.now, DB, "failed", cpu_s=3.0)
    assert isinstance(act, Climb)
    assert isinstance(patient.acts()[0], Climb)
    patient.heart.climbed(patient.now, DB, "skipped")
    patient.now += 29.9
    assert patient.acts() == []
    patient.now += 0.2
    [act] = patient.acts()
    assert isinstance(act, Climb)
    assert act.rung == "reload_snapshot"


@pytest.mark.parametrize("moment", ["waiting", "climbing", "verifying", "escalating"])
def test_after_a_crash_the_ladder_goes_on_where_it_was_and_no_human_is_told_twice(moment: str):
    patient = Patient("reset_pool", "resolve_again")
    patient.ill()
    patient.now += 2
    if moment != "waiting":
        patient.acts()
    if moment in ("verifying", "escalating"):
        patient.heart.climbed(patient.now, DB, "done")
    if moment == "escalating":
        while not isinstance((patient.acts() or [None])[0], Escalate):
            patient.heart.put_off(DB)
            patient.run(1)
            if "escalate" in patient.did:
                break
    kept = msgspec.json.decode(msgspec.json.encode(list(patient.heart.ladders.values())), type=list[Ladder])
    after = Patient("reset_pool", "resolve_again")
    after.now = patient.now + 30
    after.heart.recall(after.now, kept)
    did = after.run(300)
    assert (patient.did + did).count("escalate") <= 1
    if moment == "waiting":
        assert did[0] == "1 reset_pool"
    elif moment in ("climbing", "verifying"):
        assert did[:3] == ["fail", "1 resolve_again", "fail"]
    if moment != "escalating":
        assert did[-1] == "escalate"


def test_a_clock_put_back_makes_no_pause_of_hours():
    patient = Patient("reset_pool")
    patient.ill()
    patient.now -= 86_400
    assert patient.run(70) == ["1 reset_pool", "fail", "2 reset_pool", "fail"]


def test_what_the_policies_want_nothing_done_for_is_let_go():
    patient = Patient("reset_pool")
    patient.ill()
    patient.rungs = ()
    assert patient.run(5) == []
    assert patient.state == "well"


def test_an_operator_has_a_spent_ladder_climbed_again_and_is_not_told_again():
    patient = Patient("reset_pool")
    patient.ill()
    patient.run(300)
    assert patient.heart.again(patient.now, DB)
    assert patient.run(300) == ["1 reset_pool", "fail", "2 reset_pool", "fail", "3 reset_pool", "fail"]
    assert not patient.heart.again(patient.now, "cache:none")


def test_every_state_is_told_in_words():
    patient = Patient("reset_pool")
    patient.ill()
    ladder = patient.heart.ladders[DB]
    told = {ladder.state: in_words(ladder, patient.rungs, Rules(), patient.now)}
    while "escalate" not in patient.did:
        patient.once()
        told[ladder.state] = in_words(ladder, patient.rungs, Rules(), patient.now)
        patient.now += 1
    patient.heart.hear(patient.now, DB, is_ill=False)
    told[ladder.state] = in_words(ladder, patient.rungs, Rules(), patient.now)
    assert told["verifying"] == "attempt 3 of 3: reset_pool done, 0 of 3 checks passed"
    assert told["waiting"].startswith("attempt 2 of 3 did not help; the next begins in")
    assert told["escalated"] == "nothing helped in 3 attempts; left to a human"
    assert told["held"] == "well again since 0 s: well again: by itself"


def test_every_ladder_that_ships_goes_from_the_cheapest_rung_to_the_dearest():
    for rungs in LADDERS.values():
        assert [RUNGS.index(rung) for rung in rungs] == sorted(RUNGS.index(rung) for rung in rungs)
    assert set(RUNGS) >= HEAVY


class Climbing(RuleBasedStateMachine):
    """Several components, any order of events, crashes at any moment."""

    components = (DB, INDEX, "cache:redis:6379")

    @initialize(share=st.sampled_from([0.1, 0.5]), attempts=st.integers(1, 3))
    def begin(self, share: float, attempts: int) -> None:
        self.rules = Rules(cpu_share=share, attempts=attempts)
        self.now = BEGIN
        self.in_hand: dict[str, Act] = {}
        self.passes: dict[str, int] = {}
        self.escalations: dict[str, int] = {}
        self.held_at: dict[str, float] = {}
        self.paid_at = BEGIN
        self.heart = self.fresh()

    def fresh(self) -> Recovery:
        return Recovery(self.rules, lambda component: LADDERS[component.partition(":")[0]], lambda: 0.5)

    @rule(component=st.sampled_from(components), is_ill=st.booleans())
    def the_checks_say(self, component: str, is_ill: bool) -> None:
        self.heart.hear(self.now, component, is_ill=is_ill, kind="k")
        self.look()

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 61.0, 601.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def what_is_due_is_handed_out(self) -> None:
        for act in self.heart.due(self.now):
            assert act.component not in self.in_hand, "two at once on one component"
            self.in_hand[act.component] = act
            ladder = self.heart.ladders[act.component]
            assert ladder.attempt <= self.rules.attempts
            if isinstance(act, Climb):
                assert ladder.state == "climbing"
                assert ladder.escalated_at is None or ladder.attempt <= self.rules.attempts
                if act.rung in HEAVY:
                    heavy = [each for each in self.in_hand.values() if isinstance(each, Climb) and each.rung in HEAVY]
                    assert heavy == [act], "two dear rungs at once"
                    assert self.now >= self.paid_at - 1e-3
            elif isinstance(act, Escalate):
                self.escalations[act.incident] = self.escalations.get(act.incident, 0) + 1
        self.look()

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data(), good=st.booleans(), cpu_s=st.sampled_from([0.0, 0.2, 5.0]))
    def one_in_hand_is_reported(self, data: st.DataObject, good: bool, cpu_s: float) -> None:
        component = data.draw(st.sampled_from(sorted(self.in_hand)))
        act = self.in_hand.pop(component)
        if isinstance(act, Climb):
            self.passes[component] = 0
            if cpu_s:
                self.paid_at = max(self.paid_at, self.now) + cpu_s / self.rules.cpu_share
            self.heart.climbed(self.now, component, "done" if good else "skipped", cpu_s=cpu_s)
        elif isinstance(act, Check):
            self.passes[component] = self.passes.get(component, 0) + 1 if good else 0
            self.heart.checked(self.now, component, passed=good)
        else:
            self.heart.told(component)
        self.look()

    @rule()
    def the_process_is_killed_and_another_takes_over(self) -> None:
        kept = msgspec.json.encode(list(self.heart.ladders.values()))
        self.heart = self.fresh()
        self.heart.recall(self.now, msgspec.json.decode(kept, type=list[Ladder]))
        self.in_hand.clear()
        self.passes.clear()
        # what was spent is not remembered, nor is there anybody left who was slowed down by it
        self.paid_at = self.now

    def look(self) -> None:
        """What the news say must be so."""
        for news in self.heart.news():
            if news.what == "recovered":
                by_itself = news.detail == "by itself"
                assert by_itself or self.passes.get(news.component, 0) >= self.rules.passes
                self.held_at[news.component] = news.at
            elif news.what == "relapsed":
                self.held_at.pop(news.component, None)
            elif news.what == "stable":
                assert news.at - self.held_at.pop(news.component) >= self.rules.stable_s

    @invariant()
    def nobody_is_told_twice_of_one_incident(self) -> None:
        assert all(count == 1 for count in getattr(self, "escalations", {}).values())

    @invariant()
    def attempts_are_bounded(self) -> None:
        heart = getattr(self, "heart", None)
        for ladder in heart.ladders.values() if heart is not None else ():
            assert ladder.attempt <= self.rules.attempts

    def teardown(self) -> None:
        """Left ill, everybody ends with a human who knows, or with nothing to do: no ladder hangs."""
        if not hasattr(self, "heart"):
            return
        for _ in range(4000):
            for component in self.components:
                self.heart.hear(self.now, component, is_ill=True, kind="k")
            self.what_is_due_is_handed_out()
            for component, act in list(self.in_hand.items()):
                del self.in_hand[component]
                if isinstance(act, Climb):
                    self.heart.climbed(self.now, component, "done")
                elif isinstance(act, Check):
                    self.heart.checked(self.now, component, passed=False)
                else:
                    self.heart.told(component)
            self.now += 1
            if all(ladder.escalated_at is not None for ladder in self.heart.ladders.values()):
                break
        assert {ladder.state for ladder in self.heart.ladders.values()} == {"escalated"}
        self.nobody_is_told_twice_of_one_incident()


TestClimbing = Climbing.TestCase
