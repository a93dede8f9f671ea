"""`understudy bench` as a person uses it. No bound on any time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.kit.processes import Process, Sidecar, free_port
from understudy.proxy import cli
from understudy.proxy.bench.session import beside_our_upstream, exchange_of
from understudy.proxy.dialects import KINDS
from understudy.proxy.settings.reading import read_folder
from understudy.proxy.settings.settings import Match, Route, Settings, UpstreamTier

POLICIES = """\
server: {listen: "127.0.0.1:8787", admin: "127.0.0.1:8788", access_log: false}
routes:
  - name: chat
    match: {path: /v1/chat/completions}
    dialect: openai-chat
    retry: {attempts: 3}
    tiers:
      - kind: upstream
        name: far
        when_env: [NEVER_SET]
        url: https://far.example/api
        headers: {authorization: "Bearer ${FAR_KEY:-hush}"}
      - {kind: upstream, name: farther, url: "https://farther.example", tls: {verify: false}}
      - kind: local
  - name: ours
    match: {prefix: /ours}
    dialect: openai-embeddings
    tiers: [{kind: local}]
  - name: files
    match: [{prefix: /files, strip: true}, {path: /more}]
    dialect: plain
    tiers: [{kind: upstream, name: store, endpoints: [{url: "http://a.example"}, {url: "http://b.example"}]}]
"""


def _settings(folder: Path) -> Settings:
    (folder / "all.yaml").write_text(POLICIES)
    settings = read_folder(folder, {}, KINDS).settings
    assert settings is not None
    return settings


def _route(dialect: str, match: Match) -> Route:
    tier = UpstreamTier(name="a", url="http://a.example")
    return Route(name="r", match=match, dialect=dialect, tiers=[tier])


# --- what is asked, and of whom ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "match", "path"),
    [
        ("openai-chat", Match(path="/v1/chat/completions"), "/v1/chat/completions"),
        ("openai-chat", Match(prefix="/v1"), "/v1/chat/completions"),
        ("openai-chat", Match(prefix="/azure/v1/"), "/azure/v1/chat/completions"),
        ("openai-chat", Match(prefix="/openai", strip=True), "/openai/v1/chat/completions"),
        ("openai-embeddings", Match(prefix="/v1", strip=True), "/v1/v1/embeddings"),
        ("qdrant", Match(prefix="/collections"), "/collections/docs/points/query"),
        ("qdrant", Match(prefix="/"), "/collections/docs/points/query"),
        ("plain", Match(prefix="/files"), "/files/bench"),
        ("plain", Match(prefix="/"), "/bench"),
        ("plain", Match(), "/bench"),
    ],
)
def test_a_route_is_asked_something_that_it_claims(dialect: str, match: Match, path: str):
    assert exchange_of(_route(dialect, match)).path == path


def test_the_policies_stay_but_every_service_is_ours_and_no_secret_is_written_down(tmp_path: Path):
    written = beside_our_upstream(_settings(tmp_path), 1111, 2222, 3333)
    text = json.dumps(written)
    assert written["server"]["listen"] == "127.0.0.1:1111"
    assert "example" not in text
    assert "hush" not in text
    assert "NEVER_SET" not in text
    assert [route["name"] for route in written["routes"]] == ["chat", "files"]
    assert [tier["url"] for tier in written["routes"][0]["tiers"]] == ["http://127.0.0.1:2222"] * 2
    assert written["routes"][0]["retry"]["attempts"] == 3
    store = written["routes"][1]["tiers"][0]["endpoints"]
    assert [endpoint["url"] for endpoint in store] == ["http://127.0.0.1:2222"] * 2

    again = tmp_path / "again"
    again.mkdir()
    (again / "bench.yaml").write_text(text)
    reading = read_folder(again, {}, KINDS)
    assert reading.faults == ()
    assert reading.settings is not None
    assert reading.settings.inactive == {}


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--url", "http://192.0.2.1:8787"], "192.0.2.1 is not this machine: load tests go to loopback only"),
        (["--url", "http://example.com/"], "load tests go to loopback only"),
        (["--url", "https://127.0.0.1"], "is not an http:// URL"),
        (["--url", "127.0.0.1:8787"], "is not an http:// URL"),
        (["--url", "http://127.0.0.1:99999"], "out of range"),
        (["--url", "http://127.0.0.1:1"], "no sidecar answers on 127.0.0.1:1"),
        (["--seconds", "3600"], "at most 60"),
        (["--seconds", "nan"], "at most 60"),
        (["--connections", "0"], "from 1 to"),
    ],
)
def test_what_would_be_too_much_or_elsewhere_is_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["bench", *words]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


def test_policies_with_faults_are_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "bad.yaml").write_text("routes: 3\n")
    assert cli.main(["bench", "--policies", str(tmp_path)]) == 1
    assert "bad.yaml:1:9" in capsys.readouterr().err


@pytest.mark.real
def test_a_sidecar_is_started_with_ones_own_policies_and_every_route_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _settings(tmp_path)
    words = ["bench", "--policies", str(tmp_path), "--seconds", "0.4", "--connections", "4"]
    assert cli.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["route"] for row in rows] == ["chat", "files"]
    for row in rows:
        assert row["calls"] > 0
        assert row["cpu_us"] > 0
        assert row["memory_mib"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]

    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert "CPU us/call" in table
    assert "POST /files/bench: 1,024 B up, 1,024 B down" in table


RUNNING = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
routes:
  - name: files
    match: {prefix: /files}
    dialect: plain
    tiers: [{kind: upstream, name: store, url: "http://127.0.0.1:${STORE_PORT}"}]
"""


@pytest.mark.real
def test_a_running_sidecar_is_loaded_only_when_whoever_stands_behind_it_may_be_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    policies, port = tmp_path / "policies", free_port()
    policies.mkdir()
    (policies / "all.yaml").write_text(RUNNING)
    store = Process([sys.executable, "-m", "tests.bench.upstream", "--port", str(port)], ready_port=port)
    sidecar = Sidecar(policies, tmp_path / "state", env={"STORE_PORT": str(port)})
    monkeypatch.setenv("STORE_PORT", str(port))
    monkeypatch.setenv("UNDERSTUDY_LISTEN", f"127.0.0.1:{sidecar.port}")
    monkeypatch.setenv("UNDERSTUDY_ADMIN", f"127.0.0.1:{sidecar.admin_port}")
    words = ["bench", "--policies", str(policies), "--url", sidecar.url, "--seconds", "0.3", "--connections", "2"]
    with store, sidecar:
        assert cli.main(words) == 2
        assert "files is answered by store, which a load test would reach as well" in capsys.readouterr().err
        assert cli.main([*words, "--through", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["calls"] > 0
        assert row["cpu_us"] > 0

        assert cli.main([*words[:4], f"http://127.0.0.1:{port}"]) == 2
        assert "is no sidecar" in capsys.readouterr().err
