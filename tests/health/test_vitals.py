"""Each API's own endpoint (L1): it is asked as its server wants to be, and its answers are taken for what they mean.

Good answers are those that clients recorded, and those of the kit's own services; the others stand in the APIs' own
descriptions. Whoever adds a dialect adds a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession

from tests.dialects.recorded_exchanges import recorded
from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream
from tests.kit.processes import PineconeService, QdrantService
from tests.kit.unwell import SERVER, Ward
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.vital import ANSWER_BYTES_MAX, VITALS, path_under, what_is_wrong

pytestmark = pytest.mark.virtual_clock(io_grace_s=0.001)

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "dialects"
ROUTE = """
routes:
  - name: route
    match: {{prefix: /}}
    dialect: {dialect}
    {space}
    cache: {{enabled: false}}
    tiers:
      - {{name: first, kind: upstream, url: "{url}", headers: {{{key}: "a-key"}}}}
"""


class Row(NamedTuple):
    """What is sent, what says that all is well, and what says that something is wrong, in which word."""

    asked: str
    well: list[Any]
    ill: list[tuple[int, Any, str]]
    key: str = "authorization"
    headers: tuple[tuple[str, str], ...] = ()
    base: str = ""


def from_recordings(name: str, path: str) -> list[Any]:
    return [one.json for one in recorded(name) if one.request.target.decode().partition("?")[0] == path]


def models(*names: str) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "owned_by": "o", "created": 1} for name in names],
    }


STATS = from_recordings("pinecone", "/describe_index_stats")
BEAT = from_recordings("chroma", "/api/v2/heartbeat")
HTML = "<html>Welcome</html>"
ODD = [(200, HTML, "schema"), (200, [], "schema"), (200, {"ok": True}, "schema"), (200, "", "schema")]
DOWN = [(500, "", "status_500"), (503, "", "status_503")]
OPENAI = Row("GET /v1/models", [models("gpt-4o"), models()], ODD)
AZURE = Row("GET /openai/models?api-version=2024-10-21", [models("gpt-4o")], ODD, key="api-key")
OLLAMA = Row("GET /api/version", [{"version": "0.12.3"}], ODD)
COHERE = Row("GET /v1/models", [{"models": [{"name": "command-r", "endpoints": ["chat"]}]}], ODD)
CLUSTER = {"cluster_name": "c", "timed_out": False, "number_of_nodes": 1, "active_shards": 3}
ELASTIC = Row(
    "GET /_cluster/health",
    [{**CLUSTER, "status": "green"}, {**CLUSTER, "status": "yellow"}],
    [*ODD, (200, {**CLUSTER, "status": "red"}, "cluster_red"), (200, {**CLUSTER, "status": 1}, "schema")],
)
ROWS: dict[str, Row] = {
    "openai-chat": OPENAI,
    "openai-completions": OPENAI,
    "openai-responses": OPENAI,
    "openai-embeddings": OPENAI._replace(base="/v1"),
    "azure-openai-chat": AZURE,
    "azure-openai-embeddings": AZURE._replace(base="/openai"),
    "anthropic": Row(
        "GET /v1/models",
        [{"data": [{"type": "model", "id": "claude-x", "display_name": "X"}], "has_more": False}],
        ODD,
        "x-api-key",
        (("anthropic-version", "2023-06-01"),),
    ),
    "ollama-chat": OLLAMA,
    "ollama-embed": OLLAMA,
    "cohere-chat": COHERE,
    "cohere-embed": COHERE,
    "tei": Row("GET /health", ["", HTML], []),
    "qdrant": Row(
        "GET /readyz", ["all shards are ready"], [(503, "some shards are not ready", "status_503")], "api-key"
    ),
    "chroma": Row("GET /api/v2/heartbeat", BEAT, ODD, "x-chroma-token"),
    "elasticsearch": ELASTIC,
    "opensearch": ELASTIC,
    "weaviate": Row("GET /v1/.well-known/ready", [""], [(503, "", "status_503")]),
    "milvus": Row(
        "POST /v2/vectordb/collections/list",
        [
            {"code": 0, "data": ["docs"]},
            {"code": 200, "data": []},
            {"code": 1800, "message": "user hasn't authenticated"},
        ],
        [
            *ODD,
            (200, {"code": 1, "message": "service not ready"}, "code_1"),
            (200, {"code": 5, "message": "x"}, "code_5"),
        ],
    ),
    "pinecone": Row("POST /describe_index_stats", STATS, ODD, "api-key"),
}


def test_every_api_with_calls_of_its_own_has_a_line_here_and_recorded_answers_where_there_are_any():
    assert set(ROWS) == set(VITALS) == {dialect for dialect, kind in KINDS.items() if kind != "pass"}
    assert STATS
    assert BEAT


@pytest.mark.parametrize("dialect", sorted(ROWS))
async def test_it_is_asked_as_its_server_wants_and_its_answer_taken_for_what_it_means(tmp_path: Path, dialect: str):
    row = ROWS[dialect]
    space = "space: s" if KINDS[dialect] == "embed" else ""
    async with FakeUpstream() as up:
        policies = ROUTE.format(dialect=dialect, space=space, url=up.url + row.base, key=row.key)
        async with Ward(tmp_path, policies, SERVER) as ward:
            health = ward.sidecar.health
            (name,) = [one for one, each in health.components.items() if each.uses]

            async def found(status: int, body: Any) -> str:
                up.on_check = answer(status, body=body.encode() if isinstance(body, str) else body)
                one = await health.check(name)
                reason = health.hearts[name].reach.reason
                assert one.passed or reason.startswith("protocol: ")
                return "" if one.passed else reason.removeprefix("protocol: ")

            for body in row.well:
                assert await found(200, body) == ""
            asked = up.checks[-1]
            assert f"{asked.method.decode()} {asked.target.decode()}" == row.asked
            for header, value in ((row.key, "a-key"), *row.headers):
                assert asked.header(header.encode()) == value.encode()
            if asked.method == b"POST":
                assert (asked.json(), asked.header(b"content-type")) == ({}, b"application/json")
            for status, body, why in [*row.ill, *DOWN]:
                assert await found(status, body) == why
                assert await found(200, row.well[0]) == ""
            # who does not have it, or shows it to nobody, or has no time for it, is there all the same
            for status in (401, 403, 404, 405, 429):
                assert await found(status, {"error": "no"}) == ""


@pytest.mark.parametrize("dialect", sorted(ROWS))
def test_whatever_an_endpoint_answers_is_judged_and_no_list_is_too_long(dialect: str):
    vital = VITALS[dialect]
    for body in strange_bodies():
        assert what_is_wrong(vital, 200, body) in ("", "schema")
        assert what_is_wrong(vital, 502, body) == "status_502"
    assert what_is_wrong(vital, 200, b"x" * (ANSWER_BYTES_MAX + 1)) == ""


def strange_bodies() -> Iterator[bytes]:
    values: list[Any] = [None, True, 0, -1.5, "text", [], [[]], {}, {"status": None}, {"code": "0"}, {"code": True}]
    for value in values:
        yield json.dumps(value).encode()
    yield from (b"\xff\xfe", b"{", b"[" * 60_000, b'{"code": 1e999}')


@pytest.mark.parametrize(
    ("base", "path", "asked"),
    [
        (b"", b"/v1/models", b"/v1/models"),
        (b"/", b"/v1/models", b"/v1/models"),
        (b"/v1", b"/v1/models", b"/models"),
        (b"/proxy/v1/", b"/v1/models", b"/models"),
        (b"/openai", b"/openai/models?api-version=1", b"/models?api-version=1"),
        (b"/v10", b"/v1/models", b"/v1/models"),
        (b"/tenant", b"/readyz", b"/readyz"),
    ],
)
def test_what_a_base_url_and_a_path_have_in_common_is_asked_for_once(base: bytes, path: bytes, asked: bytes):
    assert path_under(base, path) == asked


@pytest.mark.beside("shared/reference/dialects")
def test_what_real_servers_and_clients_were_recorded_to_say_is_well():
    for file, dialect in (("chroma_v2", "chroma"), ("pinecone", "pinecone")):
        vital = VITALS[dialect]
        samples = json.loads((REFERENCE / f"{file}.json").read_text("utf-8"))["samples"]
        said = [one for one in samples if one["req"]["path"].encode() == vital.path]
        assert said
        for one in said:
            assert one["req"]["method"].encode() == vital.method
            assert what_is_wrong(vital, one["resp"]["status"], json.dumps(one["resp"]["body"]).encode()) == ""
    # what was recorded of other calls is none of it
    vital = VITALS["milvus"]
    samples = json.loads((REFERENCE / "milvus_rest_v2.json").read_text("utf-8"))["samples"]
    assert {what_is_wrong(vital, 200, json.dumps(one["resp"]["body"]).encode()) for one in samples} == {""}


@pytest.mark.real_clock
@pytest.mark.parametrize(("service", "dialect"), [(QdrantService, "qdrant"), (PineconeService, "pinecone")])
async def test_the_kits_services_have_their_endpoints_as_the_real_ones_do(service: type[Any], dialect: str):
    vital = VITALS[dialect]
    with service() as up:
        async with ClientSession() as session:
            url, body = up.url + vital.path.decode(), vital.body or None
            headers = {"content-type": "application/json", "api-key": "k"}
            async with session.request(vital.method.decode(), url, data=body, headers=headers) as answered:
                assert what_is_wrong(vital, answered.status, await answered.read()) == ""
                assert answered.status == 200
