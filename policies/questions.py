"""One question is several calls: what a fallback answered on the way is known on the legs that are built on it.

    embed ---------> retrieve ---------> generate
      | the trace they share, or else
      +-- its vector --+-- the passages in the prompt --+

Nothing is remembered while every leg is answered by its primary, and nothing is looked for while nothing is remembered.
Passages are known again by fingerprints of their sentences: a checksum and a length each, for as long as an application
takes from a search to a prompt.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple, Protocol

QUESTIONS_MAX = 1024
PRINTS_MAX = 16_384
LEGS_MAX = 8
TEXTS_MAX = 16
"""Texts of one embedding that it is known again by; more of them are documents, and no question."""
SENTENCE_BYTES_MIN = 24
"""What is shorter stands in many a prompt."""
SENTENCES_MAX = 512
LOOKED_BYTES_MAX = 256 * 1024
"""How much of a body is looked through."""
LEG_S_MIN = 0.5
"""Seconds that a leg is given, however late its question is."""

_ESCAPED = re.compile(rb"\\u([0-9a-fA-F]{4})")
_BETWEEN = re.compile(rb'(?:\\.|[".!?;:\x00-\x1f]|\xe3\x80\x82|\xef\xbc[\x81\x9a\x9b\x9f])+', re.DOTALL)
"""What stands between sentences in JSON: quotes, escapes, marks of Latin and Chinese punctuation."""


class Leg(NamedTuple):
    """A call of a question that its primary did not answer: `how` says what is to be known of the answer itself."""

    kind: str
    route: str
    tier: str
    source: str
    how: str = ""

    @property
    def said(self) -> str:
        """As a header has it, an item of a structured list (RFC 9651)."""
        more = f";how={self.how}" if self.how else ""
        return f'{self.kind};tier={self.tier};source="{self.source}"{more}'


class Told(NamedTuple):
    """A question as processes tell each other of it. `began` and `deadline` are on the clock that all of them share."""

    id: str
    began: float
    legs: tuple[Leg, ...]
    texts: tuple[int, ...] = ()
    prints: tuple[int, ...] = ()


class Question:
    """What is known of one question. Times are seconds on the event loop's clock."""

    __slots__ = ("began", "deadline", "id", "legs", "seen")

    def __init__(self, id: str, began: float, deadline: float) -> None:
        self.id = id
        self.began = began
        self.deadline = deadline
        self.seen = began
        self.legs: tuple[Leg, ...] = ()

    @property
    def built_on(self) -> str:
        """The legs so far that a fallback answered, as a header says it."""
        return ", ".join(leg.said for leg in self.legs)


class QuestionRules(Protocol):
    """What questions go by (`Questions` of `proxy/settings`)."""

    @property
    def deadline_s(self) -> float | None: ...
    @property
    def kept_s(self) -> float: ...


class Questions:
    """The pure heart: the questions of the last minute that a fallback had a part in. Bounded; the oldest go first."""

    __slots__ = ("_prints", "_questions", "_texts", "armed", "linked", "rules", "seen")

    def __init__(self, rules: QuestionRules) -> None:
        self._questions: dict[str, Question] = {}
        self._texts: dict[int, str] = {}
        self._prints: dict[int, str] = {}
        self.linked = {"trace": 0, "vector": 0, "text": 0}
        self.seen = 0
        self.obey(rules)

    def __len__(self) -> int:
        return len(self._questions)

    def obey(self, rules: QuestionRules) -> None:
        """Go by these rules from now on."""
        self.rules = rules
        self.armed = bool(self._questions) or rules.deadline_s is not None

    def recent(self, count: int) -> list[Question]:
        """The last questions that a fallback had a part in, the latest first."""
        return [question for question in reversed(self._questions.values()) if question.legs][:count]

    # --- which question is it? -------------------------------------------------------------------------------------

    def begun(self, id: str, now: float) -> Question:
        """The question of this id, a new one if need be."""
        question = self._questions.get(id)
        if question is None:
            deadline_s = self.rules.deadline_s
            question = Question(id, now, inf if deadline_s is None else now + deadline_s)
            while len(self._questions) >= QUESTIONS_MAX:
                del self._questions[next(iter(self._questions))]
            self._questions[id] = question
            self.armed = True
        return question

    def of_trace(self, trace: str, now: float) -> Question | None:
        """The question whose calls have this trace. Where a question has a deadline, its first call begins it."""
        question = self._questions.get(trace) if trace else None
        if question is None:
            return self.begun(trace, now) if trace and self.rules.deadline_s is not None else None
        if question.legs:
            self.linked["trace"] += 1
        return question

    @property
    def looks_for_vectors(self) -> bool:
        """Whether a fallback has lately embedded something that may come back as a search."""
        return bool(self._texts)

    def of_text(self, text: str, tenant: bytes) -> Question | None:
        """The question that a fallback has embedded this text for."""
        question = self._questions.get(self._texts.get(_text_print(text, tenant), ""))
        if question is not None:
            self.linked["vector"] += 1
        return question

    def of_prompt(self, body: bytes, tenant: bytes) -> Question | None:
        """The question whose passages stand in this prompt: most of them, and among equals the latest."""
        if not self._prints:
            return None
        hits: dict[str, int] = {}
        for each in prints_of(body, tenant):
            known = self._prints.get(each)
            if known is not None:
                hits[known] = hits.get(known, 0) + 1
        best = max(hits, key=lambda one: (hits[one], self._began(one)), default="")
        question = self._questions.get(best)
        if question is not None:
            self.linked["text"] += 1
        return question

    def _began(self, id: str) -> float:
        question = self._questions.get(id)
        return -inf if question is None else question.began

    # --- what becomes of it ----------------------------------------------------------------------------------------

    def fell(
        self, question: Question, leg: Leg | None, now: float, *, texts: Iterable[int] = (), prints: Iterable[int] = ()
    ) -> Told:
        """A fallback has answered a leg, or its primary has one that is built on such a leg (None): what the other
        processes are to be told of it."""
        if not question.legs:
            self.seen += 1
        if leg is not None and len(question.legs) < LEGS_MAX and leg not in question.legs:
            question.legs = (*question.legs, leg)
        question.seen = now
        told = Told(question.id, question.began, question.legs, tuple(texts), tuple(prints))
        self._note(told)
        return told

    def hear(self, told: Told, now: float) -> None:
        """Another process says that a fallback has answered a leg."""
        question = self.begun(told.id, told.began)
        question.seen = now
        question.legs = tuple(dict.fromkeys((*question.legs, *told.legs)))[:LEGS_MAX]
        self._note(told)

    def _note(self, told: Told) -> None:
        for prints, to in ((told.texts, self._texts), (told.prints, self._prints)):
            for each in prints:
                # the latest word on a text counts, and goes last
                to.pop(each, None)
                to[each] = told.id
            while len(to) > PRINTS_MAX:
                del to[next(iter(to))]

    def sweep(self, now: float) -> None:
        """Forget what nobody has asked about for a while."""
        kept_s = max(self.rules.kept_s, self.rules.deadline_s or 0.0)
        questions = self._questions
        for gone in [known for known, question in questions.items() if now - question.seen > kept_s]:
            del questions[gone]
        for prints in (self._texts, self._prints):
            for each in [each for each, known in prints.items() if known not in questions]:
                del prints[each]
        self.armed = bool(self._questions) or self.rules.deadline_s is not None


def shared_deadline(question: Question, own: float, now: float) -> float:
    """By when a leg must be answered: by its own deadline or its question's, but it is given a moment."""
    return min(own, max(question.deadline, now + LEG_S_MIN))


# --- fingerprints --------------------------------------------------------------------------------------------------


def prints_of(body: bytes, tenant: bytes = b"") -> list[int]:
    """Fingerprints of the sentences in a body of JSON, request or answer, however its letters are escaped."""
    body = body[:LOOKED_BYTES_MAX]
    if b"\\u" in body:
        body = _ESCAPED.sub(lambda found: chr(int(found[1], 16)).encode("utf-8", "surrogatepass"), body)
    begun = zlib.crc32(tenant)
    found: list[int] = []
    for sentence in _BETWEEN.split(body):
        sentence = sentence.strip()
        # what has no space in it is a key, a number or a vector in base64
        if len(sentence) >= SENTENCE_BYTES_MIN and (b" " in sentence or sentence[0] >= 0x80):
            found.append(len(sentence) << 32 | zlib.crc32(sentence, begun))
            if len(found) >= SENTENCES_MAX:
                break
    return found


def text_prints(texts: Sequence[str], tenant: bytes) -> list[int]:
    """What the texts of an embedding are known again by; nothing for many at once."""
    return [_text_print(text, tenant) for text in texts] if len(texts) <= TEXTS_MAX else []


def _text_print(text: str, tenant: bytes) -> int:
    told = text.encode("utf-8", "surrogatepass")
    return len(told) << 32 | zlib.crc32(told, zlib.crc32(tenant))


Publish = Callable[[Told], None]
"""Tells the other processes."""
