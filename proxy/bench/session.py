"""One `understudy bench`: a call for each route of the policies, and the load on whoever answers it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from understudy.proxy.bench import exchanges
from understudy.proxy.bench.exchanges import Exchange
from understudy.proxy.bench.load import Aim, Mark, Told, ask, measure
from understudy.proxy.bench.processes import can_be_watched, listening, rss_bytes, tree
from understudy.proxy.bench.upstream import Answers, listen
from understudy.proxy.settings.addresses import addresses, parse_address
from understudy.proxy.settings.settings import Route, Settings, UpstreamTier

READY_S_MAX = 30.0
READY_POLL_S = 0.02
STOP_S_MAX = 5.0
ASK_S_MAX = 60.0
WARM_SHARE = 0.2
MIB = 1024 * 1024
LOG_CHARS_MAX = 2000
OURSELVES = frozenset({"local-embed", "local-index", "extractive"})
"""What `x-understudy-source` says where nobody behind us was asked."""


class CannotMeasure(Exception):
    """Why there are no figures, in words for the terminal."""


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one route, or why it was not (`left_out`).

    `memory_bytes` is that of all the sidecar's processes; None where they can't be looked at.
    """

    name: str
    about: str
    mark: Mark
    is_watched: bool = False
    memory_bytes: int | None = None
    left_out: str = ""

    def as_data(self) -> dict[str, Any]:
        """The row as JSON values."""
        mark = self.mark
        data: dict[str, Any] = {"route": self.name, "about": self.about}
        data |= {name: why for name, why in (("wrong", mark.wrong), ("left_out", self.left_out)) if why}
        if len(data) > 2:
            return data
        return data | {
            "calls": mark.units,
            "calls_per_s": mark.units / mark.wall_s,
            "p50_ms": mark.p50_s * 1e3,
            "p99_ms": mark.p99_s * 1e3,
            "cpu_us": mark.cpu_s / mark.units * 1e6 if self.is_watched else None,
            "memory_mib": None if self.memory_bytes is None else self.memory_bytes / MIB,
        }


# --- what is asked -------------------------------------------------------------------------------------------------

_MADE: dict[str, tuple[str, Callable[[str, str, str], Exchange]]] = {
    "openai-chat": ("/v1/chat/completions", exchanges.chat),
    "openai-embeddings": ("/v1/embeddings", exchanges.embedding),
    "qdrant": ("/collections/docs/points/query", exchanges.search),
}
_PLAIN = ("/bench", exchanges.plain)


def exchange_of(route: Route) -> Exchange:
    """A call that `route` claims, in its dialect."""
    claim = route.claims[0]
    own, make = _MADE.get(route.dialect, _PLAIN)
    prefix = (claim.prefix or "").rstrip("/")
    # a prefix that stays may hold the beginning of the dialect's own path
    shared = 0 if claim.strip else max((n for n in range(len(own)) if prefix.endswith(own[:n])), default=0)
    return make(route.name, claim.path or prefix + own[shared:], claim.host or "")


def _about(exchange: Exchange) -> str:
    return f"POST {exchange.path}: {len(exchange.asked):,} B up, {len(exchange.body):,} B down"


# --- a sidecar of ours ---------------------------------------------------------------------------------------------


def beside_our_upstream(settings: Settings, port: int, upstream_port: int, admin_port: int) -> dict[str, Any]:
    """The same policies as a policy file's values: other ports, and our upstream in every service's place.

    Local tiers are left out, for nobody fails; so are routes that have nothing else, and headers' secrets.
    """
    data: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=_untold)
    server: dict[str, Any] = {**data["server"], "listen": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin_port}"}
    # certificates and the like belong to the real ports
    server.pop("tls", None)
    routes: list[dict[str, Any]] = []
    for route, values in zip(settings.routes, data["routes"], strict=True):
        tiers: list[dict[str, Any]] = []
        for tier, tier_values in zip(route.tiers, values["tiers"], strict=True):
            if isinstance(tier, UpstreamTier):
                moved = _redirected(tier_values, f"http://127.0.0.1:{upstream_port}")
                # what it would need there it doesn't need here
                moved = {name: one for name, one in moved.items() if name not in ("when_env", "tls")}
                tiers.append(_in_one_place(moved))
        if tiers:
            matches = [{name: one for name, one in match.items() if name != "port"} for match in _matches(values)]
            routes.append({**values, "match": matches, "tiers": tiers})
    return {"server": server, "routes": routes}


def _in_one_place(tier: dict[str, Any]) -> dict[str, Any]:
    """A tier with its url, or with its endpoints: all of them at one place now, and told apart by a header alone."""
    if not tier["endpoints"]:
        return {name: one for name, one in tier.items() if name != "endpoints"}
    endpoints = [
        {
            **{name: one for name, one in endpoint.items() if name != "socket"},
            "name": endpoint["name"] or f"endpoint-{n}",
            "headers": {**endpoint["headers"], "x-bench-endpoint": str(n)},
        }
        for n, endpoint in enumerate(tier["endpoints"])
    ]
    return {name: one for name, one in tier.items() if name not in ("url", "socket")} | {"endpoints": endpoints}


def _untold(_secret: object) -> str:
    return "bench"


def _matches(route: dict[str, Any]) -> list[dict[str, Any]]:
    match: list[dict[str, Any]] | dict[str, Any] = route["match"]
    several = match if isinstance(match, list) else [match]
    return [{name: value for name, value in one.items() if value is not None} for one in several]


def _redirected(value: object, url: str) -> Any:
    """`value` with every address in it being `url`, wherever it stands."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value)
        return {name: url if name == "url" else _redirected(one, url) for name, one in pairs.items()}
    if isinstance(value, list):
        several = cast("list[Any]", value)
        return [_redirected(one, url) for one in several]
    is_address = isinstance(value, str) and value.startswith(("http://", "https://", "unix:"))
    return url if is_address else value


@contextlib.contextmanager
def _sidecar(policies: dict[str, Any], admin_port: int) -> Generator[int]:
    """Its process's id, once it is ready; it is stopped by that in the end."""
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as name:
        folder = Path(name)
        (folder / "policies").mkdir()
        # JSON is YAML, and needs no quoting rules of its own
        (folder / "policies" / "bench.yaml").write_text(json.dumps(policies), encoding="utf-8")
        command = [sys.executable, "-m", "understudy.proxy.cli", "run", "--policies", str(folder / "policies")]
        command += ["--state", str(folder / "state")]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(  # noqa: S603 (ourselves, with a folder we wrote)
                command, env=environ, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        try:
            _wait_ready(child, admin_port, folder / "log")
            yield child.pid
        finally:
            _stop(child)


def _wait_ready(child: subprocess.Popen[bytes], admin_port: int, log: Path) -> None:
    give_up = time.monotonic() + READY_S_MAX
    while not _is_ready(admin_port):
        is_gone = child.poll() is not None
        if is_gone or time.monotonic() > give_up:
            told = log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARS_MAX:].strip()
            raise CannotMeasure(f"a sidecar with these policies {'ended' if is_gone else 'is not ready'}:\n{told}")
        time.sleep(READY_POLL_S)


def _is_ready(admin_port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=READY_S_MAX)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(child: subprocess.Popen[bytes]) -> None:
    children = tree(child.pid)[1:] if can_be_watched() else []
    child.terminate()
    try:
        child.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        # a parent that had to be killed leaves its workers behind
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def _upstream(asked: Sequence[Exchange]) -> AsyncGenerator[int]:
    server = await listen(Answers(asked))
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def measure_ours(settings: Settings, effort: tuple[float, int]) -> list[Row]:
    """Start a sidecar with these policies, load each of its routes, and stop it. Raises CannotMeasure."""
    routes = [one for one in settings.routes if any(isinstance(tier, UpstreamTier) for tier in one.tiers)]
    if not routes:
        raise CannotMeasure("no route of these policies has an upstream tier")
    asked = [exchange_of(route) for route in routes]
    port, admin_port = _free_ports()
    async with _upstream(asked) as upstream_port:
        policies = beside_our_upstream(settings, port, upstream_port, admin_port)
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            # in a thread, for our upstream lives on this loop and must answer meanwhile
            pid = await loop.run_in_executor(None, stack.enter_context, _sidecar(policies, admin_port))
            return await _measured(asked, "127.0.0.1", port, [pid], effort, is_exact=True)


def _free_ports() -> tuple[int, int]:
    import socket

    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


# --- a sidecar that runs -------------------------------------------------------------------------------------------


async def measure_running(
    settings: Settings, host: str, port: int, effort: tuple[float, int], *, through: bool
) -> list[Row]:
    """Load the sidecar there, one route after another. Raises CannotMeasure.

    First each is asked once: where the answer comes from a service behind it, that service would get the load too, and
    only the user can say whether it may (`through`).
    """
    ports = [parse_address(address)[1] for address in addresses(settings)]
    here = [one for one in settings.routes if one.claims[0].port in (None, port) or port not in ports]
    loop = asyncio.get_running_loop()
    asked: list[Exchange] = []
    left_out: list[Row] = []
    for one in map(exchange_of, here):
        told = await loop.run_in_executor(None, _asked_once, one, host, port)
        source = told.headers.get("x-understudy-source", "nobody")
        if told.status >= 300:
            left_out.append(Row(one.name, _about(one), Mark(), left_out=f"POST {one.path} is answered {told.status}"))
        elif source not in OURSELVES and not through:
            raise CannotMeasure(
                f"{one.name} is answered by {source}, which a load test would reach as well; "
                "add --through if that may be, or leave --url out to have a service of our own behind"
            )
        else:
            asked.append(one)
    pids = listening(port) if can_be_watched() else []
    return await _measured(asked, host, port, pids, effort, is_exact=False) + left_out


def _asked_once(exchange: Exchange, host: str, port: int) -> Told:
    try:
        told = ask(host, port, exchange, patience_s=ASK_S_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise CannotMeasure(f"no sidecar answers on {host}:{port}: {error}") from None
    # a refusal at the door, such as of a route it does not have, says nothing of tiers
    if told.status < 300 and "x-understudy-tier" not in told.headers:
        raise CannotMeasure(f"what answers on {host}:{port} is no sidecar")
    return told


async def _measured(
    asked: Sequence[Exchange], host: str, port: int, pids: Sequence[int], effort: tuple[float, int], *, is_exact: bool
) -> list[Row]:
    seconds, connections = effort
    share = seconds / max(1, len(asked))
    warm_s, window_s = share * WARM_SHARE, share * (1 - WARM_SHARE)
    rows: list[Row] = []
    for one in asked:
        watched = [each for pid in pids for each in tree(pid)] if can_be_watched() else []
        mark = await measure(Aim(port, one, connections, watched, warm_s, window_s, is_exact=is_exact, host=host))
        memory = sum(rss_bytes(pid) for pid in watched) if watched and not mark.wrong else None
        rows.append(Row(one.name, _about(one), mark, bool(watched), memory))
    return rows
