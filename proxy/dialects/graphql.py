"""Read GraphQL queries, as much of the language as searches are written in.

    document  := ["query" [name]] selection
    selection := "{" field+ "}"
    field     := [alias ":"] name ["(" (name ":" value)+ ")"] [selection]
    value     := number | text | true | false | null | name | "[" value* "]" | "{" (name ":" value)* "}"

Variables, fragments, directives, mutations and block texts are Refused. The library for the whole language
(graphql-core) is pure Python, and reads every number of a vector as a token of its own: a query of 1,536 dimensions
takes it 7.9 ms, and 0.13 ms here, where a list of numbers is read at once; loading it takes 16 MB and 0.1 s a worker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from understudy.policies.service import Refused
from understudy.proxy.dialects.base import Malformed

CHARS_MAX: Final = 2 * 1024 * 1024
TOKENS_MAX: Final = 50_000
DEPTH_MAX: Final = 24

_TOKEN: Final = re.compile(
    r"[\s,]*(?:#[^\n\r]*[\s,]*)*(?:(?P<numbers>\[[\s0-9eE+\-.,]+\])|(?P<number>-?\d[\w.+\-]*)"
    r"|(?P<text>\"(?:[^\"\\\n\r]|\\.)*\")|(?P<word>[A-Za-z_]\w*)|(?P<mark>[{}()\[\]:]))"
)
_NUMBERS: Final = msgspec.json.Decoder(list[float])
_SEPARATED: Final = re.compile(r"[\s,]+")


class Word(NamedTuple):
    """A name that stands for a value: an enumeration's."""

    text: str


@dataclass(slots=True)
class Field:
    """What is asked for: a name, what it is called in the answer, its arguments and what is asked for within it."""

    name: str
    alias: str = ""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    fields: list[Field] = field(default_factory=list["Field"])


class _Token(NamedTuple):
    kind: str
    text: str


def selection_of(query: str) -> list[Field]:
    """What a query asks for. Raises Malformed for what is no GraphQL, Refused for what is not read here."""
    reader = _Reader(_tokens(query))
    if reader.takes("query"):
        if not reader.comes("{"):
            reader.name()
    elif not reader.comes("{"):
        raise Refused("unsupported", "anything but a query")
    fields = reader.selection(0)
    if reader.at != len(reader.tokens):
        raise Refused("unsupported", "several operations at once, or fragments")
    return fields


def _tokens(query: str) -> list[_Token]:
    if len(query) > CHARS_MAX:
        raise Refused("unsupported", f"a query of more than {CHARS_MAX} characters")
    found: list[_Token] = []
    at, end = 0, len(query.rstrip(" \t\r\n,"))
    while at < end:
        match = _TOKEN.match(query, at)
        if match is None:
            if query[at:].lstrip(" \t\r\n,")[:1] in ("$", "@", ".", '"'):
                raise Refused("unsupported", "variables, directives, fragments and block texts are not read here")
            raise Malformed("Syntax Error GraphQL request")
        if len(found) >= TOKENS_MAX:
            raise Refused("unsupported", f"a query of more than {TOKENS_MAX} words")
        kind = match.lastgroup or ""
        if kind == "text" and match[kind] == '""' and query[match.end() : match.end() + 1] == '"':
            raise Refused("unsupported", "a block text")
        found.append(_Token(kind, match[kind]))
        at = match.end()
    return found


class _Reader:
    """Reads tokens from the left, each once."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.at = 0

    def comes(self, text: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] in (("mark", text), ("word", text))

    def takes(self, text: str) -> bool:
        """Whether this comes next; then it is behind us."""
        if self.comes(text):
            self.at += 1
            return True
        return False

    def needs(self, text: str) -> None:
        if not self.takes(text):
            raise Malformed(f"Syntax Error GraphQL request: expected {text}")

    def name(self) -> str:
        if self.at == len(self.tokens) or self.tokens[self.at].kind != "word":
            raise Malformed("Syntax Error GraphQL request: expected a name")
        self.at += 1
        return self.tokens[self.at - 1].text

    def selection(self, depth: int) -> list[Field]:
        self._check(depth)
        self.needs("{")
        fields: list[Field] = []
        while not self.takes("}"):
            fields.append(self._field(depth))
        if not fields:
            raise Malformed("Syntax Error GraphQL request: an empty selection")
        return fields

    def _field(self, depth: int) -> Field:
        name = self.name()
        asked = Field(self.name(), alias=name) if self.takes(":") else Field(name)
        if self.takes("("):
            while not self.takes(")"):
                argument = self.name()
                self.needs(":")
                if argument in asked.arguments:
                    raise Malformed(f'There can be only one argument named "{argument}"')
                asked.arguments[argument] = self._value(depth + 1)
        if self.comes("{"):
            asked.fields = self.selection(depth + 1)
        return asked

    def _value(self, depth: int) -> Any:
        self._check(depth)
        if self.at == len(self.tokens):
            raise Malformed("Syntax Error GraphQL request: it breaks off")
        token = self.tokens[self.at]
        self.at += 1
        if token.kind == "numbers":
            return _numbers(token.text)
        if token.kind in ("number", "text"):
            return _json(token.text)
        if token.kind == "word":
            return {"true": True, "false": False, "null": None}.get(token.text, Word(token.text))
        if token.text == "[":
            values: list[Any] = []
            while not self.takes("]"):
                values.append(self._value(depth + 1))
            return values
        if token.text == "{":
            return self._object(depth)
        raise Malformed("Syntax Error GraphQL request: expected a value")

    def _object(self, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while not self.takes("}"):
            name = self.name()
            self.needs(":")
            if name in fields:
                raise Malformed(f'There can be only one input field named "{name}"')
            fields[name] = self._value(depth + 1)
        return fields

    def _check(self, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise Refused("unsupported", f"a query nested more than {DEPTH_MAX} deep")


def _numbers(text: str) -> list[float] | list[int]:
    """A list of numbers read at once; integers stay such."""
    try:
        if "." not in text and "e" not in text and "E" not in text:
            return msgspec.json.decode(",".join(_SEPARATED.split(text.strip("[], \t\r\n"))).join("[]"), type=list[int])
        return _NUMBERS.decode(text)
    except msgspec.DecodeError:
        # commas are blanks to GraphQL, and may be left out
        return [_json(each) for each in _SEPARATED.split(text.strip("[], \t\r\n")) if each]


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise Malformed("Syntax Error GraphQL request: an unreadable value") from None
