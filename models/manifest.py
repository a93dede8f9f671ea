"""Describe an ONNX embedding model so that it can be used: `understudy-model.yaml` in the model's folder.

    name: bge-small-en-v1.5          # what the model is called; names its vector space
    file: model.onnx                 # beside this file
    tokenizer: tokenizer.json
    pooling: cls                     # mean | cls | none-in-graph (the graph gives one vector a text already)
    normalise: true
    dimensions: 384
    tokens_max: 512
    query_prefix: "Represent this sentence for searching relevant passages: "
    document_prefix: ""
    revision: "2023-09"              # optional, like everything below
    sha256: "…"                      # of `file`; a file that does not match is refused
    inputs: {input_ids: ids, attention_mask: mask}     # where the graph's names are not the usual ones
    output: last_hidden_state        # where the first output is not the one
    variants: {int8: int8.onnx, fp16: fp16.onnx}       # the same model in other precisions; `file` is fp32
    sums: {int8.onnx: "…"}           # SHA-256 of any file beside this one; `understudy models verify` asks for all
    probes: probes.json              # sentences and the vectors that they must have

The embedded model's own manifest, which the builder writes, is read by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from understudy.models.errors import ModelError
from understudy.models.space import Space
from understudy.models.weights import sha256_of

__all__ = ["MANIFEST_NAME", "Manifest", "Pooling", "parse_manifest", "read_manifest"]

MANIFEST_NAME = "understudy-model.yaml"
MANIFEST_BYTES_MAX = 64 << 10
OTHER_VARIANTS = ("int8", "fp16")
INPUT_ROLES = ("input_ids", "attention_mask", "token_type_ids")

Pooling = Literal["mean", "cls", "none-in-graph"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything needed to turn texts into vectors with one ONNX file."""

    name: str
    file: Path
    tokenizer: Path
    pooling: Pooling
    normalise: bool
    dimensions: int
    tokens_max: int
    query_prefix: str = ""
    document_prefix: str = ""
    revision: str = ""
    sha256: str = ""
    inputs: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    output: str = ""
    variants: Mapping[str, Path] = field(default_factory=lambda: dict[str, Path]())
    sums: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    probes: Path | None = None

    @property
    def space(self) -> Space:
        """The vector space this model writes into."""
        return Space(
            name=self.name,
            dimensions=self.dimensions,
            normalised=self.normalise,
            query_prefix=self.query_prefix,
            document_prefix=self.document_prefix,
            revision=self.revision,
        )

    def wrong_sums(self) -> list[Path]:
        """The files whose SHA-256 is not the one that is written here; a file that is gone is one of them."""
        due = {self.file.parent / name: sum_ for name, sum_ in self.sums.items()}
        if self.sha256:
            due[self.file] = self.sha256
        return [path for path, sum_ in due.items() if not path.is_file() or sha256_of(path) != sum_.lower()]


@dataclass(frozen=True, slots=True)
class _Key:
    """What one key of a manifest must be, in words and as a test."""

    expected: str
    fits: Callable[[object], bool]
    required: bool = False


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_roles(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    entries = cast(Mapping[object, object], value)
    return all(role in INPUT_ROLES and _is_name(name) for role, name in entries.items())


def _is_variants(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    entries = cast(Mapping[object, object], value)
    return all(name in OTHER_VARIANTS and _is_name(file) for name, file in entries.items())


def _is_sums(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    entries = cast(Mapping[object, object], value)
    return all(_is_name(name) and isinstance(sum_, str) and len(sum_) == 64 for name, sum_ in entries.items())


def _whole_number(least: int, most: int) -> _Key:
    # bool is an int to Python, but `dimensions: yes` is a mistake.
    return _Key(
        f"a whole number from {least} to {most}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        required=True,
    )


_TEXT = _Key("a text", lambda value: isinstance(value, str))
_KEYS: Mapping[str, _Key] = {
    "name": _Key("a name", _is_name, required=True),
    "file": _Key("a file name", _is_name, required=True),
    "tokenizer": _Key("a file name", _is_name, required=True),
    "pooling": _Key(
        "mean, cls or none-in-graph", lambda value: value in ("mean", "cls", "none-in-graph"), required=True
    ),
    "normalise": _Key("true or false", lambda value: isinstance(value, bool), required=True),
    "dimensions": _whole_number(1, 65_536),
    "tokens_max": _whole_number(3, 32_768),
    "query_prefix": _TEXT,
    "document_prefix": _TEXT,
    "revision": _TEXT,
    "sha256": _Key("64 hex digits", lambda value: isinstance(value, str) and len(value) == 64),
    "inputs": _Key("a mapping from " + ", ".join(INPUT_ROLES) + " to the graph's names", _is_roles),
    "output": _Key("a name", _is_name),
    "variants": _Key("a mapping from " + ", ".join(OTHER_VARIANTS) + " to file names", _is_variants),
    "sums": _Key("a mapping from file names to 64 hex digits each", _is_sums),
    "probes": _Key("a file name", _is_name),
}


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`, or in the folder `path`. Raises ModelError naming the file and every fault in it."""
    where = path / MANIFEST_NAME if path.is_dir() else path
    try:
        with where.open("rb") as file:
            text = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}", where=where) from None
    if len(text) > MANIFEST_BYTES_MAX:
        raise ModelError(f"is longer than {MANIFEST_BYTES_MAX} bytes; that is no manifest", where=where)
    # Only a model by manifest needs YAML, and JSON is YAML too.
    import yaml

    try:
        data: object = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelError("is not YAML: " + " ".join(str(error).split()), where=where) from None
    return parse_manifest(data, where)


def parse_manifest(data: object, where: Path) -> Manifest:
    """Check a manifest's content and make its paths real. Raises ModelError with all its faults together."""
    if not isinstance(data, Mapping):
        raise ModelError(f"expected a mapping, got {_word_for(data)}", where=where)
    entries = dict(cast(Mapping[str, Any], data))
    faults = [f"{key}: unknown key; known are {', '.join(_KEYS)}" for key in entries if key not in _KEYS]
    for name, key in _KEYS.items():
        if name not in entries and key.required:
            faults.append(f"{name}: missing; expected {key.expected}")
        elif name in entries and not key.fits(entries[name]):
            faults.append(f"{name}: expected {key.expected}, got {_word_for(entries[name])}")
    if not faults:
        faults = _made_real(entries, where.parent)
    if faults:
        raise ModelError("; ".join(faults), where=where)
    return Manifest(**entries)


def _made_real(entries: dict[str, Any], folder: Path) -> list[str]:
    """Make the names of files in `entries` paths; what is not there."""
    variants = cast(dict[str, str], entries.get("variants", {}))
    named = {name: cast(str, entries[name]) for name in ("file", "tokenizer", "probes") if name in entries}
    named |= {f"variants.{name}": file for name, file in variants.items()}
    entries["variants"] = {name: folder / file for name, file in variants.items()}
    entries |= {name: folder / file for name, file in named.items() if not name.startswith("variants.")}
    return [f"{name}: no file at {folder / file}" for name, file in named.items() if not (folder / file).is_file()]


def _word_for(value: object) -> str:
    if value is None:
        return "nothing"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
