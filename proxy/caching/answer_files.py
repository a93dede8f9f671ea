"""Read files of prepared answers: every fault of them with its line, and nothing believed of a file that has one.

answers.yaml                                       answers.jsonl
- question: How do I reset my password?            {"question": "…", "also": ["…"], "answer": "…", "source": "…"}
  also: ["I forgot my password, what do I do?"]
  answer: Follow the link on the login page.
  source: handbook, accounts                       # optional, like `also`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from understudy.policies.last_words import Prepared
from understudy.policies.wording import TEXT_CHARS_MAX, wording_of
from understudy.proxy.settings.policy_files import kind_of, read_bounded, spot_of, syntax_fault
from understudy.proxy.settings.settings import Settings
from understudy.proxy.settings.spots import Fault, Place, Spot, shown

__all__ = ["answer_files", "faults_of_answers", "fingerprint_of", "read_answers"]

FILE_BYTES_MAX = 8 * 1024 * 1024
ENTRIES_MAX = 10_000
QUESTIONS_MAX = 32
"""Ways of asking one question."""
ANSWER_CHARS_MAX = 20_000
KEYS = ("question", "also", "answer", "source")

Row = tuple[Spot, dict[str, tuple[Spot, object]]]
"""An entry: where it stands, and its values with the place of each."""


def answer_files(settings: Settings | None) -> tuple[str, ...]:
    """The files that any route names, each once."""
    routes = settings.routes if settings is not None else ()
    return tuple(dict.fromkeys(path for route in routes for path in route.last_words.answers))


def fingerprint_of(paths: Iterable[str]) -> str:
    """What changes when any of these files does; cheap enough to ask every second. One that cannot be read has one too.

    Contents are compared, as policy files' are: a ConfigMap's files keep their times.
    """
    whole = hashlib.sha256()
    for path in paths:
        try:
            content = read_bounded(Path(path), FILE_BYTES_MAX)
        except (OSError, ValueError) as error:
            content = str(error).encode()
        whole.update(f"{len(path)} {path} {len(content)} ".encode("utf-8", "surrogateescape"))
        whole.update(content)
    return whole.hexdigest()[:16]


def faults_of_answers(settings: Settings, top: Place) -> Iterator[Fault]:
    """What is wrong with the files that routes name, each told once."""
    told: set[str] = set()
    for n, route in enumerate(settings.routes):
        for number, path in enumerate(route.last_words.answers):
            if path in told or not top.grown.sound(f"routes[{n}].last_words.answers[{number}]"):
                continue
            told.add(path)
            try:
                _, faults = read_answers([path])
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                yield from top.at(f"routes[{n}].last_words").fault(f"can't be read: {why}", f"answers[{number}]")
                continue
            yield from faults


def read_answers(paths: Sequence[str]) -> tuple[list[Prepared], list[Fault]]:
    """The entries of some files in order, and what is wrong with them. Raises OSError or ValueError for a file that
    cannot be read at all."""
    entries: list[Prepared] = []
    faults: list[Fault] = []
    for path in paths:
        seen: dict[str, Spot] = {}
        for row in _rows(path, faults):
            entry = _entry(row, seen, faults)
            if entry is not None:
                entries.append(entry)
    return entries, faults


def _rows(path: str, faults: list[Fault]) -> Iterator[Row]:
    raw = read_bounded(Path(path), FILE_BYTES_MAX)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        faults.append(Fault(path, before.count(b"\n") + 1, error.start - before.rfind(b"\n"), "", "not UTF-8"))
        return
    rows = _of_jsonl(path, text, faults) if path.endswith((".jsonl", ".ndjson")) else _of_yaml(path, text, faults)
    for number, row in enumerate(rows):
        if number == ENTRIES_MAX:
            faults.append(Fault.at(row[0], f"more than {ENTRIES_MAX} answers in this file"))
            return
        yield row


def _of_jsonl(path: str, text: str, faults: list[Fault]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        spot = Spot(path, number, 1)
        try:
            value: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            column = error.colno if isinstance(error, json.JSONDecodeError) else 1
            faults.append(Fault(path, number, column, "", "not a line of JSON"))
            continue
        if not isinstance(value, dict):
            faults.append(Fault.at(spot, "expected an object with question and answer"))
            continue
        entries = cast("dict[str, object]", value)
        yield spot, {key: (spot.under(key), each) for key, each in entries.items()}


def _of_yaml(path: str, text: str, faults: list[Fault]) -> Iterator[Row]:
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except Exception as error:
        # PyYAML lets some of Python's own errors through
        faults.append(syntax_fault(path, text, loader, error))
        return
    if node is None:
        return
    if not isinstance(node, SequenceNode):
        faults.append(Fault.at(spot_of(node, path), f"expected a list of questions and answers, got {kind_of(node)}"))
        return
    for number, item in enumerate(cast("list[Node]", node.value)):
        spot = spot_of(item, path, f"[{number}]")
        if not isinstance(item, MappingNode):
            faults.append(Fault.at(spot, f"expected a mapping with question and answer, got {kind_of(item)}"))
            continue
        yield spot, dict(_pairs(item, path, spot, faults))


def _pairs(node: MappingNode, path: str, spot: Spot, faults: list[Fault]) -> Iterator[tuple[str, tuple[Spot, object]]]:
    taken: set[str] = set()
    for name, value in cast("list[tuple[Node, Node]]", node.value):
        key = name.value if isinstance(name, ScalarNode) else ""
        place = spot_of(name, path, spot.key).under(shown(key))
        if key in taken:
            faults.append(Fault.at(place, "duplicate key"))
        taken.add(key)
        yield key, (place, _plain(value))


def _plain(node: Node) -> object:
    """Text as text, a list of texts as one; anything else as the word for it, which no rule below takes for a text."""
    if isinstance(node, SequenceNode):
        return [_plain(each) for each in cast("list[Node]", node.value)]
    if isinstance(node, ScalarNode) and kind_of(node) != "nothing":
        # a number or a date is what somebody wrote, and is given as it was written
        return node.value
    return None


def _entry(row: Row, seen: dict[str, Spot], faults: list[Fault]) -> Prepared | None:
    spot, values = row
    before = len(faults)
    faults += [
        Fault.at(place, f"unknown key; known are {', '.join(KEYS)}")
        for key, (place, _) in values.items()
        if key not in KEYS
    ]
    question = _text(values, "question", spot, TEXT_CHARS_MAX, faults)
    answer = _text(values, "answer", spot, ANSWER_CHARS_MAX, faults)
    source = _text(values, "source", spot, TEXT_CHARS_MAX, faults) if "source" in values else ""
    questions = [question, *_others(values, faults)]
    for each in questions:
        wording = wording_of(each) if each else None
        if each and wording is None:
            faults.append(Fault.at(spot, f"“{shown(each)}” has no word in it that could be asked"))
        elif wording is not None and (first := seen.setdefault(wording.exact, spot)) is not spot:
            faults.append(Fault.at(spot, f"“{shown(each)}” is answered already, on line {first.line}"))
    if len(faults) > before:
        return None
    return Prepared(tuple(questions), answer, source, spot.place)


def _text(values: dict[str, tuple[Spot, object]], key: str, spot: Spot, chars_max: int, faults: list[Fault]) -> str:
    if key not in values:
        faults.append(Fault.at(spot.under(key), "missing"))
        return ""
    place, value = values[key]
    if not isinstance(value, str) or not value.strip():
        faults.append(Fault.at(place, "expected a text"))
        return ""
    if len(value) > chars_max:
        faults.append(Fault.at(place, f"longer than {chars_max} characters"))
        return ""
    return value.strip()


def _others(values: dict[str, tuple[Spot, object]], faults: list[Fault]) -> list[str]:
    if "also" not in values:
        return []
    place, value = values["also"]
    texts = cast("list[object]", value) if isinstance(value, list) else [None]
    if any(not isinstance(each, str) or not each.strip() or len(each) > TEXT_CHARS_MAX for each in texts):
        faults.append(Fault.at(place, f"expected a list of questions of at most {TEXT_CHARS_MAX} characters"))
        return []
    if len(texts) >= QUESTIONS_MAX:
        faults.append(Fault.at(place, f"more than {QUESTIONS_MAX - 1} other ways of asking"))
        return []
    return [str(each).strip() for each in texts]
