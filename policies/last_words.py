"""What is said when no model can be reached, and in which order. Each of them says what it is.

    a question that was foreseen?  written alike ──yes──> its prepared answer              source pre-computed
                                   meant alike (vectors), and nothing sets them apart ──yes──^
    an answer to this very prompt is kept, stale, or to a question alike      (cache, likeness)
    sentences of the prompt's own context or of the index answer it           (the local tier)   source extractive
    a message, where the policy has one; else the error                                          source message

Whoever asked for tools or for JSON gets none of these: a text that is parsed would be worse than an honest error.

What was written beforehand goes first, since somebody answers for it. It is found by its wording, or by a vector: the
threshold alone takes "safe" for "not safe", so `understudy.policies.wording` must find nothing that sets the two
questions apart, and the answer names the question it was written for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from understudy.policies.wording import Gist, gist_of, wording_of

__all__ = [
    "MESSAGE",
    "MESSAGE_SOURCE",
    "PREPARED_SOURCE",
    "Foreseen",
    "Found",
    "Prepared",
    "message_text",
    "prepared_text",
]

PREPARED_SOURCE = "pre-computed"
MESSAGE_SOURCE = "message"
NEAREST = 8
"""So many of the nearest questions are held against what was asked: beyond them nobody has come to the same meaning."""

_LEAD = "This is a fallback answer: the answering model is unavailable. "
MESSAGE = (
    "This is a fallback answer: the answering model is unavailable, "
    "and no passage was found that is close enough to your question to be quoted. Please try again later."
)


class Prepared(NamedTuple):
    """An answer that was written beforehand, the questions it answers, its source where it has one, and where it
    stands (`answers.yaml:12`)."""

    questions: tuple[str, ...]
    answer: str
    source: str = ""
    place: str = ""


class Found(NamedTuple):
    """A prepared answer, the question of it that fits, and how: `exact`, `loose`, or `alike` by vectors."""

    prepared: Prepared
    question: str
    how: str


def prepared_text(found: Found) -> str:
    """The answer as it is given: it names the question it was written for."""
    source = f"\n\n(Source: {found.prepared.source})" if found.prepared.source else ""
    lead = f"{_LEAD}This one was written beforehand, for the question “{found.question}”:"
    return f"{lead}\n\n{found.prepared.answer}{source}"


def message_text(message: str) -> str:
    """An operator's message as it is given, or the one that is given where there is none."""
    return f"{_LEAD}{message}" if message else MESSAGE


class Foreseen:
    """The questions that were foreseen. Built once for a set of files and never changed."""

    __slots__ = ("_exact", "_gists", "_loose", "entries", "questions")

    def __init__(self, entries: Iterable[Prepared]) -> None:
        self.entries = tuple(entries)
        self.questions: list[tuple[str, Prepared]] = [(one, entry) for entry in self.entries for one in entry.questions]
        self._gists: list[Gist | None] = [gist_of(question) for question, _ in self.questions]
        self._exact: dict[str, int] = {}
        self._loose: dict[str, int] = {}
        for number, (question, _) in enumerate(self.questions):
            wording = wording_of(question)
            if wording is not None:
                self._exact.setdefault(wording.exact, number)
                self._loose.setdefault(wording.loose, number)

    def worded(self, asked: str) -> Found | None:
        """The answer to a question in the same words, but for case, punctuation, politeness, articles and plurals."""
        wording = wording_of(asked)
        if wording is None:
            return None
        if (number := self._exact.get(wording.exact)) is not None:
            return self._found(number, "exact")
        number = self._loose.get(wording.loose)
        return None if number is None else self._found(number, "loose")

    def alike(self, asked: str, nearest: Sequence[int]) -> Found | None:
        """The answer to the first of the `nearest` questions (numbers, best first, all within the threshold) that
        nothing sets apart from what was asked."""
        gist = gist_of(asked)
        if gist is None:
            return None
        for number in nearest[:NEAREST]:
            other = self._gists[number]
            if other is not None and gist.fits(other):
                return self._found(number, "alike")
        return None

    def _found(self, number: int, how: str) -> Found:
        question, entry = self.questions[number]
        return Found(entry, question, how)
