"""The JSON Schema that is checked in is the one that the types make, and says what the reader says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from tests.settings.folders import SHIPPED
from tests.settings.golden import Golden
from understudy.proxy.settings import server as server_settings
from understudy.proxy.settings import settings
from understudy.proxy.settings.reading import read_folder
from understudy.proxy.settings.schema import field_docs, schema, text
from understudy.proxy.settings.spots import within

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = schema()


def test_the_schema_checked_in_is_fresh():
    assert (SHIPPED / "schema.json").read_text() == text(), (
        "python -m understudy.proxy.settings.schema > policies/schema.json writes it anew"
    )


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_policies_that_ship_name_their_schema_and_keep_it(path: Path):
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    assert not list(complaints(yaml.safe_load(path.read_text()), SCHEMA))


@pytest.mark.parametrize(
    "name", ["bounds", "kinds", "missing_keys", "nothing_under_a_key", "unknown_keys", "wrong_types"]
)
def test_the_schema_refuses_what_the_reader_refuses_for_its_type(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    golden = Golden.read(GOLDEN / f"{name}.txt")
    monkeypatch.chdir(tmp_path)
    # What stands behind a tag is for YAML to refuse, before there is anything a schema could look at.
    content = re.sub(r"!(claim|!binary) ", "", golden.files["first.yaml"])
    refused = [complaint.partition(":")[0] for complaint in complaints(yaml.safe_load(content), SCHEMA)]
    for fault in golden.reading().faults:
        if re.match(r"expected (?!http|.* a !tag)|unknown key|missing|must be (at|more)|must have", fault.why):
            assert any(within(fault.key, at) for at in refused), fault


def test_an_empty_file_keeps_the_schema_and_an_unknown_key_breaks_it():
    assert not list(complaints(None, SCHEMA))
    assert list(complaints({"routs": []}, SCHEMA)) == ["routs: unknown"]
    assert list(complaints({"server": {"drain_s": "soon"}}, SCHEMA)) == ["server.drain_s: none of these"]
    assert not list(complaints({"server": {"drain_s": "${DRAIN_S}"}}, SCHEMA))


def test_every_type_is_described_and_what_stands_under_a_field_describes_it():
    definitions = SCHEMA["$defs"]
    assert all(each["description"] for each in definitions.values())
    assert definitions["Match"]["properties"]["path"]["description"] == "Exactly this path; it goes before any prefix."
    assert field_docs(settings.Settings)["digest"].startswith("A hash over all the files")
    structs = {
        each.__name__
        for module in (settings, server_settings)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct)
    }
    assert set(definitions) == structs - {"Frozen", "File", "Settings", "Struct"}


def test_reading_what_ships_agrees_with_its_schema():
    assert read_folder(SHIPPED, {}).settings


# --- as much of JSON Schema as ours uses ---------------------------------------------------------------------------

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def complaints(value: Any, wanted: dict[str, Any], at: str = "") -> Any:
    """What is wrong with `value`, one line each."""
    if "$ref" in wanted:
        wanted = SCHEMA["$defs"][wanted["$ref"].rpartition("/")[2]]
    if "anyOf" in wanted and all(list(complaints(value, each, at)) for each in wanted["anyOf"]):
        yield f"{at}: none of these"
    types = [wanted["type"]] if isinstance(wanted.get("type"), str) else wanted.get("type", [])
    if types and not any(of_type(value, each) for each in types):
        yield f"{at}: no {' or '.join(types)}"
        return
    if ("const" in wanted and value != wanted["const"]) or ("enum" in wanted and value not in wanted["enum"]):
        yield f"{at}: another value"
    if isinstance(value, str) and not re.search(wanted.get("pattern", ""), value):
        yield f"{at}: another pattern"
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from out_of_bounds(value, wanted, at)
    if isinstance(value, list):
        if len(value) < wanted.get("minItems", 0):
            yield f"{at}: too few"
        for n, each in enumerate(value):
            yield from complaints(each, wanted.get("items", {}), f"{at}[{n}]")
    if isinstance(value, dict):
        yield from unfitting(value, wanted, at)


def of_type(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def out_of_bounds(value: float, wanted: dict[str, Any], at: str) -> Any:
    low, high = wanted.get("minimum", value), wanted.get("maximum", value)
    if not low <= value <= high or value <= wanted.get("exclusiveMinimum", value - 1):
        yield f"{at}: out of bounds"


def unfitting(value: dict[Any, Any], wanted: dict[str, Any], at: str) -> Any:
    for name in wanted.get("required", ()):
        if name not in value:
            yield f"{at}.{name}: missing".lstrip(".")
    known, others = wanted.get("properties", {}), wanted.get("additionalProperties", {})
    for name, each in value.items():
        here = f"{at}.{name}".lstrip(".")
        if name in known:
            yield from complaints(each, known[name], here)
        elif others is False:
            yield f"{here}: unknown"
        else:
            yield from complaints(each, others, here)
