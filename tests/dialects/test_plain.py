"""The plain dialect knows nothing, and says so."""

from __future__ import annotations

import json

import pytest

from tests.dialects.check_dialect import check_dialect
from tests.dialects.recorded_exchanges import recorded, request
from understudy.policies.service import Answer, Refused
from understudy.proxy.dialects import DIALECTS, KINDS

PLAIN = DIALECTS["plain"]


def test_it_does_what_every_dialect_must():
    check_dialect(PLAIN, [exchange for exchange in recorded("qdrant") if not exchange.is_stream])


def test_every_dialect_has_a_kind_and_every_kind_a_dialect():
    assert dict(KINDS) == {
        "openai-embeddings": "embed",
        "openai-chat": "generate",
        "openai-completions": "generate",
        "openai-responses": "generate",
        "anthropic": "generate",
        "ollama-chat": "generate",
        "qdrant": "retrieve",
        "chroma": "retrieve",
        "azure-openai-embeddings": "embed",
        "azure-openai-chat": "generate",
        "ollama-embed": "embed",
        "cohere-embed": "embed",
        "cohere-chat": "generate",
        "tei": "embed",
        "pinecone": "retrieve",
        "elasticsearch": "retrieve",
        "milvus": "retrieve",
        "weaviate": "retrieve",
        "opensearch": "retrieve",
        "plain": "pass",
    }
    assert DIALECTS.keys() == KINDS.keys()


def test_everything_is_passed_through_and_nothing_is_judged():
    call = PLAIN.read(request("POST", "/anything", b"\x00\xff"))
    assert (call.kind, call.wants_stream) == ("pass", False)
    with pytest.raises(Refused, match="only ever forwarded"):
        PLAIN.ask(call)
    assert PLAIN.failure_within(Answer(200, [], b"<html>")) == ""
    assert PLAIN.primed(b"x") == "go"
    assert PLAIN.stream_complete(b"")
    assert PLAIN.broken_off("reset") == b""


def test_an_error_of_ours_is_json():
    body = json.loads(PLAIN.error(503, "exhausted", "nobody answered").body)
    assert body == {"error": {"message": "nobody answered", "code": "exhausted"}}
