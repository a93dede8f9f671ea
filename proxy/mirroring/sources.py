"""Which databases can be copied, and who reads each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.qdrant_source import QdrantSource
from understudy.proxy.mirroring.source import Source

SOURCES: Mapping[str, Callable[[Line], Source]] = MappingProxyType({"qdrant": QdrantSource})


def source_of(dialect: str, line: Line) -> Source:
    """Who reads the databases that speak this dialect. Raises KeyError."""
    return SOURCES[dialect](line)
