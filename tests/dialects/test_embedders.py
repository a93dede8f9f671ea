"""Azure, Ollama, Cohere and TEI are asked for vectors each in its own words, and answered in them."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading
from tests.dialects.recorded_exchanges import recorded, request
from understudy.policies.service import Answer, Refused
from understudy.proxy.asks import EmbedAsk, GenerateAsk
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest

AZURE = "/openai/deployments/d/embeddings?api-version=2024-10-21"
PATHS = {
    "azure-openai-embeddings": AZURE,
    "ollama-embed": "/api/embed",
    "cohere-embed": "/v2/embed",
    "tei": "/embed",
}
RECORDED = {name: name.replace("-", "_") for name in (*PATHS, "azure-openai-chat")}
VECTORS = np.array([[0.1, -0.2, 3e-8], [1, 0, -0.0]], dtype=np.float32)


def asked(dialect: str, body: Any, path: str = "") -> EmbedAsk:
    call = DIALECTS[dialect].read(request("POST", path or PATHS[dialect], body))
    call.id = "c-1"
    ask = DIALECTS[dialect].ask(call)
    assert isinstance(ask, EmbedAsk)
    return ask


def cohere(**body: Any) -> EmbedAsk:
    return asked("cohere-embed", {"texts": ["a", "b"], "model": "m", "input_type": "search_query"} | body)


def told(dialect: str, ask: EmbedAsk, vectors: Any = VECTORS) -> Any:
    return json.loads(DIALECTS[dialect].embedded(ask, vectors, 7, "local-model", 0.25).body)


@pytest.mark.parametrize("dialect", RECORDED)
def test_each_does_what_every_dialect_must(dialect: str):
    exchanges = recorded(RECORDED[dialect])
    check_dialect(DIALECTS[dialect], exchanges)
    for exchange in exchanges:
        assert DIALECTS[dialect].read(exchange.request).kind != "pass"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "type", "text", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = (
    "input",
    "inputs",
    "texts",
    "prompt",
    "input_type",
    "embedding_types",
    "truncate",
    "dimensions",
    "prompt_name",
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES) | st.binary(max_size=60) | JSON_VALUES


@settings(derandomize=True, max_examples=400, deadline=None)
@given(BODIES, st.sampled_from([*PATHS.items(), ("ollama-embed", "/api/embeddings"), ("tei", "/")]))
def test_no_body_breaks_the_reading(body: Any, of: tuple[str, str]):
    check_reading(DIALECTS[of[0]], request("POST", of[1], body))


@pytest.mark.parametrize(
    ("dialect", "method", "path", "kind"),
    [
        ("azure-openai-embeddings", "POST", AZURE, "embed"),
        ("azure-openai-embeddings", "POST", "/openai/deployments/d/chat/completions", "pass"),
        ("azure-openai-embeddings", "GET", AZURE, "pass"),
        ("azure-openai-chat", "POST", "/openai/deployments/d/chat/completions?api-version=x", "generate"),
        ("azure-openai-chat", "POST", "/openai/deployments/d/images/generations", "pass"),
        ("ollama-embed", "POST", "/api/embed", "embed"),
        ("ollama-embed", "POST", "/api/embeddings", "embed"),
        ("ollama-embed", "POST", "/ollama/api/embed", "embed"),
        ("ollama-embed", "POST", "/api/pull", "pass"),
        ("ollama-embed", "GET", "/api/tags", "pass"),
        ("cohere-embed", "POST", "/v2/embed", "embed"),
        ("cohere-embed", "POST", "/v1/embed", "pass"),
        ("cohere-embed", "POST", "/v2/rerank", "pass"),
        ("tei", "POST", "/embed", "embed"),
        ("tei", "POST", "/", "embed"),
        ("tei", "POST", "/rerank", "pass"),
        ("tei", "GET", "/info", "pass"),
    ],
)
def test_what_a_call_is_follows_from_its_method_and_path(dialect: str, method: str, path: str, kind: str):
    call = DIALECTS[dialect].read(request(method, path, b"not json"))
    assert (call.kind, call.asked) == (kind, None)
    if kind == "pass":
        with pytest.raises(Refused):
            DIALECTS[dialect].ask(call)


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "path", "body", "ask"),
    [
        ("ollama-embed", "/api/embed", {"input": "a"}, EmbedAsk(("a",), "m", kind="as_is", shape="embed")),
        (
            "ollama-embed",
            "/api/embed",
            {"input": ["a", ""], "truncate": False, "dimensions": 8, "keep_alive": "5m", "options": {}},
            EmbedAsk(("a", ""), "m", dimensions=8, kind="as_is", whole=True, shape="embed"),
        ),
        ("ollama-embed", "/api/embed", {"input": ""}, EmbedAsk((), "m", kind="as_is", shape="embed")),
        ("ollama-embed", "/api/embed", {}, EmbedAsk((), "m", kind="as_is", shape="embed")),
        ("ollama-embed", "/api/embeddings", {"prompt": "a"}, EmbedAsk(("a",), "m", kind="as_is", shape="embeddings")),
        ("ollama-embed", "/api/embeddings", {}, EmbedAsk((), "m", kind="as_is", shape="embeddings")),
        ("tei", "/embed", {"inputs": "a"}, EmbedAsk(("a",), "", kind="as_is", whole=True)),
        ("tei", "/", {"inputs": ["a"], "truncate": True, "normalize": True}, EmbedAsk(("a",), "", kind="as_is")),
        ("tei", "/", {"inputs": ["a"], "prompt_name": "Passage"}, EmbedAsk(("a",), "", kind="document", whole=True)),
        ("tei", "/", {"inputs": ["a"], "prompt_name": "s2s"}, EmbedAsk(("a",), "", kind="other", whole=True)),
        ("tei", "/", {"inputs": [[1, 2], [3]]}, EmbedAsk((), "", tokens=((1, 2), (3,)), kind="as_is", whole=True)),
        (
            "tei",
            "/",
            {"inputs": "a", "truncate": True, "truncation_direction": "Left"},
            EmbedAsk(("a",), "", kind="as_is", whole=True),
        ),
    ],
)
def test_a_request_is_read_for_what_it_means(dialect: str, path: str, body: Any, ask: EmbedAsk):
    assert asked(dialect, body if dialect == "tei" else {"model": "m"} | body, path) == ask


def test_coheres_input_type_says_what_the_texts_are():
    assert cohere() == EmbedAsk(("a", "b"), "m", kind="query", shape="float", id="c-1")
    assert cohere(input_type="search_document").kind == "document"
    assert cohere(input_type="clustering").kind == "other"
    assert cohere(truncate="NONE").whole
    assert cohere(truncate="START").whole
    assert cohere(output_dimension=256, embedding_types=["base64", "float"]).shape == "base64,float"
    inputs = [{"content": [{"type": "text", "text": "a"}]}, {"content": "b"}]
    assert asked("cohere-embed", {"inputs": inputs, "input_type": "search_query"}).texts == ("a", "b")


@pytest.mark.parametrize(
    ("dialect", "status", "body"),
    [
        ("ollama-embed", 400, {"input": 1}),
        ("ollama-embed", 400, {"input": ["a", 1]}),
        ("ollama-embed", 400, b"{"),
        ("tei", 400, {"inputs": []}),
        ("tei", 413, {"inputs": ""}),
        ("tei", 413, {"inputs": ["a", ""]}),
        ("tei", 413, {"inputs": ["a"] * 2049}),
        ("tei", 422, {"inputs": ["a", 1]}),
        ("tei", 422, {"inputs": None}),
        ("tei", 422, {}),
        ("tei", 422, b'{"inputs": ' + b"[" * 100_000),
        ("cohere-embed", 400, {"texts": [], "input_type": "search_query"}),
        ("cohere-embed", 400, {"input_type": "search_query"}),
        ("cohere-embed", 400, {"texts": ["a"]}),
        ("cohere-embed", 400, {"texts": ["a"], "input_type": "nonsense"}),
        ("cohere-embed", 400, {"texts": ["a"] * 97, "input_type": "search_query"}),
        ("cohere-embed", 400, {"texts": ["a"], "input_type": "search_query", "embedding_types": ["int4"]}),
        ("cohere-embed", 400, {"texts": ["a"], "input_type": "search_query", "truncate": "MIDDLE"}),
        ("cohere-embed", 400, {"texts": ["a"], "inputs": [], "input_type": "search_query"}),
        ("azure-openai-embeddings", 400, {"input": []}),
    ],
)
def test_what_the_service_would_not_take_is_the_callers_fault(dialect: str, status: int, body: Any):
    with pytest.raises(BadRequest) as caught:
        asked(dialect, body)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("tei", {"inputs": "a", "normalize": False}),
        ("ollama-embed", {"input": ["a"] * 2049}),
        ("cohere-embed", {"images": ["data:image/png;base64,"], "input_type": "image"}),
        ("cohere-embed", {"texts": ["a"], "input_type": "image"}),
        ("cohere-embed", {"texts": ["a"], "input_type": "search_query", "embedding_types": ["float", "int8"]}),
        ("cohere-embed", {"texts": ["a"], "input_type": "search_query", "embedding_types": ["ubinary"]}),
        ("cohere-embed", {"texts": ["a"], "input_type": "search_query", "max_tokens": 5}),
        ("cohere-embed", {"inputs": [{"content": [{"type": "image_url"}]}], "input_type": "search_query"}),
    ],
)
def test_what_only_the_service_itself_can_answer_is_refused(dialect: str, body: Any):
    with pytest.raises(Refused) as caught:
        asked(dialect, body)
    assert caught.value.reason == "unsupported"


def test_azures_chat_is_openais():
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    chat = DIALECTS["azure-openai-chat"]
    call = chat.read(request("POST", "/openai/deployments/d/chat/completions?api-version=x", body))
    assert call.wants_stream
    assert isinstance(chat.ask(call), GenerateAsk)
    # Azure's first event says what its filters found in the prompt, and nothing else
    filtered = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'
    assert chat.primed(filtered) == "wait"
    content = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
    assert chat.primed(filtered + content) == "go"


# --- writing -------------------------------------------------------------------------------------------------------


def shape_of(value: Any) -> Any:
    """The names of a JSON value and the types below them; a list is known by its first element."""
    if isinstance(value, dict):
        return {name: shape_of(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return float if isinstance(value, int | float) else type(value)


@pytest.mark.parametrize("dialect", PATHS)
def test_our_answers_have_the_recorded_shapes(dialect: str):
    for exchange in recorded(RECORDED[dialect]):
        if exchange.answer.status != 200:
            continue
        ask = DIALECTS[dialect].ask(DIALECTS[dialect].read(exchange.request))
        assert isinstance(ask, EmbedAsk)
        said = told(dialect, ask, VECTORS[: len(ask.texts)])
        if dialect == "cohere-embed":
            # how many tokens the local model has read, where nothing was billed
            assert said["meta"].pop("tokens") == {"input_tokens": 7}
        assert shape_of(said) == shape_of(exchange.json)


def test_vectors_come_back_exactly():
    assert np.array_equal(np.array(told("tei", asked("tei", {"inputs": ["a", "b"]})), np.float32), VECTORS)
    ollama = told("ollama-embed", asked("ollama-embed", {"input": ["a", "b"]}))
    assert np.array_equal(np.array(ollama["embeddings"], np.float32), VECTORS)
    assert (ollama["model"], ollama["total_duration"], ollama["prompt_eval_count"]) == ("local-model", 250_000_000, 7)
    by_type = told("cohere-embed", cohere(embedding_types=["float", "base64"]))["embeddings"]
    assert np.array_equal(np.array(by_type["float"], np.float32), VECTORS)
    unpacked = [np.frombuffer(base64.b64decode(each), "<f4") for each in by_type["base64"]]
    assert np.array_equal(np.stack(unpacked), VECTORS)


def test_ollama_answers_nothing_to_nothing():
    none = np.empty((0, 3), np.float32)
    assert told("ollama-embed", asked("ollama-embed", {"input": []}), none)["embeddings"] == []
    assert told("ollama-embed", asked("ollama-embed", {}, "/api/embeddings"), none) == {"embedding": []}


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "body", "why"),
    [
        ("ollama-embed", b'{"embeddings":[[0.1]]}\n', ""),
        ("ollama-embed", b'{"error":"llama runner process has terminated"}', "error_in_200"),
        ("ollama-embed", b"[[0.1]]", "garbage"),
        ("cohere-embed", b'{"embeddings":{"float":[]},"texts":["say \\"message\\""]}', ""),
        ("cohere-embed", b'{"id":"e","message":"internal server error"}', "error_in_200"),
        ("cohere-embed", b'{"message": nonsense}', "garbage"),
        ("tei", b" [ [0.1,0.2] ] \n", ""),
        ("tei", b"[[0.1],[0.2]]", ""),
        ("tei", b'{"error":"Model is overloaded","error_type":"Overloaded"}', "error_in_200"),
        ("tei", b"[[0.1,null]]", "garbage"),
        ("tei", b"[[0.1],[0.2]", "garbage"),
        ("tei", b"[]", "garbage"),
        ("tei", b'["a"]', "garbage"),
        ("azure-openai-embeddings", b'{"error":{"code":"429","message":"busy"}}', "error_in_200"),
    ],
)
def test_a_200_may_hold_a_failure(dialect: str, body: bytes, why: str):
    assert DIALECTS[dialect].failure_within(Answer(200, [], body)) == why


@pytest.mark.parametrize(
    ("dialect", "status", "body"),
    [
        ("ollama-embed", 503, {"error": "why"}),
        ("cohere-embed", 503, {"message": "why"}),
        ("tei", 503, {"error": "why", "error_type": "Unhealthy"}),
        ("tei", 429, {"error": "why", "error_type": "Overloaded"}),
        ("tei", 413, {"error": "why", "error_type": "Validation"}),
        (
            "azure-openai-embeddings",
            503,
            {"error": {"message": "why", "type": "server_error", "param": None, "code": "exhausted"}},
        ),
    ],
)
def test_errors_are_in_the_services_own_words(dialect: str, status: int, body: Any):
    assert json.loads(DIALECTS[dialect].error(status, "exhausted", "why").body) == body
