"""An answer without a model that writes: the right sentences, with their sources, or an honest refusal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from understudy.models.embedder import Embedder
from understudy.models.extractive import (
    CANDIDATES_MAX,
    COSINE_MIN,
    PREFACE,
    Candidate,
    Extract,
    Passage,
    Quote,
    best_sentences,
    candidates,
    choose,
    precomputed,
    quote,
)
from understudy.models.sentences import SENTENCE_CHARS_MAX, content_words, sentences

# --- sentences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met Mr. Jones. They spoke.", ["Dr. Smith met Mr. Jones.", "They spoke."]),
        ("It costs 3.50 dollars. Cheap!", ["It costs 3.50 dollars.", "Cheap!"]),
        ("Version 2.0 of e.g. Python 3.11. It runs.", ["Version 2.0 of e.g. Python 3.11.", "It runs."]),
        ("J. R. R. Tolkien wrote it. So what?", ["J. R. R. Tolkien wrote it.", "So what?"]),
        ("He said “Why?” and left. She stayed.", ["He said “Why?” and left.", "She stayed."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("Wait... what? Yes.", ["Wait... what?", "Yes."]),
        ("The U.S. Senate voted. It passed.", ["The U.S. Senate voted.", "It passed."]),
        ("See Fig. 3 and No. 5. Then stop.", ["See Fig. 3 and No. 5.", "Then stop."]),
        ("So did I. We left.", ["So did I.", "We left."]),
        ("It ended in 1945. Peace came.", ["It ended in 1945.", "Peace came."]),
        ("A line\nthat wraps. And\ngoes on.", ["A line that wraps.", "And goes on."]),
        ("One paragraph\n\nAnother one", ["One paragraph", "Another one"]),
        ("# Heading\nText here.", ["Heading", "Text here."]),
        ("## Heading ##\nText", ["Heading", "Text"]),
        ("- first item\n- second item\n  goes on\n* third", ["first item", "second item goes on", "third"]),
        ("1. Open the lid.\n2. Close it. Done.", ["1. Open the lid.", "2. Close it.", "Done."]),
        (
            "Run:\n```sh\npip install x\npython -m y\n```\nThen stop.",
            ["Run:", "pip install x", "python -m y", "Then stop."],
        ),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["a | b", "1 | 2"]),
        ("> quoted words. More.", ["quoted words.", "More."]),
        ("塔高330米。建于1889年！真的？是的", ["塔高330米。", "建于1889年！", "真的？", "是的"]),
        ("彼は「行く。」と言った。終わり。", ["彼は「行く。」", "と言った。", "終わり。"]),
        ("ما هذا؟ هذا كتاب.", ["ما هذا؟", "هذا كتاب."]),
        ("यह पहला है। यह दूसरा है।", ["यह पहला है।", "यह दूसरा है।"]),
        ("Größe z.B. 5 cm. Ende.", ["Größe z.B. 5 cm.", "Ende."]),
        ("", []),
        (" \n\n \n", []),
        ("--- *** ...", []),
        ("?!", []),
    ],
)
def test_text_is_cut_into_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_what_never_ends_is_cut_at_a_space_and_loses_nothing() -> None:
    words = [f"word{number}" for number in range(1000)]
    cut = sentences(" ".join(words))
    assert all(len(sentence) <= SENTENCE_CHARS_MAX for sentence in cut)
    assert " ".join(cut).split() == words
    assert "".join(sentences("x" * 2000)) == "x" * 2000


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bridges", "bridge"),
        ("stopped", "stop"),
        ("running", "runs"),
        ("cities", "city"),
        ("measured", "measures"),
        ("boxes", "box"),
        ("Eiffel's", "eiffel"),
    ],
)
def test_forms_of_a_word_compare_equal(one: str, other: str) -> None:
    assert content_words(one) == content_words(other) != []


def test_words_without_meaning_are_left_out_and_scripts_without_spaces_go_by_pairs() -> None:
    assert content_words("What is the height of it?") == ["height"]
    assert content_words("埃菲尔铁塔") == ["埃菲", "菲尔", "尔铁", "铁塔"]
    assert content_words("in 2024 and 42") == ["2024", "42"]


# --- choosing ------------------------------------------------------------------------------------------------------

PARIS = Passage(
    "paris.md",
    "The Eiffel Tower stands in Paris. It was completed in March 1889. Gustave Eiffel's company designed it. "
    "The tower is 330 metres tall. Visitors like it.",
)
BAY = Passage("bay.md", "The Golden Gate Bridge opened in 1937. Its span measures 1,280 metres.")


def flat(texts: Sequence[str]) -> np.ndarray:
    """Vectors that know nothing: every text is as near to the question as every other."""
    return np.tile(np.array([1.0, 0.0], np.float32), (len(texts), 1))


def far(texts: Sequence[str]) -> np.ndarray:
    """Vectors that say: nothing here has to do with the question."""
    return np.array([[1.0, 0.0], *[[0.0, 1.0]] * (len(texts) - 1)], np.float32)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("When was the Eiffel Tower completed?", "1889"),
        ("In what year did the bridge open?", "1937"),
        ("How tall is the tower?", "330"),
        ("How many metres does the span measure?", "1,280"),
        ("Who designed the tower?", "Gustave"),
        ("Where does the Eiffel Tower stand?", "Paris"),
    ],
)
def test_the_kind_of_answer_asked_for_decides_between_sentences_with_the_same_words(question: str, answer: str) -> None:
    for vectors_of in (flat, None):
        best = best_sentences(question, [PARIS, BAY], vectors_of).quotes[0]
        assert answer in best.text
        assert best.source == ("bay.md" if "Bridge" in best.text or "span" in best.text else "paris.md")


def test_when_and_who_ask_for_dates_and_names_only_where_they_ask() -> None:
    passage = Passage("a", "Retries stop after the pause. The pause was added in 2019 by Ada.")
    asked = "What happens to callers who retry when they pause?"
    assert best_sentences(asked, [passage], flat).quotes[0].text == "Retries stop after the pause."
    assert "2019" in best_sentences("When was the pause added?", [passage], flat).quotes[0].text


def test_quotes_come_best_first_with_their_sources_and_as_many_as_asked_for() -> None:
    extract = best_sentences("How tall is the Eiffel Tower?", [PARIS, BAY], flat, k=2)
    assert [one.source for one in extract.quotes] == ["paris.md", "paris.md"]
    assert extract.quotes[0].score > extract.quotes[1].score
    assert extract.quotes[0].cosine == pytest.approx(1.0)
    assert extract.refused == ""
    assert len(best_sentences("tower?", [PARIS], flat, k=99).quotes) == 5


def test_meaning_decides_where_words_do_not() -> None:
    def vectors_of(texts: Sequence[str]) -> np.ndarray:
        return np.array([[1, 0], *([1, 0] if "Visitors" in text else [0, 1] for text in texts[1:])], np.float32)

    assert best_sentences("Beliebt?", [PARIS], vectors_of).quotes[0].text == "Visitors like it."


def test_it_refuses_only_what_is_far_and_shares_no_word() -> None:
    refused = best_sentences("Bake sourdough bread?", [PARIS, BAY], far)
    assert refused.quotes == ()
    assert "no sentence shares a word with the question" in refused.refused
    assert f"below {COSINE_MIN}" in refused.refused
    assert best_sentences("Bake sourdough bread?", [PARIS], flat).quotes
    assert best_sentences("Is a tower like bread?", [PARIS], far).quotes
    assert best_sentences("Bake sourdough bread?", [PARIS]).refused


def test_without_anything_to_quote_it_says_so() -> None:
    assert best_sentences("Why?", [], flat).refused == "there are no passages to quote from"
    assert best_sentences("Why?", [Passage("a", " \n--- ")], flat).refused == "there are no passages to quote from"
    assert best_sentences("", [PARIS], far).refused


def test_the_three_steps_apart_give_what_they_give_together() -> None:
    question = "How tall is the tower?"
    found = candidates(question, [PARIS, BAY])
    vectors = flat([question, *(candidate.text for candidate in found)])
    assert choose(question, found, vectors, 3) == best_sentences(question, [PARIS, BAY], flat, 3)


def test_a_sentence_that_stands_in_two_passages_is_quoted_once() -> None:
    again = Passage("copy.md", PARIS.text)
    assert [one.source for one in candidates("tower", [PARIS, again])] == ["paris.md"] * 5


def test_of_too_many_sentences_those_are_kept_that_share_words_with_the_question() -> None:
    noise = Passage("noise", " ".join(f"Nothing happens on line {number}." for number in range(500)))
    found = candidates("How tall is the tower?", [noise, PARIS])
    assert len(found) == CANDIDATES_MAX
    assert Candidate("The tower is 330 metres tall.", "paris.md") in found


def test_stored_vectors_are_looked_up_and_only_the_others_embedded_together() -> None:
    asked: list[list[str]] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        asked.append(list(texts))
        return np.array([[0.0, len(text)] for text in texts])

    vectors_of = precomputed({"a": np.array([1.0, 0.0])}, embed)
    assert vectors_of(["bb", "a", "ccc", "bb"]).tolist() == [[0, 2], [1, 0], [0, 3], [0, 2]]
    assert asked == [["bb", "ccc"]]
    assert vectors_of(["a"]).tolist() == [[1, 0]]
    assert len(asked) == 1


def test_the_text_says_that_it_is_a_fallback_and_quotes_with_sources() -> None:
    extract = Extract((Quote("The tower is 330 metres tall.", "paris.md", 1.5, 0.8), Quote("So it is.", "", 1.0, 0.5)))
    assert quote(extract, "-") == f"{PREFACE}\n\n- “The tower is 330 metres tall.” (paris.md)\n- “So it is.”"
    assert "the answering model is unavailable" in quote(extract, "-")
    assert quote(extract, "-", preface="Aushilfe:").startswith("Aushilfe:\n\n- “The tower")
    assert quote(Extract(refused="nothing"), "Try again later.") == "Try again later."


# --- quality -------------------------------------------------------------------------------------------------------

QUESTIONS, FEW = 300, 200
K1, B = 1.2, 0.75
WORD = r"\w+"


class Keywords:
    """BM25 over all passages: the retriever that stands before the extract in the second half of the measurement."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(content_words(text)) for text in texts]
        self.lengths = np.array([sum(count.values()) for count in counts], np.float64)
        self.holders: dict[str, list[tuple[int, int]]] = {}
        for index, count in enumerate(counts):
            for word, times in count.items():
                self.holders.setdefault(word, []).append((index, times))

    def best(self, question: str, k: int) -> list[int]:
        scores = np.zeros(len(self.lengths))
        norm = K1 * (1 - B + B * self.lengths / self.lengths.mean())
        for word in set(content_words(question)):
            holders = self.holders.get(word, [])
            idf = np.log1p((len(scores) - len(holders) + 0.5) / (len(holders) + 0.5))
            for index, times in holders:
                scores[index] += idf * times * (K1 + 1) / (times + norm[index])
        return [int(index) for index in np.argsort(-scores, kind="stable")[:k]]


def is_answered(answers: Sequence[str], quotes: Sequence[Quote]) -> bool:
    """Whether a gold answer stands, as whole words, in what is quoted."""
    text = plain(" ".join(one.text for one in quotes))
    return any(plain(answer) in text for answer in answers)


def plain(text: str) -> str:
    return f" {' '.join(re.findall(WORD, text.casefold()))} "


@pytest.mark.beside("shared/data/squad-dev")
def test_the_gold_answer_is_in_what_is_quoted_as_often_as_was_measured(
    embedder: Embedder, squad: Callable[[str], list[dict[str, Any]]], record_property: Callable[[str, object], None]
) -> None:
    passages, questions = squad("passages.jsonl"), squad("questions.jsonl")
    dice = np.random.default_rng(11)
    sample = [questions[index] for index in dice.choice(len(questions), QUESTIONS, replace=False)]
    few = sample[:FEW]
    keywords = Keywords([passage["text"] for passage in passages])
    known: dict[str, np.ndarray] = {}

    def vectors_of(texts: Sequence[str]) -> np.ndarray:
        vectors = precomputed(known, embedder.embed)(texts)
        known.update(zip(texts, vectors, strict=True))
        return vectors

    def share(found: Callable[[dict[str, Any]], Sequence[int]], k: int, asked: Sequence[dict[str, Any]]) -> float:
        hits = 0
        for one in asked:
            given = [Passage(str(index), passages[index]["text"]) for index in found(one)]
            hits += is_answered(one["answers"], best_sentences(one["question"], given, vectors_of, k).quotes)
        return hits / len(asked)

    measured = {
        "right paragraph, 1 sentence": share(lambda one: [one["passage"]], 1, sample),
        "right paragraph, 3 sentences": share(lambda one: [one["passage"]], 3, sample),
        "5 paragraphs, 1 sentence": share(lambda one: keywords.best(one["question"], 5), 1, few),
        "5 paragraphs, 3 sentences": share(lambda one: keywords.best(one["question"], 5), 3, few),
    }
    record_property("answer_in_quote", measured)
    print(measured)
    # Over 2,000 questions: .835, .978, .711, .853; a sample of 200 may lie three points off.
    bars = (0.80, 0.95, 0.67, 0.83)
    assert [value >= bar for value, bar in zip(measured.values(), bars, strict=True)] == [True] * 4, measured
