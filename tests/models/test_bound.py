"""CUDA sessions are fed by binding: small shapes from buffers that stay, one recorded graph each, all else unrecorded.

No GPU is needed: a stand-in for onnxruntime remembers which buffers were bound, and computes. The last test needs one.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from understudy.models.bound import BUCKETS, Bound, Bucket, bucket_of
from understudy.models.embedder import load
from understudy.models.errors import ModelError
from understudy.models.runtime import Runtime, looks_like_memory


class Value:
    """An OrtValue that stays where it is when it is updated."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.copy()

    @staticmethod
    def ortvalue_from_numpy(array: np.ndarray, device: str, number: int) -> Value:
        assert (device, number) == ("cuda", 0)
        return Value(array)

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.shape == self.array.shape
        self.array[...] = array

    def numpy(self) -> np.ndarray:
        return self.array


class Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value | None] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value

    def bind_output(self, name: str, device: str, number: int) -> None:
        self.outputs[name] = None

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return [value.array for value in self.outputs.values() if value is not None]


ORT = SimpleNamespace(OrtValue=Value, RunOptions=Options)


class Session:
    """Sums each row's masked ids; remembers every run: its graph's number, its shape, its buffers."""

    def __init__(self) -> None:
        self.runs: list[tuple[str | None, tuple[int, ...], int]] = []
        self.fault = ""

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="embedding")]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input_ids"), SimpleNamespace(name="attention_mask")]

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Options) -> None:
        ids, mask = binding.inputs["input_ids"].array, binding.inputs["attention_mask"].array
        self.runs.append((options.entries.get("gpu_graph_id"), ids.shape, id(binding.inputs["input_ids"])))
        if self.fault:
            raise RuntimeError(self.fault)
        out = (ids * mask).sum(axis=1, keepdims=True).astype(np.float32)
        bound = binding.outputs["embedding"]
        if bound is None:
            binding.outputs["embedding"] = Value(out)
        else:
            bound.update_inplace(out)


def feed(*rows: list[int]) -> dict[str, np.ndarray]:
    tokens = max(map(len, rows))
    ids = np.array([row + [0] * (tokens - len(row)) for row in rows], np.int64)
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


@pytest.mark.parametrize(
    ("rows", "tokens", "shape"),
    [
        (1, 14, (1, 16)),
        (1, 16, (1, 16)),
        (1, 17, (1, 32)),
        (2, 3, (4, 16)),
        (4, 64, (4, 64)),
        (5, 3, None),
        (1, 65, None),
    ],
)
def test_a_shape_goes_into_the_least_bucket_that_holds_it(
    rows: int, tokens: int, shape: tuple[int, int] | None
) -> None:
    bucket = bucket_of(rows, tokens)
    assert (bucket and (bucket.rows, bucket.tokens)) == shape


def test_the_buckets_numbers_are_unlike_and_none_is_the_word_for_unrecorded() -> None:
    assert len({bucket.number for bucket in BUCKETS}) == len(BUCKETS)
    assert all(bucket.number > 0 for bucket in BUCKETS)
    assert bucket_of(0, 5) is None


def test_a_question_is_padded_run_from_buffers_that_stay_and_cut_again() -> None:
    session = Session()
    bound = Bound(session, ORT, graphs=True)
    assert bound.run(None, feed([3, 4, 5]))[0].tolist() == [[12.0]]
    assert bound.run(["embedding"], feed([7] * 15))[0].tolist() == [[105.0]]
    assert bound.run(None, feed([1, 1], [2]))[0].tolist() == [[2.0], [2.0]]
    # The first of a shape runs once unrecorded, since only a run tells how large its output is.
    assert [(number, shape) for number, shape, _ in session.runs] == [
        ("-1", (1, 16)), ("1", (1, 16)), ("1", (1, 16)), ("-1", (4, 16)), ("4", (4, 16)),
    ]  # fmt: skip
    assert session.runs[1][2] == session.runs[2][2]


def test_bulk_is_run_as_it_is_and_no_graph_is_recorded_of_it() -> None:
    session = Session()
    bound = Bound(session, ORT, graphs=True)
    assert bound.run(None, feed([1] * 100))[0].tolist() == [[100.0]]
    assert [(number, shape) for number, shape, _ in session.runs] == [("-1", (1, 100))]
    assert bound.recorded == []


def test_where_graphs_cannot_be_had_everything_is_bound_and_nothing_padded() -> None:
    session = Session()
    bound = Bound(session, ORT, graphs=False)
    assert bound.run(None, feed([1, 2]))[0].tolist() == [[3.0]]
    assert [(number, shape) for number, shape, _ in session.runs] == [(None, (1, 2))]


def test_a_bucket_whose_run_failed_is_begun_anew() -> None:
    session = Session()
    bound = Bound(session, ORT, graphs=True)
    bound.run(None, feed([1]))
    session.fault = "CUDA failure 2: out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        bound.run(None, feed([2]))
    assert bound.recorded == []
    session.fault = ""
    assert bound.run(None, feed([2]))[0].tolist() == [[2.0]]
    assert bound.recorded == [Bucket(1, 16, 1)]


def test_a_bound_session_that_runs_out_of_memory_leaves_every_text_to_the_cpu() -> None:
    on_cuda, ran = Session(), list[int]()

    class OnCpu:
        def run(self, names: Any, rows_of: Any, /) -> Any:
            ran.append(rows_of["input_ids"].shape[1])
            return [rows_of["input_ids"].sum(axis=1, keepdims=True)]

        def get_providers(self) -> Any:
            return ["CPUExecutionProvider"]

        def get_inputs(self) -> Any:
            return []

    def opened(graph: Path, device: str) -> Any:
        return Bound(on_cuda, ORT, graphs=True) if device == "cuda" else OnCpu()

    runtime = Runtime(Path, "auto", clock=lambda: 0.0, open_session=opened, cuda_absent=lambda: "")
    on_cuda.fault = "BFCArena::AllocateRawInternal Failed to allocate memory"
    assert runtime.run(feed([1, 2, 3], [4], [5, 6])).tolist() == [[6], [4], [11]]
    assert runtime.provider == "cpu"
    # Text by text and unpadded, since on the CPU a text's int8 vector must not depend on its company.
    assert ran == [3, 1, 2]
    # Whole, then in two halves, the first of which is enough to know.
    assert len(on_cuda.runs) == 2


def test_a_full_gpu_is_known_by_its_words() -> None:
    assert looks_like_memory(RuntimeError("BFCArena: Failed to allocate memory for requested buffer"))
    assert not looks_like_memory(ModelError("This session cannot use the graph capture feature"))


@pytest.mark.gpu
def test_on_a_real_gpu_recorded_graphs_give_the_vectors_that_unrecorded_runs_give(cache: Path) -> None:
    embedder = load(None, cache, "cuda")
    assert (embedder.provider, embedder.variant) == ("cuda", "fp16"), embedder.provider_reason
    embedder.warm_up()
    session: Any = embedder._runtime._session[1]
    assert len(session.recorded) == len(BUCKETS)
    texts = ["what does the breaker do", "how long is the pause, and who says so?", "probe"]
    small = np.concatenate([embedder.embed([text]) for text in texts])
    bulk = embedder.embed([*texts, *["a longer text that is no question at all " * 12] * 8])[:3]
    assert (small * bulk).sum(axis=1).min() > 0.999
    assert embedder.self_test() > 0.999
