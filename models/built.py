"""Build the embedded model once, keep it in a folder, and believe nothing found there without checking it.

    the folder has it, whole and of this builder? ──yes──> use it
                     no
    take the folder's lock ── another process built it meanwhile? ──yes──> use it
                     no
    build beside it ── fsync ── rename ── write its manifest ── fsync ── rename

Understudy ships no weights: they come from a package of the Python index, and their hash is checked before use. The
build runs in a process of its own, since it peaks at 700 MB and would leave the proxy 430 MB larger for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from numpy.typing import NDArray

from understudy.models import graph
from understudy.models.errors import ModelError
from understudy.models.graph import BertShape, bert_graph, quantised
from understudy.models.manifest import Manifest, parse_manifest
from understudy.models.weights import package_folder, read_safetensors, sha256_of

__all__ = [
    "MINILM",
    "VARIANTS",
    "Recipe",
    "Variant",
    "build",
    "built",
    "found",
    "manifest_path",
    "publish",
    "write_variant",
]

Variant = Literal["fp32", "fp16", "int8"]
VARIANTS: tuple[Variant, ...] = ("fp32", "fp16", "int8")

FORMAT = 1
BUILD_S_MAX = 600.0
LEFTOVER_S_MAX = 24 * 3600.0
WORK_PREFIX = ".building-"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model that Understudy builds itself: what it is made of, and the hashes its ingredients must have."""

    name: str
    weights_sha256: str
    tokenizer_sha256: str
    shape: BertShape
    dimensions: int
    tokens_max: int


# The hashes are those of sentence-transformers/all-MiniLM-L6-v2: whoever packs the files, these bytes are the model.
MINILM = Recipe(
    name="all-MiniLM-L6-v2",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    tokenizer_sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    shape=BertShape(layers=6, heads=12),
    dimensions=384,
    tokens_max=256,
)


def built(cache: Path, variant: Variant, *, source: Path | None = None, apart: bool = True) -> Manifest:
    """The manifest of the embedded model's `variant` in the folder `cache`, building it there if need be (5 s, once).

    `source` is the folder with model.safetensors and tokenizer.json; by default that of the installed package, which
    is looked for only when there is something to build. `apart=False` builds in this process. Raises ModelError.
    """
    manifest = _trusted(cache, variant)
    if manifest is not None:
        return manifest
    folder = source or package_folder()
    if apart and sys.executable:
        _build_apart(cache, variant, folder)
    else:
        build(cache, variant, folder)
    manifest = _trusted(cache, variant)
    if manifest is None:
        raise ModelError(f"the {variant} model was built but does not pass its own check", where=cache)
    return manifest


def found(cache: Path, variant: Variant) -> Manifest | None:
    """The manifest of a variant that is built and whole, or None. Builds nothing."""
    return _trusted(cache, variant)


def build(cache: Path, variant: Variant, source: Path) -> None:
    """Build `variant` into `cache`, unless another process does so first. Raises ModelError."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache):
            if _trusted(cache, variant) is None:
                _sweep(cache)
                work = Path(tempfile.mkdtemp(prefix=WORK_PREFIX, dir=cache))
                try:
                    _build_in(work, cache, variant, source)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    except ImportError as error:
        raise ModelError(
            f"building the model needs a package that is missing ({error}); run: pip install onnx"
        ) from None
    except OSError as error:
        raise ModelError(f"the model cannot be kept here: {error.strerror or error}", where=cache) from None


def manifest_path(cache: Path, variant: Variant, recipe: Recipe = MINILM) -> Path:
    """Where the variant's manifest stands. Its name carries the key: format, builder's text, ingredients."""
    return cache / f"{_stem(variant, recipe)}.json"


def _stem(variant: Variant, recipe: Recipe = MINILM) -> str:
    parts = (str(FORMAT), _builder_fingerprint(), recipe.weights_sha256, recipe.tokenizer_sha256, variant)
    return f"{variant}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def _builder_fingerprint() -> str:
    """A hash of the builder's own text: a graph written by another version of it is not taken for this one's."""
    return sha256_of(Path(graph.__file__))[:12]


def _trusted(cache: Path, variant: Variant, recipe: Recipe = MINILM) -> Manifest | None:
    """The manifest, if it and the files it names are whole; None sends the caller to build them anew."""
    where = manifest_path(cache, variant, recipe)
    try:
        data = cast(dict[str, Any], json.loads(where.read_bytes()))
        record = cast(dict[str, Any], data.pop("built"))
        manifest = parse_manifest(data, where)
        # The size is asked first: it costs nothing and catches most of what goes wrong with files.
        whole = (
            record["format"] == FORMAT
            and manifest.file.stat().st_size == record["file_bytes"]
            and sha256_of(manifest.file) == manifest.sha256
            and sha256_of(manifest.tokenizer) == recipe.tokenizer_sha256
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):
        return None
    return manifest if whole else None


def _build_in(work: Path, cache: Path, variant: Variant, source: Path, recipe: Recipe = MINILM) -> None:
    weights, tokenizer = source / "model.safetensors", source / "tokenizer.json"
    for path, expected in ((weights, recipe.weights_sha256), (tokenizer, recipe.tokenizer_sha256)):
        if not path.is_file():
            raise ModelError("is missing", where=path)
        if sha256_of(path) != expected:
            raise ModelError(f"is not the file that makes {recipe.name} (its SHA-256 differs)", where=path)
    result = write_variant(work, variant, read_safetensors(weights), recipe.shape)
    words = work / "tokenizer.json"
    shutil.copyfile(tokenizer, words)
    stem = _stem(variant, recipe)
    manifest = _manifest_text(recipe, variant, result, f"{stem}.onnx")
    publish(result, cache / f"{stem}.onnx")
    publish(words, cache / "tokenizer.json")
    page = work / "manifest.json"
    page.write_text(manifest, encoding="utf-8")
    # Last, since it is what makes the other two count.
    publish(page, manifest_path(cache, variant, recipe))


def write_variant(folder: Path, variant: Variant, weights: Mapping[str, NDArray[Any]], shape: BertShape) -> Path:
    """Write a BERT's graph in one precision into `folder`, as `VARIANT.onnx`; its path."""
    path = folder / f"{variant}.onnx"
    if variant != "int8":
        path.write_bytes(bert_graph(weights, shape, half=variant == "fp16"))
        return path
    full = folder / "fp32.onnx"
    if not full.is_file():
        full.write_bytes(bert_graph(weights, shape))
    quantised(full, path)
    return path


def _manifest_text(recipe: Recipe, variant: Variant, result: Path, file_name: str) -> str:
    return json.dumps(
        {
            "name": recipe.name,
            "file": file_name,
            "tokenizer": "tokenizer.json",
            "pooling": "none-in-graph",
            "normalise": True,
            "dimensions": recipe.dimensions,
            "tokens_max": recipe.tokens_max,
            "query_prefix": "",
            "document_prefix": "",
            "revision": recipe.weights_sha256[:12],
            "sha256": sha256_of(result),
            "output": "embedding",
            "built": {
                "format": FORMAT,
                "builder": _builder_fingerprint(),
                "variant": variant,
                "source_sha256": recipe.weights_sha256,
                "tokenizer_sha256": recipe.tokenizer_sha256,
                "file_bytes": result.stat().st_size,
            },
        },
        indent=2,
    )


def publish(made: Path, kept: Path) -> None:
    """Move a finished file to its place, so that a reader, or a power cut, finds the old one or the new one whole."""
    with made.open("rb+") as file:
        os.fsync(file.fileno())
    made.replace(kept)
    folder = os.open(kept.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _lock(cache: Path) -> Generator[None]:
    """Let one process build at a time. Where files know no locks two may build; the renames keep that safe."""
    import fcntl

    with (cache / ".lock").open("ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(cache: Path) -> None:
    """Remove what killed builds left behind and what other builders' versions made, once a day has gone over it."""
    oldest = time.time() - LEFTOVER_S_MAX
    kept = {_stem(variant) for variant in VARIANTS}
    for path in cache.iterdir():
        ours = path.name.startswith(WORK_PREFIX) or path.name.startswith(("fp32-", "fp16-", "int8-"))
        with contextlib.suppress(OSError):
            if ours and path.stem not in kept and path.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _build_apart(cache: Path, variant: Variant, source: Path) -> None:
    command = [sys.executable, "-m", "understudy.models.built", str(cache), variant, str(source)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(  # noqa: S603 - our own module, by our own interpreter
            command, env=environment, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"the model was not built within {BUILD_S_MAX:.0f} s", where=cache) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(lines[-1] if lines else f"the build ended with {done.returncode}")


def main(arguments: list[str]) -> int:
    """`python -m understudy.models.built CACHE fp32|fp16|int8 [SOURCE]`: build ahead, when an image is made, say."""
    if len(arguments) not in (2, 3) or arguments[1] not in VARIANTS:
        print(main.__doc__, file=sys.stderr)  # noqa: T201 - this is the command line
        return 2
    try:
        source = Path(arguments[2]) if len(arguments) == 3 else package_folder()
        build(Path(arguments[0]), arguments[1], source)
    except ModelError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is the command line
        return 1
    return 0


if __name__ == "__main__":
    # The build takes all of a core for five seconds, and the application beside it needs that core more.
    os.nice(10)
    sys.exit(main(sys.argv[1:]))
