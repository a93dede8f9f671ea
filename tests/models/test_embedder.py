"""The embedded model gives the vectors the reference gives, for every text, in the order asked, in either precision."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.models.reference import embed_apart
from understudy.models.built import built
from understudy.models.embedder import Embedder, batches, load, padded, pooled
from understudy.models.errors import ModelError
from understudy.models.runtime import Device, Runtime

TEXTS = 200
TOKENS_MAX = 256


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """English of every length from one word to more than the model reads; short ones are commoner, as in life."""
    words = " ".join(topics.values()).split()
    dice = np.random.default_rng(7)
    lengths = [1, 400, *(int(120 ** dice.random() ** 2) for _ in range(TEXTS - 4))]
    starts = dice.integers(len(words) - 400, size=len(lengths))
    return [" ".join(words[at : at + n]) for at, n in zip(starts, lengths, strict=True)] + [
        "",
        "東京は夜の七時 🎭 naïve",
    ]


@pytest.fixture(scope="module")
def expected(texts: list[str], source: Path) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_MAX)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert {2, TOKENS_MAX} <= {len(row) for row in rows}
    return embed_apart(source / "model.safetensors", rows)


@pytest.fixture(scope="module")
def full(cache: Path) -> Embedder:
    """The same model in fp32 on the CPU: the graph that CUDA runs."""
    manifest = built(cache, "fp32")
    tokenizer = Tokenizer.from_file(str(manifest.tokenizer))
    return Embedder(manifest, tokenizer, Runtime(lambda device: manifest.file, "cpu"), {"cpu": "fp32", "cuda": "fp32"})


def test_the_fp32_graph_gives_the_references_vectors(
    full: Embedder, texts: list[str], expected: np.ndarray, record_property: Callable[[str, object], None]
) -> None:
    cosines = (full.embed(texts) * expected).sum(axis=1)
    record_property("cosine_min", float(cosines.min()))
    print(f"fp32: cosine min {cosines.min():.7f}")
    assert cosines.min() > 0.9999
    assert full.self_test() > 0.9999


def test_the_int8_graph_stays_close_to_the_reference(
    embedder: Embedder, texts: list[str], expected: np.ndarray, record_property: Callable[[str, object], None]
) -> None:
    cosines = (embedder.embed(texts) * expected).sum(axis=1)
    record_property("cosine_mean", float(cosines.mean()))
    record_property("cosine_min", float(cosines.min()))
    print(f"int8: cosine mean {cosines.mean():.4f}, min {cosines.min():.4f}")
    assert cosines.mean() > 0.985
    assert cosines.min() > 0.95
    assert embedder.self_test() > 0.97


def test_a_text_has_one_vector_alone_and_in_any_company(embedder: Embedder, texts: list[str]) -> None:
    some = texts[::20]
    together = embedder.embed(some)
    alone = np.concatenate([embedder.embed([text]) for text in some])
    assert np.array_equal(together, alone)
    assert np.array_equal(embedder.embed(some[::-1])[::-1], alone)


def test_on_a_gpu_texts_run_in_sorted_batches_and_come_back_in_order(full: Embedder, texts: list[str]) -> None:
    class Claiming(Runtime):
        provider = "cuda"

    as_on_cuda = Embedder(
        full._manifest, full._tokenizer, Claiming(lambda _: full._manifest.file, "cpu"), full._variants
    )
    some = texts[::10]
    assert np.abs(as_on_cuda.embed(some) - full.embed(some)).max() < 1e-5


def test_the_tokenisers_own_padding_and_cut_at_128_are_undone(embedder: Embedder, source: Path) -> None:
    baked = json.loads((source / "tokenizer.json").read_text())
    assert baked["truncation"]["max_length"] == 128
    assert baked["padding"]["strategy"] == {"Fixed": 128}
    page = ["word"] * 200
    changed_late = [*page[:180], *["zebra"] * 20]
    a, b = embedder.embed([" ".join(page), " ".join(changed_late)])
    assert a @ b < 0.99
    seen: list[tuple[int, ...]] = []
    runtime = embedder._runtime

    class Watching:
        provider = "cpu"
        input_names = runtime.input_names

        def run(self, feed: Any, output: str = "") -> Any:
            seen.append(feed["input_ids"].shape)
            return runtime.run(feed, output)

    watched = Embedder(embedder._manifest, embedder._tokenizer, Watching(), embedder._variants)  # type: ignore[arg-type]
    watched.embed(["word " * 1000, "one two three"])
    assert seen == [(1, 5), (1, TOKENS_MAX)]


def test_vectors_are_float32_rows_of_unit_length_whatever_the_text(embedder: Embedder) -> None:
    odd = ["", " ", "\x00", "half a pair: \ud83d", "🎭" * 50, "a" * 1_000_000, "\n".join(["line"] * 5000)]
    vectors = embedder.embed(odd)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(odd), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    assert embedder.embed([]).shape == (0, 384)


def test_tokens_are_counted_uncut_and_without_special_ones(embedder: Embedder) -> None:
    assert embedder.count_tokens(["hello world", ""]) == 2
    assert embedder.count_tokens(["word " * 1000]) == 1000
    assert embedder.count_tokens(["half a pair: \ud83d"]) > 0
    # and counting did not switch the cut off for embedding
    assert embedder.embed(["word " * 1000]).shape == (1, 384)


def test_threads_may_share_it(embedder: Embedder, texts: list[str]) -> None:
    some = texts[:20]
    alone = embedder.embed(some)
    with ThreadPoolExecutor(4) as threads:
        for rows in threads.map(lambda _: embedder.embed(some), range(4)):
            assert np.abs(rows - alone).max() < 1e-6


def test_prefixes_are_put_before_texts_by_their_kind(embedder: Embedder) -> None:
    manifest = replace(embedder._manifest, query_prefix="query: ", document_prefix="passage: ")
    prefixing = Embedder(manifest, embedder._tokenizer, embedder._runtime, embedder._variants)
    plain = embedder.embed(["query: so", "passage: so"])
    assert np.allclose(prefixing.embed(["so"], "query")[0], plain[0], atol=1e-5)
    assert np.allclose(prefixing.embed(["so"], "document")[0], plain[1], atol=1e-5)
    assert prefixing.space.fingerprint != embedder.space.fingerprint


class Broken:
    """A runtime that answers with what it is told to."""

    provider: Device = "cpu"
    input_names = ("input_ids", "attention_mask")

    def __init__(self, answer: Callable[[int], np.ndarray]) -> None:
        self.answer = answer

    def run(self, feed: Any, output: str = "") -> np.ndarray:
        return self.answer(len(feed["input_ids"]))


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda n: np.full((n, 384), np.nan, np.float32), "no number"),
        (lambda n: np.full((n, 384), np.inf, np.float32), "no number"),
        (lambda n: np.zeros((n, 384), np.float32), "no length"),
        (lambda n: np.ones((n, 383), np.float32), "promised"),
        (lambda n: np.eye(384, dtype=np.float32)[:n], "wrong vectors"),
    ],
)
def test_a_model_that_computes_nonsense_is_found_out(embedder: Embedder, answer: Any, complaint: str) -> None:
    broken = Embedder(embedder._manifest, embedder._tokenizer, Broken(answer), embedder._variants)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=complaint):
        broken.self_test()


def test_vectors_of_another_length_are_brought_to_unit_length(embedder: Embedder) -> None:
    long = Broken(lambda n: np.full((n, 384), 3.0, np.float32))
    vectors = Embedder(embedder._manifest, embedder._tokenizer, long, embedder._variants).embed(["a"])  # type: ignore[arg-type]
    assert np.linalg.norm(vectors[0]) == pytest.approx(1.0, abs=1e-6)


class StandIn(Runtime):
    """The real runtime on the CPU, which claims to be CUDA and computes wrongly until CUDA is released."""

    on_cuda = True

    @property
    def provider(self) -> Device:
        return "cuda" if self.on_cuda else "cpu"

    def run(self, feed: Any, output: str = "") -> Any:
        out = super().run(feed, output)
        return np.roll(out, 1, axis=1) if self.on_cuda else out

    def release_cuda(self, why: str, *, for_ever: bool = False) -> None:
        assert for_ever
        assert "wrong vectors" in why
        self.on_cuda = False


def test_a_gpu_that_computes_wrongly_is_left_for_ever_when_the_model_is_loaded(cache: Path, embedder: Embedder) -> None:
    def make(graph_of: Any, provider: Any) -> Runtime:
        return StandIn(graph_of, "cpu")

    assert load(None, cache, make_runtime=make).provider == "cpu"


def test_a_processor_that_rounds_int8_too_coarsely_gets_fp32(cache: Path, full: Embedder) -> None:
    class Coarse(Runtime):
        def __init__(self, graph_of: Any, provider: Any) -> None:
            self.coarse = "int8" in graph_of("cpu").name
            super().__init__(graph_of, "cpu")

        def run(self, feed: Any, output: str = "") -> Any:
            out = super().run(feed, output)
            return np.where(np.arange(384) % 2, out, 0) if self.coarse else out

    assert load(None, cache, make_runtime=Coarse).variant == "fp32"


def test_the_default_model_goes_by_its_name_under_any_organisation(cache: Path, embedder: Embedder) -> None:
    same = load("sentence-transformers/All-MiniLM-L6-v2", cache, "cpu")
    assert same.space == embedder.space
    with pytest.raises(ModelError, match="no such model"):
        load("bge-small-en-v1.5", cache, "cpu")


def test_importing_the_package_costs_neither_onnxruntime_nor_tokenizers() -> None:
    code = (
        "import sys, understudy.models.embedder, understudy.models.batcher, understudy.models.extractive\n"
        "print(sorted({'onnx', 'onnxruntime', 'tokenizers', 'yaml', 'torch'} & set(sys.modules)))"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=True)
    assert done.stdout == "[]\n"


def test_batches_are_sorted_by_length_and_stay_in_budget() -> None:
    lengths = [9, 2, 30, 2, 3, 100, 9]
    made = list(batches(lengths, 20))
    assert sorted(row for batch in made for row in batch) == list(range(7))
    assert made == [[1, 3, 4], [0, 6], [2], [5]]
    assert list(batches([], 20)) == []


def test_pooling_looks_at_no_padding() -> None:
    _, mask = padded([[1, 2], [3]])
    hidden = np.array([[[1.0, 0.0], [3.0, 2.0]], [[5.0, 5.0], [999.0, 999.0]]])
    assert pooled(hidden, mask, "mean").tolist() == [[2.0, 1.0], [5.0, 5.0]]
    assert pooled(hidden, mask, "cls").tolist() == [[1.0, 0.0], [5.0, 5.0]]
    assert pooled(hidden[:, 0], mask, "none-in-graph").tolist() == [[1.0, 0.0], [5.0, 5.0]]


def test_a_warm_up_runs_and_leaves_it_usable(embedder: Embedder) -> None:
    embedder.warm_up()
    assert embedder.provider == "cpu"
    assert embedder.provider_reason == "the CPU was asked for"
    assert embedder.batch_tokens_max == 1
