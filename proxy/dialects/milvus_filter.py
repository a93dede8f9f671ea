"""Read Milvus' filter expressions, as far as they mean one thing only; never guess.

    k == 1 and (name in ["a", "b"] or not 2 <= size < 5) and title like "intro%" and meta["lang"] != "en"

    or      := and  (("or"  | "||") and)*
    and     := not  (("and" | "&&") not)*
    not     := ("not" | "!") not | "(" or ")" | comparison
    comparison := operand (("==" | "!=" | "<" | "<=" | ">" | ">=") operand)+
                | field ["not"] "in" "[" literals "]" | field "like" text

One of two operands is a field: a name, or a name with keys behind it. What a comparison that is denied says of a point
without the field has changed with Milvus' versions: where a collection has such a point, the search is refused.
Arithmetic, functions and templates are refused.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from understudy.indexes.conditions import Condition
from understudy.indexes.faults import UnknownFilter
from understudy.policies.service import Refused

CHARS_MAX: Final = 64 * 1024
TOKENS_MAX: Final = 20_000
DEPTH_MAX: Final = 32

Verdict: TypeAlias = bool | None
"""Whether a point passes; None where it lacks the field."""
_Test: TypeAlias = Callable[[int | str, dict[str, Any]], Verdict]

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)|(?P<text>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
    r"|(?P<word>[A-Za-z_$][\w$]*)|(?P<mark>==|!=|<=|>=|&&|\|\||[<>!()\[\],]))"
)
_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TURNED: Final = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_WORDS: Final = frozenset({"and", "or", "not", "in", "like", "true", "false"})


class Token(NamedTuple):
    """One word, value or mark."""

    kind: str
    text: str


class Field(NamedTuple):
    """A field's name, and the keys behind it."""

    path: tuple[str, ...]


class Literal(NamedTuple):
    """A value that stands in the expression itself."""

    value: bool | int | float | str


def condition_of(expression: str) -> Condition | None:
    """What an expression lets through; None for an empty one. Raises Refused for what is not certain.

    The Condition raises UnknownFilter while it is worked out, where what it says of some point is not certain."""
    if not expression.strip():
        return None
    test = _Reader(_tokens(expression)).whole()
    return Condition(
        msgspec.json.encode(["milvus", expression]), lambda point, payload, _text: test(point, payload) is True
    )


def ids_of(expression: str) -> tuple[int | str, ...] | None:
    """The ids of an expression that is nothing but `id in […]` or `id == …`; None for any other."""
    reader = _Reader(_tokens(expression))
    words = [token.text.lower() for token in reader.tokens[:3]]
    if words[:2] == ["id", "in"]:
        reader.at = 2
        values = reader.literals()
    elif words[:2] == ["id", "=="] and len(reader.tokens) == 3:
        reader.at = 2
        values = [cast("Literal", reader.operand()).value]
    else:
        return None
    if reader.at != len(reader.tokens):
        return None
    return tuple(cast("int | str", value) for value in values)


def _tokens(expression: str) -> list[Token]:
    if len(expression) > CHARS_MAX:
        raise _uncertain(f"a filter of more than {CHARS_MAX} characters")
    found: list[Token] = []
    at, end = 0, len(expression.rstrip())
    while at < end:
        match = _TOKEN.match(expression, at)
        if match is None or len(found) >= TOKENS_MAX:
            raise _uncertain("such a filter")
        found.append(Token(match.lastgroup or "", match[match.lastgroup or 0]))
        at = match.end()
    return found


class _Reader:
    """Reads tokens from the left, each once."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0

    def whole(self) -> _Test:
        test = self._any(0)
        if self.at != len(self.tokens):
            raise _uncertain("what stands behind a condition")
        return test

    def _any(self, depth: int) -> _Test:
        parts = [self._all(depth)]
        while self._takes("or", "||"):
            parts.append(self._all(depth))
        return parts[0] if len(parts) == 1 else _together(parts, decides=True)

    def _all(self, depth: int) -> _Test:
        parts = [self._not(depth)]
        while self._takes("and", "&&"):
            parts.append(self._not(depth))
        return parts[0] if len(parts) == 1 else _together(parts, decides=False)

    def _not(self, depth: int) -> _Test:
        if depth > DEPTH_MAX:
            raise _uncertain(f"a filter nested more than {DEPTH_MAX} deep")
        if self._takes("not", "!"):
            return _denied(_certain(self._not(depth + 1)))
        if self._takes("("):
            test = self._any(depth + 1)
            self._needs(")")
            return test
        return self._comparison()

    def _comparison(self) -> _Test:
        left = self.operand()
        if isinstance(left, Field):
            if self._takes("in"):
                return _within(left, self.literals())
            if self._takes("not"):
                self._needs("in")
                return _denied(_certain(_within(left, self.literals())))
            if self._takes("like"):
                return _like(left, self.operand())
        tests: list[_Test] = []
        while self.at < len(self.tokens) and self.tokens[self.at].text in _ORDERS:
            order = self.tokens[self.at].text
            self.at += 1
            right = self.operand()
            tests.append(_compared(left, order, right))
            left = right
        if not tests:
            raise _uncertain("a value that is no condition")
        return tests[0] if len(tests) == 1 else _together(tests, decides=False)

    def operand(self) -> Field | Literal:
        """A field with its keys, or a literal."""
        if self.at == len(self.tokens):
            raise _uncertain("a filter that breaks off")
        token = self.tokens[self.at]
        self.at += 1
        lower = token.text.lower()
        if token.kind == "number":
            return Literal(_number(token.text))
        if token.kind == "text":
            return Literal(_text(token.text))
        if token.kind == "word" and lower in ("true", "false"):
            return Literal(lower == "true")
        if token.kind != "word" or lower in _WORDS or self._comes("("):
            raise _uncertain(f"{token.text[:32]!r} in a filter")
        path = [token.text]
        while self._takes("["):
            key = self.operand()
            if not isinstance(key, Literal) or not isinstance(key.value, str):
                raise _uncertain("an element of an array in a filter")
            path.append(key.value)
            self._needs("]")
        return Field(tuple(path))

    def literals(self) -> list[Any]:
        """The values of a list in brackets."""
        self._needs("[")
        values: list[Any] = []
        while not self._takes("]"):
            if values:
                self._needs(",")
            each = self.operand()
            if isinstance(each, Field):
                raise _uncertain("a list of something else than values")
            values.append(each.value)
        return values

    def _comes(self, mark: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at].text == mark

    def _takes(self, *words: str) -> bool:
        """Whether one of these comes next; then it is behind us."""
        if self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.kind != "text" and token.text.lower() in words:
                self.at += 1
                return True
        return False

    def _needs(self, mark: str) -> None:
        if not self._takes(mark):
            raise _uncertain(f"a filter without its {mark!r}")


# --- what passes ---------------------------------------------------------------------------------------------------


def _held(field: Field, point: int | str, payload: dict[str, Any]) -> Any:
    """The value of a field, None where there is none."""
    if field.path == ("id",):
        return point
    value: Any = payload
    for step in field.path[1:] if field.path[0] == "$meta" else field.path:
        value = cast("dict[str, Any]", value).get(step) if isinstance(value, dict) else None
    return value


def _together(parts: list[_Test], *, decides: bool) -> _Test:
    """One verdict that `decides` is enough (a true one of `or`, a false one of `and`); else each must be known."""

    def together(point: int | str, payload: dict[str, Any]) -> Verdict:
        verdicts = [part(point, payload) for part in parts]
        if decides in verdicts:
            return decides
        return None if None in verdicts else not decides

    return together


def _compared(left: Field | Literal, order: str, right: Field | Literal) -> _Test:
    if isinstance(left, Literal) and isinstance(right, Field):
        left, order, right = right, _TURNED[order], left
    if not isinstance(left, Field) or not isinstance(right, Literal):
        raise _uncertain("a comparison of anything but a field and a value")
    field, wanted, holds = left, right.value, _ORDERS[order]
    if order in ("<", "<=", ">", ">=") and isinstance(wanted, bool):
        raise _uncertain("an order of booleans")

    def test(point: int | str, payload: dict[str, Any]) -> Verdict:
        held = _held(field, point, payload)
        return holds(held, wanted) if _alike(held, wanted) else None

    return _certain(test) if order == "!=" else test


def _within(field: Field, wanted: list[Any]) -> _Test:
    def test(point: int | str, payload: dict[str, Any]) -> Verdict:
        held = _held(field, point, payload)
        if wanted and not any(_alike(held, each) for each in wanted):
            return None
        return any(_alike(held, each) and held == each for each in wanted)

    return test


def _like(field: Field, pattern: Field | Literal) -> _Test:
    if isinstance(pattern, Field) or not isinstance(pattern.value, str) or re.search(r"[\\_]", pattern.value):
        raise _uncertain("a pattern of more than % and letters")
    fits = re.compile(".*".join(map(re.escape, pattern.value.split("%"))), re.DOTALL).fullmatch

    def test(point: int | str, payload: dict[str, Any]) -> Verdict:
        held = _held(field, point, payload)
        return fits(held) is not None if isinstance(held, str) else None

    return test


def _certain(test: _Test) -> _Test:
    """A test whose denial is asked for: it must know of every point."""

    def certain(point: int | str, payload: dict[str, Any]) -> Verdict:
        verdict = test(point, payload)
        if verdict is None:
            raise UnknownFilter("what a denial says of points without its field is not certain")
        return verdict

    return certain


def _denied(test: _Test) -> _Test:
    return lambda point, payload: not test(point, payload)


def _alike(held: Any, wanted: Any) -> bool:
    """Whether two values are of one type: a boolean is no number, and an integer is a float."""
    if isinstance(wanted, bool) or isinstance(held, bool):
        return isinstance(wanted, bool) and isinstance(held, bool)
    if isinstance(wanted, str):
        return isinstance(held, str)
    return isinstance(held, int | float)


def _number(text: str) -> int | float:
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        raise _uncertain("such a number") from None


def _text(token: str) -> str:
    """What a text in quotes says; its escapes are those of Python's, of which Milvus takes a part."""
    if "\\" not in token:
        return token[1:-1]
    if not re.fullmatch(r"""(?:[^\\]|\\["'\\nrt])*""", token):
        raise _uncertain("such an escape in a text")
    try:
        return str(ast.literal_eval(token.replace("\n", "\\n")))
    except (ValueError, SyntaxError):
        raise _uncertain("such a text") from None


def _uncertain(what: str) -> Refused:
    return Refused("unsupported_filter", f"the local index does not know {what}")
