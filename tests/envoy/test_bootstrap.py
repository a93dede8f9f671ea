"""What is rendered from policies: read by eye here, and by the real Envoy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.envoy.running import complaints, rendered
from understudy.envoy.bootstrap import render
from understudy.envoy.cli import templates_of
from understudy.proxy.cli import shipped_policies
from understudy.proxy.routes import Routes
from understudy.proxy.settings.reading import load

PLAIN_CHAT = """
routes:
  - name: chat
    match: {prefix: /v1}
    dialect: openai-chat
    deadline: {total_s: 20, reserve_s: 2}
    breaker: {consecutive: 3, open_s: 4, open_s_max: 30}
    tiers:
      - {kind: upstream, name: near, url: "http://127.0.0.1:9001", first_byte_s: 60}
      - {kind: upstream, name: far, url: "http://127.0.0.1:9002"}
      - {kind: local}
"""

KEYED = """
routes:
  - name: chat
    match: {prefix: /v1}
    dialect: openai-chat
    tiers:
      - kind: upstream
        name: openai
        url: https://api.example.com
        when_env: [OPENAI_API_KEY]
        headers: {authorization: "Bearer ${OPENAI_API_KEY}", x-key: "${OPENAI_API_KEY}"}
      - {kind: local}
"""

LOCAL_ONLY = """
routes:
  - {name: chat, match: {prefix: /v1}, dialect: openai-chat, tiers: [{kind: local}]}
"""

EVERYTHING = """
routes:
  - name: chat
    match: [{prefix: /v1/chat}, {path: /v1/chat/special, host: Talk.Example}]
    dialect: openai-chat
    tiers:
      - {kind: upstream, name: openai, url: "https://api.example.com:8443/base/"}
      - {kind: local}
  - name: embeddings
    match: {prefix: /v1/embeddings}
    dialect: openai-embeddings
    space: all-MiniLM-L6-v2
    tiers:
      - {kind: upstream, name: tei, url: "https://[::1]:8443", tls: {verify: false, server_name: tei.example}}
      - {kind: local}
  - name: vectors
    match: {prefix: /qdrant/, strip: true}
    dialect: qdrant
    space: all-MiniLM-L6-v2
    tiers:
      - {kind: upstream, name: qdrant, url: "http://localhost:6333", breaker: {enabled: false}}
      - {kind: local}
  - name: rest
    match: [{prefix: /, host: files.example}, {prefix: /files, strip: true}]
    dialect: plain
    tiers:
      - {kind: upstream, name: files, url: "http://10.0.0.7/base"}
"""


def values(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)


def cluster(text: str, name: str) -> dict[str, Any]:
    return next(each for each in values(text)["static_resources"]["clusters"] if each["name"] == name)


def hosts(text: str, listener: str = "application") -> dict[str, list[dict[str, Any]]]:
    """The routes of each virtual host of a listener."""
    found = next(each for each in values(text)["static_resources"]["listeners"] if each["name"] == listener)
    config = found["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
    return {host["domains"][0]: host["routes"] for host in config["virtual_hosts"]}


def claimed(routes: list[dict[str, Any]]) -> list[str]:
    """The paths in the order Envoy tries them, each once."""
    keys = ("path", "path_separated_prefix", "prefix")
    paths = [next(route["match"][key] for key in keys if key in route["match"]) for route in routes]
    return list(dict.fromkeys(paths))


@pytest.mark.parametrize(
    ("policies", "environ"),
    [
        (PLAIN_CHAT, {}),
        (KEYED, {"OPENAI_API_KEY": "sk-very-secret"}),
        (KEYED, {}),
        (LOCAL_ONLY, {}),
        (EVERYTHING, {}),
    ],
    ids=["plain", "with a key", "without its key", "local only", "everything"],
)
def test_envoy_itself_takes_what_is_rendered(policies: str, environ: dict[str, str], tmp_path: Path) -> None:
    text = rendered(tmp_path / "policies", policies, environ=environ)

    assert complaints(text, tmp_path) == ""


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": "sk-x", "QDRANT_URL": "http://qdrant.example:6333"}])
def test_envoy_itself_takes_the_policies_that_ship(environ: dict[str, str], tmp_path: Path) -> None:
    settings = load(shipped_policies(), environ)
    text = render(settings, templates=templates_of(shipped_policies(), settings, environ))

    assert complaints(text, tmp_path) == ""
    assert ("openai at api.openai.com first" in text) == bool(environ)
    assert "sk-x" not in text


def test_the_upstream_is_asked_before_the_sidecar_and_only_the_upstream_can_be_ejected(tmp_path: Path) -> None:
    text = rendered(tmp_path, PLAIN_CHAT)

    together = cluster(text, "route.chat")["cluster_type"]["typed_config"]["clusters"]
    assert together == ["first.chat", "sidecar"]
    ejection = cluster(text, "first.chat")["outlier_detection"]
    assert (ejection["consecutive_5xx"], ejection["base_ejection_time"]) == (3, "4.000s")
    assert (ejection["max_ejection_percent"], ejection["max_ejection_time"]) == (100, "30.000s")
    assert "outlier_detection" not in cluster(text, "sidecar")
    # the second upstream is the sidecar's to ask: it knows what the first one said
    assert "9002" not in text


def test_the_upstream_is_waited_for_only_as_long_as_leaves_the_sidecar_its_turn(tmp_path: Path) -> None:
    text = rendered(tmp_path, PLAIN_CHAT)

    inner = hosts(text, "first.chat")["*"][0]["route"]
    assert inner["retry_policy"] == {"num_retries": 0, "per_try_timeout": "18.000s"}
    front = hosts(text)["*"][0]["route"]
    assert (front["timeout"], front["retry_policy"]["per_try_timeout"]) == ("0s", "21.000s")


def test_a_secret_is_never_written_but_named_where_envoy_finds_it(tmp_path: Path) -> None:
    text = rendered(tmp_path, KEYED, environ={"OPENAI_API_KEY": "sk-very-secret"})

    assert "sk-very-secret" not in text
    added = hosts(text, "first.chat")["*"][0]["request_headers_to_add"]
    assert [each["header"]["value"] for each in added] == [
        "Bearer %ENVIRONMENT(OPENAI_API_KEY)%",
        "%ENVIRONMENT(OPENAI_API_KEY)%",
    ]
    assert "#   chat: authorization: Bearer %ENVIRONMENT(OPENAI_API_KEY)%" in text.splitlines()


@pytest.mark.parametrize(
    "header", ["key-in-the-policy", "file:token", "${MISSING:-key-by-default}", "${SIDE}-with-more"]
)
def test_an_upstream_whose_secret_envoy_could_not_find_is_left_to_the_sidecar(header: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("key-in-a-file\n")
    policies = PLAIN_CHAT.replace("first_byte_s: 60", f'headers: {{x-key: "{header}"}}')

    text = rendered(tmp_path, policies, environ={"SIDE": "left"})

    assert {route["route"]["cluster"] for route in hosts(text)["*"][:-1]} == {"sidecar"}
    assert "not near first: it needs x-key" in text
    assert not any(secret in text for secret in ("key-in-the-policy", "key-in-a-file", "key-by-default", "with-more"))


def test_a_variable_that_is_also_a_url_cannot_be_told_from_its_value_and_does_not_hide_the_others(
    tmp_path: Path,
) -> None:
    policies = KEYED.replace("https://api.example.com", "${BASE}").replace(
        'x-key: "${OPENAI_API_KEY}"', 'x-base: "${BASE}"'
    )

    text = rendered(tmp_path, policies, environ={"OPENAI_API_KEY": "sk-x", "BASE": "https://api.example.com"})

    assert "not openai first: it needs x-base, a secret" in text
    assert "sk-x" not in text


def test_a_route_whose_first_tier_is_not_there_goes_to_whoever_is(tmp_path: Path) -> None:
    text = rendered(tmp_path, KEYED)

    assert [each["name"] for each in values(text)["static_resources"]["clusters"]] == ["sidecar"]
    assert "chat: the sidecar alone: its first tier is local" in text


def test_the_more_exact_claim_is_tried_first_and_a_named_host_has_the_others_too(tmp_path: Path) -> None:
    found = hosts(rendered(tmp_path, EVERYTHING))

    everywhere = ["/v1/embeddings", "/v1/chat", "/qdrant", "/files", "/"]
    assert claimed(found["*"]) == everywhere
    assert claimed(found["talk.example"]) == ["/v1/chat/special", *everywhere]
    # who names a host has it to itself, however short the prefix
    assert claimed(found["files.example"])[0] == "/"
    assert found["files.example"][0]["route"]["cluster"] == "route.rest"
    assert found["*"][-1]["direct_response"]["status"] == 404


@pytest.mark.parametrize("host", ["talk.example", "files.example", "elsewhere.example"])
@pytest.mark.parametrize(
    "path", ["/v1/chat", "/v1/chat/special", "/v1/chatter", "/qdrant", "/qdrantx", "/files/a", "/"]
)
def test_envoy_and_the_sidecar_agree_on_whose_a_request_is(host: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "policies.yaml").write_text(EVERYTHING)
    settings = load(tmp_path, {})
    routes = hosts(rendered(tmp_path, EVERYTHING))

    theirs = Routes(settings.routes).find(host.encode(), 8787, path.encode())
    ours = next(route for route in routes.get(host, routes["*"]) if fits(route["match"], path))

    assert ours.get("route", {}).get("cluster") == (f"route.{theirs[0].name}" if theirs else None)


def fits(match: dict[str, Any], path: str) -> bool:
    """Whether Envoy's path match takes `path`, as its documentation has it."""
    if "path" in match:
        return path == match["path"]
    if "prefix" in match:
        return path.startswith(match["prefix"])
    prefix = match["path_separated_prefix"]
    return path == prefix or path.startswith(f"{prefix}/")


def test_paths_are_rewritten_for_the_upstream_only(tmp_path: Path) -> None:
    text = rendered(tmp_path, EVERYTHING)

    def rewriting(name: str, host: str = "*") -> list[tuple[str, str | None]]:
        routes = hosts(text, f"first.{name}")[host]
        return [(claimed([each])[0], each["route"].get("prefix_rewrite")) for each in routes]

    assert rewriting("chat") == [("/v1/chat", "/base/v1/chat")]
    assert rewriting("embeddings") == [("/v1/embeddings", None)]
    assert rewriting("vectors") == [("/qdrant", "/"), ("/qdrant/", "/")]
    assert rewriting("rest") == [("/files", "/base/"), ("/files/", "/base/")]
    assert rewriting("rest", "files.example") == [("/", "/base/"), ("/files", "/base/"), ("/files/", "/base/")]
    assert "rewrite" not in json.dumps(hosts(text))


def test_an_https_upstream_is_trusted_by_name(tmp_path: Path) -> None:
    text = rendered(tmp_path, EVERYTHING, ca_file="/some/ca.pem")

    trusting = cluster(text, "real.chat")["transport_socket"]["typed_config"]
    assert trusting["sni"] == "api.example.com"
    assert trusting["common_tls_context"]["validation_context"] == {
        "trusted_ca": {"filename": "/some/ca.pem"},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "api.example.com"}}],
    }
    unverified = cluster(text, "real.embeddings")["transport_socket"]["typed_config"]
    assert (unverified["sni"], unverified["common_tls_context"]) == ("tei.example", {"alpn_protocols": ["http/1.1"]})


def test_a_claim_on_another_port_of_the_sidecar_belongs_to_another_bootstrap(tmp_path: Path) -> None:
    policies = (
        "server: {listen: ['127.0.0.1:8787', '127.0.0.1:6333']}\n"
        + PLAIN_CHAT
        + "  - {name: vectors, match: {prefix: /, port: 6333}, dialect: qdrant, space: m, tiers: [{kind: local}]}\n"
    )

    first, second = rendered(tmp_path, policies), rendered(tmp_path, policies, sidecar="127.0.0.1:6333")

    assert claimed(hosts(first)["*"][:-1]) == ["/v1"]
    assert "vectors: what it claims on port 6333 of the sidecar is left out" in first
    # who names a port has it to itself, there as in the sidecar
    assert claimed(hosts(second)["*"][:-1]) == ["/", "/v1"]


def test_a_tier_in_another_vector_space_is_never_asked_by_envoy(tmp_path: Path) -> None:
    policies = EVERYTHING.replace("name: qdrant, ", "name: qdrant, space: ada, ")

    assert "vectors: the sidecar alone, not qdrant first: it works in the vector space ada" in rendered(
        tmp_path, policies
    )


def test_a_tier_of_one_endpoint_is_asked_by_envoy_and_one_of_several_is_left_to_the_sidecar(tmp_path: Path) -> None:
    one = KEYED.replace("        url: https://api.example.com\n", "").replace(
        '        headers: {authorization: "Bearer ${OPENAI_API_KEY}", x-key: "${OPENAI_API_KEY}"}',
        '        endpoints: [{url: "https://api.example.com", headers: {x-key: "${OPENAI_API_KEY}"}}]',
    )
    environ = {"OPENAI_API_KEY": "sk-hush"}
    assert rendered(tmp_path, one, environ=environ).count('value: "%ENVIRONMENT(OPENAI_API_KEY)%"') == 1
    several = one.replace("endpoints: [", 'endpoints: [{url: "https://b.example"}, ')
    assert "chat: the sidecar alone, not openai first: it has several endpoints" in rendered(
        tmp_path, several, environ=environ
    )


def test_a_pass_route_is_only_sent_elsewhere_when_nobody_can_have_acted_on_it(tmp_path: Path) -> None:
    text = rendered(tmp_path, EVERYTHING)

    def codes(name: str, host: str) -> list[list[int]]:
        routes = [each for each in hosts(text)[host][:-1] if each["route"]["cluster"] == f"route.{name}"]
        return [each["route"]["retry_policy"]["retriable_status_codes"] for each in routes]

    everything = [408, 425, 429, 500, 502, 503, 504, 529]
    assert codes("vectors", "*") == [everything, everything, [429, 503]]
    assert codes("rest", "*") == [everything, [429, 503]]


def test_every_string_is_quoted_and_no_note_can_end_its_comment(tmp_path: Path) -> None:
    text = rendered(tmp_path, PLAIN_CHAT.replace("name: chat", 'name: "n"'))

    assert '- "/v1"' not in text
    assert 'name: "route.n"' in text
    heading, _, body = text.partition("\n\n")
    assert all(line.startswith("#") for line in heading.splitlines())
    assert body.startswith("node:")
