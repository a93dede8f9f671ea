"""Say whether two texts ask the same in other words, and whether two answers say the same.

    text --> tokens --> exact   case, punctuation, contractions and politeness taken away
                   \\--> loose   the, plurals, and "in" for "of" taken away as well

Vectors cannot tell "Paris to London" from "London to Paris" (cosine .997), nor "safe" from "not safe" (.992). What must
not differ between two questions is a list without end, so there is none: what *may* differ is written down here, and
every other word, number, sign and their order must be the same. By that, a number, a date, a name, a negation, a
comparative, a question word or a swapped pair is never passed over. Every word that is added to what may differ has to
pass the near misses in the tests.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

Grade = Literal["exact", "loose"]
"""How two texts are alike: in all that counts, or but for a word that rarely does."""

TEXT_CHARS_MAX = 1000
"""Longer texts are compared with nobody: they are documents, and a question among them is asked once."""


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_TOKEN = re.compile(r"\w+(?:[.,:'/@&+_-]\w+)*|\S")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_PUNCTUATION = frozenset("?!.,;:\"'`…-–—¿¡()")
_QUOTES = " \t\n\"'`”’»)?!"
_PAUSES = frozenset(".,;:-–—")
_FORMULA = frozenset("+*/=^<>|&{}[]")
_APOSTROPHES = str.maketrans("’‘´“”«»", "'" * 3 + '"' * 4)

_QUESTION_WORDS = _listed("what who whom whose which where when why how")
_STARTERS = _QUESTION_WORDS | _listed(
    "is are was were do does did can could will would shall should may might must has have had am whats"
)
_NEGATIONS = _listed("no not never none nobody nothing neither nor without cannot n't")

# Names that are other words in small letters: for these alone the case of the first letter counts.
_CASED = _listed(
    """access act ada aids amazon apple august bath bill cat catholic china chrome cork dart discover earth edge excel
    flash gap go hamlet it java job lent lima march mark may mercury meta mobile nice oracle outlook pascal pin
    polish ram reading rose ruby rust safari sat shell slack swift target teams turkey us visa who will windows word
    zoom
    """
)
_CONTRACTED = {
    "can't": ("can", "not"),
    "cannot": ("can", "not"),
    "won't": ("will", "not"),
    "shan't": ("shall", "not"),
    "let's": ("let", "us"),
    "i'm": ("i", "am"),
    "whats": ("what", "is"),
}
# After these "'s" is "is"; after a name it may be the owner's.
_BEFORE_IS = _QUESTION_WORDS | {"it", "that", "there", "here", "he", "she"}
_ENDINGS = {"'re": "are", "'ll": "will", "'ve": "have"}

_POLITE = frozenset({"please", "kindly"})
_GREETINGS = frozenset({"hi", "hello", "hey"})
_POLITE_OR_GREETING = _POLITE | _GREETINGS
_ASKING = tuple(
    tuple(phrase.split())
    for phrase in (
        "can you tell me",
        "could you tell me",
        "would you tell me",
        "do you know",
        "i want to know",
        "i would like to know",
        "tell me",
    )
)
"""Openings that say no more than that a question follows; they count where none does."""

# Ends in s, and is no plural, or one that means something else.
_NO_PLURAL = _listed(
    """does has this thus his hers its yours ours theirs always sometimes perhaps besides towards afterwards across
    less unless whereas was is as us yes news goods customs glasses arms works means series species lens gas bus
    plus minus others savings damages minutes manners spirits terms colors colours looks pains premises odds thanks
    clothes woods ashes athletics authorities brains grounds honors honours letters oils waters sands specs quarters
    remains accounts ethics statistics politics physics mathematics economics analytics metrics headquarters
    """
)


class Wording(NamedTuple):
    """A text as it is compared: two with one `exact` form differ in nothing that counts; `loose` is a little wider."""

    exact: str
    loose: str

    def grade(self, other: Wording) -> Grade | None:
        """How alike two texts are, or None."""
        if self.exact == other.exact:
            return "exact"
        return "loose" if self.loose == other.loose else None


def wording_of(text: str) -> Wording | None:
    """The form of a text in which it is compared; None for one that is empty or too long to be."""
    if len(text) > TEXT_CHARS_MAX:
        return None
    tokens = _without_politeness(_tokens(text))
    if not tokens:
        return None
    if "?" in text[len(text.rstrip(_QUOTES)) :] and tokens[0] not in _STARTERS and _QUESTION_WORDS.isdisjoint(tokens):
        # nothing but its mark says that it is a question
        tokens.append("?")
    return Wording(" ".join(tokens), " ".join(_loosened(tokens)))


def _tokens(text: str) -> list[str]:
    """Words and signs that count, words in small letters, contractions written out.

    A comma or a full stop counts where something is denied: "No, refunds are allowed".
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    found: list[str] = []
    pauses: list[int] = []
    denied = False
    for match in _TOKEN.finditer(text):
        raw = match.group()
        if raw in _PUNCTUATION and _is_inert(text, match.start()):
            if raw in _PAUSES and found:
                pauses.append(len(found))
            continue
        words = _words(raw, first=_POLITE_OR_GREETING.issuperset(found))
        denied = denied or not _NEGATIONS.isdisjoint(words)
        found.extend(words)
    if denied:
        for at in reversed([at for at in dict.fromkeys(pauses) if at < len(found)]):
            found.insert(at, ",")
    return found


def _is_inert(text: str, at: int) -> bool:
    """Whether a mark is punctuation, and no part of a name, a number, or a formula (".NET", "5!", "-3", "f(x)")."""
    mark, before, after = text[at], text[at - 1 : at], text[at + 1 : at + 2]
    if mark in "()":
        return _FORMULA.isdisjoint(text)
    if mark == "!" and before.isdigit():
        return False
    ends = not after.strip() or after in _PUNCTUATION
    begins = (not before.strip() or before in "(\"'`¿¡") and mark in "\"'`¿¡"
    return ends or begins


def _words(raw: str, *, first: bool) -> Sequence[str]:
    word = raw.casefold()
    if word in _CONTRACTED:
        return _CONTRACTED[word]
    if "'" in word:
        stem, ending = word[: word.rindex("'")], word[word.rindex("'") :]
        if word.endswith("n't"):
            return word[:-3], "not"
        if ending == "'s" and stem in _BEFORE_IS:
            return stem, "is"
        if ending in _ENDINGS:
            return stem, _ENDINGS[ending]
    if word in _CASED and raw[0].isupper() and (not first or (raw.isupper() and len(raw) > 1)):
        return (f"{word}^",)
    if _NUMBER.fullmatch(word):
        return (word.replace(",", ""),)
    return ("a",) if word == "an" else (word,)


def _without_politeness(tokens: list[str]) -> list[str]:
    kept = [token for token in tokens if token not in _POLITE]
    if len(kept) > 1 and kept[0] in _GREETINGS:
        del kept[0]
    for phrase in _ASKING:
        if tuple(kept[: len(phrase)]) == phrase and kept[len(phrase) : len(phrase) + 1]:
            if kept[len(phrase)] in _QUESTION_WORDS:
                kept = kept[len(phrase) :]
            break
    if len(kept) > 2 and kept[-2:] == ["thank", "you"]:
        kept = kept[:-2]
    elif len(kept) > 2 and kept[-1] == "thanks" and kept[-2] not in _NEGATIONS:
        kept = kept[:-1]
    return kept


def _loosened(tokens: Sequence[str]) -> list[str]:
    """Without "the" where more than one word follows ("What is the time?" asks something else than "What is time?"),
    with "of" for "in", and plurals as singulars."""
    loose: list[str] = []
    for at, word in enumerate(tokens):
        if word == "the" and len(tokens) - at > 2:
            continue
        loose.append("of" if word == "in" else _singular(word))
    return loose


def _singular(word: str) -> str:
    if len(word) <= 3 or not (word.isascii() and word.isalpha()) or word in _NO_PLURAL:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word if not word.endswith("s") or word.endswith(("ss", "us", "is")) else word[:-1]


# --- answers -------------------------------------------------------------------------------------------------------

LONG_WORDS = 8
"""Shorter answers are a fact each, in which every word counts; longer ones may be told in slightly other words."""
SHARED_MIN = 0.8
ANSWER_COSINE_MIN = 0.95
_ARTICLES = frozenset({"a", "the"})
_SIDES = _listed(
    """yes no not never none without only all every any some more less most least fewer before after above below over
    under up down in out on off first last always sometimes usually rarely can may must should cannot allowed
    forbidden possible impossible true false correct incorrect safe unsafe legal illegal increase decrease increased
    decreased rise fall rose fell higher lower larger smaller earlier later left right north south east west include
    exclude enabled disabled enable disable valid invalid available unavailable except unless
    """
)
"""Words that turn an answer into another one, where all others are the same."""


class Verdict(NamedTuple):
    """Whether two answers say the same: known from their words, or only if their vectors are near each other."""

    same: bool
    cosine_min: float | None = None


def compare_answers(one: str, other: str) -> Verdict:
    """Whether two answers to questions that seem alike say the same, by what a machine can tell for certain.

    The same words, but for case, punctuation and articles, are the same. Longer answers may differ in a few words: not
    in their numbers, names and words that take a side, in order; at most a fifth of the rest, and their vectors must be
    near each other as well. In doubt they are different: that costs hits, and never a false one.
    """
    ones, others = _answer_tokens(one), _answer_tokens(other)
    if ones == others:
        return Verdict(bool(ones))
    if min(len(ones), len(others)) < LONG_WORDS or _facts(one, ones) != _facts(other, others):
        return Verdict(False)
    shared = 2 * len(set(ones) & set(others)) / (len(set(ones)) + len(set(others)))
    return Verdict(True, ANSWER_COSINE_MIN) if shared >= SHARED_MIN else Verdict(False)


def _answer_tokens(text: str) -> list[str]:
    return [token for token in _tokens(text) if token not in _ARTICLES and token not in _PAUSES]


def _facts(text: str, tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """What must not differ between two longer answers: names in order, and numbers and sides in order."""
    capitals = [match.group() for match in re.finditer(r"(?<![.!?:\n]\s)(?<=\s)[A-Z][\w-]*", text)]
    names = [name.casefold() for name in capitals if name != "I"]
    return names, [token for token in tokens if token in _SIDES or any(letter.isdigit() for letter in token)]


# --- a question that was foreseen ----------------------------------------------------------------------------------

_NUMBER_WORDS = _listed(
    """one two three four five six seven eight nine ten eleven twelve hundred thousand million billion half quarter
    first second third fourth fifth last once twice both zero
    """
)
_CONTRARY = _SIDES - {"not", "no", "never", "none", "without", "cannot"} | _listed(
    """am pm today tonight tomorrow yesterday morning noon evening night day week month year begin begins start starts
        end ends stop stops finish positive negative maximum minimum max min best worst better worse win wins won lose
        loses lost open opens opened close closes closed accept accepts accepted reject rejects rejected approve
        decline advantage advantages disadvantage disadvantages pro pros con cons encrypt decrypt fast faster fastest
        slow slower slowest cheap cheaper cheapest expensive dearest few many old new buy sell import export upload
        download install uninstall upgrade downgrade add remove create delete join leave send receive lock unlock log
        sign subscribe unsubscribe show hide grant revoke borrow lend push pull give take come go
        """
)
_GROUPS = (
    _CONTRARY,
    _listed("i me my mine you your yours we our ours he his him she her hers they them their theirs who whose"),
    _listed("to from for with at on inside beside by against about between"),
    _listed("is was will would did had"),
    _listed("and or"),
)
"""Words of one group stand for each other's opposites: two questions of which each has one that the other lacks ask two
things. One alone is no contradiction: "How do I reset it?" and "How can I reset it?" are the same."""
_SAME_WORDS = {"which": "what", "whom": "who", "are": "is", "am": "is", "were": "was"}
_FUNCTION_WORDS = _listed("").union(*_GROUPS[1:]) | _listed(
    "a the it this that these those be been being do does can could should shall may might must has have of in as"
)


class Gist(NamedTuple):
    """What must not set two questions apart that differ in their words: numbers and signs, denials, the kind of
    question, whether it is one, words that contradict each other, names, and the order of words that are the same."""

    exact: tuple[object, ...]
    asks: str
    contrary: tuple[frozenset[str], ...]
    names: frozenset[str]
    cased: frozenset[str]
    words: tuple[str, ...]

    def fits(self, other: Gist) -> bool:
        """Whether nothing that counts sets the two apart. Says nothing of whether they are about the same."""
        if self.exact != other.exact or (self.asks and other.asks and self.asks != other.asks):
            return False
        if any(mine - theirs and theirs - mine for mine, theirs in zip(self.contrary, other.contrary, strict=True)):
            return False
        mine, theirs = frozenset(self.words), frozenset(other.words)
        if not (self.names <= theirs and other.names <= mine) or (self.cased ^ other.cased) & mine & theirs:
            return False
        # the same words in another order: "from A to B" is not "from B to A"
        return self.words == other.words or sorted(self.words) != sorted(other.words)


def gist_of(text: str) -> Gist | None:
    """What must not differ between a question and one that was foreseen; None for a text too long to be a question."""
    if len(text) > TEXT_CHARS_MAX:
        return None
    tokens = _without_politeness(_tokens(text))
    if not tokens:
        return None
    cased = frozenset(token[:-1] for token in tokens if token.endswith("^"))
    plain = [_SAME_WORDS.get(word, word) for token in tokens if (word := token.removesuffix("^")) not in _PAUSES]
    names = {name.rstrip(".,:").casefold() for name in re.findall(r"(?<=[\w,;] )[A-Z][\w.+#-]*", text)} - {"i"}
    asks = next((each for each in plain if each in _QUESTION_WORDS), "")
    is_question = bool(asks) or plain[0] in _STARTERS or "?" in text[len(text.rstrip(_QUOTES)) :]
    counted = sorted(each for each in plain if each in _NUMBER_WORDS or any(sign.isdigit() for sign in each))
    signs = [each for each in plain if not any(sign.isalnum() for sign in each) and each != "?"]
    denials = sum(each in _NEGATIONS for each in plain) % 2
    return Gist(
        (*counted, *signs, denials, is_question),
        asks,
        tuple(frozenset(plain) & group for group in _GROUPS),
        frozenset(_singular(name) for name in names),
        cased,
        tuple(_singular(each) for each in plain if each not in _FUNCTION_WORDS),
    )
