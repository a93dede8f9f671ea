"""What each API's bytes mean: one file per dialect, all behind the one interface in `base`.

A dialect is loaded when a route first speaks it: all of them together take 3.5 MB, and a sidecar speaks three or four.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import NamedTuple, cast

from understudy.policies.service import Kind
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.handles import Naming


class _Found(NamedTuple):
    """Where a dialect is found: its class, in which module of this folder, and what it is made with."""

    kind: Kind
    module: str
    named: str
    given: tuple[str, ...] = ()


_WHERE: Mapping[str, _Found] = {
    "openai-embeddings": _Found("embed", "openai_embeddings", "OpenAIEmbeddings"),
    "azure-openai-embeddings": _Found("embed", "azure_openai", "AzureEmbeddings"),
    "ollama-embed": _Found("embed", "ollama_embed", "OllamaEmbed"),
    "cohere-embed": _Found("embed", "cohere_embed", "CohereEmbed"),
    "tei": _Found("embed", "tei", "Tei"),
    "openai-chat": _Found("generate", "openai_chat", "OpenAIChat"),
    "openai-completions": _Found("generate", "openai_completions", "OpenAICompletions"),
    "openai-responses": _Found("generate", "openai_responses", "OpenAIResponses"),
    "anthropic": _Found("generate", "anthropic", "Anthropic"),
    "ollama-chat": _Found("generate", "ollama", "OllamaChat"),
    "azure-openai-chat": _Found("generate", "azure_openai", "AzureChat"),
    "cohere-chat": _Found("generate", "cohere_chat", "CohereChat"),
    "qdrant": _Found("retrieve", "qdrant", "Qdrant"),
    "chroma": _Found("retrieve", "chroma", "Chroma"),
    "pinecone": _Found("retrieve", "pinecone", "Pinecone"),
    "elasticsearch": _Found("retrieve", "elasticsearch", "Elasticsearch"),
    "opensearch": _Found("retrieve", "elasticsearch", "Elasticsearch", ("opensearch",)),
    "milvus": _Found("retrieve", "milvus", "Milvus"),
    "weaviate": _Found("retrieve", "weaviate", "Weaviate"),
    "plain": _Found("pass", "plain", "Plain"),
}


class _Dialects(Mapping[str, Dialect]):
    """Dialects by their names in the policy files, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, Dialect] = {}

    def __getitem__(self, name: str) -> Dialect:
        made = self._made.get(name)
        if made is None:
            where = _WHERE[name]
            module = import_module(f"{__name__}.{where.module}")
            made = self._made[name] = cast("Dialect", getattr(module, where.named)(*where.given))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(_WHERE)

    def __len__(self) -> int:
        return len(_WHERE)

    # without loading it
    def __contains__(self, name: object) -> bool:
        return name in _WHERE


KINDS: Mapping[str, Kind] = MappingProxyType({name: where.kind for name, where in _WHERE.items()})
"""What a dialect's own calls are, by its name in the policy files."""

DIALECTS: Mapping[str, Dialect] = _Dialects()
"""Every dialect there is, by its name in the policy files."""

_NAMING = frozenset({"chroma"})


def naming_of(dialect: str) -> Naming | None:
    """How a dialect tells the ids that its database made up for collections from their names; None for one whose
    clients call collections by their names."""
    return cast("Naming", DIALECTS[dialect]) if dialect in _NAMING else None
