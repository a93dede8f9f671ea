"""Say what an upstream's error means and what may follow, from one table: the first row that fits decides.

    what was said                        the rows, in order                    Verdict
    provider, code, message,   ---->     first row all of whose      ---->     outcome: success | failure | soft |
    status, transport error              conditions hold                                caller | ignored
                                                                               follow:  here | elsewhere | tier | back

Tables stand one on the other: a tier's own rows, then its route's, then the table that ships. A row's place is found by
its code, its transport error or its status, so that what an error costs does not grow with the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

Outcome = Literal["success", "failure", "soft", "caller", "ignored"]
"""What it says of the endpoint: it is well, it broke, it is busy in good order, the caller was wrong, or nothing."""
Follow = Literal["here", "elsewhere", "tier", "back"]
"""What may follow: ask again here, ask another endpoint, ask the next tier, or give it back as it is."""

FOLLOWS: Mapping[Outcome, Follow] = MappingProxyType(
    {"success": "back", "failure": "here", "soft": "here", "caller": "back", "ignored": "back"}
)
"""What follows an outcome when its row does not say."""
PATTERN_CHARS_MAX = 200
_NESTED_REPEAT = re.compile(r"[*+}]\)[*+{]")
_CLASSES = {"4xx": range(400, 500), "5xx": range(500, 600)}
_WITHIN = frozenset({"error_in_200", "error_in_stream"})
"""What is a transport error to us though the upstream said it in words: it may have a code and a message."""


class Row(Protocol):
    """One row as it is written (`Outcome` of `proxy/settings` has all of it); what is None is not asked."""

    @property
    def provider(self) -> str | Sequence[str] | None: ...
    @property
    def code(self) -> str | Sequence[str] | None: ...
    @property
    def message(self) -> str | None: ...
    @property
    def status(self) -> int | str | Sequence[int | str] | None: ...
    @property
    def transport(self) -> str | Sequence[str] | None: ...
    @property
    def retry_after(self) -> bool | None: ...
    @property
    def credentials(self) -> str | None: ...
    @property
    def outcome(self) -> Outcome: ...
    @property
    def follow(self) -> Follow | None: ...
    @property
    def reason(self) -> str: ...


class Said(NamedTuple):
    """An error as an upstream said it. `codes` are lower case, the most particular first."""

    provider: str
    status: int = 0
    codes: tuple[str, ...] = ()
    message: str = ""
    transport: str = ""
    retry_after: bool = False
    own_key: bool = False


class Verdict(NamedTuple):
    """What it means. `at` is the path of the row that decided; `of_key` says that it is about a key of ours."""

    outcome: Outcome
    follow: Follow
    reason: str = ""
    at: str = ""
    of_key: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A row made ready: each condition as a set, None where it is not asked."""

    providers: frozenset[str] | None
    codes: frozenset[str] | None
    message: re.Pattern[str] | None
    statuses: frozenset[int] | None
    transports: frozenset[str] | None
    retry_after: bool | None
    credentials: str | None

    @classmethod
    def of(cls, row: Row) -> Rule:
        """Raises re.error for a message that is no pattern."""
        codes = _words(row.code)
        return cls(
            _words(row.provider),
            None if codes is None else frozenset(code.lower() for code in codes),
            None if row.message is None else re.compile(row.message, re.IGNORECASE),
            _statuses(row.status),
            _words(row.transport),
            row.retry_after,
            row.credentials,
        )

    def fits(self, said: Said) -> bool:
        """Whether every condition holds."""
        return (
            (self.providers is None or said.provider in self.providers)
            and (self.statuses is None or said.status in self.statuses)
            and (self.transports is None or said.transport in self.transports)
            and (self.codes is None or not self.codes.isdisjoint(said.codes))
            and (self.retry_after is None or said.retry_after == self.retry_after)
            and (self.credentials is None or (self.credentials == "ours") == said.own_key)
            and (self.message is None or self.message.search(said.message) is not None)
        )

    def covers(self, other: Rule) -> bool:
        """Whether whatever fits `other` fits this as well."""
        sets = (
            (self.providers, other.providers),
            (self.codes, other.codes),
            (self.statuses, other.statuses),
            (self.transports, other.transports),
        )
        return (
            all(mine is None or (theirs is not None and theirs <= mine) for mine, theirs in sets)
            and (self.message is None or self.message == other.message)
            and self.retry_after in (None, other.retry_after)
            and self.credentials in (None, other.credentials)
        )


class Outcomes:
    """A table made ready, standing on the one `below` it; `at` is its path in the settings."""

    __slots__ = (
        "_any_message",
        "_at",
        "_below",
        "_by_code",
        "_by_status",
        "_by_transport",
        "_rows",
        "_rules",
        "_unkeyed",
    )

    def __init__(self, rows: Sequence[Row], at: str = "outcomes", below: Outcomes | None = None) -> None:
        """Raises re.error for a message that is no pattern."""
        self._rows = tuple(rows)
        self._rules = tuple(map(Rule.of, rows))
        self._at = at
        self._below = below
        self._by_code: dict[str, list[int]] = {}
        self._by_status: dict[int, list[int]] = {}
        self._by_transport: dict[str, list[int]] = {}
        self._unkeyed: list[int] = []
        for n, rule in enumerate(self._rules):
            self._file(n, rule)
        messages = [f"(?:{rule.message.pattern})" for rule in self._rules if rule.message is not None]
        self._any_message = re.compile("|".join(messages), re.IGNORECASE) if messages else None

    def _file(self, n: int, rule: Rule) -> None:
        if rule.codes is not None:
            for code in rule.codes:
                self._by_code.setdefault(code, []).append(n)
        elif rule.transports is not None:
            for word in rule.transports:
                self._by_transport.setdefault(word, []).append(n)
        elif rule.statuses is not None:
            for status in rule.statuses:
                self._by_status.setdefault(status, []).append(n)
        else:
            self._unkeyed.append(n)

    def of(self, said: Said) -> Verdict:
        """What `said` means: the first row that fits, in this table and then in those below."""
        found = set(self._unkeyed)
        found.update(self._by_status.get(said.status, ()))
        if said.transport:
            found.update(self._by_transport.get(said.transport, ()))
        for code in said.codes:
            found.update(self._by_code.get(code, ()))
        # most errors fit no message at all, and one search says so
        worded = self._any_message is not None and self._any_message.search(said.message) is not None
        for n in sorted(found):
            rule = self._rules[n]
            if (worded or rule.message is None) and rule.fits(said):
                row = self._rows[n]
                return Verdict(
                    row.outcome,
                    row.follow or FOLLOWS[row.outcome],
                    row.reason,
                    f"{self._at}[{n}]",
                    rule.credentials == "ours",
                )
        return self._below.of(said) if self._below is not None else _unheard_of(said)


def _unheard_of(said: Said) -> Verdict:
    # a table of one's own may have left something out
    return Verdict("caller", "back") if 400 <= said.status < 500 else Verdict("failure", "here")


def _words(value: str | Iterable[str] | None) -> frozenset[str] | None:
    if value is None:
        return None
    return frozenset({value} if isinstance(value, str) else value)


def _statuses(value: int | str | Iterable[int | str] | None) -> frozenset[int] | None:
    if value is None:
        return None
    each = [value] if isinstance(value, int | str) else list(value)
    return frozenset(status for one in each for status in (_CLASSES[one] if isinstance(one, str) else (one,)))


# --- what may be wrong with a row ----------------------------------------------------------------------------------


def pattern_fault(pattern: str) -> str:
    """What is wrong with the pattern of a message, or ''."""
    if not pattern:
        return "an empty pattern fits every message; leave it out"
    if len(pattern) > PATTERN_CHARS_MAX:
        return f"longer than {PATTERN_CHARS_MAX} characters"
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
        # as it will stand among the others
        re.compile(f"(?:{pattern})")
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression: {error}"
    if compiled.groups:
        return "write groups as (?:…): this one remembers what it finds, and nobody asks"
    if _NESTED_REPEAT.search(pattern):
        return "a repeat within a repeat can take for ever on the wrong message"
    return ""


def row_fault(row: Row) -> str:
    """Why a row, whose pattern is sound, can't be meant, or ''."""
    rule = Rule.of(row)
    conditions = (rule.codes, rule.message, rule.statuses, rule.transports)
    if all(condition is None for condition in conditions):
        return "fits everything: say by which code, message, status or transport error it is known"
    if rule.transports is not None and (rule.statuses, rule.retry_after, rule.credentials) != (None, None, None):
        return "can never match: a transport error has no status and no headers"
    if rule.transports is not None and not rule.transports & _WITHIN and (rule.codes or rule.message):
        return "can never match: such a transport error has no code and no message"
    follow = row.follow or FOLLOWS[row.outcome]
    if row.outcome == "success" and follow != "back":
        return "a success is given back"
    if row.outcome in ("caller", "ignored") and follow in ("here", "elsewhere"):
        return f"follow must be tier or back: asking {follow} again helps nobody where the outcome is {row.outcome}"
    return ""


def shadowed(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """The rows that can never match, each with the row before it that fits whatever it would."""
    rules = [Rule.of(row) for row in rows]
    for n, rule in enumerate(rules):
        by = next((m for m in range(n) if rules[m].covers(rule)), None)
        if by is not None:
            yield n, by
