"""Read one scalar as the type that is wanted: numbers, truth values, strings, secrets and paths, and their bounds.

Whatever can't be read is an Unfilled with its reason in words. No reason repeats a secret, or what a variable holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

from msgspec import inspect
from yaml.constructor import SafeConstructor
from yaml.nodes import Node, ScalarNode

from understudy.proxy.settings.filling import Filled, Unfilled
from understudy.proxy.settings.policy_files import kind_of
from understudy.proxy.settings.settings import Secret

NUMBER_MAX = 2**53
"""No number is larger: beyond it a float has gaps between whole numbers."""

_NAMES: dict[type[inspect.Type], str] = {
    inspect.StrType: "str",
    inspect.LiteralType: "str",
    inspect.CustomType: "str",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.BoolType: "bool",
    inspect.ListType: "list",
    inspect.VarTupleType: "list",
    inspect.DictType: "mapping",
    inspect.StructType: "mapping",
}
_TEXTS = inspect.StrType | inspect.LiteralType | inspect.CustomType
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_INT = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_CONSTRUCTOR = SafeConstructor()


class Bare(NamedTuple):
    """A type without its annotations: their description, and whether it is the path of a file that must be there."""

    type: inspect.Type
    words: str
    is_file: bool


def unwrap(wanted: inspect.Type) -> Bare:
    """The type itself, and what its annotations say."""
    words, is_file = "", False
    while isinstance(wanted, inspect.Metadata):
        schema = cast("dict[str, object]", wanted.extra_json_schema or {})
        extra = cast("dict[str, object]", wanted.extra or {})
        words, is_file = words or str(schema.get("description", "")), is_file or bool(extra.get("file"))
        wanted = wanted.type
    return Bare(wanted, words, is_file)


def names_of(*types: inspect.Type) -> str:
    """The types as a fault calls them: `str or list`."""
    return " or ".join(dict.fromkeys(_NAMES.get(type(unwrap(each).type), "value") for each in types))


def read_scalar(node: ScalarNode, filled: Filled | None, bare: Bare, expected: str, folder: Path) -> object:
    """What the scalar says, within its bounds. `filled` is given where YAML takes it for a string.

    Raises Unfilled.
    """
    read = _text if isinstance(bare.type, _TEXTS) else _number
    value = read(node, filled, bare, expected)
    match bare.type:
        case inspect.IntType() | inspect.FloatType():
            _keep_bounds(cast("float", value), bare.type)
        case inspect.StrType(pattern=str() as pattern) if not re.search(pattern, cast("str", value)):
            raise Unfilled(f"must be {bare.words}" if bare.words else f"must match {pattern}")
        case inspect.LiteralType() if value not in bare.type.values:
            known = [str(each) for each in bare.type.values]
            raise Unfilled(f"must be one of {', '.join(known)}")
        case _:
            pass
    return _found_file(folder, cast("str", value)) if bare.is_file else value


def _text(node: ScalarNode, filled: Filled | None, bare: Bare, expected: str) -> str:
    secret = isinstance(bare.type, inspect.CustomType)
    if filled is None:
        raise Unfilled(f"expected {expected}, got {kind_of(node)}{quote_hint(node, secret=secret)}")
    return Secret(filled.text) if secret else filled.text


def _number(node: ScalarNode, filled: Filled | None, bare: Bare, expected: str) -> float | bool:
    wanted, kind = bare.type, kind_of(node)
    unit = f" ({bare.words})" if bare.words else ""
    if filled is not None and filled.whole:
        if (value := _from_outside(filled.text, wanted)) is None:
            raise Unfilled(f"expected {expected}{unit}, and ${{{filled.names[0]}}} is none")
        return value
    try:
        match wanted, kind:
            case (inspect.IntType(), "int") | (inspect.FloatType(), "int"):
                whole = _CONSTRUCTOR.construct_yaml_int(node)
                return whole if isinstance(wanted, inspect.IntType) else float(whole)
            case inspect.FloatType(), "float":
                return _CONSTRUCTOR.construct_yaml_float(node)
            case inspect.FloatType(), "str" if node.style is None and _FLOAT.fullmatch(node.value):
                # YAML 1.1 takes 1e3 for a word.
                return float(node.value)
            case inspect.BoolType(), "bool":
                return _CONSTRUCTOR.construct_yaml_bool(node)
            case _:
                raise Unfilled(f"expected {expected}{unit}, got {kind}")
    except (ValueError, OverflowError, LookupError):
        raise Unfilled(f"expected {expected}{unit}, and this can't be read as one") from None


def _from_outside(text: str, wanted: inspect.Type) -> float | bool | None:
    """What an environment variable says, as the number or the truth value wanted; None where it says neither."""
    match wanted:
        case inspect.IntType() if _INT.fullmatch(text):
            return int(text)
        case inspect.FloatType() if _FLOAT.fullmatch(text):
            return float(text)
        case inspect.BoolType():
            return _TRUTHS.get(text.lower())
        case _:
            return None


def _keep_bounds(value: float, wanted: inspect.IntType | inspect.FloatType) -> None:
    if not abs(value) < NUMBER_MAX:
        raise Unfilled("far too large" if isinstance(wanted, inspect.IntType) else "must be a finite number")
    bounds = (
        ("at least", wanted.ge, wanted.ge is None or value >= wanted.ge),
        ("more than", wanted.gt, wanted.gt is None or value > wanted.gt),
        ("at most", wanted.le, wanted.le is None or value <= wanted.le),
        ("less than", wanted.lt, wanted.lt is None or value < wanted.lt),
    )
    missed = [f"{words} {bound}" for words, bound, kept in bounds if not kept]
    if missed:
        raise Unfilled(f"must be {' and '.join(missed)}")


def _found_file(folder: Path, path: str) -> str:
    """The path as it is seen from `folder`: a policy file's folder can be moved with what it names."""
    try:
        found = (folder / path).is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        raise Unfilled("no such file", unset=True)
    return str(folder / path)


# --- hints -------------------------------------------------------------------------------------------------------


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that this one is likely meant to be, or ''."""
    import difflib

    return next(iter(difflib.get_close_matches(word[:64], list(known), n=1)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean x?`, or ''."""
    match = closest(word, known)
    return f", did you mean {match}?" if match else ""


def quote_hint(node: Node, *, secret: bool = False) -> str:
    """How to write what YAML took for something other than the string that was meant."""
    kind = kind_of(node)
    if kind == "bool" and isinstance(node, ScalarNode) and not secret:
        truth = "true" if node.value.lower() in ("yes", "on", "true") else "false"
        if node.value.lower() != truth:
            return f': YAML reads {node.value} as {truth}; quote it: "{node.value}"'
    return "; quote it" if kind in ("bool", "int", "float", "date", "a !tag") else ""
