"""What each API's bytes mean: one file per dialect, all behind the one interface in `base`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from understudy.policies.service import Kind
from understudy.proxy.dialects.anthropic import Anthropic
from understudy.proxy.dialects.azure_openai import AzureChat, AzureEmbeddings
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.dialects.chroma import Chroma
from understudy.proxy.dialects.cohere_chat import CohereChat
from understudy.proxy.dialects.cohere_embed import CohereEmbed
from understudy.proxy.dialects.elasticsearch import Elasticsearch
from understudy.proxy.dialects.milvus import Milvus
from understudy.proxy.dialects.ollama import OllamaChat
from understudy.proxy.dialects.ollama_embed import OllamaEmbed
from understudy.proxy.dialects.openai_chat import OpenAIChat
from understudy.proxy.dialects.openai_completions import OpenAICompletions
from understudy.proxy.dialects.openai_embeddings import OpenAIEmbeddings
from understudy.proxy.dialects.openai_responses import OpenAIResponses
from understudy.proxy.dialects.pinecone import Pinecone
from understudy.proxy.dialects.plain import Plain
from understudy.proxy.dialects.qdrant import Qdrant
from understudy.proxy.dialects.tei import Tei
from understudy.proxy.dialects.weaviate import Weaviate
from understudy.proxy.handles import Naming

_CHROMA = Chroma()
_OF_KIND: Mapping[Kind, tuple[Dialect, ...]] = {
    "embed": (OpenAIEmbeddings(), AzureEmbeddings(), OllamaEmbed(), CohereEmbed(), Tei()),
    "generate": (
        OpenAIChat(),
        OpenAICompletions(),
        OpenAIResponses(),
        Anthropic(),
        OllamaChat(),
        AzureChat(),
        CohereChat(),
    ),
    "retrieve": (Qdrant(), _CHROMA, Pinecone(), Elasticsearch(), Elasticsearch("opensearch"), Milvus(), Weaviate()),
    "pass": (Plain(),),
}

KINDS: Mapping[str, Kind] = MappingProxyType(
    {dialect.name: kind for kind, dialects in _OF_KIND.items() for dialect in dialects}
)
"""What a dialect's own calls are, by its name in the policy files."""

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {dialect.name: dialect for dialects in _OF_KIND.values() for dialect in dialects}
)
"""Every dialect there is, by its name in the policy files."""

NAMING: Mapping[str, Naming] = MappingProxyType({_CHROMA.name: _CHROMA})
"""Those whose clients call collections by ids that their database made up."""
