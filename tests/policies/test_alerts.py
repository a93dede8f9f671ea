"""What is told of an alert: that it began, that it goes on, that it is over; and nothing that another one explains."""

from __future__ import annotations

from understudy.policies.alerts import ALERTS_MAX, RESEND_S, TELL_S, Alert, Desk, Notice, without_effects

BEGIN = 1_800_000_000.0


def alert(name: str = "UnderstudyLate", route: str = "chat", severity: str = "critical", summary: str = "") -> Alert:
    labels = {"alertname": name, "route": route, "severity": severity}
    return Alert(tuple(sorted(labels.items())), {"summary": summary})


def told(notices: list[Notice]) -> list[tuple[str, bool, bool]]:
    """Each notice's alert, whether it goes on, and whether it is news."""
    return [(dict(one.alert.labels)["alertname"], one.ends_at is None, one.is_news) for one in notices]


def test_it_is_told_at_once_then_each_minute_and_when_it_is_over_for_five_minutes_more():
    desk = Desk()
    wrong = [alert()]
    assert told(desk.look(BEGIN, wrong)) == [("UnderstudyLate", True, True)]
    heard = [told(desk.look(BEGIN + at, wrong)) for at in range(10, 190, 10)]
    assert sum(map(len, heard)) == 180 // RESEND_S
    assert {one for each in heard for one in each} == {("UnderstudyLate", True, False)}
    over = [desk.look(BEGIN + 190 + at, []) for at in range(0, 600, 10)]
    assert told(over[0]) == [("UnderstudyLate", False, True)]
    assert sum(map(len, over)) == 1 + TELL_S // RESEND_S
    assert {one.ends_at for each in over for one in each} == {BEGIN + 190}
    assert {one.starts_at for each in over for one in each} == {BEGIN}
    assert desk.firing == []


def test_what_begins_again_is_a_new_one():
    desk = Desk()
    desk.look(BEGIN, [alert()])
    desk.look(BEGIN + 10, [])
    [again] = desk.look(BEGIN + 20, [alert()])
    assert (again.starts_at, again.ends_at, again.is_news) == (BEGIN + 20, None, True)


def test_how_it_is_now_is_told_and_is_no_other_alert():
    desk = Desk()
    [first] = desk.look(BEGIN, [alert(summary="2 %")])
    [second] = desk.look(BEGIN + RESEND_S, [alert(summary="90 %")])
    assert second.alert.annotations == {"summary": "90 %"}
    assert first.alert.fingerprint == second.alert.fingerprint
    assert len({alert().fingerprint, alert(route="docs").fingerprint, alert(severity="warning").fingerprint}) == 3


def test_calls_that_nobody_answers_explain_errors_lateness_and_fallbacks_of_their_route_and_of_no_other():
    names = ["UnderstudyErrors", "UnderstudyLate", "UnderstudyOnFallback"]
    wrong = [alert("UnderstudyUnanswered"), *map(alert, names), alert("UnderstudyLate", route="docs")]
    left = without_effects(wrong)
    assert [dict(one.labels)["alertname"] for one in left] == ["UnderstudyUnanswered", "UnderstudyLate"]
    assert dict(left[1].labels)["route"] == "docs"
    assert told(Desk().look(BEGIN, [alert("UnderstudyErrors"), alert("UnderstudyOnFallback")])) == [
        ("UnderstudyErrors", True, True),
        ("UnderstudyOnFallback", True, True),
    ]


def test_who_is_on_its_fallback_is_late_for_that_reason_unless_somebody_has_to_be_woken_for_it():
    mild = alert("UnderstudyOnFallback", severity="warning")
    effects = [alert(name, severity="warning") for name in ("UnderstudyLate", "UnderstudyRetrieval")]
    page, other = alert("UnderstudyLate", severity="critical"), alert("UnderstudyLate", "docs", "warning")
    assert without_effects([mild, *effects, page, other]) == [mild, page, other]
    assert without_effects([*effects, page]) == [*effects, page]


def test_what_fired_before_a_restart_is_no_news_after_it_and_its_end_is():
    desk, other = Desk(), Desk()
    desk.look(BEGIN, [alert(summary="bad")])
    for kept in desk.kept():
        other.recall(kept["labels"], kept["annotations"], kept["starts_at"])  # pyright: ignore[reportArgumentType]
    assert [one.is_news for one in other.look(BEGIN + RESEND_S, [alert()])] == [False]
    [over] = other.look(BEGIN + 90, [])
    assert (over.is_news, over.starts_at, over.ends_at) == (True, BEGIN, BEGIN + 90)


def test_there_is_a_bound_on_what_may_fire_at_once():
    desk = Desk()
    desk.look(BEGIN, [alert(route=f"r{n}") for n in range(ALERTS_MAX + 5)])
    assert (len(desk.firing), desk.dropped) == (ALERTS_MAX, 5)
