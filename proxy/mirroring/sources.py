"""Which databases can be copied, and who reads each."""

from __future__ import annotations

from collections.abc import Iterable

from understudy.proxy.mirroring.chroma_source import ChromaSource
from understudy.proxy.mirroring.elastic_source import ElasticSource
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.milvus_source import MilvusSource
from understudy.proxy.mirroring.pinecone_source import PineconeSource
from understudy.proxy.mirroring.qdrant_source import QdrantSource
from understudy.proxy.mirroring.source import Source
from understudy.proxy.mirroring.weaviate_source import WeaviateSource
from understudy.proxy.settings.mirror_rules import MIRRORED


def source_of(dialect: str, line: Line, names: Iterable[str] = ()) -> Source:
    """Who reads the databases that speak this dialect; `names` are those of collections that were named beforehand."""
    assert dialect in MIRRORED, dialect
    if dialect == "chroma":
        return ChromaSource(line, names)
    if dialect == "milvus":
        return MilvusSource(line, names)
    if dialect == "pinecone":
        return PineconeSource(line)
    if dialect == "qdrant":
        return QdrantSource(line)
    if dialect == "weaviate":
        return WeaviateSource(line)
    return ElasticSource(line, points_in_time=dialect == "elasticsearch")
