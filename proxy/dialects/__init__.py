"""What each API's bytes mean: one file per dialect, all behind the one interface in `base`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from understudy.policies.service import Kind
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.dialects.chroma import Chroma
from understudy.proxy.dialects.openai_chat import OpenAIChat
from understudy.proxy.dialects.openai_embeddings import OpenAIEmbeddings
from understudy.proxy.dialects.plain import Plain
from understudy.proxy.dialects.qdrant import Qdrant
from understudy.proxy.handles import Naming

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "openai-embeddings": "embed",
        "openai-chat": "generate",
        "qdrant": "retrieve",
        "chroma": "retrieve",
        "plain": "pass",
    }
)
"""What a dialect's own calls are, by its name in the policy files."""

_CHROMA = Chroma()

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {dialect.name: dialect for dialect in (OpenAIEmbeddings(), OpenAIChat(), Qdrant(), _CHROMA, Plain())}
)
"""Every dialect there is, by its name in the policy files."""

NAMING: Mapping[str, Naming] = MappingProxyType({_CHROMA.name: _CHROMA})
"""Those whose clients call collections by ids that their database made up."""
