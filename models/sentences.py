"""Cut text into sentences and words, in several scripts and without a language model.

A sentence ends where an end mark is followed by a space and something that can begin a sentence, unless the mark
belongs to an abbreviation, an initial or a number. Headings, list items, table rows and lines of code are sentences of
their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["content_words", "sentences"]

SENTENCE_CHARS_MAX = 600

_ABBREVIATED = """
    mr mrs ms dr prof st sr jr rev hon gen col capt lt sgt maj adm gov sen rep pres vs etc al ca cf approx no nos vol pp
    p fig figs eq sec ch ed eds inc ltd co corp dept univ est jan feb mar apr jun jul aug sep sept oct nov dec mt ft e.g
    i.e a.m p.m u.s u.k u.n ph.d d.c b.c a.d c z.b bzw usw nr bd z.t d.h vgl sog ggf m mme mlle
"""
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_FENCE = re.compile(r"^\s*(?:```|~~~)")
_OWN_LINE = re.compile(r"^\s*(?:#{1,6}\s+\S|[-*+•‣◦]\s+|\(?\d{1,3}[.)]\s+|\(?[a-z][.)]\s+|\||>\s)")
_MARKUP = re.compile(r"^\s*(?:#{1,6}\s+|[-*+•‣◦]\s+|>\s+)+")
_TABLE_RULE = re.compile(r"^[\s|:+=_*~-]+$")
_WIDE_END = re.compile(r"(?<=[。！？｡])(?![。！？｡」』）”’])|(?<=[。！？｡][」』）”’])")
# An end mark, with the quotes and brackets that close after it, before white space.
_END = re.compile(r"[.!?…؟۔।॥]+[\"'”’»)\]]*(?=\s)")
_WORD = re.compile(r"\w+(?:['’]\w+)?", re.UNICODE)
_UNSPACED = re.compile(r"[぀-ヿ㐀-鿿豈-﫿฀-๿]")
_BREAK = re.compile(r"[,;:、，；]\s*|\s+")

_STOPPED = """
    a about above after again all also am an and any are as at be because been before being below between both but by
    can could did do does doing down during each few for from further had has have having he her here hers him his how i
    if in into is it its itself just me more most my no nor not of off on once only or other our out over own please
    s same she should so some such t than that the their them then there these they this those through to too under
    until up very was we were what when where which while who whom whose why will with would you your tell me give
"""
_STOP_WORDS = frozenset(_STOPPED.split())


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, each on one line, without list marks and heading marks; none is empty.

    None is longer than SENTENCE_CHARS_MAX: what has no end mark for so long is cut at a comma or a space.
    """
    found: list[str] = []
    for block in _blocks(text):
        for sentence in _ended(block):
            found.extend(_bounded(sentence))
    return [sentence for sentence in found if any(character.isalnum() for character in sentence)]


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, their lines joined; list items, headings, table rows and code lines each for themselves."""
    lines: list[str] = []
    in_code = False
    for line in text.splitlines():
        if _FENCE.match(line) or in_code or not line.strip() or _OWN_LINE.match(line) or _TABLE_RULE.match(line):
            if lines:
                yield " ".join(lines)
                lines = []
            if _FENCE.match(line):
                in_code = not in_code
            elif in_code or line.lstrip().startswith(("#", "|")):
                yield _MARKUP.sub("", line).strip(" |#") if not in_code else line.strip()
            elif line.strip() and not _TABLE_RULE.match(line):
                # A list item may run on over the next lines.
                lines = [_MARKUP.sub("", line).strip()]
        else:
            lines.append(line.strip())
    if lines:
        yield " ".join(lines)


def _ended(block: str) -> Iterator[str]:
    """A block cut after its end marks."""
    start = 0
    for mark in _END.finditer(block):
        if _really_ends(block, mark.start(), mark.end()):
            yield from _WIDE_END.split(block[start : mark.end()])
            start = mark.end()
    yield from _WIDE_END.split(block[start:])


def _really_ends(block: str, at: int, after: int) -> bool:
    following = block[after:].lstrip()[:1]
    if block[at : at + 1] != "." or block[at : at + 2] == "..":
        # "!" and "?" end a sentence, except inside a quotation that goes on: “Why?” he asked.
        return not following.islower()
    word = re.split(r"[\s(\[\"“'‘]", block[max(0, at - 24) : at])[-1]
    if following.islower():
        return False
    if word.casefold() in _ABBREVIATIONS:
        return False
    # An initial ("J. Smith"), and the number of a list item or a clause ("1. First").
    is_initial = len(word) == 1 and word.isalpha() and word.isupper() and word not in "I"
    return not (is_initial or (word.isdigit() and len(word) <= 2 and at - len(word) == 0))


def _bounded(sentence: str) -> Iterator[str]:
    rest = " ".join(sentence.split())
    while len(rest) > SENTENCE_CHARS_MAX:
        cut = SENTENCE_CHARS_MAX
        for place in _BREAK.finditer(rest, SENTENCE_CHARS_MAX // 2, SENTENCE_CHARS_MAX):
            cut = place.end()
        yield rest[:cut].strip()
        rest = rest[cut:].strip()
    if rest:
        yield rest


def content_words(text: str) -> list[str]:
    """The words that carry meaning, in lower case and cut to their stems, in order.

    Where no spaces part the words (Chinese, Japanese, Thai), pairs of characters stand for them.
    """
    found: list[str] = []
    for match in _WORD.finditer(text.casefold()):
        word = match.group()
        if _UNSPACED.search(word):
            found.extend(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif word not in _STOP_WORDS:
            found.append(_stem(word))
    return found


def _stem(word: str) -> str:
    """English endings taken off as far as comparing asks for: Harman's S-stemmer (1991), with -ed, -ing and -ly.

    Wrong in the particular, but wrong alike for question and passage.
    """
    word = word.split("'")[0].split("’")[0]
    if len(word) <= 3 or not word.isascii():
        return word
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if word.endswith(ending) and not word.endswith(("ss", "us", "is")):
            word = word[: -len(ending)] + instead
            break
    for ending in ("ingly", "edly", "ing", "ed", "ly"):
        stem = word[: -len(ending)]
        if word.endswith(ending) and len(stem) >= 3 and any(vowel in stem for vowel in "aeiouy"):
            word = stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz" else stem
            break
    return word[:-1] if word.endswith("e") and len(word) > 4 else word
