"""Turn texts into vectors: tokenise, sort by length, run in batches, pool, normalise, restore the order.

    texts ──> prefix ──> tokens ──> shortest first ──> batches ──> runtime ──> pool ──> unit length
                                                                                             │
    rows in the texts' own order <───────────────────────────────────────────────────────────┘

On a GPU a batch is up to 16,384 tokens, and sorting halves the work of a mixed one: padding is computed like text.

On a CPU every text runs alone. The int8 graph scales each layer's activations by the largest of the whole batch, so
that a text's vector would depend on its company (cosine .994 between one company and another), and a cache could not
trust it. Alone, a text has one vector, and it costs nothing: 12 ms a paragraph against 12 to 20 ms in batches of 256 to
2,048 tokens; only a bulk of short questions would gain (1.4 ms each against 1.0).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from understudy.models.bound import BUCKETS
from understudy.models.built import MINILM, Variant, built
from understudy.models.errors import ModelError
from understudy.models.manifest import MANIFEST_NAME, Manifest, read_manifest
from understudy.models.runtime import Device, Provider, Runtime
from understudy.models.space import Space, same_space

__all__ = ["Embedder", "Kind", "Vectors", "is_embedded", "load", "load_variant"]

Kind = Literal["query", "document"]
Vectors = NDArray[np.float32]
MakeRuntime = Callable[[Callable[[Device], Path], Provider], Runtime]

CUDA_BATCH_TOKENS_MAX = 16_384
# No text is read further than this for its vector: 40 characters a token is more than any language needs, and a
# megabyte of text would keep the tokeniser busy for a second before all but its first page were thrown away.
CHARS_PER_TOKEN_MAX = 40
UNIT_LENGTH_ERROR_MAX = 1e-3
PROBE_COSINE_MIN: Mapping[Variant, float] = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.97}
LADDER: Mapping[Device, tuple[Variant, ...]] = {"cuda": ("fp16", "fp32"), "cpu": ("int8", "fp32")}
"""Which precision is tried first where; the next one is taken when a self-test fails."""


class Encoding(Protocol):
    """As much of tokenizers.Encoding as is used here."""

    @property
    def ids(self) -> list[int]: ...
    def __len__(self) -> int: ...


class Tokenizer(Protocol):
    """As much of tokenizers.Tokenizer as is used here."""

    def encode_batch_fast(self, input: list[str], add_special_tokens: bool = True) -> list[Encoding]: ...
    def no_padding(self) -> None: ...
    def no_truncation(self) -> None: ...
    def enable_truncation(self, max_length: int) -> None: ...
    def to_str(self) -> str: ...


class Embedder:
    """A model ready to embed; `load` makes one. Synchronous, and safe to call from several threads."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        runtime: Runtime,
        variants: Mapping[Device, Variant],
    ) -> None:
        # tokenizer.json may carry padding and truncation of its own: this model's pads every text to 128 tokens and
        # cuts it there, which costs half of a page's meaning and ten times the work of a question.
        tokenizer.no_padding()
        tokenizer.enable_truncation(manifest.tokens_max)
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._counter: Tokenizer | None = None
        self._counter_made = threading.Lock()
        self._runtime = runtime
        self._variants = variants
        self._space = manifest.space

    @property
    def space(self) -> Space:
        """The vector space of every vector this embedder gives."""
        return self._space

    @property
    def provider(self) -> Device:
        """What it runs on now, "cuda" or "cpu"; a fault may change it between two calls."""
        return self._runtime.provider

    @property
    def provider_reason(self) -> str:
        """Why it runs on that, in a sentence for the operator."""
        return self._runtime.provider_reason

    @property
    def variant(self) -> Variant:
        """The precision it runs in now."""
        return self._variants[self.provider]

    @property
    def batch_tokens_max(self) -> int:
        """How many tokens, padding included, go through in one run; 1 means that every text runs alone."""
        return CUDA_BATCH_TOKENS_MAX if self.provider == "cuda" else 1

    @property
    def text_tokens_max(self) -> int:
        """How many tokens of a text are read, besides the longer prefix and the special tokens that every text gets."""
        prefixes = [self._space.query_prefix, self._space.document_prefix]
        return self._manifest.tokens_max - max(map(len, self._tokenizer.encode_batch_fast(prefixes)))

    def embed(self, texts: Sequence[str], kind: Kind = "query") -> Vectors:
        """Vectors [n, d] float32 in the order of `texts`, of unit length if the space is; an empty text has one too.

        Texts are cut at the model's `tokens_max`. Raises ModelError when the model cannot run or gives no numbers.
        """
        out = np.empty((len(texts), self._manifest.dimensions), np.float32)
        if not texts:
            return out
        ids = self.token_ids(texts, kind)
        for rows in batches([len(row) for row in ids], self.batch_tokens_max):
            # The GPU may be lost between two batches, and the CPU takes texts one by one.
            for part in [rows] if self.provider == "cuda" else [[row] for row in rows]:
                out[part] = self._embed_batch([ids[row] for row in part])
        return out

    def token_ids(self, texts: Sequence[str], kind: Kind) -> list[list[int]]:
        """What the model is fed for each text: prefixed, cut, with special tokens, unpadded."""
        return [each.ids for each in self._tokenizer.encode_batch_fast([self._presentable(t, kind) for t in texts])]

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the texts have in this model's words, uncut and without special tokens: for usage figures."""
        with self._counter_made:
            if self._counter is None:
                # A second one, since truncation is a state of the tokeniser and `embed` needs it on.
                self._counter = _tokenizer_from(self._tokenizer.to_str())
                self._counter.no_truncation()
        encodings = self._counter.encode_batch_fast([_whole(text) for text in texts], add_special_tokens=False)
        return sum(len(encoding) for encoding in encodings)

    def self_test(self) -> float:
        """Embed three sentences and compare them with what they must be. Returns the worst cosine.

        The embedded model and those that were built from weights have stored vectors (a float64 reference's); any other
        is asked only for finite vectors of the promised shape. Raises ModelError below cosine .9999 (fp32), .999 (fp16)
        or .97 (int8).
        """
        sentences, expected = self._probes()
        vectors = self.embed(sentences, "document")
        if expected is None:
            return 1.0
        worst = float((vectors * expected).sum(axis=1).min())
        least = PROBE_COSINE_MIN[self.variant]
        if not worst > least:
            raise ModelError(
                f"{self._space.name} ({self.variant}, {self.provider}) gives wrong vectors: cosine {worst:.4f}"
            )
        return worst

    def _probes(self) -> tuple[list[str], Vectors | None]:
        sentences, expected = probes()
        if same_space(self._space.name, MINILM.name) and self._space.revision == MINILM.weights_sha256[:12]:
            return sentences, expected
        return (sentences, None) if self._manifest.probes is None else probes(self._manifest.probes)

    def warm_up(self) -> None:
        """Run the shapes that real calls bring, so that the first of them does not pay for allocations. About 1 s.

        On a GPU every shape of `bound.BUCKETS` runs twice: the second run records its graph.
        """
        shapes = [(1, 12), (8, 28), (16, self._manifest.tokens_max)]
        if self.provider == "cuda":
            shapes += [(bucket.rows, bucket.tokens - 2) for bucket in BUCKETS] * 2
        for rows, words in shapes:
            self.embed([" ".join(["word"] * words)] * rows, "document")

    def release_cuda(self, why: str, *, for_ever: bool = False) -> None:
        """Give the GPU's memory back and go on with the CPU: the recovery step for a GPU that is full or failing."""
        self._runtime.release_cuda(why, for_ever=for_ever)

    def renew_session(self) -> None:
        """Let go of the session and its memory, open another one, and test it: the recovery step for a model that gives
        wrong numbers, or none. Raises ModelError."""
        self._runtime.renew()
        self.self_test()

    def _presentable(self, text: str, kind: Kind) -> str:
        whole = _whole(text[: self._manifest.tokens_max * CHARS_PER_TOKEN_MAX])
        return self._space.prefixed(whole, kind)

    def _embed_batch(self, ids: Sequence[Sequence[int]]) -> Vectors:
        input_ids, mask = padded(ids)
        names = self._manifest.inputs
        feed = {names.get("input_ids", "input_ids"): input_ids, names.get("attention_mask", "attention_mask"): mask}
        types = names.get("token_type_ids", "token_type_ids")
        wanted = set(self._runtime.input_names)
        if types in wanted:
            feed[types] = np.zeros_like(input_ids)
        strange = wanted.symmetric_difference(feed)
        if strange:
            raise ModelError(
                f"the graph's inputs are {sorted(wanted)}; name them under `inputs`", where=self._manifest.file
            )
        hidden = self._runtime.run(feed, self._manifest.output)
        return self._checked(pooled(hidden, mask, self._manifest.pooling), len(ids))

    def _checked(self, vectors: NDArray[Any], rows: int) -> Vectors:
        manifest = self._manifest
        if vectors.shape != (rows, manifest.dimensions):
            raise ModelError(
                f"the model gave {list(vectors.shape)} where [{rows}, {manifest.dimensions}] was promised",
                where=manifest.file,
            )
        out = vectors.astype(np.float32, copy=False)
        # A sum is finite only if all its parts are, and one number is cheaper to ask than n × d.
        lengths = np.sqrt(np.einsum("ij,ij->i", out, out))
        if not np.isfinite(lengths).all():
            raise ModelError("the model gave a vector that is no number", where=manifest.file)
        if not manifest.normalise:
            return out
        if not (lengths > 0).all():
            raise ModelError("the model gave a vector of no length", where=manifest.file)
        if np.abs(lengths - 1.0).max() > UNIT_LENGTH_ERROR_MAX:
            return (out / lengths[:, None]).astype(np.float32, copy=False)
        return out


def load(
    model: str | Path | None,
    cache: Path,
    provider: Provider = "auto",
    *,
    make_runtime: MakeRuntime = Runtime,
) -> Embedder:
    """An Embedder that has passed its self-test: of the embedded model, or of another one.

    None or "all-MiniLM-L6-v2" (under any organisation) is the embedded one, kept in the folder `cache` and built there
    when it is missing (5 s, once). Another name is a model that `understudy models add` put into `cache`; a path is a
    folder with `understudy-model.yaml`, or such a file. The ladder: CUDA in fp16, then in fp32, then the CPU in int8,
    then in fp32 (processors without VNNI may round int8 too coarsely). Raises ModelError, saying what to install where
    something is missing.
    """
    # The tokeniser's own threads would take the application's cores, and warn whenever a process forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    own = None if is_embedded(model) else _own_manifest(_place_of(Path(str(model)), cache))
    ladder: dict[Device, list[Variant]] = {
        device: [rung for rung in rungs if _has(own, rung)] for device, rungs in LADDER.items()
    }
    while True:
        embedder = _opened(own, cache, {"cuda": ladder["cuda"][0], "cpu": ladder["cpu"][0]}, provider, make_runtime)
        try:
            embedder.self_test()
            return embedder
        except ModelError as error:
            rungs = ladder[embedder.provider]
            if len(rungs) > 1:
                rungs.pop(0)
                continue
            if embedder.provider == "cpu":
                raise
            embedder.release_cuda(str(error), for_ever=True)
        try:
            embedder.self_test()
            return embedder
        except ModelError:
            if len(ladder["cpu"]) == 1:
                raise
            ladder["cpu"].pop(0)


def load_variant(model: str | Path | None, cache: Path, variant: Variant) -> Embedder:
    """The model on the CPU in one precision, built if need be and not tested: to compare one with another. Raises
    ModelError."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    own = None if is_embedded(model) else _own_manifest(_place_of(Path(str(model)), cache))
    if not _has(own, variant):
        raise ModelError(f"there is no {variant} of it", where=own.file if own is not None else None)
    return _opened(own, cache, {"cuda": variant, "cpu": variant}, "cpu", Runtime)


def is_embedded(model: str | Path | None) -> bool:
    """Whether a model's name in the settings means the embedded one."""
    return model is None or (isinstance(model, str) and same_space(model, MINILM.name))


def _has(own: Manifest | None, variant: Variant) -> bool:
    return own is None or variant == "fp32" or variant in own.variants


def _opened(
    own: Manifest | None,
    cache: Path,
    variants: Mapping[Device, Variant],
    provider: Provider,
    make_runtime: MakeRuntime,
) -> Embedder:
    """An Embedder that has not been tested yet, in one precision for each device."""
    manifest = built(cache, variants["cpu"]) if own is None else own

    def graph_of(device: Device) -> Path:
        variant = variants[device]
        if own is not None:
            return own.variants.get(variant, own.file)
        return manifest.file if device == "cpu" else built(cache, variant).file

    tokenizer = _tokenizer_from(_read(manifest.tokenizer))
    return Embedder(manifest, tokenizer, make_runtime(graph_of, provider), variants)


def _place_of(model: Path, cache: Path) -> Path:
    """Where a model is: the path itself, or the folder of `cache` that was registered under this name."""
    added = cache / model
    if not model.exists() and len(model.parts) == 1 and (added / MANIFEST_NAME).is_file():
        return added
    return model


def _own_manifest(path: Path) -> Manifest:
    if not path.exists():
        raise ModelError(
            f"no such model: neither a folder, nor {MINILM.name}, nor one that `understudy models add` registered",
            where=path,
        )
    manifest = read_manifest(path)
    for file in manifest.wrong_sums():
        raise ModelError("its SHA-256 is not the one in the manifest", where=file)
    return manifest


def probes(path: Path | None = None) -> tuple[list[str], Vectors]:
    """A self-test's sentences and their vectors [n, d], as the float64 reference gives them; the embedded model's
    unless a file is named. Raises ModelError."""
    path = path or Path(__file__).with_name("probes.json")
    try:
        data = cast(dict[str, Any], json.loads(_read(path)))
        return cast(list[str], data["sentences"]), np.array(data["vectors"], np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"not a file of probes: {error}", where=path) from None


def batches(lengths: Sequence[int], tokens_max: int) -> Iterator[list[int]]:
    """Row numbers in batches, shortest rows first: each as many as fit when all are padded to its longest."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[row] * (len(batch) + 1) > tokens_max:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded(ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, both int64 [n, t], padded with zeros on the right to the longest row."""
    tokens = max(len(row) for row in ids)
    out, mask = (np.zeros((len(ids), tokens), np.int64) for _ in range(2))
    for row, tokens_of_row in enumerate(ids):
        out[row, : len(tokens_of_row)] = tokens_of_row
        mask[row, : len(tokens_of_row)] = 1
    return out, mask


def pooled(hidden: NDArray[Any], mask: NDArray[np.int64], pooling: str) -> NDArray[Any]:
    """[n, t, d] → [n, d] as the manifest says; what the graph has pooled already passes through."""
    if pooling == "none-in-graph" or hidden.ndim != 3:
        return hidden
    if pooling == "cls":
        return hidden[:, 0]
    weight = mask[:, :, None].astype(hidden.dtype)
    return (hidden * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-9)


def _whole(text: str) -> str:
    # JSON may carry half a surrogate pair ("\ud83d"), which is no character and which the tokeniser refuses.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot be read: {error}", where=path) from None


def _tokenizer_from(text: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer as HuggingFaceTokenizer
    except ImportError:
        raise ModelError("the tokeniser is not installed; run: pip install tokenizers") from None
    try:
        return cast(Tokenizer, HuggingFaceTokenizer.from_str(text))
    except Exception as error:
        # The library raises plain Exception.
        raise ModelError(f"not a tokenizer.json: {error}") from None
