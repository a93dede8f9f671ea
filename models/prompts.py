"""Find in a prompt what the application put there to be read, and what it asks.

    messages ──> tagged, fenced, numbered or headed sections, long paragraphs ──> passages
             └─> what remains of the last user message ──────────────────────> question

A RAG application has retrieved its passages before it calls the model, so the last tier needs no index: they stand in
the prompt, in one of a few shapes. Text that nothing marks as context is taken from user messages alone and never from
a system message, whose instructions are not the user's to read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

__all__ = ["Passage", "passages_in_prompt", "question_in_prompt", "text_of"]

PASSAGES_MAX = 64
PROMPT_CHARS_MAX = 400_000
QUESTION_CHARS_MAX = 2_000
LONG_CHARS = 200
SHORT_CHARS = 300
FENCED_WORDS_MIN = 5
TAG_DEPTH_MAX = 3

Message = Mapping[str, Any]
_Kind = Literal["context", "question", "other"]

_THINGS = (
    r"(?:context(?:ual)?|sources?|documents?|docs|passages?|excerpts?|references?|articles?|snippets?|chunks?|results?|"
    r"background|knowledge|information|facts|notes|evidence|text|contents?|data)"
)
# "Context:", "Retrieved documents:", "Search results:", "Wikipedia article section:", "Context information is below.":
# a few words, one of them such a thing, and a colon; or the whole of a Markdown heading.
_CONTEXT_HEAD = re.compile(
    rf"^[\s#*_>=\[\-]*(?:[\w'’]+ ){{0,4}}?{_THINGS}(?: [\w'’]+){{0,3}}?\s*(?:\([^)\n]*\))?"
    r"(?:[\]*_\s]*[:：][*_]*|\s*(?:is|are) (?:given |provided |listed )?below[.:：]?)(?P<rest>.*)$",
    re.IGNORECASE,
)
_CONTEXT_TITLE = re.compile(rf"^\s*#{{1,6}}\s+(?:[\w'’]+ ){{0,3}}?{_THINGS}(?: [\w'’]+)?\s*#*$", re.IGNORECASE)
_QUESTION_HEAD = re.compile(
    r"^[\s#*_>\-]*(?:(?:the |my |user'?s? |user’s |current |actual |original |follow[- ]?up |new |human )?"
    r"(?:question|query|input)|q|human|user)[*_\s]*[:：][*_]*(?P<rest>.*)$",
    re.IGNORECASE,
)
_QUESTION_TITLE = re.compile(r"^\s*#{1,6}\s+(?:(?:the|user|my) )?(?:question|query)\s*#*$", re.IGNORECASE)
_OTHER_HEAD = re.compile(
    r"^[\s#*_>\-]*(?:(?:helpful |final |your |concise |standalone )?(?:answer|response|reply|output)|a|assistant|ai|"
    r"instructions?|rules?|guidelines?|requirements?|notes? to (?:the )?(?:assistant|model)|chat history|"
    r"conversation(?: history)?|history|examples?|format)(?: [\w'’]+){0,3}?[*_\s]*[:：]",
    re.IGNORECASE,
)
# A sentence to the model which, after the context, says what to do with it.
_TASK = re.compile(
    rf"^[\s#*_>\-]*(?:(?:given|based on|using|from|with|considering) (?:only )?(?:the |this |these |that )?"
    rf"(?:above|provided|preceding|following|given|retrieved|{_THINGS})|"
    r"(?:please |now |then )?(?:answer|respond to|reply to) (?:the |this |my |to |using|with|only|in )|"
    r"if (?:you (?:do not|don't|don’t|cannot|can't) (?:know|find|answer)|"
    r"the (?:answer|context|information) (?:is|does|cannot)))",
    re.IGNORECASE,
)
# … and before the context announces it: "Use the following pieces of context", "Here are some documents".
_LEAD_IN = re.compile(
    rf"\b(?:following|below|these|here (?:is|are)|provided)\b[^.:\n]{{0,60}}\b{_THINGS}\b|"
    rf"\b{_THINGS}\b[^.:\n]{{0,40}}\b(?:below|following|delimited|enclosed)\b",
    re.IGNORECASE,
)
_RULE = re.compile(r"^\s*(?:[-=_*~#]\s?){3,}$")
_RULE_LINE = re.compile(r"^[ \t]*(?:[-=_*~#][ \t]?){3,}$", re.MULTILINE)
_NUMBERED = re.compile(
    r"^\s*(?:(?:\*\*)?\[(?P<mark>[^\]\n]{1,80})\](?:\*\*)?(?!\()[:.]?|"
    r"(?:#{1,6}\s*|\*\*|-{2,}\s*|={2,}\s*)?(?P<word>(?:document|doc|source|passage|excerpt|chunk|context|result|reference|"
    r"snippet|article)\s*(?:#|no\.?\s*)?\[?\d{1,4}\]?)\s*(?:\((?P<title>[^)\n]{1,120})\))?"
    r"(?:\*\*|\s*-{2,}|\s*={2,})?\s*[:.)\]]*"
    r")\s*(?P<rest>.*)$",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^\s*[*_]*(?P<key>source|file[_ ]?path|file[_ ]?name|file|url|uri|link|title|name|id|document[_ ]?id|doc[_ ]?id|"
    r"page[_ ]label|page|score|date|author|metadata|content|text|page[_ ]content|snippet)"
    r"[*_]*\s*[:=][*_]*\s*(?P<value>.*)$",
    re.IGNORECASE,
)
_LABELS_BY_WORTH = (
    "title",
    "source",
    "file_name",
    "filename",
    "file_path",
    "filepath",
    "file",
    "url",
    "uri",
    "link",
    "name",
    "id",
)
_ATTRIBUTES_BY_WORTH = ("title", "source", "file", "url", "name", "id", "index")
_CONTENT_KEYS = {"content", "text", "page_content", "snippet"}
_TAG_NAMES = (
    r"(?:retrieved|search|relevant|reference|source|user|web|background)?[_-]?"
    r"(?:contexts?|documents?|docs?|passages?|chunks?|sources?|results?|references?|excerpts?|snippets?|articles?|knowledge|"
    r"knowledge[_-]base|background|information|text|data|document[_-]contents?|contents?|page[_-]content)"
)
_TAG = re.compile(rf"<(?P<close>/)?(?P<name>{_TAG_NAMES})(?P<attributes>\s[^<>]*)?>", re.IGNORECASE)
_QUESTION_TAG = re.compile(
    r"<(?P<close>/)?(?P<name>(?:user[_-])?(?:question|query|input|request))(?P<attributes>\s[^<>]*)?>", re.IGNORECASE
)
_LABEL_TAG = re.compile(r"<(?P<name>source|title|url|id|name)>(?P<body>[^<]{1,200})</(?P=name)\s*>", re.IGNORECASE)
_ANY_TAG = re.compile(r"</?[A-Za-z][\w-]*(?:\s[^<>]*)?/?>")
_ATTRIBUTE = re.compile(
    r"(?P<key>title|source|file|url|name|id|index)\s*=\s*[\"']?(?P<value>[^\"'>]+)[\"']?", re.IGNORECASE
)
_FENCED = re.compile(r"(?P<fence>```|~~~|\"\"\"|''')(?:[a-z]{0,10}\n)?(?P<body>.*?)(?P=fence)", re.DOTALL)
# A whole prompt on one line: break it before its heads.
_INLINE_HEAD = re.compile(r"(?<=[.!?\])\"”’。])[ \t]+(?=(?:Question|Query|Context|Sources|Answer)\s*:(?:\s|$))")
_ASKS = re.compile(r"[?？؟;՞]\s*[\"'”’)]*\s*$")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that may be quoted, and what to call its source. `score` is its finder's, if there was one."""

    source: str
    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class _Element:
    """A tag, what is between it and its end, and where both stand in the text."""

    attributes: str
    body: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one message was found to hold."""

    passages: tuple[Passage, ...]
    questions: tuple[str, ...]
    rest: str


def passages_in_prompt(messages: Sequence[Message]) -> list[Passage]:
    """The passages that the application put into a chat's messages, in order, each with the best name it carries.

    Looks into system, developer and tool messages and the last user message; into earlier user messages only if these
    have none. Content may be a text or OpenAI's list of content parts. Never raises on odd messages; may find nothing.
    """
    last = _last_user(messages)
    wanted = [index for index, message in enumerate(messages) if _role(message) != "user" or index == last]
    for indexes in (wanted, [index for index in range(len(messages)) if _role(messages[index]) == "user"]):
        found = [passage for index in indexes for passage in _read(messages[index]).passages]
        named = [
            Passage(one.source or f"passage {number}", one.text) for number, one in enumerate(_once(found), start=1)
        ]
        if named:
            return named[:PASSAGES_MAX]
    return []


def question_in_prompt(messages: Sequence[Message]) -> str:
    """What the last user message asks, without the context beside it; empty when there is no user message."""
    last = _last_user(messages)
    if last is None:
        return ""
    reading = _read(messages[last])
    if reading.questions:
        return reading.questions[-1][:QUESTION_CHARS_MAX]
    paragraphs = [paragraph for paragraph in _paragraphs(reading.rest) if not _is_for_the_model(paragraph)]
    asking = [paragraph for paragraph in paragraphs if _ASKS.search(paragraph)]
    if asking and len(paragraphs) > 1:
        return _one_line(asking[-1])
    if paragraphs:
        return _one_line(" ".join(paragraphs))
    # All of it was context, or addressed to the model: what was asked is then in that, or stands in another message.
    others = [_read(message).questions for message in reversed(messages) if _role(message) != "assistant"]
    return next((questions[-1] for questions in others if questions), _one_line(reading.rest))


def text_of(content: object) -> str:
    """A message's text, be its content a text, a list of content parts, or nothing."""
    if isinstance(content, str):
        return content[:PROMPT_CHARS_MAX]
    if not isinstance(content, Sequence):
        return ""
    texts: list[str] = []
    for part in cast(Sequence[object], content):
        text = cast(Mapping[str, object], part).get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            texts.append(text)
    return "\n\n".join(texts)[:PROMPT_CHARS_MAX]


def _role(message: Message) -> str:
    return str(message.get("role", "user"))


def _last_user(messages: Sequence[Message]) -> int | None:
    return next((index for index in reversed(range(len(messages))) if _role(messages[index]) == "user"), None)


def _read(message: Message) -> _Reading:
    """Take one message apart."""
    role, text = _role(message), text_of(message.get("content"))
    if role == "assistant":
        return _Reading((), (), text)
    if role in ("tool", "function"):
        # A tool's result is context as a whole.
        return _Reading(tuple(_passages(text)), (), "")
    asked_in_tags = _elements(_QUESTION_TAG, text)
    questions = [_one_line(element.body) for element in asked_in_tags]
    found, text = _lifted(_without(asked_in_tags, text))
    rest: list[str] = []
    parts = list(_parts(_INLINE_HEAD.sub("\n", text)))
    has_question = bool(questions) or any(kind == "question" and part.strip() for kind, part in parts)
    for number, (kind, part) in enumerate(parts):
        if kind == "question":
            asked, beyond = _first_paragraph(part)
            questions.extend([_one_line(asked)] if asked else [])
            rest.append(beyond)
        elif kind == "context":
            if role == "user" and not has_question and number == len(parts) - 1:
                part, asked = _question_cut_off(part)
                questions.extend([asked] if asked else [])
            found.extend(_passages(part))
        else:
            inside, outside = _unmarked(part, role, nothing_else=not found and not has_question)
            found.extend(inside)
            rest.append(outside)
    return _Reading(tuple(found), tuple(filter(None, questions)), "\n\n".join(filter(None, rest)))


def _lifted(text: str) -> tuple[list[Passage], str]:
    """Passages out of tags and fences, and the text without them."""
    elements = _elements(_TAG, text)
    found = [passage for element in elements for passage in _inside(element)]

    def fenced(match: re.Match[str]) -> str:
        if len(match["body"].split()) < FENCED_WORDS_MIN:
            # A name in backticks, most likely, and part of the sentence round it.
            return match.group()
        found.extend(_passages(match["body"]))
        return "\n\n"

    return found, _FENCED.sub(fenced, _without(elements, text))


def _elements(tag: re.Pattern[str], text: str) -> list[_Element]:
    """The outermost elements of the given tags, in order; tags that are never closed, or never opened, are no elements.

    One pass with a stack: a pattern that looks for each tag's end takes half a minute over a prompt of open tags.
    """
    opened: list[re.Match[str]] = []
    names: Counter[str] = Counter()
    closed: list[tuple[re.Match[str], re.Match[str]]] = []
    for token in tag.finditer(text):
        name = token["name"].lower()
        if not token["close"]:
            opened.append(token)
            names[name] += 1
        elif names[name]:
            while True:
                begin = opened.pop()
                names[begin["name"].lower()] -= 1
                if begin["name"].lower() == name:
                    break
            # What began inside this one is not outermost.
            while closed and closed[-1][0].start() > begin.start():
                closed.pop()
            closed.append((begin, token))
    return [
        _Element(begin["attributes"] or "", text[begin.end() : end.start()], begin.start(), end.end())
        for begin, end in closed
    ]


def _without(elements: Sequence[_Element], text: str) -> str:
    """The text with a blank line where each element stood."""
    begins = [0, *(element.end for element in elements)]
    ends = [*(element.start for element in elements), len(text)]
    return "\n\n".join(text[begin:end] for begin, end in zip(begins, ends, strict=True))


def _inside(element: _Element, source: str = "", depth: int = 0) -> list[Passage]:
    """The passages of an element: those of the elements in it, if there are any, else its own text."""
    attributes = {one["key"].lower(): one["value"].strip() for one in _ATTRIBUTE.finditer(element.attributes)}
    for label in _LABEL_TAG.finditer(element.body):
        attributes.setdefault(label["name"].lower(), label["body"].strip())
    own = next((attributes[key] for key in _ATTRIBUTES_BY_WORTH if attributes.get(key)), "")
    own = f"document {own}" if own.isdigit() else own
    text = _LABEL_TAG.sub(" ", element.body)
    inner = _elements(_TAG, text) if depth < TAG_DEPTH_MAX else []
    if inner:
        # The label stands for all only if there is but one: that of several is the first one's.
        label = (own or source) if len(inner) == 1 else source
        # Each with its own labels, which `text` has lost.
        whole = [
            one for one in _elements(_TAG, element.body) if not _LABEL_TAG.fullmatch(element.body, one.start, one.end)
        ]
        return [passage for one in (whole if len(inner) > 1 else inner) for passage in _inside(one, label, depth + 1)]
    plain = _ANY_TAG.sub(" ", text).strip()
    if own or source:
        return [Passage(own or source, plain)] if plain else []
    return list(_passages(plain))


def _parts(text: str) -> Iterator[tuple[_Kind, str]]:
    """A message cut at its heads into context, questions and the rest."""
    kind: _Kind = "other"
    lines: list[str] = []
    in_rules = False
    after_gap = True
    for line in text.splitlines():
        head = _head_of(line, kind, after_gap)
        closes = kind == "context" and in_rules and bool(_RULE.match(line)) and any(map(str.strip, lines))
        if head is None and not closes:
            if kind == "context" and _RULE.match(line) and not any(map(str.strip, lines)):
                in_rules = True
            else:
                lines.append(line)
            after_gap = not line.strip() or bool(_RULE.match(line))
            continue
        yield kind, "\n".join(lines)
        kind, first = head or ("other", "")
        lines, in_rules, after_gap = [first] if first.strip() else [], False, True
    yield kind, "\n".join(lines)


def _head_of(line: str, kind: _Kind, after_gap: bool) -> tuple[_Kind, str] | None:
    """The kind of section that a line opens, and what of the line already belongs to it; None if it opens none."""
    question = _QUESTION_HEAD.match(line)
    if question or _QUESTION_TITLE.match(line):
        return "question", question["rest"] if question else ""
    if _OTHER_HEAD.match(line):
        return "other", line
    if kind == "context":
        # Inside a context "Source 1:" begins a passage, and "Text:" or "Note:" are its own words.
        if (after_gap and _TASK.match(line)) or (line.rstrip().endswith((":", "：")) and _announces(line)):
            return "other", line
        again = _CONTEXT_HEAD.match(line) if after_gap else None
        return ("context", "") if again and not again["rest"].strip() else None
    if _NUMBERED.match(line) and _numbered_name(_NUMBERED.match(line)):
        return "context", line
    head = _CONTEXT_HEAD.match(line)
    if head and not _TASK.match(line):
        # "Source: paris.md" and "Content: …" are labels of a passage, to be read with it.
        return "context", line if _LABEL.match(line) else head["rest"]
    return ("context", "") if _CONTEXT_TITLE.match(line) else None


def _numbered_name(match: re.Match[str] | None) -> str:
    """What a numbered passage is called: "[1]", "doc 3", "Document 2 (Title)"; nothing if the mark is no such thing."""
    if match is None:
        return ""
    if match["word"]:
        title = (match["title"] or "").strip()
        return title.removeprefix("Title:").strip() or _one_line(match["word"]).strip("[]:.")
    mark = match["mark"].strip()
    is_name = re.fullmatch(r"\d{1,4}|[\w .#/:-]*\d[\w .#/:-]*|[\w./#:-]+\.\w{1,5}(?:[#:].*)?|https?://\S+", mark)
    return (f"[{mark}]" if mark.isdigit() else mark) if is_name else ""


def _passages(text: str) -> Iterator[Passage]:
    """A context cut into its passages: at numbered marks if it has any, else at rules, else at blank lines."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    numbered = False
    for line in text.splitlines():
        match = _NUMBERED.match(line)
        name = _numbered_name(match)
        if match and name:
            numbered = True
            groups.append((name, [match["rest"]]))
        elif _RULE.match(line) or (not numbered and _repeats_a_label(line, groups[-1][1])):
            groups.append(("", [line]))
        else:
            groups[-1][1].append(line)
    for name, marked_lines in groups:
        lines = [line for line in marked_lines if not _RULE.match(line)]
        pieces = ["\n".join(lines)] if numbered or len(groups) > 1 else _joined_labels(_paragraphs("\n".join(lines)))
        for piece in pieces:
            source, body = _label_and_body(piece)
            if any(character.isalnum() for character in body):
                yield Passage(source or name, body)


def _repeats_a_label(line: str, lines: Sequence[str]) -> bool:
    """Whether a line is a label that the passage so far has already: then it begins the next one."""
    label = _LABEL.match(line)
    keys = {match["key"].lower() for match in map(_LABEL.match, lines) if match} if label else set[str]()
    return bool(label) and label["key"].lower() in keys


def _joined_labels(paragraphs: Sequence[str]) -> list[str]:
    """Paragraphs, those of nothing but labels put together with the text that they label."""
    joined: list[str] = []
    pending = ""
    for paragraph in paragraphs:
        if all(_LABEL.match(line) for line in paragraph.splitlines()) and not _label_and_body(paragraph)[1]:
            pending += paragraph + "\n"
        else:
            joined.append(pending + paragraph)
            pending = ""
    return joined


def _label_and_body(piece: str) -> tuple[str, str]:
    """The best name among the labels that a passage begins with ("Source: …"), and the passage without them."""
    labels: dict[str, str] = {}
    lines = piece.strip().splitlines()
    while lines and (not lines[0].strip() or _LABEL.match(lines[0])):
        match = _LABEL.match(lines.pop(0))
        if match:
            key = match["key"].lower().replace(" ", "_")
            if key in _CONTENT_KEYS:
                lines.insert(0, match["value"])
                break
            labels[key] = match["value"].strip().strip("\"'")
    # "Content: … / Source: …": the label may also come last.
    if len(lines) > 1 and not labels:
        match = _LABEL.match(lines[-1])
        if match and match["key"].lower() in ("source", "url", "link") and match["value"].strip():
            labels["source"] = match["value"].strip()
            lines.pop()
    name = next((labels[key] for key in _LABELS_BY_WORTH if labels.get(key)), "")
    return name[:200], "\n".join(lines).strip()


def _question_cut_off(part: str) -> tuple[str, str]:
    """A context that ends the message, without the short question that may be its last paragraph."""
    paragraphs = _paragraphs(part)
    if len(paragraphs) > 1 and len(paragraphs[-1]) <= SHORT_CHARS and _ASKS.search(paragraphs[-1]):
        return "\n\n".join(paragraphs[:-1]), _one_line(paragraphs[-1])
    return part, ""


def _unmarked(part: str, role: str, *, nothing_else: bool) -> tuple[list[Passage], str]:
    """Passages in a part that no head announces, and the rest of it.

    After "use the following pieces of context" the paragraphs are context, whoever speaks. Otherwise, in a user message
    with nothing better, long paragraphs are, if a short one stands beside them.
    """
    paragraphs = _freed(_paragraphs(_RULE_LINE.sub("", part)))
    announced = next((index for index, paragraph in enumerate(paragraphs) if _announces(paragraph)), None)
    if announced is not None:
        after = paragraphs[announced + 1 :]
        asked = (
            after.pop()
            if after and role == "user" and len(after[-1]) <= SHORT_CHARS and _ASKS.search(after[-1])
            else ""
        )
        inside = [paragraph for paragraph in after if not _TASK.match(paragraph)]
        outside = [*paragraphs[: announced + 1], *(one for one in after if _TASK.match(one)), asked]
        return list(_passages("\n\n".join(inside))), "\n\n".join(filter(None, outside))
    if role == "user" and nothing_else:
        long = [paragraph for paragraph in paragraphs if len(paragraph) >= LONG_CHARS and not _ASKS.search(paragraph)]
        short = [paragraph for paragraph in paragraphs if paragraph not in long]
        if long and short:
            return list(_passages("\n\n".join(long))), "\n\n".join(short)
    return [], part


def _freed(paragraphs: Sequence[str]) -> list[str]:
    """Paragraphs, an announcement parted from the long lines that follow it without a blank one."""
    freed: list[str] = []
    for paragraph in paragraphs:
        lines = paragraph.splitlines()
        first_long = next((number for number, line in enumerate(lines) if number and len(line) >= LONG_CHARS), None)
        if first_long is not None and _announces("\n".join(lines[:first_long])):
            freed.extend(["\n".join(lines[:first_long]), *lines[first_long:]])
        else:
            freed.append(paragraph)
    return freed


def _announces(paragraph: str) -> bool:
    return len(paragraph) <= 4 * SHORT_CHARS and bool(_LEAD_IN.search(paragraph))


def _is_for_the_model(paragraph: str) -> bool:
    """Whether a paragraph tells the model what to do, and asks nothing itself."""
    if _ASKS.search(paragraph):
        return False
    return bool(_OTHER_HEAD.match(paragraph) or _TASK.match(paragraph) or _announces(paragraph))


def _first_paragraph(part: str) -> tuple[str, str]:
    paragraphs = _paragraphs(_RULE_LINE.sub("", part))
    return (paragraphs[0], "\n\n".join(paragraphs[1:])) if paragraphs else ("", "")


def _paragraphs(text: str) -> list[str]:
    return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:QUESTION_CHARS_MAX]


def _once(found: Sequence[Passage]) -> list[Passage]:
    return list({passage.text: passage for passage in reversed(found)}.values())[::-1]
