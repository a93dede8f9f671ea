"""Calls of one question find each other by trace, by text and by passages, while a fallback has a part in it."""

from __future__ import annotations

import json
import random

from understudy.policies.questions import (
    LEG_S_MIN,
    LEGS_MAX,
    PRINTS_MAX,
    QUESTIONS_MAX,
    Leg,
    Question,
    Questions,
    prints_of,
    shared_deadline,
    text_prints,
)
from understudy.proxy.settings.settings import Questions as Rules

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
EMBED = Leg("embed", "embeddings", "secondary", "local-embed")
WORDS = Leg("retrieve", "retrieval", "secondary", "local-index", "keywords")
PASSAGES = [
    "The breaker opens after five failures in a row. It asks again after thirty seconds; one probe at a time.",
    "Ein Stromkreisunterbrecher öffnet sich nach fünf Fehlern. Danach fragt er wieder.",
    "断路器在连续五次失败之后打开。三十秒之后它会再次询问，每次只有一个探测。",
]


def heart(**rules: float) -> Questions:
    return Questions(Rules(**rules))


def found(*passages: str, ascii: bool = True) -> bytes:
    points = [{"id": n, "payload": {"text": text}, "vector": [0.125] * 40} for n, text in enumerate(passages)]
    return json.dumps({"result": points}, ensure_ascii=ascii).encode()


def prompt(*passages: str, ascii: bool = True) -> bytes:
    text = "Answer by these alone:\n\n" + "\n\n".join(passages) + "\n\nWhat does the breaker do after a failure?"
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}, ensure_ascii=ascii).encode()


def fallen(questions: Questions, *legs: Leg, id: str = "q", passages: bytes = b"") -> Question:
    question = questions.begun(id, 0.0)
    for leg in legs:
        questions.fell(question, leg, 0.0, prints=prints_of(passages))
    return question


def test_nothing_is_armed_until_a_fallback_answers_and_nothing_a_while_after():
    questions = heart(kept_s=60)
    assert not questions.armed
    question = fallen(questions, WORDS, id=TRACE)
    assert questions.armed
    questions.sweep(59.0)
    assert questions.of_trace(TRACE, 59.0) is question
    questions.sweep(61.0)
    assert (len(questions), questions.armed) == (0, False)


def test_a_leg_says_its_tier_its_source_and_how_as_a_structured_header():
    question = fallen(heart(), EMBED, WORDS)
    assert question.built_on == (
        'embed;tier=secondary;source="local-embed", retrieve;tier=secondary;source="local-index";how=keywords'
    )


def test_passages_are_known_in_a_prompt_in_any_language_and_however_their_letters_are_escaped():
    for passage in PASSAGES:
        for one in (True, False):
            for other in (True, False):
                questions = heart()
                question = fallen(questions, WORDS, passages=found(passage, ascii=one))
                assert questions.of_prompt(prompt("Something else entirely. " * 3, ascii=other), b"") is None
                assert questions.of_prompt(prompt(passage, ascii=other), b"") is question, (passage, one, other)


def test_a_passage_that_was_cut_short_is_known_by_the_sentences_that_are_left():
    questions = heart()
    question = fallen(questions, WORDS, passages=found(PASSAGES[0]))
    assert questions.of_prompt(prompt(PASSAGES[0][:70]), b"") is question


def test_the_question_whose_passages_are_most_of_the_prompts_counts_and_among_equals_the_latest():
    questions = heart()
    one = fallen(questions, WORDS, id="one", passages=found(PASSAGES[0], PASSAGES[1]))
    two = questions.begun("two", 1.0)
    questions.fell(two, WORDS, 1.0, prints=prints_of(found(PASSAGES[1])))
    assert questions.of_prompt(prompt(PASSAGES[0], PASSAGES[1]), b"") is one
    assert questions.of_prompt(prompt(PASSAGES[1]), b"") is two


def test_one_tenants_passages_and_texts_are_not_anothers():
    questions = heart()
    question = questions.begun("q", 0.0)
    prints, texts = prints_of(found(PASSAGES[0]), b"one"), text_prints(["why?"], b"one")
    questions.fell(question, WORDS, 0.0, prints=prints, texts=texts)
    assert questions.of_prompt(prompt(PASSAGES[0]), b"other") is None
    assert questions.of_text("why?", b"other") is None
    assert questions.of_prompt(prompt(PASSAGES[0]), b"one") is question
    assert questions.of_text("why?", b"one") is question
    assert questions.linked == {"trace": 0, "vector": 1, "text": 1}


def test_vectors_ids_and_keys_are_no_passages():
    body = json.dumps({"result": [{"id": "5c56c793-69f3-4fbf-87e6-c4bf54c28c26", "vector": [0.1] * 500}]}).encode()
    assert prints_of(body) == []
    assert prints_of(b'{"embedding": "' + b"QUJD" * 500 + b'"}') == []


def test_what_one_process_tells_is_known_to_the_other():
    one, two = heart(), heart()
    question = one.begun(TRACE, 5.0)
    told = one.fell(question, EMBED, 5.0, texts=text_prints(["why?"], b""))
    two.hear(told, 5.1)
    two.hear(one.fell(question, WORDS, 5.2, prints=prints_of(found(PASSAGES[0]))), 5.3)
    heard = two.of_trace(TRACE, 5.4)
    assert heard is not None
    assert (heard.began, heard.legs) == (5.0, (EMBED, WORDS))
    assert two.of_text("why?", b"") is heard
    assert two.of_prompt(prompt(PASSAGES[0]), b"") is heard


def test_a_question_with_a_deadline_begins_with_the_first_call_of_its_trace():
    questions = heart(deadline_s=10)
    assert questions.armed
    first = questions.of_trace(TRACE, 100.0)
    assert first is not None
    assert questions.of_trace(TRACE, 104.0) is first
    assert shared_deadline(first, 160.0, 104.0) == 110.0
    assert shared_deadline(first, 105.0, 104.0) == 105.0
    # a leg that comes too late is given a moment all the same
    assert shared_deadline(first, 160.0, 111.0) == 111.0 + LEG_S_MIN
    assert questions.recent(8) == []
    questions.sweep(200.0)
    assert (len(questions), questions.armed) == (0, True)


def test_everything_that_is_remembered_is_bounded():
    questions, rng = heart(), random.Random(1)
    for n in range(2 * QUESTIONS_MAX):
        question = questions.begun(f"q{n}", float(n))
        prints = [rng.getrandbits(60) for _ in range(40)]
        for legs in range(LEGS_MAX + 2):
            questions.fell(question, Leg("generate", "chat", "secondary", str(legs)), float(n), prints=prints[:legs])
        questions.fell(question, None, float(n), prints=prints)
    assert len(questions) == QUESTIONS_MAX
    assert len(question.legs) == LEGS_MAX
    assert len(questions._prints) <= PRINTS_MAX  # pyright: ignore[reportPrivateUsage]
    questions.sweep(1e9)
    assert len(questions._prints) == 0  # pyright: ignore[reportPrivateUsage]
