"""One outage from its first second to its last, as a timeline of what the running sidecar and its receivers say.

    python -m tests.real.story [--restart-s 6]

    kill -> tier change -> alert -> recovery -> return -> resolved

Two databases, a pager and a container runtime that recovery's hook asks to restart the first database are played; the
sidecar is the real one, in a process of its own, and callers ask it all the while. It takes half a minute.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream, Heard, Hosted, Wire, in_thread, is_check
from tests.kit.processes import COMES_S_MAX, Sidecar, eventually
from understudy.policies.objectives import Counts, Course
from understudy.proxy.control.objectives import FILE

POLICIES = """
server:
  listen: "${{UNDERSTUDY_LISTEN}}"
  admin: "${{UNDERSTUDY_ADMIN}}"
  access_log: false
  alerts:
    look_s: 0.2
    receivers:
      - {{name: pager, kind: webhook, url: "{pager}/alerts"}}
  recovery:
    hooks:
      - {{name: restart, url: "{runtime}/restart", settle_s: 60}}
      - {{name: page, url: "{pager}/page"}}
    ladders: {{vector_database: [reset_pool, resolve_again, restart]}}
    escalate: [page]
routes:
  - name: docs
    match: {{prefix: /collections}}
    dialect: qdrant
    cache: {{enabled: false}}
    ramp: {{over_s: 3}}
    # what is evidence is what has been missed in two different minutes: a story has not so many
    objectives: {{answered_share_min: 0.5, error_share_max: 1, late_share_max: 1, fallback_share_max: 0.3}}
    tiers:
      - {{kind: upstream, name: first, url: "{first}"}}
      - {{kind: upstream, name: second, url: "{second}"}}
"""
POINTS: dict[str, Any] = {"result": {"points": []}, "status": "ok", "time": 0.0}
PAUSE_S = 0.02
CHAPTERS = ("kill", "tier change", "alert", "recovery", "return", "resolved")
WITHIN_S = COMES_S_MAX
FEW = 10
"""Calls that the second database answers before recovery has begun: too few for an alert, which tells of it."""


@dataclass
class Line:
    """One thing that was said: when, by whom, and what."""

    at: float
    who: str
    what: str


@dataclass
class Story:
    """What happened. `tiers` are the answers by tier, `lost` the calls without one; `at` is when each chapter began."""

    lines: list[Line] = field(default_factory=list[Line])
    tiers: dict[str, int] = field(default_factory=dict[str, int])
    lost: int = 0
    pages: int = 0
    restarts: int = 0
    recovering: str = ""
    """What the alert said that recovery was doing."""
    at: dict[str, float] = field(default_factory=dict[str, float])
    is_alerted: threading.Event = field(default_factory=threading.Event)

    def begins(self, chapter: str, what: str) -> None:
        self.at[chapter] = time.time()
        self.lines.append(Line(self.at[chapter], chapter.upper(), what))


class Callers:
    """Somebody asks, one question after the other."""

    def __init__(self, port: int, story: Story) -> None:
        self._port = port
        self._story = story
        self._over = threading.Event()
        self._goes_on = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.last = ""

    def __enter__(self) -> Callers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._goes_on.set()
        self._thread.join()

    def go_on(self) -> None:
        """Ask on, after a few calls that the second database has answered."""
        self._goes_on.set()

    def _ask(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"content-type": "application/json"}
        while not self._over.wait(PAUSE_S):
            try:
                client.request("POST", "/collections/docs/points/query", b'{"query": [1, 2], "limit": 3}', headers)
                answered = client.getresponse()
                answered.read()
            except (OSError, http.client.HTTPException):
                self._story.lost += 1
                client.close()
                continue
            self.last = answered.headers.get("x-understudy-tier", "") if answered.status == 200 else ""
            if self.last:
                self._story.tiers[self.last] = self._story.tiers.get(self.last, 0) + 1
            else:
                self._story.lost += 1
            if self._story.tiers.get("secondary", 0) >= FEW:
                self._goes_on.wait()
        client.close()


@contextmanager
def database() -> Generator[Hosted]:
    with in_thread(answer(body=POINTS)) as up:
        up.respond = lambda heard: answer(body=b"all shards are ready") if is_check(heard) else answer(body=POINTS)
        yield up


def told(story: Story, restart_s: float = 6.0) -> Story:
    """Live through it. Raises AssertionError when a chapter does not come."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        first, second = stack.enter_context(database()), stack.enter_context(database())
        pager, runtime = stack.enter_context(in_thread(answer(200))), stack.enter_context(in_thread())
        runtime.always(_restarting(story, first, restart_s))
        pager.always(_hearing(story))
        (folder / "policies").mkdir()
        urls = {"first": first.url, "second": second.url, "pager": pager.url, "runtime": runtime.url}
        (folder / "policies" / "story.yaml").write_text(POLICIES.format(**urls))
        _some_were_missed_before(folder / "state")
        # nobody is waited for once something has failed
        stack.callback(story.is_alerted.set)
        sidecar = stack.enter_context(Sidecar(folder / "policies", folder / "state"))
        callers = stack.enter_context(Callers(sidecar.port, story))
        component = f"vector_database:{first.host_port}"
        eventually(lambda: callers.last == "primary" and story.tiers.get("primary", 0) > 100, within_s=WITHIN_S)

        first.do(first.refuse())
        story.begins("kill", f"the database at {first.host_port} is killed")
        eventually(lambda: _service_tier(sidecar, "docs") != "primary", within_s=WITHIN_S)
        story.begins("tier change", f"the route docs is on its {_service_tier(sidecar, 'docs')} tier")
        eventually(lambda: _is_recovering(sidecar, component), within_s=WITHIN_S)
        callers.go_on()
        eventually(lambda: bool(_status(sidecar)["alerts"]), within_s=WITHIN_S)
        story.begins("alert", ", ".join(alert["alertname"] for alert in _status(sidecar)["alerts"]))
        story.is_alerted.set()
        eventually(lambda: _held(sidecar, component), within_s=WITHIN_S)
        story.begins("recovery", next(one["doing"] for one in _status(sidecar)["recovery"]))
        eventually(lambda: callers.last == "primary" and _service_tier(sidecar, "docs") == "primary", within_s=WITHIN_S)
        story.begins("return", "the first tier answers again")
        eventually(lambda: not _status(sidecar)["alerts"], within_s=WITHIN_S)
        story.begins("resolved", "nothing fires any more")
        eventually(lambda: any("resolved" in line.what for line in story.lines if line.who == "pager"))
        story.lines += _of_log(sidecar.logs())
    story.lines.sort(key=lambda line: line.at)
    return story


# --- those who are played ------------------------------------------------------------------------------------------


def _restarting(story: Story, database: Hosted, restart_s: float) -> Any:
    """A container runtime: what it restarts is there some seconds later."""

    async def restarting(wire: Wire, heard: Heard) -> None:
        asked = heard.json()
        story.restarts += 1
        story.lines.append(Line(time.time(), "runtime", f"asked to restart {asked['component']} ({asked['kind']})"))
        threading.Timer(restart_s, _come_back, (story, database)).start()
        await answer(202)(wire, heard)

    return restarting


def _come_back(story: Story, database: Hosted) -> None:
    # a machine on which alerts are late has slow databases, too
    story.is_alerted.wait(WITHIN_S)
    story.lines.append(Line(time.time(), "runtime", "the database is up"))
    database.do(FakeUpstream.come_back(database))


def _hearing(story: Story) -> Any:
    """A pager: alerts begin and end, and a ladder that is spent pages."""

    async def hearing(wire: Wire, heard: Heard) -> None:
        posted = heard.json()
        if heard.target == b"/page":
            story.pages += 1
            story.lines.append(Line(time.time(), "pager", f"PAGED: {posted['component']} is beyond recovery"))
        for alert in posted.get("alerts", ()):
            words = f"{alert['labels']['alertname']} {alert['status']}: {alert['annotations']['summary']}"
            doing = alert["annotations"].get("recovery", "")
            if doing and alert["status"] == "firing":
                story.recovering = doing
                words += f"; recovery: {doing}"
            story.lines.append(Line(time.time(), "pager", words))
        await answer(200)(wire, heard)

    return hearing


def _some_were_missed_before(state: Path) -> None:
    """Five calls went to the fallback a minute ago: what counts as evidence would take a story that long."""
    course = Course()
    now = time.time()
    course.times, course.points = [now - 120, now - 60], [Counts(), Counts(5, 0, 0, 0, 5)]
    course.counts = Counts(5, 0, 0, 0, 5)
    state.mkdir(parents=True, exist_ok=True)
    (state / FILE).write_text(json.dumps({"courses": {"docs": course.kept()}, "alerts": []}))


# --- what the sidecar says -----------------------------------------------------------------------------------------


def _status(sidecar: Sidecar) -> dict[str, Any]:
    client = http.client.HTTPConnection("127.0.0.1", sidecar.admin_port, timeout=60)
    try:
        client.request("GET", "/status")
        told: dict[str, Any] = json.loads(client.getresponse().read())
        return told
    finally:
        client.close()


def _service_tier(sidecar: Sidecar, route: str) -> str:
    (found,) = [one for one in _status(sidecar)["routes"] if one["name"] == route]
    return str(found["service_tier"]["tier"])


def _is_recovering(sidecar: Sidecar, component: str) -> bool:
    return any(one["component"] == component for one in _status(sidecar).get("recovery", []))


def _held(sidecar: Sidecar, component: str) -> bool:
    ladders = _status(sidecar).get("recovery", [])
    return any(one["component"] == component and one["state"] == "held" for one in ladders)


def _of_log(log: str) -> list[Line]:
    """What the sidecar's own log says of health, tiers and recovery."""
    lines: list[Line] = []
    for line in log.splitlines():
        words = line.split(" ", 4)
        if len(words) == 5 and words[3].rstrip(":") in ("understudy.health", "understudy.recovery"):
            at = datetime.strptime(f"{words[0]} {words[1]}", "%Y-%m-%d %H:%M:%S,%f").timestamp()
            lines.append(Line(at, "sidecar", words[4]))
    return lines


def timeline(story: Story) -> str:
    """All of it, in seconds since the kill."""
    began = story.at["kill"]
    lines = [f"{line.at - began:+8.2f} s  {line.who:<12} {line.what}" for line in story.lines]
    tiers = ", ".join(f"{count} by {tier}" for tier, count in sorted(story.tiers.items()))
    lines.append(f"answers: {tiers}; lost: {story.lost}; restarts: {story.restarts}; pages: {story.pages}")
    return "\n".join(lines)


def main() -> None:
    """Tell it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restart-s", type=float, default=6.0, help="how long the database takes to come up")
    story = told(Story(), parser.parse_args().restart_s)
    print(timeline(story))


if __name__ == "__main__":
    main()
