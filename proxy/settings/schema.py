"""Write the settings types down as a JSON Schema, so that an editor knows every key, its meaning and its bounds.

    python -m understudy.proxy.settings.schema > policies/schema.json

Descriptions are what stands in the types themselves: a type's docstring, the string under a field, a Meta's words.
"""

from __future__ import annotations

import ast
import inspect as python
import json
import sys
import textwrap
from itertools import pairwise
from typing import Any, cast

import msgspec
from msgspec import inspect

from understudy.proxy.settings import settings
from understudy.proxy.settings.scalars import unwrap

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE = r"\$\{"
"""A string with a variable in it may stand where a number or a truth value is wanted."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a policy file."""
    writer = _Writer()
    root = writer.struct(cast("inspect.StructType", inspect.type_info(settings.File)))
    return {
        "$schema": DIALECT,
        **root,
        "title": "Understudy policy file",
        # A file of comments alone is a policy file too.
        "type": ["object", "null"],
        "$defs": dict(sorted(writer.definitions.items())),
    }


def text() -> str:
    """The schema as it is checked in."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


class _Writer:
    """Turns types into schemas; every struct is written once, into `definitions`."""

    def __init__(self) -> None:
        self.definitions: dict[str, dict[str, Any]] = {}

    def struct(self, wanted: inspect.StructType) -> dict[str, Any]:
        """A struct's own schema."""
        under = field_docs(wanted.cls)
        properties: dict[str, Any] = {}
        if wanted.tag_field:
            properties[wanted.tag_field] = {"const": wanted.tag, "description": "Which kind of tier this is."}
        for field in wanted.fields:
            described = {"description": under[field.name]} if field.name in under else {}
            properties[field.encode_name] = self.type(field.type) | described | _default(field)
        required = [wanted.tag_field] if wanted.tag_field else []
        required += [field.encode_name for field in wanted.fields if field.required]
        return {
            "title": wanted.cls.__name__,
            "description": " ".join((python.getdoc(wanted.cls) or "").split()),
            "type": "object",
            "properties": properties,
            **({"required": required} if required else {}),
            "additionalProperties": False,
        }

    def type(self, wanted: inspect.Type) -> dict[str, Any]:
        """Any type's schema; a struct becomes a reference."""
        bare = unwrap(wanted)
        described = {"description": bare.words} if bare.words else {}
        match bare.type:
            case inspect.StructType():
                return self._reference(bare.type)
            case inspect.UnionType():
                return {"anyOf": [self.type(each) for each in bare.type.types]}
            case inspect.ListType() | inspect.VarTupleType():
                bound = {"minItems": bare.type.min_length} if bare.type.min_length else {}
                return {"type": "array", "items": self.type(bare.type.item_type), **bound, **described}
            case inspect.DictType():
                return {"type": "object", "additionalProperties": self.type(bare.type.value_type), **described}
            case inspect.NoneType():
                return {"type": "null"}
            case _:
                return _scalar(bare.type) | described

    def _reference(self, wanted: inspect.StructType) -> dict[str, Any]:
        name = wanted.cls.__name__
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self.struct(wanted)
        return {"$ref": f"#/$defs/{name}"}


def _scalar(wanted: inspect.Type) -> dict[str, Any]:
    match wanted:
        case inspect.IntType() | inspect.FloatType():
            number = {"type": "integer" if isinstance(wanted, inspect.IntType) else "number", **_bounds(wanted)}
            return _or_variable(number)
        case inspect.BoolType():
            return _or_variable({"type": "boolean"})
        case inspect.LiteralType():
            return _or_variable({"enum": list(wanted.values)})
        case inspect.StrType(pattern=str() as pattern):
            return _or_variable({"type": "string", "pattern": pattern})
        case _:
            return {"type": "string"}


def _bounds(wanted: inspect.IntType | inspect.FloatType) -> dict[str, float]:
    named = (
        ("minimum", wanted.ge),
        ("exclusiveMinimum", wanted.gt),
        ("maximum", wanted.le),
        ("exclusiveMaximum", wanted.lt),
    )
    return {name: bound for name, bound in named if bound is not None}


def _or_variable(narrow: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [narrow, {"type": "string", "pattern": _VARIABLE}]}


def _default(field: inspect.Field) -> dict[str, Any]:
    # What a struct is made of has defaults of its own, and a route's policies have those of `defaults` first.
    if field.default is not msgspec.NODEFAULT and not isinstance(field.default, msgspec.Struct):
        return {"default": field.default}
    if field.default_factory is not msgspec.NODEFAULT:
        return {"default": field.default_factory()}
    return {}


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The string under each field of a class, on one line."""
    tree = ast.parse(textwrap.dedent(python.getsource(cls)))
    body = cast("ast.ClassDef", tree.body[0]).body
    docs: dict[str, str] = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            words = ast.literal_eval(below.value)
            docs[field.target.id] = " ".join(str(words).split())
    return docs


if __name__ == "__main__":
    sys.stdout.write(text())
