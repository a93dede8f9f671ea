"""Spans of calls, through the running sidecar, as an OpenTelemetry collector receives them."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from openai import OpenAI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.kit.acts import answer, pieces
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar, eventually, put_in_place
from tests.kit.voices import VOICES

pytestmark = pytest.mark.real

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLERS = f"00-{TRACE_ID}-{SPAN_ID}-01"
TRACES = 'traces: {to: "${COLLECTOR}", headers: {x-key: "${COLLECTOR_KEY}"}, service: rag-sidecar}'
POLICIES = """\
server:
  listen: "${UNDERSTUDY_LISTEN}"
  admin: "${UNDERSTUDY_ADMIN}"
  access_log: false
  TRACES
defaults: {retry: {attempts: 1}, breaker: {enabled: false}}
routes:
  - name: chat
    match: {path: /v1/chat/completions}
    dialect: openai-chat
    tiers:
      - {kind: upstream, name: first, url: "${FIRST}"}
      - kind: upstream
        name: claude
        url: "${SECOND}"
        speaks: anthropic
        models: {"*": claude-haiku-4-5}
        headers: {x-api-key: second-key}
  - name: cached
    match: {prefix: /cached, strip: true}
    dialect: openai-chat
    cache: {enabled: true, answers: always}
    tiers: [{kind: upstream, name: first, url: "${FIRST}"}]
  - name: search
    match: {prefix: /collections}
    dialect: qdrant
    space: s
    tiers: [{kind: upstream, name: db, url: "${FIRST}"}]
"""
HELLO: Any = [{"role": "user", "content": "a very private question"}]
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a private reply"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200},
}


class Collector:
    """What an OTLP/HTTP receiver has been sent: spans as plain values."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.bodies = b""
        self.status = 200
        self.url = ""

    def took(self, key: str | None, body: bytes) -> None:
        told = ExportTraceServiceRequest()
        told.ParseFromString(body)
        self.keys.add(key)
        self.bodies += body
        for resource in told.resource_spans:
            service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                self.spans += [
                    {
                        "service": service,
                        "name": span.name,
                        "kind": span.kind,
                        "trace": span.trace_id.hex(),
                        "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "state": span.trace_state,
                        "failed": span.status.code == 2,
                        "took_s": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                        "events": [(one.name, _plain(one.attributes)) for one in span.events],
                        **_plain(span.attributes),
                    }
                    for span in scope.spans
                ]


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def collector() -> Iterator[Collector]:
    taken = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if taken.status == 200:
                taken.took(self.headers.get("x-key"), body)
            self.send_response(taken.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    taken.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Deployed(NamedTuple):
    sidecar: Sidecar
    first: Hosted
    second: Hosted
    collector: Collector
    policies: Path

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.sidecar.url}/v1", api_key="sk-callers", max_retries=0)

    def spans(self, count: int) -> list[dict[str, Any]]:
        """All spans, once there are so many."""
        eventually(lambda: len(self.collector.spans) >= count)
        assert len(self.collector.spans) == count
        return self.collector.spans

    def metric(self, result: str) -> float:
        text = httpx.get(f"{self.sidecar.admin_url}/metrics", timeout=60).text
        found = [line for line in text.splitlines() if line.startswith(f'understudy_spans_total{{result="{result}"}}')]
        return float(found[0].rpartition(" ")[2]) if found else -1.0


@contextmanager
def _deployed(tmp_path: Path, traces: str) -> Iterator[Deployed]:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "p.yaml").write_text(POLICIES.replace("TRACES", traces))
    with in_thread() as first, in_thread() as second, collector() as taken:
        env = {"FIRST": first.url, "SECOND": second.url, "COLLECTOR": taken.url, "COLLECTOR_KEY": "collector-key"}
        with Sidecar(folder, tmp_path / "state", env=env) as sidecar:
            yield Deployed(sidecar, first, second, taken, folder)


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    with _deployed(tmp_path, TRACES) as one:
        yield one


def test_a_whole_answer_has_a_span_below_the_callers_with_its_models_tokens_and_end(deployed: Deployed):
    deployed.first.always(answer(body=WHOLE))
    extra = {"traceparent": CALLERS, "tracestate": "vendor=1"}
    deployed.openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO, extra_headers=extra)
    (span,) = deployed.spans(1)
    assert (span["name"], span["service"], span["kind"]) == ("chat gpt-4o-mini", "rag-sidecar", 3)
    assert (span["trace"], span["parent"], span["state"]) == (TRACE_ID, SPAN_ID, "vendor=1")
    assert span["gen_ai.operation.name"] == "chat"
    assert span["gen_ai.provider.name"] == "openai"
    assert span["gen_ai.request.model"] == "gpt-4o-mini"
    assert span["gen_ai.response.model"] == "gpt-4o-mini-2024-07-18"
    assert span["gen_ai.response.id"] == "chatcmpl-1"
    assert span["gen_ai.response.finish_reasons"] == ["stop"]
    assert (span["gen_ai.usage.input_tokens"], span["gen_ai.usage.output_tokens"]) == (1000, 200)
    assert (span["understudy.tier"], span["understudy.source"]) == ("primary", "first")
    assert span["server.port"] == httpx.URL(deployed.first.url).port
    assert not span["failed"]
    # the upstream was told that ours is the one above its own
    (heard,) = deployed.first.heard
    assert f"traceparent: 00-{TRACE_ID}-{span['span']}-01".encode() in heard.raw
    assert heard.raw.count(b"traceparent:") == 1
    assert b"tracestate: vendor=1" in heard.raw


def test_a_stream_that_another_provider_answers_tells_both_and_the_tokens_of_who_answered(deployed: Deployed):
    deployed.first.always(answer(503, body={"error": {"message": "a private reason"}}))
    events = VOICES["anthropic"]("claude-haiku-4-5").whole("a private ", "reply")
    deployed.second.always(pieces(events, headers=[(b"content-type", b"text/event-stream")]))
    stream = deployed.openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in stream if one.choices) == "a private reply"
    (span,) = deployed.spans(1)
    assert (span["gen_ai.provider.name"], span["gen_ai.response.model"]) == ("anthropic", "claude-haiku-4-5")
    assert (span["understudy.tier"], span["understudy.source"]) == ("secondary", "claude")
    assert span["gen_ai.request.stream"] is True
    assert 0 < span["gen_ai.response.time_to_first_chunk"] <= span["took_s"]
    assert span["gen_ai.usage.output_tokens"] > 0
    assert span["gen_ai.response.finish_reasons"] == ["end_turn"]
    assert span["understudy.stream.end"] == "done"
    reason = {"understudy.tier.name": "first", "understudy.reason": "status_503"}
    assert span["events"] == [("understudy.tier.failed", reason)]
    assert span["trace"].encode() in deployed.second.heard[0].raw


def test_nothing_that_was_said_and_no_secret_is_in_what_the_collector_gets(deployed: Deployed):
    deployed.first.then(answer(body=WHOLE), answer(400, body={"error": {"message": "a private reason"}}))
    deployed.openai.chat.completions.create(model="m", messages=HELLO)
    body = {"model": "m", "messages": HELLO}
    given = {"authorization": "Bearer sk-callers"}
    assert httpx.post(
        f"{deployed.sidecar.url}/v1/chat/completions?key=hidden", json=body, headers=given, timeout=60
    ).is_error
    _, failed = deployed.spans(2)
    assert failed["failed"]
    assert failed["http.response.status_code"] == 400
    for secret in (b"private", b"sk-callers", b"second-key", b"collector-key", b"hidden"):
        assert secret not in deployed.collector.bodies
    assert deployed.collector.keys == {"collector-key"}


def test_what_the_cache_answers_has_a_span_and_costs_no_tokens_and_a_search_names_its_collection(deployed: Deployed):
    deployed.first.always(answer(body=WHOLE))
    for _ in range(2):
        ask = {"model": "m", "messages": HELLO, "temperature": 0}
        assert httpx.post(f"{deployed.sidecar.url}/cached/v1/chat/completions", json=ask, timeout=60).status_code == 200
    asked, kept = deployed.spans(2)
    assert asked["gen_ai.usage.input_tokens"] == 1000
    assert (kept["gen_ai.provider.name"], kept["kind"]) == ("understudy", 1)
    assert "gen_ai.usage.input_tokens" not in kept
    deployed.first.always(answer(body={"result": {"points": []}, "status": "ok", "time": 0.1}))
    search = {"query": [0.1, 0.2], "limit": 3}
    assert (
        httpx.post(f"{deployed.sidecar.url}/collections/docs/points/query", json=search, timeout=60).status_code == 200
    )
    span = deployed.spans(3)[2]
    assert (span["name"], span["gen_ai.operation.name"]) == ("retrieval docs", "retrieval")
    assert (span["db.system.name"], span["db.collection.name"]) == ("qdrant", "docs")


def test_a_trace_that_its_caller_does_not_record_is_carried_on_untouched(deployed: Deployed):
    deployed.first.always(answer(body=WHOLE))
    unsampled = CALLERS[:-2] + "00"
    for header in (unsampled, CALLERS):
        extra = {"traceparent": header}
        deployed.openai.chat.completions.create(model="m", messages=HELLO, extra_headers=extra)
    (span,) = deployed.spans(1)
    assert span["parent"] == SPAN_ID
    assert f"traceparent: {unsampled}".encode() in deployed.first.heard[0].raw


def test_a_collector_that_takes_nothing_costs_no_call_and_is_counted(deployed: Deployed):
    deployed.first.always(answer(body=WHOLE))
    deployed.collector.status = 400
    deployed.openai.chat.completions.create(model="m", messages=HELLO)
    eventually(lambda: deployed.metric("failed") == 1)
    deployed.collector.status = 200
    deployed.openai.chat.completions.create(model="m", messages=HELLO)
    deployed.spans(1)
    eventually(lambda: deployed.metric("exported") == 1)


def test_what_is_left_is_sent_when_the_sidecar_ends(tmp_path: Path):
    with _deployed(tmp_path, TRACES) as deployed:
        deployed.first.always(answer(body=WHOLE))
        deployed.openai.chat.completions.create(model="m", messages=HELLO)
        # what sends them is loaded by then: a slow machine takes longer for that than an end waits for it
        deployed.spans(1)
        for _ in range(20):
            deployed.openai.chat.completions.create(model="m", messages=HELLO)
        deployed.sidecar.stop()
        assert len(deployed.collector.spans) == 21


def test_without_traces_nothing_is_sent_or_imported_until_a_reload_asks_for_it(tmp_path: Path):
    with _deployed(tmp_path, "reload_s: 0.1") as deployed:
        deployed.first.always(answer(body=WHOLE))
        deployed.openai.chat.completions.create(model="m", messages=HELLO)
        maps = Path(f"/proc/{deployed.sidecar.pid}/maps")
        assert "google/_upb" not in maps.read_text(), "protobuf's own library is only there where spans are sent"
        assert deployed.metric("exported") == -1.0
        policies = (deployed.policies / "p.yaml").read_text()
        put_in_place(deployed.policies / "p.yaml", policies.replace("reload_s: 0.1", f"reload_s: 0.1\n  {TRACES}"))
        eventually(lambda: deployed.metric("exported") == 0)
        deployed.openai.chat.completions.create(model="m", messages=HELLO)
        deployed.spans(1)
        assert "google/_upb" in maps.read_text()
        told = json.loads(httpx.get(f"{deployed.sidecar.admin_url}/status", timeout=60).text)
        assert "collector-key" not in json.dumps(told)
