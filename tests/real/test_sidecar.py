"""The running process: live reload, probes, the way down, and what it writes."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.acts import answer, sse
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import COMES_S_MAX, Sidecar, admin, eventually, put_in_place
from tests.real.streams_rig import Gate, held
from understudy.proxy.http import stepping
from understudy.proxy.version import VERSION

pytestmark = pytest.mark.real

CHUNK = {"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}


def policies(upstream: Hosted, *, more: str = "", tier: str = "", server: str = "") -> str:
    return (
        "server:\n"
        "  listen: ${UNDERSTUDY_LISTEN}\n"
        "  admin: ${UNDERSTUDY_ADMIN}\n"
        "  reload_s: 0.1\n"
        f"  drain_s: {server or '60'}\n"
        "routes:\n"
        "  - name: chat\n"
        "    match: {prefix: /v1}\n"
        "    dialect: openai-chat\n"
        f"{more}"
        "    tiers:\n"
        "      - kind: upstream\n"
        "        name: model\n"
        f"        url: {upstream.url}\n"
        f"{tier}"
    )


@pytest.fixture
def upstream() -> Iterator[Hosted]:
    with in_thread(answer(body={"who": "first"})) as hosted:
        yield hosted


def write(folder: Path, text: str) -> None:
    put_in_place(folder / "chat.yaml", text)


def post(sidecar: Sidecar, body: bytes = b"{}", path: str = "/v1/chat/completions") -> http.client.HTTPResponse:
    request = urllib.request.Request(sidecar.url + path, data=body, headers={"content-type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=COMES_S_MAX)
    except urllib.error.HTTPError as error:
        return error  # pyright: ignore[reportReturnType]


def test_the_sidecar_says_which_version_it_is_and_whether_that_was_compiled(
    upstream: Hosted, folder: Path, tmp_path: Path
):
    write(folder, policies(upstream))
    with Sidecar(folder, tmp_path) as sidecar:
        status = json.loads(admin(sidecar, "/status")[1])
    # the tests were given the same package as the sidecar
    runs = "interpreted" if stepping.__file__.endswith(".py") else "compiled"
    assert (status["version"], status["runs"]) == (VERSION, runs)


def test_a_changed_file_is_in_force_soon_a_bad_one_never_and_both_are_told(
    upstream: Hosted, folder: Path, tmp_path: Path
):
    write(folder, policies(upstream))
    with in_thread(answer(body={"who": "second"})) as other, Sidecar(folder, tmp_path) as sidecar:
        assert json.load(post(sidecar))["who"] == "first"
        write(folder, policies(other))
        eventually(lambda: json.load(post(sidecar))["who"] == "second")

        write(folder, policies(upstream, more="    retry: {atempts: 3}\n"))
        eventually(lambda: "understudy_reload_ok 0.0" in admin(sidecar, "/metrics")[1])
        status = json.loads(admin(sidecar, "/status")[1])["policies"]
        assert not status["reload_ok"]
        assert "chat.yaml:10:13: routes[0].retry.atempts" in status["faults"][0]
        assert "chat.yaml:10:13" in sidecar.logs()
        assert json.load(post(sidecar))["who"] == "second"

        write(folder, policies(upstream))
        sidecar.signal(signal.SIGHUP)
        eventually(lambda: json.load(post(sidecar))["who"] == "first")
        assert "understudy_reload_ok 1.0" in admin(sidecar, "/metrics")[1]


def test_a_call_in_flight_finishes_on_the_stack_it_began_on(upstream: Hosted, folder: Path, tmp_path: Path):
    gate = Gate()
    upstream.then(held(gate, answer(body={"who": "slow first"})))
    write(folder, policies(upstream))
    with in_thread(answer(body={"who": "second"})) as other, Sidecar(folder, tmp_path) as sidecar:
        told: list[str] = []
        asking = threading.Thread(target=lambda: told.append(json.load(post(sidecar))["who"]))
        asking.start()
        eventually(lambda: len(upstream.heard) == 1)
        write(folder, policies(other))
        eventually(lambda: json.load(post(sidecar))["who"] == "second")
        gate.open()
        asking.join(60)
        assert told == ["slow first"]


def test_a_breaker_stays_open_over_a_reload(upstream: Hosted, folder: Path, tmp_path: Path):
    upstream.always(answer(500, body={"error": {}}))
    rules = "    retry: {attempts: 1}\n    breaker: {consecutive: 2, open_s: 60}\n"
    write(folder, policies(upstream, more=rules))
    with Sidecar(folder, tmp_path) as sidecar:
        for _ in range(2):
            assert post(sidecar).status == 500
        assert post(sidecar).status == 503
        write(folder, policies(upstream, more=rules + "    deadline: {total_s: 7}\n"))
        eventually(lambda: json.loads(admin(sidecar, "/status")[1])["policies"]["reloads"]["ok"] == 1)
        refused = post(sidecar)
        assert refused.status == 503
        assert refused.headers["x-understudy-reason"].startswith("model: breaker")
        assert int(refused.headers["retry-after"]) > 30
        assert refused.headers["x-should-retry"] == "false"
        assert len(upstream.heard) == 2


def test_a_dead_upstream_fails_no_probe(upstream: Hosted, folder: Path, tmp_path: Path):
    write(folder, policies(upstream))
    with Sidecar(folder, tmp_path) as sidecar:
        upstream.do(upstream.refuse())
        assert post(sidecar).status == 502
        assert {path: admin(sidecar, path)[0] for path in ("/livez", "/readyz", "/startupz")} == {
            "/livez": 200,
            "/readyz": 200,
            "/startupz": 200,
        }


def test_sigterm_makes_it_unready_at_once_and_calls_in_hand_are_answered(
    upstream: Hosted, folder: Path, tmp_path: Path
):
    gate = Gate()
    upstream.then(held(gate, answer(body={"who": "slow"})))
    write(folder, policies(upstream))
    with Sidecar(folder, tmp_path) as sidecar:
        answers: list[http.client.HTTPResponse] = []
        asking = threading.Thread(target=lambda: answers.append(post(sidecar)))
        asking.start()
        eventually(lambda: len(upstream.heard) == 1)
        sidecar.signal(signal.SIGTERM)
        eventually(lambda: admin(sidecar, "/readyz") == (503, "draining\n"))
        gate.open()
        asking.join(60)
        assert (answers[0].status, answers[0].headers["connection"]) == (200, "close")
        assert sidecar.child is not None
        assert sidecar.child.wait(COMES_S_MAX) == 0


def test_a_stream_still_open_at_the_drain_deadline_is_told_so_in_band(upstream: Hosted, folder: Path, tmp_path: Path):
    upstream.then(sse([CHUNK] * 1000, gap_s=0.05))
    write(folder, policies(upstream, server="0.5"))
    with Sidecar(folder, tmp_path) as sidecar:
        stream = post(sidecar, b'{"stream": true}')
        assert b"word" in stream.readline()
        sidecar.signal(signal.SIGTERM)
        rest = stream.read()
        assert b'"error"' in rest
        assert b"[DONE]" not in rest
        assert sidecar.child is not None
        assert sidecar.child.wait(COMES_S_MAX) == 0


def test_the_access_log_is_json_and_holds_no_body_no_query_and_no_key(upstream: Hosted, folder: Path, tmp_path: Path):
    write(folder, policies(upstream, tier='        headers: {authorization: "Bearer ${THE_KEY}"}\n'))
    with Sidecar(folder, tmp_path, env={"THE_KEY": "sk-very-secret"}) as sidecar:
        post(sidecar, b'{"messages": "a private matter"}', "/v1/chat/completions?token=hidden")
        assert upstream.heard[0].header(b"authorization") == b"Bearer sk-very-secret"
        sidecar.stop()
        lines = [json.loads(line) for line in sidecar.logs().splitlines() if line.startswith("{")]
        assert len(lines) == 1
        line = lines[0]
        assert (line["route"], line["status"], line["tier"], line["source"]) == ("chat", 200, "primary", "model")
        assert line["path"] == "/v1/chat/completions"
        assert 0 < line["upstream_ms"] <= line["ms"]
        for secret in ("private matter", "hidden", "sk-very-secret"):
            assert secret not in sidecar.logs()


def test_a_call_that_comes_before_the_local_tier_is_loaded_is_answered_all_the_same(state: Path, folder: Path):
    write(
        folder,
        "server: {listen: '${UNDERSTUDY_LISTEN}', admin: '${UNDERSTUDY_ADMIN}'}\nroutes:\n"
        "  - {name: embeddings, match: {path: /v1/embeddings}, dialect: openai-embeddings, tiers: [{kind: local}],\n"
        # as long as a slow machine takes to load it
        f"     deadline: {{total_s: {COMES_S_MAX}}}}}\n",
    )
    sidecar = Sidecar(folder, state)
    sidecar.ready_path = "/livez"
    with sidecar:
        body = json.dumps({"model": "m", "input": "as soon as it listens"}).encode()
        told = post(sidecar, body, "/v1/embeddings")
        assert (told.status, told.headers["x-understudy-source"]) == (200, "local-embed")
        eventually(lambda: admin(sidecar, "/readyz")[0] == 200)


def test_what_is_no_route_is_a_404_that_names_the_routes(upstream: Hosted, folder: Path, tmp_path: Path):
    write(folder, policies(upstream))
    with Sidecar(folder, tmp_path) as sidecar:
        told = post(sidecar, path="/elsewhere")
        assert told.status == 404
        assert "the routes are: chat" in json.load(told)["error"]["message"]
