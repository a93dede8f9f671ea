"""What `explain` says beside its golden files: the stack that is really assembled, and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.settings.folders import LOCAL_ROUTE, read
from understudy.proxy.reports.explain import explain, explain_data
from understudy.proxy.stack import ROUTE_ORDER, TIER_ORDER

ROUTE = """
routes:
  - name: chat
    match: {prefix: /rag, strip: true}
    dialect: openai-chat
    arms: {next: {tiers: [{kind: upstream, name: c, url: "https://c.example"}]}}
    split: {arm: next}
    shadow: {arm: next}
    faults: [{do: abort}]
    tiers:
      - kind: upstream
        name: a
        faults: [{do: delay}]
        url: "https://a.example/base"
        headers: {authorization: "Bearer ${KEY}"}
      - {kind: upstream, name: b, url: "${B}", when_env: [B]}
      - {kind: local}
    last_words: {message: Call us.}
    spend: {budgets: [{name: day, tokens: 1000, cheaper: [b]}]}
"""

NOT_OF_CHATS = {"watch", "mirror", "trace"}
"""Layers that no route for generating has, and one that all routes have or none."""
ENDPOINTS = ROUTE.replace(
    'url: "https://a.example/base"',
    'endpoints: [{url: "https://a.example/base"}, {name: spare, url: "${B}", headers: {api-key: "${KEY}"}}]',
)


def test_a_layer_that_is_off_says_so_and_what_was_written_of_it_and_no_more(tmp_path: Path):
    off = LOCAL_ROUTE + "    cache: {ttl_s: 60}\n    breaker: {enabled: false}\n"
    text = explain(read(tmp_path / "off", off), "POST", "/v1/chat/completions")
    assert re.search(r"  cache: .*\n    enabled  false  built in\n    ttl_s    60.0   \S*:\d+\n  \w", text)
    assert re.search(r"  likeness: .*\n    mode  off  built in\n  \w", text)
    assert re.search(r"  tokens: .*there only where rates are set\n  \w", text)
    on = LOCAL_ROUTE + "    cache: {enabled: true}\n    tokens: {caller: {calls_per_s: 5}}\n"
    text = explain(read(tmp_path / "on", on), "POST", "/v1/chat/completions")
    assert re.search(r"entry_bytes_max +\d+ +built in", text)
    assert re.search(r"route.burst +0 +built in", text)
    told = explain_data(read(tmp_path / "data", off), "POST", "/v1/chat/completions")
    cache = next(layer for layer in told["route"]["layers"] if layer["name"] == "cache")
    assert cache["values"]["entry_bytes_max"]["from"] == "built in"


def test_it_shows_every_layer_of_the_real_stack_in_its_order(tmp_path: Path):
    text = explain(read(tmp_path, ENDPOINTS, {"KEY": "k3y", "B": "http://b"}), "POST", "/rag/v1/chat?x=1")
    at = 0
    for name, _ in (*ROUTE_ORDER, *TIER_ORDER):
        if name not in NOT_OF_CHATS:
            at = text.index(f" {name}: ", at + 1)


def test_budgets_are_shown_with_their_lines_where_there_are_any(tmp_path: Path):
    text = explain(read(tmp_path, ENDPOINTS, {"KEY": "k3y", "B": "http://b"}), "POST", "/rag/v1/chat")
    assert re.search(rf"budgets\[0\]\.tokens +1000 +{re.escape(str(tmp_path))}/chat\.yaml:\d+", text)
    assert " spend: " not in explain(read(tmp_path / "off", LOCAL_ROUTE), "POST", "/v1/chat/completions")


def test_where_traces_go_is_shown_without_the_collectors_key(tmp_path: Path):
    traces = 'server: {traces: {to: "http://collector:4318/v1/traces", headers: {x-key: "${KEY}"}}}'
    text = explain(read(tmp_path, f"{traces}\n{LOCAL_ROUTE}", {"KEY": "k3y"}), "POST", "/v1/chat/completions")
    assert text.index(" trace: ") < text.index(" observe: ")
    assert re.search(rf"to +http://collector:4318/v1/traces +{re.escape(str(tmp_path))}/chat\.yaml:\d+", text)
    assert "k3y" not in text
    assert " trace: " not in explain(read(tmp_path / "off", LOCAL_ROUTE), "POST", "/v1/chat/completions")


MIRROR = """
routes:
  - name: search
    match: {prefix: /collections}
    dialect: qdrant
    space: text-embedding-3-small
    mirror: {collections: [docs], staleness_s_max: 60}
    tiers:
      - {kind: upstream, name: a, url: "https://a.example"}
      - {kind: local}
"""


def test_a_mirror_stands_between_the_shadow_and_the_chain(tmp_path: Path):
    text = explain(read(tmp_path, MIRROR), "PUT", "/collections/docs/points")
    assert text.index(" coalesce: ") < text.index(" mirror: ") < text.index(" chain: ")
    assert re.search(rf"staleness_s_max +60\.0 +{re.escape(str(tmp_path))}/chat\.yaml:7", text)
    assert "understudy_mirror" not in text
    off = explain(read(tmp_path / "off", MIRROR.replace("    mirror:", "    #")), "PUT", "/collections/docs/points")
    assert " mirror: " not in off


def test_what_is_off_is_not_shown_and_what_is_on_says_where_it_was_written(tmp_path: Path):
    off = explain(read(tmp_path / "off", LOCAL_ROUTE), "POST", "/v1/x")
    assert not any(f" {name}: " in off for name in ("split", "shadow", "watch", "fault", "last_words"))
    on = explain(read(tmp_path / "on", ROUTE, {"KEY": "k3y"}), "POST", "/rag/v1/chat")
    assert "  arm next\n  1. c, upstream" in on
    for line in ("server.faults  false  built in", f"[0].do         delay  {tmp_path}/on/chat.yaml:13"):
        assert line in on


def test_it_says_what_the_path_becomes_and_who_is_missing_and_keeps_secrets(tmp_path: Path):
    text = explain(read(tmp_path, ROUTE, {"KEY": "k3y"}), "POST", "/rag/v1/chat?x=1")
    assert "and goes on as /v1/chat" in text
    assert "NOT THERE, B is not set" in text
    assert "***" in text
    assert "k3y" not in text


def test_what_came_from_a_variable_that_is_called_a_secret_is_not_shown_whatever_it_became_part_of(tmp_path: Path):
    route = ROUTE.replace("https://a.example/base", "https://a.example/${GATE_TOKEN}/v1")
    text = explain(read(tmp_path, route, {"GATE_TOKEN": "s3cr3t", "KEY": "k3y"}), "POST", "/rag")
    assert "s3cr3t" not in text
    assert any(line.split()[:2] == ["url", "***"] and line.endswith("GATE_TOKEN") for line in text.splitlines())


def test_a_tier_of_several_endpoints_shows_each_and_a_tier_of_one_has_nothing_to_balance(tmp_path: Path):
    several = explain(read(tmp_path, ENDPOINTS, {"KEY": "k3y", "B": "http://b"}), "POST", "/rag")
    lines = [line.split() for line in several.splitlines()]
    line = next(n for n, text in enumerate(ENDPOINTS.splitlines(), 1) if "endpoints" in text)
    assert ["endpoints[1].url", "http://b", f"{tmp_path}/chat.yaml:{line},", "B"] in lines
    assert ["endpoints[1].headers.api-key", "***", f"{tmp_path}/chat.yaml:{line},", "KEY"] in lines
    assert ["endpoints[0].weight", "1.0", "built", "in"] in lines
    assert "balance:" in several
    assert "balance:" not in explain(read(tmp_path, ROUTE, {"KEY": "k3y", "B": "http://b"}), "POST", "/rag")


def test_the_same_comes_as_plain_values_for_json(tmp_path: Path):
    reading = read(tmp_path, ROUTE, {"KEY": "k3y"})
    data = json.loads(json.dumps(explain_data(reading, "POST", "/rag")))
    assert reading.settings
    assert data["digest"] == reading.settings.digest
    assert data["request"]["port"] == 8787
    assert [tier["inactive"] for tier in data["route"]["tiers"]] == [None, "B is not set", None]
    headers = data["route"]["tiers"][0]["values"]["headers.authorization"]
    assert headers == {"value": "***", "from": f"{tmp_path}/chat.yaml:15, KEY"}
    assert explain_data(reading, "GET", "/")["route"] is None


def test_policies_that_can_not_be_believed_are_explained_by_their_faults(tmp_path: Path):
    reading = read(tmp_path, LOCAL_ROUTE.replace("local", "lokal"))
    assert "did you mean local?" in explain(reading, "GET", "/")
    assert explain_data(reading, "GET", "/") == {"faults": [str(fault) for fault in reading.faults]}


def test_a_request_that_is_no_text_is_explained_all_the_same(tmp_path: Path):
    reading = read(tmp_path, LOCAL_ROUTE.replace("/v1", "/"))
    for path in ("", "x", "/\udce4", "/ä\n", "*"):
        text = explain(reading, "GET", path, host="h\udce4\n", port=0)
        assert text.encode()
        assert "goes to route chat" in text


def test_rows_put_before_the_table_of_outcomes_are_shown_with_their_lines_and_whose_errors_they_are(tmp_path: Path):
    reading = read(
        tmp_path,
        """
routes:
  - name: a
    match: {prefix: /v1}
    dialect: openai-chat
    outcomes:
      - {code: context_length_exceeded, outcome: caller, follow: tier}
    tiers:
      - kind: upstream
        name: a
        endpoints: [{url: "https://x.openai.azure.com"}, {url: "https://api.openai.com"}]
        outcomes: [{status: [500, 4xx], message: tea, outcome: soft, reason: tea}]
""",
    )
    text = explain(reading, "POST", "/v1/x")
    assert re.search(r"code context_length_exceeded: caller, tier +\S*chat.yaml:7\n", text)
    assert re.search(r"message tea and status 500, 4xx: soft, here \(tea\) +\S*chat.yaml:12\n", text)
    assert re.search(r"provider +azure, openai +built in\n", text)


def test_a_watch_is_shown_where_it_is_and_refused_where_it_could_not_be(tmp_path: Path):
    embeddings = """
routes:
  - name: e
    match: {path: /v1/embeddings}
    dialect: openai-embeddings
    space: s
    tiers: [{kind: upstream, name: a, url: "https://a.example", space: s}]
    watch: {goldens_s: 30}
"""
    text = explain(read(tmp_path / "on", embeddings), "POST", "/v1/embeddings")
    assert " watch: " in text
    assert re.search(r"goldens_s +30", text)
    for changed, why in (
        (
            embeddings.replace("openai-embeddings", "openai-chat").replace("space: s", ""),
            "nothing is known to be right",
        ),
        (embeddings.replace("openai-embeddings", "qdrant"), "the route has none"),
        (re.sub(r"tiers: .*", "tiers: [{kind: local}]", embeddings), "no upstream to watch"),
    ):
        faults = read(tmp_path / why.replace(" ", "-"), changed).faults
        assert any(why in str(fault) for fault in faults), faults
