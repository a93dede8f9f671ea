"""The ladder from CUDA to the CPU and back, walked with sessions that fail as real ones do."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.models.errors import ModelError
from understudy.models.runtime import (
    Device,
    Feed,
    Runtime,
    Session,
    looks_like_cuda_fault,
    open_session,
)

OOM = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : BFCArena::AllocateRawInternal Failed to allocate memory for "
    "requested buffer of size 12582912"
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeSession:
    """Doubles its input on the device it is on; `fault` is asked before every run how many rows there are."""

    def __init__(self, provider: str, fault: Callable[[int], str | None]) -> None:
        self.provider, self.fault = provider, fault
        self.rows_seen: list[int] = []

    def run(self, output_names: Sequence[str] | None, input_feed: Feed, /) -> Sequence[Any]:
        rows = len(input_feed["input_ids"])
        self.rows_seen.append(rows)
        words = self.fault(rows)
        if words:
            raise RuntimeError(words)
        return [input_feed["input_ids"] * 2]

    def get_providers(self) -> Sequence[str]:
        return [self.provider]

    def get_inputs(self) -> Sequence[Any]:
        return []


class Machine:
    """Opens fake sessions, and remembers which."""

    def __init__(self) -> None:
        self.opened: list[FakeSession] = []
        self.fault: Callable[[int], str | None] = lambda rows: None
        self.cuda_opens_as: str | Exception = "CUDAExecutionProvider"
        self.clock = Clock()

    def open(self, graph: Path, device: Device) -> Session:
        assert graph == Path(device)
        if device == "cuda" and isinstance(self.cuda_opens_as, Exception):
            raise self.cuda_opens_as
        provider = str(self.cuda_opens_as) if device == "cuda" else "CPUExecutionProvider"
        on_cuda = provider.startswith("CUDA")
        session = FakeSession(provider, (lambda rows: self.fault(rows)) if on_cuda else lambda rows: None)
        self.opened.append(session)
        return session

    def runtime(self, provider: Any = "auto", absent: str = "") -> Runtime:
        return Runtime(Path, provider, clock=self.clock, open_session=self.open, cuda_absent=lambda: absent)

    @property
    def providers_opened(self) -> list[str]:
        return [session.provider[:4] for session in self.opened]


def feed(rows: int) -> Feed:
    return {"input_ids": np.arange(rows * 3).reshape(rows, 3)}


def test_cuda_is_used_where_it_works() -> None:
    runtime = Machine().runtime()
    assert (runtime.provider, runtime.provider_reason) == ("cuda", "CUDA works")
    assert runtime.run(feed(2)).tolist() == [[0, 2, 4], [6, 8, 10]]


def test_without_a_gpu_the_cpu_is_used_and_the_reason_given_and_cuda_never_asked() -> None:
    machine = Machine()
    runtime = machine.runtime(absent="no NVIDIA driver was found")
    assert runtime.provider == "cpu"
    assert "no NVIDIA driver" in runtime.provider_reason
    machine.clock.now += 1e6
    runtime.run(feed(1))
    assert machine.providers_opened == ["CPUE"]


def test_who_asks_for_the_cpu_gets_it_and_the_gpu_is_left_alone() -> None:
    machine = Machine()
    assert machine.runtime("cpu").provider == "cpu"
    assert machine.providers_opened == ["CPUE"]


def test_a_session_that_silently_came_up_on_the_cpu_is_not_taken_for_cuda() -> None:
    machine = Machine()
    machine.cuda_opens_as = "CPUExecutionProvider"
    runtime = machine.runtime("cuda")
    assert runtime.provider == "cpu"
    assert "chose CPUExecutionProvider" in runtime.provider_reason


def test_a_gpu_that_is_full_at_the_start_is_asked_again_later() -> None:
    machine = Machine()
    machine.cuda_opens_as = RuntimeError(OOM)
    runtime = machine.runtime()
    assert runtime.provider == "cpu"
    assert "BFCArena" in runtime.provider_reason
    machine.cuda_opens_as = "CUDAExecutionProvider"
    machine.clock.now += 59.9
    runtime.run(feed(1))
    assert runtime.provider == "cpu"
    machine.clock.now += 0.1
    runtime.run(feed(1))
    assert runtime.provider == "cuda"


def test_a_batch_too_large_for_the_gpu_goes_in_two_halves() -> None:
    machine = Machine()
    runtime = machine.runtime()
    machine.fault = lambda rows: OOM if rows > 4 else None
    assert np.array_equal(runtime.run(feed(7)), feed(7)["input_ids"] * 2)
    assert machine.opened[0].rows_seen == [7, 3, 4]
    assert runtime.provider == "cuda"


def test_a_broken_cuda_session_is_left_for_the_cpu_and_tried_again_after_the_pause_and_not_before() -> None:
    machine = Machine()
    runtime = machine.runtime()
    machine.fault = lambda rows: "CUDA error 700: an illegal memory access"
    assert np.array_equal(runtime.run(feed(4)), feed(4)["input_ids"] * 2)
    assert runtime.provider == "cpu"
    assert "illegal memory access" in runtime.provider_reason
    assert machine.opened[0].rows_seen == [4, 2]

    machine.clock.now += 59
    runtime.run(feed(1))
    assert machine.providers_opened == ["CUDA", "CPUE"]

    machine.clock.now += 1
    machine.fault = lambda rows: None
    runtime.run(feed(1))
    assert (runtime.provider, runtime.provider_reason) == ("cuda", "CUDA works")
    assert machine.providers_opened == ["CUDA", "CPUE", "CUDA"]


def test_a_gpu_that_stays_broken_is_asked_once_a_minute_and_every_call_is_answered() -> None:
    machine = Machine()
    runtime = machine.runtime()
    machine.fault = lambda rows: OOM
    for _ in range(30):
        assert np.array_equal(runtime.run(feed(1)), feed(1)["input_ids"] * 2)
        machine.clock.now += 10
    # Five minutes: the first session, and one more each minute.
    assert machine.providers_opened.count("CUDA") == 5


def test_a_batch_that_is_itself_wrong_is_no_fault_of_the_gpu() -> None:
    machine = Machine()
    runtime = machine.runtime()
    machine.fault = lambda rows: "INVALID_ARGUMENT : Got invalid dimensions for input"
    with pytest.raises(ModelError, match="invalid dimensions"):
        runtime.run(feed(2))
    assert runtime.provider == "cuda"


def test_several_threads_hurt_by_one_fault_leave_the_gpu_once() -> None:
    machine = Machine()
    runtime = machine.runtime()
    all_in = threading.Barrier(4)

    def fault(rows: int) -> str:
        all_in.wait(timeout=60)
        return OOM

    machine.fault = fault
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(runtime.run(feed(1)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 4
    assert machine.providers_opened == ["CUDA", "CPUE"]


def test_the_gpu_can_be_given_back_by_hand_for_a_while_or_for_ever() -> None:
    machine = Machine()
    runtime = machine.runtime()
    runtime.release_cuda("its memory is wanted")
    assert runtime.provider == "cpu"
    assert "its memory is wanted" in runtime.provider_reason
    machine.clock.now += 60
    runtime.run(feed(1))
    assert runtime.provider == "cuda"
    runtime.release_cuda("it computes wrongly", for_ever=True)
    machine.clock.now += 1e6
    runtime.run(feed(1))
    assert runtime.provider == "cpu"


def test_a_graph_the_cpu_cannot_open_is_an_error_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"broken\.onnx: ONNX Runtime cannot open it") as caught:
        Runtime(lambda device: broken, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (OOM, True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("CUDNN_STATUS_INTERNAL_ERROR", True),
        ("INVALID_ARGUMENT : Got invalid dimensions", False),
    ],
)
def test_faults_of_the_gpu_are_known_by_their_words(words: str, is_one: bool) -> None:
    assert looks_like_cuda_fault(RuntimeError(words)) is is_one


@pytest.mark.no_gpu
def test_a_machine_without_a_gpu_comes_up_on_the_cpu_without_a_word_on_its_terminal(cache: Path, embedder: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from understudy.models.embedder import load\n"
        f"e = load(None, Path({str(cache)!r}), 'cuda')\n"
        "assert e.provider == 'cpu' and 'driver' in e.provider_reason, e.provider_reason"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.no_gpu
def test_even_a_cuda_session_opened_in_vain_says_nothing_and_owns_up_to_the_cpu(
    cache: Path, embedder: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = next(cache.glob("int8-*.onnx"))
    session = open_session(graph, "cuda")
    assert session.get_providers()[0] == "CPUExecutionProvider"
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.gpu
def test_cuda_gives_the_vectors_the_reference_gives(cache: Path) -> None:
    from understudy.models.embedder import load

    embedder = load(None, cache, "cuda")
    assert embedder.provider == "cuda", embedder.provider_reason
    assert embedder.self_test() > 0.999
