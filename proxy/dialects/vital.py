"""How each API's server says that it is well: the endpoint that is cheapest to ask, and what it must answer.

What a server answers there only counts against it where it says that it is not well: an endpoint that it does not have,
or that it shows to nobody without a key, is an answer all the same, and proves that somebody is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import msgspec

ANSWER_BYTES_MAX = 64 * 1024
"""Of what is longer the shape is not looked at: lists of models grow."""
SCHEMA = "schema"
"""What is wrong with a 200 that has not the shape it should have."""
ANTHROPIC_VERSION = (b"anthropic-version", b"2023-06-01")
"""Without it Anthropic answers nothing but a 400."""
NOTHING = b"{}"
MILVUS_OWN_CODES = range(1, 100)
"""Of Milvus's codes those of the whole service (not ready, unavailable, internal, out of memory); higher ones are of
collections, credentials and what was asked."""
MILVUS_BUSY = (4, 8)
"""Too many requests, for ours or for all: it speaks, and is well."""


class Vital(NamedTuple):
    """`path` from the server's root; `wrong` says what is wrong with the JSON of a 200, or ''. None: any 200 will do.
    It is a GET with these `headers` besides the usual ones, or, where there is a `body`, a POST of that JSON."""

    path: bytes
    wrong: Callable[[Any], str] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    @property
    def method(self) -> bytes:
        return b"POST" if self.body else b"GET"


def _has(*fields: str) -> Callable[[Any], str]:
    def wrong(value: Any) -> str:
        told = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        return "" if any(field in told for field in fields) else SCHEMA

    return wrong


def _of_cluster(value: Any) -> str:
    told = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    status = told.get("status")
    if status == "red":
        return "cluster_red"
    return "" if status in ("green", "yellow") else SCHEMA


def _of_milvus(value: Any) -> str:
    told = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    code = told.get("code")
    if not isinstance(code, int) or isinstance(code, bool):
        return SCHEMA
    return f"code_{code}" if code in MILVUS_OWN_CODES and code not in MILVUS_BUSY else ""


_OPENAI = Vital(b"/v1/models", _has("data", "models"))
_ELASTIC = Vital(b"/_cluster/health", _of_cluster)

VITALS: Mapping[str, Vital] = MappingProxyType(
    {
        "openai-chat": _OPENAI,
        "openai-completions": _OPENAI,
        "openai-responses": _OPENAI,
        "openai-embeddings": _OPENAI,
        "azure-openai-chat": Vital(b"/openai/models?api-version=2024-10-21", _has("data")),
        "azure-openai-embeddings": Vital(b"/openai/models?api-version=2024-10-21", _has("data")),
        "anthropic": Vital(b"/v1/models", _has("data"), (ANTHROPIC_VERSION,)),
        "ollama-chat": Vital(b"/api/version", _has("version")),
        "ollama-embed": Vital(b"/api/version", _has("version")),
        "cohere-chat": Vital(b"/v1/models", _has("models")),
        "cohere-embed": Vital(b"/v1/models", _has("models")),
        "tei": Vital(b"/health"),
        "qdrant": Vital(b"/readyz"),
        "chroma": Vital(b"/api/v2/heartbeat", _has("nanosecond heartbeat")),
        "elasticsearch": _ELASTIC,
        "opensearch": _ELASTIC,
        "weaviate": Vital(b"/v1/.well-known/ready"),
        # its /healthz is on another port, which is not ours to know
        "milvus": Vital(b"/v2/vectordb/collections/list", _of_milvus, body=NOTHING),
        "pinecone": Vital(b"/describe_index_stats", _has("dimension", "namespaces", "totalVectorCount"), body=NOTHING),
    }
)
"""By dialect. One that is not here has no endpoint of its own, and is only connected to."""


def path_under(base: bytes, path: bytes) -> bytes:
    """`path`, seen from the server's root, as it is asked at an upstream whose URL ends in `base`: what both have in
    the middle is said once (`/v1` and `/v1/models` are `/models`)."""
    base = base.rstrip(b"/")
    for start in range(len(base)):
        if base[start : start + 1] == b"/" and path.startswith(base[start:] + b"/"):
            return path[len(base) - start :]
    return path


def what_is_wrong(vital: Vital, status: int, body: bytes) -> str:
    """Why an answer to the endpoint says that its server is not well, in a word, or ''."""
    if status >= 500:
        return f"status_{status}"
    if status != 200 or vital.wrong is None or len(body) > ANSWER_BYTES_MAX:
        return ""
    try:
        return vital.wrong(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return SCHEMA
