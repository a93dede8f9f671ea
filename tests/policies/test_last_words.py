"""A prepared answer is given to the question it was written for, however it is put, and to none that looks like it."""

from __future__ import annotations

import pytest

from tests.kit.pairs import NEAR_MISSES, SAME_MEANING
from understudy.policies.last_words import MESSAGE, NEAREST, Foreseen, Prepared, message_text, prepared_text
from understudy.policies.wording import gist_of

RESET = Prepared(("How do I reset my password?", "I forgot my password, what do I do?"), "Follow the link.", "Handbook")
HOURS = Prepared(("What are your opening hours?",), "From 8 to 18.")
FORESEEN = Foreseen([RESET, HOURS])


@pytest.mark.parametrize(
    ("asked", "how"),
    [
        ("How do I reset my password?", "exact"),
        ("hello, how do I reset my password please", "exact"),
        ("I forgot my password what do I do", "exact"),
        ("What are the opening hours?", None),
        ("What are your opening hour?", "loose"),
        ("How do I reset my passwords?", "loose"),
        ("How do I not reset my password?", None),
        ("", None),
        ("x" * 5000, None),
    ],
)
def test_a_question_is_found_by_its_words_but_for_what_never_counts(asked: str, how: str | None) -> None:
    found = FORESEEN.worded(asked)
    assert (found.how if found else None) == how


def test_a_question_that_means_the_same_is_found_among_the_nearest_unless_something_sets_them_apart() -> None:
    found = FORESEEN.alike("How can I set up my password again?", [0, 1, 2])
    assert found is not None
    assert (found.prepared, found.question, found.how) == (RESET, "How do I reset my password?", "alike")
    assert FORESEEN.alike("How do I reset your password?", [0]) is None
    assert FORESEEN.alike("How do I reset my password 2 times?", [0]) is None
    assert FORESEEN.alike("Why do I reset my password?", [0]) is None
    assert FORESEEN.alike("How do I reset my Slack password?", [0]) is None
    assert FORESEEN.alike("How do I reset my password?", []) is None


def test_only_the_nearest_few_are_held_against_the_question() -> None:
    many = Foreseen([Prepared((f"How do I reset item {number}?",), "…") for number in range(NEAREST)] + [HOURS])
    assert many.alike("What are your opening hours?", [*range(NEAREST), NEAREST]) is None
    assert many.alike("What are your opening hours?", [NEAREST]) is not None


def test_the_answer_says_what_it_is_and_which_question_it_was_written_for() -> None:
    found = FORESEEN.worded("how do i reset my password")
    assert found is not None
    text = prepared_text(found)
    assert text.startswith("This is a fallback answer: the answering model is unavailable.")
    assert "written beforehand, for the question “How do I reset my password?”:\n\nFollow the link." in text
    assert text.endswith("(Source: Handbook)")
    hours = FORESEEN.worded("what are your opening hours")
    assert hours is not None
    assert "Source" not in prepared_text(hours)


def test_a_message_says_what_it_is_too() -> None:
    assert message_text("Call 555-0100.") == (
        "This is a fallback answer: the answering model is unavailable. Call 555-0100."
    )
    assert message_text("") == MESSAGE


def test_of_two_entries_for_one_question_the_first_answers() -> None:
    twice = Foreseen([HOURS, Prepared(HOURS.questions, "Never.")])
    found = twice.worded("What are your opening hours?")
    assert found is not None
    assert found.prepared.answer == "From 8 to 18."


# --- the guards, on pairs that vectors take for alike ----------------------------------------------------------------


def fits(one: str, other: str) -> bool:
    mine, theirs = gist_of(one), gist_of(other)
    return mine is not None and theirs is not None and mine.fits(theirs)


def test_the_guards_stop_most_near_misses_and_let_pass_what_means_the_same() -> None:
    passed = [pair for pair in NEAR_MISSES if fits(pair.one, pair.other)]
    # What passes still has to be near by its vector: 15 of these 202 at cosine .88.
    assert len(passed) <= 0.2 * len(NEAR_MISSES), passed
    missed = [pair for pair in SAME_MEANING if not fits(pair.one, pair.other)]
    assert len(missed) <= 1, missed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I get from Paris to London?", "How do I get from London to Paris?"),
        ("Is it safe during pregnancy?", "Is it not safe during pregnancy?"),
        ("Which ports are open?", "Which ports are closed?"),
        ("Can I see my invoice?", "Can I see your invoice?"),
        ("Who is the CEO?", "Who was the CEO?"),
        ("How do I install Postgres?", "How do I install MySQL?"),
        ("When does the sale begin?", "When does the sale end?"),
        ("What changed in version 2.1?", "What changed in version 2.2?"),
        ("You can export the data", "Can you export the data"),
    ],
)
def test_what_sets_two_questions_apart_is_seen_from_both_sides(one: str, other: str) -> None:
    assert not fits(one, other)
    assert not fits(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I reset my password?", "How can I reset my password?"),
        ("Whom do I call when the database is down?", "Who do I call if the database is down?"),
        ("How do I cancel my subscription?", "How can I end my subscription?"),
        ("Where do I find my invoice?", "Where can I see my invoices?"),
    ],
)
def test_other_words_for_the_same_do_not_set_questions_apart(one: str, other: str) -> None:
    assert fits(one, other)
    assert fits(other, one)


def test_a_gist_is_of_a_question_and_of_nothing_longer_or_empty() -> None:
    assert gist_of("") is None
    assert gist_of("x " * 2000) is None
