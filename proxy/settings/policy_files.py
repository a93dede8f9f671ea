"""Turn a folder of YAML files into nodes that know their lines, whatever the files contain.

Nothing is believed here yet but the YAML itself. A file that can't be read is a fault, never an exception.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode
from yaml.reader import ReaderError

from understudy.proxy.settings.spots import Fault, Spot, shown

FILES_MAX = 256
FILE_BYTES_MAX = 256 * 1024
MERGES_MAX = 10_000
"""How many keys `<<` may bring into one file: anchors that merge anchors multiply."""

MERGE_TAG = "tag:yaml.org,2002:merge"
CONFIG_ENDINGS = (".yaml", ".yml")

Pair = tuple[Node, Node]


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One file as it was found: its name as people see it, and its bytes."""

    path: Path
    raw: bytes

    @property
    def name(self) -> str:
        return str(self.path)


def find_files(folder: Path, faults: list[Fault]) -> list[PolicyFile]:
    """The policy files directly in `folder`, in the order of their names; what can't be read becomes a fault."""
    try:
        paths = sorted(path for path in folder.iterdir() if _is_policy(path))
    except (OSError, ValueError) as error:
        faults.append(Fault(str(folder), 1, 1, "", f"no policy folder here: {_reason(error)}"))
        return []
    if not paths:
        faults.append(Fault(str(folder), 1, 1, "", "no *.yaml files in this folder"))
    if len(paths) > FILES_MAX:
        faults.append(Fault(str(folder), 1, 1, "", f"more than {FILES_MAX} policy files"))
    files: list[PolicyFile] = []
    for path in paths[:FILES_MAX]:
        try:
            files.append(PolicyFile(path, read_bounded(path, FILE_BYTES_MAX)))
        except (OSError, ValueError) as error:
            faults.append(Fault(str(path), 1, 1, "", f"can't be read: {_reason(error)}"))
    return files


def _is_policy(path: Path) -> bool:
    return path.suffix in CONFIG_ENDINGS and not path.name.startswith(".") and not path.is_dir()


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """The bytes of a regular file. Raises OSError or ValueError."""
    if path.exists() and not path.is_file():
        # Opening a pipe would wait for somebody to write into it.
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        raw = file.read(bytes_max + 1)
    if len(raw) > bytes_max:
        raise ValueError(f"larger than {bytes_max} bytes")
    return raw


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def digest(files: list[PolicyFile]) -> str:
    """16 hex digits over the files' names and bytes."""
    whole = hashlib.sha256()
    for file in files:
        # Lengths go in first, so that no two folders spell the same bytes.
        whole.update(f"{len(file.path.name)} {len(file.raw)} {file.path.name}".encode("utf-8", "surrogateescape"))
        whole.update(file.raw)
    return whole.hexdigest()[:16]


def digest_folder(folder: Path) -> str:
    """What `Settings.digest` would be if `folder` were read now: cheap enough to ask every second."""
    return digest(find_files(folder, []))


def compose(file: PolicyFile, faults: list[Fault]) -> MappingNode | None:
    """The file's one YAML document, or None when it is empty or a fault was found."""
    try:
        text = file.raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = file.raw[: error.start]
        line, col = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        faults.append(Fault(file.name, line, col, "", "not UTF-8"))
        return None
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except Exception as error:
        # PyYAML lets some of Python's own errors through: a ValueError for "\UFFFFFFFF", a RecursionError for [[[[…
        faults.append(syntax_fault(file.name, text, loader, error))
        return None
    if node is None:
        return None
    if not isinstance(node, MappingNode):
        spot = spot_of(node, file.name)
        faults.append(Fault.at(spot, f"expected a mapping with server, local, defaults or routes, got {kind_of(node)}"))
        return None
    return node


def syntax_fault(name: str, text: str, loader: yaml.SafeLoader | None, error: Exception) -> Fault:
    """What PyYAML could not read, with its line and column and none of the file's own words."""
    match error:
        case ReaderError():
            before = text[: error.position]
            line, col = before.count("\n") + 1, error.position - before.rfind("\n")
            return Fault(name, line, col, "", "a character that YAML doesn't allow")
        case yaml.MarkedYAMLError():
            mark = error.problem_mark or error.context_mark
            why = _problem(error)
        case RecursionError():
            mark, why = None, "nested too deeply"
        case _:
            mark, why = None, "not valid YAML"
    if mark and text[max(mark.index - 1, 0) : mark.index + 1] == "${":
        why += '; inside {} and [] quote it: "${NAME}"'
    if mark is None and loader is not None:
        mark = cast("yaml.Mark", loader.get_mark())  # pyright: ignore[reportUnknownMemberType]
    return Fault(name, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, "", why)


def _problem(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, ComposerError):
        # Its words quote the file, and what is quoted may be a password that begins with an asterisk.
        if error.context and error.context.startswith("expected a single document"):
            return "a second document (---) begins here; write one per file"
        if error.context and error.context.startswith("found duplicate anchor"):
            return "an &anchor of this name stands above"
        return "*name stands for an &anchor, and there is none of this name above"
    if error.problem and error.problem.startswith("found undefined tag handle"):
        return "a value that begins with ! is a tag; quote it"
    return ": ".join(shown(part) for part in (error.context, error.problem) if part)


def spot_of(node: Node, file: str, key: str = "") -> Spot:
    """Where `node` begins."""
    return Spot(file, node.start_mark.line + 1, node.start_mark.column + 1, key)


KINDS = {each: each for each in ("str", "int", "float", "bool")} | {
    "seq": "list",
    "map": "mapping",
    "null": "nothing",
    "timestamp": "date",
    "value": "str",
    "merge": "str",
}


def kind_of(node: Node) -> str:
    """What YAML takes `node` for: str, int, float, bool, nothing, date, list, mapping, or something with a tag.

    The tag itself is never told: a password that begins with an exclamation mark is one.
    """
    return KINDS.get(node.tag.removeprefix("tag:yaml.org,2002:"), "a !tag")


class Unfolding:
    """A mapping's pairs with `<<` resolved as YAML has it: own keys win, then the first mapping named.

    One serves a whole file, for the bound on merges is a file's. Duplicate keys become faults.
    """

    def __init__(self, file: str, faults: list[Fault]) -> None:
        self._file = file
        self._faults = faults
        self._merged = 0
        self._told: set[int] = set()

    def pairs(self, node: MappingNode, key: str) -> list[Pair]:
        """The pairs of `node`, which stands at `key`."""
        return list(self._unfold(node, key, ()))

    def _unfold(self, node: MappingNode, key: str, within: tuple[int, ...]) -> Iterator[Pair]:
        taken: dict[str, Node] = {}
        merges: list[Node] = []
        for name, value in node.value:
            if not isinstance(name, ScalarNode):
                yield name, value
            elif name.tag == MERGE_TAG:
                merges.append(value)
            elif (first := taken.setdefault(name.value, name)) is name:
                yield name, value
            else:
                self._duplicate(first, name, key)
        for merge in merges:
            for name, value in self._merge(merge, key, (*within, id(node))):
                if isinstance(name, ScalarNode) and taken.setdefault(name.value, name) is name:
                    yield name, value

    def _duplicate(self, first: Node, second: ScalarNode, key: str) -> None:
        # An anchored mapping is unfolded wherever it is named; its duplicates are told once.
        if id(second) not in self._told:
            self._told.add(id(second))
            spot = spot_of(second, self._file, key).under(shown(second.value))
            self._faults.append(Fault.at(spot, f"duplicate key, first on line {first.start_mark.line + 1}"))

    def _merge(self, value: Node, key: str, within: tuple[int, ...]) -> Iterator[Pair]:
        if self._merged > MERGES_MAX:
            # Told already, and the levels above have to come to their end quickly.
            return
        sources = [value] if isinstance(value, MappingNode) else value.value
        if isinstance(value, ScalarNode) or not all(isinstance(source, MappingNode) for source in sources):
            self._fault(value, key, "<< takes a mapping, or a list of mappings")
            return
        for source in sources:
            # Counted for every mapping entered as well: mappings that merge mappings double at each level.
            self._merged += 1
            if id(source) in within:
                self._fault(source, key, "<< merges this mapping into itself")
                continue
            for pair in self._unfold(source, key, within):
                self._merged += 1
                if self._merged > MERGES_MAX:
                    self._fault(value, key, f"<< brings more than {MERGES_MAX} keys into this file")
                    return
                yield pair

    def _fault(self, node: Node, key: str, why: str) -> None:
        fault = Fault.at(spot_of(node, self._file, key), why)
        if fault not in self._faults:
            self._faults.append(fault)
