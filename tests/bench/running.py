"""One interleaved run: every subject takes its turn at every workload in every round.

Everything is put up before the first and taken down after the last, whatever happens in between.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.bench.load import Order
from tests.bench.subjects import NotHere, Site, Start, Subject
from tests.bench.workloads import Workload
from tests.kit.processes import REPOSITORY, Process, free_port
from understudy.proxy.bench.load import Mark
from understudy.proxy.bench.processes import cpu_s, pin, tree

STOP_S_MAX = 5.0
REST_S, REST_S_MAX = 1.0, 90.0
"""What a subject does once at its start (an index of its own, made in the background) is nobody's call: it is at rest
when it has used less than `REST_SHARE` of a core for so long."""
REST_SHARE = 0.03


class BenchFailed(Exception):
    """A subject answered wrongly, or a process of ours is gone: there are no figures."""


class Effort(msgspec.Struct, frozen=True):
    """How long is measured: rounds, and in each an uncounted and a counted time for each subject and workload."""

    rounds: int
    warm_s: float
    window_s: float


class Sample(msgspec.Struct, frozen=True):
    """What one round measured of one subject under one workload."""

    subject: str
    workload: str
    round: int
    mark: Mark


class Child(Process):
    """A process that ends with us: out of the terminal's reach, so that Ctrl-C is ours to handle."""

    def spawn(self) -> None:
        with self._log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command,
                cwd=REPOSITORY,
                env={**os.environ, **self.env},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def end(self) -> None:
        """Stop it, politely at first, and its children with it."""
        if self.child is not None and self.child.poll() is None:
            children = tree(self.child.pid)[1:]
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(within_s=STOP_S_MAX)
            # a master that had to be killed leaves its workers behind
            for pid in children if self.child.returncode == -signal.SIGKILL else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._log.parent, ignore_errors=True)


class Load:
    """The load generator's process."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.load"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    def measure(self, order: Order) -> Mark:
        """Have an order carried out. Raises BenchFailed."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(msgspec.json.encode(order) + b"\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise BenchFailed("the load generator is gone")
        return msgspec.json.decode(line, type=Mark)

    def end(self) -> None:
        self._child.kill()
        self._child.wait(STOP_S_MAX)


@dataclass(slots=True)
class Rig:
    """Everything put up: who listens where, and which processes are whose."""

    site: Site
    load: Load
    upstream_pids: list[int]
    ports: dict[str, int]
    roots: dict[str, int]
    left_out: dict[str, str]
    cores: list[int]

    def place(self, workload: Workload) -> None:
        """Subjects on the first core; upstream and load on the second, or with them."""
        for root in self.roots.values():
            pin(tree(root), self.cores[0])
        self.place_load(0 if workload.on_one_core else 1)

    def place_load(self, core: int) -> None:
        """Upstream and load on one core, if there are that many."""
        pin([*self.upstream_pids, self.load.pid], self.cores[core % len(self.cores)])

    @contextlib.contextmanager
    def beside(self, *starts: Start) -> Generator[list[Child]]:
        """More processes, started but not waited for."""
        with contextlib.ExitStack() as stack:
            yield [_spawned(stack, start) for start in starts]


@contextlib.contextmanager
def put_up(subjects: Sequence[Subject], *, has_local: bool = True) -> Generator[Rig]:
    """Start everything and wait until it is ready; stop it by its ids in the end, also when interrupted."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="understudy-bench-")))
        site = Site(free_port(), folder, has_local)
        upstream_command = [sys.executable, "-m", "tests.bench.upstream", "--port", str(site.upstream_port)]
        upstream = _spawned(stack, Start(upstream_command, site.upstream_port, site.upstream_port))
        upstream.wait_ready()
        load = Load()
        stack.callback(load.end)
        children: dict[str, Child] = {}
        ports: dict[str, int] = {}
        left_out: dict[str, str] = {}
        for subject in subjects:
            if subject.start is None:
                ports[subject.name] = site.upstream_port
                continue
            try:
                start = subject.start(site)
            except NotHere as reason:
                left_out[subject.name] = str(reason)
                continue
            children[subject.name] = _spawned(stack, start)
            ports[subject.name] = start.port
        for child in children.values():
            child.wait_ready()
        roots = {name: child.pid for name, child in children.items()}
        if has_local:
            _wait_for_rest(list(roots.values()))
        yield Rig(site, load, tree(upstream.pid), ports, roots, left_out, sorted(os.sched_getaffinity(0)))


def _wait_for_rest(roots: Sequence[int]) -> None:
    until = time.monotonic() + REST_S_MAX
    busy = list(roots)
    while busy and time.monotonic() < until:
        before = {root: cpu_s(tree(root)) for root in busy}
        time.sleep(REST_S)
        busy = [root for root in busy if cpu_s(tree(root)) - before[root] > REST_SHARE * REST_S]


def _spawned(stack: contextlib.ExitStack, start: Start) -> Child:
    child = Child(start.command, ready_port=start.ready_port, ready_path=start.ready_path, env=start.env)
    stack.callback(child.end)
    child.spawn()
    return child


def run(
    rig: Rig,
    subjects: Sequence[Subject],
    workloads: Sequence[Workload],
    effort: Effort,
    *,
    told: Callable[[str], None],
) -> list[Sample]:
    """All rounds. Within one, each workload goes round the subjects, each time from another one on."""
    samples: list[Sample] = []
    for number in range(effort.rounds):
        for workload in workloads:
            names = [one.name for one in subjects if one.name in rig.ports and one.takes(workload)]
            rig.place(workload)
            told(f"round {number + 1} of {effort.rounds}: {workload.name}")
            first = number % len(names) if names else 0
            samples += [
                Sample(name, workload.name, number, _mark(rig, name, workload, effort))
                for name in names[first:] + names[:first]
            ]
    return samples


def _mark(rig: Rig, name: str, workload: Workload, effort: Effort) -> Mark:
    # looked up anew: some of nginx's processes come and go
    pids = tree(rig.roots[name]) if name in rig.roots else []
    return measured(rig, name, workload, effort, port=rig.ports[name], pids=pids)


def measured(rig: Rig, name: str, workload: Workload, effort: Effort, *, port: int, pids: list[int]) -> Mark:
    """One measurement of whoever listens on `port`. Raises BenchFailed when it answers wrongly."""
    order = Order(port, workload.exchange.name, workload.connections, pids, effort.warm_s, effort.window_s)
    mark = rig.load.measure(order)
    if mark.wrong:
        raise BenchFailed(f"{name} answered {workload.name} wrongly: {mark.wrong}")
    return mark
