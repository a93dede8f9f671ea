"""Cut files into passages: small enough to embed, whole enough to be quoted.

    Markdown   at headings, whose path becomes the title; then at blank lines; code blocks stay whole
    plain text at blank lines
    JSONL      a record is a passage, as it is: {"text", "id"?, "title"?, "source"?, ... payload}

Pieces of one section are joined up to about TARGET_CHARS. A sentence is cut only if it alone is longer than
CHARS_MAX, a code block only at its lines. The same file gives the same passages with the same ids, anywhere.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from understudy.indexes.faults import BadFile
from understudy.indexes.points import ID_MAX, Payload, PointId

TARGET_CHARS: Final = 800
CHARS_MAX: Final = 1_200
# a last piece this small joins the one before, if there is room
SMALL_CHARS: Final = 200
FILE_BYTES_MAX: Final = 64 * 2**20
RECORD_CHARS_MAX: Final = 100_000

_NAMESPACE: Final = uuid.UUID("6f2a8f0e-4c55-5d0e-9d2b-6b1f3c1f7a10")
_MARKDOWN: Final = frozenset({".md", ".markdown"})
_TEXT: Final = frozenset({".txt", ".text"})
_RECORDS: Final = frozenset({".jsonl", ".ndjson"})

_HEADING: Final = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-+)[ \t]*")
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n")
_SENTENCE_END: Final = re.compile(r"[.!?…]+[\"'”’)\]]*\s+(?=[^a-z\s])|[。！？]+[」』”）]*")
_ABBREVIATION: Final = re.compile(r"\b(?:e\.g|i\.e|etc|cf|vs|al|Dr|Mr|Mrs|Ms|St|No|Fig|Eq|Prof|approx|[A-Z])\.\s+$")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file. `source` is the file, from the folder that was given on; `title` the path of headings."""

    id: PointId
    source: str
    title: str
    text: str
    payload: Payload = field(default_factory=dict[str, Any])


def chunk_files(paths: Iterable[Path]) -> Iterator[Passage]:
    """The passages of files, and of all known files in folders, hidden ones left out, in the order of their names.

    Raises BadFile, `file:line: why`, for a file that is missing, of no known kind, not UTF-8, too large, or bad JSONL,
    and for two files that would go by the same source.
    """
    seen: dict[str, Path] = {}
    for path, source in _files(paths):
        if source in seen:
            raise BadFile(f"{path}:1: goes by the source {source!r}, as does {seen[source]}")
        seen[source] = path
        yield from chunk_file(path, source)


def chunk_file(path: Path, source: str) -> Iterator[Passage]:
    """The passages of one file, said to come from `source`. Raises BadFile."""
    text = _read(path)
    if path.suffix.lower() in _RECORDS:
        yield from _records(text, path, source)
        return
    sections = markdown_sections(text) if path.suffix.lower() in _MARKDOWN else [_Section((), text_blocks(text))]
    position = 0
    for section in sections:
        for piece in pack(section.blocks):
            title = " > ".join(section.path) or path.stem
            payload = {"title": title, "source": source, "position": position}
            yield Passage(passage_id(source, position), source, title, piece, payload)
            position += 1


def passage_id(source: str, position: int) -> str:
    """The id of the n-th passage of a source: a name-based UUID (RFC 9562, version 5)."""
    return str(uuid.uuid5(_NAMESPACE, f"{source}#{position}"))


# -- cutting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Block:
    """Text that belongs together: a paragraph, a list, a table, or code with its fences."""

    text: str
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class _Section:
    path: tuple[str, ...]
    blocks: list[_Block]


def markdown_sections(text: str) -> list[_Section]:
    """The sections of a Markdown text in order, each with its path of headings; those without a body left out."""
    reader = _MarkdownReader()
    for line in _without_front_matter(text).splitlines():
        reader.read(line.rstrip())
    reader.end_section()
    return reader.sections


class _MarkdownReader:
    """Reads a Markdown text line by line: in a fence, or gathering a paragraph."""

    def __init__(self) -> None:
        self.sections: list[_Section] = []
        self._headings: list[tuple[int, str]] = []
        self._blocks: list[_Block] = []
        self._lines: list[str] = []
        self._fence = ""

    def read(self, line: str) -> None:
        if self._fence:
            self._lines.append(line)
            if line.strip().startswith(self._fence) and not line.strip().strip(self._fence[0]):
                self._end_block(is_code=True)
                self._fence = ""
        elif (fence := _FENCE.fullmatch(line)) and "`" not in fence[2]:
            self._end_block()
            self._fence = fence[1]
            self._lines.append(line)
        elif heading := _HEADING.fullmatch(line):
            self._start_section(len(heading[1]), heading[2] or "")
        elif (under := _UNDERLINE.fullmatch(line)) and self._ends_in_a_title():
            title = self._lines.pop().strip()
            self._start_section(1 if under[1][0] == "=" else 2, title)
        elif line:
            self._lines.append(line)
        else:
            self._end_block()

    def end_section(self) -> None:
        self._end_block(is_code=bool(self._fence))
        if self._blocks:
            self.sections.append(_Section(tuple(title for _, title in self._headings if title), self._blocks))
            self._blocks = []

    def _start_section(self, level: int, title: str) -> None:
        self.end_section()
        self._headings = [(above, name) for above, name in self._headings if above < level]
        self._headings.append((level, title))

    def _end_block(self, *, is_code: bool = False) -> None:
        if self._lines:
            self._blocks.append(_Block("\n".join(self._lines), is_code))
            self._lines = []

    def _ends_in_a_title(self) -> bool:
        # a dashed line under a table row, list item or quotation is no underline
        return len(self._lines) == 1 and not re.match(r"\s*([-*+>|]|\d+[.)])", self._lines[0])


def text_blocks(text: str) -> list[_Block]:
    """The paragraphs of a plain text."""
    stripped = (part.strip("\n").rstrip() for part in _BLANK_LINES.split(text))
    return [_Block(part) for part in stripped if part.strip()]


def pack(blocks: Sequence[_Block]) -> list[str]:
    """Texts of at most CHARS_MAX, about TARGET_CHARS where there is enough, out of blocks that follow each other."""
    pieces: list[str] = []
    before_last = ""
    for block in blocks:
        for part, glue in _fitting(block):
            if pieces and len(pieces[-1]) + len(glue) + len(part) <= TARGET_CHARS:
                pieces[-1] += glue + part
            else:
                pieces.append(part)
                before_last = glue
    if len(pieces) > 1 and len(pieces[-1]) < SMALL_CHARS:
        joined = before_last.join(pieces[-2:])
        pieces[-2:] = [joined] if len(joined) <= CHARS_MAX else pieces[-2:]
    return pieces


def _fitting(block: _Block) -> Iterator[tuple[str, str]]:
    """The block, or parts of it that fit, each with what joins it to the text before."""
    if len(block.text) <= CHARS_MAX:
        yield block.text, "\n\n"
        return
    atoms = block.text.splitlines() if block.is_code else sentences(block.text)
    glue = "\n" if block.is_code else " "
    joined = "\n\n"
    for part in _joined(atoms, glue):
        yield part, joined
        joined = glue


def _joined(atoms: Iterable[str], glue: str) -> Iterator[str]:
    held = ""
    for atom in atoms:
        for part in _cut(atom):
            if held and len(held) + len(glue) + len(part) > TARGET_CHARS:
                yield held
                held = part
            else:
                held = held + glue + part if held else part
    if held:
        yield held


def _cut(text: str) -> Iterator[str]:
    """The text, or if it is longer than CHARS_MAX pieces of it, cut at white space if there is any."""
    while len(text) > CHARS_MAX:
        at = text.rfind(" ", TARGET_CHARS // 2, CHARS_MAX)
        at = CHARS_MAX if at < 0 else at
        yield text[:at].rstrip()
        text = text[at:].lstrip()
    yield text


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order, by punctuation; common abbreviations and initials do not end one."""
    found: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text, max(start, end.start() - 8), end.end()):
            found.append(text[start : end.end()].strip())
            start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


# -- reading ----------------------------------------------------------------------------------------------------------


class _Record(msgspec.Struct):
    """The fields of a JSONL record that mean something to us; the rest is its payload."""

    text: str
    id: int | str | None = None
    title: str | None = None
    source: str | None = None


def _records(text: str, path: Path, source: str) -> Iterator[Passage]:
    seen: dict[PointId, int] = {}
    # not splitlines(), which also splits at separators that JSON strings may hold
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        passage = _record(line, f"{path}:{number}", source, number)
        if passage.id in seen:
            raise BadFile(f"{path}:{number}: id {passage.id!r} was used on line {seen[passage.id]}")
        seen[passage.id] = number
        yield passage


def _record(line: str, where: str, source: str, number: int) -> Passage:
    try:
        record = msgspec.json.decode(line, type=_Record)
        payload = cast("Payload", msgspec.json.decode(line))
    except msgspec.MsgspecError as error:
        raise BadFile(f"{where}: {error}") from error
    if not record.text.strip():
        raise BadFile(f"{where}: `text` is empty")
    if len(record.text) > RECORD_CHARS_MAX:
        raise BadFile(f"{where}: `text` has {len(record.text)} characters, more than {RECORD_CHARS_MAX}")
    if isinstance(record.id, int) and not 0 <= record.id <= ID_MAX:
        raise BadFile(f"{where}: `id` {record.id} is no unsigned 64-bit integer")
    for taken in ("id", "text"):
        payload.pop(taken, None)
    origin = record.source or source
    payload["source"] = origin
    # lines are numbered from one, passages from zero
    own_id = passage_id(source, number - 1) if record.id is None else record.id
    return Passage(own_id, origin, record.title or "", record.text, payload)


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """(file, source) for every file to read."""
    for path in paths:
        if path.is_dir():
            top = path.resolve().name
            for file in _walk(path):
                yield file, f"{top}/{file.relative_to(path).as_posix()}"
        else:
            yield path, path.name


def _walk(folder: Path) -> Iterator[Path]:
    known = _MARKDOWN | _TEXT | _RECORDS
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in known and not name.startswith("."):
                yield Path(here) / name


def _read(path: Path) -> str:
    if path.suffix.lower() not in _MARKDOWN | _TEXT | _RECORDS:
        raise BadFile(f"{path}:1: no kind of file we can read; .md, .txt and .jsonl are")
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise BadFile(f"{path}:1: more than {FILE_BYTES_MAX} bytes")
        raw = path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path}:1: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadFile(f"{path}:{line}: byte {raw[error.start]:#04x} is not UTF-8") from error


def _without_front_matter(text: str) -> str:
    if not text.startswith("---\n"):
        return text
    end = text.find("\n---\n", 3)
    return text if end < 0 else text[end + 5 :]
