"""Commands that ask a running sidecar: what they make of its answers, its refusals, and of who is no sidecar."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from understudy.proxy import cli
from understudy.proxy.reports.status_text import status_text

TIER: dict[str, Any] = {"tier": "primary", "reason": "", "since_s": 9.0, "pinned": ""}
ALERTS = [
    {"alertname": "UnderstudyFallback", "severity": "warning", "summary": "route chat: 20% by a fallback"},
    {
        "alertname": "UnderstudyUnanswered",
        "severity": "critical",
        "summary": "route docs: 3% are answered by nobody",
        "runbook": "20-runbook-vector-database-down.md",
    },
]
STATUS: dict[str, Any] = {
    "ready": True,
    "unready_because": "",
    "version": "1.2.3",
    "uptime_s": 7200.0,
    "alerts": ALERTS,
    "policies": {"digest": "abc", "folder": "policies", "reload_ok": True, "faults": []},
    "local": {"ready": False, "reason": "being built"},
    "health": {"service_tier": TIER, "components": []},
    "workers": [{"ready": True}, {"ready": False}],
    "routes": [
        {
            "name": "docs",
            "dialect": "qdrant",
            "answers": {"primary 2xx": 3},
            "unanswered": {"exhausted": 2, "deadline": 1},
            "service_tier": {**TIER, "tier": "secondary", "reason": "pinned by hand", "pinned": "secondary"},
            "held_writes": {"waiting": 4, "bytes": 900, "why": "the embedder is away"},
            "tiers": [],
        }
    ],
}


class FakeAdmin(HTTPServer):
    """Answers each path with what the test says; whatever is posted is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, tuple[int, str]] = {"/status": (200, json.dumps(STATUS))}
        self.posted: list[tuple[str, str, str]] = []

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeAdmin

    def do_GET(self) -> None:
        status, text = self.server.pages.get(self.path, (404, "no such page\n"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.posted.append((self.path, self.headers["content-type"], body))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said in a test."""


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_fires_stands_at_the_top_with_the_runbook_and_whatever_wakes_somebody_comes_first():
    lines = status_text(STATUS).splitlines()
    assert lines[:6] == [
        "ready",
        "FIRING    UnderstudyUnanswered, critical: route docs: 3% are answered by nobody",
        "          see 20-runbook-vector-database-down.md",
        "FIRING    UnderstudyFallback, warning: route chat: 20% by a fallback",
        "sidecar   1.2.3, up for 2.0 h, 1 of 2 workers ready",
        "policies  abc from policies",
    ]
    assert "docs  (qdrant)  3 ANSWERED BY NOBODY (2 exhausted, 1 deadline), 3 primary 2xx" in lines
    assert "  held      4 acknowledged writes wait for their vectors: the embedder is away" in lines


def test_a_tiers_line_says_its_breaker_its_way_back_and_what_came_of_asking_it():
    def tier(mode: str, state: str, share: float, **more: object) -> dict[str, Any]:
        breaker = {"mode": mode, "state": state, "reason": "5 failures in a row", "retry_after_s": 2.5}
        endpoint = {"name": "up", "breaker": breaker, "limit": {"in_flight": 3, "places": 8, "waiting": 0}, **more}
        outcomes = {"refused limit": 1, "failed reset": 4}
        about = {"name": "up", "rank": "primary", "active": True, "ramp_share": share, "outcomes": outcomes}
        return {**about, "endpoints": [endpoint]}

    def line(told: dict[str, Any]) -> str:
        return status_text({**STATUS, "routes": [{**STATUS["routes"][0], "tiers": [told]}]}).splitlines()[-1]

    outcomes, flying = "1 refused limit, 4 failed reset", "3 of 8 in flight, 0 waiting"
    head = f"  {'primary':<10}{'up':<16}"
    assert line(tier("auto", "closed", 1.0)) == f"{head}breaker closed; {flying}; {outcomes}"
    assert line(tier("auto", "open", 0.0)) == (
        f"{head}breaker open (5 failures in a row; asked again in 2.5 s); {flying}; {outcomes}"
    )
    assert line(tier("disabled", "closed", 0.4, ejected_s=7)) == (
        f"{head}LEFT OUT for 7 s more; breaker closed (disabled by hand); {flying};"
        f" coming back with 40% of the calls; {outcomes}"
    )
    several = tier("auto", "closed", 1.0)
    several["endpoints"] = several["endpoints"] * 2
    assert line(several) == f"    {'up':<24}breaker closed; {flying}"


def test_the_tier_of_a_route_that_is_not_there_is_asked_for_in_vain(
    admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["tier", "--admin", admin.at, "--route", "chat"]) == 2
    assert capsys.readouterr().err == "understudy: no route is named chat; there are: docs\n"


def test_the_exit_code_of_a_routes_tier_is_that_routes_own(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["tier", "--admin", admin.at, "--route", "docs"]) == 1
    assert capsys.readouterr().out == f"{'docs':<24}secondary (pinned by hand)\n"
    assert cli.main(["tier", "--admin", admin.at]) == 0


def test_a_pin_and_a_note_are_posted_as_what_they_are(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]):
    admin.pages |= {"/tier/a%2Fb": (200, "secondary\n"), "/changes": (200, "noted: x\n")}
    assert cli.main(["tier", "secondary", "--route", "a/b", "--admin", admin.at]) == 0
    assert cli.main(["note", "app", "2.14", "--admin", admin.at]) == 0
    assert capsys.readouterr().out == "secondary\nnoted: x\n"
    (pin_path, pin_type, pin), (note_path, note_type, note) = admin.posted
    assert (pin_path, pin_type.partition(";")[0], pin) == ("/tier/a%2Fb", "text/plain", "secondary")
    assert (note_path, note_type, json.loads(note)["text"]) == ("/changes", "application/json", "app 2.14")


@pytest.mark.parametrize("words", [["status"], ["tier"], ["risk"], ["forecasts"], ["note", "x"], ["tier", "auto"]])
def test_a_refusal_is_told_in_the_sidecars_own_words(
    words: list[str], admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
):
    refusal = (503, json.dumps({"error": "the sidecar has only just started"}))
    admin.pages = dict.fromkeys(("/status", "/risk", "/forecasts", "/changes", "/tier"), refusal)
    assert cli.main([*words, "--admin", admin.at]) == 2
    assert capsys.readouterr().err == "understudy: the sidecar has only just started\n"


@pytest.mark.parametrize("words", [["status"], ["tier"], ["risk"], ["forecasts"]])
def test_who_answers_with_a_page_is_no_sidecar(words: list[str], admin: FakeAdmin, capsys: pytest.CaptureFixture[str]):
    admin.pages = dict.fromkeys(("/status", "/risk", "/forecasts"), (200, "<html>hello</html>"))
    assert cli.main([*words, "--admin", admin.at]) == 2
    assert "is no sidecar" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["127.0.0.1:1", "127.0.0.1:http", "[::1"])
def test_where_nobody_is_that_is_said_in_a_line(where: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["status", "--admin", where]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"understudy: no sidecar answers on {where}: ")
    assert said.count("\n") == 1


def test_the_admin_port_is_asked_past_the_environments_proxy(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert cli.main(["status", "--admin", admin.at]) == 0
    assert capsys.readouterr().out.startswith("ready\n")
