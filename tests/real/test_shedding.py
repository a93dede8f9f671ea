"""More work than one core can do, until the event loop is really late: who is shed first, who never is, and its end."""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import in_thread
from tests.kit.processes import COMES_S_MAX, Sidecar, eventually

pytestmark = pytest.mark.real

LATE_S = 0.05
CROWD = 48
"""Callers of low priority, each with one call in hand: two dozen milliseconds of reading a body for each of them."""
WAIT_S = COMES_S_MAX
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}
SMALL = json.dumps({"model": "m", "messages": [{"role": "user", "content": "?"}]}).encode()
LARGE = json.dumps({"model": "m", "messages": [{"a": 1}] * 20_000}, separators=(",", ":")).encode()
POLICY = """
server:
  listen: ${{UNDERSTUDY_LISTEN}}
  admin: ${{UNDERSTUDY_ADMIN}}
  access_log: false
  shed: {{lag_s: {late_s}, interval_s: 0.5}}
routes:
"""
ROUTE = """
  - name: {name}
    match: {{prefix: /{name}, strip: true}}
    dialect: openai-chat
    shed: {{priority: {name}}}
    # where all share answers a body is read to its last key, which is what takes the time
    cache: {{enabled: {reads}, scope: shared}}
    limit: {{concurrent: 256}}
    tiers: [{{kind: upstream, name: {name}, url: "{url}"}}]
"""


class Crowd:
    """Callers that ask again and again for one route, and the statuses they got."""

    def __init__(self, sidecar: Sidecar, route: str, body: bytes, count: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        self._stop = threading.Event()
        self._at = (f"/{route}/v1/chat/completions", body, sidecar.port)
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def _ask(self) -> None:
        path, body, port = self._at
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        while not self._stop.is_set():
            try:
                connection.request("POST", path, body, {"content-type": "application/json"})
                told = connection.getresponse()
                told.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                connection.close()
                continue
            self.statuses[told.status] += 1
            if told.status == 503:
                # as one that has been told when to come back
                self._stop.wait(0.05)
        connection.close()


@contextmanager
def crowds(sidecar: Sidecar, sizes: dict[str, tuple[bytes, int]]) -> Iterator[dict[str, Crowd]]:
    made = {route: Crowd(sidecar, route, body, count) for route, (body, count) in sizes.items()}
    try:
        for crowd in made.values():
            crowd.start()
        yield made
    finally:
        for crowd in made.values():
            crowd.stop()


def metric(sidecar: Sidecar, name: str) -> float:
    # the admin port is on the same loop, and as late
    with urllib.request.urlopen(sidecar.admin_url + "/metrics", timeout=WAIT_S) as told:
        text = told.read().decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)} ([0-9.e+-]+)$", text, re.MULTILINE))


def shed(sidecar: Sidecar, priority: str) -> float:
    with urllib.request.urlopen(sidecar.admin_url + "/metrics", timeout=WAIT_S) as told:
        text = told.read().decode()
    found = re.findall(rf'^understudy_shed_total{{[^}}]*priority="{priority}"[^}}]*}} ([0-9.e+]+)$', text, re.MULTILINE)
    return sum(map(float, found))


def status_of(sidecar: Sidecar, route: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=WAIT_S)
    connection.request("POST", f"/{route}/v1/chat/completions", SMALL, {"content-type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def test_while_the_loop_is_really_late_low_calls_are_shed_critical_ones_are_answered_and_it_ends(
    folder: Path, tmp_path: Path
):
    names = ("low", "normal", "critical")
    with in_thread(answer(body=ANSWER)) as upstream:
        routes = [ROUTE.format(name=name, url=upstream.url, reads=str(name == "low").lower()) for name in names]
        (folder / "routes.yaml").write_text(POLICY.format(late_s=LATE_S) + "".join(routes))
        with Sidecar(folder, tmp_path / "state") as sidecar:
            assert [status_of(sidecar, name) for name in names] == [200, 200, 200]
            # a machine that is as busy as that has a moment of its own
            eventually(lambda: metric(sidecar, "understudy_shed_pressure") == 0)
            sizes = {"low": (LARGE, CROWD), "normal": (SMALL, 2), "critical": (SMALL, 2)}
            with crowds(sidecar, sizes) as asking:
                low, normal, critical = (asking[name] for name in names)
                eventually(lambda: low.statuses[503] >= CROWD, within_s=WAIT_S)
                lag_s = metric(sidecar, "understudy_loop_lag_seconds")
                so_far = critical.statuses[200]
                eventually(lambda: critical.statuses[200] >= so_far + 20, within_s=WAIT_S)
            told = {name: dict(crowd.statuses) for name, crowd in asking.items()}
            print(f"shed: {told}, the loop {lag_s:.2f} s late when looked at")
            assert [low.lost, normal.lost, critical.lost] == [[], [], []]
            assert set(critical.statuses) == {200}, told
            # what is shed of the normal ones comes after all of the low ones, and is never all of them
            assert normal.statuses[200] > 0, told
            assert normal.statuses[503] / normal.statuses.total() <= low.statuses[503] / low.statuses.total(), told
            assert (shed(sidecar, "low"), shed(sidecar, "critical")) == (low.statuses[503], 0)
            # it ends by itself once there is less to do
            eventually(lambda: metric(sidecar, "understudy_shed_pressure") == 0, within_s=WAIT_S)
            assert [status_of(sidecar, name) for name in names] == [200, 200, 200]
