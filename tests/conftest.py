"""How this suite runs: coroutines on a virtual clock, and in CI a skip is a failure.

- `async def test_…` runs on a `VirtualClockLoop`; `@pytest.mark.virtual_clock(io_grace_s=0)` hands on arguments.
- `@pytest.mark.real_clock` runs it on uvloop and real time, `@pytest.mark.real_clock("asyncio")` on the plain loop;
  `within_s=` (600 unless told) is when it counts as hung.
- A test that leaves tasks running, or whose loop met an error nobody handled, fails.
- Hypothesis has neither a clock nor dice: it tries the same examples everywhere, in CI and at home, and takes its time.
  `--hypothesis-profile default` looks further.
- `slow` tests run in CI, or when named with `-m slow`; `gpu` tests run where there is an NVIDIA device, and
  `beside("data/set")` tests where that lies beside the checkout. Elsewhere they are deselected, which is no skip.
- `PYTHONPATH=build/compiled` has the same tests try the package as it is built: what every call runs through is
  compiled there, and `interpreted` tests, which look inside of that, are left out.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tests.kit import virtual_clock
from understudy.proxy.version import how_it_runs

REAL_TEST_S_MAX = 600.0
"""Longer than anything a test waits for itself, on the slowest of machines."""

# Its own profile gives each example 200 ms of real time, which a busy machine may take from it.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


def in_ci() -> bool:
    """Whether every skip is to be a failure."""
    return os.environ.get("CI", "").lower() in {"true", "1"}


# --- coroutines ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests on the loop their markers ask for."""
    test = pyfuncitem.obj
    hypothesis = getattr(test, "hypothesis", None)
    if hypothesis is not None and inspect.iscoroutinefunction(hypothesis.inner_test):
        # Each example gets a loop of its own; Hypothesis then calls what it takes for an ordinary function.
        hypothesis.inner_test = _run_to_end(pyfuncitem, hypothesis.inner_test)
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    wanted = inspect.signature(test).parameters
    _run_to_end(pyfuncitem, test)(**{name: pyfuncitem.funcargs[name] for name in wanted})
    return True


def _run_to_end(item: pytest.Function, test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def ran(*args: Any, **kwargs: Any) -> None:
        real = item.get_closest_marker("real_clock")
        if real is None:
            virtual = item.get_closest_marker("virtual_clock")
            virtual_clock.run(test(*args, **kwargs), **(virtual.kwargs if virtual else {}))
            return
        make_loop = virtual_clock.PlainLoop if "asyncio" in real.args else uvloop.new_event_loop
        within_s = real.kwargs.get("within_s", REAL_TEST_S_MAX)
        virtual_clock.run_on(make_loop, _within(test(*args, **kwargs), within_s))

    return ran


async def _within(story: Coroutine[Any, Any, None], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        await story


# --- which tests run -----------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, as deselected, what is not meant for this machine: that is no skip, nothing is missing."""
    expression = config.getoption("markexpr", default="") or ""
    left_out: set[str] = set()
    if not in_ci() and "slow" not in expression:
        left_out.add("slow")
    if not Path("/dev/nvidiactl").exists():
        left_out.add("gpu")
    else:
        left_out.add("no_gpu")
    if how_it_runs() == "compiled":
        left_out.add("interpreted")
    # A file or test named on the command line is wanted, however slow.
    if any("::" in argument for argument in config.args):
        left_out.discard("slow")
    deselected = [
        item for item in items if any(item.get_closest_marker(name) for name in left_out) or not _has_beside(item)
    ]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        gone = set(deselected)
        items[:] = [item for item in items if item not in gone]


def _has_beside(item: pytest.Item) -> bool:
    """Whether everything its `beside` markers name is there, looked for from the checkout's parent folder."""
    wanted = [str(path) for marker in item.iter_markers("beside") for path in marker.args]
    return all((item.config.rootpath.parent / path).exists() for path in wanted)


# --- in CI a skip is a failure -------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test skipped in CI has failed: its subject went untested."""
    report = yield
    if in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        report.longrepr = f"skipped in CI, where nothing may be: {_why_skipped(report.longrepr)}"
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module, skipped as it was imported."""
    report = yield
    if in_ci() and report.skipped:
        report.longrepr = f"skipped in CI, where nothing may be: {_why_skipped(report.longrepr)}"
        report.outcome = "failed"
    return report


def _why_skipped(told: object) -> str:
    return str(told[2]) if isinstance(told, tuple) else str(told)


# --- what tests ask for --------------------------------------------------------------------------------------------


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own zone is not UTC."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
