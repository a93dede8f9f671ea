"""Real processes for tests: the sidecar itself, the services behind it, and whether a program is there at all.

    with OpenAIService() as openai:
        upstreams = {"OPENAI_API_KEY": "k", "OPENAI_UPSTREAM_URL": openai.url}
        with Sidecar(None, state, env=upstreams) as sidecar:
            requests go to sidecar.url

Every process is ended by its own id, never by its name; what it wrote is in `logs()` and in the error when it dies
before it is ready.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

REPOSITORY = Path(__file__).parents[2]
READY_S_MAX = 300.0
STOP_S_MAX = 120.0
COMES_S_MAX = 120.0
"""Bounds on what never comes; on a busy machine much takes a multiple of its time."""
POLL_S = 0.02


PORTS, BLOCK = range(10_240, 32_240), 1_000
"""Below those that the kernel gives to whoever asks for any port: whoever is told of a port here binds it a second or
two later, and until then thousands of servers of other tests are begun beside it."""


class _Ports:
    """A block of ports that no other process of tests on this machine hands out, one after another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._block = self._taken()
        self._next = itertools.cycle(self._block)

    def _taken(self) -> range:
        folder = Path(tempfile.gettempdir()) / f"understudy-test-ports-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        for first in PORTS[::BLOCK]:
            # held until this process ends
            self._held = (folder / str(first)).open("w")
            with contextlib.suppress(OSError):
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return range(first, first + BLOCK)
        raise RuntimeError(f"{len(PORTS) // BLOCK} processes have all the ports")

    def next(self) -> int:
        with self._lock:
            for port in itertools.islice(self._next, BLOCK):
                with socket.socket() as probe, contextlib.suppress(OSError):
                    probe.bind(("127.0.0.1", port))
                    return port
        raise RuntimeError(f"no port is free from {self._block[0]} on")


@functools.cache
def _ports() -> _Ports:
    return _Ports()


def free_port() -> int:
    """A loopback port nobody listens on now; whoever asks next gets another one."""
    return _ports().next()


def needs(program: str) -> str:
    """The path of `program`. Without it the test is skipped, which in CI is a failure (see tests/conftest.py)."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs the program {program}, which is not installed here")
    return found


def is_ready(port: int, path: str) -> bool:
    """Whether a GET there is answered with 200."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request("GET", path)
        return client.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()


def eventually(holds: Callable[[], bool], *, within_s: float = COMES_S_MAX) -> None:
    """Wait until something in another process holds; fail when it does not come to be.

    What it looks at may not be there yet: a key, an item or a value that is missing is a no, and is told of at the end.
    """
    give_up = time.monotonic() + within_s
    while True:
        missing: Exception | None = None
        try:
            if holds():
                return
        except (LookupError, StopIteration, ValueError) as error:
            missing = error
        if time.monotonic() > give_up:
            raise AssertionError("it never came to be") from missing
        time.sleep(POLL_S)


class Process:
    """A child process that is ready once `ready_path` on `ready_port` answers 200; a context manager.

    It inherits the environment but for names beginning with one of `forget`, with `env` laid over it. `start` may be
    called again after `stop` or `kill`: the same command on the same ports.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready_port: int,
        ready_path: str = "/",
        env: Mapping[str, str] | None = None,
        forget: Sequence[str] = (),
        ready_s_max: float = READY_S_MAX,
    ) -> None:
        self.command = list(command)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(tuple(forget))}
        self.env = {**inherited, **(env or {})}
        self.ready_port = ready_port
        self.ready_path = ready_path
        self.ready_s_max = ready_s_max
        self.child: subprocess.Popen[bytes] | None = None
        self._log = Path(tempfile.mkdtemp(prefix="understudy-test-")) / "log"

    @property
    def pid(self) -> int:
        """The process's id, while there is one."""
        assert self.child is not None, "not started"
        return self.child.pid

    def logs(self) -> str:
        """Everything it has written, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it and wait until it is ready. Raises RuntimeError, with its log, if it dies or takes too long."""
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start it, without waiting."""
        with self._log.open("ab") as log:
            self.child = subprocess.Popen(self.command, cwd=REPOSITORY, env=self.env, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Wait until it is ready; see `start`."""
        assert self.child is not None, "not started"
        give_up = time.monotonic() + self.ready_s_max
        while not is_ready(self.ready_port, self.ready_path):
            if self.child.poll() is not None:
                raise RuntimeError(f"{self.command} ended with {self.child.returncode}:\n{self.logs()}")
            if time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"{self.command} was not ready within {self.ready_s_max} s:\n{self.logs()}")
            time.sleep(POLL_S)

    def stop(self, *, within_s: float = STOP_S_MAX) -> int:
        """SIGTERM, and its exit status; it is killed, and TimeoutExpired raised, if it takes longer."""
        assert self.child is not None, "not started"
        self.child.terminate()
        try:
            return self.child.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, and wait for the end: no handler runs, nothing is flushed."""
        assert self.child is not None, "not started"
        self.child.kill()
        self.child.wait(STOP_S_MAX)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGHUP, SIGSTOP or SIGCONT."""
        os.kill(self.pid, number)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None and self.child.poll() is None:
            # A stopped process would take its SIGTERM only when it is continued.
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            self.stop()
        shutil.rmtree(self._log.parent, ignore_errors=True)


class Sidecar(Process):
    """The real thing, as a user starts it: `understudy run` with a policy folder (None: those that ship) and a state.

    `models` is a folder of built models to share, as building one takes five seconds. No upstream is taken over from
    the environment of the tests: what the sidecar is to know stands in `env`.
    """

    def __init__(
        self,
        policies: Path | None,
        state: Path,
        *,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        models: Path | None = None,
        ready_s_max: float = READY_S_MAX,
    ) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.state = state
        if models is not None and not (state / "models").exists():
            state.mkdir(parents=True, exist_ok=True)
            (state / "models").symlink_to(models)
        named = ["--policies", str(policies)] if policies is not None else []
        super().__init__(
            [sys.executable, "-m", "understudy.proxy.cli", "run", *named, *arguments],
            ready_port=self.admin_port,
            ready_path="/readyz",
            ready_s_max=ready_s_max,
            forget=("OPENAI_", "QDRANT_", "UNDERSTUDY_"),
            env={
                "UNDERSTUDY_LISTEN": f"127.0.0.1:{self.port}",
                "UNDERSTUDY_ADMIN": f"127.0.0.1:{self.admin_port}",
                "UNDERSTUDY_STATE": str(state),
                **(env or {}),
            },
        )

    def wait_ready(self) -> None:
        """Wait until it is ready; of several workers, until each is: any of them may take a test's call."""
        super().wait_ready()
        if self.ready_path == "/readyz":
            eventually(self._all_are_ready, within_s=self.ready_s_max)

    def _all_are_ready(self) -> bool:
        assert self.child is not None
        if self.child.poll() is not None:
            raise RuntimeError(f"{self.command} ended with {self.child.returncode}:\n{self.logs()}")
        try:
            workers = json.loads(admin(self, "/status")[1]).get("workers", [])
        except (OSError, http.client.HTTPException):
            # who hands its port over to this one is just hanging up
            return False
        return all(worker["ready"] for worker in workers)

    @property
    def url(self) -> str:
        """What an application sets as its base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """Where /readyz, /metrics and /status are."""
        return f"http://127.0.0.1:{self.admin_port}"


def put_in_place(path: Path, text: str) -> None:
    """As an editor does it: a new file in the old one's place, so that nobody reads half of it, or nothing."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.rename(path)


def points_in(state: Path, name: str) -> int:
    """How many points a local collection has; 0 where there is none, or where it is just being replaced."""
    from understudy.indexes.faults import IndexFault
    from understudy.indexes.library import Library
    from understudy.proxy.knowledge import collections_folder

    try:
        return Library(collections_folder(state)).open(name).count
    except (IndexFault, OSError):
        return 0


def admin(sidecar: Sidecar, path: str) -> tuple[int, str]:
    """Status and text of what a sidecar's admin port says."""
    try:
        with urllib.request.urlopen(sidecar.admin_url + path, timeout=30) as told:
            return told.status, told.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Service(Process):
    """One of the kit's fake services as a process of its own, so that it can be killed."""

    module = ""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", self.module, "--port", str(self.port), *arguments]
        super().__init__(command, ready_port=self.port, ready_path="/healthz", env=env)

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"


def embeddings_route(space: str) -> str:
    """A route to OpenAIService with the local tier behind it, as it stands below `routes:` in a policy file."""
    return f"""\
  - name: embeddings
    match: {{path: /v1/embeddings}}
    dialect: openai-embeddings
    space: {space}
    tiers:
      - {{kind: upstream, name: openai, url: "${{OPENAI}}", ramp: {{enabled: false}}}}
      - {{kind: local}}
"""


class OpenAIService(Service):
    """`tests.kit.openai_service`; `--model-cache FOLDER` says where the built model is kept."""

    module = "tests.kit.openai_service"


class QdrantService(Service):
    """`tests.kit.qdrant_service`: what it stores is gone when it is killed."""

    module = "tests.kit.qdrant_service"


class EmbeddersService(Service):
    """`tests.kit.embedders_service`: Azure, Ollama, Cohere and TEI in one; `--model-cache` as OpenAIService has it."""

    module = "tests.kit.embedders_service"


class MilvusService(Service):
    """`tests.kit.milvus_service`: what it stores is gone when it is killed."""

    module = "tests.kit.milvus_service"


class PineconeService(Service):
    """`tests.kit.pinecone_service`: what it stores is gone when it is killed."""

    module = "tests.kit.pinecone_service"
