"""Run a CUDA session without copies between runs, and its small, frequent shapes as one recorded CUDA graph each.

    [n, t] ──> a bucket holds it? ──yes──> pad to the bucket ──> its own device buffers ──> replay its graph ──> cut
                     no
    device buffers of this run's own ──> run, unrecorded

A question is 40 kernels of microseconds each, and launching them one by one takes longer than running them: a graph
launches all at once (ONNX Runtime's own figure, #9978: p95 4.3 to 2.1 ms). It is recorded for fixed shapes at fixed
addresses, hence buckets, and buffers that are kept. Bulk fills the device by itself and is not recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKETS", "Bound", "Bucket", "bucket_of", "padded_to"]

DEVICE = "cuda"
UNRECORDED = "-1"
"""ONNX Runtime's word for a run that no graph is recorded of."""


class Bucket(NamedTuple):
    """A shape that runs are padded to; `number` names its graph, from 1 on."""

    rows: int
    tokens: int
    number: int


BUCKETS = tuple(
    Bucket(rows, tokens, number)
    for number, (rows, tokens) in enumerate(((r, t) for r in (1, 4) for t in (16, 32, 64)), start=1)
)
"""The shapes of questions. Each keeps its graph's buffers on the device: 4 x 64 tokens take some 3 MB."""

Feed = Mapping[str, NDArray[np.int64]]


def bucket_of(rows: int, tokens: int) -> Bucket | None:
    """The least bucket that holds [rows, tokens]; None for what is larger than all, and for nothing."""
    fitting = [bucket for bucket in BUCKETS if 0 < rows <= bucket.rows and 0 < tokens <= bucket.tokens]
    return min(fitting, key=lambda bucket: bucket.rows * bucket.tokens, default=None)


def padded_to(bucket: Bucket, rows_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """An input padded with zeros to a bucket's shape: padding is masked, and a row of it alone is cut off again."""
    out = np.zeros((bucket.rows, bucket.tokens), np.int64)
    out[: rows_of.shape[0], : rows_of.shape[1]] = rows_of
    return out


class _Recorded:
    """A bucket's inputs and outputs on the device, at the addresses that its graph was recorded with."""

    __slots__ = ("binding", "inputs", "options", "outputs")

    def __init__(self, binding: Any, inputs: dict[str, Any], outputs: dict[str, Any], options: Any) -> None:
        self.binding = binding
        self.inputs = inputs
        self.outputs = outputs
        self.options = options


class Bound:
    """An onnxruntime session on CUDA, fed through IO binding. Safe to call from several threads, which take turns: the
    device runs one kernel stream of a session at a time anyway, and a bucket's buffers are shared.

    `ort` is the onnxruntime module. Raises whatever ONNX Runtime raises; a bucket whose run failed is forgotten.
    """

    def __init__(self, session: Any, ort: Any, *, graphs: bool) -> None:
        self._session = session
        self._ort = ort
        self._graphs = graphs
        self._recorded: dict[Bucket, _Recorded] = {}
        self._outputs = [str(each.name) for each in session.get_outputs()]
        self._turn = threading.Lock()

    @property
    def recorded(self) -> Sequence[Bucket]:
        """The buckets that have buffers of their own."""
        return list(self._recorded)

    def get_providers(self) -> Sequence[str]:
        """As the session says: only the first tells the truth."""
        return self._session.get_providers()

    def get_inputs(self) -> Sequence[Any]:
        """The graph's inputs."""
        return self._session.get_inputs()

    def run(self, output_names: Sequence[str] | None, input_feed: Feed, /) -> Sequence[NDArray[Any]]:
        """The outputs for a batch, as numpy arrays, as InferenceSession.run gives them."""
        names = list(output_names or self._outputs[:1])
        rows, tokens = next(iter(input_feed.values())).shape
        bucket = bucket_of(rows, tokens) if self._graphs else None
        with self._turn:
            if bucket is None:
                return self._bound(input_feed, names, UNRECORDED)
            return self._in_bucket(bucket, input_feed, names, (rows, tokens))

    def _bound(self, feed: Feed, names: Sequence[str], number: str) -> Sequence[NDArray[Any]]:
        binding, _ = self._fed(feed)
        for name in names:
            binding.bind_output(name, DEVICE, 0)
        self._session.run_with_iobinding(binding, self._options(number))
        return binding.copy_outputs_to_cpu()

    def _in_bucket(
        self, bucket: Bucket, feed: Feed, names: Sequence[str], shape: tuple[int, int]
    ) -> Sequence[NDArray[Any]]:
        whole = {name: padded_to(bucket, rows_of) for name, rows_of in feed.items()}
        made = self._recorded.pop(bucket, None)
        if made is None or list(made.outputs) != names:
            made = self._prepared(bucket, whole, names)
        for name, rows_of in whole.items():
            made.inputs[name].update_inplace(rows_of)
        self._session.run_with_iobinding(made.binding, made.options)
        found = [value.numpy() for value in made.outputs.values()]
        # Only now: who failed above has left its bucket empty, and the next run begins it anew.
        self._recorded[bucket] = made
        return [_cut(each, bucket, shape) for each in found]

    def _prepared(self, bucket: Bucket, whole: Feed, names: Sequence[str]) -> _Recorded:
        # An output's buffer must be there before its graph is recorded, and only a run tells how large it is.
        sample = self._bound(whole, names, UNRECORDED)
        binding, inputs = self._fed(whole)
        outputs = {
            name: self._ort.OrtValue.ortvalue_from_numpy(each, DEVICE, 0)
            for name, each in zip(names, sample, strict=True)
        }
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Recorded(binding, inputs, outputs, self._options(str(bucket.number)))

    def _fed(self, feed: Feed) -> tuple[Any, dict[str, Any]]:
        """A binding with the inputs on the device."""
        binding = self._session.io_binding()
        inputs = {name: self._ort.OrtValue.ortvalue_from_numpy(rows_of, DEVICE, 0) for name, rows_of in feed.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        return binding, inputs

    def _options(self, number: str) -> Any:
        options = self._ort.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", number)
        return options


def _cut(out: NDArray[Any], bucket: Bucket, shape: tuple[int, int]) -> NDArray[Any]:
    """An output without what padding added: rows always, tokens where the graph gives a vector for each of them."""
    rows, tokens = shape
    cut = out[:rows]
    return cut[:, :tokens] if cut.ndim == 3 and cut.shape[1] == bucket.tokens else cut
