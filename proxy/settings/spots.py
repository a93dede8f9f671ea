"""Know where every value stands in its file, so that whatever is said about it can name the line.

A tree is a policy file after its types were checked and before it is laid over its defaults. What was found broken
stays in the tree as a broken leaf: it still covers the default under it, and no rule is asked about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from msgspec import UNSET, Struct

from understudy.proxy.settings.types import MASK, Secret

SHOWN_CHARS_MAX = 60
"""How much of a file's own words is repeated in a fault."""


class Spot(NamedTuple):
    """Where a value stands: line and column are 1-based, `key` is its path inside its file.

    `variables` are the environment variables that had a say in it.
    """

    file: str
    line: int
    col: int
    key: str = ""
    variables: tuple[str, ...] = ()

    def under(self, key: str) -> Spot:
        """The same place, seen as that of `key` inside it."""
        return self._replace(key=join(self.key, key))

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


class Fault(NamedTuple):
    """One thing wrong, and where. Faults sort in the order of files, lines and columns."""

    file: str
    line: int
    col: int
    key: str
    why: str

    @classmethod
    def at(cls, spot: Spot, why: str) -> Fault:
        """`why`, said of what stands at `spot`."""
        return cls(spot.file, spot.line, spot.col, spot.key, why)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}: {self.key + ': ' if self.key else ''}{self.why}"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value at a spot (None: built in), and how it was written there. A broken one with UNSET has no stand-in."""

    spot: Spot | None
    value: object
    written: str = ""
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """A mapping that becomes a `type`."""

    spot: Spot | None
    type: type[Struct]
    parts: dict[str, Tree] = field(default_factory=dict[str, "Tree"])
    unsure: str = ""
    """The key that should have said which type this is, where it did not and the type is a guess."""


@dataclass(frozen=True, slots=True)
class Row:
    """A list."""

    spot: Spot | None
    items: list[Tree]


@dataclass(frozen=True, slots=True)
class Pairs:
    """A mapping with names of the operator's choosing."""

    spot: Spot | None
    items: dict[str, Tree]


Tree = Leaf | Branch | Row | Pairs


def lay(upper: Tree | None, lower: Tree | None) -> Tree | None:
    """`upper` with `lower` under it, key by key; where both speak, the upper one is heard."""
    if upper is None:
        return lower
    if not isinstance(upper, Branch) or not isinstance(lower, Branch):
        return upper
    parts = dict(lower.parts)
    for name, part in upper.parts.items():
        parts[name] = lay(part, lower.parts.get(name)) or part
    return replace(upper, parts=parts)


class Grown:
    """Values built from a tree, with the spot of each and the paths of those that can't be believed."""

    def __init__(self) -> None:
        self.spots: dict[str, Spot] = {}
        self.written: dict[str, str] = {}
        self.broken: set[str] = set()

    def build(self, tree: Tree, path: str) -> Any:
        """The value `tree` stands for, entered under `path`; UNSET for what is broken beyond a stand-in."""
        if tree.spot is not None:
            self.spots[path] = tree.spot
        match tree:
            case Leaf():
                if tree.broken:
                    self.broken.add(path)
                self.written[path] = tree.written
                return tree.value
            case Branch():
                if tree.unsure:
                    self.broken.add(join(path, tree.unsure))
                built = {name: self.build(part, join(path, name)) for name, part in tree.parts.items()}
                return tree.type(**{name: value for name, value in built.items() if value is not UNSET})
            case Pairs():
                built = {name: self.build(part, join(path, named(name))) for name, part in tree.items.items()}
                return {name: value for name, value in built.items() if value is not UNSET}
            case Row():
                return self._row(tree, path)

    def _row(self, row: Row, path: str) -> list[object]:
        values: list[object] = []
        for item in row.items:
            # An item without a stand-in leaves no gap: the paths count what is there, each spot keeps its own key.
            if isinstance(item, Leaf) and item.value is UNSET:
                self.broken.add(f"{path}[?]")
            else:
                values.append(self.build(item, f"{path}[{len(values)}]"))
        return values

    def sound(self, path: str) -> bool:
        """Whether neither `path` nor anything round it was broken."""
        return not any(within(path, bad) for bad in self.broken)

    def whole(self, path: str) -> bool:
        """Whether `path` is sound and everything in it."""
        return self.sound(path) and not any(within(bad, path) for bad in self.broken)

    def spot(self, path: str) -> Spot | None:
        """Where `path` was written, or the nearest thing round it that was."""
        inner = path
        while inner:
            if inner in self.spots:
                return self.spots[inner].under(path[len(inner) :].lstrip("."))
            inner = inner[: max(inner.rfind("."), inner.rfind("["), 0)]
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the settings a rule looks, and what can be said about it."""

    grown: Grown
    path: str
    folder: Spot

    def at(self, key: str) -> Place:
        return Place(self.grown, join(self.path, key), self.folder)

    def fault(self, why: str, *keys: str, reads: Iterable[str] = ()) -> Iterator[Fault]:
        """`why`, said of the first of `keys` that somebody wrote, unless one of them or of `reads` was broken."""
        paths = [join(self.path, key) for key in keys] or [self.path]
        if all(self.grown.sound(path) for path in (*paths, *(join(self.path, key) for key in reads))):
            written = next((path for path in paths if path in self.grown.spots), paths[0])
            yield Fault.at(self.grown.spot(written) or self.folder, why)

    def place(self, key: str = "") -> str:
        """`file:line` of `key`."""
        return (self.grown.spot(join(self.path, key)) or self.folder).place

    def has(self, key: str) -> bool:
        """Whether somebody wrote `key`."""
        return join(self.path, key) in self.grown.spots

    def written(self, key: str, built_in: object = "") -> str:
        """`key`'s value in the file's own words: what a variable holds is never repeated."""
        return self.grown.written.get(join(self.path, key)) or str(built_in)


def within(path: str, outer: str) -> bool:
    """Whether `path` is `outer` or lies inside it."""
    return path.startswith(outer) and path[len(outer) : len(outer) + 1] in ("", ".", "[")


def join(path: str, key: str) -> str:
    """`key` under `path`, as people write it: `routes[0]` and `name` make `routes[0].name`."""
    return f"{path}.{key}" if path and key and not key.startswith("[") else path + key


def shown(text: str) -> str:
    """A file's own words on one line, without what a terminal could trip over, and not too many of them."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return clean if len(clean) <= SHOWN_CHARS_MAX else clean[: SHOWN_CHARS_MAX - 1] + "…"


def named(name: str) -> str:
    """A name of the operator's choosing, as it stands in a key."""
    return shown(name) or '""'


def masked(value: object) -> str:
    """A value as people may see it."""
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value is None else str(value)
