"""Run an ONNX graph on the GPU while that works, and on the CPU when it does not.

                     a CUDA fault, even with half the batch
        ON CUDA ------------------------------------------> ON CPU, until retry_at
           ^                                                   |
           +---- a session opens again, after the pause -------+

Only `session.get_providers()[0]` tells what a session runs on: the GPU build of ONNX Runtime lists CUDA as available on
machines that have none, logs an error and carries on with the CPU. After one failed allocation a CUDA session often
fails for ever, so it is dropped, with its memory, rather than asked again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from understudy.models.bound import Bound
from understudy.models.errors import ModelError

__all__ = ["Device", "OpenSession", "Provider", "Runtime", "Session", "cuda_is_absent", "open_session"]

Provider = Literal["auto", "cpu", "cuda"]
Device = Literal["cpu", "cuda"]
Feed = Mapping[str, NDArray[np.int64]]

CUDA_RETRY_S = 60.0
GPU_MEMORY_BYTES_MAX = 1 << 30
REASON_CHARS_MAX = 300
MEMORY_WORDS = ("bfcarena", "failed to allocate memory", "out of memory")
CUDA_FAULT_WORDS = ("cuda", "cublas", "cudnn", "cufft", "bfcarena", "failed to allocate memory", "out of memory", "gpu")


class Named(Protocol):
    """An input or output of a graph."""

    @property
    def name(self) -> str: ...


class Session(Protocol):
    """As much of onnxruntime.InferenceSession as is used here, and all that a test must imitate."""

    def run(self, output_names: Sequence[str] | None, input_feed: Feed, /) -> Sequence[NDArray[Any]]: ...
    def get_providers(self) -> Sequence[str]: ...
    def get_inputs(self) -> Sequence[Named]: ...


OpenSession = Callable[[Path, Device], Session]
"""Open a graph on a device, or raise."""


class Runtime:
    """One model's session, on the best device that works; safe to call from several threads.

    `graph_of` gives the graph for a device and may take its time (it may build it); it is asked only for a device that
    is really tried. `cuda_absent` says why CUDA is out of the question, or nothing; `clock` gives seconds, monotonic.
    Raises ModelError when not even the CPU can open the graph.
    """

    def __init__(
        self,
        graph_of: Callable[[Device], Path],
        provider: Provider = "auto",
        *,
        clock: Callable[[], float] = time.monotonic,
        open_session: OpenSession | None = None,
        cuda_absent: Callable[[], str] | None = None,
        cuda_retry_s: float = CUDA_RETRY_S,
    ) -> None:
        self._graph_of = graph_of
        self._clock = clock
        self._open = open_session or _open_session
        self._cuda_absent = cuda_absent or cuda_is_absent
        self._cuda_retry_s = cuda_retry_s
        # None while CUDA is in use, or will never be asked again.
        self._retry_at: float | None = None
        self._changing = threading.Lock()
        self.provider_reason = "the CPU was asked for"
        first = self._opened_on_cuda() if provider != "cpu" else None
        self._session: tuple[Device, Session] = ("cuda", first) if first is not None else ("cpu", self._opened_on_cpu())

    @property
    def provider(self) -> Device:
        """What the next run uses: "cuda" or "cpu"."""
        return self._session[0]

    @property
    def input_names(self) -> Sequence[str]:
        """What the graph wants to be fed."""
        return [entry.name for entry in self._session[1].get_inputs()]

    def run(self, feed: Feed, output: str = "") -> NDArray[Any]:
        """The named output (the first by default) for a batch: every array of `feed` is [n, t], the result [n, …].

        Raises ModelError when the CPU fails too, or when the fault is the batch's and not the device's.
        """
        self._look_for_cuda_again()
        device, session = self._session
        try:
            return _outcome(session, feed, output)
        except Exception as error:
            if device == "cpu" or not looks_like_cuda_fault(error):
                raise ModelError(f"the model failed on {device}: {_brief(error)}") from error
            fault = error
        rows = len(next(iter(feed.values())))
        if rows > 1:
            # Half the rows want half the memory. Once only: a session that fails again is broken, not full.
            with contextlib.suppress(Exception):
                halves = [{name: rows_of[part] for name, rows_of in feed.items()} for part in _halves(rows)]
                return np.concatenate([_outcome(session, half, output) for half in halves])
        self._fall(session, _brief(fault))
        # Drop this frame's own hold on the broken session, whose arena would else live through the run below.
        del session, fault
        # What was one batch for a GPU is run text by text, as the CPU's own batches are: its int8 graph rounds each
        # text by its company, and 16,384 tokens at once would take half a gigabyte.
        return np.concatenate([self._run_on_cpu(alone(feed, row), output) for row in range(rows)])

    def release_cuda(self, why: str, *, for_ever: bool = False) -> None:
        """Give back what is held on the GPU and go on with the CPU; CUDA is asked again after the pause, or never."""
        device, session = self._session
        if device == "cuda":
            self._fall(session, why, for_ever=for_ever)

    def renew(self) -> None:
        """Let go of the session, with all that it holds on the GPU, and open another one on the same device, or on the
        CPU where the GPU will not have it. Raises ModelError; then the old one stays."""
        with self._changing:
            was_on_cuda = self._session[0] == "cuda"
            self._session = ("cpu", self._opened_on_cpu())
            # the memory of the old one is given back before the new one asks for its own
            gc.collect()
            fresh = self._opened_on_cuda() if was_on_cuda else None
            if fresh is not None:
                self._session = ("cuda", fresh)

    def _run_on_cpu(self, feed: Feed, output: str) -> NDArray[Any]:
        _, session = self._session
        try:
            return _outcome(session, feed, output)
        except Exception as error:
            raise ModelError(f"the model failed on cpu too: {_brief(error)}") from error

    def _fall(self, broken: Session, why: str, *, for_ever: bool = False) -> None:
        with self._changing:
            # Another thread, hurt by the same fault, may have changed the session already.
            if self._session[1] is not broken:
                return
            self._session = ("cpu", self._opened_on_cpu())
            self._retry_at = None if for_ever else self._clock() + self._cuda_retry_s
            again = "not asked again" if for_ever else f"asked again after {self._cuda_retry_s:.0f} s"
            self.provider_reason = f"CUDA was given up ({why}); {again}"
        del broken
        gc.collect()

    def _look_for_cuda_again(self) -> None:
        due = self._retry_at
        if due is None or self._clock() < due:
            return
        # One caller tries, and pays a second for it; the others carry on with the CPU meanwhile.
        if not self._changing.acquire(blocking=False):
            return
        try:
            if self._retry_at == due:
                session = self._opened_on_cuda()
                if session is not None:
                    self._session = ("cuda", session)
        finally:
            self._changing.release()

    def _opened_on_cuda(self) -> Session | None:
        """A session on CUDA, or None, with the reason noted and the next try set."""
        self._retry_at = None
        why = self._cuda_absent()
        if why:
            self.provider_reason = f"CUDA cannot be used: {why}"
            return None
        try:
            session = self._open(self._graph_of("cuda"), "cuda")
        except Exception as error:
            # There is a GPU: it may be full, or its driver be starting, so it is worth asking again.
            self._retry_at = self._clock() + self._cuda_retry_s
            self.provider_reason = (
                f"CUDA failed to start ({_brief(error)}); asked again after {self._cuda_retry_s:.0f} s"
            )
            return None
        chosen = session.get_providers()[0]
        if chosen != "CUDAExecutionProvider":
            self.provider_reason = f"CUDA cannot be used: ONNX Runtime chose {chosen} (CUDA 13 and cuDNN 9 are needed)"
            return None
        self.provider_reason = "CUDA works"
        return session

    def _opened_on_cpu(self) -> Session:
        graph = self._graph_of("cpu")
        try:
            return self._open(graph, "cpu")
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot open it: {_brief(error)}", where=graph) from error


def looks_like_cuda_fault(error: BaseException) -> bool:
    """Whether an exception speaks of the GPU or its memory. ONNX Runtime has no type for it, only words."""
    words = str(error).casefold()
    return any(word in words for word in CUDA_FAULT_WORDS)


def looks_like_memory(error: BaseException) -> bool:
    """Whether an exception says that the GPU's memory is full."""
    words = str(error).casefold()
    return any(word in words for word in MEMORY_WORDS)


def open_session(graph: Path, device: Device, *, gpu_memory_bytes_max: int = GPU_MEMORY_BYTES_MAX) -> Session:
    """Open a graph with ONNX Runtime, tuned for a sidecar: little memory kept, no core spun, nothing said.

    Without CUDA a session for "cuda" may come back on the CPU: ask its `get_providers()[0]`. Raises ModelError when
    ONNX Runtime is not installed, and whatever ONNX Runtime raises otherwise.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # One thread a session: two threads of ours sharing it scale 2.09-fold, while its own second thread, spinning,
    # costs 2.4 times the CPU seconds for a fifth of the latency.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # With the arena one batch of 32 × 256 tokens leaves 484 MB resident for ever; without it 194 MB.
    options.enable_cpu_mem_arena = False
    # A memory pattern is kept for every shape ever seen, and every batch here has a shape of its own.
    options.enable_mem_pattern = False
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        _find_cuda_libraries(ort)
        cuda = {
            "gpu_mem_limit": str(gpu_memory_bytes_max),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "DEFAULT",
        }
        providers.insert(0, ("CUDAExecutionProvider", cuda))
    if device == "cuda":
        return _on_cuda(ort, graph, options, providers)
    # Its own fallback prints, and hides from us that it happened.
    return cast(Session, ort.InferenceSession(str(graph), options, providers=providers, enable_fallback=0))


def _on_cuda(ort: Any, graph: Path, options: Any, providers: list[Any]) -> Session:
    """A session whose inputs and outputs are bound on the device, with CUDA graphs where it can have them."""
    name, settings = providers[0]
    for graphs in (True, False):
        chosen = [(name, settings | {"enable_cuda_graph": "1"} if graphs else settings), *providers[1:]]
        try:
            session = ort.InferenceSession(str(graph), options, providers=chosen, enable_fallback=0)
        except Exception as error:
            # a GPU that is full is full without graphs too, and the next step of the ladder is the CPU
            if not graphs or looks_like_memory(error):
                raise
            continue
        if session.get_providers()[0] != "CUDAExecutionProvider":
            return cast(Session, session)
        return Bound(session, ort, graphs=graphs)
    raise AssertionError("one of the two was returned or raised")


_open_session = open_session


def cuda_is_absent() -> str:
    """Why CUDA cannot be used here, or nothing if it may work. Asks the driver: no context is made, no memory taken."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver was found (libcuda.so.1)"
    count = ctypes.c_int(0)
    code = int(driver.cuInit(0)) or int(driver.cuDeviceGetCount(ctypes.byref(count)))
    if code:
        return f"the NVIDIA driver does not answer (error {code})"
    if not count.value:
        return "the NVIDIA driver sees no GPU"
    if "CUDAExecutionProvider" not in _onnxruntime().get_available_providers():
        return "the installed ONNX Runtime has no CUDA in it; run: pip install onnxruntime-gpu"
    return ""


def _onnxruntime() -> Any:
    try:
        # Imported by name, here, since it takes 0.1 s and the proxy must start without it.
        ort: Any = importlib.import_module("onnxruntime")
        # 4 is "fatal": what it would print about a missing GPU is told in `provider_reason`.
        ort.set_default_logger_severity(4)
    except (ImportError, AttributeError):
        # An AttributeError is what is left of it when one of its two wheels was uninstalled over the other.
        raise ModelError("ONNX Runtime is not installed, or not whole; run: pip install onnxruntime-gpu") from None
    return ort


def _find_cuda_libraries(ort: Any) -> None:
    """Load CUDA and cuDNN from the nvidia packages beside ONNX Runtime, where pip puts them, if they are there."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            ort.preload_dlls(directory="")


def alone(feed: Feed, row: int) -> Feed:
    """One row of a batch, without the padding that its company asked for: columns at the end that hold only zeros."""
    held = np.flatnonzero(np.any([rows[row] != 0 for rows in feed.values()], axis=0))
    tokens = int(held[-1]) + 1 if len(held) else 1
    return {name: np.ascontiguousarray(rows[row : row + 1, :tokens]) for name, rows in feed.items()}


def _outcome(session: Session, feed: Feed, output: str) -> NDArray[Any]:
    return session.run([output] if output else None, feed)[0]


def _halves(rows: int) -> tuple[slice, slice]:
    return slice(0, rows // 2), slice(rows // 2, rows)


def _brief(error: BaseException) -> str:
    """An exception in one line of bounded length: ONNX Runtime's own run over pages."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:REASON_CHARS_MAX]
