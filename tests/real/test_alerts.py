"""A real Alertmanager hears of an outage from the running sidecar, and of its end; a real Prometheus scrapes both."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.kit.processes import Process, Sidecar, eventually, free_port, needs
from understudy.policies.objectives import Counts, Course
from understudy.proxy.control.objectives import FILE
from understudy.proxy.dialects import KINDS
from understudy.proxy.reports.prometheus_rules import rules_text
from understudy.proxy.settings.reading import read_folder

pytestmark = [pytest.mark.real, pytest.mark.slow]

POLICIES = """
server:
  listen: "${{UNDERSTUDY_LISTEN}}"
  admin: "${{UNDERSTUDY_ADMIN}}"
  alerts:
    look_s: 0.2
    labels: {{cluster: west}}
    receivers:
      - {{name: alertmanager, kind: alertmanager, url: "http://127.0.0.1:{alertmanager}"}}
routes:
  - name: chat
    match: {{prefix: /}}
    dialect: plain
    # generous, so that a test needs few calls to miss it and to keep it again
    objectives: {{answered_share_min: 0.5, error_share_max: 1, late_share_max: 1, fallback_share_max: 1}}
    retry: {{attempts: 1}}
    breaker: {{enabled: false}}
    tiers:
      - {{kind: upstream, name: model, url: "http://127.0.0.1:{upstream}"}}
"""
ALERTMANAGER = """
route: {{receiver: hook, group_by: [alertname, route], group_wait: 0s, group_interval: 1s}}
receivers:
  - name: hook
    webhook_configs:
      - {{url: "http://127.0.0.1:{hook}/", send_resolved: true}}
"""
PROMETHEUS = """
global: {{scrape_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: understudy
    static_configs:
      - {{targets: ["127.0.0.1:{admin}"]}}
"""


class Server:
    """An HTTP server of our own on a port that was chosen before: it answers 200, and keeps what it was posted."""

    def __init__(self, port: int) -> None:
        self.heard: list[Any] = []
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.append(json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}"))
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def statuses(self) -> list[str]:
        """What was said, without saying it again."""
        return [status for status, _ in itertools.groupby(one["status"] for one in self.heard)]

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def told(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def post(sidecar: Sidecar, times: int) -> int:
    """Make so many calls; how many were answered with 200."""
    well = 0
    for _ in range(times):
        try:
            with urllib.request.urlopen(urllib.request.Request(sidecar.url + "/x", b"{}"), timeout=30) as answer:
                well += answer.status == 200
        except urllib.error.HTTPError:
            pass
    return well


def began_a_while_ago(state: Path) -> None:
    """Five calls went unanswered a minute ago: what counts as evidence would take a test that long."""
    course = Course()
    now = time.time()
    course.times, course.points = [now - 120, now - 60], [Counts(), Counts(5, 5, 5, 5, 5)]
    course.counts = Counts(5, 5, 5, 5, 5)
    state.mkdir(parents=True, exist_ok=True)
    (state / FILE).write_text(json.dumps({"courses": {"chat": course.kept()}, "alerts": []}))


def prometheus_says(port: int, query: str) -> Callable[[], bool]:
    def says() -> bool:
        asked = urllib.parse.urlencode({"query": query})
        return bool(told(f"http://127.0.0.1:{port}/api/v1/query?{asked}")["data"]["result"])

    return says


def alertmanager_in(folder: Path, ports: dict[str, int]) -> Process:
    (folder / "alertmanager.yml").write_text(ALERTMANAGER.format(**ports))
    return Process(
        [
            needs("prometheus-alertmanager"),
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'am'}",
            f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
            "--cluster.listen-address=",
        ],
        ready_port=ports["alertmanager"],
        ready_path="/-/ready",
    )


def prometheus_in(folder: Path, ports: dict[str, int]) -> Process:
    return Process(
        [
            needs("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
        ],
        ready_port=ports["prometheus"],
        ready_path="/-/ready",
    )


def test_alertmanager_groups_and_resolves_what_the_sidecar_tells_it_and_prometheus_scrapes_it(tmp_path: Path):
    ports = {name: free_port() for name in ("alertmanager", "upstream", "hook", "prometheus")}
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "chat.yaml").write_text(POLICIES.format(**ports))
    began_a_while_ago(tmp_path / "state")
    alertmanager = alertmanager_in(tmp_path, ports)
    sidecar = Sidecar(policies, tmp_path / "state")
    settings = read_folder(policies, sidecar.env, KINDS).settings
    assert settings is not None
    (tmp_path / "rules.yml").write_text(rules_text(settings))
    (tmp_path / "prometheus.yml").write_text(PROMETHEUS.format(admin=sidecar.admin_port))
    prometheus = prometheus_in(tmp_path, ports)
    with ExitStack() as stack:
        hook = stack.enter_context(Server(ports["hook"]))
        for process in (alertmanager, sidecar, prometheus):
            stack.enter_context(process)
        alerts = f"http://127.0.0.1:{ports['alertmanager']}/api/v2/alerts"
        assert post(sidecar, 12) == 0
        eventually(lambda: len(told(alerts)) == 1)
        [alert] = told(alerts)
        assert alert["labels"] == {
            "alertname": "UnderstudyUnanswered",
            "route": "chat",
            "severity": "critical",
            "cluster": "west",
        }
        # told while the calls were being made: ten at least, those from before among them
        assert 10 <= int(alert["annotations"]["affected"]) <= 17
        eventually(lambda: hook.statuses == ["firing"])
        assert hook.heard[0]["groupLabels"] == {"alertname": "UnderstudyUnanswered", "route": "chat"}
        [shown] = told(sidecar.admin_url + "/status")["alerts"]
        assert (shown["alertname"], shown["tier"]) == ("UnderstudyUnanswered", "none")
        eventually(
            prometheus_says(ports["prometheus"], 'understudy_alerts_firing{route="chat",severity="critical"} == 1')
        )
        rules = told(f"http://127.0.0.1:{ports['prometheus']}/api/v1/rules")["data"]["groups"]
        assert {group["name"] for group in rules} == {"understudy-capacity", "understudy-chat"}
        stack.enter_context(Server(ports["upstream"]))
        assert post(sidecar, 60) == 60
        eventually(lambda: hook.statuses == ["firing", "resolved"])
        eventually(lambda: told(sidecar.admin_url + "/status")["alerts"] == [])


def test_promtool_takes_the_rules_of_the_policies_that_ship(tmp_path: Path):
    settings = read_folder(Path(__file__).parents[2] / "policies", {}, KINDS).settings
    assert settings is not None
    (tmp_path / "rules.yml").write_text(rules_text(settings))
    checked = subprocess.run(
        [needs("promtool"), "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "SUCCESS" in checked.stdout
