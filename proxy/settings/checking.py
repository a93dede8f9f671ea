"""Check nodes against the settings types, all of them, and keep going: one run tells everything that is wrong.

msgspec's own conversion stops at the first error and knows no lines. This one walks the same types (through
`msgspec.inspect`), so that a field added to them is checked without a word here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from msgspec import UNSET, inspect
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from understudy.proxy.settings import settings
from understudy.proxy.settings.filling import Filled, Unfilled, fill, read_secret
from understudy.proxy.settings.policy_files import PolicyFile, Unfolding, kind_of, spot_of
from understudy.proxy.settings.scalars import Bare, closest, did_you_mean, names_of, quote_hint, read_scalar, unwrap
from understudy.proxy.settings.spots import Branch, Fault, Leaf, Pairs, Row, Spot, Tree, join, named, shown
from understudy.proxy.settings.types import MASK, Secret

VALUES_MAX = 50_000
"""How many values one file may come to: anchors make long lists of short files."""

WHEN_ENV = "when_env"
_FILE = cast("inspect.StructType", inspect.type_info(settings.File))


class TooMuchError(Exception):
    """A file whose anchors multiply it beyond VALUES_MAX."""


def check_file(file: PolicyFile, node: MappingNode, environ: Mapping[str, str], faults: list[Fault]) -> Branch:
    """The tree of one file; what is wrong with it is added to `faults` and broken in the tree."""
    checker = Checker(file, environ, faults)
    try:
        tree = checker.tree(node, _FILE, "")
    except TooMuchError:
        faults.append(Fault.at(spot_of(node, file.name), f"anchors multiply this file to over {VALUES_MAX} values"))
        return Branch(None, settings.File)
    return tree if isinstance(tree, Branch) else Branch(None, settings.File)


class Checker:
    """Walks one file's nodes and the types side by side. `faults` grows; every call gives a tree."""

    def __init__(self, file: PolicyFile, environ: Mapping[str, str], faults: list[Fault]) -> None:
        self._file = file.name
        self._folder = file.path.parent
        self._environ = environ
        self._faults = faults
        self._unfolding = Unfolding(file.name, faults)
        self._constructor = SafeConstructor()
        self._values = 0
        # Inside a tier that isn't there, what the environment leaves open may stay open.
        self._lenient = False

    def tree(self, node: Node, wanted: inspect.Type, key: str) -> Tree:
        """`node`, standing at `key`, read as a `wanted`. Raises TooMuchError."""
        self._values += 1
        if self._values > VALUES_MAX:
            raise TooMuchError
        bare = unwrap(wanted)
        match bare.type:
            case inspect.UnionType():
                return self._either(node, bare.type, key)
            case inspect.StructType() if bare.type.tag_field:
                return self._tagged(node, [bare.type], key)
            case inspect.StructType():
                return self._struct(node, bare.type, key)
            case inspect.ListType() | inspect.VarTupleType():
                return self._list(node, bare.type, key)
            case inspect.DictType():
                return self._dict(node, bare.type, key)
            case _:
                return self._scalar(node, bare, key)

    # --- one of several types ---

    def _either(self, node: Node, wanted: inspect.UnionType, key: str) -> Tree:
        types = [each for each in wanted.types if not isinstance(each, inspect.NoneType)]
        optional = len(types) < len(wanted.types)
        if optional and kind_of(node) == "nothing":
            return Leaf(self._spot(node, key), None, "null")
        tagged = [each for each in types if isinstance(each, inspect.StructType) and each.tag_field]
        if tagged:
            return self._tagged(node, tagged, key)
        words = [str(word) for each in types if isinstance(each, inspect.LiteralType) for word in each.values]
        named = [each for each in types if not isinstance(each, inspect.LiteralType)]
        expected = " or ".join([names_of(*named), *words])
        for bare in map(unwrap, types):
            if isinstance(node, _node_type(bare.type)):
                if isinstance(node, ScalarNode):
                    return self._scalar(node, bare, key, optional=optional, expected=expected, words=words)
                return self.tree(node, bare.type, key)
        return self._wrong(node, expected, key)

    def _tagged(self, node: Node, types: list[inspect.StructType], key: str) -> Tree:
        if not isinstance(node, MappingNode):
            return self._wrong(node, "mapping", key)
        by_tag = {str(each.tag): each for each in types}
        tag_field = types[0].tag_field or ""
        pairs = {name: value for name, _, value in self._pairs(node, key)}
        tag = pairs.get(tag_field)
        kinds = " or ".join(by_tag)
        word = tag.value if isinstance(tag, ScalarNode) else ""
        if tag is None:
            self._fault(node, join(key, tag_field), f"missing; it says which this is: {kinds}")
        elif word not in by_tag:
            known = did_you_mean(word, by_tag)
            said = f'"{shown(word)}"' if kind_of(tag) == "str" and isinstance(tag, ScalarNode) else kind_of(tag)
            self._fault(tag, join(key, tag_field), f"expected {kinds}, got {said}{known}")
        # A wrong word for its kind is no reason to be silent about the rest of it.
        meant = by_tag.get(word) or by_tag.get(closest(word, by_tag)) or _fitting(types, pairs)
        tree = self._gated(node, meant, key, pairs.get(WHEN_ENV))
        return replace(tree, unsure=tag_field) if word not in by_tag and isinstance(tree, Branch) else tree

    def _gated(self, node: MappingNode, wanted: inspect.StructType, key: str, when_env: Node | None) -> Tree:
        names = cast("list[Node]", when_env.value) if isinstance(when_env, SequenceNode) else []
        absent = any(isinstance(name, ScalarNode) and not self._environ.get(name.value) for name in names)
        before, self._lenient = self._lenient, self._lenient or absent
        try:
            return self._struct(node, wanted, key)
        finally:
            self._lenient = before

    # --- containers ---

    def _struct(self, node: Node, wanted: inspect.StructType, key: str) -> Tree:
        if not isinstance(node, MappingNode) or kind_of(node) != "mapping":
            return self._wrong(node, "mapping", key)
        fields = {field.encode_name: field for field in wanted.fields}
        parts: dict[str, Tree] = {}
        for name, name_node, value in self._pairs(node, key):
            if name in fields:
                part = self.tree(value, fields[name].type, join(key, name))
                parts[name] = _stood_in(part, fields[name]) if isinstance(part, Leaf) else part
            elif name != wanted.tag_field:
                hint = did_you_mean(name, [*fields, wanted.tag_field or ""]) or f"; known here: {', '.join(fields)}"
                self._fault(name_node, join(key, named(name)), f"unknown key{hint}")
        for name, field in fields.items():
            if field.required and name not in parts:
                self._fault(node, join(key, name), "missing")
                parts[name] = _stood_in(Leaf(self._spot(node, join(key, name)), UNSET, broken=True), field)
        return Branch(self._spot(node, key), wanted.cls, parts)

    def _dict(self, node: Node, wanted: inspect.DictType, key: str) -> Tree:
        if not isinstance(node, MappingNode) or kind_of(node) != "mapping":
            return self._wrong(node, "mapping", key)
        items: dict[str, Tree] = {}
        for name, _, value in self._pairs(node, key):
            part = self.tree(value, wanted.value_type, join(key, named(name)))
            # A header that only some environments have a value for is left out in the others.
            if not (isinstance(part, Leaf) and isinstance(part.value, Secret) and not part.value):
                items[name] = part
        return Pairs(self._spot(node, key), items)

    def _list(self, node: Node, wanted: inspect.ListType | inspect.VarTupleType, key: str) -> Tree:
        if not isinstance(node, SequenceNode) or kind_of(node) != "list":
            return self._wrong(node, "list", key)
        spot = self._spot(node, key)
        if wanted.min_length is not None and len(node.value) < wanted.min_length:
            self._fault(node, key, f"must have at least {wanted.min_length}")
            return Leaf(spot, UNSET, broken=True)
        return Row(spot, [self.tree(item, wanted.item_type, f"{key}[{n}]") for n, item in enumerate(node.value)])

    def _pairs(self, node: MappingNode, key: str) -> Iterator[tuple[str, ScalarNode, Node]]:
        for name, value in self._unfolding.pairs(node, key):
            if isinstance(name, ScalarNode) and kind_of(name) == "str":
                yield name.value, name, value
            else:
                self._fault(name, key, f"expected str as a key, got {kind_of(name)}{quote_hint(name)}")

    # --- scalars ---

    def _scalar(
        self,
        node: Node,
        bare: Bare,
        key: str,
        *,
        optional: bool = False,
        expected: str = "",
        words: Sequence[str] = (),
    ) -> Leaf:
        expected = expected or names_of(bare.type)
        if not isinstance(node, ScalarNode):
            return self._wrong(node, expected, key)
        secret = isinstance(bare.type, inspect.CustomType)
        leaf = Leaf(self._spot(node, key), UNSET, MASK if secret else shown(node.value))
        try:
            filled = self._filled(node, secret=secret)
            leaf = replace(leaf, spot=self._spot(node, key)._replace(variables=filled.heard if filled else ()))
            if optional and filled and filled.whole and not filled.text:
                # The one way to leave an optional key out from outside: ca_file: ${CA_FILE:-}
                return replace(leaf, value=None)
            if filled and filled.text in words:
                # a word beside a number: workers: auto
                return replace(leaf, value=filled.text)
            return replace(leaf, value=read_scalar(node, filled, bare, expected, self._folder))
        except Unfilled as fault:
            if not (self._lenient and fault.unset):
                self._fault(node, key, fault.why)
                return replace(leaf, broken=True)
            # In a tier that isn't there a string stays as it was written, and all else stays what is built in.
            stands = isinstance(bare.type, inspect.StrType | inspect.CustomType)
            left_open = Secret(node.value) if secret else node.value
            return replace(leaf, value=left_open if stands else UNSET, broken=True)

    def _filled(self, node: ScalarNode, *, secret: bool) -> Filled | None:
        if kind_of(node) != "str":
            return None
        filled = fill(node.value, self._environ)
        if secret and node.value.startswith("file:"):
            # What the file says decides, not what a variable holds: the environment can't make us open a file.
            return filled._replace(text=read_secret(filled.text.removeprefix("file:"), self._folder))
        return filled

    # --- faults ---

    def _spot(self, node: Node, key: str) -> Spot:
        return spot_of(node, self._file, key)

    def _fault(self, node: Node, key: str, why: str) -> None:
        self._faults.append(Fault.at(self._spot(node, key), why))

    def _wrong(self, node: Node, expected: str, key: str) -> Leaf:
        self._fault(node, key, f"expected {expected}, got {kind_of(node)}")
        return Leaf(self._spot(node, key), UNSET, broken=True)


def _node_type(wanted: inspect.Type) -> type[Node]:
    match wanted:
        case inspect.StructType() | inspect.DictType():
            return MappingNode
        case inspect.ListType() | inspect.VarTupleType():
            return SequenceNode
        case _:
            return ScalarNode


def _stood_in(leaf: Leaf, field: inspect.Field) -> Leaf:
    """A broken leaf of a required field gets something to stand in, so that the rest of its struct can be judged."""
    if not field.required or leaf.value is not UNSET:
        return leaf
    is_text = isinstance(unwrap(field.type).type, inspect.StrType)
    return replace(leaf, value="" if is_text else list[object]())


def _fitting(types: list[inspect.StructType], names: Mapping[str, object]) -> inspect.StructType:
    """The type whose fields these names fit best; of two, the less demanding one, which will complain less."""

    def fit(each: inspect.StructType) -> tuple[int, int]:
        return sum(field.encode_name in names for field in each.fields), -sum(field.required for field in each.fields)

    return max(types, key=fit)
