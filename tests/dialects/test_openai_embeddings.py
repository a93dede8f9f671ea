"""OpenAI's embeddings are read in all four forms of input, and written so that the SDK reads the same numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading
from tests.dialects.recorded_exchanges import recorded, request
from understudy.policies.service import Answer, Refused
from understudy.proxy.asks import EmbedAsk
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest

EMBEDDINGS = DIALECTS["openai-embeddings"]


def asked(body: Any) -> EmbedAsk:
    ask = EMBEDDINGS.ask(EMBEDDINGS.read(request("POST", "/v1/embeddings", body)))
    assert isinstance(ask, EmbedAsk)
    return ask


def test_it_does_what_every_dialect_must():
    check_dialect(EMBEDDINGS, recorded("openai_embeddings"))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text().map(str.encode), st.sampled_from(["GET", "POST", "DELETE"]))
def test_no_bytes_break_the_reading(body: bytes, method: str):
    check_reading(EMBEDDINGS, request(method, "/v1/embeddings", body))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.fixed_dictionaries({"input": JSON_VALUES}, optional={"dimensions": JSON_VALUES, "model": JSON_VALUES}))
def test_no_json_breaks_the_reading(body: Any):
    check_reading(EMBEDDINGS, request("POST", "/v1/embeddings", body))


def test_only_a_post_asks_for_embeddings_and_its_body_stays_unread():
    assert EMBEDDINGS.read(request("GET", "/v1/models")).kind == "pass"
    call = EMBEDDINGS.read(request("POST", "/v1/embeddings", b"not json"))
    assert (call.kind, call.asked) == ("embed", None)


@pytest.mark.parametrize(
    ("given_input", "texts", "tokens"),
    [
        ("one", ("one",), ()),
        (["b", "a", "b"], ("b", "a", "b"), ()),
        ([1, 2, 3], (), ((1, 2, 3),)),
        ([[1, 2], [3]], (), ((1, 2), (3,))),
        (["x"] * 2048, ("x",) * 2048, ()),
        (list(range(3000)), (), (tuple(range(3000)),)),
    ],
)
def test_input_has_four_forms(given_input: Any, texts: tuple[str, ...], tokens: tuple[tuple[int, ...], ...]):
    ask = asked({"input": given_input, "model": "m"})
    assert (ask.texts, ask.tokens) == (texts, tokens)
    assert (ask.base64, ask.dimensions) == (False, None)


@pytest.mark.parametrize(
    "body",
    [
        {"input": "", "model": "m"},
        {"input": [], "model": "m"},
        {"input": ["a", ""], "model": "m"},
        {"input": [[]], "model": "m"},
        {"input": ["a", 1], "model": "m"},
        {"input": ["a", [1]], "model": "m"},
        {"input": ["x"] * 2049, "model": "m"},
        {"input": None, "model": "m"},
        {"input": {"text": "a"}, "model": "m"},
        {"input": [True], "model": "m"},
        {"input": "a", "encoding_format": "int8"},
        {"input": "a", "dimensions": 0},
        {"model": "m"},
        [],
        b"",
        b'{"input": "a"',
        b'{"input": "\xff"}',
        b'{"input": ' + b"[" * 100_000,
    ],
)
def test_what_openai_would_not_take_is_the_callers_fault(body: Any):
    with pytest.raises(BadRequest) as caught:
        asked(body)
    assert caught.value.status == 400


def test_vectors_come_back_exactly_in_both_encodings():
    vectors = np.array([[0.1, -0.2, 3e-8], [1, 0, -0.0]], dtype=np.float32)
    for base64 in (False, True):
        ask = EmbedAsk(("a", "b"), "m", base64=base64)
        body = json.loads(EMBEDDINGS.embedded(ask, vectors, 7, "local-model").body)
        assert body["model"] == "local-model"
        assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
        assert [entry["index"] for entry in body["data"]] == [0, 1]
        assert np.array_equal(np.stack([decoded(entry["embedding"]) for entry in body["data"]]), vectors)


def decoded(embedding: Any) -> Any:
    import base64

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.array(embedding, dtype=np.float32)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"object":"list","data":[]}', ""),
        (b' \n{"data":[{"embedding":"error"}]}\n', ""),
        (b'{"data":[],"error":null}', ""),
        (b'{"error":{"message":"overloaded","type":"server_error"}}', "error_in_200"),
        (b'{"data":[],"note":"no \\"error\\" here"}', ""),
        (b'{"embedding":[NaN],"x":"error"}', ""),
        (b"[1,2]", "garbage"),
        (b"", "garbage"),
    ],
)
def test_a_200_may_hold_a_failure(body: bytes, why: str):
    assert EMBEDDINGS.failure_within(Answer(200, [], body)) == why


def test_the_sdk_is_told_not_to_retry_what_we_have_retried():
    answer = EMBEDDINGS.error(503, "exhausted", "nobody answered")
    assert (b"x-should-retry", b"false") in answer.headers
    assert json.loads(answer.body) == {
        "error": {"message": "nobody answered", "type": "server_error", "param": None, "code": "exhausted"}
    }


def test_what_is_passed_through_means_nothing_to_us():
    with pytest.raises(Refused):
        EMBEDDINGS.ask(EMBEDDINGS.read(request("GET", "/v1/models")))


def test_T47_an_answer_without_vectors_is_of_the_wrong_type_wherever_its_key_stands():
    def within(body: bytes) -> str:
        return DIALECTS["openai-embeddings"].failure_within(Answer(200, [], body))

    assert within(b'{"object":"chat.completion","choices":[{"message":{"content":"Hello"}}]}') == "wrong_type"
    assert within(b'{"status":"ok"}') == "wrong_type"
    assert within(b'{"object":"list","data":[{"object":"embedding","embedding":[0.1]}]}') == ""
    padded = b'{"usage":{"note":"%b"},"data":[{"embedding":[0.1]}]}' % (b"x" * 5000)
    assert within(padded) == ""
    assert within(b"<html>all is well</html>") == "garbage"
    assert DIALECTS["azure-openai-embeddings"].failure_within(Answer(200, [], b'{"choices":[]}')) == "wrong_type"
