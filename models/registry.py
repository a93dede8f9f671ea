"""Keep models that operators bring: check a folder, build its graphs, test them, and know them by a name.

    DIR ── config.json, tokenizer.json, model.safetensors ──> faults? all of them, and nothing is kept
                                                    none
         graphs in fp32, fp16, int8 ──> a float64 reference's vectors ──> self-test in fp32 and int8
                                                    passed
         models/NAME/ { fp32.onnx, …, tokenizer.json, probes.json, understudy-model.yaml with everybody's SHA-256 }

A folder that has an `understudy-model.yaml` of its own is believed about pooling, prefixes and inputs; it is tested,
copied, and given sums. BERT encoders with mean or CLS pooling can be built from weights; what else there is, is refused
by name rather than built wrongly.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from numpy.typing import NDArray

from understudy.models.built import MINILM, VARIANTS, WORK_PREFIX, Variant, built, found, write_variant
from understudy.models.embedder import is_embedded, load, load_variant, probes
from understudy.models.errors import ModelError
from understudy.models.graph import BertShape
from understudy.models.manifest import MANIFEST_NAME, Manifest, read_manifest
from understudy.models.space import canonical_name
from understudy.models.weights import read_safetensors, sha256_of

__all__ = ["Checked", "Known", "add", "known", "verify"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
CONFIG_BYTES_MAX = 1 << 20
TOKENS_MAX = 512
PREFIX = "bert."
MODEL_FILES = ("config.json", "tokenizer.json", "model.safetensors")


@dataclass(frozen=True, slots=True)
class Known:
    """A model that can be named in the settings. `sizes` are the bytes of what is built, by precision."""

    name: str
    space: str
    dimensions: int
    fingerprint: str
    sizes: Mapping[str, int]
    state: Literal["built", "not built", "damaged"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of verifying one precision of a model: the worst cosine of its self-test, or what is wrong."""

    variant: str
    cosine: float | None
    fault: str = ""


# --- what there is -------------------------------------------------------------------------------------------------


def known(cache: Path) -> list[Known]:
    """The embedded model, and every registered one by its name. Reads manifests and sizes, and no sums."""
    return [_embedded(cache), *(_registered(folder) for folder in _folders(cache))]


def _embedded(cache: Path) -> Known:
    there = {variant: manifest for variant in VARIANTS if (manifest := found(cache, variant)) is not None}
    sizes = {variant: manifest.file.stat().st_size for variant, manifest in there.items()}
    # The space does not depend on the precision, nor on anything having been built.
    space = _space_of(MINILM.name, MINILM.dimensions, MINILM.weights_sha256[:12])
    return Known(MINILM.name, MINILM.name, MINILM.dimensions, space, sizes, "built" if sizes else "not built")


def _space_of(name: str, dimensions: int, revision: str) -> str:
    from understudy.models.space import Space

    return Space(name, dimensions, revision=revision).fingerprint


def _registered(folder: Path) -> Known:
    try:
        manifest = read_manifest(folder)
    except ModelError as error:
        return Known(folder.name, "", 0, "", {}, "damaged", error.why)
    files: dict[str, Path] = {"fp32": manifest.file, **manifest.variants}
    sizes = {variant: path.stat().st_size for variant, path in files.items()}
    return Known(folder.name, manifest.name, manifest.dimensions, manifest.space.fingerprint, sizes, "built")


def _folders(cache: Path) -> list[Path]:
    try:
        return sorted(
            path for path in cache.iterdir() if (path / MANIFEST_NAME).is_file() and NAME.fullmatch(path.name)
        )
    except OSError:
        return []


# --- checking what there is ----------------------------------------------------------------------------------------


def verify(cache: Path, model: str) -> list[Checked]:
    """Sums and self-test of each precision of a model that this machine's CPU can run; the embedded one is built in
    int8 if it is not there. Raises ModelError only where there is no such model."""
    if is_embedded(model):
        built(cache, "int8")
        variants: list[Variant] = [variant for variant in VARIANTS if found(cache, variant) is not None]
        broken: list[Variant] = [variant for variant in VARIANTS if variant not in variants and _left(cache, variant)]
        return [*(_tested(cache, model, each) for each in variants), *(_damaged(each) for each in broken)]
    folder = cache / model if (cache / model / MANIFEST_NAME).is_file() else Path(model)
    manifest = read_manifest(folder)
    wrong = manifest.wrong_sums()
    if wrong:
        return [Checked(path.name, None, "its SHA-256 is not the one in the manifest") for path in wrong]
    return [_tested(cache, str(folder), variant) for variant in VARIANTS if _has(manifest, variant)]


def _has(manifest: Manifest, variant: Variant) -> bool:
    return variant == "fp32" or variant in manifest.variants


def _left(cache: Path, variant: Variant) -> bool:
    from understudy.models.built import manifest_path

    return manifest_path(cache, variant).exists()


def _damaged(variant: Variant) -> Checked:
    return Checked(variant, None, "its files are not whole; it is built anew when it is needed")


def _tested(cache: Path, model: str, variant: Variant) -> Checked:
    try:
        return Checked(variant, load_variant(model, cache, variant).self_test())
    except ModelError as error:
        return Checked(variant, None, str(error))


# --- adding --------------------------------------------------------------------------------------------------------


def add(
    cache: Path, folder: Path, name: str | None = None, prefixes: Mapping[str, str] | None = None
) -> tuple[Manifest, list[Checked]]:
    """Register the model in `folder` under `name` (the folder's own unless told); what was kept and how it tested.

    `prefixes` ("query_prefix", "document_prefix") go before those that the folder's `prompts` name.

    Takes seconds, for a graph is built and run. Raises ModelError with every fault of the folder together, or when a
    self-test fails: nothing is kept then. A model of that name is replaced in one rename.
    """
    name = name or folder.resolve().name
    if not NAME.fullmatch(name):
        raise ModelError(f"{name!r} cannot name a model: letters, digits, '.', '_' and '-' can", where=folder)
    if canonical_name(name) == canonical_name(MINILM.name):
        raise ModelError(f"{name} is the embedded model; choose another name with --name", where=folder)
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=WORK_PREFIX, dir=cache))
    try:
        if (folder / MANIFEST_NAME).is_file():
            _copied(folder, work)
        else:
            _made(folder, work, name, prefixes or {})
        checks = _checked(work, cache)
        _sealed(work)
        _swapped(work, cache / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_manifest(cache / name), checks


def _checked(work: Path, cache: Path) -> list[Checked]:
    """Self-tests of what was made; an int8 graph that rounds too coarsely is left out, anything else is refused."""
    # The whole ladder once, as the sidecar will climb it.
    load(work, cache, "cpu")
    manifest = read_manifest(work)
    checks = [_tested(cache, str(work), variant) for variant in VARIANTS if _has(manifest, variant)]
    for check in checks:
        if check.fault and check.variant == "fp32":
            raise ModelError(check.fault)
        if check.fault:
            _leave_out(work, check.variant)
    return checks


def _leave_out(work: Path, variant: str) -> None:
    page = _read_page(work / MANIFEST_NAME)
    file = cast(dict[str, str], page["variants"]).pop(variant)
    (work / file).unlink()
    _write_page(work, page)


def _copied(folder: Path, work: Path) -> None:
    """The files that a folder's own manifest names; what it says is kept."""
    manifest = read_manifest(folder)
    for wrong in manifest.wrong_sums():
        raise ModelError("its SHA-256 is not the one in the manifest", where=wrong)
    page = _read_page(folder / MANIFEST_NAME)
    paths = [manifest.file, manifest.tokenizer, *manifest.variants.values()]
    paths += [manifest.probes] if manifest.probes is not None else []
    for path in paths:
        if path.parent != manifest.file.parent or path.parent != folder:
            raise ModelError("every file must lie beside the manifest", where=path)
        shutil.copyfile(path, work / path.name)
        # Weights over 2 GB lie beside their graph under its name.
        for more in folder.glob(f"{path.name}[._]data"):
            shutil.copyfile(more, work / more.name)
    _write_page(work, page)


def _made(folder: Path, work: Path, name: str, prefixes: Mapping[str, str]) -> None:
    """Graphs, tokeniser, probes and manifest out of a folder as Hugging Face's tools leave it."""
    config, pooling = _config(folder)
    shape = BertShape(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
        pooling=pooling,
    )
    weights = _named_plainly(read_safetensors(folder / "model.safetensors"))
    _refuse_unlike(folder, config, weights)
    shutil.copyfile(folder / "tokenizer.json", work / "tokenizer.json")
    for variant in VARIANTS:
        write_variant(work, variant, weights, shape)
    revision = sha256_of(folder / "model.safetensors")[:12]
    _write_page(
        work,
        {
            "name": name,
            "file": "fp32.onnx",
            "tokenizer": "tokenizer.json",
            "pooling": "none-in-graph",
            "normalise": True,
            "dimensions": config["hidden_size"],
            "tokens_max": _tokens_max(folder, config),
            **_prompts(folder),
            **prefixes,
            "revision": revision,
            "output": "embedding",
            "variants": {"int8": "int8.onnx", "fp16": "fp16.onnx"},
        },
    )
    _write_probes(work, weights, shape)


def _write_probes(work: Path, weights: Mapping[str, NDArray[Any]], shape: BertShape) -> None:
    """What a float64 reference makes of the self-test's sentences, as this model's tokeniser reads them."""
    from understudy.models.reference import Reference

    untested = load_variant(work, work, "fp32")
    sentences, _ = probes()
    vectors = Reference(weights, shape).embed(untested.token_ids(sentences, "document"))
    page = {"sentences": sentences, "vectors": [[round(float(each), 6) for each in row] for row in vectors]}
    (work / "probes.json").write_text(json.dumps(page), encoding="utf-8")
    _write_page(work, {**_read_page(work / MANIFEST_NAME), "probes": "probes.json"})


def _config(folder: Path) -> tuple[dict[str, Any], Literal["mean", "cls"]]:
    """What the configuration says, once it is known to be of a BERT that we can build. Raises ModelError with all that
    is wrong."""
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"lacks {', '.join(missing)}; it takes {', '.join(MODEL_FILES)}, or an {MANIFEST_NAME} and an ONNX file",
            where=folder,
        )
    config = _read_json(folder / "config.json")
    faults = [
        f"{key}: expected {due}, got {config.get(key, otherwise)!r}"
        for key, due, otherwise in (
            ("model_type", "bert", None),
            ("hidden_act", "gelu", "gelu"),
            ("position_embedding_type", "absolute", "absolute"),
        )
        if config.get(key, otherwise) != due
    ]
    faults += [
        f"{key}: expected a whole number, got {config.get(key)!r}"
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
        if not isinstance(config.get(key), int) or config[key] < 1
    ]
    if faults:
        raise ModelError("; ".join(faults), where=folder / "config.json")
    _refuse_more_modules(folder)
    return config, _pooling(folder)


def _pooling(folder: Path) -> Literal["mean", "cls"]:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    page = _read_json(path)
    on = sorted(
        key.removeprefix("pooling_mode_") for key, value in page.items() if key.startswith("pooling_mode_") and value
    )
    if on == ["mean_tokens"]:
        return "mean"
    if on == ["cls_token"]:
        return "cls"
    raise ModelError(f"pools by {', '.join(on) or 'nothing'}; mean_tokens or cls_token alone can be built", where=path)


def _refuse_more_modules(folder: Path) -> None:
    """Raise ModelError where more follows on the pooling than unit length, which vectors are given anyway."""
    path = folder / "modules.json"
    if not path.is_file():
        return
    modules = cast("Sequence[Mapping[str, Any]]", _read_json(path, list))
    types = [str(each.get("type", "")).rsplit(".", 1)[-1] for each in modules]
    strange = sorted(set(types) - {"Transformer", "Pooling", "Normalize"})
    if strange:
        raise ModelError(f"has {', '.join(strange)}, which cannot be built", where=path)


def _prompts(folder: Path) -> dict[str, str]:
    """The prefixes that sentence-transformers would put before texts, by the names that models give them."""
    path = folder / "config_sentence_transformers.json"
    prompts = _read_json(path).get("prompts") if path.is_file() else None
    if not isinstance(prompts, dict):
        return {}
    told = cast("dict[str, object]", prompts)
    query = told.get("query")
    document = next((told[name] for name in ("document", "passage", "corpus") if told.get(name)), None)
    found_ = {"query_prefix": query, "document_prefix": document}
    return {key: prefix for key, prefix in found_.items() if isinstance(prefix, str)}


def _tokens_max(folder: Path, config: Mapping[str, Any]) -> int:
    path = folder / "sentence_bert_config.json"
    written = _read_json(path).get("max_seq_length") if path.is_file() else None
    most = min(int(config["max_position_embeddings"]), TOKENS_MAX)
    return min(written, most) if isinstance(written, int) and written >= 3 else most


def _named_plainly(weights: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The tensors without the name of the part of a larger model they were saved from."""
    if any(name.startswith(PREFIX) for name in weights):
        return {name.removeprefix(PREFIX): value for name, value in weights.items()}
    return weights


def _refuse_unlike(folder: Path, config: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]) -> None:
    """Raise ModelError if configuration, weights and tokeniser are not of one model."""
    where, faults = folder / "model.safetensors", list[str]()
    words, places = (weights.get(f"embeddings.{name}_embeddings.weight") for name in ("word", "position"))
    if words is None or places is None:
        raise ModelError("has no BERT embeddings in it", where=where)
    if words.shape[1] != config["hidden_size"]:
        faults.append(f"vectors of {words.shape[1]}, config.json says {config['hidden_size']}")
    if places.shape[0] < config["max_position_embeddings"]:
        faults.append(f"{places.shape[0]} positions, config.json says {config['max_position_embeddings']}")
    if config["hidden_size"] % config["num_attention_heads"]:
        faults.append(f"{config['hidden_size']} dimensions do not divide into {config['num_attention_heads']} heads")
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    if len(layers) != config["num_hidden_layers"]:
        faults.append(f"{len(layers)} layers, config.json says {config['num_hidden_layers']}")
    size = _vocabulary(folder / "tokenizer.json")
    if size > words.shape[0]:
        faults.append(f"tokenizer.json knows {size} words, the weights {words.shape[0]}")
    if faults:
        raise ModelError("; ".join(faults), where=where)


def _vocabulary(path: Path) -> int:
    """One more than the greatest id that a tokeniser gives. Raises ModelError where it cannot be read."""
    try:
        from tokenizers import Tokenizer

        return max(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values(), default=-1) + 1
    except Exception as error:
        # the library raises plain Exception
        raise ModelError(f"not a tokenizer.json: {error}", where=path) from None


def _sealed(work: Path) -> None:
    """Write everybody's SHA-256 into the manifest."""
    page = _read_page(work / MANIFEST_NAME)
    page.pop("sha256", None)
    page["sums"] = {path.name: sha256_of(path) for path in sorted(work.iterdir()) if path.name != MANIFEST_NAME}
    _write_page(work, page)


def _swapped(work: Path, kept: Path) -> None:
    """Move what was made into its place; what was there goes, and comes back if the move fails."""
    old = work.with_name(f"{work.name}.old")
    if kept.exists():
        kept.replace(old)
    try:
        work.replace(kept)
    except OSError:
        if old.exists():
            old.replace(kept)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _read_json(path: Path, kind: type = dict) -> Any:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(CONFIG_BYTES_MAX))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {error}", where=path) from None
    if not isinstance(value, kind):
        raise ModelError("is not what it should be", where=path)
    return value


def _read_page(path: Path) -> dict[str, Any]:
    import yaml

    return cast("dict[str, Any]", yaml.safe_load(path.read_bytes()))


def _write_page(work: Path, page: Mapping[str, Any]) -> None:
    import yaml

    known_keys = {each.name for each in dataclasses.fields(Manifest)}
    assert set(page) <= known_keys, set(page) - known_keys
    (work / MANIFEST_NAME).write_text(yaml.safe_dump(dict(page), sort_keys=False, allow_unicode=True), encoding="utf-8")
